"""Large tables in segments: places by the table's key, ranges by conditions of it, on servers."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString

import pytest

from databases import Database, dsn_as, fresh_database
from engine.model.errors import SnapshotStale
from engine.model.schema import TableName
from engine.model.snapshot_source import HeldTable
from engine.servers.postgres_server import EmbeddedPostgres
from engine.sources.postgres import held as held_module
from engine.sources.postgres import range_reader
from engine.sources.postgres.copy_rows import CopyRange, CopyReader
from engine.sources.postgres.held_session import HeldSession
from engine.sources.postgres.ranges import decode_own
from engine.sources.postgres.segments import Segment
from load_tests.engine_process import until
from snapshot_reading import read_tasks, snapshots_of, tasks_of
from test_hostile_sessions import make_shadows, role_on, shadows_ran

A = TableName("public", "a")
ROWS = 2_000


@dataclass
class Segments:
    """A table read in segments, one after the other: what was held, and the rows of each."""

    helds: list[HeldTable] = field(default_factory=list)
    rows: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def all_rows(self) -> list[dict[str, Any]]:
        return [row for rows in self.rows for row in rows]


async def read_in_segments(
    database: Database,
    *,
    segment_pages: int = 16,
    range_pages: int = 4,
    between: Sequence[LiteralString] = (),
) -> Segments:
    """All of `a`, `between` done after each segment."""
    snapshots = snapshots_of(database, range_pages=range_pages, segment_bytes=segment_pages * 8192)
    found, rest = Segments(), ""
    while not found.helds or rest:
        async with snapshots.hold([A], {A: rest} if rest else {}) as held:
            assert not held.left_out
            table = held.tables[A]
            assert table.begin == rest
            reading = await read_tasks(database.dsn, tasks_of(held, A))
        found.helds.append(table)
        found.rows.append(reading.rows)
        rest = table.rest
        for statement in between:
            database.execute(statement)
    return found


def conditions(table: HeldTable) -> list[str | None]:
    return [decode_own(own).key_condition for own in table.ranges]


# --- keys of many kinds

# Names, types and values that are hard to quote, to compare, or to note as text.
KEYS: dict[str, tuple[LiteralString, LiteralString]] = {
    "numbers": ("k bigint PRIMARY KEY", "n"),
    "numbers below zero": ("k int PRIMARY KEY", "n - 1000"),
    "two columns": ("k int, l text, PRIMARY KEY (l, k)", "n / 7, 'x' || n % 7"),
    "three columns": (
        'k int, l date, "M ""m" smallint, PRIMARY KEY (k, l, "M ""m")',
        "n % 3, date '2026-01-01' + n / 300, n / 3",
    ),
    "quotes": (
        "k text PRIMARY KEY",
        "CASE n % 4 WHEN 0 THEN '''' WHEN 1 THEN '\\' WHEN 2 THEN '%s' ELSE E'\\n\"' END || n",
    ),
    "another encoding's letters": ("k text PRIMARY KEY", "chr(200 + n % 3000) || 'ß€' || n"),
    "plain collation": ('k text COLLATE "C" PRIMARY KEY', "chr(65 + n % 60) || n"),
    "a collation of ICU": ('k text COLLATE "de-x-icu" PRIMARY KEY', "chr(65 + n % 60) || n"),
    "blanks": ("k char(12) PRIMARY KEY", "'  ' || n"),
    "varchar": ("k varchar(40) PRIMARY KEY", "md5(n::text)"),
    "name": ("k name PRIMARY KEY", "md5(n::text)"),
    "numeric": ("k numeric PRIMARY KEY", "n / 7.0 * (CASE n % 2 WHEN 0 THEN 1 ELSE -1e30 END)"),
    "not a number": (
        "k numeric PRIMARY KEY",
        "CASE n WHEN 1 THEN 'NaN'::numeric WHEN 2 THEN 'Infinity' ELSE n END",
    ),
    "double precision": ("k float8 PRIMARY KEY", "1 / (n + 0.1::float8)"),
    "uuid": ("k uuid PRIMARY KEY", "md5(n::text)::uuid"),
    "timestamptz": (
        "k timestamptz PRIMARY KEY",
        "timestamptz '2026-01-01 00:00:00.000001+02' + n * interval '1 min 1 us'",
    ),
    "before Christ": (
        "k timestamp PRIMARY KEY",
        "CASE n WHEN 1 THEN 'infinity' ELSE timestamp '0003-01-01 BC' + n * interval '1 day' END",
    ),
    "date": ("k date PRIMARY KEY", "date '1999-12-31' + n"),
    "time": ("k timetz PRIMARY KEY", "timetz '00:00:00+14' + n * interval '7 s'"),
    "interval": ("k interval PRIMARY KEY", "n * interval '1 mon -3 days 0.5 s'"),
    "bytea": ("k bytea PRIMARY KEY", "decode(md5(n::text), 'hex')"),
    "bits": ("k bit varying PRIMARY KEY", "n::bit(24)"),
    "inet": ("k inet PRIMARY KEY", "inet '10.0.0.0' + n"),
    "cidr": ("k cidr PRIMARY KEY", "(inet '10.0.0.0' + n)::cidr"),
    "macaddr": ("k macaddr PRIMARY KEY", "('08002b' || lpad(to_hex(n), 6, '0'))::macaddr"),
    "the replica identity's key": (
        "k int NOT NULL UNIQUE, l int PRIMARY KEY",
        "n, -n",
    ),
    "a key with more in its index": ("k int, l int, PRIMARY KEY (k) INCLUDE (l)", "n, n % 5"),
}


def make_table(database: Database, columns: LiteralString, values: LiteralString) -> None:
    """A table of about forty pages."""
    with database.connect() as connection:
        connection.execute(f"CREATE TABLE a ({columns}, pad text)".encode())
        connection.execute(
            f"INSERT INTO a SELECT {values}, repeat('x', 100)"
            f" FROM generate_series(1, {ROWS}) AS n ORDER BY md5(n::text)".encode()
        )


@pytest.mark.parametrize("kind", KEYS)
async def test_each_row_is_in_exactly_one_range_of_one_segment(
    database15: Database, kind: str
) -> None:
    await hold_that_it_is_cut_well(database15, kind)


# PostgreSQL 14 does not tell whose order a database's text has: such keys are not cut there.
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("two columns", marks=pytest.mark.since(15)),
        pytest.param("quotes", marks=pytest.mark.since(15)),
        "timestamptz",
    ],
)
async def test_each_row_is_in_exactly_one_range_also_on_the_newest_server(
    database: Database, kind: str
) -> None:
    await hold_that_it_is_cut_well(database, kind)


async def hold_that_it_is_cut_well(database: Database, kind: str) -> None:
    make_table(database, *KEYS[kind])
    if kind == "the replica identity's key":
        database.execute("ALTER TABLE a REPLICA IDENTITY USING INDEX a_k_key")

    found = await read_in_segments(database)

    assert len(found.helds) > 2
    assert all(len(held.ranges) > 2 for held in found.helds)
    assert all(None not in conditions(held) for held in found.helds)
    rows = [json.dumps(row, sort_keys=True) for row in found.all_rows]
    assert len(set(rows)) == len(rows) == ROWS
    sizes = [len(rows) for rows in found.rows]
    assert max(sizes) < 2 * min(sizes)
    for held, rows_of in zip(found.helds, found.rows, strict=True):
        assert held.rows_estimate == pytest.approx(len(rows_of), rel=0.1, abs=10)


async def test_the_order_of_segments_is_the_databases_own(database15: Database) -> None:
    make_table(database15, *KEYS["a collation of ICU"])

    found = await read_in_segments(database15)

    ordered = [row[0] for row in database15.execute("SELECT k FROM a ORDER BY k")]
    begin = 0
    for rows in found.rows:
        assert {row["k"] for row in rows} == set(ordered[begin : begin + len(rows)])
        begin += len(rows)


async def test_rows_that_change_between_segments_are_as_each_snapshot_sees_them(
    any_database: Database,
) -> None:
    make_table(any_database, *KEYS["numbers"])

    found = await read_in_segments(
        any_database,
        between=(
            "INSERT INTO a SELECT max(k) + 1, 'late' FROM a",
            "UPDATE a SET pad = 'changed' WHERE k % 2 = 0 AND pad <> 'changed'",
            "DELETE FROM a WHERE k % 100 = 0",
        ),
    )

    keys = [row["k"] for row in found.all_rows]
    assert len(set(keys)) == len(keys)
    assert {row["pad"] for row in found.rows[0]} == {"x" * 100}
    assert {row["pad"] for row in found.rows[-1] if row["k"] % 2 == 0} == {"changed"}
    # What came before the last segment's point is in it.
    late = [row for row in found.rows[-1] if row["pad"] == "late"]
    assert len(late) >= len(found.helds) // 2
    assert not [row for rows in found.rows[1:] for row in rows if row["k"] % 100 == 0]


# --- which tables


NOT_DIVIDED: dict[str, tuple[LiteralString, ...]] = {
    "no key": ("CREATE TABLE a (k int, pad text)",),
    "a partitioned table": (
        "CREATE TABLE a (k int PRIMARY KEY, pad text) PARTITION BY RANGE (k)",
        "CREATE TABLE a1 PARTITION OF a DEFAULT",
    ),
    "an enum": (
        "CREATE TYPE mood AS ENUM ('well', 'ill')",
        "CREATE TABLE a (k int, m mood DEFAULT 'ill', pad text, PRIMARY KEY (m, k))",
    ),
    "a domain": (
        "CREATE DOMAIN number AS int",
        "CREATE TABLE a (k number PRIMARY KEY, pad text)",
    ),
    "a class of operators that is not the default": (
        "CREATE TABLE a (k text NOT NULL, pad text)",
        "CREATE UNIQUE INDEX i ON a (k text_pattern_ops)",
        "ALTER TABLE a REPLICA IDENTITY USING INDEX i",
    ),
    "an index that is sorted the other way": (
        "CREATE TABLE a (k int NOT NULL, pad text)",
        "CREATE UNIQUE INDEX i ON a (k DESC)",
        "ALTER TABLE a REPLICA IDENTITY USING INDEX i",
    ),
    "an index with another collation": (
        'CREATE TABLE a (k text COLLATE "C" NOT NULL, pad text)',
        'CREATE UNIQUE INDEX i ON a (k COLLATE "de-x-icu")',
        "ALTER TABLE a REPLICA IDENTITY USING INDEX i",
    ),
    "a key that is checked late": ("CREATE TABLE a (k int PRIMARY KEY DEFERRABLE, pad text)",),
    "an array": ("CREATE TABLE a (k int[] PRIMARY KEY, pad text)",),
}


@pytest.mark.parametrize("kind", NOT_DIVIDED)
async def test_a_table_without_such_a_key_is_held_whole(database15: Database, kind: str) -> None:
    for statement in NOT_DIVIDED[kind]:
        database15.execute(statement)
    value: LiteralString = "ARRAY[n]" if kind == "an array" else "n"
    value = "n::text" if "collation" in kind or "operators" in kind else value
    database15.execute(
        f"INSERT INTO a (k, pad) SELECT {value}, repeat('x', 100) FROM generate_series(1, {ROWS}) n"
    )

    found = await read_in_segments(database15)

    [held] = found.helds
    assert (held.begin, held.rest) == ("", "")
    assert set(conditions(held)) == {None}
    assert len(found.all_rows) == ROWS


async def test_a_table_whose_index_was_sorted_by_another_version_is_held_whole(
    database15: Database,
) -> None:
    database15.execute("CREATE COLLATION old (provider = icu, locale = 'de')")
    make_table(database15, "k text COLLATE old PRIMARY KEY", "chr(65 + n % 60) || n")
    divided = await read_in_segments(database15)
    database15.execute("UPDATE pg_collation SET collversion = '1' WHERE collname = 'old'")

    whole = await read_in_segments(database15)

    assert len(divided.helds) > 2
    assert len(whole.helds) == 1
    assert len(whole.all_rows) == ROWS


async def test_an_index_that_older_snapshots_may_not_use_finds_every_row_of_ours(
    database15: Database,
) -> None:
    make_table(database15, "k int NOT NULL, l int", "n, n")
    database15.execute("DELETE FROM a WHERE k % 2 = 0")
    database15.execute("VACUUM a")
    with database15.connect(autocommit=False) as older:
        older.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        older.execute("SELECT 1")
        # New versions of rows beside the old ones, which that snapshot still sees.
        database15.execute("UPDATE a SET k = -k")
        database15.execute("CREATE UNIQUE INDEX i ON a (k)")
        database15.execute("ALTER TABLE a REPLICA IDENTITY USING INDEX i")
        [[is_hit]] = database15.execute(
            "SELECT indcheckxmin FROM pg_index WHERE indexrelid = 'i'::regclass"
        )

        found = await read_in_segments(database15)

    assert is_hit
    assert len(found.helds) > 1
    assert len(found.all_rows) == ROWS // 2


async def test_a_table_of_a_database_without_an_encoding_is_held_whole(
    postgres15: EmbeddedPostgres,
) -> None:
    with fresh_database(postgres15, encoding="SQL_ASCII") as database:
        make_table(database, *KEYS["numbers"])

        found = await read_in_segments(database)

    assert len(found.helds) == 1
    assert len(found.all_rows) == ROWS


@pytest.mark.parametrize(("pages", "is_divided"), [(30, True), (60, False)])
async def test_only_a_table_beyond_the_limit_is_divided(
    any_database: Database, pages: int, *, is_divided: bool
) -> None:
    make_table(any_database, *KEYS["numbers"])

    found = await read_in_segments(any_database, segment_pages=pages)

    assert (len(found.helds) > 1) == is_divided
    assert (None not in conditions(found.helds[0])) == is_divided
    assert len(found.all_rows) == ROWS


async def test_large_values_count_in_the_size(database15: Database) -> None:
    database15.execute("CREATE TABLE a (k int PRIMARY KEY, pad text)")
    database15.execute("ALTER TABLE a ALTER pad SET STORAGE EXTERNAL")
    database15.execute("INSERT INTO a SELECT n, repeat('x', 8000) FROM generate_series(1, 200) n")
    database15.execute("VACUUM ANALYZE a")

    found = await read_in_segments(database15, segment_pages=100)

    assert len(found.helds) in {2, 3}
    assert sorted(row["k"] for row in found.all_rows) == list(range(1, 201))


async def test_an_undivided_table_is_held_whole(database15: Database) -> None:
    make_table(database15, *KEYS["numbers"])

    async with snapshots_of(database15, segment_bytes=8 * 8192).hold([A], {}, {A}) as held:
        table = held.tables[A]

    assert (table.begin, table.rest, set(conditions(table))) == ("", "", {None})


@pytest.mark.parametrize(
    ("statement", "is_kept"),
    [
        ("ALTER TABLE a ALTER k TYPE text", False),
        ("ALTER TABLE a DROP CONSTRAINT a_pkey", False),
        ("ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (l)", False),
        ("ALTER TABLE a RENAME k TO m", False),
        ("VACUUM FULL a", True),
        ("ALTER TABLE a ADD more int DEFAULT 7", True),
        ("DELETE FROM a WHERE l % 3 > 0", True),
    ],
)
async def test_where_the_key_is_another_one_the_table_is_held_from_the_beginning(
    database15: Database, statement: LiteralString, *, is_kept: bool
) -> None:
    make_table(database15, "k int PRIMARY KEY, l int NOT NULL", "n, n")
    snapshots = snapshots_of(database15, segment_bytes=8 * 8192)
    async with snapshots.hold([A]) as held:
        rest = held.tables[A].rest
    database15.execute(statement)

    async with snapshots.hold([A], {A: rest}) as held:
        begin = held.tables[A].begin

    assert begin == (rest if is_kept else "")


async def test_a_rest_is_read_by_its_key_although_the_table_is_small_by_now(
    database15: Database,
) -> None:
    make_table(database15, *KEYS["numbers"])
    snapshots = snapshots_of(database15, segment_bytes=8 * 8192)
    async with snapshots.hold([A]) as held:
        rest = held.tables[A].rest
        first = await read_tasks(database15.dsn, tasks_of(held, A))
    begin = max(row["k"] for row in first.rows)
    database15.execute(f"DELETE FROM a WHERE k > {begin} + 3")
    database15.execute("VACUUM FULL a")

    async with snapshots.hold([A], {A: rest}) as held:
        table = held.tables[A]
        reading = await read_tasks(database15.dsn, tasks_of(held, A))

    assert (table.begin, table.rest) == (rest, "")
    assert sorted(row["k"] for row in reading.rows) == [begin + 1, begin + 2, begin + 3]


async def test_a_rest_without_rows_is_one_empty_range(database15: Database) -> None:
    make_table(database15, *KEYS["numbers"])
    snapshots = snapshots_of(database15, segment_bytes=8 * 8192)
    async with snapshots.hold([A]) as held:
        rest = held.tables[A].rest
    database15.execute("TRUNCATE a")

    async with snapshots.hold([A], {A: rest}) as held:
        [task] = tasks_of(held, A)
        reading = await read_tasks(database15.dsn, [task])

    assert reading.rows == []
    assert held.tables[A].rest == ""


# --- how it is read


@pytest.mark.since(15)
async def test_a_range_is_read_by_the_index_also_where_a_scan_seems_to_cost_less(
    any_database: Database,
) -> None:
    make_table(any_database, *KEYS["two columns"])
    any_database.execute("ANALYZE a")
    # One range of half of the table: PostgreSQL would rather read all of it.
    snapshots = snapshots_of(any_database, range_pages=1000, segment_bytes=25 * 8192)
    async with snapshots.hold([A]) as held:
        before = scans(any_database)
        [task] = tasks_of(held, A)
        reading = await read_tasks(any_database.dsn, [task])

    async def is_counted() -> bool:
        return scans(any_database)[1] > before[1]

    # Sessions tell of their scans when they end.
    await until(is_counted, "the index is scanned")
    assert len(reading.rows) == pytest.approx(ROWS / 2, rel=0.1)
    assert scans(any_database)[0] == before[0]


def scans(database: Database) -> tuple[int, int]:
    """Of the table and of its index."""
    [[table, index]] = database.execute(
        "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'a'"
    )
    return table, index


@pytest.mark.since(15)
async def test_the_publications_filter_counts_in_every_range(any_database: Database) -> None:
    make_table(any_database, *KEYS["numbers"])
    any_database.execute(
        "CREATE PUBLICATION tailrace FOR TABLE a WHERE (k % 10 = 0 OR k = 1)"
        " WITH (publish = 'insert')"
    )

    found = await read_in_segments(any_database)

    expected = [1, *range(10, ROWS + 1, 10)]
    assert sorted(row["k"] for row in found.all_rows) == expected


async def test_a_range_of_too_many_rows_is_refused_and_cut_more_finely_the_next_time(
    any_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table(any_database, *KEYS["numbers"])
    snapshots = snapshots_of(any_database, segment_bytes=8 * 8192, range_pages=4)
    counts = []
    async with snapshots.hold([A]) as held:
        counts.append(len(held.tables[A].ranges))
        rest = held.tables[A].rest
        with monkeypatch.context() as patched:
            patched.setattr(range_reader, "CopyRange", nearly_full)
            with pytest.raises(SnapshotStale, match=r"2\*\*24 rows"):
                await read_tasks(any_database.dsn, tasks_of(held, A))

    for begin in ("", "", rest, rest):
        async with snapshots.hold([A], {A: begin} if begin else {}) as held:
            counts.append(len(held.tables[A].ranges))
    async with snapshots.hold([A]) as held:
        counts.append(len(held.tables[A].ranges))
        reading = await read_tasks(any_database.dsn, tasks_of(held, A))

    assert counts[1:3] == [2 * counts[0], 4 * counts[0]]
    assert counts[4] == 2 * counts[3]
    assert counts[5] == counts[0]
    keys = [row["k"] for row in reading.rows]
    assert sorted(keys) == list(range(1, len(keys) + 1))


def nearly_full(
    rows: CopyReader, relation_id: int, range_number: int, row_number: int, size_max: int
) -> CopyRange:
    """A range that has had all but ten rows of those that it may have."""
    return CopyRange(rows, relation_id, range_number, 2**24 - 10 + row_number, size_max)


# --- whom it waits for, and what runs


async def test_whoever_waits_for_a_table_that_is_sampled_does_not_wait_for_long(
    any_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table(any_database, *KEYS["numbers"])
    snapshots = snapshots_of(any_database, segment_bytes=8 * 8192, lock_yield_seconds=0.5)
    monkeypatch.setattr(held_module, "segment_of", sampled_for_long)

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(add_a_column_once_locked(any_database))
        with pytest.raises(SnapshotStale, match="lets go"):
            async with snapshots.hold([A]):
                raise AssertionError
        seconds = await waiting

    # The sampling would take 60 s.
    assert 0.5 <= seconds < 30


async def sampled_for_long(session: HeldSession, *_: object, **__: object) -> Segment:
    await session.rows("SELECT pg_catalog.pg_sleep(60)", doing="sampling for long")
    raise AssertionError


async def add_a_column_once_locked(database: Database) -> float:
    """For how long a change of the table waits that comes while the table is sampled."""

    async def is_sampled() -> bool:
        query: LiteralString = (
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_catalog.pg_sleep%%'"
            " AND state = 'active' AND datname = current_database()"
        )
        return bool(await asyncio.to_thread(database.execute, query))

    await until(is_sampled, "the table is sampled")
    began = asyncio.get_running_loop().time()
    await asyncio.to_thread(database.execute, "ALTER TABLE a ADD more int")
    return asyncio.get_running_loop().time() - began


@pytest.mark.since(15)
async def test_nothing_of_anybody_else_runs(any_database: Database) -> None:
    make_table(any_database, "k int, l text, PRIMARY KEY (l, k)", "n / 7, 'x' || n % 7")
    with role_on(any_database) as role, any_database.connect() as connection:
        connection.execute(f"GRANT SELECT ON a TO {role}".encode())
        make_shadows(connection)
        connection.execute(
            f"ALTER ROLE {role} SET search_path = shadow, public, pg_catalog".encode()
        )
        dsn = dsn_as(any_database, role)
        snapshots = snapshots_of(any_database, dsn=dsn, segment_bytes=8 * 8192, range_pages=2)

        async with snapshots.hold([A]) as held:
            reading = await read_tasks(dsn, tasks_of(held, A))

        assert held.tables[A].rest
        assert reading.rows
    assert not shadows_ran(any_database)
