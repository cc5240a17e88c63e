"""The engine over time: what it says about itself, what the kernel and the database say about it.

Strategy: `/status` is asked a few times a second. It costs the engine 0.2 ms, while `/metrics` of a
thousand tables costs 75. The kernel's figures are taken at the same moment. The database is asked
for the slot's lag less often. Nothing here is kept per row or per table.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import psycopg

from load_tests.engine_process import EngineProcess
from load_tests.processes import cpu_seconds
from load_tests.run import Series

_SLOT = """
SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), confirmed_flush_lsn)::float8, active_pid
FROM pg_replication_slots WHERE slot_name = %s
"""
_SLOT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment. `at` is Unix time; what the engine has no answer to is as it was before."""

    at: float
    rss_bytes: int
    peak_rss_bytes: int
    cpu_seconds: float
    descriptor_count: int
    row_count: int
    object_count: int
    queue_bytes: int
    queue_limit_bytes: int
    publishes_in_flight: int
    is_backpressure: bool
    slot_lag_bytes: float
    """What is written and not yet acknowledged, by the database's account."""
    walsender_cpu_seconds: float | None
    """None where it cannot be seen from here."""


@dataclass(slots=True)
class Sampler:
    """Samples of one engine."""

    engine: EngineProcess
    dsn: str
    slot: str
    is_local: bool
    interval_seconds: float
    samples: list[Sample] = field(default_factory=list)
    _slot_lag_bytes: float = 0.0
    _walsender_cpu_seconds: float | None = None

    async def run(self) -> None:
        """Look until the engine is gone. Cancellation leaves what was seen."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            slot_due = 0.0
            while self.engine.is_running:
                began = time.monotonic()
                if began >= slot_due:
                    slot_due = began + _SLOT_SECONDS
                    await self._look_at_slot(connection)
                await self._look()
                await asyncio.sleep(max(0.0, began + self.interval_seconds - time.monotonic()))

    async def _look(self) -> None:
        status = await self.engine.status()
        try:
            process = psutil.Process(self.engine.process_id)
            with process.oneshot():
                rss_bytes, times = process.memory_info().rss, process.cpu_times()
                descriptors = process.num_fds()
        except psutil.NoSuchProcess:
            return
        if status is None or not rss_bytes:
            return  # It starts, or ends.
        self.samples.append(
            Sample(
                at=time.time(),
                rss_bytes=rss_bytes,
                peak_rss_bytes=self.engine.memory_bytes_max(),
                cpu_seconds=times.user + times.system,
                descriptor_count=descriptors,
                row_count=status["rows_total"],
                object_count=status["objects_total"],
                queue_bytes=status["memory_used_bytes"],
                queue_limit_bytes=status["memory_limit_bytes"],
                publishes_in_flight=status["publishes_in_flight"],
                is_backpressure=status["backpressure"],
                slot_lag_bytes=self._slot_lag_bytes,
                walsender_cpu_seconds=self._walsender_cpu_seconds,
            )
        )

    async def _look_at_slot(
        self, connection: psycopg.AsyncConnection[tuple[float | None, int | None]]
    ) -> None:
        cursor = await connection.execute(_SLOT, [self.slot])
        row = await cursor.fetchone()
        if row is None:
            return
        self._slot_lag_bytes = row[0] or 0.0
        # A walsender that is gone takes its account with it: the last one seen stays.
        if self.is_local and row[1] is not None:
            before = self._walsender_cpu_seconds or 0.0
            self._walsender_cpu_seconds = max(before, cpu_seconds(row[1]))

    @property
    def last(self) -> Sample | None:
        return self.samples[-1] if self.samples else None

    def between(self, begin: float, end: float) -> tuple[Sample, ...]:
        """The samples of a stretch of Unix time."""
        return tuple(sample for sample in self.samples if begin <= sample.at <= end)

    def series(self, began: float) -> dict[str, Series]:
        """What the report plots, in seconds since `began`."""

        def of(text: str, unit: str, value: Callable[[Sample], float]) -> Series:
            times = tuple(round(sample.at - began, 3) for sample in self.samples)
            return Series(text=text, unit=unit, times=times, values=tuple(map(value, self.samples)))

        return {
            "rows_per_second": self._rates(began),
            "lag_bytes": of("written and not acknowledged", "bytes", lambda s: s.slot_lag_bytes),
            "queue_bytes": of("queue", "bytes", lambda s: s.queue_bytes),
            "rss_bytes": of("resident memory", "bytes", lambda s: s.rss_bytes),
            "descriptors": of("open descriptors", "count", lambda s: s.descriptor_count),
            "publishes_in_flight": of("publishes", "count", lambda s: s.publishes_in_flight),
            "backpressure": of("reading waits", "0 or 1", lambda s: float(s.is_backpressure)),
            "cpu_share": self._cpu_shares(began),
        }

    def _rates(self, began: float) -> Series:
        return _differences(
            self.samples, began, "rows read", "rows/s", lambda sample: sample.row_count
        )

    def _cpu_shares(self, began: float) -> Series:
        return _differences(
            self.samples, began, "engine's CPU", "cores", lambda sample: sample.cpu_seconds
        )


def _differences(
    samples: list[Sample], began: float, text: str, unit: str, value: Callable[[Sample], float]
) -> Series:
    """How fast a count grows, over about a second each."""
    times: list[float] = []
    values: list[float] = []
    before = samples[0] if samples else None
    for sample in samples:
        if before is not None and sample.at - before.at >= 1.0:
            times.append(round((sample.at + before.at) / 2 - began, 3))
            values.append((value(sample) - value(before)) / (sample.at - before.at))
            before = sample
    return Series(text=text, unit=unit, times=tuple(times), values=tuple(values))
