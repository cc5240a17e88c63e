"""A plain Python consumer, as a user would write it in an afternoon, under this interpreter."""

import sys
from importlib.metadata import version
from pathlib import Path

from load_tests.peers.peer import Peer, Task

_PROGRAM = Path(__file__).parent / "programs" / "plain_consumer.py"


def _command(task: Task) -> tuple[str, ...]:
    return (
        sys.executable,
        str(_PROGRAM),
        f"--dsn={task.dsn}",
        f"--slot={task.slot}",
        f"--publication={task.publication}",
        f"--end-lsn={task.end_lsn}",
        f"--folder={task.folder}",
    )


PLAIN_PYTHON = Peer(
    name="plain_python",
    title="plain Python: psycopg, orjson, gzip 6",
    text="Receives and decodes every change and writes it as a line of JSON into gzip files "
    "(level 6) of 16 MiB a table in a local folder. At-least-once: it confirms what is in closed "
    "files. No schema changes, no exactly-once, no bound on memory, no S3.",
    row_us=11.0,
    start_seconds=0.2,
    # It needs nothing that the engine does not.
    absence=lambda: "",
    version=lambda: f"psycopg {version('psycopg')}, orjson {version('orjson')}",
    command=_command,
)
