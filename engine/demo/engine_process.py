"""The engine as the operator runs it: a process with a configuration file, signals and `/status`.

Strategy: `python -m engine run` under the servers' watchdog. So it never outlives the
demonstration. The terminal's Ctrl-C does not reach it: the demonstration decides when it drains.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import msgspec

from engine.demo.workspace import Workspace
from engine.model.errors import TailraceError
from engine.operate.status import Status
from engine.servers.server_process import ServerCommand, ServerProcess, log_tail

_READY_SECONDS_MAX = 30.0
_READY_INTERVAL = 0.1
_STATUS_SECONDS_MAX = 2.0
_END_SECONDS_MAX = 40.0
_ENDING_INTERVAL = 0.05

# What the interpreter and the libraries need of our environment. The rest is not passed on, because
# the watchdog gets the environment in its arguments, which every user of the machine can read.
_INHERITED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "VIRTUAL_ENV")
_INHERITED_PREFIXES = ("PYTHON", "COVERAGE")


class EngineFailed(TailraceError):
    """The engine ended by itself, or did not end as it should. The message has its log's end."""

    exit_code = 1


class EngineProcess:
    """One engine at a time, on the workspace's configuration."""

    def __init__(self, workspace: Workspace, http: aiohttp.ClientSession) -> None:
        self._workspace = workspace
        self._http = http
        self._process: ServerProcess | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    @property
    def process_id(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    async def start(self) -> None:
        """Start it. It is not ready yet.

        Cancellation may leave a process that nobody here knows of. Its watchdog ends it with this
        process at the latest.
        """
        self._process = await asyncio.to_thread(ServerProcess, self._command())

    async def ready(self) -> Status:
        """Wait until it streams. Raises EngineFailed if it ends, or takes half a minute.

        Cancellation leaves it running.
        """
        try:
            async with asyncio.timeout(_READY_SECONDS_MAX):
                while True:
                    self.refuse_ended()
                    status = await self.status()
                    if status is not None and status.phase == "streaming":
                        return status
                    await asyncio.sleep(_READY_INTERVAL)
        except TimeoutError as error:
            raise self._failed(f"is not ready after {_READY_SECONDS_MAX:.0f} s") from error

    async def status(self) -> Status | None:
        """What it says about itself; None while it does not answer.

        Cancellation changes nothing.
        """
        limit = aiohttp.ClientTimeout(total=_STATUS_SECONDS_MAX)
        try:
            async with self._http.get(
                f"{self._workspace.engine_url}/status", timeout=limit
            ) as answer:
                return msgspec.json.decode(await answer.read(), type=Status)
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
            return None

    def refuse_ended(self) -> None:
        """Raise EngineFailed if it has ended."""
        if self._process is not None and not self._process.is_running:
            raise self._failed(f"ended by itself, with exit code {self._process.exit_code}")

    async def kill(self) -> None:
        """End it by SIGKILL, at whatever it is doing. Cancellation does not stop that."""
        assert self._process is not None, "not started"
        await asyncio.to_thread(self._process.end, (signal.SIGKILL,))

    async def drain(self) -> float:
        """Ask it to stop by SIGTERM; the answer is how many seconds it took to publish the rest.

        Raises EngineFailed if it does not end with exit code 0. Cancellation leaves it draining.
        """
        assert self._process is not None, "not started"
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._process.send(signal.SIGTERM)
        while self._process.is_running:
            if loop.time() - began > _END_SECONDS_MAX:
                raise self._failed(f"still runs {_END_SECONDS_MAX:.0f} s after SIGTERM")
            await asyncio.sleep(_ENDING_INTERVAL)
        if self._process.exit_code:
            raise self._failed(f"ended with exit code {self._process.exit_code} after SIGTERM")
        return loop.time() - began

    def close(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None and self._process.is_running:
            self._process.end((signal.SIGKILL,))

    def _command(self) -> ServerCommand:
        file = self._workspace.configuration_file
        return ServerCommand(
            arguments=(sys.executable, "-P", "-m", "engine", "run", "-c", str(file)),
            directory=Path.cwd(),
            environment=environment_of(self._workspace),
            log=self._workspace.engine_log,
            end_signal=signal.SIGKILL,
        )

    def _failed(self, text: str) -> EngineFailed:
        log = self._workspace.engine_log
        return EngineFailed(f"the engine {text}{log_tail(log)}", hint=f"its log is {log}")


def environment_of(workspace: Workspace) -> dict[str, str]:
    """What a process of ours gets of our environment, and what leads it to the bucket."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    return inherited | workspace.environment
