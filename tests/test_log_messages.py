"""Logical messages as records, on a real server: which are published, and what a record says."""

import asyncio
import gzip
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from databases import Database
from engine.model.record import RecordConfiguration
from engine.reader.verify import verify
from engine.sources.postgres.ddl_trigger import DDL_PREFIX
from engine.sources.postgres.log_messages import CONTENT_BYTES_MAX, MESSAGES
from engine.sources.postgres.source import PostgresSource
from memory_store import MemoryStore
from small_bucket import ODD, ORDERS, SmallBucket
from small_snapshot import Snapshots
from test_catalog_watch import CONFIGURATION, SilentProgress, running
from trials import tried

PUBLISHED = msgspec.structs.replace(CONFIGURATION, messages=str(MESSAGES))


def records(store: MemoryStore, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for key in sorted(store.objects):
        if f"/table={table}/" in key and key.endswith(".ndjson.gz"):
            lines = gzip.decompress(store.objects[key].body).splitlines()
            found += [json.loads(line) for line in lines]
    return found


def count_of(store: MemoryStore, table: str, count: int) -> Callable[[], bool]:
    return lambda: len(records(store, table)) == count


def messages(store: MemoryStore) -> list[tuple[str, str | None, str | None, int]]:
    rows = [record["after"] for record in records(store, "messages")]
    return [(row["prefix"], row["content"], row["bytes"], row["size"]) for row in rows]


def emit(database: Database, prefix: str, content: str | bytes) -> None:
    database.execute("SELECT pg_logical_emit_message(true, %s, %s)", prefix, content)


async def proves(store: MemoryStore) -> None:
    verdict = await verify(store, "lake", depth="full", concurrency=4, progress=SilentProgress())
    assert verdict.is_ok, verdict.problems


def make_orders(database: Database) -> None:
    database.execute("CREATE TABLE orders (id int PRIMARY KEY)")


async def test_messages_of_transactions_are_records_in_the_order_of_commits(
    any_database: Database,
) -> None:
    make_orders(any_database)
    store = MemoryStore()
    long = "x" * (CONTENT_BYTES_MAX + 1)
    async with running(any_database, store, configuration=PUBLISHED) as engine:
        emit(any_database, "app", 'line\n"two"')
        with any_database.connect(autocommit=False) as connection:
            connection.execute("INSERT INTO orders VALUES (1)")
            connection.execute("SELECT pg_logical_emit_message(true, 'täg', 'in between')")
            connection.execute("INSERT INTO orders VALUES (2)")
        with any_database.connect(autocommit=False) as connection:
            connection.execute("SELECT pg_logical_emit_message(true, 'app', 'rolled back')")
            connection.rollback()
        any_database.execute("SELECT pg_logical_emit_message(false, 'app', 'out of order')")
        emit(any_database, "app", b"\x00\xff")
        emit(any_database, "app", long)
        await engine.until(lambda: len(messages(store)) == 4, "all messages")
        assert engine.pipeline.status().alarms_total == 0

    assert messages(store) == [
        ("app", 'line\n"two"', None, 10),
        ("täg", "in between", None, 10),
        ("app", None, "AP8=", 2),
        ("app", None, None, len(long)),
    ]
    between = records(store, "messages")[1]
    first, last = records(store, "orders")
    assert first["metadata"]["position"] < between["metadata"]["position"]
    # The server gives a message the place where it ends: that is where the next change begins.
    assert between["metadata"]["position"] <= last["metadata"]["position"]
    assert between["metadata"]["xid"] == first["metadata"]["xid"]
    assert (between["before"], between["metadata"]["op"]) == (None, "c")
    assert (between["metadata"]["schema"], between["metadata"]["key"]) == ("pg_logical", [])
    await proves(store)


async def test_an_engine_that_publishes_no_messages_goes_on_and_so_does_one_that_does_again(
    any_database: Database,
) -> None:
    make_orders(any_database)
    store = MemoryStore()
    for count, configuration in enumerate((PUBLISHED, CONFIGURATION, PUBLISHED), 1):
        async with running(any_database, store, configuration=configuration) as engine:
            emit(any_database, "app", "alone")
            any_database.execute("INSERT INTO orders SELECT count(*) FROM orders")
            emit(any_database, "app", "alone")
            await engine.until(count_of(store, "orders", count), "its row")
    # Those that came meanwhile are published where E has not passed them.
    assert len(messages(store)) >= 4
    await proves(store)


class CutStore(MemoryStore):
    """Hangs at the first object of messages, which is planned by then."""

    def __init__(self) -> None:
        super().__init__()
        self.is_hit = asyncio.Event()

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        if "/table=messages/" in key and key.endswith(".gz") and not self.is_hit.is_set():
            self.is_hit.set()
            await asyncio.Event().wait()
        return await super().create(key, body, content_type=content_type, metadata=metadata)


@pytest.mark.parametrize("successor", [PUBLISHED, CONFIGURATION], ids=["published", "not any more"])
async def test_planned_messages_are_made_again(
    database15: Database, successor: RecordConfiguration
) -> None:
    make_orders(database15)
    store = CutStore()
    async with running(database15, store, configuration=PUBLISHED) as engine:
        emit(database15, "app", "once")
        async with asyncio.timeout(60):
            await store.is_hit.wait()
        assert messages(store) == []
        engine.task.cancel()

    async with running(database15, store, configuration=successor) as engine:
        await engine.until(lambda: len(messages(store)) == 1, "the object that was planned")

    await proves(store)


async def test_messages_are_obeyed_only_where_signals_are(database15: Database) -> None:
    make_orders(database15)
    store = MemoryStore()
    async with running(database15, store, configuration=PUBLISHED) as engine:
        emit(database15, "tailrace", '{"format": 1, "kind": "resync", "tables": ["public.orders"]}')
        await engine.until(lambda: len(messages(store)) == 1, "the message")

    assert engine.state().signals == {}


async def test_the_event_trigger_that_check_prints_records_each_statement_in_its_place(
    any_database: Database,
) -> None:
    make_orders(any_database)
    store = MemoryStore()
    source = PostgresSource(dsn=any_database.dsn, slot=any_database.name, configuration=PUBLISHED)
    before = await tried(source, "statements", is_first=False)
    sql_text = before.hint.partition(": ")[2]
    with any_database.connect() as connection:
        connection.execute(sql_text.encode())
    after = await tried(source, "statements", is_first=False)
    assert after.hint == ""

    async with running(any_database, store, configuration=PUBLISHED) as engine:
        for statement in (
            "ALTER TABLE orders ADD note text",
            "INSERT INTO orders VALUES (1, 'a')",
            "CREATE TEMP TABLE passing (id int)",
            "ALTER TABLE orders DROP note",
            "DROP TABLE orders",
        ):
            any_database.execute(statement)
        await engine.until(lambda: len(messages(store)) >= 4, "each statement")

    told = [json.loads(content or "") for prefix, content, _, _ in messages(store)]
    assert [(one["tag"], one["object"], one["dropped"]) for one in told] == [
        ("ALTER TABLE", "public.orders", False),
        ("ALTER TABLE", "public.orders.note", True),
        ("ALTER TABLE", "public.orders", False),
        ("DROP TABLE", "public.orders", True),
    ]
    assert told[0]["query"] == "ALTER TABLE orders ADD note text"
    assert {prefix for prefix, _, _, _ in messages(store)} == {DDL_PREFIX}
    first, row = records(store, "messages")[0], records(store, "orders")[0]
    assert first["metadata"]["position"] < row["metadata"]["position"]


async def test_no_snapshot_of_messages_is_ever_wanted() -> None:
    bucket = SmallBucket(snapshot="initial")
    bucket.configuration = msgspec.structs.replace(bucket.configuration, messages=str(ORDERS))
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)

    snapshots.register.capture(ORDERS)
    snapshots.register.capture(ODD)

    assert [stated.table_name for stated in snapshots.register.pending] == [ODD]
    assert bucket.configuration.captures(ORDERS)
    assert not bucket.configuration.takes_snapshot(ORDERS)
    assert bucket.configuration.takes_snapshot(ODD)


def test_messages_are_captured_whatever_tables_are_and_show_other_commits() -> None:
    narrow = RecordConfiguration(through="tailrace", tables=("public.a",))
    published = msgspec.structs.replace(narrow, messages=str(MESSAGES))

    assert (narrow.captures(MESSAGES), published.captures(MESSAGES)) == (False, True)
    assert narrow.shown_through == "tailrace"
    assert published.shown_through != narrow.shown_through
