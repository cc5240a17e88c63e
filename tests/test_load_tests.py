"""`python -m load_tests` as `make bench` runs it, on very few rows: no figure is judged."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import psycopg
import pytest

from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from load_tests import backlog_scenario
from load_tests.display import Display
from load_tests.peers import PEERS
from load_tests.peers.recvlogical import RECVLOGICAL
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.runner import run_all
from load_tests.scenarios.drain import DRAIN

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

_ROOT = Path(__file__).parent.parent
_ROWS = 20_000
# What the caller's own Python must not change in the engine.
_HOSTILE = {"PYTHONHASHSEED": "0", "PYTHONPROFILEIMPORTTIME": "1", "TAILRACE_LOG__FORMAT": "text"}

_PLAN = Plan(
    scenarios=("drain",),
    rows=_ROWS,
    rounds=1,
    postgres_majors=(),
    peers=(),
    minutes=1.0,
    dsn="",
    s3_endpoint_url="",
    bucket="",
    region="",
)


def _command(output: Path, *arguments: str, rounds: int = 1) -> list[str]:
    options = [f"--rows={_ROWS}", f"--rounds={rounds}", "--peers=pg_recvlogical"]
    return [
        *(sys.executable, "-m", "load_tests", *arguments),
        *(*options, f"--output={output}"),
    ]


def _result(output: Path) -> dict[str, Any]:
    result = json.loads(output.read_bytes())
    assert isinstance(result, dict)
    return result


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round of two scenarios; what it said lies beside the result."""
    output = tmp_path_factory.mktemp("load") / "result.json"
    done = subprocess.run(
        _command(output, "drain", "drain-small", "--postgres=18"),
        cwd=_ROOT,
        env=os.environ | _HOSTILE,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output.with_suffix(".txt").write_text(done.stdout)
    return output


@pytest.fixture
def measured(output: Path) -> dict[str, Any]:
    return _result(output)


def _groups(measured: dict[str, Any]) -> list[dict[str, Any]]:
    return [group for scenario in measured["scenarios"] for group in scenario["groups"]]


def test_a_result_says_what_was_measured_where_and_how(measured: dict[str, Any]) -> None:
    [drain, small] = measured["scenarios"]

    assert measured["outcome"] == "complete"
    assert measured["plan"]["rows"] == _ROWS
    assert measured["machine"]["cpu_count"] == psutil.cpu_count()
    assert measured["machine"]["packages"]["tailrace"]
    assert [name for name in measured["servers"] if name.startswith("PostgreSQL 18")]
    assert (drain["name"], small["name"]) == ("drain", "drain-small")
    assert 250 < drain["groups"][0]["facts"]["frame_mean_bytes"] < 300
    assert 50 < small["groups"][0]["facts"]["frame_mean_bytes"] < 150


def test_every_run_is_kept_with_everything_that_it_used(measured: dict[str, Any]) -> None:
    for group in _groups(measured):
        runs = [(run["round"], run["reader"]) for run in group["runs"]]
        assert sorted(runs) == [(n, r) for n in (0, 1) for r in ("pg_recvlogical", "tailrace")]
        for run in group["runs"]:
            usage = run["usage"]
            assert run["rows"] == _ROWS
            assert run["reader"] in " ".join(run["command"])
            assert 0 < usage["own_cpu_seconds"] < 4 * usage["wall_seconds"]
            assert usage["peak_rss_bytes"] > 0
        peer = next(run for run in group["runs"] if run["reader"] == "pg_recvlogical")
        # This process's own memory would show if the peak were taken from wait4.
        assert peer["usage"]["peak_rss_bytes"] < 32 * 1024 * 1024


def test_the_engines_phases_add_up_to_its_wall_time(measured: dict[str, Any]) -> None:
    for group in _groups(measured):
        for run in (run for run in group["runs"] if run["reader"] == "tailrace"):
            seconds = [run["phases"][f"{n}_seconds"] for n in ("start", "opening", "streaming")]
            assert all(each > 0 for each in seconds)
            total = sum(seconds) + run["phases"]["drain_seconds"]
            assert total == pytest.approx(run["usage"]["wall_seconds"])


def test_the_engines_memory_is_seen_over_time(measured: dict[str, Any]) -> None:
    for group in _groups(measured):
        engine = next(run for run in group["runs"] if run["reader"] == "tailrace")
        memory = engine["series"]["memory"]

        assert len(memory["times"]) == len(memory["values"]) > 1
        assert max(memory["values"]) <= engine["usage"]["peak_rss_bytes"]


def test_ratios_are_those_of_the_counted_pair(measured: dict[str, Any]) -> None:
    for group in _groups(measured):
        engine, peer = (
            next(run for run in group["runs"] if run["reader"] == reader and run["round"] == 1)
            for reader in ("tailrace", "pg_recvlogical")
        )

        [ratios] = group["ratios"]

        rate = peer["usage"]["wall_seconds"] / engine["usage"]["wall_seconds"]
        assert ratios["peer"] == "pg_recvlogical"
        assert ratios["values"]["rate"] == pytest.approx(rate)


def test_what_was_measured_is_verified_whole(measured: dict[str, Any]) -> None:
    for group in _groups(measured):
        assert group["verification"]["is_right"]
        assert group["verification"]["rows"] == group["verification"]["rows_due"] == _ROWS
        assert "full" in group["verification"]["command"]


def test_tables_and_report_show_it(output: Path) -> None:
    said = output.with_suffix(".txt").read_text()
    report = output.with_suffix(".html").read_text()

    assert f"verified: {_ROWS:,} rows" in said
    assert "rows/s, without start-up" in said
    assert f"report: {output.with_suffix('.html')}" in said.replace("\n", "")
    assert report.count("<svg ") >= 4
    assert "pgbench" in report


@pytest.mark.parametrize(
    "argument", ["drian", "--peers=nobody", "--dsn=nonsense", "--s3-endpoint-url=http://x"]
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, argument: str) -> None:
    done = subprocess.run(
        _command(tmp_path / "result.json", argument),
        cwd=_ROOT,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode != 0
    assert argument.partition("=")[0] in done.stdout + done.stderr
    assert not (tmp_path / "result.json").exists()


def test_an_interrupt_leaves_a_partial_result_and_no_process(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    process = subprocess.Popen(
        _command(output, "drain", "drain-wide", "--postgres=18", rounds=1000),
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    with process:
        try:
            while "round 2 of 1000" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            os.killpg(process.pid, signal.SIGINT)  # As the terminal's Ctrl-C.
        said += process.communicate()[0]

    assert process.returncode == 130, said
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    result = _result(output)
    assert result["outcome"] == "interrupted"
    assert [each["outcome"] for each in result["scenarios"]] == ["interrupted", "not run"]
    [group] = result["scenarios"][0]["groups"]
    assert len(group["ratios"]) >= 1
    assert group["verification"] is None
    assert "interrupted" in output.with_suffix(".html").read_text()


def test_peers_and_servers_that_fail_or_are_missing_are_told_and_the_others_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = replace(RECVLOGICAL, name="missing", absence=lambda: "it is not installed: get it")
    broken = replace(RECVLOGICAL, name="broken", command=lambda _: ("/bin/sh", "-c", "exit 3"))
    for peer in (missing, broken):
        monkeypatch.setitem(PEERS, peer.name, peer)
    monkeypatch.setattr(
        backlog_scenario, "server_absence", lambda major: "get it" if major == 15 else ""
    )
    scenario = replace(DRAIN, peers=("missing", "broken", "pg_recvlogical"))
    recorder = Recorder(tmp_path / "result.json", _PLAN, (), Display())

    run_all((scenario,), _PLAN, recorder)

    [result] = recorder.result.scenarios
    assert result.outcome == "failed"
    assert "/bin/sh ended with code 3" in result.why
    assert result.absent == {
        "missing": "it is not installed: get it",
        "PostgreSQL 15": "get it",
    }
    [group] = result.groups
    assert sorted({run.reader for run in group.runs}) == ["pg_recvlogical", "tailrace"]
    assert group.verification is not None
    assert group.verification.is_right
    assert "it is not installed: get it" in (tmp_path / "result.html").read_text()


def test_drain_is_held_against_the_ceiling_without_the_start_up_of_either(
    tmp_path: Path,
) -> None:
    plan = msgspec.structs.replace(_PLAN, peers=("ceiling",), postgres_majors=(18,))
    recorder = Recorder(tmp_path / "result.json", plan, (), Display())

    run_all((DRAIN,), plan, recorder)

    [result] = recorder.result.scenarios
    assert result.outcome == "complete", result.why
    [group] = result.groups
    [verdict] = [each for each in group.verdicts if each.target.peer == "ceiling"]
    rates = {
        run.reader: run.rows / run.phases.streaming_seconds
        for run in group.runs
        if run.round == 1 and run.phases is not None
    }
    assert verdict.target.bound == 0.95
    assert verdict.spread is not None
    assert verdict.spread.median == pytest.approx(rates["tailrace"] / rates["ceiling"])


@pytest.fixture
def elsewhere() -> Iterator[tuple[EmbeddedPostgres, EmbeddedS3]]:
    """Servers that are not the harness's own, and a table that is somebody's."""
    settings = {**FAST_SETTINGS, "max_connections": "20"}
    with EmbeddedPostgres(settings=settings) as postgres, EmbeddedS3() as s3:
        s3.create_bucket("theirs")
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE changes (id int PRIMARY KEY)")
            # What a harness that was killed left behind.
            connection.execute("CREATE SCHEMA tailrace_load_test")
            connection.execute("CREATE TABLE tailrace_load_test.changes (id int)")
        yield postgres, s3


def test_external_servers_keep_nothing_but_the_objects(
    elsewhere: tuple[EmbeddedPostgres, EmbeddedS3], tmp_path: Path
) -> None:
    postgres, s3 = elsewhere
    output = tmp_path / "result.json"
    dsn = f"postgresql://postgres:hush@127.0.0.1:{postgres.port}/postgres"
    external = (f"--dsn={dsn}", f"--s3-endpoint-url={s3.endpoint_url}", "--bucket=theirs")

    done = subprocess.run(
        _command(output, "drain", *external),
        cwd=_ROOT,
        env=os.environ | s3.environment,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    [group] = _result(output)["scenarios"][0]["groups"]
    assert group["verification"]["is_right"]
    assert {run["usage"]["walsender_cpu_seconds"] for run in group["runs"]} == {None}
    with psycopg.connect(postgres.dsn) as connection:
        left = connection.execute(
            "SELECT schemaname || '.' || tablename FROM pg_tables "
            "WHERE schemaname IN ('public', 'tailrace_load_test') "
            "UNION ALL SELECT slot_name FROM pg_replication_slots "
            "UNION ALL SELECT pubname FROM pg_publication"
        ).fetchall()
    assert left == [("public.changes",)]
    said = done.stdout + done.stderr + output.read_text() + output.with_suffix(".html").read_text()
    assert "hush" not in said
