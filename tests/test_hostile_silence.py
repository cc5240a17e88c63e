"""A side that takes connections and never answers: the start ends and says which one it was."""

import asyncio
import socket
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from psycopg.conninfo import make_conninfo

from configured import make_settings
from databases import Database
from engine.app import wall_clock
from engine.flow.chunk import ChunkLimits
from engine.journal.entry import Writer
from engine.model.errors import DestinationUnavailable, SourceUnavailable
from engine.model.record import RecordConfiguration
from engine.operate.metrics import Metrics
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.sources.postgres.source import MEASURES, PostgresSource
from memory_store import MemoryStore

CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))
SETTINGS = make_settings(
    prefix="shop",
    codec_version=1,
    limits=ChunkLimits(1 << 20, 1000, 1.0),
    queue_bytes_max=1 << 20,
    memory_bytes_max=1 << 24,
)


async def never(_: str) -> None:
    await asyncio.Event().wait()


def pipeline_of(dsn: str, store: MemoryStore, start_seconds_max: float) -> Pipeline:
    return Pipeline(
        source=PostgresSource(dsn=dsn, slot="silence", configuration=CONFIGURATION),
        store=store,
        clock=wall_clock,
        settings=replace(SETTINGS, start_seconds_max=start_seconds_max),
        configuration=CONFIGURATION,
        writer=Writer("1", "test", "test"),
        metrics=Metrics(CollectorRegistry(), release="test", measures=MEASURES),
        stop=StopSignal(),
    )


async def test_a_silent_source_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        dsn = make_conninfo(host="127.0.0.1", port=port, connect_timeout=60)
        pipeline = pipeline_of(dsn, MemoryStore(), 0.5)

        with pytest.raises(SourceUnavailable, match="the source gave no answer") as caught:
            await pipeline.run()

    assert "source.dsn" in caught.value.hint


async def test_a_silent_bucket_is_named(database: Database) -> None:
    pipeline = pipeline_of(database.dsn, MemoryStore(before_list=never), 3.0)

    with pytest.raises(DestinationUnavailable, match="the bucket gave no usable") as caught:
        await pipeline.run()

    assert "destination.endpoint_url" in caught.value.hint
