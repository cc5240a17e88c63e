"""What the kernel says in /proc about a process that lives: CPU and memory.

Every figure is 0 where the process is gone.
"""

import os
from pathlib import Path
from typing import Final

import psutil

_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(process_id: int) -> float:
    """User and system time of a process so far, all threads."""
    # proc_pid_stat(5): the name, in parentheses, may hold spaces; utime and stime are 14 and 15.
    fields = _text(process_id, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS if fields else 0.0


def tree_cpu_seconds(process_id: int) -> float:
    """User and system time of a process and of its children, those that have ended too."""
    own, ended = _cpu_seconds_with_ended(process_id)
    while True:
        living = sum(cpu_seconds(child) for child in child_ids(process_id))
        before, (own, ended) = ended, _cpu_seconds_with_ended(process_id)
        # A child that ended meanwhile would be counted twice, or not at all.
        if ended == before:
            return own + ended + living


def _cpu_seconds_with_ended(process_id: int) -> tuple[float, float]:
    """Of a process, and of its children that have ended."""
    fields = _text(process_id, "stat").rpartition(")")[2].split()
    # proc_pid_stat(5): 14 to 17 are utime, stime, cutime, cstime.
    ticks = [int(field) / _CLOCK_TICKS for field in fields[11:15]] or [0.0] * 4
    return sum(ticks[:2]), sum(ticks[2:])


def child_ids(process_id: int) -> tuple[int, ...]:
    """The children that a process has now."""
    try:
        return tuple(child.pid for child in psutil.Process(process_id).children())
    except psutil.NoSuchProcess:
        return ()


def peak_rss_bytes(process_id: int) -> int:
    """The peak so far.

    Not wait4's: that begins with the memory of the process that forked, this harness's 70 MB.
    """
    return _status_bytes(process_id, "VmHWM:")


def rss_bytes(process_id: int) -> int:
    """What it holds now."""
    return _status_bytes(process_id, "VmRSS:")


def machine_cpu_seconds() -> float:
    """What all processes used since the machine started."""
    times = psutil.cpu_times()
    # Time of guests is in `user` already.
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def _status_bytes(process_id: int, name: str) -> int:
    lines = _text(process_id, "status").splitlines()
    found = [line.split()[1] for line in lines if line.startswith(name)]
    return int(found[0]) * 1024 if found else 0


def _text(process_id: int, name: str) -> str:
    try:
        return Path(f"/proc/{process_id}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
