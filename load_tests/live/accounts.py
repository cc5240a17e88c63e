"""What a live run used, by the kernel's accounts: taken at its start, balanced at its end."""

import os
import time
from dataclasses import dataclass

import psutil

from load_tests.run import Usage


@dataclass(frozen=True, slots=True)
class Account:
    """The figures at a run's start."""

    started_at: float
    s3_process_id: int
    s3_cpu_seconds: float
    machine_cpu_seconds: float
    load_average: float

    @classmethod
    def open(cls, s3_process_id: int) -> "Account":
        return cls(
            started_at=time.time(),
            s3_process_id=s3_process_id,
            s3_cpu_seconds=_cpu_seconds(s3_process_id),
            machine_cpu_seconds=_machine_cpu_seconds(),
            load_average=os.getloadavg()[0],
        )

    def balance(
        self, *, own_cpu_seconds: float, peak_rss_bytes: int, walsender_cpu_seconds: float
    ) -> Usage:
        """What was used since."""
        return Usage(
            started_at=self.started_at,
            wall_seconds=time.time() - self.started_at,
            own_cpu_seconds=own_cpu_seconds,
            peak_rss_bytes=peak_rss_bytes,
            walsender_cpu_seconds=walsender_cpu_seconds,
            s3_cpu_seconds=_cpu_seconds(self.s3_process_id) - self.s3_cpu_seconds,
            machine_cpu_seconds=_machine_cpu_seconds() - self.machine_cpu_seconds,
            load_average=self.load_average,
        )


def _cpu_seconds(process_id: int) -> float:
    times = psutil.Process(process_id).cpu_times()
    return float(times.user + times.system)


def _machine_cpu_seconds() -> float:
    times = psutil.cpu_times()
    # Time of guests is in `user` already.
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
