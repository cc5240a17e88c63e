"""The ceiling: a reader that reads as the engine does, and throws everything away."""

import sys
from importlib.metadata import version
from pathlib import Path

from load_tests.peers.peer import Peer, Task

_PROGRAM = Path(__file__).parent / "programs" / "ceiling_reader.py"


def _command(task: Task) -> tuple[str, ...]:
    return (
        sys.executable,
        str(_PROGRAM),
        f"--dsn={task.dsn}",
        f"--slot={task.slot}",
        f"--publication={task.publication}",
        f"--end-lsn={task.end_lsn}",
    )


CEILING = Peer(
    name="ceiling",
    title="the ceiling: the engine's own reading, and nothing after it",
    text="Reads the socket with the engine's own code, in the same gulps and with the same pauses, "
    "takes every frame in compiled code and throws it away: decodes, compresses and stores "
    "nothing. It stands for what the walsender can deliver to a reader such as the engine; its "
    "start-up is left out as the engine's is.",
    row_us=3.0,
    start_seconds=0.5,
    # It needs nothing that the engine does not.
    absence=lambda: "",
    version=lambda: f"tailrace {version('tailrace')}",
    command=_command,
    tells_phases=True,
)
