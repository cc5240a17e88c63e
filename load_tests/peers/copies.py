"""Readers of whole tables: what a snapshot is held against.

They read every table of the publication once and end. None of them writes what the engine writes.
"""

import psycopg
from psycopg import sql

from load_tests.peers.peer import Peer, Task

_TABLES = """
SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s ORDER BY 1, 2
"""


def _copy(task: Task) -> tuple[str, ...]:
    # Thousands of tables are more than a command line has room for.
    file = task.folder / "copy.sql"
    with psycopg.connect(task.dsn) as connection:
        tables = connection.execute(_TABLES, [task.publication]).fetchall()
        file.write_text(
            "".join(
                sql.SQL("COPY {} TO STDOUT;\n").format(sql.Identifier(*names)).as_string(connection)
                for names in tables
            )
        )
    return (
        str(task.programs / "psql"),
        "--no-psqlrc",
        "--quiet",
        "--set=ON_ERROR_STOP=1",
        f"--dbname={task.dsn}",
        f"--file={file}",
        "--output=/dev/null",
    )


def _dump(task: Task) -> tuple[str, ...]:
    return (
        str(task.programs / "pg_dump"),
        f"--dbname={task.dsn}",
        f"--schema={task.publication}",
        "--data-only",
        "--format=directory",
        "--jobs=2",
        "--compress=gzip:1",
        f"--file={task.folder / 'dump'}",
    )


COPY = Peer(
    name="copy",
    title="psql: COPY … TO STDOUT into /dev/null",
    text="One connection, one table after the other: receives every row and throws it away. It "
    "stands for what the server can deliver to one reader.",
    row_us=1.5,
    start_seconds=0.1,
    absence=lambda: "",
    version=lambda: "",
    command=_copy,
)

PG_DUMP = Peer(
    name="pg_dump",
    title="pg_dump -Fd -j2 -Z gzip:1",
    text="Two connections, each a table at a time: the rows as COPY has them, by zlib's gzip into "
    "a local folder.",
    row_us=4.0,
    start_seconds=0.3,
    absence=lambda: "",
    version=lambda: "",
    command=_dump,
)
