"""Tables that change their shape, on real servers: what schema.json says, and what is a gap.

The whole pipeline runs here, over a bucket in memory, with short intervals.
"""

import json
from typing import Any, LiteralString

import pytest

from databases import Database
from memory_store import MemoryStore
from test_catalog_watch import SLOW, Engine, here, running


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
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE DOMAIN moods AS mood[]",
        "CREATE TABLE orders (id int PRIMARY KEY, note text, amount int, mood moods)",
        "CREATE SCHEMA staging",
        "CREATE TABLE staging.next (id int PRIMARY KEY, note text)",
    )
    async with running(database15, MemoryStore()) as engine:
        run(database15, "INSERT INTO orders VALUES (1, 'a', 1)")
        first = await version(engine, 1)
        run(
            database15,
            "ALTER TYPE mood ADD VALUE 'calm' BEFORE 'glad'",
            "ALTER TABLE orders RENAME note TO remark",
            "ALTER TABLE orders ADD made timestamptz DEFAULT '2026-11-29 09:00:00+02'",
            "ALTER TABLE orders ADD more int",
            "INSERT INTO orders VALUES (2, 'b', 2, '{calm}')",
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

    assert first["columns"][3]["labels"] == ["sad", "glad"]
    assert second["columns"][3]["labels"] == ["sad", "calm", "glad"]
    assert second["changes"] == [
        {"kind": "column_renamed", "column": "remark", "from": "note", "to": "remark"},
        {"kind": "labels_added", "column": "mood", "to": "calm"},
        {
            "kind": "column_added",
            "column": "made",
            "to": "timestamp with time zone",
            "default": "'2026-11-29 07:00:00+00'::timestamp with time zone",
            "fill": "2026-11-29T07:00:00Z",
        },
        {"kind": "column_added", "column": "more", "to": "integer"},
    ]
    assert [column.get("number") for column in second["columns"]] == [1, 2, 3, 4, 5, 6]
    assert [change["kind"] for change in third["changes"]] == [
        "column_dropped",
        "column_added",
        "replica_identity_changed",
    ]
    assert third["changes"][1]["fill"] == 7
    assert third["columns"][1]["name"] == "remark"
    assert third["columns"][3]["fill"] == "2026-11-29T07:00:00Z"
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


# --- values that change without a record

HIDDEN: list[tuple[str, list[LiteralString], str]] = [
    ("a volatile default", ["ALTER TABLE orders ADD r float DEFAULT random()"], "rows-rewritten"),
    (
        "an identity",
        ["ALTER TABLE orders ADD n int GENERATED ALWAYS AS IDENTITY"],
        "rows-rewritten",
    ),
    (
        "another type by an expression",
        ["ALTER TABLE orders ALTER amount TYPE bigint USING amount * 2"],
        "rows-rewritten",
    ),
    (
        "the same type by an expression",
        ["ALTER TABLE orders ALTER amount TYPE int USING amount * 2"],
        "rows-rewritten",
    ),
    (
        "another type without a rewrite",
        ["ALTER TABLE orders ALTER made TYPE timestamptz"],
        "type-changed",
    ),
    (
        "a column made anew",
        ["ALTER TABLE orders DROP amount", "ALTER TABLE orders ADD amount int"],
        "column-remade",
    ),
    (
        "a long default",
        ["ALTER TABLE orders ADD long text DEFAULT repeat('x', 2000)"],
        "column-filled",
    ),
    # No row came in between: nothing can tell the value any more.
    (
        "a constant default, and all written anew",
        ["ALTER TABLE orders ADD state text DEFAULT 'new'", "VACUUM FULL orders"],
        "rows-rewritten",
    ),
    ("a label renamed", ["ALTER TYPE mood RENAME VALUE 'sad' TO 'low'"], "label-renamed"),
    (
        "a composite type with an attribute more",
        ["ALTER TYPE pair ADD ATTRIBUTE c int"],
        "composite-altered",
    ),
    (
        "a table under another name",
        ["ALTER TABLE lines RENAME TO lines_old", "ALTER TABLE orders RENAME TO lines"],
        "renamed",
    ),
]

PLAIN: list[tuple[str, list[LiteralString]]] = [
    ("written anew as it is", ["VACUUM FULL orders"]),
    ("no default", ["ALTER TABLE orders ADD extra int"]),
    ("a longer text", ["ALTER TABLE orders ALTER note TYPE varchar(90)"]),
    ("a text", ["ALTER TABLE orders ALTER note TYPE text"]),
    (
        "generated, which is not sent",
        ["ALTER TABLE orders ADD g int GENERATED ALWAYS AS (1) STORED"],
    ),
    ("a constant default", ["ALTER TABLE orders ADD state text DEFAULT 'new'"]),
    ("an attribute renamed", ["ALTER TYPE pair RENAME ATTRIBUTE b TO d"]),
    ("a label added", ["ALTER TYPE mood ADD VALUE 'calm' BEFORE 'glad'"]),
    (
        "what says nothing of values",
        [
            "ALTER TABLE orders ALTER note SET STATISTICS 10",
            "ALTER TABLE orders ALTER note SET STORAGE EXTERNAL",
            "ALTER TABLE orders ALTER amount SET DEFAULT 9",
            "ALTER TABLE orders ALTER amount SET NOT NULL",
            "CREATE INDEX ON orders (note)",
            "ANALYZE orders",
            "VACUUM orders",
        ],
    ),
    ("a rename", ["ALTER TABLE orders RENAME note TO remark"]),
    ("dropped", ["ALTER TABLE orders DROP remark"]),
]


def make_moods(database: Database) -> None:
    run(
        database,
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE TABLE orders (id int PRIMARY KEY, note varchar(20), amount int, made timestamp,"
        " mood mood, pairs pair[])",
        "CREATE TABLE lines (id int PRIMARY KEY)",
    )


ROWS: list[LiteralString] = [
    "INSERT INTO orders VALUES (1, 'a', 1, '2026-11-29', 'sad')",
    "INSERT INTO lines VALUES (1)",
]


@pytest.mark.parametrize(
    ("statements", "reason"), [case[1:] for case in HIDDEN], ids=[case[0] for case in HIDDEN]
)
async def test_values_that_change_without_a_record_are_a_gap(
    database15: Database, statements: list[LiteralString], reason: str
) -> None:
    make_moods(database15)
    store = MemoryStore()
    async with running(database15, store, settings=SLOW) as engine:
        run(database15, *ROWS)
        begin = here(database15)
        # No look comes between them: the successor's first look finds it.
        run(database15, *statements)
        end = here(database15)

    async with running(database15, store) as engine:
        table = "public.lines" if reason == "renamed" else "public.orders"
        gap = await engine.gap(table, reason)
        await engine.looked()

        assert gap.after <= begin
        assert gap.until >= end
        others = {("public.lines_old", "renamed")} if reason == "renamed" else set()
        assert engine.reasons() == {(table, reason)} | others


async def test_a_generated_column_that_is_sent_from_now_on_is_a_gap(any_database: Database) -> None:
    run(
        any_database,
        "CREATE TABLE orders (id int PRIMARY KEY, note text,"
        " loud text GENERATED ALWAYS AS (upper(note)) STORED)",
    )
    store = MemoryStore()
    async with running(any_database, store, settings=SLOW) as engine:
        run(any_database, "INSERT INTO orders VALUES (1, 'a')")
        begin = here(any_database)
        run(any_database, "ALTER TABLE orders ALTER loud DROP EXPRESSION")
        end = here(any_database)

    async with running(any_database, store) as engine:
        gap = await engine.gap("public.orders", "column-shown")

        assert (gap.after <= begin, gap.until >= end) == (True, True)


async def test_what_changes_no_value_is_no_gap(any_database: Database) -> None:
    make_moods(any_database)
    async with running(any_database, MemoryStore()) as engine:
        run(any_database, *ROWS)
        for _, statements in PLAIN:
            run(any_database, *statements)
            await engine.looked()

        assert engine.gaps() == []


async def test_a_partitioned_tables_default_that_only_its_partitions_keep_is_a_gap(
    any_database: Database,
) -> None:
    run(
        any_database,
        "CREATE TABLE orders (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF orders FOR VALUES FROM (0) TO (10)",
    )
    async with running(any_database, MemoryStore()) as engine:
        run(any_database, "INSERT INTO orders VALUES (1, 'a')")
        await engine.looked()
        run(any_database, "ALTER TABLE orders ADD state text DEFAULT 'new'")
        await engine.gap("public.orders", "column-filled")
        run(any_database, "ALTER TABLE orders ADD extra text")
        await engine.looked()

        assert len(engine.gaps()) == 1


async def test_a_rename_that_nobody_can_prove_is_a_gap(database15: Database) -> None:
    run(
        database15,
        "CREATE TABLE orders (id int PRIMARY KEY, gone int, note text)",
        "ALTER TABLE orders DROP gone",
    )
    store = MemoryStore()
    async with running(database15, store, settings=SLOW):
        run(database15, "INSERT INTO orders VALUES (1, 'a')")
    run(
        database15,
        "ALTER TABLE orders RENAME note TO remark",
        "INSERT INTO orders VALUES (2, 'b')",
    )
    # The next engine's look at the catalog is behind the row: a column went, nobody knows when.
    async with running(database15, store) as engine:
        second = await version(engine, 2)
        gap = await engine.gap("public.orders", "columns-unclear")

    assert [change["kind"] for change in second["changes"]][:2] == [
        "column_dropped",
        "column_added",
    ]
    assert gap.until.startswith(second["from"][:5])
    assert gap.until > second["from"]
