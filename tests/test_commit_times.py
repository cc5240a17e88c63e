"""Commit times that a replication origin made up: kept in the record, bounded wherever else."""

import functools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from databases import Database
from engine.model.commit_time import BEFORE_DURABLE_US_MAX, within_reason
from engine.servers.servers import EmbeddedS3
from engine.sources.postgres.pgoutput import POSTGRES_EPOCH_US
from faults.rig import Rig, rigged
from load_tests.engine_process import EngineProcess, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

DAY_US = 24 * 3_600_000_000
NOW_US = 1_795_341_114_056_779
LAG_SECONDS_MAX = 600.0

any_times = st.integers(-(2**63), 2**63 - 1)
known_times = st.integers(0, 4_000_000_000_000_000)


@given(any_times, known_times, known_times)
def test_a_bounded_time_is_never_later_than_the_clock_and_never_long_before_what_is_durable(
    time_us: int, now_us: int, durable_us: int
) -> None:
    bounded = within_reason(time_us, now_us=now_us, durable_us=durable_us)

    assert bounded <= now_us
    assert bounded >= min(durable_us - BEFORE_DURABLE_US_MAX, now_us)


@pytest.mark.parametrize("days", [-29, -1, 0])
def test_a_late_origin_or_an_old_slot_is_believed(days: int) -> None:
    time_us = NOW_US + days * DAY_US

    assert within_reason(time_us, now_us=NOW_US, durable_us=NOW_US) == time_us


def test_an_engine_that_was_away_for_long_believes_the_log() -> None:
    time_us = NOW_US - 400 * DAY_US

    assert within_reason(time_us, now_us=NOW_US, durable_us=time_us - DAY_US) == time_us


# --- with a server


@pytest.fixture
async def rig(
    any_database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> AsyncIterator[Rig]:
    async with rigged(any_database, s3, bucket, s3_client, tmp_path) as rig:
        yield rig


# What a session sets that applies another server's changes; None: it sets no time, which is
# 2000-01-01.
TIMES = (None, "4713-01-01 00:00:01+00 BC", "-infinity", "9999-12-31 23:59:59.999999+00")
FAR_TIMES = ("294276-12-31 23:59:59.999999+00", "infinity", "0001-01-01 00:00:00+00 BC")
TIME_MAX_MS = (2**63 - 1) // 1000


def milliseconds(database: Database, time: str | None) -> int:
    """What the record says of a commit at `time`."""
    if time == "infinity":
        return TIME_MAX_MS
    if time == "-infinity":
        return (-(2**63) + POSTGRES_EPOCH_US) // 1000
    [(found,)] = database.execute(
        "SELECT floor(extract(epoch FROM %s::timestamptz) * 1000)::bigint",
        time or "2000-01-01 00:00:00+00",
    )
    return min(int(found), TIME_MAX_MS)


def apply(database: Database, number: int, time: str | None) -> None:
    """A transaction as logical replication applies it."""
    origin = f"origin_of_{database.name}"
    with database.connect(autocommit=False) as connection:
        connection.execute("SELECT pg_replication_origin_session_setup(%s)", (origin,))
        if time is not None:
            connection.execute(
                "SELECT pg_replication_origin_xact_setup(%s::pg_lsn, %s::timestamptz)",
                (f"0/{number + 1:X}", time),
            )
        connection.execute("INSERT INTO entries (account) VALUES (%s)", (str(number),))


async def has_looked(engine: EngineProcess) -> bool:
    status = await engine.status()
    return status is not None and status["lag_seconds"] is not None


@pytest.mark.timeout(300)
async def test_times_of_an_origin_are_kept_in_the_record_and_bounded_elsewhere(rig: Rig) -> None:
    rig.database.execute(
        "SELECT pg_replication_origin_create(%s)", f"origin_of_{rig.database.name}"
    )
    began = datetime.now(UTC).strftime("%Y-%m-%dT%H")
    engine = await rig.streaming()
    await until(functools.partial(has_looked, engine), "a look at where the log ends")
    for number, time in enumerate((*TIMES, *FAR_TIMES)):
        apply(rig.database, number, time)
        # Each is durable in turn: its time becomes the journal's, and the lag's.
        await rig.catch_up_with(engine)
        status = await engine.status()
        assert status is not None
        assert 0 <= status["lag_seconds"] < LAG_SECONDS_MAX
        assert 0 <= status["durable_lag_seconds"] < LAG_SECONDS_MAX
    await engine.stop()
    # And the state that follows can be read again.
    await rig.proven()

    look = await rig.image.look()
    hours = {plan["hour"] for plan in look.planned.values()}
    durable_times = [
        entry["durable"]["commit_time"] for entry in look.entries if "durable" in entry
    ]
    lines = b"".join(await rig.image.lines(list(look.planned))).splitlines()
    records = [json.loads(line) for line in lines]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H")
    assert all(began <= hour <= now for hour in hours)
    assert all(began <= time[:13] <= now for time in durable_times)
    assert [r["metadata"]["source_ts_ms"] for r in records] == [
        milliseconds(rig.database, time) for time in (*TIMES, *FAR_TIMES)
    ]
    rig.database.execute("SELECT pg_replication_origin_drop(%s)", f"origin_of_{rig.database.name}")


@pytest.mark.timeout(300)
async def test_a_plan_of_a_stale_time_is_redone_under_its_key(rig: Rig) -> None:
    rig.database.execute(
        "SELECT pg_replication_origin_create(%s)", f"origin_of_{rig.database.name}"
    )
    engine = await rig.streaming()
    with rig.proxy.blackout():
        apply(rig.database, 0, "0001-01-01 00:00:00+00 BC")
    engine.kill()
    await rig.aftermath()

    await rig.proven()

    rig.database.execute("SELECT pg_replication_origin_drop(%s)", f"origin_of_{rig.database.name}")
