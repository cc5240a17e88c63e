"""The engine as it is measured: its configuration, its command, its log, and what it published.

Strategy: everything is at its defaults unless a scenario says so. The engine runs as users run it,
in its own interpreter, with nothing of the caller's Python settings.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from load_tests.measurement import RunFailed
from load_tests.result import Depth, Verification
from load_tests.run import Phases, Usage
from load_tests.servers import NAME, Bucket, Database

_CONFIGURATION = """\
[source]
dsn = {dsn}
slot = {slot}
publication = {publication}
tables = [{tables}]
snapshot = {snapshot}
{workers}
[destination]
bucket = {bucket}
prefix = {prefix}
region = {region}
{endpoint}
[http]
listen = {listen}

[log]
format = "json"
"""

_NO_DATABASE = "host=127.0.0.1"
"""The file has to name one; nobody connects to it."""


@dataclass(frozen=True, slots=True)
class EngineReader:
    """The engine between a database, if there is one, and a bucket; its files are in `folder`.

    Each slot has a configuration file and a prefix of its own. `settings` are more TOML, such as a
    `[chunk]` table.
    """

    database: Database | None
    bucket: Bucket
    folder: Path
    settings: str = ""
    snapshot: str = "never"
    snapshot_workers: str = ""
    """Empty for the default."""

    def configure(self, slot: str, *, listen: str = "127.0.0.1:0") -> Path:
        """Write the configuration file of a slot."""
        path = self._file(slot)
        url, workers = self.bucket.endpoint_url, self.snapshot_workers
        text = _CONFIGURATION.format(
            dsn=json.dumps(self.database.dsn if self.database is not None else _NO_DATABASE),
            slot=json.dumps(slot),
            publication=json.dumps(NAME),
            tables=json.dumps(f"{NAME}.*"),
            snapshot=json.dumps(self.snapshot),
            workers=f"snapshot_workers = {json.dumps(workers)}\n" if workers else "",
            bucket=json.dumps(self.bucket.name),
            prefix=json.dumps(self.prefix(slot)),
            region=json.dumps(self.bucket.region),
            endpoint=f"endpoint_url = {json.dumps(url)}\n" if url else "",
            listen=json.dumps(listen),
        )
        path.write_text(f"{text}\n{self.settings}")
        return path

    def command(self, slot: str, *options: str) -> tuple[str, ...]:
        """Runs the engine on a slot that is configured."""
        return _engine("run", *options, "-c", str(self._file(slot)))

    @property
    def environment(self) -> Mapping[str, str]:
        """For the engine's process."""
        database = self.database.environment if self.database is not None else {}
        return {**plain_environment(), **database, **self.bucket.environment}

    def verify(self, slot: str, *, row_count: int, depth: Depth) -> Verification:
        """Judge what was published of a slot: all of it, and `row_count` rows."""
        command = _engine("verify", "--depth", depth, "--json", "-c", str(self._file(slot)))
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        verdict = json.loads(done.stdout) if done.stdout else {}
        rows = verdict.get("rows", 0)
        return Verification(
            command=command,
            depth=depth,
            is_right=bool(verdict.get("ok")) and rows == row_count,
            rows=rows,
            rows_due=row_count,
            objects=verdict.get("objects", 0),
            text=done.stderr or done.stdout,
        )

    def prefix(self, slot: str) -> str:
        """Where what is read through a slot is published."""
        return f"{self.bucket.prefix}{slot}"

    def _file(self, slot: str) -> Path:
        return self.folder / f"{slot}.toml"


def plain_environment() -> dict[str, str]:
    """The caller's, but for what would change the engine's configuration or a peer's.

    Python's own too: an installed engine has its bytecode beside it, a work tree gets it in the
    warm-up unless the caller's environment forbids it (0.1 s a start).
    """
    own = ("TAILRACE_", "AWS_", "PG", "PYTHON")
    return {name: text for name, text in os.environ.items() if not name.startswith(own)}


def phases(log: Path, usage: Usage) -> Phases:
    """Take the wall time apart by when the log, an engine's or as one, tells of each phase.

    CPU too, where the log tells the process's CPU at each phase. Raises RunFailed if the log does
    not say when it streamed.
    """
    lines = _phase_lines(log)
    if not {"opening", "streaming", "draining"} <= lines.keys():
        raise RunFailed(f"the log does not say when it streamed, only {sorted(lines)}")
    opening, streaming, draining = (lines[name] for name in ("opening", "streaming", "draining"))
    return Phases(
        start_seconds=opening.time - usage.started_at,
        opening_seconds=streaming.time - opening.time,
        streaming_seconds=draining.time - streaming.time,
        drain_seconds=usage.started_at + usage.wall_seconds - draining.time,
        start_cpu_seconds=opening.cpu_seconds,
        opening_cpu_seconds=_difference(streaming.cpu_seconds, opening.cpu_seconds),
        streaming_cpu_seconds=_difference(draining.cpu_seconds, streaming.cpu_seconds),
        drain_cpu_seconds=_difference(usage.own_cpu_seconds, draining.cpu_seconds),
    )


def last_cpu_seconds(log: Path) -> float:
    """The CPU of the engine's own process when it said so last, shortly before its end."""
    lines = _phase_lines(log).values()
    return max((line.cpu_seconds or 0.0 for line in lines), default=0.0)


def snapshot_seconds(log: Path) -> float:
    """From the first table's turn until the last one's rows were all stored and in the journal.

    Raises RunFailed if the log does not say so.
    """
    lines = [line for line in _lines(log) if line.event in ("snapshot started", "snapshot read")]
    if {line.event for line in lines} != {"snapshot started", "snapshot read"}:
        raise RunFailed("the log does not say when a snapshot was read")
    times = [line.time for line in lines]
    return max(times) - min(times)


def _engine(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "engine", *arguments)


class _LogLine(msgspec.Struct, frozen=True):
    """What is read of a line of the engine's log."""

    timestamp: str
    event: str
    phase: str = ""
    cpu_seconds: float | None = None
    """Of the process so far."""

    @property
    def time(self) -> float:
        return datetime.fromisoformat(self.timestamp).timestamp()


def _phase_lines(log: Path) -> dict[str, _LogLine]:
    """The first line of each phase."""
    found: dict[str, _LogLine] = {}
    for line in _lines(log):
        if line.event == "phase":
            found.setdefault(line.phase, line)
    return found


def _lines(log: Path) -> Iterator[_LogLine]:
    for line in log.read_bytes().splitlines():
        if line.startswith(b"{"):
            yield msgspec.json.decode(line, type=_LogLine)


def _difference(later: float | None, earlier: float | None) -> float | None:
    return later - earlier if later is not None and earlier is not None else None
