"""The bucket as a consumer sees it: DuckDB over `s3://`, which knows nothing of the journal.

Everything in the prefix is read, by its names alone. All calls block.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from engine.demo.shop import Tally
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

# Positions sort as text. A truncate record (t) ends everything before it, and every snapshot begins
# with one. The row that a key has now is the one of its last position behind that.
_ORDERS: Final = """
CREATE TEMP TABLE orders AS
WITH records AS (
    SELECT coalesce(after.id, before.id) AS id, after, metadata
    FROM read_ndjson(?, columns = {
        before: 'STRUCT(id BIGINT)',
        after: 'STRUCT(id BIGINT, status VARCHAR, total VARCHAR, placed_at VARCHAR)',
        metadata: 'STRUCT(op VARCHAR, position VARCHAR)'})
), begin AS (
    SELECT coalesce(max(metadata.position), '') AS position FROM records WHERE metadata.op = 't')
SELECT id, arg_max(after, metadata.position) AS now, max(metadata.position) AS position,
       count(*) AS changes, arg_max(metadata.op, metadata.position) = 'd' AS is_deleted,
       count(*) FILTER (metadata.op = 'r') AS reads
FROM records WHERE metadata.position > (SELECT position FROM begin) GROUP BY id
"""
_NO_ORDERS: Final = """
CREATE TEMP TABLE orders (
    id BIGINT, now STRUCT(id BIGINT, status VARCHAR, total VARCHAR, placed_at VARCHAR),
    position VARCHAR, changes BIGINT, is_deleted BOOLEAN, reads BIGINT)
"""
_FINGERPRINT: Final = """
SELECT count(*), coalesce(sum(now.total::DECIMAL(38, 2)), 0)::VARCHAR,
       coalesce(md5(string_agg(id || ' ' || now.status || ' ' || now.total, ',' ORDER BY id)), '')
FROM orders WHERE NOT is_deleted
"""
_BUSIEST: Final = """
SELECT id, CASE WHEN is_deleted THEN 'deleted' ELSE now.status END,
       coalesce(now.total, ''), coalesce(now.placed_at, ''), changes
FROM orders ORDER BY changes DESC, position DESC LIMIT ?
"""


_EXISTING: Final = "SELECT count(*) FROM orders WHERE id <= ? AND reads = 1"


def refuse_missing() -> None:
    """Raise ServerError unless DuckDB and its extension are installed."""
    try:
        import duckdb  # noqa: F401, PLC0415 - only the demonstration's extra has it.
    except ImportError as error:
        raise ServerError("the package duckdb is not installed", hint=_HINT) from error
    extension_path()


class BucketReader:
    """A DuckDB of its own, open inside `with`. `read_orders` comes before what asks for orders."""

    def __init__(self, s3: EmbeddedS3, bucket: str, prefix: str, spill_folder: Path) -> None:
        """`spill_folder` is made when memory does not suffice."""
        self._s3 = s3
        self._spill_folder = spill_folder
        self._root = f"s3://{bucket}/{prefix}"

    def __enter__(self) -> Self:
        import duckdb  # noqa: PLC0415 - see `refuse_missing`.

        # Nothing is fetched from the network: what is not here is an error.
        settings: dict[str, Any] = {
            "autoinstall_known_extensions": False,
            "memory_limit": "1GB",
            "temp_directory": str(self._spill_folder),
        }
        self._connection: DuckDBPyConnection = duckdb.connect(config=settings)
        self._connection.execute("SET enable_progress_bar = false")
        self._connection.load_extension(extension_path())
        self._connection.execute(self._secret())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    @property
    def orders_pattern(self) -> str:
        """The name pattern of all objects of the table `orders`."""
        return self._pattern("orders")

    def counts(self) -> Tally:
        """How many records there are of each table and op."""
        if not self._is_any("*"):
            return {}
        rows = self._connection.execute(_COUNTS, [self._pattern("*")]).fetchall()
        return {(table, op): count for table, op, count in rows}

    def read_orders(self) -> None:
        """Make the table `orders` again from its changes."""
        if self._is_any("orders"):
            self._connection.execute(_ORDERS, [self.orders_pattern])
        else:
            self._connection.execute(_NO_ORDERS)

    def orders_fingerprint(self) -> tuple[int, str, str]:
        """As `shop.orders_fingerprint`, from the bucket alone."""
        row = self._connection.execute(_FINGERPRINT).fetchone()
        assert row is not None
        return row[0], row[1], row[2]

    def existing_orders(self, count: int) -> int:
        """How many of the first `count` orders the snapshot has exactly once."""
        row = self._connection.execute(_EXISTING, [count]).fetchone()
        assert row is not None
        return int(row[0])

    def busiest_orders(self, count: int) -> Sequence[tuple[Any, ...]]:
        """The orders that changed most: id, status, total, placed_at, number of changes."""
        return self._connection.execute(_BUSIEST, [count]).fetchall()

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
