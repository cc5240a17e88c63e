"""Processes that were started with closed standard streams."""

import subprocess
import sys
from pathlib import Path

import pytest

# What the engine's loop does: sockets, and their end.
LOOP = """
import sys
from engine import __main__ as entry
def command():
    import asyncio, uvloop
    async def listen():
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        server.close()
        await server.wait_closed()
        print("said"); print("complained", file=sys.stderr)
        return 0
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(listen())
entry.run_command_line = command
entry.main()
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_changes_nothing_but_what_is_seen(
    closed: str, tmp_path: Path
) -> None:
    script = tmp_path / "loop.py"
    script.write_text(LOOP)

    done = subprocess.run(
        ["/bin/sh", "-c", f'"$0" "$1" {closed}', sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parent.parent,
        env={"PYTHONPATH": str(Path(__file__).parent.parent)},
    )

    assert done.returncode == 0, done.stderr
    assert ("said" in done.stdout) is (" >&-" not in f" {closed}")
    assert ("complained" in done.stderr) is ("2>&-" not in closed)
