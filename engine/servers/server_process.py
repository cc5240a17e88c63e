"""A server program as our child: it ends when we end, and its log says why it did not start.

Strategy: every server runs under `watchdog.py`, in a session of its own. A Ctrl-C goes from the
terminal to our whole process group. The server outlives it, because the engine still drains into
the server. But no way of ending this process leaves a server behind.

The calls are synchronous and may be made from any thread. Async callers use `asyncio.to_thread`.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from engine.model.errors import TailraceError

LOOPBACK = "127.0.0.1"
_WATCHDOG = Path(__file__).with_name("watchdog.py")
# Below the ephemeral range (32768 and up on Linux): while a server is down, no outgoing connection
# takes the port that it comes back to.
_PORTS = range(12_000, 22_000)
_PORT_ATTEMPTS_MAX = 200
_PORTS_KEPT_MAX = 128
# Descriptors of the sockets that keep the ports which this process was given, the newest last.
_kept: deque[int] = deque()
_READY_PAUSE_SECONDS = 0.02
_LOG_LINES_SHOWN = 20
_SUSPEND_SECONDS_MAX = 30.0


class ServerError(TailraceError):
    """An embedded server did not start or stop. The message ends with its log's last lines."""

    exit_code = 69


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How to run a server. `user` and `group` need root; None runs it as the current user.

    When the owner is gone without having stopped the server, the server gets `end_signal` and
    `temporary_paths` are removed.
    """

    arguments: tuple[str, ...]
    directory: Path
    environment: Mapping[str, str]
    log: Path
    end_signal: signal.Signals
    temporary_paths: tuple[Path, ...] = ()
    user: int | None = None
    group: int | None = None

    def to_json(self) -> str:
        """Write the order that `watchdog.py` reads."""
        return json.dumps(
            {
                "arguments": self.arguments,
                "directory": str(self.directory),
                "environment": dict(self.environment),
                "log": str(self.log),
                "end_signal": int(self.end_signal),
                "temporary_paths": [str(path) for path in self.temporary_paths],
                "user": self.user,
                "group": self.group,
            }
        )


class ServerProcess:
    """One run of a server, from its start to its exit."""

    def __init__(self, command: ServerCommand) -> None:
        """Start the server, which is not ready yet. Raises ServerError if it cannot be run."""
        self._command = command
        with command.log.open("ab") as log:
            self._watchdog = subprocess.Popen(  # noqa: S603 - the arguments are our own.
                [sys.executable, "-I", "-S", str(_WATCHDOG), command.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                bufsize=0,  # What a broken pipe did not take must not come up again at close.
            )
        assert self._watchdog.stdout is not None
        line = self._watchdog.stdout.readline()
        if not line:
            self._reap()
            raise ServerError(
                f"{command.arguments[0]} cannot be executed{log_tail(command.log)}",
                hint="run `make setup` again",
            )
        self.pid = int(line)

    @property
    def is_running(self) -> bool:
        return self._watchdog.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The server's, or 128 + n where signal n ended it; None while it runs."""
        return self._watchdog.poll()

    def send(self, signal_number: signal.Signals) -> None:
        """Send a signal to the server and return when it was sent. Nothing happens if it ended."""
        assert self._watchdog.stdin is not None
        assert self._watchdog.stdout is not None
        try:
            self._watchdog.stdin.write(b"%d\n" % signal_number)
            self._watchdog.stdout.readline()
        except (BrokenPipeError, ValueError):  # It ended; ValueError: and was reaped.
            return

    def suspend(self) -> None:
        """Stop the server and return when every thread stands still: not at once under load."""
        self.send(signal.SIGSTOP)
        limit = monotonic() + _SUSPEND_SECONDS_MAX
        while not _stands_still(self.pid):
            if monotonic() > limit:
                raise ServerError(f"{self._name} (process {self.pid}) does not stand still")
            sleep(_READY_PAUSE_SECONDS)

    def wait(self, seconds_max: float) -> bool:
        """Wait until the server has ended. False if it still runs after `seconds_max`."""
        try:
            self._watchdog.wait(seconds_max)
        except subprocess.TimeoutExpired:
            return False
        self._reap()
        return True

    def wait_ready(self, is_ready: Callable[[], bool], seconds_max: float) -> None:
        """Ask `is_ready` until it says so. If it never does, end the server, raise ServerError."""
        limit = monotonic() + seconds_max
        while not is_ready():
            if not self.is_running:
                self._reap()
                raise ServerError(
                    f"{self._name} ended while it started{log_tail(self._command.log)}"
                )
            if monotonic() > limit:
                self.end((signal.SIGKILL,))
                tail = log_tail(self._command.log)
                raise ServerError(f"{self._name} is not ready after {seconds_max:.0f} s{tail}")
            sleep(_READY_PAUSE_SECONDS)

    def end(self, signals: Sequence[signal.Signals], seconds_max: float = 10.0) -> None:
        """Send signal after signal, `seconds_max` apart, until the server has ended."""
        for signal_number in signals:
            self.send(signal_number)
            if self.wait(seconds_max):
                return
        raise ServerError(f"{self._name} (process {self.pid}) does not end")

    @property
    def _name(self) -> str:
        return Path(self._command.arguments[0]).name

    def _reap(self) -> None:
        """Close our ends of the pipes. The watchdog has ended, or ends for want of a server."""
        assert self._watchdog.stdin is not None
        assert self._watchdog.stdout is not None
        self._watchdog.wait()
        self._watchdog.stdin.close()
        self._watchdog.stdout.close()


def _stands_still(process_id: int) -> bool:
    """Tell whether all threads are stopped; where /proc does not say, they are taken to be."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{process_id}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # A thread ended: not still.
        return False
    # proc_pid_stat(5): the state follows the name, which is in parentheses and may hold any.
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def free_ports(count: int) -> tuple[int, ...]:
    """Find ports on loopback that nobody has, and keep them for servers that this process starts.

    No other call of this function gets them, in any process, until this process has ended or has
    asked for 128 more. Also while a server is down, its port stays its own. A program that does
    not call this function can still take one.
    """
    kept: list[socket.socket] = []
    for _ in range(_PORT_ATTEMPTS_MAX):
        if len(kept) == count:
            ports = tuple(found.getsockname()[1] for found in kept)
            _kept.extend(found.detach() for found in kept)
            while len(_kept) > _PORTS_KEPT_MAX:
                os.close(_kept.popleft())
            return ports
        found = socket.socket()
        try:
            # Bound without SO_REUSEADDR, it fails where another socket is bound. Bound and not
            # listening, with SO_REUSEADDR, it lets a server in that sets SO_REUSEADDR before its
            # bind, as all servers here do (socket(7)).
            found.bind((LOOPBACK, _PORTS[secrets.randbelow(len(_PORTS))]))
        except OSError:
            found.close()
            continue
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.append(found)
    for found in kept:
        found.close()
    raise ServerError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def log_tail(log: Path) -> str:
    """Return a log's last lines as the end of an error message; empty if it has none."""
    if not log.exists():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
    return "".join(f"\n    {line}" for line in lines)
