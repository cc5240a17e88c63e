"""A published table that lost its replica identity: who is refused what, and who is told."""

from typing import LiteralString

import psycopg
import pytest

from databases import Database
from engine.journal.causes import NOT_CAPTURED, WRITES_REFUSED
from engine.operate.alarms import Alarm
from memory_store import MemoryStore
from test_catalog_watch import Engine, make_orders, running


@pytest.fixture
def shop(any_database: Database) -> Database:
    make_orders(any_database)
    any_database.execute("CREATE TABLE tree (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    any_database.execute("CREATE TABLE leaf_1 PARTITION OF tree FOR VALUES FROM (0) TO (10)")
    any_database.execute("CREATE TABLE leaf_2 PARTITION OF tree FOR VALUES FROM (10) TO (20)")
    any_database.execute("INSERT INTO orders VALUES (1, 'one', 1)")
    any_database.execute("INSERT INTO tree VALUES (1), (11)")
    return any_database


def refused(engine: Engine) -> list[Alarm]:
    return [alarm for alarm in engine.alarms.standing() if alarm.code == WRITES_REFUSED]


async def alarmed(engine: Engine) -> Alarm:
    await engine.until(lambda: bool(refused(engine)), "the alarm stands")
    [alarm] = refused(engine)
    return alarm


LOST: list[tuple[LiteralString, LiteralString, str]] = [
    ("ALTER TABLE orders DROP CONSTRAINT orders_pkey", "DELETE FROM orders", "public.orders"),
    ("ALTER TABLE orders REPLICA IDENTITY NOTHING", "DELETE FROM orders", "public.orders"),
    (
        "ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD PRIMARY KEY (id) DEFERRABLE",
        "UPDATE orders SET amount = 2",
        "public.orders",
    ),
    ("ALTER TABLE leaf_2 REPLICA IDENTITY NOTHING", "UPDATE tree SET id = 12", "public.tree"),
]


@pytest.mark.parametrize(("lose", "write", "table"), LOST)
async def test_a_lost_identity_is_an_alarm_until_its_sql_is_run(
    shop: Database, lose: LiteralString, write: LiteralString, table: str
) -> None:
    async with running(shop, MemoryStore()) as engine:
        await engine.looked()
        before = refused(engine)
        shop.execute(lose)
        alarm = await alarmed(engine)
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            shop.execute("DELETE FROM tree" if table == "public.tree" else write)
        with shop.connect() as connection:
            connection.execute(alarm.hint.partition(";")[0].encode())
        await engine.until(lambda: not refused(engine), "the alarm ended")
        shop.execute("DELETE FROM tree" if table == "public.tree" else write)

    assert (before, alarm.subject) == ([], table)
    assert "refuses the application's UPDATE and DELETE" in alarm.text
    assert f'DROP TABLE "public"."{table.partition(".")[2]}";' in alarm.hint


async def test_it_hides_no_other_reason_and_is_over_once_the_table_is_out(shop: Database) -> None:
    async with running(shop, MemoryStore()) as engine:
        await engine.looked()
        shop.execute("ALTER PUBLICATION tailrace SET (publish = 'insert, update')")
        shop.execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey")
        alarm = await alarmed(engine)
        codes = {a.code for a in engine.alarms.standing() if a.subject == "public.orders"}
        shop.execute("ALTER PUBLICATION tailrace DROP TABLE orders")
        await engine.until(lambda: not refused(engine), "the alarm ended")
        out = {a.code for a in engine.alarms.standing() if a.subject == "public.orders"}

    assert "application's UPDATE" in alarm.text
    assert "DELETE" not in alarm.text
    assert codes == {NOT_CAPTURED, WRITES_REFUSED}
    assert NOT_CAPTURED in out
    assert WRITES_REFUSED not in out


async def test_where_only_inserts_are_published_nothing_is_refused(shop: Database) -> None:
    shop.execute("CREATE PUBLICATION tailrace FOR ALL TABLES WITH (publish = 'insert')")
    shop.execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey")
    async with running(shop, MemoryStore()) as engine:
        await engine.looked()
        shop.execute("DELETE FROM orders")
        found = refused(engine)

    assert found == []
