"""Pauses on a real server: by request, or because a table changed its shape; and what resumes them.

The whole pipeline runs here, over a bucket in memory, with short intervals.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import LiteralString

import msgspec
import pytest

from databases import Database
from engine.journal.causes import STREAM_PAUSED, TABLE_PAUSED
from engine.model.errors import StreamPaused, first_cause
from engine.model.record import OnSchemaChange, RecordConfiguration, TableRule
from engine.model.request import Request, encode_request, request_key, request_name
from engine.reader.verify import verify
from memory_store import MemoryStore
from test_catalog_watch import CONFIGURATION, SETTINGS, Engine, SilentProgress, running

ASKING = replace(SETTINGS, requests_interval=0.05)
NOW_US = 1_800_000_000_000_000


def on_change(mode: OnSchemaChange) -> RecordConfiguration:
    """Only `orders` does something else than to go on."""
    rule = TableRule("public.orders", on_schema_change=mode)
    return msgspec.structs.replace(CONFIGURATION, rules=(rule,))


def run(database: Database, *statements: LiteralString) -> None:
    for statement in statements:
        database.execute(statement)


def make_tables(database: Database) -> None:
    run(
        database,
        "CREATE TABLE orders (id int PRIMARY KEY, note text)",
        "CREATE TABLE lines (id int PRIMARY KEY)",
    )


async def ask(store: MemoryStore, kind: str, *tables: str, number: int = 0) -> str:
    name = request_name(NOW_US + number, "0123456789abcdef")
    body = encode_request(Request(1, kind, tables))
    await store.create(
        request_key("lake", name), body, content_type="application/json", metadata={}
    )
    return name


async def done(engine: Engine, kind: str, *tables: str, number: int = 0) -> None:
    """Ask, and wait until the journal has the answer."""
    name = await ask(engine.store, kind, *tables, number=number)
    await engine.until(lambda: name in engine.state().answers, f"the answer to {kind}")
    assert engine.state().answers[name].outcome == "done", engine.state().answers[name].text


def ids(store: MemoryStore, table: str) -> list[int]:
    """The ids of the table's records, in the order of the objects."""
    found: list[int] = []
    for key in sorted(store.objects):
        if f"/table={table}/" in key and key.endswith(".ndjson.gz"):
            lines = gzip.decompress(store.objects[key].body).splitlines()
            found += [json.loads(line)["after"]["id"] for line in lines]
    return found


async def phase(engine: Engine, wanted: str) -> None:
    await engine.until(lambda: engine.pipeline.status().phase == wanted, f"phase {wanted}")


async def proves(store: MemoryStore) -> None:
    verdict = await verify(store, "lake", depth="full", concurrency=4, progress=SilentProgress())
    assert verdict.is_ok, verdict.problems


async def test_a_changed_shape_pauses_the_stream_before_its_first_row_until_it_is_resumed(
    database15: Database,
) -> None:
    make_tables(database15)
    store = MemoryStore()
    configuration = on_change("pause")
    async with running(database15, store, configuration=configuration, settings=ASKING) as engine:
        run(database15, "INSERT INTO orders VALUES (1)", "INSERT INTO lines VALUES (1)")
        run(database15, "ALTER TABLE orders ADD more int", "INSERT INTO orders VALUES (2)")
        await phase(engine, "paused")
        await engine.until(lambda: bool(engine.state().pauses), "the journal says so")
        run(database15, "INSERT INTO lines VALUES (2)")

        [pause] = engine.state().pauses.values()
        status = engine.pipeline.status()
        assert (pause.table, pause.changed) == ("", "public.orders")
        assert "column_added" in pause.text
        assert status.waits_for == pause.text
        assert not status.is_ready
        assert engine.alarms.is_set(STREAM_PAUSED)

    # The next engine stays paused: it reads nothing.
    async with running(
        database15, store, configuration=configuration, settings=ASKING, is_paused=True
    ) as engine:
        await phase(engine, "paused")
        assert engine.state().durable_position <= pause.position
        assert ids(store, "orders") == [1]

        await done(engine, "resume")
        await phase(engine, "streaming")
        assert not engine.alarms.is_set(STREAM_PAUSED)
        run(database15, "INSERT INTO orders VALUES (3)", "INSERT INTO lines VALUES (3)")
        await engine.until(lambda: ids(store, "lines") == [1, 2, 3], "all lines")
        await engine.until(lambda: ids(store, "orders") == [1, 2, 3], "all orders")

        # It was accepted once.
        run(database15, "ALTER TABLE orders DROP more", "INSERT INTO orders VALUES (4)")
        await phase(engine, "paused")

    assert engine.gaps() == []
    await proves(store)


class CutStore(MemoryStore):
    """Hangs at the first entry that speaks of a pause: before it is there, or right behind."""

    def __init__(self, *, is_applied: bool) -> None:
        super().__init__()
        self.is_hit = asyncio.Event()
        self.is_applied = is_applied

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        is_pause = "/journal/" in key and b'"pauses"' in body and not self.is_hit.is_set()
        is_created = False
        if not is_pause or self.is_applied:
            is_created = await super().create(
                key, body, content_type=content_type, metadata=metadata
            )
        if is_pause:
            self.is_hit.set()
            await asyncio.Event().wait()
        return is_created


@pytest.mark.parametrize("is_applied", [False, True])
@pytest.mark.parametrize("mode", ["pause", "gap"])
async def test_an_engine_that_dies_on_either_side_of_the_entry_changes_nothing(
    database15: Database,
    mode: OnSchemaChange,
    is_applied: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    make_tables(database15)
    store, configuration = CutStore(is_applied=is_applied), on_change(mode)
    async with killed(database15, store, configuration) as engine:
        run(database15, "INSERT INTO orders VALUES (1)")
        await engine.until(lambda: ids(store, "orders") == [1], "the first row")
        run(database15, "ALTER TABLE orders ADD more int", "INSERT INTO orders VALUES (2)")
        async with asyncio.timeout(60):
            await store.is_hit.wait()
        assert bool(engine.state().pauses) == is_applied

    is_stream = mode == "pause"
    async with running(
        database15, store, configuration=configuration, settings=ASKING, is_paused=is_stream
    ) as engine:
        await engine.until(lambda: bool(engine.state().pauses), "it pauses, or goes on to")
        if not is_stream:
            run(database15, "INSERT INTO lines VALUES (1)")
            await engine.until(lambda: ids(store, "lines") == [1], "another table")
        assert ids(store, "orders") == [1]
        await done(engine, "resume")
        run(database15, "INSERT INTO orders VALUES (3)")
        expected = [1, 2, 3] if is_stream else [1, 3]
        await engine.until(lambda: ids(store, "orders") == expected, "the rest")

    assert [gap.reason for gap in engine.gaps()] == ([] if is_stream else ["schema-changed"])
    assert not any(gap.is_open for gap in engine.gaps())
    await proves(store)


@asynccontextmanager
async def killed(
    database: Database, store: MemoryStore, configuration: RecordConfiguration
) -> AsyncIterator[Engine]:
    """An engine that dies at the end."""
    with suppress(asyncio.CancelledError):
        async with running(database, store, configuration=configuration, settings=ASKING) as engine:
            yield engine
            engine.task.cancel()


async def test_a_table_that_is_passed_over_has_a_gap_until_it_is_resumed(
    database15: Database,
) -> None:
    make_tables(database15)
    store, configuration = MemoryStore(), on_change("gap")
    async with running(database15, store, configuration=configuration, settings=ASKING) as engine:
        run(database15, "INSERT INTO orders VALUES (1)", "ALTER TABLE orders ADD more int")
        run(database15, "INSERT INTO orders VALUES (2)", "INSERT INTO lines VALUES (1)")
        gap = await engine.gap("public.orders", "schema-changed")
        assert gap.is_open
        assert engine.alarms.is_set(TABLE_PAUSED, "public.orders")
        assert engine.pipeline.status().tables_paused == ("public.orders",)
        await engine.until(lambda: ids(store, "lines") == [1], "the stream goes on")

    async with running(database15, store, configuration=configuration, settings=ASKING) as engine:
        run(database15, "ALTER TABLE orders ADD other int", "INSERT INTO orders VALUES (3)")
        run(database15, "INSERT INTO lines VALUES (2)")
        await engine.until(lambda: ids(store, "lines") == [1, 2], "the stream goes on")
        await engine.looked()
        assert [gap.is_open for gap in engine.gaps()] == [True]
        await done(engine, "resume", "public.orders")
        run(database15, "INSERT INTO orders VALUES (4)")
        await engine.until(lambda: ids(store, "orders") == [1, 4], "the row behind")

    [ended] = engine.gaps()
    assert (ended.number, ended.after) == (gap.number, gap.after)
    assert ended.until
    assert not engine.alarms.is_set(TABLE_PAUSED, "public.orders")
    await proves(store)


async def test_whoever_asks_pauses_the_stream_or_a_table(database15: Database) -> None:
    make_tables(database15)
    store = MemoryStore()
    async with running(database15, store, settings=ASKING) as engine:
        run(database15, "INSERT INTO orders VALUES (1)", "INSERT INTO lines VALUES (1)")
        await engine.until(lambda: ids(store, "lines") == [1], "the first rows")
        await done(engine, "pause", "public.orders", number=1)
        run(database15, "INSERT INTO orders VALUES (2)", "INSERT INTO lines VALUES (2)")
        await engine.until(lambda: ids(store, "lines") == [1, 2], "the other table goes on")
        assert ids(store, "orders") == [1]
        await done(engine, "pause", number=2)
        run(database15, "INSERT INTO lines VALUES (3)")
        await phase(engine, "paused")
        await done(engine, "resume", number=3)
        run(database15, "INSERT INTO orders VALUES (4)")
        await engine.until(lambda: ids(store, "orders") == [1, 4], "both go on")
        await engine.until(lambda: ids(store, "lines") == [1, 2, 3], "both go on")

    [gap] = engine.gaps()
    assert (gap.reason, gap.is_open) == ("paused", False)
    await proves(store)


async def test_a_run_that_is_to_catch_up_says_that_the_stream_is_paused(
    database15: Database,
) -> None:
    make_tables(database15)
    store, configuration = MemoryStore(), on_change("pause")
    async with running(database15, store, configuration=configuration) as engine:
        run(database15, "INSERT INTO orders VALUES (1)", "ALTER TABLE orders ADD more int")
        run(database15, "INSERT INTO orders VALUES (2)")
        await phase(engine, "paused")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(
            database15,
            store,
            configuration=configuration,
            settings=replace(SETTINGS, is_until_caught_up=True),
            is_paused=True,
        ) as engine:
            await phase(engine, "stopped")

    assert isinstance(first_cause(caught.value), StreamPaused)
    assert ids(store, "orders") == [1]
