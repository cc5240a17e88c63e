"""How much the engine may buffer when `memory_limit = "auto"`.

It is an eighth of what the container (cgroup v2 or v1) or else the machine has, at least 16 MiB and
at most 96 MiB. More does not make the engine faster: the budget only has to cover what is read
while objects are put. The process itself needs about as much again, so the ceiling keeps it under
256 MiB.
"""

import os
from pathlib import Path

from engine.config.scalars import MIB, WorkersAddress
from engine.model.record import ROW_BYTES_MAX

AUTO_MEMORY_SHARE = 8
AUTO_MEMORY_MIN = 16 * MIB
AUTO_MEMORY_MAX = 96 * MIB

ROW_MEMORY_SHARE = 4
"""A row takes three times its size, and the process itself needs something too."""

_CGROUP_FILES = ("memory.max", "memory/memory.limit_in_bytes")


def resolve_memory_limit(configured: int | None, *, available_bytes: int | None = None) -> int:
    """The budget for buffered bytes: what was configured, or the share of what is available."""
    if configured is not None:
        return configured
    if available_bytes is None:
        available_bytes = available_memory_bytes()
    return min(AUTO_MEMORY_MAX, max(AUTO_MEMORY_MIN, available_bytes // AUTO_MEMORY_SHARE))


def resolve_row_limit(configured: int | None, *, available_bytes: int | None = None) -> int:
    """The largest row: what was configured, or what the memory that is available can take."""
    if configured is not None:
        return configured
    if available_bytes is None:
        available_bytes = available_memory_bytes()
    return min(ROW_BYTES_MAX, max(MIB, available_bytes // ROW_MEMORY_SHARE))


def resolve_workers(configured: WorkersAddress) -> int:
    """How many processes read snapshots: what was configured, or one for each CPU that is ours."""
    return configured.count or len(os.sched_getaffinity(0))


def available_memory_bytes(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """The smaller of the machine's memory and the container's limit, where it has one."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_limit_in(cgroup_root / name) for name in _CGROUP_FILES]
    return min([machine, *(limit for limit in limits if limit is not None)])


def _limit_in(path: Path) -> int | None:
    """What a cgroup file says; None for no file and for `max`.

    V1 says "no limit" with a number near 2^63.
    """
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
