"""One engine as a process of its own: started, asked, killed.

Strategy: everything waits by polling with a deadline. Nothing blocks the event loop, because the
fault proxies run in it. What an engine says goes to a file, so that no pipe fills up. What it used
is what the kernel accounts to it at its end, the threads of its libraries included.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from engine.servers.server_process import LOOPBACK, free_ports
from load_tests.engine_reader import plain_environment
from load_tests.processes import cpu_seconds, peak_rss_bytes, rss_bytes

_PAUSE_SECONDS = 0.02
_START_SECONDS_MAX = 60.0
_ANSWER_SECONDS_MAX = 30.0
_MAIN = "from engine.__main__ import main; main()"
_LOG_CHARACTERS_SHOWN = 4000

_T = TypeVar("_T")

Section = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A configuration, section by section, and the environment of its engines.

    `preamble` is Python that an engine runs first, for constants that no configuration has.
    """

    sections: Mapping[str, Section]
    environment: Mapping[str, str]
    table_rules: tuple[Section, ...] = ()
    preamble: str = ""

    def changed(self, **keys: object) -> Self:
        """The same with other keys, each `section__key=value`."""
        sections = {name: dict(section) for name, section in self.sections.items()}
        for path, value in keys.items():
            section, _, key = path.partition("__")
            sections.setdefault(section, {})[key] = value
        return replace(self, sections=sections)

    def without(self, section: str, key: str) -> Self:
        """The same without that key."""
        kept = {name: value for name, value in self.sections[section].items() if name != key}
        return replace(self, sections={**self.sections, section: kept})

    def ruled(self, *rules: Section) -> Self:
        """The same with `[[source.table]]` rules."""
        return replace(self, table_rules=rules)

    def to_toml(self) -> str:
        lines: list[str] = []
        for name, section in self.sections.items():
            lines += [f"[{name}]", *_lines(section)]
        for rule in self.table_rules:
            lines += ["[[source.table]]", *_lines(rule)]
        return "\n".join(lines) + "\n"


def _lines(section: Section) -> list[str]:
    # JSON's strings, numbers, booleans and arrays are TOML's too.
    return [f"{key} = {json.dumps(value)}" for key, value in section.items()]


async def until(
    look: Callable[[], Awaitable[_T | None]], what: str, *, seconds: float = _START_SECONDS_MAX
) -> _T:
    """The first answer of `look` that is something (neither None nor False).

    Raises TimeoutError that says `what` did not come. Cancellation changes nothing.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        found = await look()
        if found is not None and found is not False:
            return found
        if loop.time() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds} s")
        await asyncio.sleep(_PAUSE_SECONDS)


class EngineProcess:
    """One `tailrace` process. Leaving the `with` block kills what still runs."""

    def __init__(self, pipeline: Pipeline, folder: Path, name: str, *arguments: str) -> None:
        """Start `python -m engine ARGUMENTS -c FILE`, after the pipeline's preamble."""
        (self.http_port,) = free_ports(1)
        self.name = name
        token = pipeline.sections.get("http", {}).get("token")
        self._authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self.file = folder / f"{name}.toml"
        self.file.write_text(
            pipeline.changed(http__listen=f"{LOOPBACK}:{self.http_port}").to_toml()
        )
        self.output = folder / f"{name}.out"
        self._log = folder / f"{name}.log"
        with self.output.open("wb") as output, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", pipeline.preamble + _MAIN, *arguments, "-c", str(self.file)],
                env={
                    **plain_environment(),
                    # Credentials are the pipeline's: the machine's own metadata is not asked.
                    "AWS_EC2_METADATA_DISABLED": "true",
                    **pipeline.environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                # The terminal's Ctrl-C must not reach it: whoever started it decides how it ends.
                start_new_session=True,
            )
        self._cpu_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        if self._process.returncode is None:
            self._reap(os.WNOHANG)
        return self._process.returncode is None

    @property
    def cpu_seconds(self) -> float:
        """User and system time so far; of its whole life once it has ended."""
        if self.is_running:
            return cpu_seconds(self.process_id)
        return self._cpu_seconds

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event so far, without one that is still being written."""
        whole = self.log.rpartition("\n")[0]
        lines = (line for line in whole.splitlines() if line.startswith("{"))
        parsed: list[dict[str, Any]] = [json.loads(line) for line in lines if f'"{name}"' in line]
        return [line for line in parsed if line.get("event") == name]

    def kill(self) -> None:
        """Kill it by SIGKILL. Returns when it is gone."""
        self.send(signal.SIGKILL)
        if self.is_running:
            self._reap(0)

    def send(self, number: signal.Signals) -> None:
        if self.is_running:
            self._process.send_signal(number)

    async def stop(self, *, seconds: float = _START_SECONDS_MAX) -> None:
        """Send SIGTERM and wait for the good end that has to follow.

        Cancellation leaves it draining.
        """
        self.send(signal.SIGTERM)
        code = await self.ended(seconds=seconds)
        assert code == 0, self.complaint

    async def ended(self, *, seconds: float = _START_SECONDS_MAX) -> int:
        """The exit code, once there is one. Raises TimeoutError. Cancellation changes nothing."""

        async def look() -> bool:
            return not self.is_running

        await until(look, f"the end of {self.name}", seconds=seconds)
        assert self._process.returncode is not None
        return self._process.returncode

    async def reaches(self, *phases: str, seconds: float = _START_SECONDS_MAX) -> dict[str, Any]:
        """`/status`, once it is in one of `phases`. Fails when the process ends before.

        Cancellation changes nothing.
        """

        async def look() -> dict[str, Any] | None:
            if not self.is_running:
                raise AssertionError(f"{self.name} ended: {self.complaint}")
            status = await self.status()
            return status if status is not None and status["phase"] in phases else None

        return await until(look, f"{self.name} in {phases}", seconds=seconds)

    @property
    def complaint(self) -> str:
        """The end of what it said, and what ended it as people read it."""
        told = (f"error: {each['error']}\nhint: {each['hint']}\n" for each in self._ends)
        said = self.log[-_LOG_CHARACTERS_SHOWN:]
        return f"exit code {self._process.returncode}\n{said}{''.join(told)}"

    @property
    def _ends(self) -> list[dict[str, Any]]:
        return self.events("engine ended")

    def _reap(self, options: int) -> None:
        process_id, status, usage = os.wait4(self.process_id, options)
        if process_id:
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._cpu_seconds = usage.ru_utime + usage.ru_stime

    async def status(self) -> dict[str, Any] | None:
        """`/status`, None where nobody answers. Cancellation closes the request's connection."""
        answer = await self.get("/status")
        return None if answer is None else json.loads(answer[1])

    async def readiness(self) -> tuple[int, dict[str, Any]] | None:
        """Code and document of `/readyz`, None where nobody answers.

        Cancellation closes the request's connection.
        """
        answer = await self.get("/readyz")
        return None if answer is None else (answer[0], json.loads(answer[1]))

    async def get(self, path: str) -> tuple[int, bytes] | None:
        """Code and body of an answer, None where there is none, or half of one, within seconds.

        Cancellation closes the request's connection.
        """
        try:
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                reader, writer = await asyncio.open_connection(LOOPBACK, self.http_port)
                try:
                    head_lines = f"GET {path} HTTP/1.0\r\nHost: engine\r\n{self._authorization}"
                    writer.write(f"{head_lines}\r\n".encode())
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None
        head, _, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *([0-9]+)", head.lower())
        is_whole = bool(body) and (length is None or len(body) == int(length[1]))
        return (int(head.split(b" ")[1]), body) if is_whole else None

    def memory_bytes(self) -> int:
        """Resident memory now; 0 when the process is gone."""
        return rss_bytes(self.process_id)

    def memory_bytes_max(self) -> int:
        """The most that was resident at any time; 0 when the process is gone."""
        return peak_rss_bytes(self.process_id)
