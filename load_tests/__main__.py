"""`python -m load_tests`, and `make bench`: run scenarios, show and keep what was measured.

Exit codes: 0 measured, 1 a run failed or published something wrong, 130 interrupted. What was
measured before is in the result file in every case.
"""

import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, Never

from cyclopts import App, Parameter, validators

from engine.errors import TailraceError
from load_tests import drain
from load_tests.display import Display
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.result import is_right

RESULTS = Path(__file__).parent / "results"
SCENARIOS = {"drain": drain.measure}
_MAJORS = {"15": (15,), "18": (18,), "both": (15, 18)}

EXIT_WRONG = 1
EXIT_INTERRUPTED = 130

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]

application = App(
    name="python -m load_tests",
    help="Measure the engine against its peers, on servers of our own on this machine.",
    result_action="return_value",
)


@application.default
def main(
    scenario: Literal["drain"] = "drain",
    *,
    rows: Count = 1_000_000,
    rounds: Count = 3,
    postgres: Literal["15", "18", "both"] = "both",
    output: Path | None = None,
) -> int:
    """Measure one scenario.

    Args:
        scenario: drain: a backlog of changes, read to its end by both readers in turn.
        rows: How many changes the backlog holds.
        rounds: How many pairs of runs are measured, after one that is not.
        postgres: Which servers: 15 is Debian's, 18 comes with `make setup`.
        output: The result file. Without it: a new one in load_tests/results/.
    """
    # What ends the harness unwinds it: no server and no reader stays behind.
    signal.signal(signal.SIGTERM, _interrupt)
    began = datetime.now(UTC)
    plan = Plan(scenario=scenario, rows=rows, rounds=rounds, postgres_majors=_MAJORS[postgres])
    path = output or RESULTS / f"{scenario}-{began:%Y%m%dT%H%M%SZ}.json"
    display = Display()
    recorder = Recorder(path, plan, began, display)
    try:
        SCENARIOS[scenario](plan, recorder)
    except KeyboardInterrupt:
        recorder.end(outcome="interrupted")
        return EXIT_INTERRUPTED
    except TailraceError as error:
        recorder.end(outcome="failed", error=str(error), hint=error.hint)
        return EXIT_WRONG
    except BaseException as error:
        recorder.end(outcome="failed", error=type(error).__name__)
        raise
    recorder.end(outcome="complete")
    return 0 if is_right(recorder.result) else EXIT_WRONG


def _interrupt(_number: int, _frame: FrameType | None) -> Never:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(application())
