"""An Iceberg table that holds changes. Import it late: pyiceberg is an extra (`tailrace[iceberg]`).

Strategy: one transaction appends the rows and sets a property of the table, which is the cursor.
Snapshots have it in their summary too, but they expire; the table's properties do not. The catalog
accepts the transaction only while the table's newest snapshot is the one that was read at its
start. Since every commit makes a snapshot, two jobs cannot both go on from one cursor.

pyiceberg makes a refused commit again on top of what the other one wrote, as is right for rows that
do not depend on what is there. Ours do. So its repeats are turned off, in our copy of the table's
metadata alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.table import Table, Transaction

from engine.materialize.columns import fitted, merged, plain_schema
from engine.materialize.lake_table import MaterializeRefused, Outrun, Settled, foreign
from engine.model.errors import ConfigurationError, DestinationUnavailable, TailraceError

_MARK: Final = "tailrace.table"
_CURSOR: Final = "tailrace.cursor"
_UNTIL: Final = "tailrace.until"
_REPEATS: Final = "commit.retry.num-retries"
PIECE_BYTES: Final = 128 * 1024 * 1024
"""So much is appended at once. Until then it is in memory; a larger commit has several appends."""


class IcebergLakeTable:
    """A `LakeTable` of a catalog, under `identifier` (`namespace.table`)."""

    def __init__(self, catalog: Catalog, identifier: str) -> None:
        if "." not in identifier:
            raise ConfigurationError(
                f"{identifier} is no name of a table in a catalog",
                hint="Write NAMESPACE.TABLE in place of a path.",
            )
        self._identifier = tuple(identifier.split("."))
        self._name = identifier
        self._source = ""
        self._catalog = catalog
        self._table: Table | None = None
        self._cursor = ""
        # Any: pyarrow has no types.
        self._schema: Any = None
        self._read: Any = None
        self._transaction: Transaction | None = None
        self._pieces: list[Any] = []
        self._piece_bytes = 0

    # --- the protocol

    def load(self) -> str:
        """See LakeTable."""
        self._forget()
        with _told(self._name):
            self._table = self._opened()
        if self._table is None:
            self._cursor = ""
            return ""
        self._cursor = self._stated(self._table)
        return self._cursor

    def prepare(self, schema: Any, source: str) -> None:
        """See LakeTable."""
        self._source = source
        self._read = plain_schema(schema)
        with _told(self._name):
            if self._table is None:
                self._make(self._read)
        assert self._table is not None
        named = self._table.properties[_MARK]
        if named != source:
            raise foreign(self._name, named)
        self._begin()

    def write(self, batch: Any) -> None:
        """See LakeTable."""
        # What waits is not empty when a commit comes, so that its summary can have the cursor.
        if self._piece_bytes >= PIECE_BYTES:
            self._append({})
        table = fitted(batch, self._schema)
        self._pieces.append(table)
        self._piece_bytes += table.nbytes

    def settle(self, settled: Settled) -> None:
        """See LakeTable."""
        assert self._transaction is not None
        said = {_CURSOR: settled.cursor, _UNTIL: settled.until}
        self._append(said)
        with _told(self._name):
            self._transaction.set_properties(said)
        self._cursor = settled.cursor

    def commit(self) -> None:
        """See LakeTable."""
        assert self._transaction is not None
        with _told(self._name):
            self._transaction.commit_transaction()
            self._transaction = None
            self._table = self._opened()
        if self._table is None or self._stated(self._table) != self._cursor:
            raise _outrun(self._name)
        self._begin()

    def close(self) -> None:
        """See LakeTable."""
        self._forget()
        self._catalog.close()

    # --- the table

    def _forget(self) -> None:
        self._table = self._transaction = None
        self._pieces, self._piece_bytes = [], 0

    def _opened(self) -> Table | None:
        try:
            table = self._catalog.load_table(self._identifier)
        except NoSuchTableError:
            return None
        # Our copy, read just now: the catalog does not get it.
        table.metadata.properties[_REPEATS] = "0"
        return table

    def _make(self, schema: Any) -> None:
        namespace = self._identifier[:-1]
        with suppress(NamespaceAlreadyExistsError):
            self._catalog.create_namespace(namespace)
        properties = {_MARK: self._source, _CURSOR: ""}
        try:
            self._catalog.create_table(self._identifier, schema, properties=properties)
        except TableAlreadyExistsError as error:
            raise _outrun(self._name) from error
        self._table = self._opened()
        if self._table is None or self._stated(self._table):
            raise _outrun(self._name)

    def _stated(self, table: Table) -> str:
        """The cursor in the table. Raises MaterializeRefused where the table is not ours."""
        if _MARK not in table.properties:
            raise foreign(self._name, None)
        cursor = table.properties.get(_CURSOR)
        if cursor is None:
            raise MaterializeRefused(
                "cursor-lost",
                f"{self._name} has no property {_CURSOR} any more",
                hint="It holds how far the table has come. Set it again as the newest snapshot of"
                " ours has it in its summary, or materialize to a new name.",
            )
        return cursor

    def _begin(self) -> None:
        """Begin the next transaction; columns that are new come with its rows."""
        assert self._table is not None
        held = plain_schema(self._table.schema().as_arrow())
        self._schema = merged(held, self._read, may_widen=True)
        with _told(self._name):
            self._transaction = self._table.transaction()
            if self._schema != held:
                with self._transaction.update_schema() as update:
                    update.union_by_name(self._schema)

    def _append(self, summary: dict[str, str]) -> None:
        assert self._transaction is not None
        with _told(self._name):
            rows = pa.concat_tables(self._pieces)
            self._transaction.append(rows, snapshot_properties=summary)
        self._pieces, self._piece_bytes = [], 0


def open_catalog(name: str) -> Catalog:
    """The catalog of that name in PyIceberg's own configuration. Raises ConfigurationError."""
    try:
        return load_catalog(name)
    except Exception as error:
        raise ConfigurationError(
            f"Iceberg's catalog {name}: {error}",
            hint="PyIceberg's own configuration has its catalogs: .pyiceberg.yaml, or variables"
            f" such as PYICEBERG_CATALOG__{name.upper()}__URI.",
        ) from error


def _outrun(name: str) -> Outrun:
    return Outrun(f"another job committed to {name} first")


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Say what pyiceberg, its catalog or its store said: they have no error in common."""
    try:
        yield
    except CommitFailedException as error:
        raise _outrun(name) from error
    except TailraceError:
        raise
    except Exception as error:
        raise DestinationUnavailable(
            f"Iceberg, {name}: {error}",
            code=type(error).__name__,
            hint="The same command goes on from what is committed.",
        ) from error
