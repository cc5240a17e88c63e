"""Run one server, and end it when the process that wanted it is gone. A script, never imported.

Strategy: the owner starts this script with a pipe on its standard input and keeps the other end.
However the owner ends, `kill -9` included, the kernel closes the pipe. End of file here means: end
the server, and remove its temporary files. (PR_SET_PDEATHSIG from the owner itself would not do. It
fires when the *thread* that forked ends, and asyncio.to_thread's threads come and go.) If this
script is killed, PR_SET_PDEATHSIG ends the server: here the forking thread is the main one, which
stays.

Protocol: one argument, a JSON object as `server_process.ServerProcess` writes it. Standard output:
the server's process id on a line. Standard input: signal numbers, one a line, each sent to the
server and then repeated on standard output. The exit code is the server's, or 128 + n where signal
n ended it.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_END_SECONDS_MAX = 5.0
_PR_SET_PDEATHSIG = 1


def _bound_to_this_process(signal_number: int) -> Callable[[], None] | None:
    """Return what a forked child calls so that it gets `signal_number` when this process ends."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:  # It ended between fork and prctl.
            os._exit(1)

    return bind


def _start(order: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start the server as `user`, if one is named: only root may, and needs to."""
    account: dict[str, Any] = {}
    if order["user"] is not None:
        account = {"user": order["user"], "group": order["group"], "extra_groups": []}
    with Path(order["log"]).open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - the arguments are our own.
            order["arguments"],
            cwd=order["directory"],
            env=order["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # No thread runs yet.
            preexec_fn=_bound_to_this_process(order["end_signal"]),  # noqa: PLW1509
            **account,
        )


def _obey(server: subprocess.Popen[bytes], end_signal: int, orphaned: threading.Event) -> None:
    """Pass signals on until the owner is gone, then end the server."""
    for line in sys.stdin:
        server.send_signal(int(line))
        print(line, end="", flush=True)  # noqa: T201 - the protocol.
    orphaned.set()
    server.send_signal(end_signal)
    try:
        server.wait(_END_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        server.kill()


def _remove(paths: list[str]) -> None:
    for path in map(Path, paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def main() -> int:
    order = json.loads(sys.argv[1])
    server = _start(order)
    print(server.pid, flush=True)  # noqa: T201 - the protocol.
    orphaned = threading.Event()
    threading.Thread(
        target=_obey, args=(server, order["end_signal"], orphaned), daemon=True
    ).start()
    code = server.wait()
    if orphaned.is_set():
        _remove(order["temporary_paths"])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # sys.exit would not do: at its end the interpreter would fail on the thread that still reads
    # standard input.
    os._exit(main())
