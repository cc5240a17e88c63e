"""Tables that appear later are added to the publication, or it is said why not."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import LiteralString

import msgspec
import pytest
from psycopg.conninfo import make_conninfo

from databases import Database, members, waiting_for_locks
from engine.journal.causes import NOT_CAPTURED
from engine.model.errors import SourceRefused
from engine.model.interfaces import Reason
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.sources.postgres.publishing import PostgresPublishing, absence, refusal, update_needed
from engine.sources.postgres.situation import Publication, Server, Table
from engine.sources.postgres.source import PostgresSource
from memory_store import MemoryStore
from test_catalog_watch import CONFIGURATION, Engine, make_orders, running
from test_hostile_sessions import role_on
from trials import tried

INITIAL = msgspec.structs.replace(CONFIGURATION, snapshot="initial")
ITEMS = TableName("public", "items")
NOTES = TableName("public", "notes")


@pytest.fixture
def published(any_database: Database) -> Database:
    """A publication of one table."""
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    any_database.execute("CREATE PUBLICATION tailrace FOR TABLE ONLY orders")
    return any_database


def publishing(database: Database, dsn: str = "") -> PostgresPublishing:
    return PostgresPublishing(dsn=dsn or database.dsn, configuration=CONFIGURATION)


async def test_tables_are_added_and_the_publication_itself_is_not_touched(
    published: Database,
) -> None:
    published.execute("CREATE TABLE items (id int PRIMARY KEY)")
    published.execute("CREATE TABLE notes (id int); ALTER TABLE notes REPLICA IDENTITY FULL")
    before = published.execute("SELECT oid, xmin FROM pg_publication")

    refused = await publishing(published).publish((ITEMS, NOTES))

    assert refused == {}
    assert members(published) == {"orders", "items", "notes"}
    assert published.execute("SELECT oid, xmin FROM pg_publication") == before


async def test_what_is_published_already_is_no_matter(published: Database) -> None:
    orders = TableName("public", "orders")

    assert await publishing(published).refused((orders,)) == {}
    assert await publishing(published).publish((orders,)) == {}


PARTITIONED: LiteralString = (
    "CREATE TABLE items (id int PRIMARY KEY) PARTITION BY RANGE (id);"
    " CREATE TABLE leaf PARTITION OF items FOR VALUES FROM (0) TO (9);"
    " ALTER TABLE leaf REPLICA IDENTITY NOTHING"
)
KEYLESS: list[LiteralString] = [
    "CREATE TABLE items (id int)",
    "CREATE TABLE items (id int PRIMARY KEY); ALTER TABLE items REPLICA IDENTITY NOTHING",
    # The server takes no identity from an index that is checked at the transaction's end.
    "CREATE TABLE items (id int PRIMARY KEY DEFERRABLE)",
    "CREATE TABLE items (id int UNIQUE)",
    PARTITIONED,
]


@pytest.mark.parametrize("statement", KEYLESS)
async def test_a_table_without_a_replica_identity_is_never_added(
    published: Database, statement: LiteralString
) -> None:
    published.execute("ALTER PUBLICATION tailrace SET (publish_via_partition_root = true)")
    for part in statement.split(";"):
        published.execute(part)

    asked = await publishing(published).refused((ITEMS,))
    refused = await publishing(published).publish((ITEMS,))

    assert members(published) == {"orders"}
    assert "no replica identity" in refused[ITEMS].text
    assert 'ALTER TABLE "public"."items" REPLICA IDENTITY FULL' in refused[ITEMS].hint
    assert asked == refused
    # What the application says goes on working.
    published.execute("INSERT INTO items VALUES (1)")
    published.execute("UPDATE items SET id = 2")
    published.execute("DELETE FROM items")


async def test_the_sql_that_is_shown_mends_it(published: Database) -> None:
    published.execute("CREATE TABLE items (id int)")
    [reason] = (await publishing(published).publish((ITEMS,))).values()

    for statement in reason.hint.rstrip(";").split(";"):
        published.execute(statement)

    assert "items" in members(published)
    published.execute("DELETE FROM items")


async def test_where_only_inserts_are_published_no_identity_is_needed(published: Database) -> None:
    published.execute("ALTER PUBLICATION tailrace SET (publish = 'insert')")
    published.execute("CREATE TABLE items (id int)")

    assert await publishing(published).publish((ITEMS,)) == {}
    published.execute("INSERT INTO items VALUES (1)")
    published.execute("DELETE FROM items")


async def test_a_key_that_is_dropped_between_the_look_and_the_addition_is_noticed(
    published: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.execute("CREATE TABLE items (id int PRIMARY KEY)")
    added = PostgresPublishing._alter

    async def late(
        self: PostgresPublishing, publication: Publication, tables: Sequence[Table]
    ) -> list[TableName]:
        published.execute("ALTER TABLE items DROP CONSTRAINT items_pkey")
        return await added(self, publication, tables)

    monkeypatch.setattr(PostgresPublishing, "_alter", late)
    refused = await publishing(published).publish((ITEMS,))

    assert members(published) == {"orders"}
    assert "no replica identity" in refused[ITEMS].text


async def test_a_locked_table_is_tried_again_and_holds_nobody_back(published: Database) -> None:
    published.execute("CREATE TABLE items (id int PRIMARY KEY)")
    published.execute("CREATE TABLE notes (id int PRIMARY KEY)")

    with published.connect(autocommit=False) as migration:
        migration.execute("ALTER TABLE items ADD COLUMN note text")
        async with asyncio.timeout(60):
            refused = await publishing(published).publish((ITEMS, NOTES))
        is_waiting = waiting_for_locks(published)
    again = await publishing(published).publish((ITEMS,))

    assert list(refused) == [ITEMS]
    assert "waits for a lock" in refused[ITEMS].text
    assert is_waiting == []
    assert again == {}
    assert members(published) == {"orders", "items", "notes"}


async def test_what_the_role_may_not_add_is_said_with_the_statement(published: Database) -> None:
    published.execute("CREATE TABLE items (id int PRIMARY KEY)")

    with role_on(published) as role:
        dsn = make_conninfo(published.dsn, user=role)
        foreign = await publishing(published, dsn).publish((ITEMS,))
        published.execute(f"ALTER PUBLICATION tailrace OWNER TO {role}")
        not_its_table = await publishing(published, dsn).publish((ITEMS,))
        published.execute(f"ALTER TABLE items OWNER TO {role}")
        own = await publishing(published, dsn).publish((ITEMS,))

    statement = 'ALTER PUBLICATION "tailrace" ADD TABLE ONLY "public"."items";'
    assert "which the role does not own" in foreign[ITEMS].text
    assert "the role does not own it" in not_its_table[ITEMS].text
    assert foreign[ITEMS].hint == not_its_table[ITEMS].hint == f"as its owner: {statement}"
    assert own == {}


async def test_without_a_publication_nothing_is_added(any_database: Database) -> None:
    any_database.execute("CREATE TABLE items (id int PRIMARY KEY)")

    refused = await publishing(any_database).publish((ITEMS,))

    assert refused[ITEMS].text == 'there is no publication "tailrace"'
    assert refused[ITEMS].hint.startswith('CREATE PUBLICATION "tailrace" FOR TABLE ONLY')


async def test_without_a_publication_one_statement_makes_it_for_all_tables(
    any_database: Database,
) -> None:
    notes, keyless = TableName("public", "notes"), TableName("public", "keyless")
    for statement in (
        "items (id int PRIMARY KEY)",
        "notes (id int PRIMARY KEY)",
        "keyless (a int)",
    ):
        any_database.execute(f"CREATE TABLE {statement}")

    refused = await publishing(any_database).publish((ITEMS, notes, keyless))
    any_database.execute(refused[ITEMS].hint)

    assert refused[ITEMS] == refused[notes]
    assert refused[keyless].hint.startswith("ALTER TABLE")
    assert members(any_database) == {"items", "notes"}


@pytest.mark.parametrize(
    ("version", "update"),
    [
        (140017, "14.18"),
        (140018, ""),
        (150012, "15.13"),
        (150013, ""),
        (160008, "16.9"),
        (160009, ""),
        (170004, "17.5"),
        (170005, ""),
        (180000, ""),
    ],
)
def test_minor_releases_that_keep_an_old_publication_are_named(version: int, update: str) -> None:
    server = Server(
        version=version,
        wal_level="logical",
        is_standby=False,
        role="tailrace",
        may_replicate=True,
        slot_count_max=10,
        slot_count=0,
        may_create=True,
    )
    publication = Publication(
        "tailrace",
        is_all_tables=False,
        is_via_root=True,
        has_all_operations=True,
        has_updates=True,
        tables=frozenset(),
        is_owned=True,
    )
    table = Table(ITEMS, is_partitioned=False, is_keyed=True, is_owned=True)

    reason = refusal(server, CONFIGURATION, publication, table)

    assert update_needed(version) == update
    assert (reason is None) == (not update)
    assert reason is None or f"before {update}" in reason.text


def test_the_statement_for_very_many_tables_is_not_in_each_tables_alarm() -> None:
    names = [TableName("public", f"t{number}") for number in range(21)]
    tables = [Table(name, is_partitioned=False, is_keyed=True, is_owned=True) for name in names]

    told = absence(CONFIGURATION, tables)

    assert {reason.hint for reason in told.values()} == {
        "`tailrace check` prints the SQL that makes it with all 21 tables"
    }


# --- beside a whole engine


@dataclass
class Noting:
    """Publishing that notes what the journal says when it is asked."""

    own: PostgresPublishing
    database: Database
    asked: list[tuple[TableName, ...]] = field(default_factory=list)
    states: list[dict[str, str]] = field(default_factory=list)
    engine: Engine | None = None

    async def refused(self, tables: Sequence[TableName]) -> Mapping[TableName, Reason]:
        return await self.own.refused(tables)

    async def publish(self, tables: Sequence[TableName]) -> Mapping[TableName, Reason]:
        assert self.engine is not None
        self.asked.append(tuple(tables))
        snapshots = self.engine.state().snapshots
        self.states.append({name: stated.snapshot.state for name, stated in snapshots.items()})
        return await self.own.publish(tables)


@pytest.fixture
def shop(any_database: Database) -> Database:
    make_orders(any_database)
    return any_database


async def test_a_new_table_is_wanted_in_the_journal_and_then_published(shop: Database) -> None:
    noting = Noting(publishing(shop), shop)
    async with running(shop, MemoryStore(), configuration=INITIAL, publishing=noting) as engine:
        noting.engine = engine
        shop.execute("CREATE TABLE items (id int PRIMARY KEY)")
        await engine.until(lambda: "items" in members(shop), "it published the table")
        gap = await engine.gap("public.items", "not-published")
        await engine.until(lambda: not engine.gaps()[-1].is_open, "the gap ended")
        await engine.looked()
        state, alarms = engine.state(), engine.alarms.standing()

    assert noting.asked == [(ITEMS,)]
    assert noting.states[0]["public.items"] == "wanted"
    # Nobody else's table lacks anything because of it.
    assert {(found.table, found.reason) for found in state.gaps.values()} == {
        ("public.items", gap.reason)
    }
    assert set(state.unfinished(state.durable_position)) >= {"public.items"}
    assert [alarm for alarm in alarms if alarm.code == NOT_CAPTURED] == []


async def test_a_table_without_an_identity_stands_and_is_not_wanted(shop: Database) -> None:
    noting = Noting(publishing(shop), shop)
    async with running(shop, MemoryStore(), configuration=INITIAL, publishing=noting) as engine:
        noting.engine = engine
        shop.execute("CREATE TABLE items (id int)")
        await engine.until(
            lambda: any(alarm.code == NOT_CAPTURED for alarm in engine.alarms.standing()),
            "the alarm stands",
        )
        await engine.looked()
        [alarm] = [alarm for alarm in engine.alarms.standing() if alarm.code == NOT_CAPTURED]
        state = engine.state()
        shop.execute("INSERT INTO items VALUES (1)")
        shop.execute("DELETE FROM items")

    assert alarm.subject == "public.items"
    assert "no replica identity" in alarm.text
    assert "REPLICA IDENTITY FULL" in alarm.hint
    assert "public.items" not in state.snapshots
    assert noting.asked == []
    assert members(shop) == {"orders", "lines"}


# --- what a first start asks of the role


def source(database: Database, role: str, configuration: RecordConfiguration) -> PostgresSource:
    dsn = make_conninfo(database.dsn, user=role)
    return PostgresSource(dsn=dsn, slot=database.name, configuration=configuration)


async def test_a_first_start_refuses_tables_that_it_may_not_read(published: Database) -> None:
    published.execute("CREATE TABLE items (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    published.execute("CREATE TABLE leaf PARTITION OF items FOR VALUES FROM (0) TO (9)")
    published.execute("ALTER PUBLICATION tailrace ADD TABLE items")

    with role_on(published) as role:
        published.execute(f"GRANT SELECT ON items TO {role}")
        with pytest.raises(SourceRefused) as refused:
            await source(published, role, INITIAL).prepare(is_first=True)
        with pytest.raises(SourceRefused):
            await tried(source(published, role, INITIAL), "read rights", is_first=True)
        # Those that stream already go on, and `check` says it.
        published.execute(
            "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", published.name
        )
        await source(published, role, INITIAL).prepare(is_first=False)
        later = await tried(source(published, role, INITIAL), "read rights", is_first=False)
        for statement in (refused.value.hint or "").split("; ")[:-1]:
            published.execute(statement)
        await source(published, role, INITIAL).prepare(is_first=True)

    assert "a snapshot cannot read 2 tables" in str(refused.value)
    assert '"public"."orders"' in (refused.value.hint or "")
    assert '"public"."leaf"' in (refused.value.hint or "")
    assert 'source.snapshot = "never"' in (refused.value.hint or "")
    assert later.hint
    assert "a snapshot cannot read 2 tables" in later.text


async def test_a_first_start_without_snapshots_needs_no_right_to_read(published: Database) -> None:
    with role_on(published) as role:
        await source(published, role, CONFIGURATION).prepare(is_first=True)


async def test_a_first_start_refuses_tables_whose_rows_a_policy_hides(published: Database) -> None:
    published.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")

    with role_on(published) as role:
        published.execute(f"GRANT SELECT ON orders TO {role}")
        with pytest.raises(SourceRefused) as refused:
            await source(published, role, INITIAL).prepare(is_first=True)
        published.execute(f"ALTER ROLE {role} BYPASSRLS")
        await source(published, role, INITIAL).prepare(is_first=True)

    assert "row-level security" in str(refused.value)
    assert "BYPASSRLS" in (refused.value.hint or "")
