"""DuckDB, which folds the objects of scenario `fold` with SQL, under this interpreter."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from load_tests.peers.peer import Peer, Task

_PROGRAM = Path(__file__).parent / "programs" / "duckdb_fold.py"


def _absence() -> str:
    try:
        version("duckdb")
    except PackageNotFoundError:
        return "there is no duckdb: make setup"
    return ""


def _command(task: Task) -> tuple[str, ...]:
    return (sys.executable, str(_PROGRAM), str(task.folder))


DUCKDB = Peer(
    name="duckdb",
    title="DuckDB: read_json, arg_max by key",
    text="Reads the same objects with a schema that is given, keeps each key's newest record by "
    "`arg_max`, and leaves out the deleted ones. Rows stay the text of their records. It knows no "
    "changed keys, no columns that were left out and no truncate records, and there are none.",
    row_us=4.0,
    start_seconds=0.3,
    absence=_absence,
    version=lambda: f"DuckDB {version('duckdb')}",
    command=_command,
)
