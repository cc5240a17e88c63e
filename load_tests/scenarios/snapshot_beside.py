"""`snapshot-beside`: what a snapshot costs the stream that goes on beside it.

Strategy: one table is full, and a steady load is written into four others. The full table's first
snapshot is over before the load begins. Under the load it is asked for again (`tailrace resync`),
so the same engine is seen without a snapshot and with one. A row belongs to the phase in which it
was committed.

This is done twice. The first snapshot has no limit. Its cost in CPU is what the machine used more
than before, a row. From that follows the limit of the second, which leaves half a core. So nothing
else may run meanwhile, unless the plan names the limit.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from load_tests.engine_process import EngineProcess, until
from load_tests.live import interruptible
from load_tests.live.findings import missed_loads, run_of
from load_tests.live.live import Live, Load, Order, observed
from load_tests.live.percentiles import percentiles
from load_tests.live.place import EXISTING, Place, open_place
from load_tests.live.scenario import DEFAULT_MAJOR, rounds, steps
from load_tests.live.shape import Shape
from load_tests.live.tables import TableSet
from load_tests.live.visibility import Sight
from load_tests.measurement import RunFailed
from load_tests.plan import Plan
from load_tests.processes import machine_cpu_seconds
from load_tests.recorder import Recorder
from load_tests.result import ENGINE, Target, Unless
from load_tests.servers import NAME

UNLIMITED: Final = "no limit"
LIMITED: Final = "half a core left"

CHUNK_SECONDS: Final = 1.0
"""Short, so that a delay is not hidden behind the age at which a chunk is cut."""

ROWS: Final = 4_000_000
ROWS_PER_SECOND: Final = 20_000
SECONDS: Final = 20.0
"""Of the phase before."""

_TRANSACTIONS_PER_SECOND: Final = 50.0
_TABLE_COUNT: Final = 4
_CORES_LEFT: Final = 0.5
_WARM_SECONDS: Final = 3.0
_DURING_SECONDS_LEAST: Final = 2.0
_LOAD_SECONDS_MAX: Final = 900.0
_SNAPSHOT_SECONDS_MAX: Final = 600.0

# For the estimate alone, on two quiet cores.
_OVERHEAD_SECONDS: Final = 30.0
_ROW_US: Final = 25.0

TARGETS: Final = (
    Target(
        text="commit to visible, p99, during a snapshot to before it, at most twice",
        quantity="during_to_before_p99_ratio",
        bound=2.0,
        direction="at most",
        variants=(LIMITED,),
        unless=Unless(
            quantity="during_missing_cores",
            above=0.1,
            text="the limit did not leave half a core: cores short of that",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time (Unix), and the CPU that the whole machine used in it."""

    began: float
    ended: float
    cpu_seconds: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def busy_cores(self) -> float:
        return self.cpu_seconds / self.seconds


@dataclass(frozen=True, slots=True)
class Phases:
    """What a script tells of its run."""

    before: Phase
    during: Phase
    row_count: int
    """That the snapshot read."""

    @property
    def rows_per_second(self) -> float:
        """The snapshot's rate."""
        return self.row_count / self.during.seconds

    @property
    def row_cpu_seconds(self) -> float:
        """What the machine used more than before, for each row of the snapshot."""
        return (self.during.busy_cores - self.before.busy_cores) / self.rows_per_second


def limit_of(found: Sequence[Phases], cpu_count: int) -> int:
    """How many rows a second leave half a core to nobody. Raises RunFailed where none do.

    `found` are runs without a limit.
    """
    spare = cpu_count - _CORES_LEFT - median(each.before.busy_cores for each in found)
    cost = median(each.row_cpu_seconds for each in found)
    if spare <= 0 or cost <= 0:
        raise RunFailed(
            f"the load alone leaves {spare + _CORES_LEFT:.1f} cores, and a row of the snapshot "
            f"takes {cost * 1e6:.1f} µs more: no limit leaves half a core",
            hint="a lower --rate, or a machine with more CPUs",
        )
    return max(int(spare / cost), 1)


def figures_of(phases: Phases, sights: Sequence[Sight], cpu_count: int) -> dict[str, float]:
    """What the run shows: commit to visible in each phase, and what the machine had left."""
    before, during = (_latencies(sights, phase) for phase in (phases.before, phases.during))
    idle = {
        name: cpu_count - phase.busy_cores
        for name, phase in (("before", phases.before), ("during", phases.during))
    }
    return {
        **{
            f"{phase}_{name}_seconds": value
            for phase, values in (("before", before), ("during", during))
            for name, value in values.items()
        },
        **{f"during_to_before_{name}_ratio": during[name] / before[name] for name in before},
        **{f"{name}_idle_cores": value for name, value in idle.items()},
        "during_missing_cores": max(0.0, _CORES_LEFT - idle["during"]),
        "snapshot_seconds": phases.during.seconds,
        "snapshot_rows_per_second": phases.rows_per_second,
    }


def _latencies(sights: Sequence[Sight], phase: Phase) -> dict[str, float]:
    """Of the rows that were committed in a phase."""
    weighted = [
        (sight.seen_at - commit / 1000, count)
        for sight in sights
        for commit, count in sight.commits.items()
        if phase.began <= commit / 1000 <= phase.ended
    ]
    if not weighted:
        raise RunFailed(f"no row was committed within {phase.seconds:.1f} s")
    p50, p99 = percentiles(weighted, (0.5, 0.99))
    return {"p50": p50, "p99": p99}


@dataclass(frozen=True, slots=True)
class SnapshotBeside:
    """See `Scenario`."""

    name: str = "snapshot-beside"
    title: str = "A snapshot beside a steady load"
    text: str = (
        f"{ROWS_PER_SECOND:,} rows/s are written into four tables, with a chunk age of "
        f"{CHUNK_SECONDS:g} s, before and while a full table of 12 columns is read again. First "
        "without a limit, which is only reported. Then with `snapshot_rows_per_second` such that "
        "half a core is left to nobody."
    )
    targets: tuple[Target, ...] = TARGETS

    def estimate_seconds(self, plan: Plan) -> float:
        """See `Scenario`."""
        rows = plan.rows or ROWS
        return 2 * rounds(plan) * (_OVERHEAD_SECONDS + SECONDS + rows * _ROW_US / 1e6)

    def smaller(self, plan: Plan, seconds: float) -> Plan | None:
        """None: with fewer rows a snapshot is over before it can be seen to disturb."""
        del plan, seconds
        return None

    def measure(self, plan: Plan, recorder: Recorder) -> None:
        """See `Scenario`. A load that was not written as asked for fails it, with a limit only."""
        failures: list[str] = []
        cpu_count = os.cpu_count() or 1
        for major in plan.postgres_majors or (DEFAULT_MAJOR,):
            with open_place(plan, major) as place:
                recorder.release("PostgreSQL", place.database.version)
                recorder.begin(place.database.version, variant=UNLIMITED)
                free, _ = self._group(plan, place, recorder, limit=0)
                limit = plan.snapshot_rate or limit_of(free, cpu_count)
                recorder.begin(place.database.version, variant=LIMITED)
                recorder.fact("snapshot_rows_per_second", limit)
                _, missed = self._group(plan, place, recorder, limit=limit)
                failures += missed
        if failures:
            raise RunFailed("\n".join(failures), hint="a lower --rate, or a machine with more CPUs")

    def _group(
        self, plan: Plan, place: Place, recorder: Recorder, *, limit: int
    ) -> tuple[list[Phases], list[str]]:
        """All rounds with one limit; the phases, and what loads missed."""
        found: list[Phases] = []
        missed: list[str] = []
        for number in range(1, rounds(plan) + 1):
            with steps(recorder, self.name) as show:
                phases, texts = interruptible.run(
                    _round(plan, place, number, limit, recorder=recorder, show=show)
                )
            found.append(phases)
            missed += (f"round {number}: {text}" for text in texts)
        return found, missed


async def _round(
    plan: Plan,
    place: Place,
    number: int,
    limit: int,
    *,
    recorder: Recorder,
    show: Callable[[str], None],
) -> tuple[Phases, tuple[str, ...]]:
    """One run, kept and verified; its phases, and in what its load was not what was asked for."""
    rate = float(plan.rate or ROWS_PER_SECOND)
    name = f"beside_{'limited' if limit else 'unlimited'}_{number}"
    found: list[Phases] = []

    def keep(live: Live) -> None:
        extra = figures_of(found[0], live.sights, os.cpu_count() or 1)
        recorder.add(run_of(live, number=number, extra={**extra, "asked_rows_per_second": rate}))
        for text in missed_loads(live.loads):
            recorder.note(f"round {number}: {text}")

    order = Order(
        tables=TableSet(count=_TABLE_COUNT, per_transaction=2),
        keys={
            "chunk__max_age": f"{CHUNK_SECONDS:g}s",
            "source__snapshot": "initial",
            "source__snapshot_rows_per_second": limit,
        },
        existing_rows=plan.rows or ROWS,
    )
    async with observed(place, name, order, show=show, keep=keep) as live:
        show(f"round {number}, {'limited' if limit else 'no limit'}: the first snapshot")
        await _first(live)
        show(f"round {number}, {'limited' if limit else 'no limit'}: the load, and a snapshot")
        async with live.loading(
            Shape.steady(rate), _LOAD_SECONDS_MAX, transactions_per_second=_TRANSACTIONS_PER_SECOND
        ) as load:
            found.append(await _measured(live, load, place))
    assert live.verification is not None, "a run that is not verified has failed"
    recorder.verified(live.verification)
    return found[0], missed_loads(live.loads)


async def _first(live: Live) -> None:
    """Wait until what was there before the engine is in the bucket."""

    async def is_finished() -> bool:
        status = await live.engine.status()
        return status is not None and status["snapshots_finished"] > _TABLE_COUNT

    await until(is_finished, "the first snapshot", seconds=_SNAPSHOT_SECONDS_MAX)
    # Each table's snapshot begins with a truncate record.
    live.snapshot_records += live.order.existing_rows + _TABLE_COUNT + 1


async def _measured(live: Live, load: Load, place: Place) -> Phases:
    """Both phases, under a load. Raises RunFailed where the second is too short to be seen."""
    await asyncio.sleep(_WARM_SECONDS)
    before = await _phase(lambda: asyncio.sleep(SECONDS))
    await _resync(live, place)
    await until(lambda: _is_reading(live), "a snapshot that is asked for", seconds=60.0)
    during = await _phase(lambda: _until_read(live))
    live.snapshot_records += live.order.existing_rows + 1
    if during.seconds < _DURING_SECONDS_LEAST:
        raise RunFailed(f"the snapshot took {during.seconds:.1f} s alone", hint="more --rows")
    if load.newest.is_last:
        raise RunFailed(f"the snapshot took longer than the load, {_LOAD_SECONDS_MAX:.0f} s")
    return Phases(before, during, live.order.existing_rows)


async def _phase(last: Callable[[], Awaitable[None]]) -> Phase:
    began, cpu_seconds = time.time(), machine_cpu_seconds()
    await last()
    return Phase(began, time.time(), machine_cpu_seconds() - cpu_seconds)


async def _resync(live: Live, place: Place) -> None:
    with EngineProcess(
        live.pipeline,
        place.folder,
        f"{live.engine.name}-resync",
        "resync",
        f"{NAME}.{EXISTING}",
    ) as process:
        code = await process.ended()
        if code != 0:
            raise RunFailed(f"{ENGINE} resync: {process.complaint}")


async def _is_reading(live: Live) -> bool:
    status = await live.engine.status()
    return bool(status and status["snapshots"])


async def _until_read(live: Live) -> None:
    async def is_read() -> bool:
        status = await live.engine.status()
        return status is not None and not status["snapshots"]

    await until(is_read, "the end of a snapshot", seconds=_SNAPSHOT_SECONDS_MAX)


SNAPSHOT_BESIDE = SnapshotBeside()
