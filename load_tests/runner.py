"""All scenarios of one invocation, one after the other.

Strategy: a scenario that fails is recorded, and the next one is measured all the same. Only an
interrupt ends everything.

Invariant: every scenario that was asked for is in the result, with what came of it.
"""

from collections.abc import Sequence
from time import monotonic

from engine.model.errors import TailraceError
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.result import ScenarioResult
from load_tests.scenario import Scenario, command_of, fitted


def run_all(scenarios: Sequence[Scenario], plan: Plan, recorder: Recorder) -> str:
    """Measure what is named, or what fits the time; the hint of the last failure, if any.

    An interrupt passes through; the scenario that it met is marked, and so are those after it.
    """
    chosen = _chosen(scenarios, plan)
    ends = monotonic() + plan.minutes * 60
    hint = ""
    for number, scenario in enumerate(chosen):
        result = _begun(scenario, recorder)
        fitting = plan if plan.scenarios else fitted(scenario, plan, ends - monotonic())
        if fitting is None:
            minutes = scenario.estimate_seconds(plan) / 60
            recorder.skip(f"takes about {minutes:.0f} minutes, more than are left")
            continue
        seconds = scenario.estimate_seconds(fitting)
        after = _seconds_after(chosen[number + 1 :], plan, ends - monotonic() - seconds)
        recorder.announce(seconds=seconds, seconds_after=after)
        try:
            scenario.measure(fitting, recorder)
        except TailraceError as error:
            recorder.end_scenario("failed", str(error))
            hint = error.hint or hint
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                recorder.end_scenario("interrupted")
            else:
                recorder.end_scenario("failed", f"{type(error).__name__}: {error}")
            _skip_rest(chosen[number + 1 :], recorder)
            raise
        else:
            recorder.end_scenario("complete")
        assert result is recorder.result.scenarios[-1], "a scenario hands in nothing but its own"
    return hint


def _chosen(scenarios: Sequence[Scenario], plan: Plan) -> tuple[Scenario, ...]:
    """What is named, in the order of the names; all, where nothing is."""
    named = {scenario.name: scenario for scenario in scenarios}
    names = dict.fromkeys(plan.scenarios) or named
    return tuple(named[name] for name in names)


def _begun(scenario: Scenario, recorder: Recorder) -> ScenarioResult:
    result = ScenarioResult(
        name=scenario.name,
        title=scenario.title,
        text=scenario.text,
        command=command_of(scenario),
        targets=scenario.targets,
    )
    recorder.begin_scenario(result)
    return result


def _seconds_after(scenarios: Sequence[Scenario], plan: Plan, seconds_left: float) -> float:
    """About how long the rest takes: all that is named, or what will fit."""
    total = 0.0
    for scenario in scenarios:
        if plan.scenarios:
            total += scenario.estimate_seconds(plan)
        elif (fitting := fitted(scenario, plan, seconds_left - total)) is not None:
            total += scenario.estimate_seconds(fitting)
    return total


def _skip_rest(scenarios: Sequence[Scenario], recorder: Recorder) -> None:
    for scenario in scenarios:
        _begun(scenario, recorder)
        recorder.skip("everything ended before its turn")
