"""Scenario `drain`: a backlog read to its end, by the engine into S3 and by pg_recvlogical into
/dev/null.

Strategy: both read copies of the same slot over TCP, one after the other, in an order that turns
round each round so that neither always follows the other. The peer does less work (it decodes,
compresses and stores nothing), so it stands for what the walsender can deliver to a plain reader.

Invariant: a fast wrong answer does not count: what the last run published is verified record by
record, and must be the whole backlog.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from engine.demo.s3_server import REGION
from engine.demo.servers import EmbeddedS3
from load_tests.backlog import PUBLICATION, Backlog, open_backlog
from load_tests.measurement import RunFailed, Usage, Watched
from load_tests.measurement import measure as measure_process
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.result import Phases, Reader, Run, Verification

_BUCKET = "load-tests"
_CONFIGURATION = """\
[source]
dsn = {dsn}
slot = {slot}
publication = {publication}
tables = ["public.*"]
snapshot = "never"

[destination]
bucket = {bucket}
prefix = {slot}
region = {region}
endpoint_url = {endpoint_url}

[http]
listen = "127.0.0.1:0"

[log]
format = "json"
"""


def measure(plan: Plan, recorder: Recorder) -> None:
    """Measure all rounds on each server, then verify. Raises RunFailed and ServerError.

    An interrupt ends all servers; what was measured is with the recorder.
    """
    for major in plan.postgres_majors:
        with (
            tempfile.TemporaryDirectory(prefix="tailrace-load-") as folder,
            open_backlog(major, plan.rows, recorder) as backlog,
            EmbeddedS3() as s3,
        ):
            s3.create_bucket(_BUCKET)
            recorder.begin(backlog.server_version, frame_bytes_mean=backlog.frame_bytes_mean)
            bench = _Bench(backlog, s3, Path(folder))
            for number in range(plan.rounds + 1):
                for reader in _order(number):
                    with recorder.step(f"round {number} of {plan.rounds}: {reader}"):
                        run = bench.run(reader, number)
                    recorder.add(run)
            with recorder.step("verifying what was published, record by record"):
                recorder.verified(bench.verify(plan.rounds))


def _order(number: int) -> tuple[Reader, Reader]:
    return ("pg_recvlogical", "tailrace") if number % 2 else ("tailrace", "pg_recvlogical")


@dataclass(frozen=True, slots=True)
class _Bench:
    """The servers of one group, and a folder for logs and configuration files."""

    backlog: Backlog
    s3: EmbeddedS3
    folder: Path

    def run(self, reader: Reader, number: int) -> Run:
        name = f"{reader}_{number}"
        log = self.folder / f"{name}.log"
        with self.backlog.slot(name) as slot:
            command = self._engine(slot) if reader == "tailrace" else self._peer(slot)
            usage = measure_process(
                command,
                environment=self._environment(),
                log=log,
                watched=Watched(dsn=self.backlog.dsn, slot=slot, s3_process_id=self.s3.process_id),
            )
        return Run(
            reader=reader,
            round=number,
            rows=self.backlog.row_count,
            usage=usage,
            phases=_phases(log, usage) if reader == "tailrace" else None,
        )

    def verify(self, number: int) -> Verification:
        """Judge what the engine published in one round."""
        configuration = self._configuration_file(f"tailrace_{number}")
        command = _engine_command("verify", "--depth", "full", "--json", "-c", str(configuration))
        done = subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, check=False
        )
        verdict = json.loads(done.stdout) if done.stdout else {"ok": False, "rows": 0}
        return Verification(
            command=command,
            is_right=bool(verdict["ok"]) and verdict["rows"] == self.backlog.row_count,
            rows=verdict["rows"],
            text=done.stderr or done.stdout,
        )

    def _peer(self, slot: str) -> tuple[str, ...]:
        return (
            str(self.backlog.server.program("pg_recvlogical")),
            f"--dbname={self.backlog.dsn}",
            f"--slot={slot}",
            "--start",
            "--file=/dev/null",
            "--option=proto_version=1",
            f"--option=publication_names={PUBLICATION}",
            f"--endpos={self.backlog.end_lsn}",
            "--no-loop",
        )

    def _engine(self, slot: str) -> tuple[str, ...]:
        file = self._configuration_file(slot)
        file.write_text(
            _CONFIGURATION.format(
                dsn=json.dumps(self.backlog.dsn),
                slot=json.dumps(slot),
                publication=json.dumps(PUBLICATION),
                bucket=json.dumps(_BUCKET),
                region=json.dumps(REGION),
                endpoint_url=json.dumps(self.s3.endpoint_url),
            )
        )
        return _engine_command("run", "--until-caught-up", "-c", str(file))

    def _configuration_file(self, slot: str) -> Path:
        return self.folder / f"{slot}.toml"

    def _environment(self) -> Mapping[str, str]:
        """The caller's, but for what would change the engine's configuration or the peer's.

        Python's own too: an installed engine has its bytecode beside it, a work tree gets it in the
        warm-up unless the caller's environment forbids it (0.1 s a start).
        """
        own = ("TAILRACE_", "AWS_", "PG", "PYTHON")
        kept = {name: text for name, text in os.environ.items() if not name.startswith(own)}
        return kept | self.s3.environment


def _engine_command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "engine", *arguments)


class _LogLine(msgspec.Struct, frozen=True):
    """What is read of a line of the engine's log."""

    timestamp: str
    event: str
    phase: str = ""


def _phases(log: Path, usage: Usage) -> Phases:
    """Take the wall time apart by when the engine's log says that it streamed, and drained."""
    began: dict[str, float] = {}
    for line in log.read_bytes().splitlines():
        if line.startswith(b"{"):
            found = msgspec.json.decode(line, type=_LogLine)
            if found.event == "phase":
                began.setdefault(found.phase, datetime.fromisoformat(found.timestamp).timestamp())
    if not {"opening", "streaming", "draining"} <= began.keys():
        raise RunFailed(f"the engine's log does not say when it streamed, only {sorted(began)}")
    return Phases(
        start_seconds=began["opening"] - usage.started_at,
        opening_seconds=began["streaming"] - began["opening"],
        streaming_seconds=began["draining"] - began["streaming"],
        drain_seconds=usage.started_at + usage.wall_seconds - began["draining"],
    )
