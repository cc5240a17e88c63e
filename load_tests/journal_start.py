"""`python -m load_tests.journal_start`: how long a start reads a long journal in a real S3 server.

Strategy: entries are put beside each other into a bucket of our own server. Only those behind the
newest state file say something, because no start reads the others. Then the journal is loaded some
times, as a start loads it.

    python -m load_tests.journal_start                    100,000 entries
    python -m load_tests.journal_start --entries 10000    fewer, for a try
"""

import argparse
import asyncio
import os
import sys
import time
from statistics import median

from prometheus_client import CollectorRegistry

from engine.destinations.s3 import S3ObjectStore
from engine.destinations.s3_settings import S3Settings
from engine.journal.entry import Durable, Writer
from engine.journal.journal import STATE_INTERVAL, Journal
from engine.model.interfaces import SourceIdentity
from engine.model.layout import journal_key, state_key
from engine.model.record import RecordConfiguration
from engine.operate.metrics import Metrics
from engine.servers.s3_server import REGION
from engine.servers.servers import EmbeddedS3
from engine.sources.synthetic import SyntheticSource, end_of

_BUCKET = "journal-start"
_PREFIX = "lake"
_PUTS_AT_ONCE = 32
_JSON = "application/json"
_COMMIT_TIME = "1970-01-02T00:00:00.000000Z"
_CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))


def _journal(store: S3ObjectStore, name: str) -> Journal:
    return Journal(store, _PREFIX, Writer(name, name, "test"), Metrics(CollectorRegistry()))


def _durable(transactions: int, seq: int) -> Durable:
    point = end_of(transactions)
    return Durable(point.position, point.resume, _COMMIT_TIME, seq)


async def _fill(store: S3ObjectStore, source: SourceIdentity, entries: int) -> None:
    """A journal of so many entries, with as many behind the newest state file as ever."""
    writer = _journal(store, "first")
    await writer.load()
    await writer.open(source, _CONFIGURATION, _durable(1, -1))
    writer.state.seq = covered = max(entries - STATE_INTERVAL - 1, 0)
    for number in range(2, STATE_INTERVAL + 2):
        await writer.append(durable=_durable(number, covered))
    keys = [journal_key(_PREFIX, seq) for seq in range(1, covered + 1)]
    keys += [state_key(_PREFIX, seq) for seq in range(STATE_INTERVAL, covered, STATE_INTERVAL)]
    places = asyncio.Semaphore(_PUTS_AT_ONCE)

    async def put(key: str) -> None:
        async with places:
            await store.create(key, b"{}", content_type=_JSON, metadata={}, in_one_request=True)

    for begin in range(0, len(keys), 1_000):
        async with asyncio.TaskGroup() as group:
            for key in keys[begin : begin + 1_000]:
                group.create_task(put(key))


async def _measure(endpoint_url: str, entries: int, rounds: int) -> list[float]:
    source = await SyntheticSource(row_count=1).identify()
    settings = S3Settings(
        bucket=_BUCKET, concurrency=_PUTS_AT_ONCE, region=REGION, endpoint_url=endpoint_url
    )
    seconds = []
    async with S3ObjectStore(settings) as store:
        await _fill(store, source, entries)
        for number in range(rounds):
            began = time.monotonic()
            successor = _journal(store, f"successor-{number}")
            await successor.load()
            seconds.append(time.monotonic() - began)
    return seconds


def main() -> int:
    """What the arguments say."""
    parser = argparse.ArgumentParser(description="A start's reading of a long journal.")
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with EmbeddedS3() as server:
        os.environ.update(server.environment)
        server.create_bucket(_BUCKET)
        found = asyncio.run(_measure(server.endpoint_url, arguments.entries, arguments.rounds))
    print(
        f"{arguments.entries} entries: read in {median(found):.2f} s"
        f" ({min(found):.2f} to {max(found):.2f}, {len(found)} rounds)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
