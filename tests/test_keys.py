"""`metadata.key`: what it names, and when it changes without a word in the stream."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from databases import Database
from engine.model.position import Position, make_position
from engine.model.schema import Column, Relation, TableName, TableVersion, decide_version
from engine.pipeline.pipeline import Pipeline
from engine.sources.postgres.source import PostgresSource
from engine.sources.postgres.stream import PostgresStream
from live_engine import ALL_TABLES, LiveEngine, settings_of
from load_tests.engine_process import until
from memory_store import MemoryStore

ORDERS = TableName("public", "orders")
FULL = (Column("id", "integer", "integer", key=True), Column("no", "integer", "integer", key=True))


def at(commit: int) -> Position:
    return make_position(1, commit, commit - 8, 0)


def relation(*key: str, is_guessed: bool = False, columns: tuple[Column, ...] = FULL) -> Relation:
    return Relation(ORDERS, "1", columns, key, is_key_guessed=is_guessed)


def version_after(known: Relation, seen: Relation) -> TableVersion:
    first = decide_version((), known, "", at(100))
    return decide_version((first,), seen, "", at(200))


def first_version(relation: Relation, position: Position) -> TableVersion:
    return TableVersion(1, position, "", relation)


# --- the rule


def test_another_key_is_another_version() -> None:
    version = version_after(relation("id"), relation("no"))

    assert (version.number, version.relation.key) == (2, ("no",))


def test_a_guess_never_takes_the_place_of_the_key_in_force() -> None:
    version = version_after(relation("id"), relation("no", is_guessed=True))

    assert (version.number, version.relation.key) == (1, ("id",))


def test_a_guess_is_better_than_nothing_and_is_none_once_it_is_a_versions() -> None:
    version = decide_version((), relation("id", is_guessed=True), "", at(100))

    assert (version.relation.key, version.relation.is_key_guessed) == (("id",), False)


def test_a_column_more_keeps_the_key_while_another_is_a_guess() -> None:
    more = (*FULL, Column("more", "integer", "integer", key=True))

    kept = version_after(relation("id"), relation("no", is_guessed=True, columns=more))
    whole = version_after(
        relation("id", "no"), relation("id", "no", "more", is_guessed=True, columns=more)
    )

    assert (kept.number, kept.relation.key) == (2, ("id",))
    assert (whole.number, whole.relation.key) == (2, ("id", "no", "more"))


def test_a_key_whose_column_is_gone_gives_way_to_a_guess() -> None:
    version = version_after(relation("id"), relation("no", is_guessed=True, columns=FULL[1:]))

    assert version.relation.key == ("no",)


# --- on real servers


async def key_becomes(
    engine: LiveEngine, pipeline: Pipeline, key: list[str], *, first_id: int
) -> None:
    """Write a row at a time until one has the key."""
    number = first_id

    async def look() -> bool:
        nonlocal number
        engine.database.execute("INSERT INTO orders VALUES (%s, %s)", number, number)
        number += 1
        await engine.durable(pipeline)
        return bool(engine.records("public.orders")[-1]["metadata"]["key"] == key)

    await until(look, f"a row with the key {key}")


def other_primary_key(database: Database) -> None:
    with database.connect() as connection, connection.transaction():
        connection.execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey")
        connection.execute("ALTER TABLE orders ADD PRIMARY KEY (no)")


def assert_keys_are_as_the_schemas_say(engine: LiveEngine, versions: int) -> None:
    records = engine.records("public.orders")
    assert [record["metadata"]["version"] for record in records][-1] == versions
    for record in records:
        metadata = record["metadata"]
        assert metadata["key"] == engine.schema("orders", metadata["version"])["key"]


async def test_another_primary_key_under_full_becomes_another_version(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY, no int NOT NULL)")
    any_database.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
    engine = LiveEngine(any_database)

    async with engine.living() as pipeline:
        await key_becomes(engine, pipeline, ["id"], first_id=1)
        other_primary_key(any_database)
        # The hour's worth of looks is not waited for: the relation that is sent again is a hint.
        await key_becomes(engine, pipeline, ["no"], first_id=1000)

    await engine.proven()
    assert_keys_are_as_the_schemas_say(engine, 2)
    assert [change["kind"] for change in engine.schema("orders", 2)["changes"]] == ["key_changed"]


async def test_a_primary_key_that_changed_between_two_lives_begins_where_the_look_was(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY, no int NOT NULL)")
    any_database.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
    engine = LiveEngine(any_database)

    async with engine.living() as pipeline:
        await key_becomes(engine, pipeline, ["id"], first_id=1)
    any_database.execute("INSERT INTO orders VALUES (10, 10)")
    other_primary_key(any_database)
    any_database.execute("INSERT INTO orders VALUES (11, 11)")
    async with engine.living() as pipeline:
        await engine.durable(pipeline)
        any_database.execute("INSERT INTO orders VALUES (12, 12)")
        await engine.durable(pipeline)

    await engine.proven()
    assert_keys_are_as_the_schemas_say(engine, 2)
    keys = [
        (record["after"]["id"], record["metadata"]["key"])
        for record in engine.records("public.orders")
    ]
    # Nobody can tell any more when it changed: up to the look the key in force stays.
    assert keys == [(1, ["id"]), (10, ["id"]), (11, ["id"]), (12, ["no"])]


async def test_a_key_that_goes_and_comes_back_is_two_more_versions_with_kills_between(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY, no int NOT NULL)")
    any_database.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
    engine = LiveEngine(any_database)
    async with engine.living(is_killed=True) as pipeline:
        await key_becomes(engine, pipeline, ["id"], first_id=1)
    other_primary_key(any_database)
    async with engine.living(is_killed=True) as pipeline:
        await key_becomes(engine, pipeline, ["no"], first_id=1000)
    with any_database.connect() as connection, connection.transaction():
        connection.execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey")
    async with engine.living() as pipeline:
        await key_becomes(engine, pipeline, ["id", "no"], first_id=2000)

    await engine.proven()
    assert_keys_are_as_the_schemas_say(engine, 3)


@dataclass
class HeldStore(MemoryStore):
    """Tables' objects wait for ever while `is_held`."""

    is_held: bool = False

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        if self.is_held and ".ndjson." in key:
            await asyncio.Event().wait()
        return await super().create(key, body, content_type=content_type, metadata=metadata)


async def test_rows_on_both_sides_of_another_key_are_redone_as_they_were_planned(
    any_database: Database,
) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY, no int NOT NULL)")
    any_database.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
    store = HeldStore()
    engine = LiveEngine(any_database, settings_of(age_seconds_max=2.0), store=store)
    number = 1

    async def is_planned() -> bool:
        nonlocal number
        number += 1
        any_database.execute("INSERT INTO orders VALUES (%s, %s)", number, number)
        return "/version=0002/" in engine.planned()[-1].key

    async with engine.living(is_killed=True) as pipeline:
        any_database.execute("INSERT INTO orders VALUES (1, 1)")
        await engine.durable(pipeline)
        store.is_held = True
        any_database.execute("INSERT INTO orders VALUES (0, 0)")
        other_primary_key(any_database)
        await until(is_planned, "a plan under the other key")
    missing = [planned.key for planned in engine.planned() if planned.key not in store.objects]
    store.is_held = False
    async with engine.living() as pipeline:
        await engine.durable(pipeline)

    await engine.proven()
    assert {key.partition("/version=")[2][:4] for key in missing} == {"0001", "0002"}
    assert_keys_are_as_the_schemas_say(engine, 2)
    ids = [record["after"]["id"] for record in engine.records("public.orders")]
    assert ids == [1, 0, *range(2, number + 1)]


@pytest.mark.parametrize("identity", ["USING INDEX by_no", "DEFAULT"])
async def test_a_deletes_key_names_columns_that_are_in_before(
    any_database: Database, identity: str
) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY, no int NOT NULL, v int)")
        connection.execute("CREATE UNIQUE INDEX by_no ON orders (no)")
        connection.execute(f"ALTER TABLE orders REPLICA IDENTITY {identity}".encode())
    engine = LiveEngine(any_database)

    async with engine.living() as pipeline:
        any_database.execute("INSERT INTO orders VALUES (1, 2, 3)")
        any_database.execute("DELETE FROM orders")
        await engine.durable(pipeline)

    await engine.proven()
    deleted = engine.records("public.orders")[-1]
    assert list(deleted["before"]) == deleted["metadata"]["key"]


async def test_columns_that_a_keys_index_includes_are_not_of_the_key(
    any_database: Database,
) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE orders (id int, no int, PRIMARY KEY (id) INCLUDE (no))")
        connection.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
    engine = LiveEngine(any_database)

    async with engine.living() as pipeline:
        any_database.execute("INSERT INTO orders VALUES (1, 2)")
        await engine.durable(pipeline)

    assert engine.records("public.orders")[0]["metadata"]["key"] == ["id"]


async def test_tables_that_are_gone_are_forgotten(any_database: Database) -> None:
    any_database.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    any_database.execute("CREATE TABLE stays (id int PRIMARY KEY)")
    source = PostgresSource(
        dsn=any_database.dsn,
        slot=any_database.name,
        configuration=ALL_TABLES,
        look_seconds=0.05,
    )
    await source.prepare(is_first=True)

    async with source.stream(None, ALL_TABLES, first_version) as stream:
        assert isinstance(stream, PostgresStream)
        for number in range(5):
            any_database.execute(f"CREATE TABLE t{number} (id int PRIMARY KEY)")
            any_database.execute(f"INSERT INTO t{number} VALUES (1)")
            any_database.execute(f"DROP TABLE t{number}")
        any_database.execute("INSERT INTO stays VALUES (1)")
        known: list[int] = []

        async def look() -> bool:
            any_database.execute("SELECT pg_logical_emit_message(true, 'test', '')")
            await stream.receive()
            known.append(len(stream._assembler.known_oids))
            return max(known) > 1 and known[-1] == 1

        await until(look, "five tables to be forgotten")
