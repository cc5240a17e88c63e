"""The composition root: with `kinds` and `worker`, what names concrete classes.

Strategy: from a parsed configuration to a running pipeline, a look at what can be reached, or an
opened bucket. Nothing here decides anything about rows or the journal.
"""

import hashlib
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog
from prometheus_client import CollectorRegistry
from stamina.instrumentation import set_on_retry_hooks

from engine import __version__
from engine.config import (
    HTTP_TOKEN,
    Configuration,
    DestinationConfiguration,
    HttpConfiguration,
    PostgresConfiguration,
    SourceConfiguration,
    available_memory_bytes,
    read_secret,
    resolve_memory_limit,
    resolve_workers,
)
from engine.destinations.s3 import S3ObjectStore
from engine.flow.chunk import ChunkLimits
from engine.journal.bucket_rules import BucketRules
from engine.journal.entry import Writer
from engine.journal.settings import Settings
from engine.kinds import Reach, hash_key, measures_of, reach_of, record_configuration, s3_settings
from engine.lines.writer import CODEC_VERSION
from engine.model.check_code import BUCKET, DESCRIPTORS, MEMORY, CheckCode
from engine.model.errors import DestinationRefused
from engine.model.interfaces import ObjectStore, Publishing, Source
from engine.model.position import LOG_BEGIN, LogPosition
from engine.model.snapshot_source import SnapshotSource
from engine.model.trial import CheckStep, Finding, Judgement
from engine.operate import logs
from engine.operate.access import Access
from engine.operate.alarms import Alarms
from engine.operate.descriptors import engine_need, port_share, raise_limit
from engine.operate.http_server import HttpServer
from engine.operate.listener import ConnectionLimits
from engine.operate.loop_watch import LoopWatch
from engine.operate.metrics import Metrics
from engine.operate.room import descriptors_finding, descriptors_hint, memory_finding
from engine.operate.status import StatusProvider
from engine.pipeline.check import check as checked
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.pipeline.wiring import World
from engine.snapshot.coordinator import HELD_MAX, Coordinator
from engine.snapshot.crew import Crew, Workers
from engine.snapshot.progress import Progress
from engine.snapshot.settings import SnapshotSettings
from engine.sources.postgres.connections import NO_SNAPSHOTS, Demand
from engine.sources.postgres.giving_up import Holdings
from engine.sources.postgres.held import PostgresSnapshots
from engine.sources.postgres.publishing import PostgresPublishing
from engine.sources.postgres.source import PostgresSource
from engine.worker import DaskWorkers, LocalWorkers, work

_log = structlog.get_logger(__name__)

_SNAPSHOT_OBJECT_CHUNKS = 16
"""An object of a snapshot may be so many times as large as a chunk of the stream."""

_TASK_ENVIRONMENT = "ECS_CONTAINER_METADATA_URI_V4"


async def run(
    configuration: Configuration,
    *,
    stop: StopSignal,
    until_caught_up: bool = False,
    accept_gap: LogPosition = LOG_BEGIN,
    on_start: Callable[[StatusProvider], None] | None = None,
    source: Source | None = None,
) -> None:
    """Run one pipeline until `stop` is requested or, with `until_caught_up`, everything is durable.

    `on_start` is given the status provider before anything is connected. `source` stands in for the
    one that the configuration names. `accept_gap` names a loss that is accepted, by the place that
    was durable before it. Raises the TailraceError that ended it. Cancellation ends the
    pipeline at once, as a kill would: what was read and is not planned is forgotten, and the next
    engine reads it again.
    """
    # `engine.journal.retry` says itself what failed, less often.
    set_on_retry_hooks(())
    registry = CollectorRegistry()
    measures = source.measures if source is not None else measures_of(configuration.source.own)
    metrics = Metrics(
        registry,
        release=__version__,
        measures=measures,
        chunk_age_seconds=configuration.chunk.max_age_seconds,
    )
    alarms = Alarms(wall_clock, metrics)
    metrics.log_lines_dropped(logs.dropped_total)
    reach = reach_of(configuration.source.own)
    async with S3ObjectStore(s3_settings(configuration.destination)) as store:
        writer = _writer(configuration.engine.name)
        rules = _bucket_rules(configuration, store)
        coordinator = _coordinator(
            configuration,
            store,
            reach=reach,
            writer=writer,
            alarms=alarms,
            metrics=metrics,
            rules=rules,
        )
        pipeline = Pipeline(
            source=source or _source(configuration, reach, alarms),
            store=store,
            clock=wall_clock,
            settings=replace(
                pipeline_settings(configuration, is_until_caught_up=until_caught_up),
                accept_gap=accept_gap,
            ),
            configuration=record_configuration(configuration),
            writer=writer,
            metrics=metrics,
            stop=stop,
            alarms=alarms,
            take_snapshots=coordinator.run if coordinator is not None else None,
            publishing=_publishing(configuration, reach),
            snapshot_progress=coordinator.progress if coordinator is not None else None,
            snapshot_rows=coordinator.rows_total if coordinator is not None else None,
            bucket_rules=rules,
        )
        if on_start is not None:
            on_start(pipeline.status)
        limits = _connection_limits(configuration)
        port = HttpServer(
            configuration.http.listen,
            pipeline.status,
            registry,
            limits,
            access=_access(configuration.http),
            find_tables=pipeline.found_tables,
        )
        async with port:
            if port.address is not None:
                _log.info("status page", url=port.address.url)
            if logs.is_for_people(configuration.log):
                pipeline.observer.summarize(pipeline.status)
            with LoopWatch(metrics.loop_lag), pipeline.observer.observing():
                await pipeline.run()


async def check(configuration: Configuration) -> AsyncIterator[CheckStep]:
    """Try what `run` needs, one step at a time. Writes nothing but `_tailrace/check/` keys.

    Cancellation leaves those keys, which the next check takes for its own.
    """
    for code, found in _room(configuration):
        yield CheckStep.of(Judgement(code, found))
    reach = reach_of(configuration.source.own)
    source = _source(configuration, reach)
    metrics = Metrics(CollectorRegistry(), release=__version__, measures=source.measures)
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(
                S3ObjectStore(s3_settings(configuration.destination))
            )
        except DestinationRefused as error:
            yield CheckStep.of(Judgement(BUCKET, error))
            return
        world = World(
            source=source,
            store=store,
            clock=wall_clock,
            settings=pipeline_settings(configuration),
            configuration=record_configuration(configuration),
            writer=_writer(configuration.engine.name),
            metrics=metrics,
            alarms=Alarms(wall_clock),
            publishing=_publishing(configuration, reach),
            bucket_rules=_bucket_rules(configuration, store),
            store_trials=lambda: store.trials(_way(configuration.destination)),
            store_identity=store.identity,
        )
        async for step in checked(world, configuration.http.listen):
            yield step


def _room(configuration: Configuration) -> tuple[tuple[CheckCode, Finding], ...]:
    """Whether this machine has what the engine is told to take."""
    need = engine_need(configuration.destination.concurrency)
    buffered = resolve_memory_limit(configuration.engine.memory_limit)
    return (
        (DESCRIPTORS, descriptors_finding(raise_limit(), need)),
        (MEMORY, memory_finding(buffered, available_memory_bytes())),
    )


def _access(http: HttpConfiguration) -> Access:
    file = http.token_file
    return Access(http.token, partial(read_secret, HTTP_TOKEN, file) if file is not None else None)


@asynccontextmanager
async def open_bucket(destination: DestinationConfiguration) -> AsyncIterator[ObjectStore]:
    """The bucket alone, for commands that only read it.

    Leaving the block, also by cancellation, closes all connections to it.
    """
    # The reader says itself what failed, less often.
    set_on_retry_hooks(())
    async with S3ObjectStore(s3_settings(destination)) as store:
        yield store


def wall_clock() -> int:
    """Now, in Unix microseconds."""
    return time.time_ns() // 1000


def pipeline_settings(
    configuration: Configuration, *, is_until_caught_up: bool = False
) -> Settings:
    """The limits of `configuration`, as the pipeline takes them."""
    chunk, engine = configuration.chunk, configuration.engine
    return Settings(
        prefix=configuration.destination.prefix,
        bucket=configuration.destination.bucket,
        codec_version=CODEC_VERSION,
        limits=ChunkLimits(
            bytes_max=chunk.max_bytes,
            rows_max=chunk.max_rows,
            age_seconds_max=chunk.max_age_seconds,
        ),
        queue_bytes_max=configuration.queue.max_bytes,
        memory_bytes_max=resolve_memory_limit(engine.memory_limit),
        concurrency=configuration.destination.concurrency,
        append_interval=engine.append_interval_seconds,
        drain_seconds=engine.drain_seconds,
        is_until_caught_up=is_until_caught_up,
        stream_waits=_stream_waits(configuration.source),
        check_name=_check_name(configuration.destination),
    )


def _stream_waits(source: SourceConfiguration) -> bool:
    return source.snapshot != "never" and source.snapshot_order == "before"


def _coordinator(
    configuration: Configuration,
    store: ObjectStore,
    *,
    reach: Reach,
    writer: Writer,
    alarms: Alarms,
    metrics: Metrics,
    rules: BucketRules,
) -> Coordinator | None:
    """Who takes snapshots; None where nobody does."""
    source = configuration.source
    if source.snapshot == "never":
        return None
    workers = _workers(configuration)
    settings = SnapshotSettings(
        bucket=configuration.destination.bucket,
        prefix=configuration.destination.prefix,
        codec_version=CODEC_VERSION,
        bytes_max=_SNAPSHOT_OBJECT_CHUNKS * configuration.chunk.max_bytes,
        tables_max=source.snapshot_tables,
        rows_per_second=source.snapshot_rows_per_second / resolve_workers(source.snapshot_workers),
    )
    return Coordinator(
        source=_snapshots(configuration, reach, alarms),
        store=store,
        crew=Crew(workers, work),
        settings=settings,
        configuration=record_configuration(configuration),
        writer_id=writer.id,
        alarms=alarms,
        progress=Progress(metrics),
        rules=rules,
    )


def _bucket_rules(configuration: Configuration, store: S3ObjectStore) -> BucketRules:
    """What the bucket does by itself."""
    return BucketRules(
        store.rules,
        configuration.destination.prefix,
        is_staging=configuration.source.snapshot != "never",
    )


def _workers(configuration: Configuration) -> Workers:
    """Who reads ranges."""
    wanted = configuration.source.snapshot_workers
    if wanted.scheduler:
        return DaskWorkers(wanted.scheduler)
    return LocalWorkers(configuration, resolve_workers(wanted))


def _connection_limits(configuration: Configuration) -> ConnectionLimits:
    """What the port may hold: the engine's own descriptors come first."""
    limit, concurrency = raise_limit(), configuration.destination.concurrency
    need = engine_need(concurrency)
    if limit < need:
        _log.warning(
            "few file descriptors", count=limit, missing=need - limit, hint=descriptors_hint(need)
        )
    return ConnectionLimits(connections_max=port_share(limit, concurrency))


def _check_name(destination: DestinationConfiguration) -> str:
    return f"write-{_way(destination)}"


def _way(destination: DestinationConfiguration) -> str:
    """Another one for each way in which objects are made.

    Of a key that is taken a store may say so before it looks at the encryption key or the class.
    """
    ways = (
        destination.sse,
        destination.kms_key_id,
        destination.acl,
        destination.storage_class,
        destination.tags,
    )
    return hashlib.sha256(repr(ways).encode()).hexdigest()[:16]


def _writer(name: str) -> Writer:
    # On ECS the metadata address ends in the container's id: it names the task in the journal.
    metadata_uri = os.environ.get(_TASK_ENVIRONMENT, "")
    place = metadata_uri.rsplit("/", 1)[-1] or socket.gethostname()
    return Writer(id=secrets.token_hex(8), task=f"{name}@{place}", release=__version__)


# --- what each kind of source is made of: a new kind adds its case to each


def _source(configuration: Configuration, reach: Reach, alarms: Alarms | None = None) -> Source:
    match configuration.source.own:
        case PostgresConfiguration() as own:
            return PostgresSource(
                dsn=reach,
                slot=own.slot,
                configuration=record_configuration(configuration),
                alarms=alarms,
                batch_rows_max=configuration.chunk.max_rows,
                hash_key=hash_key(configuration),
                signals=configuration.source.signals,
                are_added_later=_are_added_later(configuration),
                demand=_demand(configuration),
            )


def holdings(configuration: Configuration) -> Holdings:
    """What the pipeline holds at its source, for who gives it up."""
    match configuration.source.own:
        case PostgresConfiguration() as own:
            return Holdings(reach_of(own), own.slot, record_configuration(configuration))


def _demand(configuration: Configuration) -> Demand:
    """What a run takes of its server beside the stream."""
    source = configuration.source
    if source.snapshot == "never":
        return NO_SNAPSHOTS
    workers = source.snapshot_workers
    return Demand(
        held_max=HELD_MAX,
        worker_count=None if workers.scheduler else resolve_workers(workers),
        is_adding=source.new_tables != "report",
    )


def _are_added_later(configuration: Configuration) -> bool:
    """Whether a table that is not published at the start is captured later with all its rows.

    Not where the stream waits for the initial snapshot, which has to have every table.
    """
    source = configuration.source
    is_captured = source.new_tables == "capture" and source.snapshot != "never"
    return is_captured and not _stream_waits(source)


def _publishing(configuration: Configuration, reach: Reach) -> Publishing | None:
    """Who lets tables arrive that appear later; None where they are only told of."""
    if configuration.source.new_tables == "report":
        return None
    match configuration.source.own:
        case PostgresConfiguration():
            return PostgresPublishing(dsn=reach, configuration=record_configuration(configuration))


def _snapshots(configuration: Configuration, reach: Reach, alarms: Alarms) -> SnapshotSource:
    match configuration.source.own:
        case PostgresConfiguration():
            return PostgresSnapshots(
                dsn=reach,
                configuration=record_configuration(configuration),
                alarms=alarms,
                segment_bytes=configuration.source.snapshot_segment_bytes,
            )
