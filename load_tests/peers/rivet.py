"""`rivet run`: the log of a slot (mode cdc), or whole tables, as Parquet files in a local folder.

For the log it does not speak the replication protocol: it polls `pg_logical_slot_peek_changes` over
SQL, takes the text of `test_decoding` apart, writes typed Parquet (zstd), and then moves the slot
on. So its slot is one of that plugin, and the publication is only asked for its tables.
A bounded run ends by itself at the log's end as it was at the start. It refuses an update that did
not send a long value again, unless the table's replica identity is full.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import psycopg

from load_tests.peers.installed import ENVIRONMENT, HINT, program, release
from load_tests.peers.peer import Peer, Task

_TABLES = """
SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s ORDER BY 1
"""

# Their keys too, where such a key is one integer.
_KEYED = """
SELECT schemaname || '.' || tablename, (
    SELECT attname FROM pg_index
    JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
    WHERE indrelid = format('%%I.%%I', schemaname, tablename)::regclass
      AND indisprimary AND indnkeyatts = 1
      AND atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
)
FROM pg_publication_tables WHERE pubname = %s ORDER BY 1
"""


def absence(environment: Path = ENVIRONMENT) -> str:
    """Why rivet cannot run, and what to do about it; empty where it can."""
    return "" if program(environment, "rivet") else f"rivet-cli is not installed: {HINT}"


def _command(task: Task) -> tuple[str, ...]:
    with psycopg.connect(task.dsn) as connection:
        source = _source(task, connection.info)
        tables = [row[0] for row in connection.execute(_TABLES, [task.publication])]
    return _run(task, source, [_changes(task, tables)])


def _command_tables(task: Task) -> tuple[str, ...]:
    with psycopg.connect(task.dsn) as connection:
        source = {**_source(task, connection.info), "tuning": {"profile": "fast"}}
        keyed = connection.execute(_KEYED, [task.publication]).fetchall()
    exports = [
        _table(task, str(table), str(key) if key else "", number)
        for number, (table, key) in enumerate(keyed)
    ]
    return (*_run(task, source, exports), *(("--parallel-exports",) if len(exports) > 1 else ()))


def _source(task: Task, server: psycopg.ConnectionInfo) -> dict[str, object]:
    # The address, which may hold a password, is in a file that only we can read.
    url = task.folder / "url"
    url.touch(mode=0o600)
    url.write_text(_url(server))
    return {"type": "postgres", "url_file": str(url)}


def _run(
    task: Task, source: Mapping[str, object], exports: Sequence[Mapping[str, object]]
) -> tuple[str, ...]:
    # JSON is YAML.
    file = task.folder / "rivet.yaml"
    file.write_text(json.dumps({"source": source, "exports": exports}))
    return (str(program(ENVIRONMENT, "rivet")), "run", f"--config={file}")


def _table(task: Task, table: str, key: str, number: int) -> dict[str, object]:
    """A table with an integer as its key by ranges of that, two at a time; another one whole."""
    chunked = {"mode": "chunked", "chunk_column": key, "parallel": 2}
    return {
        "name": f"table_{number}",
        "table": table,
        "format": "parquet",
        **(chunked if key else {"mode": "full"}),
        "destination": {"type": "local", "path": str(task.folder / "files" / str(number))},
    }


def _changes(task: Task, tables: Sequence[str]) -> dict[str, object]:
    return {
        "name": "changes",
        "tables": tables,
        "mode": "cdc",
        "format": "parquet",
        "cdc": {
            "slot": task.slot,
            "checkpoint": str(task.folder / "checkpoint"),
            "until_current": True,
        },
        "destination": {"type": "local", "path": str(task.folder / "files")},
    }


def _url(server: psycopg.ConnectionInfo) -> str:
    user, password, name = (
        quote(w, safe="") for w in (server.user, server.password, server.dbname)
    )
    credentials = f"{user}:{password}" if password else user
    return f"postgresql://{credentials}@{server.host}:{server.port}/{name}"


RIVET = Peer(
    name="rivet",
    title="rivet-cli, CDC to Parquet files",
    text="Polls the slot over SQL (pg_logical_slot_peek_changes, test_decoding; no replication "
    "protocol), takes the text apart and writes typed Parquet (zstd, 100,000 rows a file) into a "
    "local folder. Ends when it has caught up: there is no continuous mode for PostgreSQL.",
    row_us=14.0,
    start_seconds=0.3,
    plugin="test_decoding",
    absence=absence,
    version=lambda: f"rivet-cli {release(ENVIRONMENT, 'rivet-cli')}",
    command=_command,
)

RIVET_TABLES = Peer(
    name="rivet_tables",
    title="rivet-cli, tables to Parquet files",
    text="A table with an integer key by ranges of 100,000 keys, two at a time (mode chunked); "
    "others whole, several at a time. Typed Parquet (zstd) into a local folder; profile fast.",
    row_us=5.0,
    start_seconds=0.3,
    absence=absence,
    version=lambda: f"rivet-cli {release(ENVIRONMENT, 'rivet-cli')}",
    command=_command_tables,
)
