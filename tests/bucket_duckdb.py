"""A DuckDB that reads the tests' bucket, and what its views hold, held against the tables."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb

from databases import Database
from engine.demo.bucket_reader import extension_path
from engine.servers.s3_server import REGION
from engine.servers.servers import EmbeddedS3


@contextmanager
def reading(s3: EmbeddedS3 | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of its own, with the bucket's credentials where there is one."""
    settings: dict[str, Any] = {"autoinstall_known_extensions": False, "memory_limit": "512MB"}
    with duckdb.connect(config=settings) as connection:
        connection.execute("SET enable_progress_bar = false; SET TimeZone = 'UTC'; SET threads = 1")
        if s3 is not None:
            connection.load_extension(extension_path())
            connection.execute(
                "CREATE SECRET (TYPE s3, URL_STYLE 'path', USE_SSL false, "
                f"REGION '{REGION}', ENDPOINT '{s3.endpoint_url.removeprefix('http://')}', "
                f"KEY_ID '{s3.access_key_id}', SECRET '{s3.secret_access_key}')"
            )
        yield connection


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def differences(
    database: Database, connection: duckdb.DuckDBPyConnection, table: str, view: str
) -> tuple[list[Any], list[Any]]:
    """Rows that only the table has, and rows that only the view has, each as its text.

    The view's values go back into a table of the same columns: they are equal where its types hold
    all of them.
    """
    with database.connect() as writing:
        columns = writing.execute(
            """SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
            WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum""",
            (table,),
        ).fetchall()
        rows = [tuple(row) for row in _texts(connection, view, len(columns))]
        writing.execute(f"CREATE TEMP TABLE seen AS SELECT * FROM {table} LIMIT 0".encode())
        places = ", ".join(_place(kind) for _, kind in columns)
        with writing.cursor() as cursor:
            cursor.executemany(f"INSERT INTO seen VALUES ({places})".encode(), rows)
        only = "SELECT t::text FROM {} AS t EXCEPT ALL SELECT t::text FROM {} AS t"
        return (
            writing.execute(only.format(table, "seen").encode()).fetchall(),
            writing.execute(only.format("seen", table).encode()).fetchall(),
        )


def _texts(
    connection: duckdb.DuckDBPyConnection, view: str, column_count: int
) -> Sequence[tuple[Any, ...]]:
    described = connection.execute(f"DESCRIBE SELECT * FROM {view}").fetchall()[:column_count]
    texts = [_text(quoted(name), kind) for name, kind, *_ in described]
    return connection.execute(f"SELECT {', '.join(texts)} FROM {view}").fetchall()


def _text(name: str, kind: str) -> str:
    if kind == "DATE":
        return f"REPLACE(CAST({name} AS VARCHAR), ' (BC)', ' BC')"
    if kind == "BLOB":
        return f"'\\x' || HEX({name})"
    return (
        f"TO_JSON({name}::VARCHAR[])::VARCHAR"
        if kind.endswith("[]")
        else f"CAST({name} AS VARCHAR)"
    )


def _place(kind: str) -> str:
    if not kind.endswith("[]"):
        return f"CAST(%s::text AS {kind})"
    # The text is needed twice: once to tell null from none.
    value = "x"
    if kind == "bytea[]":
        value = "decode(x, 'base64')"
    return (
        f"(SELECT CASE WHEN j IS NOT NULL THEN ARRAY(SELECT CAST({value} AS {kind[:-2]}) "
        "FROM jsonb_array_elements_text(j) AS x) END FROM (SELECT %s::jsonb AS j) AS given)"
    )
