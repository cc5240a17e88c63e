"""The processes under test: each runs the real pipeline, with its own view of the world.

Strategy: a profile says what may differ between two engines of one pipeline (record
configuration, codec, memory, chunk sizes); a signal does to the process what the operating system
would do.

Invariant: a process touches the world only through its store and its source.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import stamina.instrumentation
import structlog
from prometheus_client import CollectorRegistry

from engine.flow import ledger
from engine.flow.chunk import ChunkLimits
from engine.flow.writer import BATCH_BYTES
from engine.journal import (
    committer,
    completer,
    journal,
    object_lists,
    recurrence,
    retry,
    schedule,
    signals,
    snapshots,
)
from engine.journal.bucket_rules import BucketRules
from engine.journal.entry import Writer
from engine.journal.settings import Settings
from engine.model import bucket_rule
from engine.model.batch import Intake
from engine.model.position import LOG_BEGIN, LogPosition
from engine.model.record import RecordConfiguration, SnapshotMode, TableRule
from engine.model.schema import TableName
from engine.operate.metrics import Metrics
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.pipeline.wiring import TakeSnapshots
from engine.snapshot import coordinator
from simulation.expiry import (
    KEPT_SECONDS,
    SCHEMA_SECONDS,
    STATE_SECONDS,
    UNSEEN_SECONDS_MAX,
    rules,
)
from simulation.snapshots import Taker
from simulation.source import Change, Server, SimulatedSource
from simulation.store import Bucket, SimulatedStore
from simulation.violation import Violation
from simulation.virtual_loop import Process, VirtualLoop

if TYPE_CHECKING:
    import asyncio

# One for all: what it counts is not judged here, and making one costs more than a schedule should.
METRICS = Metrics(CollectorRegistry(), release="simulation")

_STREAMING = ("streaming", "reconnecting", "failing")

# While the source fails again and again; an engine that is caught up needs no more of it.
_HELD_UP = ("failing", "draining", "stopped")

# So many failures with nothing new read between them stand.
FAILURES_TOLD = 2

# A schedule has tens of entries, spans and chunks, not thousands.
SMALL_LIMITS = (
    (journal, "STATE_INTERVAL", 10),
    (bucket_rule, "DAY_SECONDS", KEPT_SECONDS),
    (ledger, "_SPANS_MAX", 2),
    (ledger, "_BOUNDARIES_MAX", 4),
    (ledger, "RECEIVED_MIN", 1),
    (committer, "CHUNKS_A_TURN", 2),
    # Longer than the engine's: what comes late then comes later, and meets more.
    (retry, "WAIT_SECONDS_MAX", 5.0),
    (completer, "REFUSALS_MAX", 3),
    (coordinator, "_DUE_SECONDS", 0.5),
    (coordinator, "_RETRY_SECONDS_MAX", 5.0),
    (signals, "SIGNALS_MAX", 6),
    (signals, "LIMIT_SECONDS", 2.0),
    (snapshots, "_PAUSE_SECONDS", 1.0),
    (snapshots, "_PAUSE_SECONDS_MAX", 10.0),
    # Two objects of a part each are named by an entry, three are listed apart.
    (object_lists, "LIST_BYTES_MIN", 1_500),
    (snapshots, "NAMES_BYTES_MAX", 2_000),
)


def prepare_process() -> None:
    """Small limits and no logs, for good: for processes that do nothing but simulate."""
    for module, name, limit in SMALL_LIMITS:
        assert hasattr(module, name)
        setattr(module, name, limit)
    # Steady state is silent by itself; faults are not.
    stamina.instrumentation.set_on_retry_hooks([])
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


@contextmanager
def prepared_process() -> Iterator[None]:
    """The same for a while: other tests of this process go on with the engine as it is."""
    before = [getattr(module, name) for module, name, _ in SMALL_LIMITS]
    logging = structlog.get_config()
    prepare_process()
    try:
        yield
    finally:
        for (module, name, _), limit in zip(SMALL_LIMITS, before, strict=True):
            setattr(module, name, limit)
        stamina.instrumentation.set_on_retry_hooks(None)
        structlog.configure(**logging)


@dataclass(frozen=True, slots=True)
class Profile:
    """What one engine was started with."""

    configuration: RecordConfiguration
    codec: int
    memory_bytes: int
    chunk_bytes: int
    chunk_rows: int
    age_seconds: float
    append_seconds: float
    concurrency: int
    drain_seconds: float
    clock_skew_us: int
    watch_seconds: float
    is_until_caught_up: bool
    accept_gap: LogPosition = LOG_BEGIN
    is_heeding: bool = False
    is_expiring: bool = False


def draw_profile(
    rnd: random.Random, *, is_uniform: bool, is_joined: bool, snapshot: SnapshotMode = "never"
) -> Profile:
    """A profile; in a uniform world all engines write the same records under the same keys."""
    rules: tuple[TableRule, ...] = ()
    codec = 1
    compression, layout = "gzip", "hive"
    if not is_uniform:
        if rnd.random() < 0.5:
            rules = (TableRule("public.*", exclude=("note",)),)
        codec = rnd.randint(1, 2)
        compression = rnd.choice(("gzip", "gzip", "zstd"))
        layout = rnd.choice(("hive", "hive", "hive", "plain"))
    configuration = RecordConfiguration(
        through="tailrace",
        tables=("public.*",),
        exclude=() if is_joined else ("public.d",),
        rules=rules,
        compression=compression,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        snapshot=snapshot,
    )
    return Profile(
        configuration=configuration,
        codec=codec,
        memory_bytes=rnd.choice((600, 2_000, 20_000, 10_000_000)),
        chunk_bytes=rnd.choice((1, 100, 1_000_000)),
        chunk_rows=rnd.choice((1, 3, 10, 1_000, 1_000)),
        age_seconds=rnd.choice((0.5, 2, 5)),
        append_seconds=rnd.choice((0.1, 0.3, 1)),
        concurrency=rnd.choice((1, 2, 8)),
        drain_seconds=25,
        clock_skew_us=rnd.randint(-3_000_000, 3_000_000),
        watch_seconds=rnd.choice((0.5, 3, 1_000)),
        is_until_caught_up=rnd.random() < 0.1,
    )


class Surroundings(Protocol):
    """What a process needs from its world."""

    loop: VirtualLoop
    rnd: random.Random
    bucket: Bucket
    server: Server
    counts: Counter[str]
    is_calm: bool

    def now_us(self) -> int: ...

    def trace(self, text: str) -> None: ...

    def ended(self, engine: "EngineProcess", error: BaseException | None) -> None: ...

    def refused(self, engine: str, table: TableName) -> None: ...


class EngineProcess:
    """One engine: `engine.pipeline.pipeline.Pipeline` in a process of the virtual loop."""

    def __init__(self, name: str, world: Surroundings, profile: Profile) -> None:
        self.process = Process(name)
        self.profile = profile
        self.is_draining = False
        self._world = world
        self._nonces = random.Random(world.rnd.random())
        self._pipeline: Pipeline | None = None
        self._main_task: asyncio.Task[None] | None = None
        self._stop: StopSignal | None = None
        self._intake_bytes_max = 0
        self.redo_bytes = 0
        self._failures: dict[Change, tuple[int, float]] = {}
        self._read = LOG_BEGIN
        self._appended_at = 0.0
        self._was_streaming = False
        # The life whose `open` is in the journal.
        self._owning: object = None
        self.end_at_start = world.server.place(world.server.end_of_log())

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive

    def start(self) -> None:
        """Start the process."""
        self._main_task = self._world.loop.start(self.process, self._main())

    async def _main(self) -> None:
        world, profile = self._world, self.profile
        self._stop = StopSignal()
        source = SimulatedSource(
            world.server, self.process, profile.codec, is_heeding=profile.is_heeding
        )
        writer = Writer(f"{self._nonces.getrandbits(64):x}", self.process.name, "simulation")
        self._pipeline = Pipeline(
            source=source,
            store=SimulatedStore(world.bucket, self.process),
            clock=lambda: world.now_us() + profile.clock_skew_us,
            settings=self._settings(),
            configuration=profile.configuration,
            writer=writer,
            metrics=METRICS,
            stop=self._stop,
            make_nonce=lambda: f"{self._nonces.getrandbits(64):x}",
            take_snapshots=self._taker(source, writer),
            publishing=source,
            bucket_rules=BucketRules(rules, "lake") if profile.is_expiring else None,
        )
        error: BaseException | None = None
        try:
            await self._pipeline.run()
        except Exception as raised:  # noqa: BLE001 - the world judges it
            error = raised
        if self.process.is_alive:
            world.ended(self, error)

    def _taker(self, source: SimulatedSource, writer: Writer) -> TakeSnapshots | None:
        profile = self.profile
        if profile.configuration.snapshot == "never":
            return None
        return Taker(
            self._world,
            self.process,
            writer.id,
            source,
            profile.configuration,
            profile.codec,
            METRICS,
            self._nonces.random(),
        ).take

    def _settings(self) -> Settings:
        profile = self.profile
        settings = Settings(
            bucket="lake",
            prefix="lake",
            codec_version=profile.codec,
            limits=ChunkLimits(profile.chunk_bytes, profile.chunk_rows, profile.age_seconds),
            queue_bytes_max=max(profile.memory_bytes // 4, 400),
            memory_bytes_max=profile.memory_bytes,
            concurrency=profile.concurrency,
            append_interval=profile.append_seconds,
            drain_seconds=profile.drain_seconds,
            stream_waits=False,
            start_seconds_max=1e9,
            is_until_caught_up=profile.is_until_caught_up,
            standby_interval=1,
            probe_interval=3,
            idle_interval=4,
            watch_interval=profile.watch_seconds,
            requests_interval=2,
            accept_gap=profile.accept_gap,
        )
        if profile.is_expiring:
            settings = dataclasses.replace(
                settings,
                state_seconds=STATE_SECONDS,
                unseen_seconds_max=UNSEEN_SECONDS_MAX,
                schema_seconds=SCHEMA_SECONDS,
            )
        return settings

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        if self._stop is not None and self.is_alive and not self.is_draining:
            self.is_draining = True
            self._world.loop.signal(self.process, self._stop.request, "SIGTERM")

    @property
    def phase(self) -> str:
        """What the engine says it is doing."""
        # A whole status takes ten times as long, and this is asked at each entry and each intake.
        return self._pipeline._phase if self._pipeline is not None else "starting"

    def opened(self) -> None:
        """Its `open` is in the journal."""
        self._owning = self._pipeline._life if self._pipeline is not None else None

    @property
    def is_owner(self) -> bool:
        """Whether it has opened the journal in its present life.

        After a failover another one begins. Until that has read the journal anew and opened it, its
        phase is that of the life before.
        """
        return self._pipeline is not None and self._owning is self._pipeline._life

    @property
    def is_heeding_now(self) -> bool:
        """Whether it does what signals ask: not in a redo pass, which may call itself otherwise."""
        return self._pipeline is not None and self._pipeline._streaming is not None

    def check_interval(self, now: float) -> None:
        """An entry of this process was created: one append serves all that is due meanwhile.

        A tenth of the interval is enough where rows waited for it.
        """
        assert self._pipeline is not None
        streaming = self._pipeline._streaming
        # None: the request of a life that a failover ended.
        is_streaming = self.phase in _STREAMING and streaming is not None
        gap = now - self._appended_at
        least = self.profile.append_seconds
        if streaming is not None and streaming._schedule.is_hurried:
            least *= schedule.HURRIED_SHARE
        if is_streaming and self._was_streaming and gap < least - 0.001:
            raise Violation("two appends within an interval")
        self._appended_at, self._was_streaming = now, is_streaming

    def received(self, intake: Intake) -> None:
        """It has read something. A keepalive in front of a change that fails is something new."""
        if intake.boundary is not None and intake.boundary.position > self._read:
            self._read = intake.boundary.position
            self._failures.clear()

    def check_pause(self, change: Change, now: float) -> None:
        """The source fails at that change: judge how long it was left alone since it last did."""
        count, before = self._failures.get(change, (0, now))
        least = min(recurrence.PAUSE_SECONDS_FIRST * 2.0 ** (count - FAILURES_TOLD), 60)
        if count >= FAILURES_TOLD and now - before < least:
            raise Violation("a source that fails is not left alone")
        self._failures[change] = (count + 1, now)

    def check_failing(self, change: Change) -> None:
        """Judge the phase, once the engine has heard of the failure."""
        count, _ = self._failures.get(change, (0, 0.0))
        is_told = not self.is_alive or self.process.is_frozen or self.is_draining
        if count >= FAILURES_TOLD and not is_told and self.phase not in _HELD_UP:
            raise Violation(f"a source that fails again and again is {self.phase}")

    def check_memory(self, intake: Intake, largest_planned: int) -> None:
        """Judge the pipeline's own books: the budget, and one intake over it.

        A redo pass, which reads before it publishes, is judged by what it has read.
        """
        assert self._pipeline is not None
        size = sum(len(batch.lines) + BATCH_BYTES for batch in intake.batches)
        if self.phase == "redo":
            self.redo_bytes += sum(len(batch.lines) for batch in intake.batches)
            if self.redo_bytes > self.profile.memory_bytes + largest_planned:
                raise Violation("memory over its budget in a redo pass")
        self._intake_bytes_max = max(self._intake_bytes_max, size)
        streaming = self._pipeline._streaming
        used = streaming._budget.used_bytes if streaming is not None else 0
        if used > self.profile.memory_bytes + self._intake_bytes_max:
            raise Violation("memory over its budget")
