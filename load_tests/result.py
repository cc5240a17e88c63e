"""What was measured, and what follows from it: medians, spreads, and ratios of pairs.

Invariant: every figure that is shown can be computed again from the runs in the result file.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal

import msgspec

from load_tests.machine import Machine
from load_tests.measurement import Usage
from load_tests.plan import Plan

FORMAT = 1

Outcome = Literal["running", "complete", "interrupted", "failed"]
Reader = Literal["tailrace", "pg_recvlogical"]


class Phases(msgspec.Struct, frozen=True, kw_only=True):
    """Where the engine's wall time went, by its own log; the sum is the wall time."""

    start_seconds: float
    """Until the slot is held and the server begins to send."""
    opening_seconds: float
    streaming_seconds: float
    drain_seconds: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One process, measured. Round 0 is the warm-up, which counts for nothing."""

    reader: Reader
    round: int
    rows: int
    usage: Usage
    phases: Phases | None = None

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.usage.wall_seconds


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A figure over all rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        return cls(median=median(figures), least=min(figures), most=max(figures))


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """Engine divided by peer, within one round."""

    round: int
    rate: float
    started_rate: float
    """The engine's without its start-up, but until all is durable; the peer's with everything."""
    streaming_rate: float
    """The engine's without its start-up and its drain; the peer's with everything."""
    own_cpu: float
    walsender_cpu: float
    peak_rss: float


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What `tailrace verify --depth full` said about one of the engine's prefixes."""

    command: tuple[str, ...]
    is_right: bool
    rows: int
    text: str


class Group(msgspec.Struct, kw_only=True):
    """All runs against one server."""

    server: str
    frame_bytes_mean: float
    """A change on the wire, measured."""
    runs: list[Run] = []
    verification: Verification | None = None
    ratios: tuple[Ratios, ...] = ()
    summary: dict[str, Spread] = {}

    def add(self, run: Run) -> None:
        """Take one run, and compute everything anew."""
        self.runs.append(run)
        pairs = _pairs(self.runs)
        self.ratios = tuple(_ratios(engine, peer) for engine, peer in pairs)
        self.summary = {
            name: Spread.of([figure(ratios) for ratios in self.ratios])
            for name, figure in RATIOS.items()
            if self.ratios
        }


class Result(msgspec.Struct, kw_only=True):
    """The result file."""

    format: int = FORMAT
    outcome: Outcome = "running"
    error: str = ""
    began: str
    ended: str = ""
    arguments: tuple[str, ...]
    plan: Plan
    machine: Machine
    groups: list[Group] = []


RATIOS: dict[str, Callable[[Ratios], float]] = {
    "rate": lambda ratios: ratios.rate,
    "started_rate": lambda ratios: ratios.started_rate,
    "streaming_rate": lambda ratios: ratios.streaming_rate,
    "own_cpu": lambda ratios: ratios.own_cpu,
    "walsender_cpu": lambda ratios: ratios.walsender_cpu,
    "peak_rss": lambda ratios: ratios.peak_rss,
}


def is_right(result: Result) -> bool:
    """Whether what the engine published was verified, in every group."""
    verifications = [group.verification for group in result.groups]
    return bool(verifications) and all(found and found.is_right for found in verifications)


def counted(runs: Sequence[Run], reader: Reader) -> tuple[Run, ...]:
    """The runs of a reader that count."""
    return tuple(run for run in runs if run.reader == reader and run.round > 0)


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    peers = {run.round: run for run in counted(runs, "pg_recvlogical")}
    engines = counted(runs, "tailrace")
    return [(engine, peers[engine.round]) for engine in engines if engine.round in peers]


def _ratios(engine: Run, peer: Run) -> Ratios:
    assert engine.phases is not None, "every engine's log was read"
    started_rate = engine.rows / (engine.usage.wall_seconds - engine.phases.start_seconds)
    streaming_rate = engine.rows / engine.phases.streaming_seconds
    return Ratios(
        round=engine.round,
        rate=engine.rows_per_second / peer.rows_per_second,
        started_rate=started_rate / peer.rows_per_second,
        streaming_rate=streaming_rate / peer.rows_per_second,
        own_cpu=_quotient(engine.usage.own_cpu_seconds, peer.usage.own_cpu_seconds),
        walsender_cpu=_quotient(
            engine.usage.walsender_cpu_seconds, peer.usage.walsender_cpu_seconds
        ),
        peak_rss=_quotient(engine.usage.peak_rss_bytes, peer.usage.peak_rss_bytes),
    )


def _quotient(dividend: float, divisor: float) -> float:
    """0 where a run was too short for the kernel's clock, which ticks every 10 ms."""
    return dividend / divisor if divisor else 0.0
