"""ADBC's PostgreSQL driver (Apache Arrow): each table as a Parquet file in a local folder.

Strategy: the driver reads `COPY … (FORMAT binary)` into Arrow's columns, batch by batch, and
pyarrow writes each batch. Nothing of a table stays in memory. The program is ours, a page, as the
driver's manual has it; it runs in the peers' environment.
"""

from pathlib import Path

from load_tests.peers.copies import tables
from load_tests.peers.installed import ENVIRONMENT, HINT, program, release
from load_tests.peers.peer import Peer, Task

_PROGRAM = Path(__file__).parent / "programs" / "adbc_parquet.py"
_PACKAGES = ("adbc-driver-postgresql", "pyarrow")


def absence(environment: Path = ENVIRONMENT) -> str:
    """Why ADBC cannot run, and what to do about it; empty where it can."""
    missing = [package for package in _PACKAGES if not release(environment, package)]
    return f"{' and '.join(missing)} not installed: {HINT}" if missing else ""


def _command(task: Task) -> tuple[str, ...]:
    # Thousands of tables are more than a command line has room for.
    names = task.folder / "tables"
    names.write_text("\n".join(tables(task)))
    return (
        str(program(ENVIRONMENT, "python")),
        str(_PROGRAM),
        f"--dsn={task.dsn}",
        f"--tables={names}",
        f"--row-count={task.row_count}",
        f"--folder={task.folder / 'files'}",
    )


ADBC = Peer(
    name="adbc",
    title="ADBC to Parquet (adbc-driver-postgresql, pyarrow)",
    text="One connection, one table after the other: binary COPY into Arrow batches, written as "
    "Parquet (zstd) into a local folder. A numeric is text, as the driver has it.",
    row_us=5.0,
    start_seconds=0.6,
    absence=absence,
    version=lambda: ", ".join(f"{name} {release(ENVIRONMENT, name)}" for name in _PACKAGES),
    command=_command,
)
