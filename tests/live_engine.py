"""An engine in the test's own process: a real PostgreSQL, a bucket in memory, lives that end.

Cancelling a pipeline is like killing it: nothing of it goes on, and what it had begun is in doubt.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from configured import make_settings
from databases import Database
from engine.flow.chunk import ChunkLimits
from engine.journal.entry import JournalState, Planned, Writer, decode_entry
from engine.journal.settings import Settings
from engine.lines.writer import CODEC_VERSION
from engine.model.interfaces import ObjectStore
from engine.model.record import RecordConfiguration
from engine.operate.alarms import Alarms
from engine.operate.metrics import Metrics
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.reader.verify import Verdict, verify
from engine.sources.postgres.lsn import parse_lsn
from engine.sources.postgres.source import MEASURES, PostgresSource
from faults.twin import Changes, Comparison, Twin, compare, recorded_change
from load_tests.engine_process import until
from log_points import place
from memory_store import MemoryStore
from small_bucket import decompressed

PREFIX = "lake"
ALL_TABLES = RecordConfiguration(through="tailrace", tables=("public.*",))


class _Silent:
    def reached(self, phase: str, done: int, total: int | None) -> None:
        pass


def _wall_clock() -> int:
    return time.time_ns() // 1000


def settings_of(rows_max: int = 1 << 30, age_seconds_max: float = 0.2) -> Settings:
    """Short intervals, so that nothing waits for one."""
    return make_settings(
        prefix=PREFIX,
        codec_version=CODEC_VERSION,
        limits=ChunkLimits(1 << 30, rows_max, age_seconds_max),
        queue_bytes_max=1 << 20,
        memory_bytes_max=1 << 26,
        append_interval=0.05,
        standby_interval=0.1,
        idle_interval=0.2,
        watch_interval=0.2,
    )


@dataclass
class LiveEngine:
    """One pipeline on one database and one bucket: as many lives as the test wants."""

    database: Database
    settings: Settings = field(default_factory=settings_of)
    configuration: RecordConfiguration = ALL_TABLES
    store: MemoryStore = field(default_factory=MemoryStore)
    bucket: ObjectStore | None = None
    """A real one, in place of `store`: what the test reads of it, it reads itself."""
    look_seconds: float = 60.0
    lives: int = 0

    @asynccontextmanager
    async def living(self, *, is_killed: bool = False) -> AsyncIterator[Pipeline]:
        """A life, from before the block until its drain, or its kill, after it.

        Raises what ends it before, inside the block.
        """
        stop = StopSignal()
        pipeline = self._pipeline(stop)
        async with asyncio.TaskGroup() as group:
            life = group.create_task(pipeline.run())
            await _until(lambda: pipeline.status().phase == "streaming", life)
            yield pipeline
            if is_killed:
                life.cancel()
                with suppress(asyncio.CancelledError):
                    await life
            else:
                stop.request("test")

    async def killed_at(self, reached: asyncio.Event) -> None:
        """A life that is killed once `reached` is set. Raises what ends it before."""
        async with asyncio.TaskGroup() as group:
            life = group.create_task(self._pipeline(StopSignal()).run())
            await _until(reached.is_set, life)
            if not life.done():
                life.cancel()
                with suppress(asyncio.CancelledError):
                    await life

    def _pipeline(self, stop: StopSignal) -> Pipeline:
        self.lives += 1
        metrics = Metrics(CollectorRegistry(), measures=MEASURES)
        alarms = Alarms(_wall_clock, metrics)
        return Pipeline(
            source=PostgresSource(
                dsn=self.database.dsn,
                slot=self.database.name,
                configuration=self.configuration,
                wal_sender_timeout=2.0,
                look_seconds=self.look_seconds,
                alarms=alarms,
            ),
            store=self.bucket or self.store,
            clock=_wall_clock,
            settings=self.settings,
            configuration=self.configuration,
            writer=Writer(f"w{self.lives}", "test", "test"),
            metrics=metrics,
            stop=stop,
            alarms=alarms,
        )

    async def durable(self, pipeline: Pipeline) -> None:
        """Wait until what is committed now is durable."""
        [(text,)] = self.database.execute("SELECT pg_current_wal_insert_lsn()::text")
        self.database.execute("SELECT pg_logical_emit_message(true, 'test', '')")
        written = place(parse_lsn(text))
        await _until(lambda: pipeline.status().durable_position >= written)

    # --- what is in the bucket

    def journal(self) -> JournalState:
        """The journal, folded."""
        state = JournalState()
        for key in sorted(key for key in self.store.objects if "/journal/" in key):
            body = self.store.objects[key].body
            state.absorb(decode_entry(body, key), body)
        return state

    def planned(self) -> list[Planned]:
        """Every plan, first statements only, in order."""
        found: dict[str, Planned] = {}
        for key in sorted(key for key in self.store.objects if "/journal/" in key):
            for planned in decode_entry(self.store.objects[key].body, key).planned:
                found.setdefault(planned.key, planned)
        return list(found.values())

    def records(self, table: str) -> list[dict[str, Any]]:
        """A table's records in the order of their plans."""
        return [
            json.loads(line)
            for planned in self.planned()
            if planned.table == table
            for line in self._lines(planned.key)
        ]

    def _lines(self, key: str) -> list[bytes]:
        return decompressed(self.store.objects[key].body, key).splitlines()

    def schema(self, table: str, version: int) -> dict[str, Any]:
        """A version's schema.json; KeyError where there is none."""
        ending = f"table={table}/version={version:04d}/schema.json"
        [body] = [found.body for key, found in self.store.objects.items() if key.endswith(ending)]
        document: dict[str, Any] = json.loads(body)
        return document

    def changes(self) -> Changes:
        """Everything that was published, as a twin tells it."""
        tables = {planned.table for planned in self.planned()}
        return {table: [recorded_change(r) for r in self.records(table)] for table in tables}

    def compared(self, twin: Twin) -> Comparison:
        return compare(twin.changes(), self.changes())

    async def verdict(self) -> Verdict:
        store = self.bucket or self.store
        return await verify(store, PREFIX, depth="full", concurrency=4, progress=_Silent())

    async def proven(self) -> Verdict:
        """`verify` has nothing to say."""
        verdict = await self.verdict()
        assert verdict.problems == ()
        return verdict


async def _until(is_so: Callable[[], bool], life: asyncio.Task[None] | None = None) -> None:
    """Wait until `is_so`, or until `life` ended: its error is the group's."""

    async def look() -> bool:
        return is_so() or (life is not None and life.done())

    await until(look, "what is waited for")
