"""What a scenario is, and which of them fit the time.

Strategy: scenarios come in order of value. Each estimates its own duration from its size. Before
each one, the time that is left decides whether it is measured whole, smaller (where that still
means something), or not at all. A scenario that is named is measured, whatever it takes.
"""

from typing import Protocol

from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.result import Target


class Scenario(Protocol):
    """One file of `load_tests/scenarios/`."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str:
        """What it shows and why, for the report."""
        ...

    @property
    def targets(self) -> tuple[Target, ...]: ...

    def estimate_seconds(self, plan: Plan) -> float:
        """About how long `measure` takes on two quiet cores."""
        ...

    def smaller(self, plan: Plan, seconds: float) -> Plan | None:
        """A plan that takes at most `seconds`; None where it would mean nothing any more."""
        ...

    def measure(self, plan: Plan, recorder: Recorder) -> None:
        """Start servers, measure all rounds, verify; hand everything to the recorder as it ends.

        Raises RunFailed and ServerError. However it ends, no process of it is left.
        """
        ...


def fitted(scenario: Scenario, plan: Plan, seconds: float) -> Plan | None:
    """The plan for a scenario that has `seconds`: as asked for, smaller, or None."""
    if scenario.estimate_seconds(plan) <= seconds:
        return plan
    return scenario.smaller(plan, seconds)


def command_of(scenario: Scenario) -> str:
    """Measures one scenario alone, whatever it takes."""
    return f"python -m load_tests {scenario.name}"
