"""One engine at work, observed: what a scenario's script is given.

Strategy: `observed` starts everything. When the script is done, it waits until all that was
committed is durable, stops the engine by SIGTERM, and has the bucket verified. So a script only
says what happens: which load, when the bucket stalls, what to measure in between.

Invariant: whatever ends the block, no process started here is left.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import psycopg

from engine.model.errors import first_cause
from engine.servers.fault_proxy import HttpFaultProxy
from engine.sources.postgres.lsn import parse_lsn
from load_tests.bucket_client import open_client
from load_tests.engine_process import EngineProcess, Pipeline, until
from load_tests.live import generator, livez_probe
from load_tests.live.accounts import Account
from load_tests.live.child import running
from load_tests.live.place import Ground, Place
from load_tests.live.sampler import Sampler
from load_tests.live.shape import Shape
from load_tests.live.tables import TableSet
from load_tests.live.visibility import Sight, read_sights
from load_tests.live.watcher import Watcher
from load_tests.measurement import RunFailed
from load_tests.result import Verification
from load_tests.run import Usage

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_DURABLE_SECONDS_MAX = 300.0
# Five times what a record takes on two quiet cores, and time to start.
_VERIFY_ROW_US_MAX = 20.0
_VERIFY_SECONDS_LEAST = 900.0
_PREFIXES_MAX = 32
"""Folders that are listed one by one. With more tables all is listed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is observed, and how. An interval of 0 means not at all."""

    tables: TableSet
    keys: Mapping[str, object] = field(default_factory=dict)
    """Of the engine's configuration, `section__key`."""
    backlog_rows: int = 0
    existing_rows: int = 0
    """Of a table that is full before the engine's slot is made: see `place.EXISTING`."""
    is_proxied: bool = False
    sample_seconds: float = 0.2
    probe_seconds: float = 0.02
    watch_seconds: float = 0.1


@dataclass(slots=True)
class Live:
    """The running engine and its observers."""

    order: Order
    ground: Ground
    pipeline: Pipeline
    engine: EngineProcess
    proxy: HttpFaultProxy | None
    """Between engine and bucket, where the order wants one."""
    sampler: Sampler
    watcher: Watcher
    client: "S3Client"
    account: Account
    start_seconds: float
    """From the engine's start until it streamed."""
    row_count: int
    """Committed so far, the backlog included."""
    _stack: AsyncExitStack
    snapshot_records: int = 0
    """What the script has had read by snapshots: in the bucket besides the rows."""
    loads: list["Load"] = field(default_factory=list)
    """Those that ended, and under which something was measured."""
    progress: list[generator.Progress] = field(default_factory=list)
    latencies: list[livez_probe.Latencies] = field(default_factory=list)
    sights: tuple[Sight, ...] = ()
    metrics_text: str = ""
    """The engine's, once everything was durable."""
    drain_seconds: float = 0.0
    usage: Usage | None = None
    """Once the engine has ended: without what comes after that."""
    verification: Verification | None = None

    @asynccontextmanager
    async def loading(
        self,
        shape: Shape,
        seconds: float,
        *,
        transactions_per_second: float,
        is_filling: bool = False,
    ) -> AsyncIterator["Load"]:
        """Write until `Load.finished`, or until the block's end.

        Where the load only fills tables, nothing is measured under it, and it may be late.
        Cancellation kills the writer.
        """
        order = generator.Order(
            dsn=self.ground.dsn,
            tables=self.ground.tables,
            shape=shape,
            seconds=seconds,
            transactions_per_second=transactions_per_second,
            first_row=self.row_count + 1,
        )
        async with running(generator.__name__, order) as child, asyncio.TaskGroup() as tasks:
            load = Load(order)
            reading = tasks.create_task(load.read(child.lines(), self.progress.append))
            yield load
            if not reading.done():
                child.finish()
            await reading
        self.row_count += load.newest.row_count
        if not is_filling:
            self.loads.append(load)

    async def stop(self) -> None:
        """Stop the engine by SIGTERM, which has to end well, and balance the account.

        Of an engine in another one's place only the memory is added, where that is more.
        Cancellation leaves the engine draining.
        """
        began = time.monotonic()
        peak_rss_bytes = self.engine.memory_bytes_max()
        await self.engine.stop()
        if self.usage is None:
            self.drain_seconds = time.monotonic() - began
            self.usage = self._balance(peak_rss_bytes)
        elif peak_rss_bytes > self.usage.peak_rss_bytes:
            self.usage = msgspec.structs.replace(self.usage, peak_rss_bytes=peak_rss_bytes)

    def _balance(self, peak_rss_bytes: int) -> Usage:
        last = self.sampler.last
        return self.account.balance(
            own_cpu_seconds=self.engine.cpu_seconds,
            # The sampler saw the drain too.
            peak_rss_bytes=max(peak_rss_bytes, last.peak_rss_bytes if last is not None else 0),
            walsender_cpu_seconds=last.walsender_cpu_seconds if last is not None else None,
        )

    async def restarted(self) -> float:
        """Stop the engine and start another in its place: after how many seconds that streamed.

        Cancellation leaves one of the two, or none; whoever observes kills it.
        """
        await self.stop()
        folder, name = self.engine.file.parent, f"{self.engine.name}-again"
        began = time.monotonic()
        self.engine = self._stack.enter_context(EngineProcess(self.pipeline, folder, name, "run"))
        await self.engine.reaches("streaming")
        return time.monotonic() - began

    async def rows_read(self, row_count: int, *, seconds: float = 60.0) -> float:
        """Wait until the engine has read so many rows: when it was seen to, in Unix time.

        Cancellation changes nothing.
        """

        async def look() -> float | None:
            last = self.sampler.last
            return last.at if last is not None and last.row_count >= row_count else None

        return await until(look, f"{row_count:,} rows read", seconds=seconds)

    async def settled(self) -> None:
        """Wait until all that is committed now is durable.

        Cancellation leaves at most a message in the log that stands for no row.
        """
        async with await psycopg.AsyncConnection.connect(
            self.ground.dsn, autocommit=True
        ) as connection:
            cursor = await connection.execute("SELECT pg_current_wal_flush_lsn()::text")
            row = await cursor.fetchone()
            assert row is not None, "a function has one row"
            # A transaction of no consequence: its end is a position past all of the others.
            await connection.execute("SELECT pg_logical_emit_message(true, 'load_tests', '')")
        written = parse_lsn(row[0])

        async def is_durable() -> bool:
            if not self.engine.is_running:
                raise RunFailed(f"the engine ended: {self.engine.complaint}")
            status = await self.engine.status()
            durable = status["durable_resume"] if status is not None else ""
            return bool(durable) and parse_lsn(durable) >= written

        await until(is_durable, f"all durable up to {row[0]}", seconds=_DURABLE_SECONDS_MAX)


@dataclass(slots=True)
class Load:
    """A load that is being written."""

    order: generator.Order
    newest: generator.Progress = field(
        default=generator.Progress(
            at=0, seconds=0, row_count=0, transaction_count=0, late_max_seconds=0
        )
    )
    _is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def finished(self) -> None:
        """Wait until all that is due was committed. Cancellation leaves it going on."""
        await self._is_over.wait()

    async def read(
        self, lines: AsyncIterator[bytes], keep: Callable[[generator.Progress], None]
    ) -> None:
        """Follow the generator to its end. Raises ChildFailed where that is not a good one.

        Cancellation keeps what was read.
        """
        async for line in lines:
            self.newest = msgspec.json.decode(line, type=generator.Progress)
            keep(self.newest)
        self._is_over.set()


@asynccontextmanager
async def observed(
    place: Place,
    name: str,
    order: Order,
    *,
    show: Callable[[str], None] = lambda _: None,
    keep: Callable[[Live], None] = lambda _: None,
) -> AsyncIterator[Live]:
    """Make the ground, start the engine and all observers; see the module.

    Raises RunFailed where the engine ends by itself, does not end well, or never gets there. `show`
    is told what goes on; `keep` is given all that was measured before it is verified, which takes
    long after a long run and may fail. Leaving, also by cancellation, ends the engine and all
    observers.
    """
    try:
        async with AsyncExitStack() as stack:
            live = await _started(place, name, order, stack, show)
            async with _observing(live):
                yield live
                show("waiting until everything is durable")
                await live.settled()
                live.metrics_text = await _metrics(live.engine)
            if order.watch_seconds:
                show("reading when each row was committed")
                await live.watcher.look_once_more()
                live.sights = await read_sights(
                    live.client, place.bucket.name, live.watcher.first_seen
                )
            keep(live)
            show("verifying what was published, record by record")
            live.verification = await _verified(live, place)
            await asyncio.to_thread(place.clear, live.ground)
    except BaseExceptionGroup as group:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # What else failed while everything was being ended is of no interest.
            raise asyncio.CancelledError from group
        error = first_cause(group)
        if isinstance(error, AssertionError | TimeoutError | OSError):
            raise RunFailed(f"{type(error).__name__}: {error}") from group
        raise error from group
    except (AssertionError, TimeoutError) as error:
        raise RunFailed(str(error)) from error


async def _started(
    place: Place, name: str, order: Order, stack: AsyncExitStack, show: Callable[[str], None]
) -> Live:
    show(f"preparing {order.tables.count:,} tables and {order.backlog_rows:,} rows")
    ground = await asyncio.to_thread(
        place.make_ground,
        name,
        order.tables,
        backlog_rows=order.backlog_rows,
        existing_rows=order.existing_rows,
    )
    proxy = HttpFaultProxy(place.s3_port) if order.is_proxied else None
    if proxy is not None:
        await stack.enter_async_context(proxy)
    client = await stack.enter_async_context(open_client(place.bucket))
    endpoint_url = place.bucket.endpoint_url if proxy is None else proxy.endpoint_url
    pipeline = place.pipeline(ground, endpoint_url, order.keys)
    account = Account.open(place.bucket.process_id)
    began = time.monotonic()
    engine = stack.enter_context(EngineProcess(pipeline, place.folder, name, "run"))
    await engine.reaches("streaming")
    few = order.tables.count <= _PREFIXES_MAX
    return Live(
        order=order,
        ground=ground,
        pipeline=pipeline,
        engine=engine,
        proxy=proxy,
        sampler=Sampler(
            engine, ground.dsn, ground.slot, place.database.is_local, order.sample_seconds
        ),
        watcher=Watcher(
            client,
            place.bucket.name,
            ground.folders if few else (ground.root,),
            order.watch_seconds,
        ),
        client=client,
        account=account,
        start_seconds=time.monotonic() - began,
        row_count=order.backlog_rows,
        _stack=stack,
    )


@asynccontextmanager
async def _observing(live: Live) -> AsyncIterator[None]:
    """All observers, and the engine's good end after the block: the sampler sees that too."""
    order = live.order
    async with asyncio.TaskGroup() as tasks:
        if order.sample_seconds:
            tasks.create_task(live.sampler.run())
        watching = tasks.create_task(live.watcher.run()) if order.watch_seconds else None
        if order.probe_seconds:
            probe = livez_probe.Order(
                port=live.engine.http_port, interval_seconds=order.probe_seconds
            )
            async with running(livez_probe.__name__, probe) as child:
                reading = tasks.create_task(_probed(child.lines(), live.latencies))
                yield
                child.finish()
                await reading
        else:
            yield
        await live.stop()
        if watching is not None:
            watching.cancel()


async def _probed(lines: AsyncIterator[bytes], found: list[livez_probe.Latencies]) -> None:
    async for line in lines:
        # As they come: what was found before a failure counts.
        found.append(msgspec.json.decode(line, type=livez_probe.Latencies))  # noqa: PERF401


async def _verified(live: Live, place: Place) -> Verification:
    arguments = ("verify", "--depth", "full", "--json")
    with EngineProcess(
        live.pipeline, place.folder, f"{live.engine.name}-verify", *arguments
    ) as process:
        due = live.row_count + live.snapshot_records
        seconds = max(_VERIFY_SECONDS_LEAST, due * _VERIFY_ROW_US_MAX / 1e6)
        await process.ended(seconds=seconds)
        text = process.output.read_text()
        verdict = json.loads(text) if text else {"ok": False, "rows": 0, "objects": 0}
        is_right = bool(verdict["ok"]) and verdict["rows"] == due
        expected = f"{live.row_count:,} rows were committed"
        if live.snapshot_records:
            expected = f"{expected}, and snapshots have {live.snapshot_records:,} records"
        return Verification(
            command=("tailrace", *arguments),
            depth="full",
            is_right=is_right,
            rows=verdict["rows"],
            rows_due=due,
            objects=verdict["objects"],
            text="" if is_right else f"{expected}; {text[:2000]}{process.log[-2000:]}",
        )


async def _metrics(engine: EngineProcess) -> str:
    answer = await engine.get("/metrics")
    return answer[1].decode() if answer is not None else ""
