"""Tables that change their shape, on real servers: what schema.json says, and what is a gap.

The whole pipeline runs here, over a bucket in memory, with short intervals.
"""

import json
from typing import Any, LiteralString

from databases import Database
from memory_store import MemoryStore
from test_catalog_watch import Engine, running


def documents(engine: Engine, table: str = "orders") -> dict[int, dict[str, Any]]:
    """Each version's schema.json that is in the bucket."""
    found = {}
    for key, stored in engine.store.objects.items():
        if key.endswith("/schema.json") and f"/table={table}/" in key:
            document = json.loads(stored.body)
            found[document["version"]] = document
    return found


async def version(engine: Engine, number: int, table: str = "orders") -> dict[str, Any]:
    """That version's schema.json, once it is there."""
    await engine.until(lambda: number in documents(engine, table), f"version {number}")
    return documents(engine, table)[number]


def run(database: Database, *statements: LiteralString) -> None:
    for statement in statements:
        database.execute(statement)


async def test_schema_json_classifies_what_an_alter_table_did(database15: Database) -> None:
    run(
        database15,
        "CREATE TABLE orders (id int PRIMARY KEY, note text, amount int)",
        "CREATE SCHEMA staging",
        "CREATE TABLE staging.next (id int PRIMARY KEY, note text)",
    )
    async with running(database15, MemoryStore()) as engine:
        run(database15, "INSERT INTO orders VALUES (1, 'a', 1)")
        await version(engine, 1)
        run(
            database15,
            "ALTER TABLE orders RENAME note TO remark",
            "ALTER TABLE orders ADD made timestamptz DEFAULT '2026-11-29 09:00:00+02'",
            "ALTER TABLE orders ADD more int",
            "INSERT INTO orders VALUES (2, 'b', 2)",
        )
        second = await version(engine, 2)
        run(
            database15,
            "ALTER TABLE orders DROP amount, ADD amount bigint NOT NULL DEFAULT 7",
            "ALTER TABLE orders REPLICA IDENTITY FULL",
            "INSERT INTO orders VALUES (3, 'c')",
        )
        third = await version(engine, 3)
        run(
            database15,
            "ALTER TABLE orders RENAME TO orders_old",
            "ALTER TABLE orders_old SET SCHEMA staging",
            "ALTER TABLE staging.orders_old RENAME TO old",
            "CREATE TABLE orders (id int PRIMARY KEY)",
            "ALTER PUBLICATION tailrace ADD TABLE ONLY orders",
            "INSERT INTO orders VALUES (1)",
        )
        fourth = await version(engine, 4)

    assert second["changes"] == [
        {"kind": "column_renamed", "column": "remark", "from": "note", "to": "remark"},
        {
            "kind": "column_added",
            "column": "made",
            "to": "timestamp with time zone",
            "default": "'2026-11-29 07:00:00+00'::timestamp with time zone",
            "fill": "2026-11-29T07:00:00Z",
        },
        {"kind": "column_added", "column": "more", "to": "integer"},
    ]
    assert [column.get("number") for column in second["columns"]] == [1, 2, 3, 4, 5]
    assert [change["kind"] for change in third["changes"]] == [
        "column_dropped",
        "column_added",
        "replica_identity_changed",
    ]
    assert third["changes"][1]["fill"] == 7
    assert third["columns"][1]["name"] == "remark"
    assert third["columns"][2]["fill"] == "2026-11-29T07:00:00Z"
    assert fourth["changes"][0]["kind"] == "table_recreated"


async def test_schema_json_says_the_name_that_a_table_had_before(any_database: Database) -> None:
    run(
        any_database,
        "CREATE SCHEMA staging",
        "CREATE TABLE fresh (id int PRIMARY KEY)",
        "ALTER TABLE fresh SET SCHEMA public",
        "CREATE TABLE orders (id int PRIMARY KEY)",
    )
    async with running(any_database, MemoryStore()) as engine:
        run(any_database, "INSERT INTO fresh VALUES (1)", "INSERT INTO orders VALUES (1)")
        await version(engine, 1)
        run(
            any_database,
            "ALTER TABLE orders RENAME TO orders_old",
            "ALTER TABLE fresh RENAME TO orders",
            "INSERT INTO orders VALUES (2)",
        )
        second = await version(engine, 2)

    assert second["changes"][0] == {"kind": "table_renamed", "from": "fresh", "to": "orders"}
