"""One process run from its start to its end, and everything that it used.

Strategy: the process's own CPU is what the kernel accounts to it at its end (wait4), so nothing of
it is lost. What must be seen while it lives (its memory, the walsender's CPU) is sampled from /proc
by a thread. The sampler asks the database who the walsender is until it knows, and nothing after
that.

Invariant: the process is in a session of its own and never outlives `measure`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Final, Self

import psycopg

from engine.model.errors import TailraceError
from engine.servers.server_process import log_tail
from load_tests.processes import (
    child_ids,
    cpu_seconds,
    machine_cpu_seconds,
    peak_rss_bytes,
    rss_bytes,
)
from load_tests.run import Series, Usage
from load_tests.servers import Bucket, Database

# When a process ends, the last sample is at most so old, which is below 1 % of a run of several
# seconds. A sample costs 0.1 ms.
_SAMPLE_INTERVAL: Final = 0.02
# Of the memory over time: one point a tenth of a second.
_SERIES_SAMPLES: Final = 5
_WALSENDER = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s"


class RunFailed(TailraceError):
    """A measured process did not end well; the message has its output's end."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Watched:
    """The servers whose CPU belongs to the run, and the slot that it reads, if it reads one."""

    bucket: Bucket
    database: Database | None = None
    slot: str = ""
    is_family: bool = False
    """Whether the process's children are looked at too."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A process that ended well. Its usage holds its children's CPU, but not their memory."""

    usage: Usage
    memory: Series
    child_peak_rss_bytes: int = 0
    """Of the largest child, where they were looked at."""


def measure(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path, watched: Watched
) -> Measured:
    """Run `command` to its end, its output going to `log`.

    Raises RunFailed unless it exits with 0. Interrupted, it kills the process before it raises.
    """
    s3 = watched.bucket.process_id
    with _Sampler(watched) as sampler, log.open("wb") as output:
        load_average = os.getloadavg()[0]
        s3_before = cpu_seconds(s3) if s3 is not None else 0.0
        machine_before = machine_cpu_seconds()
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
        machine_seconds = machine_cpu_seconds() - machine_before
        s3_seconds = cpu_seconds(s3) - s3_before if s3 is not None else None
    if process.returncode != 0:
        raise RunFailed(f"{command[0]} ended with code {process.returncode}{log_tail(log)}")
    usage = Usage(
        started_at=started_at,
        wall_seconds=wall_seconds,
        own_cpu_seconds=own_cpu_seconds,
        peak_rss_bytes=sampler.peak_rss_bytes,
        walsender_cpu_seconds=sampler.walsender_cpu_seconds,
        s3_cpu_seconds=s3_seconds,
        machine_cpu_seconds=machine_seconds,
        load_average=load_average,
    )
    return Measured(usage, sampler.memory, sampler.child_peak_rss_bytes)


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
        self.child_peak_rss_bytes = 0
        self._is_family = watched.is_family
        # None without a server, and for one elsewhere: its process cannot be seen from here.
        self.walsender_cpu_seconds: float | None = None
        self._slot = watched.slot
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        if watched.database is not None and watched.database.is_local:
            self.walsender_cpu_seconds = 0.0
            self._connection = watched.database.connect()
        self._stop = Event()
        self._thread: Thread | None = None
        self._walsender: int | None = None
        self._times: list[float] = []
        self._rss: list[float] = []

    @property
    def memory(self) -> Series:
        """Of the process over its life."""
        times, values = tuple(self._times), tuple(self._rss)
        return Series(text="memory (RSS)", unit="bytes", times=times, values=values)

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
        if self._connection is not None:
            self._connection.close()

    def begin(self, process_id: int) -> None:
        self._thread = Thread(target=self._sample, args=(process_id,), daemon=True)
        self._thread.start()

    def _sample(self, process_id: int) -> None:
        began, count = time.perf_counter(), 0
        while not self._stop.wait(_SAMPLE_INTERVAL):
            self.peak_rss_bytes = max(self.peak_rss_bytes, peak_rss_bytes(process_id))
            if count % _SERIES_SAMPLES == 0 and (found := rss_bytes(process_id)):
                self._times.append(round(time.perf_counter() - began, 3))
                self._rss.append(float(found))
                self._look_at_children(process_id)
            count += 1
            if self._connection is not None:
                self._look_at_walsender(self._connection)

    def _look_at_children(self, process_id: int) -> None:
        for child in child_ids(process_id) if self._is_family else ():
            self.child_peak_rss_bytes = max(self.child_peak_rss_bytes, peak_rss_bytes(child))

    def _look_at_walsender(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        if self._walsender is None:
            # A server that is going away ends this thread only: the run itself says what happened.
            with suppress(psycopg.Error):
                row = connection.execute(_WALSENDER, [self._slot]).fetchone()
                if row is not None and isinstance(row[0], int):
                    self._walsender = row[0]
        else:
            seconds = self.walsender_cpu_seconds or 0.0
            self.walsender_cpu_seconds = max(seconds, cpu_seconds(self._walsender))
