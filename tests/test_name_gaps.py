"""Tables that have names which are not captured, for a while or before: each loss is a gap.

On real servers. `source.tables` matches the schema `public`; what the publication sends and is not
captured is told by the names alone.
"""

from collections.abc import Callable
from typing import LiteralString

import pytest

from databases import Database
from engine.journal.causes import GAP
from engine.reader.verify import verify
from memory_store import MemoryStore
from test_catalog_watch import (
    SETTINGS,
    SLOW,
    Engine,
    SilentProgress,
    here,
    replace_tables,
    running,
    states_of,
)

NAMED_ONLY = replace_tables("public.orders", "public.lines")


@pytest.fixture
def shop(any_database: Database) -> Database:
    """Two tables that are captured, and a publication of all that there are."""
    any_database.execute("CREATE SCHEMA archive")
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY, note text)")
    any_database.execute("CREATE TABLE lines (id int PRIMARY KEY)")
    any_database.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    return any_database


def run(database: Database, *statements: LiteralString) -> tuple[str, str]:
    """Run the statements, each in a transaction of its own; between which points they lie."""
    begin = here(database)
    with database.connect() as connection:
        for statement in statements:
            connection.execute(statement)
    return begin, here(database)


def covers(engine: Engine, reason: str, begin: str, end: str) -> bool:
    """Whether a gap of the orders covers what was written between these points."""
    gaps = [g for g in engine.gaps() if (g.table, g.reason) == ("public.orders", reason)]
    return any(gap.after <= begin and gap.until >= end for gap in gaps)


def told(engine: Engine, table: str) -> Callable[[], bool]:
    """Whether rows of the table are planned: everything before them was read."""
    return lambda: f"public.{table}" in engine.state().frontiers


AWAY: list[tuple[str, list[LiteralString], list[LiteralString]]] = [
    (
        "renamed",
        ["ALTER TABLE orders RENAME TO orders_old", "INSERT INTO orders_old VALUES (2)"],
        ["ALTER TABLE orders_old RENAME TO orders"],
    ),
    (
        "moved",
        ["ALTER TABLE orders SET SCHEMA archive", "INSERT INTO archive.orders VALUES (2)"],
        ["ALTER TABLE archive.orders SET SCHEMA public"],
    ),
    (
        "truncated",
        ["ALTER TABLE orders RENAME TO orders_old", "TRUNCATE orders_old"],
        ["ALTER TABLE orders_old RENAME TO orders"],
    ),
    (
        "in one transaction",
        [
            """BEGIN; ALTER TABLE orders RENAME TO orders_old; INSERT INTO orders_old VALUES (2);
            ALTER TABLE orders_old RENAME TO orders; COMMIT"""
        ],
        [],
    ),
]
AWAY_IDS = [case[0] for case in AWAY]


@pytest.mark.parametrize(("away", "back"), [case[1:] for case in AWAY], ids=AWAY_IDS)
async def test_what_a_table_gets_under_another_name_is_a_gap_once_it_is_back(
    shop: Database, away: list[LiteralString], back: list[LiteralString]
) -> None:
    # No look comes between: the stream alone shows it.
    async with running(shop, MemoryStore(), configuration=NAMED_ONLY, settings=SLOW) as engine:
        run(shop, "INSERT INTO orders VALUES (1)")
        begin, end = run(shop, *away)
        run(shop, *back, "INSERT INTO orders VALUES (3)")
        gap = await engine.gap("public.orders", "renamed-away")

    assert gap.after >= begin
    assert gap.until >= end
    assert gap.text.endswith("what it got there is missing")
    assert engine.reasons() == {("public.orders", "renamed-away")}
    assert engine.alarms.is_set(GAP, "public.orders")
    verdict = await verify(
        engine.store, "lake", depth="full", concurrency=4, progress=SilentProgress()
    )
    assert verdict.is_ok
    assert gap in verdict.unmended_gaps


async def test_rows_under_a_schema_that_is_renamed_are_a_gap(database: Database) -> None:
    # PostgreSQL 15 goes on with the old name, and so captures them.
    database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    async with running(database, MemoryStore(), configuration=NAMED_ONLY, settings=SLOW) as engine:
        run(database, "INSERT INTO orders VALUES (1)", "ALTER SCHEMA public RENAME TO hidden")
        run(database, "INSERT INTO hidden.orders VALUES (2)")
        run(database, "ALTER SCHEMA hidden RENAME TO public", "INSERT INTO orders VALUES (3)")
        await engine.gap("public.orders", "renamed-away")


async def test_no_entry_is_durable_past_rows_that_went_by_without_saying_so(
    shop: Database,
) -> None:
    store = MemoryStore()
    async with running(shop, store, configuration=NAMED_ONLY, settings=SLOW) as engine:
        run(shop, "INSERT INTO orders VALUES (1)", "ALTER TABLE orders RENAME TO orders_old")
        begin, _ = run(shop, "INSERT INTO orders_old VALUES (2)")
        run(shop, "ALTER TABLE orders_old RENAME TO orders")
        back, _ = run(shop, "INSERT INTO orders VALUES (3)")
        await engine.gap("public.orders", "renamed-away")

    for state in states_of(store):
        assert state.durable is not None
        durable = state.durable.position
        assert durable <= begin or state.gaps or (state.watch is not None and state.watch.away)
        assert durable <= back or state.gaps


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_table_that_is_away_over_a_restart_has_its_whole_time_as_the_gap(
    shop: Database,
    is_killed: bool,  # noqa: FBT001
) -> None:
    store = MemoryStore()
    async with running(shop, store, configuration=NAMED_ONLY, settings=SLOW) as engine:
        run(shop, "INSERT INTO orders VALUES (1)", "ALTER TABLE orders RENAME TO orders_old")
        _, begin = run(shop, "INSERT INTO orders_old VALUES (2)")
        run(shop, "INSERT INTO lines VALUES (1)")
        await engine.until(told(engine, "lines"), "the row behind it")
        if is_killed:
            engine.task.cancel()
    async with running(shop, store, configuration=NAMED_ONLY, settings=SLOW) as engine:
        _, end = run(shop, "INSERT INTO orders_old VALUES (3)")
        run(shop, "ALTER TABLE orders_old RENAME TO orders", "INSERT INTO orders VALUES (4)")
        await engine.until(lambda: covers(engine, "renamed-away", begin, end), "the gap")


async def test_a_table_that_leaves_for_good_is_said_to_be_renamed_not_dropped(
    shop: Database,
) -> None:
    async with running(shop, MemoryStore(), configuration=NAMED_ONLY) as engine:
        run(shop, "INSERT INTO orders VALUES (1)")
        await engine.until(told(engine, "orders"), "its row")
        run(shop, "ALTER TABLE orders RENAME TO orders_old")
        gap = await engine.gap("public.orders", "renamed-away")

    assert "was given a name or a schema" in gap.text
    assert engine.reasons() == {("public.orders", "renamed-away")}


async def test_a_gap_of_a_table_that_looks_saw_away_ends_when_it_is_back(shop: Database) -> None:
    async with running(shop, MemoryStore(), configuration=NAMED_ONLY) as engine:
        run(shop, "INSERT INTO orders VALUES (1)")
        await engine.until(told(engine, "orders"), "its row")
        begin, _ = run(shop, "ALTER TABLE orders RENAME TO orders_old")
        first = await engine.gap("public.orders", "renamed-away")
        _, end = run(shop, "INSERT INTO orders_old VALUES (2)")
        await engine.looked()
        # No row comes behind it.
        run(shop, "ALTER TABLE orders_old RENAME TO orders")
        await engine.until(lambda: covers(engine, "renamed-away", begin, end), "its end")
        await engine.looked()
        last = engine.gaps()
        await engine.looked()

    assert first.until < end
    assert [gap.number for gap in engine.gaps()] == [first.number]
    assert engine.gaps() == last


# --- tables that take a captured name


SWAP: list[LiteralString] = [
    "ALTER TABLE orders RENAME TO orders_old",
    "ALTER TABLE orders_new RENAME TO orders",
]
MADE: LiteralString = "CREATE TABLE orders_new (id int PRIMARY KEY, note text)"
FILLED: LiteralString = "INSERT INTO orders_new VALUES (7)"


async def test_rows_that_a_table_got_before_it_took_a_captured_name_are_a_gap(
    shop: Database,
) -> None:
    async with running(shop, MemoryStore(), configuration=NAMED_ONLY, settings=SLOW) as engine:
        run(shop, "INSERT INTO orders VALUES (1)")
        begin, end = run(shop, MADE, FILLED, *SWAP)
        run(shop, "INSERT INTO orders VALUES (8)")
        gap = await engine.gap("public.orders", "renamed-in")

    assert begin <= gap.after <= end <= gap.until
    assert engine.reasons() == {("public.orders", "renamed-in")}


async def test_a_table_that_is_made_filled_and_renamed_at_once_is_a_gap(shop: Database) -> None:
    async with running(shop, MemoryStore(), configuration=NAMED_ONLY, settings=SLOW) as engine:
        run(shop, f"BEGIN; {MADE}; {FILLED}; {SWAP[0]}; {SWAP[1]}; COMMIT")
        run(shop, "INSERT INTO orders VALUES (8)")
        await engine.gap("public.orders", "renamed-in")


@pytest.mark.parametrize("has_rows", [False, True])
async def test_a_table_that_was_there_before_and_took_a_captured_name_is_a_gap(
    shop: Database,
    has_rows: bool,  # noqa: FBT001
) -> None:
    # Its rows lie before the slot: the stream shows none of them.
    run(shop, MADE, FILLED)
    settings = SLOW if has_rows else SETTINGS
    async with running(shop, MemoryStore(), configuration=NAMED_ONLY, settings=settings) as engine:
        assert engine.gaps() == []
        run(shop, *SWAP)
        if has_rows:
            run(shop, "INSERT INTO orders VALUES (8)")
        gap = await engine.gap("public.orders", "renamed-in")
        if not has_rows:
            await engine.looked()

    assert gap.until
    assert engine.reasons() == {("public.orders", "renamed-in")}
    assert len(engine.gaps()) == 1


async def test_a_table_that_took_a_captured_name_between_two_engines_is_a_gap(
    shop: Database,
) -> None:
    store = MemoryStore()
    async with running(shop, store, configuration=NAMED_ONLY, settings=SLOW) as engine:
        # What it gets is read and durable, and the engine forgets it.
        run(shop, MADE, FILLED, "INSERT INTO lines VALUES (1)")
        await engine.until(told(engine, "lines"), "the row behind it")
    run(shop, *SWAP)
    async with running(shop, store, configuration=NAMED_ONLY) as engine:
        await engine.gap("public.orders", "renamed-in")


async def test_a_table_that_was_made_in_a_schema_that_is_not_published_is_a_gap(
    any_database: Database,
) -> None:
    run(
        any_database,
        "CREATE SCHEMA stage",
        "CREATE TABLE orders (id int)",
        "CREATE PUBLICATION tailrace FOR TABLES IN SCHEMA public",
    )
    async with running(any_database, MemoryStore(), settings=SLOW) as engine:
        run(
            any_database,
            "CREATE TABLE stage.late (id int PRIMARY KEY)",
            "INSERT INTO stage.late VALUES (1)",
            "ALTER TABLE stage.late SET SCHEMA public",
        )
        engine.pipeline._streaming._watcher.want()  # type: ignore[union-attr]
        await engine.gap("public.late", "published-late")


# --- what loses nothing


HARMLESS: list[tuple[str, list[LiteralString]]] = [
    (
        "other names alone",
        [MADE, FILLED, "ALTER TABLE orders_new RENAME TO older", "DROP TABLE older"],
    ),
    (
        "made under a captured name",
        [
            "INSERT INTO orders VALUES (1)",
            "DROP TABLE lines",
            "CREATE TABLE lines (id int PRIMARY KEY)",
            "ALTER TABLE lines OWNER TO pg_database_owner",
            "INSERT INTO lines VALUES (1)",
        ],
    ),
]


@pytest.mark.parametrize(
    "statements", [case[1] for case in HARMLESS], ids=[case[0] for case in HARMLESS]
)
async def test_names_that_lose_nothing_are_no_gaps(
    shop: Database, statements: list[LiteralString]
) -> None:
    async with running(shop, MemoryStore(), configuration=NAMED_ONLY) as engine:
        run(shop, *statements)
        await engine.looked()

    assert engine.gaps() == []


async def test_captured_names_that_are_swapped_lose_nothing_but_the_rows_place(
    shop: Database,
) -> None:
    async with running(shop, MemoryStore(), configuration=NAMED_ONLY) as engine:
        run(
            shop,
            "INSERT INTO orders VALUES (1)",
            "ALTER TABLE orders RENAME TO between",
            "ALTER TABLE lines RENAME TO orders",
            "ALTER TABLE between RENAME TO lines",
            "INSERT INTO orders VALUES (2)",
            "INSERT INTO lines VALUES (3)",
        )
        await engine.looked()

    # What is `orders` now never had a row before.
    assert engine.reasons() == {("public.lines", "renamed")}


@pytest.mark.parametrize("is_seen", [True, False])
async def test_a_table_that_is_made_and_renamed_under_captured_names_has_its_rows_elsewhere(
    shop: Database,
    is_seen: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """No look comes in between: the stream tells, or where no row comes since, the next look."""
    async with running(shop, MemoryStore(), settings=SLOW) as engine:
        run(shop, MADE, FILLED)
        if not is_seen:
            engine.pipeline._streaming._watcher.want()  # type: ignore[union-attr]
            await engine.until(lambda: engine.judged_count >= 2, "it looked")
        run(shop, *SWAP)
        if is_seen:
            run(shop, "INSERT INTO orders VALUES (8)")
        count = engine.judged_count + 1
        engine.pipeline._streaming._watcher.want()  # type: ignore[union-attr]
        await engine.until(lambda: engine.judged_count >= count, "it looked")

    assert ("public.orders", "renamed") in engine.reasons()
    assert {reason for _, reason in engine.reasons()} == {"renamed"}


async def test_tables_that_the_settings_take_out_and_in_again_are_no_gaps(shop: Database) -> None:
    store = MemoryStore()
    fewer = replace_tables("public.orders")
    for configuration in (NAMED_ONLY, fewer, NAMED_ONLY):
        async with running(shop, store, configuration=configuration) as engine:
            run(shop, "INSERT INTO lines SELECT count(*) FROM lines")
            run(shop, "INSERT INTO orders SELECT count(*) FROM orders")
            await engine.looked()
            assert engine.gaps() == []
