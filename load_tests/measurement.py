"""One process run from its start to its end, and everything that it used.

Strategy: the process's own CPU is what the kernel accounts to it at its end (wait4), so nothing of
it is lost; what must be seen while it lives (its memory, the walsender's CPU) a thread samples from
/proc. The sampler asks the database who the walsender is until it knows, and nothing after that.

Invariant: the process is in a session of its own and never outlives `measure`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Final, Self

import msgspec
import psutil
import psycopg

from engine.demo.server_process import log_tail
from engine.errors import TailraceError

# The last sample is at most so old when a process ends: below 1 % of a run of several seconds. A
# sample costs 0.1 ms.
_SAMPLE_INTERVAL: Final = 0.02
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
_WALSENDER = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s"


class RunFailed(TailraceError):
    """A measured process did not end well; the message has its output's end."""

    exit_code = 1


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one run used. Times in seconds; `started_at` is Unix time."""

    command: tuple[str, ...]
    started_at: float
    wall_seconds: float
    own_cpu_seconds: float
    peak_rss_bytes: int
    walsender_cpu_seconds: float
    s3_cpu_seconds: float
    machine_cpu_seconds: float
    """All CPU that the machine used meanwhile: what the rest does not explain is somebody else's,
    the sampler's or the kernel's own."""
    load_average: float
    """Of the minute before the run."""

    @property
    def other_cpu_seconds(self) -> float:
        """What neither the readers nor the servers used."""
        ours = self.own_cpu_seconds + self.walsender_cpu_seconds + self.s3_cpu_seconds
        return max(0.0, self.machine_cpu_seconds - ours)


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """The servers' processes whose CPU belongs to the run."""

    dsn: str
    slot: str
    s3_process_id: int


def measure(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path, watched: Watched
) -> Usage:
    """Run `command` to its end, its output going to `log`.

    Raises RunFailed unless it exits with 0. Interrupted, it kills the process before it raises.
    """
    with _Sampler(watched) as sampler, log.open("wb") as output:
        load_average = os.getloadavg()[0]
        s3_before, machine_before = _cpu_seconds(watched.s3_process_id), _machine_cpu_seconds()
        started_at, began = time.time(), time.perf_counter()
        process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # The terminal's Ctrl-C is for the harness, which ends the process itself.
            start_new_session=True,
        )
        own_cpu_seconds = _ended(process, sampler)
        wall_seconds = time.perf_counter() - began
        machine_seconds = _machine_cpu_seconds() - machine_before
        s3_seconds = _cpu_seconds(watched.s3_process_id) - s3_before
    if process.returncode != 0:
        raise RunFailed(f"{command[0]} ended with code {process.returncode}{log_tail(log)}")
    return Usage(
        command=tuple(command),
        started_at=started_at,
        wall_seconds=wall_seconds,
        own_cpu_seconds=own_cpu_seconds,
        peak_rss_bytes=sampler.peak_rss_bytes,
        walsender_cpu_seconds=sampler.walsender_cpu_seconds,
        s3_cpu_seconds=s3_seconds,
        machine_cpu_seconds=machine_seconds,
        load_average=load_average,
    )


def _ended(process: subprocess.Popen[bytes], sampler: "_Sampler") -> float:
    """Wait for the end; the answer is the CPU that the process used, its libraries' threads too."""
    try:
        sampler.begin(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


class _Sampler:
    """A thread that looks at a process and at its walsender; its connection is open before."""

    def __init__(self, watched: Watched) -> None:
        self.peak_rss_bytes = 0
        self._slot = watched.slot
        self._connection = psycopg.connect(watched.dsn, autocommit=True)
        self._stop = Event()
        self._thread: Thread | None = None
        self._walsender: int | None = None
        self.walsender_cpu_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._connection.close()

    def begin(self, process_id: int) -> None:
        self._thread = Thread(target=self._sample, args=(process_id,), daemon=True)
        self._thread.start()

    def _sample(self, process_id: int) -> None:
        while not self._stop.wait(_SAMPLE_INTERVAL):
            self.peak_rss_bytes = max(self.peak_rss_bytes, _peak_rss_bytes(process_id))
            if self._walsender is None:
                row = self._connection.execute(_WALSENDER, [self._slot]).fetchone()
                self._walsender = row[0] if row is not None else None
            else:
                seconds = _cpu_seconds(self._walsender)
                self.walsender_cpu_seconds = max(self.walsender_cpu_seconds, seconds)


def _cpu_seconds(process_id: int) -> float:
    """User and system time of a process so far; 0 if it is gone."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # proc_pid_stat(5): the name, in parentheses, may hold spaces; utime and stime are 14 and 15.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


def _peak_rss_bytes(process_id: int) -> int:
    """The peak so far; 0 if it is gone.

    Not wait4's: that begins with the memory of the process that forked, this harness's 70 MB.
    """
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peaks[0]) * 1024 if peaks else 0


def _machine_cpu_seconds() -> float:
    times = psutil.cpu_times()
    # Time of guests is in `user` already.
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
