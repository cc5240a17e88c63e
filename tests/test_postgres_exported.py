"""Exported snapshots: what they see, what is held for them, and when they are stale."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from databases import Database, fresh_database
from engine.model.errors import SnapshotStale, SourceRefused, SourceUnavailable
from engine.model.schema import TableName
from engine.operate.alarms import Alarms
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres
from engine.sources.postgres import exported
from engine.sources.postgres.exported import export
from engine.sources.postgres.lsn import lsn_of
from engine.sources.postgres.source import PostgresSource
from snapshot_reading import CONFIGURATION

ALARMS = Alarms(lambda: 0)
A, TREE = TableName("public", "a"), TableName("public", "tree")
HELD: LiteralString = """
    SELECT DISTINCT l.relation::regclass::text, l.mode FROM pg_locks l
    JOIN pg_class c ON c.oid = l.relation
    WHERE l.pid <> pg_backend_pid() AND c.relkind IN ('r', 'p')
    AND c.relnamespace = 'public'::regnamespace
"""
KEEPERS: LiteralString = """
    SELECT pid FROM pg_stat_activity WHERE datname = current_database()
    AND state = 'idle in transaction' ORDER BY backend_start
"""


@pytest.fixture
def tables(any_database: Database) -> Database:
    """A table with three rows, and one with two partitions and a row in each."""
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, x text, y text)")
        connection.execute("INSERT INTO a SELECT n, 'x', 'y' FROM generate_series(1, 3) AS n")
        connection.execute("CREATE TABLE tree (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE leaf1 PARTITION OF tree FOR VALUES FROM (0) TO (10)")
        connection.execute("CREATE TABLE leaf2 PARTITION OF tree FOR VALUES FROM (10) TO (20)")
        connection.execute("INSERT INTO tree VALUES (5), (15)")
    return any_database


def seen(database: Database, name: str, query: LiteralString) -> list[tuple[Any, ...]]:
    """The rows of a query under an exported snapshot."""
    with database.connect(autocommit=False) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute(f"SET TRANSACTION SNAPSHOT '{name}'".encode())
        return connection.execute(query).fetchall()


def end_keepers(database: Database, count: int) -> None:
    for (pid,) in database.execute(KEEPERS)[:count]:
        database.execute("SELECT pg_terminate_backend(%s, 60000)", pid)


async def test_it_sees_what_commits_before_its_point_and_nothing_else(tables: Database) -> None:
    [[before]] = tables.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
    async with export(tables.dsn, [A, TREE], generation=1, alarms=ALARMS) as snapshot:
        tables.execute("INSERT INTO a VALUES (4)")
        tables.execute("DELETE FROM a WHERE id = 1")
        [[after]] = tables.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")

        for name in snapshot.names:
            assert seen(tables, name, "SELECT id FROM a ORDER BY id") == [(1,), (2,), (3,)]
        assert before <= lsn_of(snapshot.point) < after
        assert [leaf.name for leaf in snapshot.images[TREE].leaves] == ["leaf1", "leaf2"]
        assert [leaf.name for leaf in snapshot.images[A].leaves] == ["a"]


async def test_no_more_is_locked_at_once_than_a_part_of_the_servers_locks(
    tables: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    [[locks]] = tables.execute(
        "SELECT current_setting('max_locks_per_transaction')::int"
        " * (current_setting('max_connections')::int"
        " + current_setting('max_prepared_transactions')::int)"
    )
    held: list[list[str]] = []
    # Place for four relations, for three, and for none: the tree has three, the table one.
    for place in (4, 3, 0):
        monkeypatch.setattr(exported, "LOCKS_SHARE", locks // place if place else locks + 1)
        async with export(tables.dsn, [TREE, A], generation=1, alarms=ALARMS) as snapshot:
            held.append(sorted(table.table for table in snapshot.images))
            locked = {relation for relation, _ in tables.execute(HELD)}
        assert not snapshot.left_out
        assert ("a" in locked) is (place == 4)

    assert held == [["a", "tree"], ["tree"], ["tree"]]


async def test_it_holds_access_share_locks_and_nothing_else_and_no_slot(tables: Database) -> None:
    async with export(tables.dsn, [A, TREE], generation=1, alarms=ALARMS):
        locks = set(tables.execute(HELD))
        slots = tables.execute(
            "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
        )

    assert locks == {(name, "AccessShareLock") for name in ("a", "tree", "leaf1", "leaf2")}
    assert not slots
    assert not tables.execute(HELD)


async def test_one_keeper_is_enough(tables: Database) -> None:
    async with export(tables.dsn, [A], generation=1, alarms=ALARMS) as snapshot:
        end_keepers(tables, 1)
        tables.execute("INSERT INTO a VALUES (4)")

        assert seen(tables, snapshot.names[1], "SELECT count(*) FROM a") == [(3,)]
        with pytest.raises(psycopg.Error):
            seen(tables, snapshot.names[0], "SELECT 1")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await snapshot.watch.over()
        end_keepers(tables, 1)
        async with asyncio.timeout(60):
            with pytest.raises(SnapshotStale, match="both sessions"):
                await snapshot.watch.over()


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("VACUUM FULL a", "a was rewritten or truncated"),
        ("CLUSTER a USING a_pkey", "a was rewritten or truncated"),
        ("TRUNCATE a", "a was rewritten or truncated"),
        ("ALTER TABLE a ALTER id TYPE bigint", "a has other columns"),
        ("ALTER TABLE a ADD COLUMN t timestamptz DEFAULT clock_timestamp()", "a has other columns"),
        ("ALTER TABLE a RENAME x TO z; ALTER TABLE a RENAME y TO x", "a has other columns"),
        ("DROP TABLE a", "does not exist"),
        ("DROP TABLE a; CREATE TABLE a (id int)", "dropped and made anew"),
        ("TRUNCATE leaf1", "leaf1 was rewritten or truncated"),
        ("CREATE TABLE leaf3 PARTITION OF tree FOR VALUES FROM (20) TO (30)", "a partition was"),
        ("ALTER TABLE tree DETACH PARTITION leaf2", "a partition was"),
    ],
)
async def test_what_changes_before_the_locks_are_had_makes_it_stale(
    tables: Database, monkeypatch: pytest.MonkeyPatch, statement: LiteralString, text: str
) -> None:
    table, other = (TREE, A) if "leaf" in statement else (A, TREE)
    monkeypatch.setattr(exported, "_keep", before_the_first(exported._keep, tables, statement))

    async with export(tables.dsn, [A, TREE], generation=1, alarms=ALARMS) as snapshot:
        error = snapshot.left_out[table]

        assert isinstance(error, SnapshotStale)
        assert re.search(text, str(error))
        assert set(snapshot.left_out) == {table}
        assert set(snapshot.images) == {other}

    assert not tables.execute(HELD)


def before_the_first(
    keep: Callable[..., Any], database: Database, statement: LiteralString
) -> Callable[..., Any]:
    """`keep`, with a change committed between the snapshot and the first lock."""
    statements = [part.strip() for part in statement.split(";")]

    async def changed(*arguments: Any) -> object:
        while statements:
            database.execute(statements.pop(0))
        return await keep(*arguments)

    return changed


async def test_a_partition_that_is_attached_later_is_found_when_it_is_compared_again(
    tables: Database,
) -> None:
    async with export(tables.dsn, [A, TREE], generation=1, alarms=ALARMS) as snapshot:
        await snapshot.compare([A, TREE])
        tables.execute("CREATE TABLE other (id int PRIMARY KEY)")
        tables.execute("ALTER TABLE tree ATTACH PARTITION other FOR VALUES FROM (20) TO (30)")

        with pytest.raises(SnapshotStale, match="a partition was attached"):
            await snapshot.compare([A, TREE])


async def test_a_table_that_somebody_changes_just_now_is_left_out_and_not_waited_for(
    tables: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tables.connect(autocommit=False) as migration:

        async def locked(*arguments: Any) -> object:
            migration.execute("LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
            return await keep(*arguments)

        keep = exported._keep
        monkeypatch.setattr(exported, "_keep", locked)
        async with export(tables.dsn, [A, TREE], generation=1, alarms=ALARMS) as snapshot:
            assert isinstance(snapshot.left_out[A], SnapshotStale)
            assert "could not obtain lock" in str(snapshot.left_out[A])
            assert set(snapshot.images) == {TREE}
        migration.rollback()


async def test_a_table_that_is_not_there_is_left_out(tables: Database) -> None:
    gone = TableName("nowhere", "gone")

    async with export(tables.dsn, [A, gone], generation=1, alarms=ALARMS) as snapshot:
        assert isinstance(snapshot.left_out[gone], SnapshotStale)
        assert set(snapshot.images) == {A}


async def test_a_snapshot_of_another_server_or_timeline_is_refused(
    tables: Database, postgres: EmbeddedPostgres, postgres15: EmbeddedPostgres
) -> None:
    other = postgres15 if tables.server is postgres else postgres
    own, others = await system_at(tables.dsn), await system_at(other.dsn)
    for system, timeline in ((others, "1"), (own, "2")):
        with pytest.raises(SourceUnavailable, match="the stream is that of") as caught:
            async with export(tables.dsn, [A], 1, ALARMS, system=system, timeline=timeline):
                pytest.fail("it is held")
        assert "source.dsn has to lead to one server" in caught.value.hint

    async with export(tables.dsn, [A], 1, ALARMS, system=own, timeline="1") as snapshot:
        assert set(snapshot.images) == {A}


async def system_at(dsn: str) -> str:
    source = PostgresSource(dsn=dsn, slot="s", configuration=CONFIGURATION)
    return (await source.identify()).facts["system_identifier"]


class Elsewhere:
    """A dsn that leads to another server after the first connect."""

    is_rotated = True

    def __init__(self, first: str, later: str) -> None:
        self.worked: set[bool] = set()
        self.known: str | None = None
        self._places = iter([first])
        self._later = later

    async def read(self) -> str:
        self.known = next(self._places, self._later)
        return self.known


async def test_all_sessions_are_with_the_server_that_exported(tables: Database) -> None:
    elsewhere = make_conninfo(tables.dsn, port=1)

    async with export(Elsewhere(tables.dsn, elsewhere), [A], 1, ALARMS) as snapshot:
        await snapshot.compare([A])
        assert set(snapshot.images) == {A}


async def test_a_server_that_throws_away_what_old_snapshots_see_is_refused() -> None:
    settings = {**FAST_SETTINGS, "old_snapshot_threshold": "1min"}
    with (
        EmbeddedPostgres.debian(15, settings=settings) as server,
        fresh_database(server) as database,
    ):
        database.execute("CREATE TABLE a (id int PRIMARY KEY)")

        with pytest.raises(SourceRefused, match="old_snapshot_threshold is 1min") as caught:
            async with export(database.dsn, [A], 1, ALARMS):
                pytest.fail("it is held")

    assert "old_snapshot_threshold = -1" in caught.value.hint
