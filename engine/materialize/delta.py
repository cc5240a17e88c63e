"""A Delta table that holds changes. Import it late: deltalake is an extra (`tailrace[delta]`).

Strategy: Delta has one thing that a commit writes with its rows, that survives checkpoints and the
cleanup of the log, and that a concurrent commit conflicts with: an application's transaction. But
it is a number. So the cursor's text lies in the table's folder, in `_tailrace/`, under the number
that is its hash, and is there before the commit that states the number. A number whose file is
missing or holds something else is an error; nothing is guessed. The commit's own metadata has the
cursor too, for people: the cleanup of the log removes it.

Delta's VACUUM leaves folders alone whose names begin with `_`.
"""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake import Schema as DeltaSchema
from deltalake._internal import DeltaFileSystemHandler
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from engine.materialize.bodies import Bodies, Body
from engine.materialize.columns import fitted, merged, plain_schema
from engine.materialize.lake_table import MaterializeRefused, Outrun, Settled, foreign
from engine.model.errors import DestinationUnavailable

_APPLICATION: Final = "tailrace"
_MARK: Final = "tailrace.table"
_NOTHING_YET: Final = 0
_FOLDER: Final = "_tailrace"
# Delta's protocol, "Column Mapping": without it these may not be in a column's name.
_UNFIT: Final = re.compile(r"[ ,;{}()\n\t=]")
# deltalake's errors have several lines, in colors.
_COLOR: Final = re.compile(r"\x1b\[[0-9;]*m")


class DeltaLakeTable:
    """A `LakeTable` at a path or URL."""

    def __init__(self, location: str, options: Mapping[str, str]) -> None:
        self._location = location
        self._options = dict(options)
        self._source = ""
        self._delta: DeltaTable | None = None
        self._number: int | None = None
        # Any: pyarrow has no types.
        self._schema: Any = None
        self._bodies: Bodies | None = None
        self._added: list[AddAction | RemoveAction] = []
        self._commit_properties: CommitProperties | None = None
        self._next_number = _NOTHING_YET

    # --- the protocol

    def load(self) -> str:
        """See LakeTable."""
        self._forget()
        with _told(self._location):
            self._delta = self._opened()
            if self._delta is None:
                self._number = None
                return ""
            self._number = self._stated(self._delta)
            return self._cursor(self._number)

    def prepare(self, schema: Any, source: str) -> None:
        """See LakeTable."""
        self._source = source
        wanted = plain_schema(schema, has_time=False)
        _require_names(wanted)
        with _told(self._location):
            if self._delta is None:
                self._make(wanted)
            assert self._delta is not None
            named = self._delta.metadata().configuration[_MARK]
            if named != source:
                raise foreign(self._location, named)
            held = self._held()
            self._schema = merged(held, wanted)
            if self._schema != held:
                self._extend()
        self._bodies = Bodies(self._schema, self._put)

    def write(self, batch: Any) -> None:
        """See LakeTable."""
        assert self._bodies is not None
        with _told(self._location):
            self._bodies.add(fitted(batch, self._schema))

    def settle(self, settled: Settled) -> None:
        """See LakeTable."""
        assert self._bodies is not None
        with _told(self._location):
            self._bodies.finish()
            self._next_number = number_of(settled.cursor)
            self._written(_cursor_path(self._next_number), settled.cursor.encode())
        self._commit_properties = CommitProperties(
            custom_metadata={
                "tailrace": {
                    "table": self._source,
                    "cursor": settled.cursor,
                    "until": settled.until,
                }
            },
            app_transactions=[Transaction(_APPLICATION, self._next_number, _now_ms())],
        )

    def commit(self) -> None:
        """See LakeTable."""
        assert self._delta is not None
        with _told(self._location):
            self._delta.create_write_transaction(
                self._added,
                "append",
                self._delta.schema(),
                [],
                commit_properties=self._commit_properties,
            )
            # The handle stays where it was. What others committed meanwhile is not ours to skip.
            self._delta = self._opened()
            found = self._stated(self._delta) if self._delta is not None else None
        self._added = []
        self._number = found
        if found != self._next_number:
            raise _outrun(self._location)

    def close(self) -> None:
        """See LakeTable."""
        self._forget()

    # --- the table

    def _forget(self) -> None:
        self._delta, self._number = None, None
        self._bodies, self._added = None, []

    def _opened(self) -> DeltaTable | None:
        try:
            return DeltaTable(self._location, storage_options=self._options)
        except TableNotFoundError:
            return None

    def _make(self, schema: Any) -> None:
        try:
            DeltaTable.create(
                self._location,
                schema,
                mode="error",
                configuration={_MARK: self._source},
                raise_if_key_not_exists=False,
                storage_options=self._options,
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(_APPLICATION, _NOTHING_YET, _now_ms())]
                ),
            )
        except DeltaError as error:
            if self._opened() is None:
                raise
            raise _outrun(self._location) from error
        self._delta = self._opened()
        if self._delta is None or self._stated(self._delta) != _NOTHING_YET:
            raise _outrun(self._location)
        self._number = _NOTHING_YET

    def _stated(self, delta: DeltaTable) -> int:
        """The number in the table. Raises MaterializeRefused where the table is not ours."""
        configuration = delta.metadata().configuration
        if _MARK not in configuration:
            raise foreign(self._location, None)
        if "delta.setTransactionRetentionDuration" in configuration:
            raise MaterializeRefused(
                "cursor-expires",
                f"the table at {self._location} forgets its applications' transactions",
                hint="Remove its property delta.setTransactionRetentionDuration: the cursor would"
                " expire.",
            )
        number = delta.transaction_version(_APPLICATION)
        if number is None:
            raise MaterializeRefused(
                "cursor-lost",
                f"the table at {self._location} has no transaction of {_APPLICATION} any more",
                hint="Materialize to a new path.",
            )
        return int(number)

    def _held(self) -> Any:
        assert self._delta is not None
        return plain_schema(pa.schema(self._delta.schema().to_arrow()), has_time=False)

    def _extend(self) -> None:
        """Add columns in a commit of its own: it may be made twice, and changes no row."""
        assert self._delta is not None
        try:
            self._delta.alter.add_columns(list(DeltaSchema.from_arrow(self._schema).fields))
        except CommitFailedError as error:
            raise _outrun(self._location) from error
        self._delta = self._opened()
        if self._delta is None or self._stated(self._delta) != self._number:
            raise _outrun(self._location)

    # --- its files

    def _cursor(self, number: int) -> str:
        if number == _NOTHING_YET:
            return ""
        path = _cursor_path(number)
        try:
            file = self._files().open_input_file(path)
            text = bytes(file.read(file.size())).decode("ascii", errors="replace")
        except FileNotFoundError:
            text = ""
        if number_of(text) != number:
            raise MaterializeRefused(
                "cursor-lost",
                f"{path} in the table at {self._location} is missing, or is not what was written",
                hint="It holds how far the table has come. Bring it back from a copy, or from the"
                " history of the table: the last commit's metadata has the same text.",
            )
        return text

    def _put(self, body: Body) -> None:
        path = f"{secrets.token_hex(16)}.parquet"
        self._written(path, body.content)
        statistics = {
            "numRecords": body.row_count,
            "minValues": {"position": body.first},
            "maxValues": {"position": body.last},
            "nullCount": {"position": 0},
        }
        self._added.append(
            AddAction(path, len(body.content), {}, _now_ms(), True, json.dumps(statistics))
        )

    def _written(self, path: str, content: bytes) -> None:
        # Any: its stub lacks `close`.
        file: Any = self._files().open_output_stream(path)
        try:
            file.write(content)
        finally:
            file.close()

    def _files(self) -> DeltaFileSystemHandler:
        # What deltalake.fs makes of it hands pyarrow's buffers on, which this one does not take.
        return DeltaFileSystemHandler(self._location, self._options)


def number_of(cursor: str) -> int:
    """The number that stands for a cursor: 63 bits of its hash."""
    return int.from_bytes(hashlib.sha256(cursor.encode()).digest()[:8]) >> 1


def _cursor_path(number: int) -> str:
    return f"{_FOLDER}/{number:019d}.cursor"


def _outrun(location: str) -> Outrun:
    return Outrun(f"another job committed to the table at {location} first")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _require_names(schema: Any) -> None:
    for name in _names(schema):
        if _UNFIT.search(name):
            raise MaterializeRefused(
                "column-unfit",
                f"Delta has no room for the name of column {name!r}",
                hint="Its names have no space and none of , ; { } ( ) =. Iceberg and Parquet do.",
            )


def _names(fields: Any) -> Iterator[str]:
    for field in fields:
        yield field.name
        if pa.types.is_struct(field.type):
            yield from _names(field.type)


@contextmanager
def _told(location: str) -> Iterator[None]:
    """Say what deltalake said. It has one error for most that a store may answer."""
    try:
        yield
    except CommitFailedError as error:
        raise _outrun(location) from error
    except (DeltaError, OSError) as error:
        said = " ".join(_COLOR.sub("", str(error)).split())
        raise DestinationUnavailable(
            f"the Delta table at {location}: {said}",
            code=type(error).__name__,
            hint="The same command goes on from what is committed.",
        ) from error
