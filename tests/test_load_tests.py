"""`python -m load_tests` as `make bench` runs it, on very few rows: no figure is judged."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

_ROOT = Path(__file__).parent.parent
_ROWS = 20_000


def _command(output: Path, *, rounds: int) -> list[str]:
    options = [f"--rows={_ROWS}", f"--rounds={rounds}", "--postgres=18", f"--output={output}"]
    return [sys.executable, "-m", "load_tests", "drain", *options]


def _result(output: Path) -> dict[str, Any]:
    result = json.loads(output.read_bytes())
    assert isinstance(result, dict)
    return result


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of one round."""
    output = tmp_path_factory.mktemp("load") / "result.json"
    done = subprocess.run(
        _command(output, rounds=1), cwd=_ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"verified: {_ROWS:,} rows" in done.stdout
    return _result(output)


def test_a_result_says_what_was_measured_where_and_how(measured: dict[str, Any]) -> None:
    [group] = measured["groups"]

    assert measured["outcome"] == "complete"
    assert measured["plan"]["rows"] == _ROWS
    assert measured["machine"]["cpu_count"] == psutil.cpu_count()
    assert measured["machine"]["packages"]["tailrace"]
    assert group["server"].startswith("PostgreSQL 18")
    assert 250 < group["frame_bytes_mean"] < 300


def test_every_run_is_kept_with_everything_that_it_used(measured: dict[str, Any]) -> None:
    [group] = measured["groups"]

    runs = [(run["round"], run["reader"]) for run in group["runs"]]
    assert sorted(runs) == [(n, r) for n in (0, 1) for r in ("pg_recvlogical", "tailrace")]
    for run in group["runs"]:
        usage = run["usage"]
        assert run["rows"] == _ROWS
        assert run["reader"] in " ".join(usage["command"])
        assert 0 < usage["own_cpu_seconds"] < 4 * usage["wall_seconds"]
        assert usage["walsender_cpu_seconds"] > 0
        # This process's own memory would show if the peak were taken from wait4.
        assert usage["peak_rss_bytes"] > 0
    peer = next(run for run in group["runs"] if run["reader"] == "pg_recvlogical")
    assert peer["usage"]["peak_rss_bytes"] < 32 * 1024 * 1024


def test_the_engines_phases_add_up_to_its_wall_time(measured: dict[str, Any]) -> None:
    [group] = measured["groups"]

    engines = [run for run in group["runs"] if run["reader"] == "tailrace"]

    assert engines
    for run in engines:
        assert all(seconds > 0 for seconds in run["phases"].values())
        assert sum(run["phases"].values()) == pytest.approx(run["usage"]["wall_seconds"])


def test_ratios_are_those_of_the_counted_pair(measured: dict[str, Any]) -> None:
    [group] = measured["groups"]
    engine, peer = (
        next(run for run in group["runs"] if run["reader"] == reader and run["round"] == 1)
        for reader in ("tailrace", "pg_recvlogical")
    )

    [ratios] = group["ratios"]

    assert ratios["rate"] == pytest.approx(
        peer["usage"]["wall_seconds"] / engine["usage"]["wall_seconds"]
    )
    assert ratios["own_cpu"] == pytest.approx(
        engine["usage"]["own_cpu_seconds"] / peer["usage"]["own_cpu_seconds"]
    )
    assert group["summary"]["rate"] == dict.fromkeys(("median", "least", "most"), ratios["rate"])


def test_what_was_measured_is_verified_whole(measured: dict[str, Any]) -> None:
    [group] = measured["groups"]

    assert group["verification"]["is_right"]
    assert group["verification"]["rows"] == _ROWS


def test_an_interrupt_leaves_a_partial_result_and_no_process(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    process = subprocess.Popen(
        _command(output, rounds=1000),
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    while "round 2 of 1000" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    children = psutil.Process(process.pid).children(recursive=True)

    os.killpg(process.pid, signal.SIGINT)  # As the terminal's Ctrl-C.
    said += process.communicate()[0]

    assert process.returncode == 130, said
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    result = _result(output)
    assert result["outcome"] == "interrupted"
    [group] = result["groups"]
    assert len(group["ratios"]) >= 1
    assert group["verification"] is None
