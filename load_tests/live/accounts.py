"""What a live run used, by the kernel's accounts: taken at its start, balanced at its end."""

import os
import time
from dataclasses import dataclass

from load_tests.processes import cpu_seconds, machine_cpu_seconds
from load_tests.run import Usage


@dataclass(frozen=True, slots=True)
class Account:
    """The figures at a run's start."""

    started_at: float
    s3_process_id: int | None
    """None where it cannot be seen from here."""
    s3_cpu_seconds: float
    machine_cpu_seconds: float
    load_average: float

    @classmethod
    def open(cls, s3_process_id: int | None) -> "Account":
        return cls(
            started_at=time.time(),
            s3_process_id=s3_process_id,
            s3_cpu_seconds=cpu_seconds(s3_process_id) if s3_process_id is not None else 0.0,
            machine_cpu_seconds=machine_cpu_seconds(),
            load_average=os.getloadavg()[0],
        )

    def balance(
        self, *, own_cpu_seconds: float, peak_rss_bytes: int, walsender_cpu_seconds: float | None
    ) -> Usage:
        """What was used since."""
        return Usage(
            started_at=self.started_at,
            wall_seconds=time.time() - self.started_at,
            own_cpu_seconds=own_cpu_seconds,
            peak_rss_bytes=peak_rss_bytes,
            walsender_cpu_seconds=walsender_cpu_seconds,
            s3_cpu_seconds=self._s3_cpu_seconds,
            machine_cpu_seconds=machine_cpu_seconds() - self.machine_cpu_seconds,
            load_average=self.load_average,
        )

    @property
    def _s3_cpu_seconds(self) -> float | None:
        if self.s3_process_id is None:
            return None
        return cpu_seconds(self.s3_process_id) - self.s3_cpu_seconds
