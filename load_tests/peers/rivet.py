"""`rivet run`, mode cdc: the log of a slot as Parquet files in a local folder.

It does not speak the replication protocol: it polls `pg_logical_slot_peek_changes` over SQL, takes
the text of `test_decoding` apart, writes typed Parquet (zstd), and then moves the slot on. So its
slot is one of that plugin, and the publication is only asked for its tables.
A bounded run ends by itself at the log's end as it was at the start. It refuses an update that did
not send a long value again, unless the table's replica identity is full.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import psycopg

from load_tests.peers.installed import ENVIRONMENT, HINT, program, release
from load_tests.peers.peer import Peer, Task

_TABLES = """
SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s ORDER BY 1
"""


def absence(environment: Path = ENVIRONMENT) -> str:
    """Why rivet cannot run, and what to do about it; empty where it can."""
    return "" if program(environment, "rivet") else f"rivet-cli is not installed: {HINT}"


def _command(task: Task) -> tuple[str, ...]:
    # The address, which may hold a password, is in a file that only we can read.
    url = task.folder / "url"
    url.touch(mode=0o600)
    with psycopg.connect(task.dsn) as connection:
        url.write_text(_url(connection.info))
        tables = [row[0] for row in connection.execute(_TABLES, [task.publication])]
    # JSON is YAML.
    file = task.folder / "rivet.yaml"
    file.write_text(json.dumps(_configuration(task, url, tables)))
    return (str(program(ENVIRONMENT, "rivet")), "run", f"--config={file}")


def _configuration(task: Task, url: Path, tables: Sequence[str]) -> dict[str, object]:
    export = {
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
    return {"source": {"type": "postgres", "url_file": str(url)}, "exports": [export]}


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
