"""A live scenario: what is observed, and what happens meanwhile.

Strategy: an `Order` and a script. The script awaits the load, turns the proxy, and returns figures
of its own. Everything else (observing, settling, the good end, verification) is the same for all.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from load_tests.live import interruptible
from load_tests.live.findings import missed_loads, run_of
from load_tests.live.live import Live, Order, observed
from load_tests.live.place import Place, open_place
from load_tests.measurement import RunFailed
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.result import Target

_MIB = 1024 * 1024
_OVERHEAD_SECONDS = 15.0
"""For servers, preparing, settling and verifying, about."""
DEFAULT_MAJOR = 18

Script = Callable[[Live], Awaitable[dict[str, float]]]

MEMORY = Target(
    text="memory at most 256 MiB", quantity="peak_rss", bound=256 * _MIB, direction="at most"
)
STALL = Target(
    text="event loop's stall, p99, at most 20 ms",
    quantity="stall_p99_seconds",
    bound=0.02,
    direction="at most",
)


def visible_target(chunk_seconds: float, more_seconds: float = 0.5) -> Target:
    """Commit to visible, at most the age at which a chunk is cut and a moment more."""
    return Target(
        text=f"commit to visible, p99, at most chunk age ({chunk_seconds:g} s) "
        f"+ {more_seconds:g} s",
        quantity="visible_p99_seconds",
        bound=chunk_seconds + more_seconds,
        direction="at most",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveScenario:
    """One file of `load_tests/scenarios/` that has a load, not a backlog."""

    name: str
    title: str
    text: str
    targets: tuple[Target, ...]
    seconds: Callable[[Plan], float]
    """How long the script takes, about."""
    order: Callable[[Plan], Order]
    script: Callable[[Plan], Script]

    def estimate_seconds(self, plan: Plan) -> float:
        return (self.seconds(plan) + _OVERHEAD_SECONDS) * rounds(plan)

    def smaller(self, plan: Plan, seconds: float) -> Plan | None:
        """None: a shorter run would see no chunk grow old."""
        del plan, seconds
        return None

    def measure(self, plan: Plan, recorder: Recorder) -> None:
        """See `Scenario`. Live runs have no peers and no warm-up.

        A load that was not written as asked for fails the scenario, after its other rounds.
        """
        failures: list[str] = []
        for major in plan.postgres_majors or (DEFAULT_MAJOR,):
            with open_place(plan, major) as place:
                recorder.release("PostgreSQL", place.database.version)
                recorder.begin(place.database.version)
                for number in range(1, rounds(plan) + 1):
                    with steps(recorder, self.name) as show:
                        missed = interruptible.run(self._round(plan, place, number, recorder, show))
                    failures += (f"round {number}: {text}" for text in missed)
        if failures:
            raise RunFailed("\n".join(failures), hint="a lower --rate, or a machine with more CPUs")

    async def _round(
        self, plan: Plan, place: Place, number: int, recorder: Recorder, show: Callable[[str], None]
    ) -> tuple[str, ...]:
        """One run, kept and verified; in what its load was not what was asked for."""
        extra: dict[str, float] = {}

        def keep(live: Live) -> None:
            recorder.add(run_of(live, number=number, extra=extra))
            for text in missed_loads(live.loads):
                recorder.note(f"round {number} does not count: {text}")

        name = f"{self.name.replace('-', '_')}_{number}"
        async with observed(place, name, self.order(plan), show=show, keep=keep) as live:
            show(f"round {number}: {self.title}")
            extra.update(await self.script(plan)(live))
        assert live.verification is not None, "a run that is not verified has failed"
        recorder.verified(live.verification)
        return missed_loads(live.loads)


def rounds(plan: Plan) -> int:
    """A live run is a sample of thousands: one, unless more are asked for by name."""
    return plan.rounds if plan.scenarios else 1


@contextmanager
def steps(recorder: Recorder, name: str) -> Iterator[Callable[[str], None]]:
    """Something that shows one step after the other, and leaves none open."""
    with ExitStack() as stack:

        def show(text: str) -> None:
            stack.close()
            stack.enter_context(recorder.step(f"{name}: {text}"))

        yield show
