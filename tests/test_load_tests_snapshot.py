"""`python -m load_tests snapshot`, on very few rows: no figure is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

_ROOT = Path(__file__).parent.parent
_ROWS = 3_000


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
    for group in groups.values():
        due = group["facts"]["rows"] + group["facts"]["tables"]
        assert group["verification"]["rows"] == group["verification"]["rows_due"] == due
        runs = {run["reader"]: run for run in group["runs"] if run["round"] == 1}
        assert set(runs) == {"copy", "pg_dump", "tailrace"}
        engine = runs["tailrace"]
        # The workers are processes of their own, whose CPU is in the engine's.
        assert engine["figures"]["workers_cpu_us"] * 1e-6 * engine["rows"] > 0
        assert engine["figures"]["worker_peak_bytes"] > 32 * 1024 * 1024
        assert engine["usage"]["walsender_cpu_seconds"] > 0
        assert {ratios["peer"] for ratios in group["ratios"]} == {"copy", "pg_dump"}
