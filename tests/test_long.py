"""Long tests: each has a short version, which `make test` runs, and a line in the docs."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "long-tests.md"


def collected(marks: str) -> frozenset[str]:
    """The functions, as `file::function`, of which pytest collects a case with these marks."""
    files = [
        path for path in TESTS.glob("test_*.py") if "marks=pytest.mark.long" in path.read_text()
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", marks, *files],
        check=True,
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
    )
    return frozenset(line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line)


@pytest.mark.timeout(300)
def test_every_long_test_has_a_short_version_and_a_line_in_the_docs() -> None:
    long, short = collected("long"), collected("not long")
    columns = [line.split(" | ") for line in PAGE.read_text().splitlines()]
    words = [line[1].strip("`") for line in columns if len(line) > 1 and line[1].startswith("`")]

    assert words
    assert long
    assert long - short == set()
    assert [test for test in long if not any(word in test for word in words)] == []
    assert [word for word in words if not any(word in test for test in long)] == []
