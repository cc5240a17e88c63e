"""What was measured, and what follows from it: medians, spreads, ratios within rounds, verdicts.

Strategy: runs are the only source. Everything else (`ratios`, `summary`, `verdicts`) is computed
anew from them and from the declared targets whenever a run is added.

Invariant: every figure that is shown can be computed again from the runs in the result file.
"""

from collections.abc import Sequence
from statistics import median
from typing import Literal

import msgspec

from load_tests.machine import Machine
from load_tests.plan import Plan
from load_tests.quantities import COMPARED, quantity
from load_tests.run import Run

FORMAT = 4
ENGINE = "tailrace"

Outcome = Literal["running", "complete", "interrupted", "failed"]
Depth = Literal["light", "full"]
"""Of `tailrace verify`: only full reads records."""
VerdictOutcome = Literal["met", "missed", "not comparable", "not measured"]
ScenarioOutcome = Literal["running", "complete", "interrupted", "failed", "not run"]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A figure over all rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        return cls(median=median(figures), least=min(figures), most=max(figures))


class Unless(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be so that a target which is missed says nothing: a quantity of the same runs,
    above a limit."""

    quantity: str
    above: float
    text: str
    """Why nothing follows then."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a scenario promises: a quantity of the engine's runs, held against `bound`.

    With `peer` it is the ratio to that peer's run of the same round; with `baseline`, the ratio to
    the median of the group of that variant on the same server; with neither, the quantity itself,
    in the unit in which it is kept (bytes, not MiB).
    """

    text: str
    quantity: str
    bound: float
    direction: Literal["at least", "at most"]
    peer: str = ""
    baseline: str = ""
    variants: tuple[str, ...] = ()
    """The groups that it is for; none named means all."""
    reader: str = ENGINE
    """Whose runs are held against it: the engine's, or those of the engine otherwise configured."""
    unless: Unless | None = None
    """When a miss is no miss, because the runs cannot be compared."""

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.direction == "at least" else value <= self.bound


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A target and the spread that was measured; the median decides."""

    target: Target
    spread: Spread | None
    outcome: VerdictOutcome
    why: str = ""
    """Why the runs cannot be compared."""


class Ratios(msgspec.Struct, frozen=True, kw_only=True):
    """Engine divided by another reader, in one round; what either did not measure is left out."""

    peer: str
    round: int
    values: dict[str, float]


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What `tailrace verify` said about one of the engine's prefixes."""

    command: tuple[str, ...]
    depth: Depth
    is_right: bool
    """Nothing is wrong in the bucket, and it holds as many rows as it has to."""
    rows: int
    rows_due: int
    objects: int
    text: str


class Group(msgspec.Struct, kw_only=True):
    """All runs against one server, of one variant of the scenario where it has several."""

    server: str
    variant: str = ""
    facts: dict[str, float] = {}
    """What the runs have in common, named with its unit last: `frame_mean_bytes`."""
    notes: list[str] = []
    """What the reader of the result has to know: "smaller than asked for: …"."""
    runs: list[Run] = []
    verification: Verification | None = None
    ratios: tuple[Ratios, ...] = ()
    summary: dict[str, dict[str, Spread]] = {}
    """By peer, then by quantity: the spread of `ratios`."""
    verdicts: tuple[Verdict, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.server}: {self.variant}" if self.variant else self.server

    @property
    def readers(self) -> tuple[str, ...]:
        """Peers in the order in which they came, the engine last."""
        names = dict.fromkeys(run.reader for run in self.runs)
        return tuple(sorted(names, key=lambda name: name == ENGINE))

    def counted(self, reader: str) -> tuple[Run, ...]:
        """The runs of a reader that count."""
        return tuple(run for run in self.runs if run.reader == reader and run.is_counted)

    def values(self, reader: str, name: str) -> tuple[float, ...]:
        """A quantity of each counted run that has it."""
        found = (quantity(name).of(run) for run in self.counted(reader))
        return tuple(value for value in found if value is not None)


class ScenarioResult(msgspec.Struct, kw_only=True):
    """One scenario: what it shows and why, and what was measured."""

    name: str
    title: str
    text: str
    command: str
    """Which measures it alone."""
    targets: tuple[Target, ...] = ()
    outcome: ScenarioOutcome = "running"
    why: str = ""
    """Why it was not run, or failed."""
    absent: dict[str, str] = {}
    """Peers and servers that could not be had: why, and what to do about it."""
    began: str = ""
    ended: str = ""
    groups: list[Group] = []

    def compute(self) -> None:
        """Compute anew what follows from the runs."""
        for group in self.groups:
            group.ratios = _ratios(group)
            group.summary = _summary(group.ratios)
            group.verdicts = tuple(
                self._verdict(target, group)
                for target in self.targets
                if self._is_for(target, group)
            )

    def _is_for(self, target: Target, group: Group) -> bool:
        """Not where the peer reads other groups only; a peer that reads none is missed in all."""
        if target.variants and group.variant not in target.variants:
            return False
        reading = [other for other in self.groups if target.peer in other.readers]
        return not target.peer or not reading or group in reading

    def _verdict(self, target: Target, group: Group) -> Verdict:
        values = self._held(target, group)
        if not values:
            return Verdict(target=target, spread=None, outcome="not measured")
        spread = Spread.of(values)
        if target.is_met(spread.median):
            return Verdict(target=target, spread=spread, outcome="met")
        why = _incomparable(target, group)
        outcome: VerdictOutcome = "not comparable" if why else "missed"
        return Verdict(target=target, spread=spread, outcome=outcome, why=why)

    def _held(self, target: Target, group: Group) -> tuple[float, ...]:
        """What is held against the bound, one a round."""
        if target.peer:
            every = _ratios(group, target.reader)
            found = (ratios for ratios in every if ratios.peer == target.peer)
            return tuple(
                ratios.values[target.quantity]
                for ratios in found
                if target.quantity in ratios.values
            )
        values = group.values(target.reader, target.quantity)
        if not target.baseline:
            return values
        baseline = self._baseline(target, group)
        return tuple(value / baseline for value in values) if baseline else ()

    def _baseline(self, target: Target, group: Group) -> float:
        for other in self.groups:
            if (other.server, other.variant) == (group.server, target.baseline):
                values = other.values(target.reader, target.quantity)
                return median(values) if values else 0.0
        return 0.0


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
    servers: dict[str, str] = {}
    """The releases of the servers and peers that took part."""
    peers: dict[str, str] = {}
    """What each peer is, and what it does with a row."""
    scenarios: list[ScenarioResult] = []


def is_right(result: Result) -> bool:
    """Whether something ran, nothing failed, and all that the engine published was verified."""
    if is_empty(result):
        return False
    ran = [scenario for scenario in result.scenarios if scenario.outcome != "not run"]
    groups = [group for scenario in ran for group in scenario.groups]
    return all(scenario.outcome == "complete" for scenario in ran) and all(
        group.verification is not None and group.verification.is_right for group in groups
    )


def is_empty(result: Result) -> bool:
    """Whether nothing was measured at all."""
    return not any(group.runs for scenario in result.scenarios for group in scenario.groups)


def _incomparable(target: Target, group: Group) -> str:
    """Why a target that is missed says nothing; empty where it does."""
    unless = target.unless
    values = group.values(target.reader, unless.quantity) if unless is not None else ()
    if unless is None or not values or median(values) <= unless.above:
        return ""
    return f"{unless.text} ({quantity(unless.quantity).shown(median(values))})"


def _ratios(group: Group, reader: str = ENGINE) -> tuple[Ratios, ...]:
    engines = {run.round: run for run in group.counted(reader)}
    return tuple(
        Ratios(peer=peer, round=run.round, values=_quotients(engines[run.round], run))
        for peer in group.readers
        if peer != reader
        for run in group.counted(peer)
        if run.round in engines
    )


def _quotients(engine: Run, peer: Run) -> dict[str, float]:
    names = (*COMPARED, *sorted(engine.figures.keys() & peer.figures.keys()))
    pairs = {name: (quantity(name).of(engine), quantity(name).of(peer)) for name in names}
    return {
        name: dividend / divisor
        for name, (dividend, divisor) in pairs.items()
        if dividend is not None and divisor
    }


def _summary(ratios: Sequence[Ratios]) -> dict[str, dict[str, Spread]]:
    values: dict[str, dict[str, list[float]]] = {}
    for each in ratios:
        for name, value in each.values.items():
            values.setdefault(each.peer, {}).setdefault(name, []).append(value)
    return {
        peer: {name: Spread.of(found) for name, found in named.items()}
        for peer, named in values.items()
    }
