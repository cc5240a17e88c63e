"""`python -m load_tests fold`, on very few changes: no figure is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from load_tests.fold_objects import make_objects, object_files
from load_tests.fold_reader import fold
from load_tests.peers.duckdb import DUCKDB

_ROOT = Path(__file__).parent.parent
_CHANGES = 3_000


@pytest.mark.timeout(300)
def test_a_fold_is_measured_beside_duckdb_and_counted(tmp_path: Path) -> None:
    output = tmp_path / "result.json"

    done = subprocess.run(
        [
            *(sys.executable, "-m", "load_tests", "fold"),
            *(f"--rows={_CHANGES}", "--rounds=1", f"--output={output}"),
        ],
        cwd=_ROOT,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    [scenario] = json.loads(output.read_bytes())["scenarios"]
    groups = {group["variant"]: group for group in scenario["groups"]}
    assert {name: group["facts"]["keys"] for name, group in groups.items()} == {
        "10 changes a key": _CHANGES // 10,
        "1 change a key": _CHANGES,
    }
    for group in groups.values():
        found = group["verification"]
        assert 0 < found["rows"] == found["rows_due"]
        assert {run["reader"] for run in group["runs"]} == {"tailrace", DUCKDB.name}
        assert not any("found" in note for note in group["notes"])
        assert {verdict["outcome"] for verdict in group["verdicts"]} <= {"met", "missed"}


def test_objects_are_cut_and_folded_in_passes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("load_tests.fold_objects.OBJECT_BYTES_MAX", 100_000)
    made = make_objects(tmp_path, 20_000, 5_000)

    whole = fold(tmp_path)
    in_passes = fold(tmp_path, memory_max=200_000)

    assert len(object_files(tmp_path)) == made.object_count > 3
    assert whole.passes == 1 < in_passes.passes
    assert (whole.rows, whole.row_bytes) == (in_passes.rows, in_passes.row_bytes)
    assert whole.rows == made.row_count
