"""What follows from measured runs: ratios, verdicts, the budget of time, the report. No servers."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from engine.model.errors import TailraceError
from load_tests.backlog_scenario import FURTHER_ROW_CPU, BacklogScenario, order
from load_tests.display import Display
from load_tests.engine_reader import phases, snapshot_seconds
from load_tests.measurement import RunFailed
from load_tests.peers import PEERS, TABLE_PEERS
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.report import page
from load_tests.result import (
    Depth,
    Group,
    Result,
    ScenarioResult,
    Target,
    Unless,
    Verdict,
    Verification,
    is_right,
)
from load_tests.run import Phases, Run, Series, Usage
from load_tests.runner import run_all
from load_tests.scenarios import SCENARIOS
from load_tests.scenarios.snapshot import SNAPSHOT, VARIANTS
from load_tests.servers import without_password
from load_tests.sheets import notes, targets_sheet, verification_text

_MIB = 1024 * 1024
_PLAN = Plan(
    scenarios=(),
    rows=None,
    rounds=2,
    postgres_majors=(),
    peers=(),
    minutes=10.0,
    dsn="",
    s3_endpoint_url="",
    bucket="",
    region="",
)
_BACKLOGS = [scenario for scenario in SCENARIOS if isinstance(scenario, BacklogScenario)]
_RATE = Target(text="rows/s", quantity="rate", bound=2.0, direction="at least", peer="other")
_RSS = Target(text="peak RSS", quantity="peak_rss", bound=100.0 * _MIB, direction="at most")


def _run(
    reader: str,
    number: int,
    wall_seconds: float,
    *,
    cpu_seconds: float = 1.0,
    streaming_cpu_seconds: float | None = None,
    rows: int = 1000,
    **more: dict[str, float] | dict[str, Series],
) -> Run:
    is_engine = reader == "tailrace"
    return Run(
        reader=reader,
        round=number,
        rows=rows,
        command=(reader, "--now"),
        usage=Usage(
            started_at=0.0,
            wall_seconds=wall_seconds,
            own_cpu_seconds=cpu_seconds,
            peak_rss_bytes=64 * _MIB,
            walsender_cpu_seconds=0.5,
            s3_cpu_seconds=0.25,
            machine_cpu_seconds=2.0,
            load_average=0.0,
        ),
        phases=Phases(
            start_seconds=wall_seconds / 2,
            opening_seconds=0.0,
            streaming_seconds=wall_seconds / 4,
            drain_seconds=wall_seconds / 4,
            streaming_cpu_seconds=streaming_cpu_seconds,
        )
        if is_engine
        else None,
        **more,  # type: ignore[arg-type]
    )


def _scenario(*groups: Group, targets: tuple[Target, ...] = ()) -> ScenarioResult:
    scenario = ScenarioResult(
        name="fast",
        title="Fast",
        text="How fast.",
        command="python -m load_tests fast",
        targets=targets,
        outcome="complete",
        groups=list(groups),
    )
    scenario.compute()
    return scenario


def _verdict(scenario: ScenarioResult, number: int = 0) -> Verdict:
    return scenario.groups[-1].verdicts[number]


class TestRatios:
    def test_ratios_are_formed_within_a_round_and_against_each_peer(self) -> None:
        group = Group(
            server="PostgreSQL 18",
            runs=[
                _run("tailrace", 1, 2.0, cpu_seconds=3.0),
                _run("other", 1, 4.0, cpu_seconds=1.0),
                _run("third", 1, 1.0),
                _run("other", 2, 9.0),
                _run("tailrace", 2, 3.0),
            ],
        )

        [first, second, third] = _scenario(group).groups[0].ratios

        assert (first.peer, first.round, first.values["rate"]) == ("other", 1, 2.0)
        assert (second.peer, second.round, round(second.values["rate"], 9)) == ("other", 2, 3.0)
        assert (third.peer, third.round, third.values["rate"]) == ("third", 1, 0.5)
        assert first.values["own_cpu"] == 3.0
        # Half of the engine's time was its start-up.
        assert first.values["started_rate"] == 4.0
        assert first.values["streaming_rate"] == 8.0
        spread = group.summary["other"]["rate"]
        assert (spread.median, spread.least, spread.most) == pytest.approx((2.5, 2.0, 3.0))

    def test_a_peer_that_tells_its_phases_is_compared_without_its_start_up_too(self) -> None:
        engine, peer = _run("tailrace", 1, 2.0), _run("other", 1, 4.0)
        own = Phases(
            start_seconds=2.5, opening_seconds=0.5, streaming_seconds=0.5, drain_seconds=0.5
        )
        group = Group(server="x", runs=[engine, msgspec.structs.replace(peer, phases=own)])

        [ratios] = _scenario(group).groups[0].ratios

        assert ratios.values["rate"] == 2.0
        assert ratios.values["started_rate"] == 1.5
        assert ratios.values["streaming_rate"] == 1.0

    def test_the_warm_up_counts_for_nothing(self) -> None:
        group = Group(server="x", runs=[_run("tailrace", 0, 2.0), _run("other", 0, 4.0)])

        scenario = _scenario(group, targets=(_RATE, _RSS))

        assert group.ratios == ()
        assert [verdict.outcome for verdict in group.verdicts] == ["not measured"] * 2
        assert scenario.groups[0].summary == {}

    def test_a_run_that_is_apart_counts_for_nothing(self) -> None:
        apart = msgspec.structs.replace(_run("tailrace", 1, 2.0), is_apart=True)
        group = Group(server="x", runs=[apart, _run("other", 1, 4.0)])

        scenario = _scenario(group, targets=(_RATE, _RSS))

        assert group.ratios == ()
        assert [verdict.outcome for verdict in scenario.groups[0].verdicts] == ["not measured"] * 2

    def test_what_one_side_did_not_measure_has_no_ratio(self) -> None:
        unseen = msgspec.structs.replace(
            _run("other", 1, 1.0).usage, walsender_cpu_seconds=None, own_cpu_seconds=0.0
        )
        peer = msgspec.structs.replace(_run("other", 1, 1.0), usage=unseen)
        group = Group(server="x", runs=[_run("tailrace", 1, 2.0), peer])

        [ratios] = _scenario(group).groups[0].ratios

        assert ratios.values.keys().isdisjoint({"walsender_cpu", "own_cpu"})

    def test_a_scenarios_own_figures_are_compared_too(self) -> None:
        engine = _run("tailrace", 1, 2.0, figures={"visible_p99_seconds": 1.0, "only_ours": 1.0})
        peer = _run("other", 1, 2.0, figures={"visible_p99_seconds": 4.0})

        group = _scenario(Group(server="x", runs=[engine, peer])).groups[0]

        assert group.summary["other"]["visible_p99_seconds"].median == 0.25
        assert "only_ours" not in group.summary["other"]


class TestVerdicts:
    @pytest.mark.parametrize(("peer_seconds", "outcome"), [(4.0, "met"), (3.9, "missed")])
    def test_the_median_of_the_ratios_is_held_against_the_bound(
        self, peer_seconds: float, outcome: str
    ) -> None:
        runs = [
            run
            for number, seconds in enumerate((peer_seconds, 9.0, 1.0), 1)
            for run in (_run("tailrace", number, 2.0), _run("other", number, seconds))
        ]

        verdict = _verdict(_scenario(Group(server="x", runs=runs), targets=(_RATE,)))

        assert verdict.outcome == outcome
        assert verdict.spread is not None
        assert verdict.spread.median == peer_seconds / 2

    def test_a_target_without_a_peer_is_held_against_the_engine_alone(self) -> None:
        group = Group(server="x", runs=[_run("tailrace", 1, 2.0)])

        verdict = _verdict(_scenario(group, targets=(_RSS,)))

        assert verdict.outcome == "met"
        assert verdict.spread is not None
        assert verdict.spread.median == 64 * _MIB

    @pytest.mark.parametrize(
        ("gain", "busy", "outcome"),
        [(2.0, 1.0, "met"), (1.5, 0.9, "missed"), (1.5, 0.95, "not comparable")],
    )
    def test_a_miss_is_none_where_the_runs_cannot_be_compared(
        self, gain: float, busy: float, outcome: str
    ) -> None:
        unless = Unless(quantity="busy_ratio", above=0.9, text="no CPU was left: busy")
        target = msgspec.structs.replace(_RATE, bound=1.8, unless=unless)
        runs = [_run("tailrace", 1, 2.0, figures={"busy_ratio": busy}), _run("other", 1, 2 * gain)]
        scenario = _scenario(Group(server="x", runs=runs), targets=(target,))

        verdict = _verdict(scenario)

        assert verdict.outcome == outcome
        assert verdict.spread is not None
        assert verdict.spread.median == gain
        is_told = (
            "no CPU was left: busy (0.950)" in targets_sheet(scenario.groups[0]).rows[0].cells[-1]
        )
        assert is_told == (outcome == "not comparable")

    def test_a_target_may_be_for_the_engine_otherwise_configured(self) -> None:
        runs = [_run("tailrace", 1, 2.0), _run("tailrace, alone", 1, 4.0), _run("other", 1, 12.0)]
        peer = msgspec.structs.replace(_RATE, reader="tailrace, alone")
        own = msgspec.structs.replace(_RSS, quantity="wall", bound=3.0, reader="tailrace, alone")
        scenario = _scenario(Group(server="x", runs=runs), targets=(peer, own))

        ratio, wall = (_verdict(scenario, number) for number in (0, 1))

        assert ratio.spread is not None
        assert ratio.spread.median == pytest.approx(3.0)
        assert (ratio.outcome, wall.outcome) == ("met", "missed")
        cells = targets_sheet(scenario.groups[0]).rows[0].cells
        assert cells[1] == "tailrace, alone: rows/s"

    def test_a_target_to_a_baseline_compares_groups_of_one_server(self) -> None:
        target = Target(
            text="CPU a row",
            quantity="streaming_cpu",
            bound=1.1,
            direction="at most",
            baseline="1 table",
            variants=("100 tables",),
        )
        groups = [
            Group(server=server, variant=variant, runs=[run])
            for server, variant, run in (
                ("15", "1 table", _run("tailrace", 1, 9.0, streaming_cpu_seconds=100.0)),
                ("18", "1 table", _run("tailrace", 1, 9.0, streaming_cpu_seconds=1.0)),
                ("18", "100 tables", _run("tailrace", 1, 9.0, streaming_cpu_seconds=1.5)),
            )
        ]

        scenario = _scenario(*groups, targets=(target,))

        assert [len(group.verdicts) for group in scenario.groups] == [0, 0, 1]
        assert _verdict(scenario).outcome == "missed"
        assert _verdict(scenario).spread is not None
        assert _verdict(scenario).spread.median == 1.5  # type: ignore[union-attr]

    def test_a_peer_that_could_not_be_had_leaves_its_targets_not_measured(self) -> None:
        group = Group(server="x", runs=[_run("tailrace", 1, 2.0)])

        assert _verdict(_scenario(group, targets=(_RATE,))).outcome == "not measured"

    def test_a_target_is_not_for_groups_that_its_peer_does_not_read(self) -> None:
        groups = [
            Group(server="15", runs=[_run("tailrace", 1, 2.0), _run("third", 1, 2.0)]),
            Group(server="18", runs=[_run("tailrace", 1, 2.0), _run("other", 1, 2.0)]),
        ]

        scenario = _scenario(*groups, targets=(_RATE,))

        assert [len(group.verdicts) for group in scenario.groups] == [0, 1]

    def test_every_target_names_a_quantity_and_a_variant_that_there_is(self) -> None:
        plain = _run("tailrace", 1, 2.0, streaming_cpu_seconds=1.0)
        for target in SNAPSHOT.targets:
            of = [variant for variant in VARIANTS if variant.workload.variant in target.variants]
            readers = {*TABLE_PEERS, *(way.reader for variant in of for way in variant.ways)}
            assert of, target
            assert {target.reader, target.peer or target.reader} <= readers
        for scenario in _BACKLOGS:
            is_met = all(workload.meet is not None for workload in scenario.workloads)
            figures = {FURTHER_ROW_CPU: 1.0} if is_met else {}
            run = msgspec.structs.replace(plain, figures=figures)
            for target in scenario.targets:
                alone = msgspec.structs.replace(target, peer="", baseline="", variants=())

                verdict = _verdict(_scenario(Group(server="x", runs=[run]), targets=(alone,)))

                assert verdict.outcome != "not measured", (scenario.name, target)


class TestTheResultFile:
    def test_everything_can_be_computed_again_from_the_file(self, tmp_path: Path) -> None:
        result = _recorded(tmp_path).result

        read = msgspec.json.decode(_file(tmp_path).read_bytes(), type=Result)
        for scenario in read.scenarios:
            for group in scenario.groups:
                group.ratios, group.summary, group.verdicts = (), {}, ()
            scenario.compute()

        assert read == result
        assert read.scenarios[0].groups[0].verdicts

    def test_a_result_is_right_only_if_everything_was_verified(self, tmp_path: Path) -> None:
        result = _recorded(tmp_path).result
        assert is_right(result)

        result.scenarios[0].groups[0].verification = None

        assert not is_right(result)

    def test_a_result_of_nothing_is_not_right(self, tmp_path: Path) -> None:
        recorder = _recorder(tmp_path)

        run_all((_FakeScenario("huge", 1e6),), _PLAN, recorder)

        assert [scenario.outcome for scenario in recorder.result.scenarios] == ["not run"]
        assert not is_right(recorder.result)

    def test_what_was_once_proven_wrong_stays_wrong(self, tmp_path: Path) -> None:
        recorder = _recorded(tmp_path)
        group = recorder.result.scenarios[0].groups[0]
        assert group.verification is not None
        right = group.verification
        wrong = msgspec.structs.replace(right, is_right=False, text="a gap")

        for found in (right, wrong, right):
            recorder.verified(found)

        assert group.verification == wrong

    @pytest.mark.parametrize(("depth", "said"), [("full", "in order"), ("light", "no record")])
    def test_a_verification_claims_no_more_than_was_read(
        self, tmp_path: Path, depth: Depth, said: str
    ) -> None:
        group = _recorded(tmp_path).result.scenarios[0].groups[0]
        assert group.verification is not None
        group.verification = msgspec.structs.replace(group.verification, depth=depth)

        assert said in verification_text(group)

    def test_others_are_not_blamed_for_the_load(self) -> None:
        alone = _run("tailrace", 1, 2.0, cpu_seconds=0.0)
        loaded = msgspec.structs.replace(alone, is_under_load=True)

        assert "noisy" in " ".join(notes(Group(server="x", runs=[alone]), 1))
        assert notes(Group(server="x", runs=[loaded]), 1) == ()

    def test_a_password_is_taken_from_the_connection_string(self) -> None:
        found = without_password("postgresql://me:secret@host:5433/shop?sslmode=require")

        assert "secret" not in found
        assert {"user=me", "host=host", "port=5433", "dbname=shop", "sslmode=require"} <= set(
            found.split()
        )


class TestPhases:
    def test_wall_time_and_cpu_are_taken_apart_by_the_log(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text(
            "a warning of Python's\n"
            + _line("opening", 1, cpu=0.5)
            + _line("streaming", 2, cpu=0.6)
            + _line("draining", 5, cpu=2.6)
            + _line("stopped", 6, cpu=2.9)
        )
        usage = msgspec.structs.replace(_run("tailrace", 1, 7.0).usage, own_cpu_seconds=3.0)

        found = phases(log, usage)

        assert found.start_seconds == 1.0
        assert found.streaming_seconds == 3.0
        assert found.drain_seconds == 2.0
        assert found.start_cpu_seconds == 0.5
        assert found.streaming_cpu_seconds == pytest.approx(2.0)
        assert found.drain_cpu_seconds == pytest.approx(0.4)

    def test_a_log_that_does_not_tell_cpu_leaves_it_open(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text(_line("opening", 1) + _line("streaming", 2) + _line("draining", 5))

        found = phases(log, _run("tailrace", 1, 7.0).usage)

        assert found.streaming_seconds == 3.0
        assert found.streaming_cpu_seconds is None


class TestSnapshotSeconds:
    def test_they_are_from_the_first_tables_turn_to_the_last_ones_end(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text(
            _line("opening", 1)
            + _event("snapshot started", 2)
            + _event("snapshot read", 4)
            + _event("snapshot started", 3)
            + _event("snapshot read", 7)
            + _line("stopped", 9)
        )

        assert snapshot_seconds(log) == 5.0

    def test_a_log_of_a_snapshot_that_was_not_read_is_no_figure(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text(_event("snapshot started", 2))

        with pytest.raises(RunFailed):
            snapshot_seconds(log)


class TestOrder:
    @pytest.mark.parametrize("count", [2, 3, 4, 5])
    def test_everybody_runs_once_a_round(self, count: int) -> None:
        readers = tuple("abcde"[:count])

        assert all(sorted(order(readers, number)) == list(readers) for number in range(6))

    def test_two_readers_take_turns_to_be_first(self) -> None:
        assert [order(("a", "b"), number)[0] for number in range(4)] == ["a", "b", "a", "b"]

    def test_nobody_follows_the_same_other_in_every_round(self) -> None:
        readers = ("a", "b", "c", "d")
        rounds = [order(readers, number) for number in range(4)]

        for reader in readers:
            before = {turns[turns.index(reader) - 1] for turns in rounds if turns[0] != reader}
            assert len(before) > 1


@dataclass
class _FakeScenario:
    """Takes no time, and does what it is told."""

    name: str
    seconds: float
    rows_least: int | None = None
    act: Callable[[Recorder], None] = lambda _: None
    measured: list[Plan] = field(default_factory=list)
    title: str = "A title"
    text: str = "A text."
    targets: tuple[Target, ...] = ()

    def estimate_seconds(self, plan: Plan) -> float:
        return self.seconds * (plan.rows or 1000) / 1000

    def smaller(self, plan: Plan, seconds: float) -> Plan | None:
        rows = int(1000 * seconds / self.seconds)
        if self.rows_least is None or rows < self.rows_least:
            return None
        return msgspec.structs.replace(plan, rows=rows)

    def measure(self, plan: Plan, recorder: Recorder) -> None:
        self.measured.append(plan)
        self.act(recorder)


class TestTheBudget:
    def test_what_fits_is_measured_and_what_does_not_is_told_with_its_command(
        self, tmp_path: Path
    ) -> None:
        small, large = _FakeScenario("small", 60.0), _FakeScenario("large", 3600.0)
        recorder = _recorder(tmp_path)

        run_all((large, small), _PLAN, recorder)

        [first, second] = recorder.result.scenarios
        assert (first.name, first.outcome) == ("large", "not run")
        assert "60 minutes" in first.why
        assert first.command == "python -m load_tests large"
        assert (second.name, second.outcome) == ("small", "complete")
        assert (len(large.measured), len(small.measured)) == (0, 1)

    def test_a_scenario_that_may_be_smaller_is_made_to_fit(self, tmp_path: Path) -> None:
        scenario = _FakeScenario("large", 1200.0, rows_least=100)

        run_all((scenario,), _PLAN, _recorder(tmp_path))

        [plan] = scenario.measured
        assert plan.rows is not None
        assert 490 <= plan.rows <= 500

    def test_what_is_named_is_measured_whatever_it_takes(self, tmp_path: Path) -> None:
        one, other = _FakeScenario("one", 1e6), _FakeScenario("other", 1.0)
        plan = msgspec.structs.replace(_PLAN, scenarios=("one",))

        run_all((other, one), plan, _recorder(tmp_path))

        assert (len(one.measured), len(other.measured)) == (1, 0)

    def test_after_a_failure_the_next_one_is_measured(self, tmp_path: Path) -> None:
        def fail(_: Recorder) -> None:
            raise TailraceError("no server", hint="start one")

        recorder, good = _recorder(tmp_path), _FakeScenario("good", 1.0)

        hint = run_all((_FakeScenario("bad", 1.0, act=fail), good), _PLAN, recorder)

        assert hint == "start one"
        outcomes = [(each.outcome, each.why) for each in recorder.result.scenarios]
        assert outcomes == [("failed", "no server"), ("complete", "")]
        assert not is_right(recorder.result)

    def test_a_bug_of_a_scenario_is_told_apart_from_an_interrupt(self, tmp_path: Path) -> None:
        def stumble(_: Recorder) -> None:
            raise ZeroDivisionError("by zero")

        recorder = _recorder(tmp_path)

        with pytest.raises(ZeroDivisionError):
            run_all((_FakeScenario("first", 1.0, act=stumble),), _PLAN, recorder)

        [scenario] = recorder.result.scenarios
        assert (scenario.outcome, scenario.why) == ("failed", "ZeroDivisionError: by zero")

    def test_an_interrupt_marks_its_scenario_and_those_after_it(self, tmp_path: Path) -> None:
        def interrupt(_: Recorder) -> None:
            raise KeyboardInterrupt

        recorder = _recorder(tmp_path)
        scenarios = (_FakeScenario("first", 1.0, act=interrupt), _FakeScenario("second", 1.0))

        with pytest.raises(KeyboardInterrupt):
            run_all(scenarios, _PLAN, recorder)

        outcomes = [scenario.outcome for scenario in recorder.result.scenarios]
        assert outcomes == ["interrupted", "not run"]

    def test_scenarios_estimate_more_for_more(self) -> None:
        for scenario in _BACKLOGS:
            more = msgspec.structs.replace(_PLAN, rounds=6)

            assert 0 < scenario.estimate_seconds(_PLAN) < scenario.estimate_seconds(more)

    def test_the_largest_scenario_is_made_smaller_rather_than_left_out(self) -> None:
        [scenario] = [each for each in _BACKLOGS if each.name == "large-transaction"]

        fitting = scenario.smaller(_PLAN, 240.0)

        assert fitting is not None
        assert scenario.estimate_seconds(fitting) <= 240.0
        assert scenario.smaller(_PLAN, 10.0) is None


class TestTheReport:
    def test_it_needs_nothing_from_elsewhere(self, tmp_path: Path) -> None:
        text = page(_recorded(tmp_path).result, "result.json")

        assert re.findall(r'(?:src|href)="(?!#)[^"]*"', text) == []
        assert "url(http" not in text
        assert "@import" not in text
        assert "<script" not in text

    def test_it_shows_ratios_targets_charts_and_how_to_repeat_it(self, tmp_path: Path) -> None:
        text = page(_recorded(tmp_path).result, "result.json")

        assert "1 target met" in text
        assert "1 target missed" in text
        assert "verified: 1,000 rows" in text
        assert "python -m load_tests fast" in text
        for title in ("Rows a second", "CPU a row", "Measured against targets", "Lag over time"):
            assert title in text

    def test_charts_follow_the_pages_colours(self, tmp_path: Path) -> None:
        text = page(_recorded(tmp_path).result, "result.json")

        assert "var(--ink-0)" in text
        assert "#0c0d" not in text
        assert "#0c0e" not in text

    def test_no_two_elements_share_an_id(self, tmp_path: Path) -> None:
        ids = re.findall(r'\bid="([^"]*)"', page(_recorded(tmp_path).result, "result.json"))

        assert len(ids) == len(set(ids))

    def test_what_others_said_is_text_never_markup(self, tmp_path: Path) -> None:
        recorder = _recorded(tmp_path)
        recorder.result.scenarios[0].absent["evil"] = "<script>alert(1)</script>"
        recorder.result.scenarios[0].groups[0].notes.append("a < b & c")

        text = page(recorder.result, "result.json")

        assert "<script" not in text
        assert "a &lt; b &amp; c" in text

    def test_a_scenario_that_did_not_run_says_why_and_how_to_run_it(self, tmp_path: Path) -> None:
        recorder = _recorder(tmp_path)
        run_all((_FakeScenario("huge", 1e6),), _PLAN, recorder)

        text = page(recorder.result, "result.json")

        assert "more than are left" in text
        assert "python -m load_tests huge" in text

    def test_a_result_that_holds_nothing_yet_has_a_report(self, tmp_path: Path) -> None:
        recorder = _recorder(tmp_path)

        recorder.end(outcome="interrupted")

        assert "interrupted" in _file(tmp_path).with_suffix(".html").read_text()


def test_peers_say_what_they_do_with_a_row() -> None:
    for name, peer in (PEERS | TABLE_PEERS).items():
        assert name == peer.name
        assert re.fullmatch(r"[a-z0-9_-]+", name)
        assert peer.text.endswith(".")


def _line(phase: str, second: int, *, cpu: float | None = None) -> str:
    told = "" if cpu is None else f', "cpu_seconds": {cpu}'
    time = f"1970-01-01T00:00:0{second}.000000Z"
    return f'{{"timestamp": "{time}", "event": "phase", "phase": "{phase}"{told}}}\n'


def _event(event: str, second: int) -> str:
    return f'{{"timestamp": "1970-01-01T00:00:0{second}.000000Z", "event": "{event}"}}\n'


def _file(folder: Path) -> Path:
    return folder / "result.json"


def _recorder(folder: Path) -> Recorder:
    return Recorder(_file(folder), _PLAN, ("fast",), Display())


def _recorded(folder: Path) -> Recorder:
    """A result with one group, two rounds, one target met and one missed."""
    recorder = _recorder(folder)
    scenario = _scenario(targets=(_RATE, msgspec.structs.replace(_RATE, bound=9.0)))
    recorder.begin_scenario(scenario)
    recorder.begin("PostgreSQL 18.6")
    lag = {"lag": Series(text="lag", unit="s", times=(0.0, 1.0, 2.0), values=(0.0, 3.0, 1.0))}
    for number in (1, 2):
        recorder.add(_run("tailrace", number, 2.0, series=lag))
        recorder.add(_run("other", number, 4.0 + number))
    recorder.verified(
        Verification(
            command=("tailrace", "verify"),
            depth="full",
            is_right=True,
            rows=1000,
            rows_due=1000,
            objects=1,
            text="",
        )
    )
    recorder.end_scenario("complete")
    return recorder
