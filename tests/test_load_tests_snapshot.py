"""`python -m load_tests snapshot` and `snapshot-beside`, on very few rows: no figure is judged."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from load_tests import processes
from load_tests.display import Display
from load_tests.live.visibility import Sight
from load_tests.measurement import RunFailed
from load_tests.peers import TABLE_PEERS, Peer
from load_tests.plan import Plan
from load_tests.processes import child_ids, tree_cpu_seconds
from load_tests.recorder import Recorder
from load_tests.runner import run_all
from load_tests.scenarios import snapshot_beside
from load_tests.scenarios.snapshot import turn
from load_tests.scenarios.snapshot_beside import Phase, Phases, figures_of, limit_of
from load_tests.snapshot_bench import DASK, ONE_WORKER, TWO_WORKERS, Way

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

_ROOT = Path(__file__).parent.parent
_ROWS = 3_000
_MIB = 1024 * 1024
_LARGE = 10_000_000


def test_a_snapshot_is_measured_beside_its_peers_and_verified(tmp_path: Path) -> None:
    output = tmp_path / "result.json"

    done = subprocess.run(
        [
            *(sys.executable, "-m", "load_tests", "snapshot"),
            *(f"--rows={_ROWS}", "--rounds=1", "--postgres=18", f"--output={output}"),
        ],
        cwd=_ROOT,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    [scenario] = json.loads(output.read_bytes())["scenarios"]
    groups = {group["variant"]: group for group in scenario["groups"]}
    assert {name: group["facts"] for name, group in groups.items()} == {
        "12 columns": {"rows": _ROWS, "tables": 1},
        "100 columns": {"rows": _ROWS // 10, "tables": 1},
        "small tables": {"rows": _ROWS // 10, "tables": 3},
    }
    absent = {name for name, peer in TABLE_PEERS.items() if peer.absence()}
    assert set(scenario["absent"]) == absent
    peers = set(TABLE_PEERS) - absent
    assert {"copy", "copy_two", "pg_dump"} <= peers
    for name, group in groups.items():
        due = group["facts"]["rows"] + group["facts"]["tables"]
        found = group["verification"]
        assert (found["rows"], found["rows_due"], found["depth"]) == (due, due, "full")
        runs = {run["reader"]: run for run in group["runs"] if run["round"] == 1}
        ways = {"tailrace", "tailrace, 1 worker", "tailrace, Dask"}
        ways = ways if name == "12 columns" else {"tailrace"}
        assert set(runs) == peers | ways
        for way in ways:
            _assert_whole(runs[way])
        assert {ratios["peer"] for ratios in group["ratios"]} == set(runs) - {"tailrace"}
        assert runs["pg_dump"]["figures"]["output_bytes"] > 0
    verdicts = groups["12 columns"]["verdicts"]
    assert len(verdicts) == len(scenario["targets"])
    assert "not measured" not in {verdict["outcome"] for verdict in verdicts}
    notes = " ".join(groups["12 columns"]["notes"])
    assert "two connections of psql read" in notes


def _assert_whole(run: dict[str, Any]) -> None:
    figures = run["figures"]
    # The workers are processes of their own, whose CPU is in the engine's.
    seconds = run["rows"] / figures["reader_rows_per_cpu_second"]
    assert 0 < seconds < run["usage"]["own_cpu_seconds"]
    assert figures["worker_peak_bytes"] > 32 * _MIB
    assert figures["output_bytes"] > 0
    assert figures["reading_rows_per_second"] > run["rows"] / run["usage"]["wall_seconds"]
    assert 0 < figures["machine_busy_ratio"] < 1.2
    assert run["usage"]["walsender_cpu_seconds"] > 0


_READERS: dict[str, Peer | Way] = {
    **TABLE_PEERS,
    **{way.reader: way for way in (TWO_WORKERS, ONE_WORKER, DASK)},
}


def test_the_warm_up_is_one_reader_of_the_tables_and_one_of_the_engine() -> None:
    assert set(turn(_READERS, 0, _LARGE)) == {"copy", "tailrace"}


def test_large_tables_are_read_in_every_round_only_by_those_of_a_target() -> None:
    small = [set(turn(_READERS, number, _ROWS)) for number in (1, 2, 3)]
    large = [set(turn(_READERS, number, _LARGE)) for number in (1, 2, 3)]

    every = set(_READERS)
    rest = every - {"pg_dump", "adbc", "rivet_tables"}
    assert small == [every, every, every]
    assert large == [every, rest, rest]


def test_the_cpu_of_a_child_that_has_ended_is_its_parents() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    script = f"'{sys.executable}' -c '{burn}'; echo ended; read line"
    with subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()

        seconds = tree_cpu_seconds(process.pid)

        process.communicate(b"\n")
    assert 0.28 < seconds < 2.0


def test_a_child_that_ends_while_its_parent_is_looked_at_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()"
    script = f"'{sys.executable}' -c '{burn}'; echo gone; read line"
    with subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        looked: list[int] = []

        def ended_meanwhile(process_id: int) -> tuple[int, ...]:
            assert process.stdin is not None
            assert process.stdout is not None
            if not looked:
                process.stdin.write(b"\n")
                assert process.stdout.readline() == b"gone\n"
            looked.append(process_id)
            return child_ids(process_id)

        monkeypatch.setattr(processes, "child_ids", ended_meanwhile)

        seconds = tree_cpu_seconds(process.pid)

        process.stdin.write(b"\n")
    assert looked == [process.pid] * 2
    assert 0.28 < seconds < 2.0


def _phases(*, before_cores: float, during_cores: float, rows_per_second: float) -> Phases:
    """A phase of ten seconds, and one of four."""
    return Phases(
        before=Phase(100.0, 110.0, 10.0 * before_cores),
        during=Phase(120.0, 124.0, 4.0 * during_cores),
        row_count=int(4 * rows_per_second),
    )


def test_the_limit_leaves_half_a_core_by_what_a_row_costs_more() -> None:
    found = [_phases(before_cores=0.5, during_cores=2.0, rows_per_second=300_000)]

    # A row takes 5 µs, and a core is for the snapshot.
    assert limit_of(found, 2) == pytest.approx(200_000, abs=1)


@pytest.mark.parametrize(("before", "during"), [(1.6, 2.0), (1.0, 1.0)])
def test_a_machine_without_room_has_no_limit(before: float, during: float) -> None:
    found = [_phases(before_cores=before, during_cores=during, rows_per_second=300_000)]

    with pytest.raises(RunFailed, match="no limit leaves half a core"):
        limit_of(found, 2)


def test_a_row_belongs_to_the_phase_in_which_it_was_committed() -> None:
    phases = _phases(before_cores=0.5, during_cores=1.75, rows_per_second=1.0)
    sights = [
        Sight(106.0, {105_000: 99, 99_000: 1}),
        Sight(112.0, {109_000: 1, 111_000: 500}),
        # Of the second phase, although it is seen after its end.
        Sight(127.0, {123_000: 100, 125_000: 700}),
    ]

    found = figures_of(phases, sights, 2)

    assert (found["before_p50_seconds"], found["before_p99_seconds"]) == (1.0, 1.0)
    assert found["during_p99_seconds"] == 4.0
    assert found["during_to_before_p99_ratio"] == 4.0
    assert found["before_idle_cores"] == 1.5
    assert found["during_missing_cores"] == 0.25
    assert found["snapshot_rows_per_second"] == 1.0


def test_a_phase_without_rows_is_no_figure() -> None:
    phases = _phases(before_cores=0.5, during_cores=2.0, rows_per_second=1.0)

    with pytest.raises(RunFailed, match="no row was committed"):
        figures_of(phases, [Sight(106.0, {105_000: 1})], 2)


def test_a_snapshot_beside_a_load_is_measured_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_beside, "SECONDS", 2.0)
    monkeypatch.setattr(snapshot_beside, "_WARM_SECONDS", 0.5)
    monkeypatch.setattr(snapshot_beside, "_DURING_SECONDS_LEAST", 0.0)
    output = tmp_path / "result.json"
    plan = Plan(
        scenarios=("snapshot-beside",),
        rows=20_000,
        rounds=1,
        postgres_majors=(18,),
        peers=(),
        minutes=1.0,
        dsn="",
        s3_endpoint_url="",
        bucket="",
        region="",
        rate=500.0,
        snapshot_rate=10_000,
    )

    run_all((snapshot_beside.SNAPSHOT_BESIDE,), plan, Recorder(output, plan, (), Display()))

    [scenario] = json.loads(output.read_bytes())["scenarios"]
    assert scenario["outcome"] == "complete", scenario["why"]
    free, limited = scenario["groups"]
    assert (free["variant"], limited["variant"]) == ("no limit", "half a core left")
    for group in (free, limited):
        assert group["verification"]["is_right"], group["verification"]["text"]
        [run] = group["runs"]
        figures = run["figures"]
        assert 0 < figures["before_p50_seconds"] <= figures["before_p99_seconds"] < 20
        assert 0 < figures["during_p50_seconds"] <= figures["during_p99_seconds"] < 20
        # The truncate records of the first snapshots are seen too.
        assert figures["visible_rows_ratio"] == pytest.approx(1.0, abs=0.02)
    assert limited["facts"]["snapshot_rows_per_second"] == 10_000
    assert limited["runs"][0]["figures"]["snapshot_rows_per_second"] < 15_000
    assert free["verdicts"] == []
    assert [verdict["spread"]["median"] for verdict in limited["verdicts"]] == [
        limited["runs"][0]["figures"]["during_to_before_p99_ratio"]
    ]
