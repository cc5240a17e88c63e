"""The bucket as a consumer sees it: DuckDB over `s3://`, with the views that Tailrace prints.

Records are counted by the objects' names alone, by a reader that knows nothing of the journal. All
calls block.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from engine.demo.shop import DIGESTS, State, Tally
from engine.servers.s3_server import REGION, EmbeddedS3
from engine.servers.server_process import ServerError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_EXTENSION: Final = "duckdb-ext-httpfs"
_HINT: Final = "run `make setup`, or install tailrace[demo]"

_COUNTS: Final = """
SELECT metadata."table", metadata.op, count(*)
FROM read_ndjson(?, columns = {metadata: 'STRUCT("table" VARCHAR, op VARCHAR)'})
GROUP BY ALL
"""

# What the views show: rows that the snapshot read, and the newest rows.
_EXISTING: Final = """
SELECT count(*) FROM (
    SELECT after['id'] FROM public.orders_changes
    WHERE op = 'r' AND CAST(after['id'] AS BIGINT) <= ? GROUP BY ALL HAVING count(*) = 1)
"""
NEWEST: Final = """\
SELECT id, status, total, placed_at::VARCHAR AS placed_at
FROM public.orders ORDER BY _position DESC LIMIT 5"""


def refuse_missing() -> None:
    """Raise ServerError unless DuckDB and its extension are installed."""
    try:
        import duckdb  # noqa: F401, PLC0415 - only the demonstration's extra has it.
    except ImportError as error:
        raise ServerError("the package duckdb is not installed", hint=_HINT) from error
    extension_path()


class BucketReader:
    """A DuckDB of its own, open inside `with`."""

    def __init__(self, s3: EmbeddedS3, bucket: str, prefix: str, spill_folder: Path) -> None:
        """`spill_folder` is made when memory does not suffice."""
        self._s3 = s3
        self._spill_folder = spill_folder
        self._root = f"s3://{bucket}/{prefix}"

    def __enter__(self) -> Self:
        import duckdb  # noqa: PLC0415 - see `refuse_missing`.

        # Nothing is fetched from the network: what is not here is an error. Memory is not limited
        # further than DuckDB does it: the view of a million orders takes 2 GB (measured).
        settings: dict[str, Any] = {
            "autoinstall_known_extensions": False,
            "preserve_insertion_order": False,
            "temp_directory": str(self._spill_folder),
        }
        self._connection: DuckDBPyConnection = duckdb.connect(config=settings)
        self._connection.execute("SET enable_progress_bar = false; SET TimeZone = 'UTC'")
        self._connection.load_extension(extension_path())
        self._connection.execute(self._secret())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import duckdb  # noqa: PLC0415 - see `refuse_missing`.

        self._connection.close()
        if isinstance(error, duckdb.Error):
            raise ServerError(
                f"DuckDB could not read the bucket: {type(error).__name__} {error}",
                hint="where memory is short, take fewer rows: --existing 100000",
            ) from error

    def counts(self) -> Tally:
        """How many records there are of each table and op."""
        if not self._is_any("*"):
            return {}
        rows = self._connection.execute(_COUNTS, [self._pattern("*")]).fetchall()
        return {(table, op): count for table, op, count in rows}

    def make_views(self, file: Path) -> None:
        """Run what `tailrace views duckdb` printed."""
        self._connection.execute(file.read_text())

    def state_in_view(self, table: str) -> State:
        """What the view of a table shows."""
        return self._state(table, "public")

    def state_in_file(self, table: str, file: Path) -> State:
        """What a file holds that `tailrace read --current` wrote. Its columns are the view's."""
        described = self._connection.execute(f"DESCRIBE public.{table}").fetchall()
        # Our own columns begin with an underscore.
        kinds = {name: kind for name, kind, *_ in described if not name.startswith("_")}
        columns = ", ".join(
            f"{name}: '{'VARCHAR' if kind == 'BLOB' else kind}'" for name, kind in kinds.items()
        )
        values = ", ".join(
            f"from_base64({name}) AS {name}" if kind == "BLOB" else name
            for name, kind in kinds.items()
        )
        path = str(file).replace("'", "''")
        self._connection.execute("CREATE SCHEMA IF NOT EXISTS answers")
        self._connection.execute(
            f"CREATE OR REPLACE VIEW answers.{table} AS SELECT {values} "  # noqa: S608 - our own names.
            f"FROM read_ndjson('{path}', columns = {{{columns}}})"
        )
        return self._state(table, "answers")

    def existing_orders(self, count: int) -> int:
        """How many of the first `count` orders the snapshot has exactly once."""
        row = self._connection.execute(_EXISTING, [count]).fetchone()
        assert row is not None
        return int(row[0])

    def newest_orders(self) -> Sequence[tuple[Any, ...]]:
        """The orders that changed last: id, status, total, placed_at."""
        return self._connection.execute(NEWEST).fetchall()

    def _state(self, table: str, schema: str) -> State:
        row = self._connection.execute(DIGESTS[table].format(schema=schema)).fetchone()
        assert row is not None
        return State(row[0], row[1])

    def _pattern(self, table: str) -> str:
        return f"{self._root}/database=*/schema=*/table={table}/version=*/**/*.ndjson.gz"

    def _is_any(self, table: str) -> bool:
        query = "SELECT count(*) FROM glob(?)"
        row = self._connection.execute(query, [self._pattern(table)]).fetchone()
        return row is not None and row[0] > 0

    def _secret(self) -> str:
        return (
            "CREATE SECRET (TYPE s3, URL_STYLE 'path', USE_SSL false, "
            f"REGION '{REGION}', ENDPOINT '{self._s3.endpoint_url.removeprefix('http://')}', "
            f"KEY_ID '{self._s3.access_key_id}', SECRET '{self._s3.secret_access_key}')"
        )


def extension_path() -> str:
    """Where the extension lies that speaks S3. Raises ServerError where it is not installed."""
    try:
        candidates = files(_EXTENSION) or ()
    except PackageNotFoundError as error:
        raise ServerError(f"the package {_EXTENSION} is not installed", hint=_HINT) from error
    for candidate in candidates:
        if candidate.name == "httpfs.duckdb_extension":
            return str(candidate.locate())
    raise ServerError(f"the package {_EXTENSION} holds no extension", hint=_HINT)
