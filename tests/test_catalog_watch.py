"""Losses that the stream does not show, on real servers: each ends as a gap in the journal.

The whole pipeline runs here, over a bucket in memory, with short intervals.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import LiteralString

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.errors import Diagnostic

from configured import make_settings
from databases import Database
from engine.flow.chunk import ChunkLimits
from engine.journal.causes import GAP, NOT_CAPTURED
from engine.journal.entry import Gap, JournalState, Writer, decode_entry
from engine.journal.settings import Settings
from engine.lines.writer import CODEC_VERSION
from engine.model.check_code import POSITION, WATCH
from engine.model.interfaces import Publishing
from engine.model.position import LogPosition
from engine.model.record import RecordConfiguration
from engine.model.trial import CheckStep
from engine.operate.alarms import Alarms
from engine.operate.metrics import Metrics
from engine.pipeline.check import check
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.pipeline.wiring import TakeSnapshots, World
from engine.reader.verify import verify
from engine.sources.postgres.lsn import parse_lsn
from engine.sources.postgres.settings import SHAPING_SETTINGS
from engine.sources.postgres.source import MEASURES, PostgresSource
from engine.sources.postgres.stream import PostgresStream
from log_points import place
from memory_store import MemoryStore
from test_hostile_sessions import role_on

CONFIGURATION = RecordConfiguration(
    through="tailrace", tables=("public.*",), stream=SHAPING_SETTINGS
)
SETTINGS = make_settings(
    codec_version=CODEC_VERSION,
    limits=ChunkLimits(1 << 24, 1 << 20, 0.05),
    queue_bytes_max=1 << 20,
    memory_bytes_max=1 << 26,
    append_interval=0.05,
    idle_interval=0.1,
    watch_interval=0.1,
)
SLOW = replace(SETTINGS, watch_interval=1_000.0, idle_interval=1_000.0)


class SilentProgress:
    def reached(self, phase: str, done: int, total: int | None) -> None:
        pass


@dataclass
class Engine:
    """A pipeline that runs, and what it wrote."""

    pipeline: Pipeline
    store: MemoryStore
    alarms: Alarms
    metrics: Metrics
    task: asyncio.Task[None]
    stop: StopSignal

    def state(self) -> JournalState:
        """The journal, folded anew from its bytes."""
        state = JournalState()
        for key in sorted(key for key in self.store.objects if "/journal/" in key):
            content = self.store.objects[key].body
            state.absorb(decode_entry(content, key), content)
        return state

    def gaps(self) -> list[Gap]:
        return list(self.state().gaps.values())

    def reasons(self) -> set[tuple[str, str]]:
        return {(gap.table, gap.reason) for gap in self.gaps()}

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async with asyncio.timeout(60):
            while not condition():
                if self.task.done():
                    await self.task
                    raise AssertionError(f"the engine ended before {what}")
                await asyncio.sleep(0.02)

    async def looked(self) -> None:
        """Wait until everything that is committed now was looked at."""
        # The first of them may have begun before.
        count = self.judged_count + 2
        await self.until(lambda: self.judged_count >= count, "it looked")

    @property
    def judged_count(self) -> int:
        streaming = self.pipeline._streaming
        return streaming._watcher.judged_count if streaming is not None else 0

    def look_soon(self) -> None:
        streaming = self.pipeline._streaming
        assert streaming is not None
        streaming._watcher.want()

    def is_watching(self) -> bool:
        return self.judged_count > 0 and self.state().watch is not None

    async def gap(self, table: str, reason: str) -> Gap:
        def found() -> Gap | None:
            gaps = [gap for gap in self.gaps() if (gap.table, gap.reason) == (table, reason)]
            return gaps[-1] if gaps else None

        await self.until(lambda: found() is not None, f"{reason} of {table}; {self.gaps()}")
        gap = found()
        assert gap is not None
        return gap


@asynccontextmanager
async def running(
    database: Database,
    store: MemoryStore,
    *,
    configuration: RecordConfiguration = CONFIGURATION,
    settings: Settings = SETTINGS,
    dsn: str = "",
    publishing: Publishing | None = None,
    take_snapshots: TakeSnapshots | None = None,
    is_paused: bool = False,
) -> AsyncIterator[Engine]:
    """An engine that streams; at the end it drains. One that is paused judges no look."""
    clock = lambda: 1_800_000_000_000_000  # noqa: E731
    metrics, stop = Metrics(CollectorRegistry(), measures=MEASURES), StopSignal()
    alarms = Alarms(clock, metrics)
    pipeline = Pipeline(
        source=PostgresSource(
            dsn=dsn or database.dsn, slot=database.name, configuration=configuration, alarms=alarms
        ),
        store=store,
        clock=clock,
        settings=settings,
        configuration=configuration,
        writer=Writer("a", "test", "test"),
        metrics=metrics,
        stop=stop,
        alarms=alarms,
        publishing=publishing,
        take_snapshots=take_snapshots,
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pipeline.run())
        engine = Engine(pipeline, store, alarms, metrics, task, stop)
        if not is_paused:
            await engine.until(engine.is_watching, "its first look")
        yield engine
        stop.request("test")


def here(database: Database) -> LogPosition:
    [(lsn,)] = database.execute("SELECT pg_current_wal_insert_lsn()::text")
    return place(parse_lsn(lsn))


def make_orders(database: Database) -> None:
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, note text, amount int)")
    database.execute("CREATE TABLE lines (id int PRIMARY KEY)")


BEFORE = "INSERT INTO orders VALUES (1, 'before', 1)"
DURING = "INSERT INTO orders VALUES (2, 'during', 2)"

TOUCHED: list[tuple[str, list[LiteralString], str]] = [
    (
        "the operations, and back",
        [
            "ALTER PUBLICATION tailrace SET (publish = 'insert')",
            "UPDATE orders SET note = 'lost'",
            "ALTER PUBLICATION tailrace SET (publish = 'insert, update, delete, truncate')",
        ],
        "publication-altered",
    ),
    (
        "the table, and back",
        [
            "ALTER PUBLICATION tailrace DROP TABLE ONLY orders",
            DURING,
            "ALTER PUBLICATION tailrace ADD TABLE ONLY orders",
        ],
        "left-publication",
    ),
    (
        "via the root, and back",
        [
            "ALTER PUBLICATION tailrace SET (publish_via_partition_root = false)",
            DURING,
            "ALTER PUBLICATION tailrace SET (publish_via_partition_root = true)",
        ],
        "publication-altered",
    ),
    (
        "a row filter, and back",
        [
            "ALTER PUBLICATION tailrace SET TABLE ONLY orders WHERE (id > 100), ONLY lines",
            DURING,
            "ALTER PUBLICATION tailrace SET TABLE ONLY orders, ONLY lines",
        ],
        "left-publication",
    ),
    (
        "a column list, and back",
        [
            "ALTER PUBLICATION tailrace SET TABLE ONLY orders (id), ONLY lines",
            DURING,
            "ALTER PUBLICATION tailrace SET TABLE ONLY orders, ONLY lines",
        ],
        "left-publication",
    ),
]


def known_by(case: tuple[str, *tuple[object, ...]]) -> object:
    """A case by its name; lists of columns and filters of rows came with PostgreSQL 15."""
    name, *values = case
    is_of_15 = name.startswith(("row filter", "a row filter", "column list", "a column list"))
    return pytest.param(*values, id=name, marks=pytest.mark.since(15 if is_of_15 else 14))


@pytest.mark.parametrize(("statements", "reason"), [known_by(case) for case in TOUCHED])
async def test_what_was_altered_and_set_back_is_a_gap(
    any_database: Database, statements: list[LiteralString], reason: str
) -> None:
    make_orders(any_database)
    store = MemoryStore()
    async with running(any_database, store, settings=SLOW) as engine:
        any_database.execute(BEFORE)
        begin = here(any_database)
        # No look comes between them.
        for statement in statements:
            any_database.execute(statement)
        end = here(any_database)
        assert engine.gaps() == []

    async with running(any_database, store) as engine:
        gap = await engine.gap("public.orders", reason)

    assert gap.after <= begin
    assert gap.until >= end
    assert any_lines_gap(engine.gaps()) == (reason == "publication-altered")
    assert engine.alarms.is_set(GAP, "public.orders")
    verdict = await verify(store, "lake", depth="full", concurrency=4, progress=SilentProgress())
    assert verdict.is_ok
    assert gap in verdict.unmended_gaps


def any_lines_gap(gaps: list[Gap]) -> bool:
    return any(gap.table == "public.lines" for gap in gaps)


@pytest.mark.since(15)
async def test_a_keepalive_is_durable_only_behind_a_look(any_database: Database) -> None:
    make_orders(any_database)
    store = MemoryStore()
    async with running(
        any_database, store, settings=replace(SETTINGS, watch_interval=1_000.0)
    ) as engine:
        any_database.execute("ALTER PUBLICATION tailrace DROP TABLE ONLY orders")
        any_database.execute(DURING)
        lost = here(any_database)
        # Nothing that is published comes behind it: what arrives is keepalives.
        await engine.until(lambda: is_durable(engine.state(), lost), "durable behind the loss")

    for state in states_of(store):
        if is_durable(state, lost):
            assert [gap.table for gap in state.gaps.values()] == ["public.orders"]


def is_durable(state: JournalState, position: LogPosition) -> bool:
    return state.durable_position >= position


def states_of(store: MemoryStore) -> Iterator[JournalState]:
    """The journal as of each entry; the same object, folded on."""
    state = JournalState()
    for key in sorted(key for key in store.objects if "/journal/" in key):
        content = store.objects[key].body
        state.absorb(decode_entry(content, key), content)
        yield state


# --- a publication that is gone


@pytest.fixture(params=["dsn", "role"])
def deaf(request: pytest.FixtureRequest, database: Database) -> Iterator[str]:
    """The dsn of sessions that are told of errors alone: by its options, or by their role."""
    make_orders(database)
    if request.param == "dsn":
        yield f"{database.dsn} options='-c client_min_messages=error'"
        return
    with role_on(database) as role:
        for statement in (
            f"ALTER TABLE orders OWNER TO {role}",
            f"ALTER TABLE lines OWNER TO {role}",
            f"ALTER ROLE {role} SET client_min_messages = error",
        ):
            with database.connect() as connection:
                connection.execute(statement.encode())
        yield make_conninfo(database.dsn, user=role)


@pytest.mark.parametrize("hears", [False, True])
@pytest.mark.since(18)
async def test_a_publication_made_anew_behind_a_role_that_hears_no_warning_is_a_gap(
    database: Database,
    deaf: str,
    monkeypatch: pytest.MonkeyPatch,
    hears: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """Our sessions pin the setting; the comparison does without the warning all the same."""
    if not hears:
        monkeypatch.setattr(PostgresStream, "_notice", lambda _stream, _notice: None)
    store = MemoryStore()
    async with running(database, store, dsn=deaf) as engine:
        database.execute(BEFORE)
        begin = here(database)
        database.execute("DROP PUBLICATION tailrace")
        database.execute(DURING)
        database.execute(
            "CREATE PUBLICATION tailrace FOR TABLE orders, lines"
            " WITH (publish_via_partition_root = true)"
        )
        end = here(database)
        await engine.until(lambda: covers(engine, "public.orders", begin, end), "the gap")

    assert covers(engine, "public.lines", begin, end)
    assert engine.alarms.is_set(GAP, "public.orders")
    assert not engine.alarms.is_set(NOT_CAPTURED, "public.orders")


@pytest.mark.since(18)
async def test_the_servers_warning_wants_a_look_at_once(database: Database) -> None:
    make_orders(database)
    async with running(database, MemoryStore(), settings=SLOW) as engine:
        begin = here(database)
        database.execute("DROP PUBLICATION tailrace")
        database.execute(DURING)

        await engine.gap("public.orders", "not-published")

        alarms = [a for a in engine.alarms.standing() if a.code == NOT_CAPTURED]
        assert [alarm.subject for alarm in alarms] == ["public.lines", "public.orders"]
        assert alarms[0].hint.startswith('CREATE PUBLICATION "tailrace" FOR TABLE')
        assert engine.gaps()[0].after <= begin
        assert all(gap.is_open for gap in engine.gaps())


@pytest.mark.since(18)
async def test_a_start_without_the_publication_goes_on_and_says_so(database: Database) -> None:
    make_orders(database)
    store = MemoryStore()
    async with running(database, store):
        database.execute(BEFORE)
    begin = here(database)
    database.execute("DROP PUBLICATION tailrace")
    database.execute(DURING)

    async with running(database, store) as engine:
        await engine.gap("public.orders", "not-published")
        database.execute("CREATE PUBLICATION tailrace FOR TABLE orders, lines")
        end = here(database)
        await engine.until(lambda: covers(engine, "public.orders", begin, end), "its end")

        await engine.until(lambda: not engine.alarms.is_set(NOT_CAPTURED, "public.orders"), "over")


@pytest.mark.since(17)
async def test_another_warning_of_the_same_class_is_no_loss(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[tuple[str | None, str | None]] = []
    judge = PostgresStream._notice

    def hear(stream: PostgresStream, notice: Diagnostic) -> None:
        notices.append((notice.severity_nonlocalized, notice.sqlstate))
        judge(stream, notice)

    monkeypatch.setattr(PostgresStream, "_notice", hear)
    # `synchronized_standby_slots` names a standby that is down.
    make_orders(database)
    slots = "ALTER SYSTEM SET synchronized_standby_slots = 'standby_that_is_down'"
    try:
        database.execute("SELECT pg_create_physical_replication_slot('standby_that_is_down', true)")
        database.execute(slots)
        database.execute("SELECT pg_reload_conf()")
        async with running(database, MemoryStore()) as engine:
            database.execute(BEFORE)
            await engine.until(lambda: bool(notices), "the warning")

            assert notices[0] == ("WARNING", "55000")
            assert engine.gaps() == []
            database.execute("ALTER SYSTEM RESET synchronized_standby_slots")
            database.execute("SELECT pg_reload_conf()")
    finally:
        database.execute("ALTER SYSTEM RESET synchronized_standby_slots")
        database.execute("SELECT pg_reload_conf()")
        database.execute("SELECT pg_drop_replication_slot('standby_that_is_down')")


# --- what stands


STANDING: list[tuple[str, LiteralString, str, LiteralString]] = [
    (
        "operations",
        "ALTER PUBLICATION tailrace SET (publish = 'insert')",
        "operations",
        "ALTER PUBLICATION tailrace SET (publish = 'insert, update, delete, truncate')",
    ),
    (
        "membership",
        "ALTER PUBLICATION tailrace DROP TABLE ONLY orders",
        "not-published",
        "ALTER PUBLICATION tailrace ADD TABLE ONLY orders",
    ),
    (
        "row filter",
        "ALTER PUBLICATION tailrace SET TABLE ONLY orders WHERE (id > 100), ONLY lines",
        "row-filter",
        "ALTER PUBLICATION tailrace SET TABLE ONLY orders, ONLY lines",
    ),
    (
        "column list",
        "ALTER PUBLICATION tailrace SET TABLE ONLY orders (id), ONLY lines",
        "column-list",
        "ALTER PUBLICATION tailrace SET TABLE ONLY orders, ONLY lines",
    ),
]


@pytest.mark.parametrize(("statement", "reason", "back"), [known_by(case) for case in STANDING])
async def test_a_loss_that_stands_is_an_open_gap_until_it_is_mended(
    any_database: Database, statement: LiteralString, reason: str, back: LiteralString
) -> None:
    make_orders(any_database)
    async with running(any_database, MemoryStore()) as engine:
        begin = here(any_database)
        any_database.execute(statement)
        opened = await engine.gap("public.orders", reason)
        any_database.execute(DURING)
        assert engine.alarms.is_set(NOT_CAPTURED, "public.orders")

        # What the alarm says is what mends it.
        hints = [a.hint for a in engine.alarms.standing() if a.subject == "public.orders"]
        with any_database.connect() as connection:
            connection.execute(sql.SQL(hints[0]) if reason != "row-filter" else back)
        end = here(any_database)
        await engine.until(lambda: covers(engine, "public.orders", begin, end), "its end")

    assert opened.is_open
    gaps = [gap for gap in engine.gaps() if gap.table == "public.orders"]
    assert [(gap.number, gap.reason) for gap in gaps] == [(opened.number, reason)]
    assert not engine.alarms.is_set(NOT_CAPTURED, "public.orders")


@pytest.mark.since(15)
async def test_check_lists_what_stands_and_its_sql_until_it_is_mended(
    any_database: Database,
) -> None:
    make_orders(any_database)
    store = MemoryStore()
    async with running(any_database, store) as engine:
        any_database.execute(
            "ALTER PUBLICATION tailrace SET TABLE ONLY orders (id) WHERE (id > 100), ONLY lines"
        )
        await engine.gap("public.orders", "column-list")
    any_database.execute("ALTER TABLE lines DROP CONSTRAINT lines_pkey")
    stands = await checked(any_database, store)
    for step in stands.values():
        with any_database.connect() as connection:
            connection.execute(sql.SQL(step.hint.split(" or give it")[0]))
    async with running(any_database, store) as engine:
        await engine.until(lambda: all(not gap.is_open for gap in engine.gaps()), "their ends")
    after = await checked(any_database, store)

    assert list(stands) == ["not-captured", "writes-refused"]
    assert "leaves columns out that it had; the publication" in stands["not-captured"].detail
    assert "now WHERE (id > 100)" in stands["not-captured"].detail
    assert stands["not-captured"].detail.startswith("public.orders: ")
    # What was lost until then stays lost, because no snapshots are taken.
    assert list(after) == ["gap"]


async def checked(database: Database, store: MemoryStore) -> dict[str, CheckStep]:
    """What `check` says behind the source's own steps."""
    clock = lambda: 1_800_000_000_000_000  # noqa: E731
    world = World(
        source=PostgresSource(dsn=database.dsn, slot=database.name, configuration=CONFIGURATION),
        store=store,
        clock=clock,
        settings=SETTINGS,
        configuration=CONFIGURATION,
        writer=Writer("c", "test", "test"),
        metrics=Metrics(CollectorRegistry(), measures=MEASURES),
        alarms=Alarms(clock),
    )
    steps = [step async for step in check(world, None)]
    return {
        step.code.name: step
        for step in steps
        if step.code.id.startswith("TR-JN") and step.code.id >= WATCH.id and step.code != POSITION
    }


async def test_an_open_gap_is_one_gap_over_restarts(any_database: Database) -> None:
    make_orders(any_database)
    store = MemoryStore()
    async with running(any_database, store) as engine:
        any_database.execute("ALTER PUBLICATION tailrace DROP TABLE ONLY orders")
        await engine.gap("public.orders", "not-published")
    async with running(any_database, store) as engine:
        await engine.until(lambda: engine.alarms.is_set(NOT_CAPTURED, "public.orders"), "a look")
        any_database.execute("ALTER PUBLICATION tailrace ADD TABLE ONLY orders")
        await engine.until(lambda: not engine.gaps()[0].is_open, "the gap's end")

    assert len(engine.gaps()) == 1


@pytest.mark.since(15)
async def test_what_is_left_out_from_the_start_is_agreed_but_for_whole_tables(
    any_database: Database,
) -> None:
    make_orders(any_database)
    any_database.execute("CREATE TABLE other (id int)")
    any_database.execute(
        "CREATE PUBLICATION tailrace FOR TABLE orders (id) WHERE (id > 5), lines"
        " WITH (publish = 'insert, update')"
    )

    async with running(any_database, MemoryStore()) as engine:
        await engine.gap("public.other", "not-published")
        hint = engine.alarms.standing()[0].hint

    assert engine.reasons() == {("public.other", "not-published")}
    assert hint == (
        'ALTER TABLE "public"."other" REPLICA IDENTITY FULL;'
        ' ALTER PUBLICATION "tailrace" ADD TABLE ONLY "public"."other";'
    )


async def test_a_table_left_out_for_want_of_a_replica_identity_is_a_gap_from_the_start(
    any_database: Database,
) -> None:
    make_orders(any_database)
    any_database.execute("CREATE TABLE keyless (note text)")

    async with running(any_database, MemoryStore()) as engine:
        gap = await engine.gap("public.keyless", "not-published")

    assert engine.reasons() == {("public.keyless", "not-published")}
    assert gap.is_open


# --- tables that come, go, and change their names


async def test_a_new_table_that_is_not_published_is_a_gap(any_database: Database) -> None:
    make_orders(any_database)
    async with running(any_database, MemoryStore()) as engine:
        begin = here(any_database)
        any_database.execute("CREATE TABLE invoices (id int PRIMARY KEY)")
        any_database.execute("INSERT INTO invoices VALUES (1)")
        gap = await engine.gap("public.invoices", "not-published")

    assert gap.after <= begin
    assert engine.reasons() == {("public.invoices", "not-published")}


async def test_a_table_that_was_made_before_it_was_added_is_a_gap(
    any_database: Database,
) -> None:
    make_orders(any_database)
    store = MemoryStore()
    async with running(any_database, store, settings=SLOW):
        any_database.execute("CREATE TABLE late (id int PRIMARY KEY)")
        any_database.execute("INSERT INTO late VALUES (1)")
        any_database.execute("ALTER PUBLICATION tailrace ADD TABLE ONLY late")
        with any_database.connect(autocommit=False) as connection:
            # What is written before the ALTER is not sent, and nothing in the catalog tells.
            connection.execute("CREATE TABLE born (id int PRIMARY KEY)")
            connection.execute("INSERT INTO born VALUES (1)")
            connection.execute("ALTER PUBLICATION tailrace ADD TABLE ONLY born")

    async with running(any_database, store) as engine:
        await engine.gap("public.late", "published-late")
        await engine.gap("public.born", "published-late")

    assert engine.reasons() == {
        ("public.late", "published-late"),
        ("public.born", "published-late"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "FOR ALL TABLES",
        pytest.param("FOR TABLES IN SCHEMA public", marks=pytest.mark.since(15)),
    ],
)
async def test_new_tables_of_a_publication_of_all_lose_nothing(
    any_database: Database, kind: LiteralString
) -> None:
    make_orders(any_database)
    any_database.execute("CREATE PUBLICATION tailrace " + kind)
    async with running(any_database, MemoryStore()) as engine:
        any_database.execute("CREATE TABLE invoices (id int PRIMARY KEY)")
        any_database.execute("ALTER TABLE lines RENAME TO positions")
        any_database.execute("CREATE TABLE lines (id int PRIMARY KEY)")
        await engine.looked()

    assert engine.gaps() == []


@pytest.mark.since(15)
async def test_a_schema_that_left_a_publication_and_came_back_is_a_gap(
    any_database: Database,
) -> None:
    make_orders(any_database)
    store = MemoryStore()
    any_database.execute("CREATE PUBLICATION tailrace FOR TABLES IN SCHEMA public")
    async with running(any_database, store, settings=SLOW):
        any_database.execute("ALTER PUBLICATION tailrace DROP TABLES IN SCHEMA public")
        any_database.execute(DURING)
        any_database.execute("ALTER PUBLICATION tailrace ADD TABLES IN SCHEMA public")

    async with running(any_database, store) as engine:
        await engine.gap("public.orders", "left-publication")


async def test_names_that_change_lose_nothing_but_the_rows_place(any_database: Database) -> None:
    make_orders(any_database)
    async with running(any_database, MemoryStore()) as engine:
        any_database.execute(BEFORE)
        any_database.execute("ALTER TABLE orders RENAME TO orders_old")
        any_database.execute("ALTER TABLE lines RENAME TO orders")
        any_database.execute("ALTER TABLE orders_old RENAME TO lines")
        await engine.looked()

    assert engine.reasons() >= {("public.lines", "renamed")}
    assert {reason for _, reason in engine.reasons()} == {"renamed"}


async def test_a_table_dropped_or_made_anew_without_a_row_is_a_gap(any_database: Database) -> None:
    make_orders(any_database)
    any_database.execute("CREATE TABLE empty (id int PRIMARY KEY)")
    any_database.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    async with running(any_database, MemoryStore()) as engine:
        any_database.execute("INSERT INTO lines VALUES (1)")
        any_database.execute(BEFORE)
        await engine.until(lambda: len(engine.state().frontiers) == 2, "both tables' rows")
        any_database.execute("DROP TABLE lines, empty")
        with any_database.connect(autocommit=False) as connection:
            connection.execute("DROP TABLE orders")
            connection.execute("CREATE TABLE orders (id int PRIMARY KEY)")
        await engine.gap("public.lines", "table-dropped")
        await engine.gap("public.orders", "table-remade")

    # The table that never had a row loses nothing.
    assert engine.reasons() == {
        ("public.lines", "table-dropped"),
        ("public.orders", "table-remade"),
    }


@pytest.mark.parametrize("is_restart", [False, True])
async def test_a_table_that_is_made_and_dropped_between_two_looks_is_a_gap(
    any_database: Database,
    is_restart: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    make_orders(any_database)
    any_database.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    store = MemoryStore()
    async with running(any_database, store, settings=SLOW) as engine:
        any_database.execute("CREATE TABLE short (id int PRIMARY KEY)")
        any_database.execute("INSERT INTO short VALUES (1)")
        await engine.until(lambda: "public.short" in engine.state().frontiers, "its rows")
        any_database.execute("DROP TABLE short")
        if not is_restart:
            count = engine.judged_count
            engine.look_soon()
            await engine.until(lambda: engine.judged_count > count, "a look")
            # The transactions that a look lacks are those that run beside it.
            engine.look_soon()
            await engine.gap("public.short", "table-dropped")
    if is_restart:
        async with running(any_database, store) as engine:
            await engine.gap("public.short", "table-dropped")

    assert engine.reasons() == {("public.short", "table-dropped")}


async def test_a_table_that_was_unlogged_for_a_while_is_a_gap(any_database: Database) -> None:
    make_orders(any_database)
    any_database.execute("CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY)")
    any_database.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    async with running(any_database, MemoryStore()) as engine:
        assert engine.gaps() == []
        any_database.execute("ALTER TABLE orders SET UNLOGGED")
        await engine.gap("public.orders", "not-logged")
        any_database.execute("ALTER TABLE orders SET LOGGED")
        await engine.until(lambda: not engine.gaps()[0].is_open, "the gap's end")
        any_database.execute("ALTER TABLE scratch SET LOGGED")
        await engine.gap("public.scratch", "made-logged")


async def test_another_selection_of_tables_is_no_loss(any_database: Database) -> None:
    make_orders(any_database)
    store = MemoryStore()
    fewer = replace_tables("public.orders")
    async with running(any_database, store):
        any_database.execute(BEFORE)
    async with running(any_database, store, configuration=fewer) as engine:
        await engine.looked()
    async with running(any_database, store) as engine:
        any_database.execute("INSERT INTO lines VALUES (1)")
        await engine.looked()

    assert engine.gaps() == []


def replace_tables(*tables: str) -> RecordConfiguration:
    return msgspec.structs.replace(CONFIGURATION, tables=tables)


# --- partitions


def make_partitioned(database: Database) -> None:
    database.execute("CREATE TABLE sales (id int, region int) PARTITION BY LIST (region)")
    database.execute("ALTER TABLE sales REPLICA IDENTITY FULL")
    for statement in (
        "CREATE TABLE sales_1 PARTITION OF sales FOR VALUES IN (1)",
        "CREATE TABLE sales_2 PARTITION OF sales FOR VALUES IN (2) PARTITION BY HASH (id)",
        "CREATE TABLE sales_21 PARTITION OF sales_2 FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    ):
        database.execute(statement)
    database.execute("ALTER TABLE sales_1 REPLICA IDENTITY FULL")
    database.execute("ALTER TABLE sales_21 REPLICA IDENTITY FULL")


PARTITIONED: list[tuple[str, list[LiteralString], str]] = [
    (
        "attached with rows",
        [
            "CREATE TABLE sales_3 (LIKE sales)",
            "INSERT INTO sales_3 VALUES (1, 3)",
            "ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3)",
        ],
        "partitions",
    ),
    (
        "loaded and attached at once",
        [
            """BEGIN; CREATE TABLE sales_3 (LIKE sales); INSERT INTO sales_3 VALUES (1, 3);
            ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3); COMMIT"""
        ],
        "partitions",
    ),
    (
        "attached with rows, and altered at once",
        [
            "CREATE TABLE sales_3 (LIKE sales)",
            "INSERT INTO sales_3 VALUES (1, 3)",
            """BEGIN; ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3);
            ALTER TABLE sales_3 ALTER id SET STATISTICS 10; COMMIT""",
        ],
        "partitions",
    ),
    (
        "attached with rows, and more columns at once",
        [
            "CREATE TABLE sales_3 (LIKE sales)",
            "INSERT INTO sales_3 VALUES (1, 3)",
            """BEGIN; ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3);
            ALTER TABLE sales ADD note text; COMMIT""",
        ],
        "partitions",
    ),
    ("detached", ["ALTER TABLE sales DETACH PARTITION sales_1"], "partitions"),
    ("dropped", ["DROP TABLE sales_21"], "partitions"),
    ("a leaf is truncated", ["TRUNCATE sales_21"], "partition-rewritten"),
]


@pytest.mark.parametrize(
    ("statements", "reason"), [c[1:] for c in PARTITIONED], ids=[c[0] for c in PARTITIONED]
)
async def test_what_happens_to_partitions_behind_the_stream_is_a_gap_of_their_root(
    any_database: Database, statements: list[LiteralString], reason: str
) -> None:
    make_partitioned(any_database)
    async with running(
        any_database, MemoryStore(), configuration=replace_tables("public.sales")
    ) as engine:
        begin = here(any_database)
        for statement in statements:
            any_database.execute(statement)
        end = here(any_database)
        gap = await engine.gap("public.sales", reason)

    assert gap.after <= begin
    assert gap.until >= end
    assert engine.reasons() == {("public.sales", reason)}


async def test_a_partition_made_as_one_and_a_truncated_root_are_no_loss(
    any_database: Database,
) -> None:
    make_partitioned(any_database)
    async with running(
        any_database, MemoryStore(), configuration=replace_tables("public.sales")
    ) as engine:
        any_database.execute(
            """BEGIN; CREATE TABLE sales_3 PARTITION OF sales FOR VALUES IN (3);
            ALTER TABLE sales_3 ALTER id SET STATISTICS 10; COMMIT"""
        )
        any_database.execute("INSERT INTO sales VALUES (1, 3)")
        await engine.looked()
        any_database.execute("TRUNCATE sales")
        any_database.execute("INSERT INTO sales VALUES (1, 3)")
        await engine.looked()

    assert engine.gaps() == []


async def test_partitions_that_come_under_their_own_names_stand_until_the_root_is_back(
    any_database: Database,
) -> None:
    make_partitioned(any_database)
    async with running(
        any_database, MemoryStore(), configuration=replace_tables("public.sales")
    ) as engine:
        any_database.execute("ALTER PUBLICATION tailrace SET (publish_via_partition_root = false)")
        opened = await engine.gap("public.sales", "via-root")
        [alarm] = [a for a in engine.alarms.standing() if a.code == NOT_CAPTURED]
        any_database.execute("INSERT INTO sales VALUES (1, 1)")
        with any_database.connect() as connection:
            connection.execute(sql.SQL(alarm.hint))
        await engine.until(lambda: not engine.gaps()[0].is_open, "the gap's end")
        await engine.looked()

    assert opened.is_open
    assert alarm.text.endswith("publishes partitions under their own names")
    assert engine.reasons() == {("public.sales", "via-root")}


async def test_a_partition_that_is_made_unlogged_is_a_gap_until_it_is_logged(
    any_database: Database,
) -> None:
    make_partitioned(any_database)
    any_database.execute("ALTER TABLE sales_21 SET UNLOGGED")
    async with running(
        any_database, MemoryStore(), configuration=replace_tables("public.sales")
    ) as engine:
        await engine.looked()
        # What is so from the start is agreed; `check` warns of it.
        assert engine.gaps() == []
        any_database.execute("ALTER TABLE sales_1 SET UNLOGGED")
        any_database.execute("CREATE UNLOGGED TABLE sales_3 PARTITION OF sales FOR VALUES IN (3)")
        opened = await engine.gap("public.sales", "not-logged")
        await engine.looked()
        [alarm] = [a for a in engine.alarms.standing() if a.code == NOT_CAPTURED]
        with any_database.connect() as connection:
            connection.execute(sql.SQL(alarm.hint))
        await engine.until(lambda: not engine.gaps()[0].is_open, "the gap's end")

    assert opened.is_open
    assert "the partition public.sales_1 is unlogged" in alarm.text
    assert "the partition public.sales_3 is unlogged" in alarm.text
    assert "sales_21" not in alarm.text + alarm.hint
    assert engine.reasons() == {("public.sales", "not-logged")}


async def test_a_partition_that_is_a_foreign_table_is_a_gap_until_it_is_detached(
    any_database: Database,
) -> None:
    with any_database.connect() as connection:
        for statement in (
            "CREATE TABLE sales (id int, region int) PARTITION BY LIST (region)",
            "ALTER TABLE sales REPLICA IDENTITY FULL",
            "CREATE FOREIGN DATA WRAPPER far",
            "CREATE SERVER far FOREIGN DATA WRAPPER far",
            "CREATE FOREIGN TABLE sales_1 PARTITION OF sales FOR VALUES IN (1) SERVER far",
            "CREATE PUBLICATION tailrace FOR TABLE sales WITH (publish_via_partition_root = true)",
        ):
            connection.execute(statement.encode())
    async with running(
        any_database, MemoryStore(), configuration=replace_tables("public.sales")
    ) as engine:
        await engine.looked()
        # What is so from the start is agreed; `check` warns of it.
        assert engine.gaps() == []
        any_database.execute(
            "CREATE FOREIGN TABLE sales_2 PARTITION OF sales FOR VALUES IN (2) SERVER far"
        )
        opened = await engine.gap("public.sales", "not-logged")
        await engine.looked()
        [alarm] = [a for a in engine.alarms.standing() if a.code == NOT_CAPTURED]
        with any_database.connect() as connection:
            connection.execute(sql.SQL(alarm.hint))
        await engine.until(
            lambda: all(not gap.is_open for gap in engine.gaps()), "the end of the gaps"
        )

    assert opened.is_open
    assert "the partition public.sales_2 is a foreign table" in alarm.text
    assert "sales_1" not in alarm.text + alarm.hint


async def test_a_partition_under_its_own_name_that_is_dropped_is_a_gap(
    any_database: Database,
) -> None:
    make_partitioned(any_database)
    any_database.execute("CREATE PUBLICATION tailrace FOR TABLE sales")
    store = MemoryStore()
    async with running(any_database, store) as engine:
        any_database.execute("INSERT INTO sales VALUES (1, 1), (2, 2)")
        await engine.until(lambda: len(engine.state().frontiers) == 2, "their rows")
        await engine.looked()
        assert engine.gaps() == []
        any_database.execute("DROP TABLE sales_1")
        await engine.gap("public.sales_1", "table-dropped")
    any_database.execute("DROP TABLE sales_2")
    async with running(any_database, store) as engine:
        await engine.gap("public.sales_21", "table-dropped")

    assert engine.reasons() == {
        ("public.sales_1", "table-dropped"),
        ("public.sales_21", "table-dropped"),
    }


EMPTY_ATTACHED: list[tuple[str, list[LiteralString]]] = [
    (
        "like the root",
        [
            "CREATE TABLE sales_3 (LIKE sales INCLUDING ALL, PRIMARY KEY (id, region))",
            "ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3)",
        ],
    ),
    (
        "made and attached at once",
        [
            """BEGIN; CREATE TABLE sales_3 (LIKE sales); INSERT INTO sales_3 VALUES (1, 3);
            ROLLBACK; BEGIN; CREATE TABLE sales_3 (LIKE sales);
            ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3); COMMIT"""
        ],
    ),
]


@pytest.mark.parametrize(
    "statements", [case[1] for case in EMPTY_ATTACHED], ids=[case[0] for case in EMPTY_ATTACHED]
)
async def test_an_attached_partition_that_never_had_a_row_is_no_loss(
    any_database: Database, statements: list[LiteralString]
) -> None:
    make_partitioned(any_database)
    store, configuration = MemoryStore(), replace_tables("public.sales")
    async with running(any_database, store, configuration=configuration) as engine:
        for statement in statements:
            any_database.execute(statement)
        await engine.looked()
        any_database.execute("INSERT INTO sales VALUES (1, 3)")
        await engine.looked()
    # Found by the first look of a start as well.
    any_database.execute("CREATE TABLE sales_4 (LIKE sales)")
    any_database.execute("ALTER TABLE sales ATTACH PARTITION sales_4 FOR VALUES IN (4)")
    async with running(any_database, store, configuration=configuration) as engine:
        await engine.looked()

    assert engine.gaps() == []


HAD_ROWS: list[tuple[str, list[LiteralString]]] = [
    (
        "vacuumed to nothing behind it",
        [
            "CREATE TABLE sales_3 (LIKE sales)",
            "ALTER TABLE sales_3 REPLICA IDENTITY FULL",
            "INSERT INTO sales_3 VALUES (1, 3)",
            "ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3)",
            "DELETE FROM sales",
            "VACUUM sales_3",
        ],
    ),
    (
        "truncated behind it",
        [
            "CREATE TABLE sales_3 (LIKE sales)",
            "INSERT INTO sales_3 VALUES (1, 3)",
            "ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3)",
            "TRUNCATE sales_3",
        ],
    ),
    (
        "partitioned itself",
        [
            "CREATE TABLE sales_3 (LIKE sales) PARTITION BY HASH (id)",
            """CREATE TABLE sales_31 PARTITION OF sales_3
            FOR VALUES WITH (MODULUS 1, REMAINDER 0)""",
            "INSERT INTO sales_3 VALUES (1, 3)",
            "ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3)",
        ],
    ),
]


@pytest.mark.parametrize(
    "statements", [case[1] for case in HAD_ROWS], ids=[case[0] for case in HAD_ROWS]
)
async def test_an_attached_partition_that_had_rows_is_a_gap_though_it_looks_empty(
    any_database: Database, statements: list[LiteralString]
) -> None:
    make_partitioned(any_database)
    store, configuration = MemoryStore(), replace_tables("public.sales")
    async with running(any_database, store, configuration=configuration, settings=SLOW):
        for statement in statements:
            any_database.execute(statement)
    async with running(any_database, store, configuration=configuration) as engine:
        await engine.gap("public.sales", "partitions")


async def test_a_new_partition_that_somebody_has_locked_is_not_waited_for(
    any_database: Database,
) -> None:
    make_partitioned(any_database)
    configuration = replace_tables("public.sales")
    store = MemoryStore()
    async with running(any_database, store, configuration=configuration, settings=SLOW):
        any_database.execute("CREATE TABLE sales_3 (LIKE sales)")
        any_database.execute("ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3)")
    with any_database.connect(autocommit=False) as connection:
        connection.execute("LOCK TABLE sales_3 IN ACCESS EXCLUSIVE MODE")
        async with running(any_database, store, configuration=configuration) as engine:
            # Not known to be empty: the safe side.
            await engine.gap("public.sales", "partitions")


async def test_comments_rights_and_owners_of_tables_are_no_loss(any_database: Database) -> None:
    make_orders(any_database)
    async with running(any_database, MemoryStore()) as engine:
        for statement in (
            "COMMENT ON PUBLICATION tailrace IS 'ours'",
            "COMMENT ON TABLE orders IS 'ours'",
            "GRANT SELECT ON orders TO PUBLIC",
            "ALTER TABLE orders OWNER TO CURRENT_USER",
            "ALTER TABLE orders SET (fillfactor = 90)",
            "CREATE TABLE others (id int PRIMARY KEY)",
            "ALTER PUBLICATION tailrace ADD TABLE ONLY others",
            "ALTER PUBLICATION tailrace SET TABLE ONLY orders, ONLY lines, ONLY others",
            "VACUUM FULL orders",
            "VACUUM FULL pg_catalog.pg_publication",
            "VACUUM FULL pg_catalog.pg_publication_rel",
        ):
            any_database.execute(statement)
        await engine.looked()

    # A table that is added by name may have had rows by then.
    assert engine.reasons() <= {
        ("public.others", "published-late"),
        ("public.others", "not-published"),
    }


async def test_what_is_agreed_of_many_tables_is_stated_over_several_entries(
    any_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.journal.watch.WATCH_BYTES_MAX", 10)
    make_orders(any_database)
    store = MemoryStore()
    async with running(any_database, store, settings=SLOW) as engine:
        any_database.execute("ALTER PUBLICATION tailrace SET (publish = 'insert')")
        any_database.execute(
            "ALTER PUBLICATION tailrace SET (publish = 'insert, update, delete, truncate')"
        )
    async with running(any_database, store) as engine:
        await engine.gap("public.lines", "publication-altered")
        await engine.looked()
        watched = engine.state().watch

    assert watched is not None
    assert (watched.through, sorted(watched.tables)) == (
        "tailrace",
        ["public.lines", "public.orders"],
    )
    entries = [
        decode_entry(store.objects[key].body, key)
        for key in sorted(key for key in store.objects if "/journal/" in key)
    ]
    parts = [entry.watch for entry in entries if entry.watch is not None]
    assert [(part.through, len(part.tables)) for part in parts] == [
        ("", 1),
        ("tailrace", 1),
        ("tailrace", 0),
    ]
    assert engine.reasons() == {
        ("public.lines", "publication-altered"),
        ("public.orders", "publication-altered"),
    }


# --- nobody's lock


@pytest.mark.since(15)
async def test_a_look_waits_for_nobodys_lock(any_database: Database) -> None:
    make_partitioned(any_database)
    make_orders(any_database)
    any_database.execute(
        "CREATE PUBLICATION tailrace FOR TABLE orders WHERE (id > 5), sales"
        " WITH (publish_via_partition_root = true)"
    )
    async with running(any_database, MemoryStore()) as engine:
        with any_database.connect(autocommit=False) as connection:
            connection.execute("LOCK TABLE orders, sales, lines IN ACCESS EXCLUSIVE MODE")
            any_database.execute("ALTER PUBLICATION tailrace SET (publish = 'insert')")

            gap = await engine.gap("public.orders", "operations")

    assert gap.is_open


def covers(engine: Engine, table: str, begin: str, end: str) -> bool:
    return any(
        gap.table == table and gap.after <= begin and gap.until >= end for gap in engine.gaps()
    )
