"""Readers of whole tables: what a snapshot is held against.

They read every table of the publication once and end. None of them writes what the engine writes.
"""

from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from load_tests.peers.peer import Peer, Task

_TABLES = """
SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s ORDER BY 1, 2
"""
_PAGES = "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::int"
# The last page that a row can lie on.
_PAGE_MAX = 2**32 - 2


def tables(task: Task) -> tuple[str, ...]:
    """The publication's tables, quoted, in the order of their names."""
    with psycopg.connect(task.dsn) as connection:
        rows = connection.execute(_TABLES, [task.publication]).fetchall()
        return tuple(sql.Identifier(*names).as_string(connection) for names in rows)


def _copy(task: Task) -> tuple[str, ...]:
    return _psql(task, _script(task, "copy", [f"COPY {table} TO STDOUT" for table in tables(task)]))


def _copy_two(task: Task) -> tuple[str, ...]:
    """One table by halves of its pages; several by turns."""
    names = tables(task)
    if len(names) == 1:
        first, second = ([statement] for statement in _halves(task, names[0]))
    else:
        first, second = (
            [f"COPY {table} TO STDOUT" for table in names[number::2]] for number in (0, 1)
        )
    # The shell waits for both, so the kernel accounts both to it.
    return (
        "/bin/sh",
        "-c",
        '"$@" --file="$0.1" & one=$!; "$@" --file="$0.2"; two=$?; wait $one && exit $two',
        str(_script(task, "copy.1", first).with_suffix("")),
        *_psql(task, _script(task, "copy.2", second))[:-1],
    )


def _halves(task: Task, table: str) -> tuple[str, str]:
    with psycopg.connect(task.dsn) as connection:
        row = connection.execute(_PAGES, [table]).fetchone()
    assert row is not None, "a function has one row"
    middle = int(str(row[0])) // 2

    def half(first: int, end: int) -> str:
        within = f"ctid >= '({first},0)' AND ctid < '({end},0)'"
        return f"COPY (SELECT * FROM {table} WHERE {within}) TO STDOUT"

    return half(0, middle), half(middle, _PAGE_MAX)


def _script(task: Task, name: str, statements: Sequence[str]) -> Path:
    # Thousands of tables are more than a command line has room for.
    file = task.folder / name
    file.write_text("".join(f"{statement};\n" for statement in statements))
    return file


def _psql(task: Task, file: Path) -> tuple[str, ...]:
    return (
        str(task.programs / "psql"),
        "--no-psqlrc",
        "--quiet",
        "--set=ON_ERROR_STOP=1",
        f"--dbname={task.dsn}",
        "--output=/dev/null",
        f"--file={file}",
    )


def _dump(task: Task) -> tuple[str, ...]:
    return (
        str(task.programs / "pg_dump"),
        f"--dbname={task.dsn}",
        f"--schema={task.publication}",
        "--data-only",
        "--format=directory",
        "--jobs=2",
        # gzip, by any release: before 16 it cannot be named.
        "--compress=1",
        f"--file={task.folder / 'files'}",
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

COPY_TWO = Peer(
    name="copy_two",
    title="psql, twice at once: COPY … TO STDOUT into /dev/null",
    text="Two connections at the same time, each half of the table's pages, or every other table. "
    "It stands for what the server can deliver to two readers.",
    row_us=1.0,
    start_seconds=0.1,
    absence=lambda: "",
    version=lambda: "",
    command=_copy_two,
)

PG_DUMP = Peer(
    name="pg_dump",
    title="pg_dump -Fd -j2 -Z 1",
    text="Two connections, each a table at a time: the rows as COPY has them, by zlib's gzip into "
    "a local folder.",
    row_us=4.0,
    start_seconds=0.3,
    absence=lambda: "",
    version=lambda: "",
    command=_dump,
)
