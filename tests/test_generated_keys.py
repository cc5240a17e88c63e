"""Tables whose replica identity has generated columns, which are not sent."""

from typing import LiteralString

import pytest

from databases import Database, members
from engine.journal.causes import NOT_CAPTURED, WRITES_REFUSED
from engine.sources.postgres.session import Session
from engine.sources.postgres.situation import read_tables
from memory_store import MemoryStore
from test_catalog_watch import Engine, running

KEY: LiteralString = (
    "CREATE TABLE by_key (name text, n int, low text GENERATED ALWAYS AS (lower(name)) STORED,"
    " PRIMARY KEY (n, low))"
)
WHOLE: LiteralString = (
    "CREATE TABLE whole (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED)"
)
BESIDE: LiteralString = (
    "CREATE TABLE beside (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED)"
)


@pytest.fixture
def shop(any_database: Database) -> Database:
    any_database.execute(KEY)
    any_database.execute(WHOLE)
    any_database.execute("ALTER TABLE whole REPLICA IDENTITY FULL")
    any_database.execute(BESIDE)
    return any_database


def is_strict(database: Database) -> bool:
    [(version,)] = database.execute("SELECT current_setting('server_version_num')::int")
    return bool(version >= 180000)


async def keyed(database: Database, publication: str = "") -> dict[str, bool]:
    async with Session(database.dsn) as session:
        return {t.name.table: t.is_keyed for t in await read_tables(session, publication)}


async def test_an_identity_that_is_not_sent_is_none(shop: Database) -> None:
    assert await keyed(shop) == {
        "by_key": False,
        # Up to 17 whole rows do without generated columns. Since 18 the server refuses changes.
        "whole": not is_strict(shop),
        "beside": True,
    }


async def test_where_generated_columns_are_published_the_identity_is_sent(
    database: Database,
) -> None:
    for statement in (KEY, WHOLE):
        database.execute(statement)
    database.execute("ALTER TABLE whole REPLICA IDENTITY FULL")
    database.execute(
        "CREATE PUBLICATION tailrace FOR ALL TABLES WITH (publish_generated_columns = stored)"
    )

    assert await keyed(database, "tailrace") == {"by_key": True, "whole": True}


async def test_virtual_columns_are_never_sent(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, n int GENERATED ALWAYS AS (id * 2))")
    before = await keyed(database)
    database.execute("ALTER TABLE t REPLICA IDENTITY FULL")

    assert (before, await keyed(database)) == ({"t": True}, {"t": False})


def alarmed(engine: Engine, code: str) -> dict[str, str]:
    return {a.subject: f"{a.text}; {a.hint}" for a in engine.alarms.standing() if a.code == code}


async def test_the_engine_does_not_publish_what_the_server_would_refuse_to_change(
    shop: Database,
) -> None:
    async with running(shop, MemoryStore()) as engine:
        await engine.looked()
        shop.execute("INSERT INTO by_key VALUES ('A', 1)")
        shop.execute("UPDATE by_key SET name = 'B'")
        shop.execute("DELETE FROM whole")
        missing = alarmed(engine, NOT_CAPTURED)

    strict = is_strict(shop)
    assert members(shop) == ({"beside"} if strict else {"beside", "whole"})
    assert missing.keys() == ({"public.by_key", "public.whole"} if strict else {"public.by_key"})
    way = "USING INDEX …" if strict else "FULL"
    assert f'ALTER TABLE "public"."by_key" REPLICA IDENTITY {way}' in missing["public.by_key"]


async def test_rows_that_cannot_be_told_apart_are_an_alarm_and_no_state(shop: Database) -> None:
    shop.execute(
        "CREATE PUBLICATION tailrace FOR ALL TABLES WITH (publish_via_partition_root = true)"
    )
    async with running(shop, MemoryStore()) as engine:
        await engine.looked()
        refused = alarmed(engine, WRITES_REFUSED)

    strict = is_strict(shop)
    assert refused.keys() == ({"public.by_key", "public.whole"} if strict else {"public.by_key"})
    watch = engine.state().watch
    assert watch is not None
    kept = {table: dict(agreed.keeps) for table, agreed in watch.tables.items()}
    assert kept == {"public.by_key": {"key": ("2",)}, "public.whole": {}, "public.beside": {}}
