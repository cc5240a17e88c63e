"""Statuses for the page's tests: what an engine may say, from a quiet hour to a bad one."""

import math
import time
from collections.abc import Sequence

from msgspec.structs import replace

from engine.operate.alarms import Alarm
from engine.operate.bucket_watch import BucketStatus
from engine.operate.events import Event
from engine.operate.history import History
from engine.operate.retention import Retention
from engine.operate.status import FoundTables, NotCaptured, SnapshotStatus, Status, TableStatus

GIB = 1 << 30
MIB = 1 << 20


def now_us() -> int:
    return time.time_ns() // 1000


def ago(seconds: float) -> int:
    return now_us() - int(seconds * 1e6)


def history(samples: int = 360, *, unread: float = 0.0, durable: float = 2.0) -> History:
    """Waves, the same each time. One stretch of the unread lag is not known."""
    waves = [0.6 + 0.4 * math.sin(number / 25) for number in range(samples)]
    return History(
        times_us=tuple(ago(10.0 * (samples - number)) for number in range(samples)),
        rows_per_second=tuple(round(4000 * wave, 1) for wave in waves),
        snapshot_rows_per_second=tuple(0.0 for _ in waves),
        bytes_per_second=tuple(round(360_000 * wave, 1) for wave in waves),
        lag_seconds=tuple(
            None if 100 <= number < 140 else round(unread * wave, 1)
            for number, wave in enumerate(waves)
        ),
        durable_lag_seconds=tuple(round(durable * wave, 1) for wave in waves),
    )


def table(number: int, name: str = "") -> TableStatus:
    return TableStatus(
        table=name or f"public.table_{number:04}",
        version=1 + number % 3,
        rows_total=3_000_000 // (number + 1),
        rows_per_second=round(3000 / (number + 1), 1),
        queue_bytes=2_000_000 // (number + 1),
        objects_total=100,
        last_object=f"shop/table=t{number}/version=0001/0001.00000000134EBCB0.{number:016X}.ndjson.gz",
        last_object_us=ago(number % 90),
        snapshot="finished",
    )


def progress(name: str, rows: int, estimate: int, left: float | None = 65.0) -> SnapshotStatus:
    return SnapshotStatus(
        table=name,
        rows=rows,
        rows_estimate=estimate,
        bytes=80 * rows,
        bytes_estimate=80 * estimate,
        ranges_done=8,
        ranges=20,
        seconds=100.0,
        rows_per_second=120_000.0 if left is not None else None,
        seconds_left=left,
    )


def good() -> Status:
    """All is well."""
    return Status(
        phase="streaming",
        since_us=ago(5400),
        release="0.1.0",
        writer_id="9f31c2d4a0b7e655",
        epoch=3,
        seq=48_211,
        source="postgres db.internal:5432/shop",
        lease="slot tailrace, publication tailrace",
        destination="s3://acme-data-lake-eu/streaming/shop",
        bucket=BucketStatus(
            name="acme-data-lake-eu",
            prefix="streaming/shop",
            state="good",
            last_success_us=ago(0.4),
            requests=2,
        ),
        durable_resume="0/134EBCB0",
        durable_commit_us=ago(2),
        read_resume="0/134F0010",
        lag_seconds=0.0,
        lag=0,
        durable_lag_seconds=1.4,
        durable_lag=183_000,
        lag_unit="bytes",
        retention=Retention(
            looked_us=now_us(), retained=48 * MIB, limit=10 * GIB, left=10 * GIB - 48 * MIB
        ),
        memory_used_bytes=9 * MIB,
        memory_limit_bytes=96 * MIB,
        process_memory_bytes=141 * MIB,
        tables=14,
        rows_total=12_482_113,
        objects_total=4512,
        bytes_total=1_300_000_000,
        publishes_in_flight=2,
        busiest=tuple(table(number) for number in range(14)),
        tables_total=14,
        snapshots_finished=14,
        events=(
            Event(ago(5400), "takeover", "", "this engine writes the journal, epoch 3"),
            Event(ago(3000), "schema-change", "public.orders", "version 2: column note added"),
            Event(ago(1800), "connection-lost", "", "the server closed the connection"),
            Event(ago(1797), "connection-back", "", "connected again"),
        ),
        history=history(),
    )


def bad() -> Status:
    """All that an operator may have to read: alarms, a pause, a limit, snapshots."""
    one = progress("public.table_0001", 6_200_000, 14_000_000)
    other = progress("public.table_0003", 90_000, 120_000, None)
    busiest = [table(number) for number in range(24)]
    busiest[1] = replace(busiest[1], snapshot="started", snapshot_progress=one)
    busiest[2] = replace(busiest[2], is_paused=True)
    busiest[3] = replace(busiest[3], snapshot="started", snapshot_progress=other)
    busiest[4] = replace(busiest[4], snapshot="wanted", version=0, last_object="", last_object_us=0)
    keyless = "ALTER TABLE public.audit REPLICA IDENTITY FULL;"
    return replace(
        good(),
        busiest=tuple(busiest),
        tables_total=24,
        tables_paused=("public.table_0002",),
        alarms=(
            Alarm("gap", "public.table_0007", "changes are missing", "tailrace resync", ago(7200)),
            Alarm("slot-limit", "", "the slot has 14 minutes left", "see why", ago(300)),
        ),
        alarms_total=3,
        not_captured=(NotCaptured("public.audit", "it has no primary key", keyless),),
        not_captured_total=1,
        lag_seconds=312.0,
        lag=8 * GIB,
        backpressure=True,
        memory_used_bytes=95 * MIB,
        retention=Retention(
            looked_us=now_us(), retained=9 * GIB, limit=10 * GIB, left=GIB, seconds_left=840.0
        ),
        snapshots=(one, other),
        snapshots_in_all=progress("", 6_290_000, 14_120_000),
        snapshots_unfinished=5,
        last_error="the newest error",
        last_error_hint="what mends it",
        events=tuple(
            Event(ago(60.0 * number), "alarm", f"public.t{number}", "gap: changes are missing")
            for number in range(30, 0, -1)
        ),
        history=history(unread=300.0, durable=9.0),
    )


def silent() -> Status:
    """The bucket takes connections and answers nothing."""
    bucket = BucketStatus(
        name="acme-data-lake-eu",
        prefix="streaming/shop",
        state="silent",
        last_success_us=ago(24),
        waiting_seconds=24.0,
        requests=17,
    )
    return replace(good(), bucket=bucket, durable_lag_seconds=24.0)


MANY = tuple(f"sales_{number % 7}.table_{number:04}" for number in range(2000))


def many() -> Status:
    """Two thousand tables, of which `/status` lists a hundred."""
    listed = tuple(table(number, name) for number, name in enumerate(MANY[:100]))
    return replace(good(), busiest=listed, tables=2000, tables_total=len(MANY))


def found(text: str) -> FoundTables:
    """What `/tables` says where `many` is the status."""
    names = [name for name in MANY if text in name]
    tables = tuple(table(number, name) for number, name in enumerate(names[:100]))
    return FoundTables(total=len(names), tables=tables)


HOSTILE: Sequence[str] = (
    "public.<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "public.\u202egnp.exe",
    "عربي.جدول",
    "public." + "very_long_name_" * 20,
    "public.a\0b\nc\x1b[31m",
    "javascript:window.hacked=1",
)


def hostile() -> Status:
    """Names that would act, wherever a name may stand."""
    worst = HOSTILE[1]
    return replace(
        good(),
        source=worst,
        lease=worst,
        destination=f"s3://lake/{worst}",
        last_error=worst,
        last_error_hint=worst,
        waits_for=worst,
        busiest=tuple(table(number, name) for number, name in enumerate(HOSTILE)),
        tables_total=len(HOSTILE),
        not_captured=tuple(NotCaptured(name, worst, worst) for name in HOSTILE),
        not_captured_total=len(HOSTILE),
        alarms=tuple(Alarm("gap", name, worst, name, now_us()) for name in HOSTILE),
        alarms_total=len(HOSTILE),
        events=tuple(Event(now_us(), "alarm", name, worst) for name in HOSTILE),
        snapshots=tuple(progress(name, 1, 2) for name in HOSTILE),
        snapshots_in_all=progress("", 7, 14),
        snapshots_unfinished=len(HOSTILE),
    )
