"""README: what it names is there, and nothing that belongs there is left out."""

import re
from pathlib import Path

import pytest

import engine
from engine.cli.application import COMMANDS

_ROOT = Path(engine.__file__).resolve().parent.parent
_README = (_ROOT / "README.md").read_text()


def _section(title: str) -> str:
    return _README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_promise_names_tests_that_exist() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| (`.+) \|$", _section("Promises, and the tests that prove them"), re.MULTILINE
    )

    named = [re.findall(r"`(tests/test_\w+\.py)`", row) for row in rows]

    assert len(rows) > 10
    assert [row for row, files in zip(rows, named, strict=True) if not files] == []
    assert [file for files in named for file in files if not (_ROOT / file).exists()] == []


def test_every_page_for_users_is_in_the_table() -> None:
    listed = re.findall(r"^\| \[[\w-]+\]\(docs/([\w-]+\.md)\) \|", _section("Pages"), re.MULTILINE)
    # These are for developers, and are named elsewhere.
    others = {"ARCHITECTURE.md", "long-tests.md", "performance.md", "plan.md"}

    assert sorted(listed) == sorted({page.name for page in (_ROOT / "docs").glob("*.md")} - others)


def test_commands_of_readme_exist() -> None:
    blocks = "\n".join(line for line in _README.splitlines() if line.startswith("    "))

    named = set(re.findall(r"^    (?:\$ )?tailrace ([a-z]+)", blocks, re.MULTILINE))

    assert {"init", "check", "run", "verify"} <= named
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("line", ["Programming Language :: Python :: 3.{}", "3.{}"])
def test_releases_of_python_are_the_same_everywhere(line: str) -> None:
    text = (
        (_ROOT / "pyproject.toml").read_text() if "::" in line else _section("Not in this release")
    )

    stated = [minor for minor in range(11, 16) if line.format(minor) in text]

    assert stated == ([11, 12, 13] if "::" in line else [11, 12, 13, 14])
