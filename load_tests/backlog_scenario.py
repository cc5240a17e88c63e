"""A scenario that reads a backlog to its end, by the engine into S3 and by each peer.

Strategy: all readers read copies of the same slot over TCP, one after the other. Their order turns
with each round, so that none always follows the same other one. Peers that are much slower than the
walsender read only from the newest server, and are not warmed up.

Invariant: a fast wrong answer does not count. What the engine's last run published is verified, and
must be the whole backlog.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec
import psycopg

from load_tests.backlog import Backlog, open_log, slot_name
from load_tests.engine_reader import EngineReader, phases, plain_environment
from load_tests.measurement import RunFailed, Watched, measure
from load_tests.peers import PEERS, Peer, Task
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.result import ENGINE, Depth, Target
from load_tests.run import Phases, Run
from load_tests.servers import (
    NAME,
    Bucket,
    ServerUnusable,
    open_bucket,
    open_database,
    server_absence,
)
from load_tests.workload import Workload

NEWEST = 18

FIRST_ROWS = f"{ENGINE}, first rows"
"""The reader of runs that read the tables' first rows alone."""

FURTHER_ROW_CPU = "further_row_cpu_us"
"""The figure of workloads whose tables' first rows are read apart: what a further row costs."""

# These are only for the estimates of durations, on two quiet cores. The engine's are from
# docs/performance.md. The last is for all starts and stops of servers together.
_ENGINE_ROW_US = 4.0
_ENGINE_START_SECONDS = 0.7
_VERIFY_ROW_US = 4.0
_SERVERS_SECONDS = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogScenario:
    """Data: what is written, who reads it, what is promised."""

    name: str
    title: str
    text: str
    rows: int
    rows_least: int
    """With fewer, start-up and drain hide what the scenario shows."""
    workloads: tuple[Workload, ...]
    targets: tuple[Target, ...] = ()
    peers: tuple[str, ...] = ("pg_recvlogical",)
    majors: tuple[int, ...] = (NEWEST,)
    """The servers where the plan does not choose."""
    depth: Depth = "full"
    write_us: float = 10.0
    """About how long a row takes to write, for the estimate."""
    weight: float = 1.0
    """About how much longer a row takes to read than one of `drain`, for the estimate."""
    start_seconds: float = 0.0
    """About how much longer the engine starts and ends than on one table, for the estimate."""

    def estimate_seconds(self, plan: Plan) -> float:
        """About how long `measure` takes on two quiet cores."""
        rows = plan.rows or self.rows
        return sum(
            self._group_seconds(plan, major, rows, workload)
            for major in self._majors(plan)
            for workload in self.workloads
        )

    def smaller(self, plan: Plan, seconds: float) -> Plan | None:
        """Fewer rows, if `rows_least` fit."""
        if plan.rows is not None:
            return None
        fixed = self.estimate_seconds(_with_rows(plan, 1))
        rows = int(self.rows * (seconds - fixed) / self.estimate_seconds(plan))
        return _with_rows(plan, rows) if rows >= self.rows_least else None

    def measure(self, plan: Plan, recorder: Recorder) -> None:
        """Measure all rounds on each server, then verify. Raises RunFailed and ServerError.

        An interrupt ends all servers; what was measured is with the recorder.
        """
        try:
            failures = self._measure_groups(plan, recorder)
        except psycopg.Error as error:
            raise ServerUnusable(f"the database refused: {error}") from error
        if failures:
            raise RunFailed("\n".join(failures))

    def _measure_groups(self, plan: Plan, recorder: Recorder) -> list[str]:
        """All groups; what peers failed at is told at the end, not to lose the others' runs."""
        failures: list[str] = []
        peers = self._available(plan, recorder)
        majors = self._majors(plan)
        for major in () if plan.dsn or plan.postgres_majors else self.majors:
            if why := server_absence(major):
                recorder.absent(f"PostgreSQL {major}", why)
        for major in majors:
            readers = tuple(peer for peer in peers if self._reads(peer, plan, major))
            for workload in self.workloads:
                failures += self._measure_group(plan, recorder, major, workload, readers)
        return failures

    def _measure_group(
        self,
        plan: Plan,
        recorder: Recorder,
        major: int,
        workload: Workload,
        peers: Sequence[Peer],
    ) -> list[str]:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tailrace-load-"))
            database = stack.enter_context(open_database(plan, major))
            bucket = stack.enter_context(open_bucket(plan))
            recorder.release(database.version, "")
            recorder.begin(database.version, variant=workload.variant)
            rows = plan.rows or self.rows
            if rows < self.rows and rows < self.rows_least:
                recorder.note(f"only {rows:,} rows: start-up and drain are most of what is seen")
            elif rows < self.rows:
                recorder.note(f"{rows:,} rows instead of {self.rows:,}")
            log = stack.enter_context(open_log(database, workload, recorder))
            met = None
            if workload.meet is not None:
                first = log.write(workload.meet, 0, recorder)
                met = _Bench(first, bucket, Path(folder)).meet(plan, recorder)
            backlog = log.write(workload.write, rows, recorder)
            log.tell(recorder, is_sampled=workload.is_sampled)
            bench = _Bench(backlog, bucket, Path(folder), met)
            failures = bench.rounds(plan, recorder, peers)
            with recorder.step(f"verifying what was published ({self.depth})"):
                bench.verify(recorder, plan.rounds, self.depth)
        return failures

    def _majors(self, plan: Plan) -> tuple[int, ...]:
        if plan.dsn:
            return (NEWEST,)
        # What is asked for by name fails where it is not installed.
        return plan.postgres_majors or tuple(
            major for major in self.majors if not server_absence(major)
        )

    def _named(self, plan: Plan) -> tuple[Peer, ...]:
        return tuple(PEERS[name] for name in self.peers if not plan.peers or name in plan.peers)

    def _available(self, plan: Plan, recorder: Recorder) -> tuple[Peer, ...]:
        """The peers that can run; the result says of the others why they cannot."""
        found: list[Peer] = []
        for peer in self._named(plan):
            if why := peer.absence():
                recorder.absent(peer.name, why)
            else:
                recorder.peer(peer)
                found.append(peer)
        return tuple(found)

    def _reads(self, peer: Peer, plan: Plan, major: int) -> bool:
        return not peer.is_slow or major == max(self._majors(plan))

    def _group_seconds(self, plan: Plan, major: int, rows: int, workload: Workload) -> float:
        seconds = _SERVERS_SECONDS + rows * self.write_us / 1e6
        read_us = _ENGINE_ROW_US * self.weight
        start = _ENGINE_START_SECONDS + self.start_seconds
        engine = start * (1 if workload.meet is None else 2) + rows * read_us / 1e6
        seconds += engine * (plan.rounds + 1) + rows * _VERIFY_ROW_US * self.weight / 1e6
        for peer in self._named(plan):
            if self._reads(peer, plan, major) and not peer.absence():
                run = peer.start_seconds + rows * peer.row_us * self.weight / 1e6
                seconds += run * (plan.rounds + (not peer.is_slow))
        return seconds


def _with_rows(plan: Plan, rows: int) -> Plan:
    return msgspec.structs.replace(plan, rows=rows)


def order(readers: Sequence[str], number: int) -> tuple[str, ...]:
    """Two readers take turns to be first.

    More are reversed and shifted, so that neighbours change.
    """
    shift = number // 2 * 2 % len(readers)
    shifted = (*readers[shift:], *readers[:shift])
    return shifted[::-1] if number % 2 else shifted


@dataclass(frozen=True, slots=True)
class _Met:
    """What the engine took to read the tables' first rows alone; CPU seconds while streaming."""

    row_count: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class _Bench:
    """The servers of one group, and a folder for logs and configuration files."""

    backlog: Backlog
    bucket: Bucket
    folder: Path
    met: _Met | None = None

    @property
    def _engine(self) -> EngineReader:
        return EngineReader(self.backlog.database, self.bucket, self.folder)

    def rounds(self, plan: Plan, recorder: Recorder, peers: Sequence[Peer]) -> list[str]:
        """Run everybody; the failures of peers, each of which ends that peer's runs only.

        Raises RunFailed where the engine failed.
        """
        left, failures = {peer.name: peer for peer in peers}, []
        for number in range(plan.rounds + 1):
            for reader in order((*left, ENGINE), number):
                peer = left.get(reader)
                if peer is not None and number == 0 and peer.is_slow:
                    continue
                try:
                    with recorder.step(f"{_round(number, plan)}: {reader}"):
                        run = self._run(peer, number)
                except RunFailed as failure:
                    if peer is None:
                        raise
                    del left[reader]
                    failures.append(f"{reader}: {failure}")
                    recorder.note(f"{reader} failed in round {number}")
                else:
                    recorder.add(run)
        return failures

    def meet(self, plan: Plan, recorder: Recorder) -> _Met:
        """Read the tables' first rows as often as everything; the median of the rounds is told.

        These runs are kept too, but are no rounds of the engine.
        """
        seconds = []
        for number in range(plan.rounds + 1):
            with recorder.step(f"the tables' first rows, {_round(number, plan)}"):
                run = self._run(None, number, "first")
            recorder.add(msgspec.structs.replace(run, reader=FIRST_ROWS, is_apart=True))
            assert run.phases is not None, "an engine's run has phases"
            if number:
                seconds.append(run.phases.streaming_cpu_seconds or 0.0)
        met = _Met(self.backlog.row_count, median(seconds))
        recorder.fact("first_rows_cpu_seconds", met.cpu_seconds)
        return met

    def verify(self, recorder: Recorder, number: int, depth: Depth) -> None:
        """Judge what the engine published in one round."""
        found = self._engine.verify(
            slot_name(f"{ENGINE}_{number}"), row_count=self.backlog.row_count, depth=depth
        )
        recorder.verified(found)

    def _run(self, peer: Peer | None, number: int, prefix: str = "") -> Run:
        """One run of a peer, or of the engine."""
        reader = peer.name if peer is not None else ENGINE
        name = f"{prefix or reader}_{number}"
        log = self.folder / f"{name}.log"
        plugin = peer.plugin if peer is not None else "pgoutput"
        with self.backlog.slot(name, plugin) as slot:
            engine = self._engine
            if peer is None:
                engine.configure(slot)
                command = engine.command(slot, "--until-caught-up")
                environment = engine.environment
            else:
                command = peer.command(self._task(slot))
                environment = {**plain_environment(), **self.backlog.database.environment}
            measured = measure(
                command,
                environment=environment,
                log=log,
                watched=Watched(self.bucket, self.backlog.database, slot),
            )
        is_told = peer is None or peer.tells_phases
        found = phases(log, measured.usage) if is_told else None
        return Run(
            reader=reader,
            round=number,
            rows=self.backlog.row_count,
            command=command,
            usage=measured.usage,
            phases=found,
            series={"memory": measured.memory},
            figures=self._figures(found) if peer is None else {},
        )

    def _figures(self, found: Phases | None) -> dict[str, float]:
        """What a row costs once its table is known, where that was told apart."""
        if self.met is None or found is None or found.streaming_cpu_seconds is None:
            return {}
        seconds = found.streaming_cpu_seconds - self.met.cpu_seconds
        return {FURTHER_ROW_CPU: seconds * 1e6 / (self.backlog.row_count - self.met.row_count)}

    def _task(self, slot: str) -> Task:
        folder = self.folder / slot
        folder.mkdir()
        return Task(
            dsn=self.backlog.database.dsn,
            slot=slot,
            publication=NAME,
            end_lsn=self.backlog.end_lsn,
            row_count=self.backlog.row_count,
            folder=folder,
            programs=self.backlog.database.programs,
        )


def _round(number: int, plan: Plan) -> str:
    return f"round {number} of {plan.rounds}" if number else "warm-up"
