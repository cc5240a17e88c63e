"""A user's own module named `engine`, or `tailrace`, on Python's path."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import engine

_SCRIPT = Path(sys.executable).with_name("tailrace")
_RUN_BY_MISTAKE = 'raise SystemExit("the user\'s code ran")\n'


def _module(folder: Path, name: str) -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(_RUN_BY_MISTAKE)
    return file


def _said(
    *command: str | Path, folder: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command,
        cwd=folder,
        env=others if path is None else others | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["engine.py", "engine/__init__.py"])
def test_another_engine_on_the_path_is_named_in_one_sentence(tmp_path: Path, name: str) -> None:
    file = _module(tmp_path, name)

    said = _said(_SCRIPT, "--version", folder=tmp_path, path=tmp_path)

    assert (said.returncode, said.stdout) == (78, "")
    assert said.stderr == (
        f"tailrace: Python finds another module named engine before Tailrace's own, {file}: start "
        "Tailrace in another folder, or take that module's folder out of PYTHONPATH.\n"
    )


@pytest.mark.parametrize("name", ["engine.py", "tailrace.py"])
def test_the_command_does_not_care_for_the_folder_where_it_is_started(
    tmp_path: Path, name: str
) -> None:
    _module(tmp_path, name)

    said = _said(_SCRIPT, "--version", folder=tmp_path)

    assert (said.returncode, said.stderr) == (0, "")
    assert engine.__version__ in said.stdout


def test_the_command_does_not_need_the_name_of_its_library(tmp_path: Path) -> None:
    _module(tmp_path, "tailrace.py")

    said = _said(_SCRIPT, "--version", folder=tmp_path, path=tmp_path)

    assert (said.returncode, said.stderr) == (0, "")


def test_python_m_tailrace_beside_another_engine_ends_with_one_line(tmp_path: Path) -> None:
    file = _module(tmp_path, "engine.py")

    said = _said(sys.executable, "-m", "tailrace", "--version", folder=tmp_path)

    assert (said.returncode, said.stdout) == (1, "")
    assert len(said.stderr.splitlines()) == 1
    assert f"another module named engine before Tailrace's own, {file}" in said.stderr


def test_the_library_beside_another_engine_raises_import_error(tmp_path: Path) -> None:
    file = _module(tmp_path, "engine.py")

    said = _said(sys.executable, "-c", "import tailrace", folder=tmp_path)

    last = said.stderr.splitlines()[-1]
    assert re.match(rf"ImportError: Python finds another module named engine .*, {file}: ", last)


def test_an_installation_without_the_engine_says_so(tmp_path: Path) -> None:
    alone = tmp_path / "tailrace_command.py"
    alone.write_bytes((Path(engine.__file__).parent.parent / alone.name).read_bytes())
    run = "import tailrace_command; tailrace_command.main()"

    said = _said(sys.executable, "-S", "-c", run, folder=tmp_path)

    assert said.returncode == 78
    assert said.stderr == (
        f"tailrace: Tailrace's own module engine is not in {tmp_path}: install Tailrace again.\n"
    )
