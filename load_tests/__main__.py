"""`python -m load_tests`, and `make bench`: run scenarios, show and keep what was measured.

Exit codes: 0 measured, 1 a run failed or published something wrong, or nothing was measured at all,
2 usage, 130 interrupted. What was measured before is in the result file and the report in every
case.
"""

import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, Never

import psycopg
from cyclopts import App, Parameter, validators
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.markup import escape

from load_tests.display import Display
from load_tests.peers import PEERS, TABLE_PEERS
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.result import is_empty, is_right
from load_tests.runner import run_all
from load_tests.scenarios import SCENARIOS
from load_tests.servers import without_password

RESULTS = Path(__file__).parent / "results"
_MAJORS = {"": (), "15": (15,), "18": (18,), "both": (15, 18)}

EXIT_WRONG = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Rate = Annotated[float, Parameter(validator=validators.Number(gt=0))]
Hours = Annotated[float, Parameter(validator=validators.Number(gt=0))]
Minutes = Annotated[float, Parameter(validator=validators.Number(gt=0))]


def _one_of(*names: str) -> Parameter:
    """Refuses any other name, and says which there are."""

    def check(_: object, found: object) -> None:
        for name in found if isinstance(found, tuple) else (found,):
            if name not in names:
                raise ValueError(f"{name} is none of {', '.join(names)}")

    return Parameter(validator=check)


def _check_dsn(_: object, dsn: str) -> None:
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise ValueError(str(error).strip()) from error


Dsn = Annotated[str, Parameter(validator=_check_dsn)]
ScenarioName = Annotated[str, _one_of(*(scenario.name for scenario in SCENARIOS))]
PeerNames = Annotated[
    tuple[str, ...], Parameter(consume_multiple=True, negative=""), _one_of(*PEERS, *TABLE_PEERS)
]


application = App(
    name="python -m load_tests",
    help="Measure the engine against its peers, on servers of our own, or on yours.",
    result_action="return_value",
    version_flags=(),
)


@application.default
def main(
    *scenario: ScenarioName,
    rows: Count | None = None,
    rounds: Count = 3,
    postgres: Literal["15", "18", "both"] | None = None,
    peers: PeerNames = (),
    minutes: Minutes = 20.0,
    output: Path | None = None,
    dsn: Dsn = "",
    s3_endpoint_url: str = "",
    bucket: str = "",
    region: str = "us-east-1",
    rate: Rate | None = None,
    snapshot_rate: Count | None = None,
    hours: Hours = 0.05,
) -> int:
    """Measure scenarios, and write a result (JSON) and a report (HTML).

    Args:
        scenario: Names, as `list` shows them. Without any: all that fit, in order of value.
        rows: How many changes a backlog holds, in place of each scenario's own size.
        rounds: How often everything is measured, after a warm-up that does not count.
        postgres: Which servers, in place of each scenario's choice: 15 is Debian's.
        peers: Which peers, in place of all that the scenario names.
        minutes: How long it may take where no scenario is named.
        output: The result file, or a folder for it. Without it: in load_tests/results/.
        dsn: An external PostgreSQL server with wal_level = logical. Only the schema, publication
            and slots named tailrace_load_test are made there, and dropped.
        s3_endpoint_url: Of an external S3 server; without it, of AWS.
        bucket: An external bucket; credentials come from the environment. What is published there,
            below tailrace_load_test/, stays.
        region: Of the external bucket.
        rate: Rows a second of a live scenario's load, in place of its own.
        snapshot_rate: Of scenario snapshot-beside: the limit, in place of one that leaves half a
            core.
        hours: How long scenario soak takes.
    """
    if s3_endpoint_url and not bucket:
        print("--s3-endpoint-url needs --bucket, which has to exist", file=sys.stderr)
        return EXIT_USAGE
    # What ends the harness unwinds it: no server and no reader stays behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    plan = Plan(
        scenarios=tuple(scenario),
        rows=rows,
        rounds=rounds,
        postgres_majors=_MAJORS[postgres or ""],
        peers=peers,
        minutes=minutes,
        dsn=_without_secret(dsn),
        s3_endpoint_url=s3_endpoint_url,
        bucket=bucket,
        region=region,
        rate=rate,
        snapshot_rate=snapshot_rate,
        hours=hours,
    )
    recorder = Recorder(_path(output, plan), plan, _arguments(dsn, plan), Display())
    return _measure(plan, recorder)


@application.command(name="list")
def list_scenarios() -> int:
    """Show all scenarios, in order of value, about how long each takes, and the peers."""
    console = Console(highlight=False)
    plan = Plan(
        scenarios=(),
        rows=None,
        rounds=3,
        postgres_majors=(),
        peers=(),
        minutes=0,
        dsn="",
        s3_endpoint_url="",
        bucket="",
        region="",
    )
    for scenario in SCENARIOS:
        minutes = scenario.estimate_seconds(plan) / 60
        console.print(f"[bold]{scenario.name}[/]  {scenario.title}, about {minutes:.1f} minutes")
        console.print(f"{scenario.text}\n")
    for peer in (*PEERS.values(), *TABLE_PEERS.values()):
        absence = peer.absence()
        console.print(f"[bold]{peer.name}[/]  a peer: {peer.title}")
        console.print(f"{peer.text}\n")
        if absence:
            console.print(f"[yellow]cannot run here[/]: {escape(absence)}\n")
    return 0


def _measure(plan: Plan, recorder: Recorder) -> int:
    try:
        hint = run_all(SCENARIOS, plan, recorder)
    except KeyboardInterrupt:
        recorder.end(outcome="interrupted")
        return EXIT_INTERRUPTED
    except BaseException as error:
        recorder.end(outcome="failed", error=type(error).__name__)
        raise
    is_good = is_right(recorder.result)
    if is_good:
        recorder.end(outcome="complete")
        return 0
    why = "not all ran well and was verified"
    if is_empty(recorder.result):
        why = "nothing was measured"
        hint = hint or "more --minutes, or a scenario's name"
    recorder.end(outcome="failed", error=why, hint=hint)
    return EXIT_WRONG


def _path(output: Path | None, plan: Plan) -> Path:
    if output is not None and output.suffix == ".json":
        return output
    name = plan.scenarios[0] if len(plan.scenarios) == 1 else "bench"
    return (output or RESULTS) / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"


def _without_secret(dsn: str) -> str:
    """The connection string without its password, which moves to where libpq looks for it."""
    if not dsn:
        return ""
    password = conninfo_to_dict(dsn).get("password")
    if password:
        os.environ["PGPASSWORD"] = str(password)
    return without_password(dsn)


def _arguments(dsn: str, plan: Plan) -> tuple[str, ...]:
    """The caller's, as they may be kept."""
    return tuple(text.replace(dsn, plan.dsn) if dsn else text for text in sys.argv[1:])


def _interrupt(_number: int, _frame: FrameType | None) -> Never:
    # Once is enough: a second Ctrl-C would cut short what ends servers and writes the report.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(application())
