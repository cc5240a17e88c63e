"""Partitions that come and go between two looks: what the stream, and the journal, know of them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import LiteralString

import msgspec
import pytest

from databases import Database
from engine.flow.chunk import ChunkLimits
from engine.journal.entry import Snapshot, Watch, decode_entry
from engine.journal.journal import random_nonce
from engine.journal.snapshots import Attempt, SnapshotRegister
from engine.lines.writer import CODEC_VERSION
from engine.model.batch import Leaf
from engine.model.interfaces import NOT_PUBLISHED, PARTITIONS, PUBLISHED_LATE, TableLook
from engine.model.record import RecordConfiguration
from engine.model.snapshot_source import HeldSnapshot, RangeTask
from engine.model.staged_object import StagedObject
from engine.reader.verify import verify
from engine.snapshot.staging import StagingTask, stage
from engine.sources.postgres.range_reader import PostgresRangeReader
from log_points import durable, place
from memory_store import MemoryStore
from small_bucket import ORDERS as SMALL_ORDERS
from small_bucket import SmallBucket
from small_snapshot import Snapshots
from snapshot_reading import keep_all, snapshots_of
from test_catalog_watch import (
    SLOW,
    Engine,
    SilentProgress,
    here,
    make_partitioned,
    replace_tables,
    running,
)
from test_postgres_assembler import assembler, begin, commit, fed, insert, relation, truncate
from test_watch import LINES, ORDERS, Rig, look
from test_watch import table as plain_table

GONE = ("public.orders", PARTITIONS, "20", "41")


def table(identity: str = "7", leaves: str = "a", *, attached: str = "") -> TableLook:
    """A table with these partitions. Those that were `attached` were not made as such."""
    marks = {f"{PARTITIONS}:{leaf}": "1" for leaf in leaves + attached}
    return plain_table(identity, marks=marks, fresh=[f"{PARTITIONS}:{leaf}" for leaf in leaves])


AS_BEFORE = {ORDERS: table(), LINES: table("8", "")}


@pytest.fixture
def rig() -> Rig:
    """A look has agreed on two tables, and one of them has a partition."""
    rig = Rig()
    rig.judge(look(0x20, AS_BEFORE))
    rig.append()
    return rig


def shows(rig: Rig, at: int, leaf: str, root: str = "7") -> None:
    rig.watch.came_under(Leaf(leaf, root, place(at)))


def journalled(rig: Rig) -> dict[str, str]:
    """What the journal holds, and whether its next entry changes it."""
    assert rig.state.watch is not None
    return rig.state.watch.leaves


# --- what a look makes of them


def test_a_partition_that_comes_and_goes_between_two_looks_is_a_gap_of_its_root(rig: Rig) -> None:
    shows(rig, 0x30, "b")

    assert rig.judge(look(0x40, AS_BEFORE)) == [GONE]
    # It is told once, also where the log is read again.
    shows(rig, 0x30, "b")
    assert rig.judge(look(0x50, AS_BEFORE)) == [GONE]


def test_a_partition_that_stays_is_none_and_goes_by_its_mark(rig: Rig) -> None:
    shows(rig, 0x30, "b")

    stays = rig.judge(look(0x40, AS_BEFORE | {ORDERS: table(leaves="ab")}))
    goes = rig.judge(look(0x50, AS_BEFORE))

    assert (stays, goes) == ([], [("public.orders", PARTITIONS, "40", "51")])


def test_a_partition_that_a_look_has_agreed_on_is_not_noted(rig: Rig) -> None:
    shows(rig, 0x30, "a")

    assert rig.watch.pending is None


def test_one_that_is_attached_and_stays_is_one_gap(rig: Rig) -> None:
    shows(rig, 0x30, "b")

    assert rig.judge(look(0x40, AS_BEFORE | {ORDERS: table(attached="b")})) == [GONE]


def test_one_that_goes_beside_others_that_come_is_one_gap(rig: Rig) -> None:
    shows(rig, 0x30, "b")
    shows(rig, 0x31, "c")

    assert rig.judge(look(0x40, AS_BEFORE | {ORDERS: table(attached="d")})) == [GONE]


def test_rows_that_a_look_may_not_show_yet_are_left_to_the_next_one(rig: Rig) -> None:
    shows(rig, 0x30, "b")

    early = rig.judge(look(0x40, AS_BEFORE, since=0x30))

    assert early == []
    assert rig.judge(look(0x50, AS_BEFORE)) == [("public.orders", PARTITIONS, "30", "51")]


def test_one_that_comes_again_behind_the_look_is_told_once(rig: Rig) -> None:
    shows(rig, 0x30, "b")
    shows(rig, 0x44, "b")

    assert rig.judge(look(0x40, AS_BEFORE)) == []
    assert rig.judge(look(0x50, AS_BEFORE)) == [("public.orders", PARTITIONS, "40", "51")]


def test_a_partition_that_moved_to_another_root_left_its_rows_under_the_first(rig: Rig) -> None:
    shows(rig, 0x30, "b", "7")
    shows(rig, 0x32, "b", "8")
    moved = {ORDERS: table(), LINES: table("8", "", attached="b")}

    assert rig.judge(look(0x40, moved)) == [
        ("public.orders", PARTITIONS, "20", "41"),
        ("public.lines", PARTITIONS, "20", "41"),
    ]


def test_a_root_that_no_look_has_agreed_on_has_the_gap_too(rig: Rig) -> None:
    shows(rig, 0x30, "b", "9")
    made = plain_table("9", marks={}, fresh=[PUBLISHED_LATE])
    made_tables = {LINES: table("8", ""), ORDERS: made}

    assert ("public.orders", PARTITIONS, "20", "41") in rig.judge(look(0x40, made_tables))


def test_a_root_that_is_gone_has_no_gap_of_its_own_for_it(rig: Rig) -> None:
    rig.has_rows = {ORDERS}
    shows(rig, 0x30, "b")
    gone = {LINES: table("8", "")}

    assert rig.judge(look(0x40, gone)) == [("public.orders", "table-dropped", "20", "41")]
    assert rig.judge(look(0x50, gone)) == [("public.orders", "table-dropped", "20", "41")]


def test_a_loss_that_stands_covers_it(rig: Rig) -> None:
    shows(rig, 0x30, "b")
    less = replace(table(), keeps={NOT_PUBLISHED: ()})

    assert rig.judge(look(0x40, AS_BEFORE | {ORDERS: less})) == [
        ("public.orders", NOT_PUBLISHED, "20", "")
    ]


def test_before_the_first_look_nothing_is_stated_and_what_went_is_a_gap() -> None:
    rig = Rig()
    shows(rig, 0x18, "a")
    shows(rig, 0x18, "b")

    before = rig.watch.pending
    found = rig.judge(look(0x20, AS_BEFORE))
    rig.append()

    assert before is None
    assert found == [("public.orders", PARTITIONS, "10", "21")]
    assert journalled(rig) == {}


# --- what the journal holds


@pytest.mark.parametrize("is_restart", [False, True])
def test_the_journal_holds_it_until_a_look_has_judged_it(
    rig: Rig,
    is_restart: bool,  # noqa: FBT001
) -> None:
    shows(rig, 0x30, "b")
    # It waits for an entry that is made anyway.
    assert not rig.watch.is_due
    rig.append()
    assert journalled(rig) == {"7/b": place(0x30)}
    assert rig.watch.pending is None
    if is_restart:
        rig.start()

    found = rig.judge(look(0x40, AS_BEFORE))
    rig.append()

    assert found == [GONE]
    assert journalled(rig) == {}
    assert rig.watch.pending is None


def test_what_the_journal_holds_is_stated_once(rig: Rig) -> None:
    shows(rig, 0x30, "b")
    rig.append()

    shows(rig, 0x38, "b")

    assert rig.watch.pending is None


def test_what_a_look_agrees_on_is_taken_back_in_the_same_statement(rig: Rig) -> None:
    shows(rig, 0x30, "b")
    rig.append()

    rig.judge(look(0x40, AS_BEFORE | {ORDERS: table(leaves="ab")}))
    statement = rig.watch.pending

    assert statement is not None
    assert statement.settled == ("7/b",)
    assert f"{PARTITIONS}:b" in statement.tables["public.orders"].marks


def test_a_successor_that_reads_the_rows_again_states_one_gap(rig: Rig) -> None:
    shows(rig, 0x30, "b")
    rig.judge(look(0x40, AS_BEFORE))
    for gap in rig.gaps.pending:
        rig.state.gaps[gap.number] = gap
    # The entry with the gap was the last one of that engine.
    rig.start()
    shows(rig, 0x30, "b")

    assert rig.judge(look(0x50, AS_BEFORE)) == [("public.orders", PARTITIONS, "20", "51")]


def test_very_many_are_stated_over_several_entries(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.journal.leaves.STATED_MAX", 2)
    rig.judge(look(0x28, {LINES: table("8", "")}))
    for leaf in "bcdef":
        shows(rig, 0x30, leaf)

    statements: list[Watch] = []
    while rig.watch.is_much:
        assert rig.watch.pending is not None
        statements.append(rig.watch.pending)
        rig.append()
    parts = len(statements)
    while (last := rig.watch.pending) is not None:
        statements.append(last)
        rig.append()

    assert parts == 2
    assert [len(one.leaves) for one in statements] == [2, 2, 1]
    # What a look agreed on comes with the last one.
    assert [one.gone for one in statements] == [(), (), ("public.orders",)]
    assert len(journalled(rig)) == 5


# --- what a snapshot reads


def test_a_partition_that_a_snapshot_read_is_noted_like_one_that_had_rows(rig: Rig) -> None:
    rig.watch.was_read("7", ("a", "b"), place(0x30))
    noted = rig.watch.pending

    assert noted is not None
    assert list(noted.leaves) == ["7/b"]
    assert rig.judge(look(0x40, AS_BEFORE)) == [GONE]


def test_one_that_was_read_is_there_however_much_is_durable_by_then(rig: Rig) -> None:
    rig.state.durable = durable(0x38, seq=0)

    rig.watch.was_read("7", ("b",), place(0x30))

    assert rig.judge(look(0x40, AS_BEFORE, since=0x38)) == []
    assert rig.judge(look(0x50, AS_BEFORE)) == [("public.orders", PARTITIONS, "38", "51")]


async def test_the_register_tells_what_an_attempt_read_before_it_is_stated() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    told: list[tuple[str, tuple[str, ...], tuple[Snapshot, ...]]] = []

    def tell(attempt: Attempt, partitions: Sequence[str]) -> None:
        root = attempt.version.relation.identity
        told.append((root, tuple(partitions), snapshots.register.pending))

    snapshots.register.tell_partitions(tell)
    attempt = snapshots.start(SMALL_ORDERS)
    await snapshots.append()
    objects = await snapshots.stage(attempt)
    await snapshots.register.whole(attempt, objects, partitions=("b",))

    assert told == [("16384", ("b",), ())]


# --- what the stream shows


def test_rows_that_come_under_a_root_show_their_partition() -> None:
    intake = fed(
        assembler(),
        begin(100),
        relation(1, "sales", "id"),
        relation(2, "sales_1", "id"),
        insert(1, 10, 1),
        insert(1, 11, 2),
        relation(1, "sales", "id"),
        relation(3, "sales_2", "id"),
        insert(1, 12, 3),
        commit(100),
        begin(200),
        insert(1, 110, 4),
        relation(1, "sales", "id"),
        relation(2, "sales_1", "id"),
        insert(1, 111, 5),
        commit(200),
    )

    assert intake.leaves == (
        Leaf("2", "1", place(100)),
        Leaf("3", "1", place(100)),
        Leaf("2", "1", place(200)),
    )


def test_tables_of_their_own_show_no_partition() -> None:
    both = (relation(1, "a", "id"), relation(2, "b", "id"))
    intake = fed(
        assembler(),
        begin(100),
        # A truncation of two tables: their relations come one behind the other.
        *both,
        truncate(10, 1, 2),
        insert(1, 11, 1),
        commit(100),
        begin(200),
        relation(1, "a", "id"),
        insert(1, 110, 1),
        relation(2, "b", "id"),
        insert(2, 111, 1),
        insert(1, 112, 1),
        *both,
        insert(2, 113, 1),
        commit(200),
        begin(300),
        *both,
        commit(300),
        begin(400),
        insert(1, 310, 1),
        commit(400),
    )

    assert intake.leaves == ()


def test_partitions_of_a_table_that_is_not_captured_are_not_told() -> None:
    configuration = RecordConfiguration("tailrace", tables=("public.orders",))
    intake = fed(
        assembler(configuration),
        begin(100),
        relation(1, "sales", "id"),
        relation(2, "sales_1", "id"),
        insert(1, 10, 1),
        commit(100),
    )

    assert intake.leaves == ()


# --- real servers

SALES = replace_tables("public.sales")
INITIAL = msgspec.structs.replace(SALES, snapshot="initial")
SALES_GAP = {("public.sales", PARTITIONS)}
MADE = "CREATE TABLE sales_3 PARTITION OF sales FOR VALUES IN (3)"
FULL = "ALTER TABLE sales_3 REPLICA IDENTITY FULL"
ROW = "INSERT INTO sales VALUES (1, 3)"

PASSING: list[tuple[str, list[LiteralString]]] = [
    ("made and dropped", [MADE, ROW, "DROP TABLE sales_3"]),
    ("made and dropped at once", [f"BEGIN; {MADE}; {ROW}; DROP TABLE sales_3; COMMIT"]),
    ("made and detached", [MADE, ROW, "ALTER TABLE sales DETACH PARTITION sales_3"]),
    (
        "detached concurrently",
        [MADE, ROW, "ALTER TABLE sales DETACH PARTITION sales_3 CONCURRENTLY"],
    ),
    (
        "attached with rows, and one of them deleted",
        [
            "CREATE TABLE sales_3 (LIKE sales)",
            FULL,
            "INSERT INTO sales_3 VALUES (1, 3), (2, 3)",
            "ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3)",
            "DELETE FROM sales WHERE id = 1 AND region = 3",
            "ALTER TABLE sales DETACH PARTITION sales_3",
        ],
    ),
    (
        "a leaf of a part that stays",
        [
            "CREATE TABLE sales_41 PARTITION OF sales_4 FOR VALUES IN (1)",
            "INSERT INTO sales VALUES (1, 4)",
            "DROP TABLE sales_41",
        ],
    ),
    (
        "attached as a part with leaves, and detached with them",
        [
            "CREATE TABLE sales_3 (LIKE sales) PARTITION BY HASH (id)",
            """CREATE TABLE sales_31 PARTITION OF sales_3
            FOR VALUES WITH (MODULUS 1, REMAINDER 0)""",
            "INSERT INTO sales_3 VALUES (9, 3)",
            "ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3)",
            ROW,
            "ALTER TABLE sales DETACH PARTITION sales_3",
            "INSERT INTO sales_3 VALUES (10, 3)",
        ],
    ),
    (
        "dropped, and another one made under its name",
        [MADE, ROW, "DROP TABLE sales_3", MADE, ROW],
    ),
]


def watch_of(engine: Engine) -> Watch:
    watch = engine.state().watch
    assert watch is not None
    return watch


async def judged_past(engine: Engine, database: Database) -> None:
    """Wait until looks have judged everything that is committed now."""
    end = here(database)

    def is_judged() -> bool:
        streaming = engine.pipeline._streaming
        assert streaming is not None
        engine.look_soon()
        return streaming._watcher.watch.watched >= end

    await engine.until(is_judged, "its looks are behind what was committed")
    await engine.until(lambda: not unsaid(engine), "the journal says so")


def unsaid(engine: Engine) -> bool:
    streaming = engine.pipeline._streaming
    assert streaming is not None
    return streaming._watcher.watch.pending is not None or bool(streaming.gaps.pending)


def has_noted(engine: Engine) -> bool:
    streaming = engine.pipeline._streaming
    assert streaming is not None
    pending = streaming._watcher.watch.pending
    return pending is not None and bool(pending.leaves)


@pytest.mark.parametrize("statements", [c[1] for c in PASSING], ids=[c[0] for c in PASSING])
async def test_a_partition_that_passes_between_two_looks_is_one_gap_of_the_root(
    any_database: Database, statements: list[LiteralString]
) -> None:
    make_partitioned(any_database)
    any_database.execute(
        "CREATE TABLE sales_4 PARTITION OF sales FOR VALUES IN (4) PARTITION BY LIST (id)"
    )
    store = MemoryStore()
    async with running(any_database, store, configuration=SALES, settings=SLOW) as engine:
        begin = here(any_database)
        for statement in statements:
            any_database.execute(statement)
        end = here(any_database)
        await judged_past(engine, any_database)

    [gap] = engine.gaps()
    assert (gap.table, gap.reason) == ("public.sales", PARTITIONS)
    assert gap.after <= begin
    assert gap.until >= end
    assert watch_of(engine).leaves == {}
    verdict = await verify(store, "lake", depth="full", concurrency=4, progress=SilentProgress())
    assert verdict.is_ok
    assert gap in verdict.unmended_gaps


@pytest.mark.parametrize("is_durable", [False, True])
async def test_a_kill_between_the_rows_and_the_look_hides_nothing(
    any_database: Database,
    is_durable: bool,  # noqa: FBT001
) -> None:
    make_partitioned(any_database)
    store = MemoryStore()
    # Without an age nothing is planned: the next engine reads the rows again.
    settings = SLOW if is_durable else replace(SLOW, limits=ChunkLimits(1 << 24, 1 << 20, 1_000.0))
    async with running(any_database, store, configuration=SALES, settings=settings) as engine:
        any_database.execute(MADE)
        before = here(any_database)
        any_database.execute(ROW)
        if is_durable:
            await engine.until(lambda: engine.state().durable_position > before, "it is durable")
        else:
            await engine.until(lambda: has_noted(engine), "it has read the row")
        held = watch_of(engine).leaves
        engine.task.cancel()
    any_database.execute("DROP TABLE sales_3")

    async with running(any_database, store, configuration=SALES, settings=SLOW) as engine:
        await judged_past(engine, any_database)

    assert len(held) == is_durable
    assert engine.reasons() == SALES_GAP
    assert len(engine.gaps()) == 1
    assert watch_of(engine).leaves == {}


async def test_what_comes_and_goes_while_no_engine_runs_is_found_by_the_next_one(
    any_database: Database,
) -> None:
    make_partitioned(any_database)
    store = MemoryStore()
    async with running(any_database, store, configuration=SALES, settings=SLOW):
        pass
    for statement in (MADE, ROW, "DROP TABLE sales_3"):
        any_database.execute(statement)

    async with running(any_database, store, configuration=SALES, settings=SLOW) as engine:
        await judged_past(engine, any_database)

    assert engine.reasons() == SALES_GAP


async def test_partitions_that_stay_are_no_loss_and_are_held_no_longer_than_until_a_look(
    any_database: Database,
) -> None:
    make_partitioned(any_database)
    store = MemoryStore()
    async with running(any_database, store, configuration=SALES, settings=SLOW) as engine:
        any_database.execute("INSERT INTO sales VALUES (1, 1), (2, 2)")
        any_database.execute(MADE)
        any_database.execute(FULL)
        before = here(any_database)
        any_database.execute(ROW)
        await engine.until(lambda: engine.state().durable_position > before, "it is durable")
        [(oids,)] = any_database.execute(
            "SELECT 'sales'::regclass::oid::text || '/' || 'sales_3'::regclass::oid::text"
        )
        held = watch_of(engine).leaves
        await judged_past(engine, any_database)
    async with running(any_database, store, configuration=SALES, settings=SLOW) as again:
        before = here(any_database)
        any_database.execute("UPDATE sales SET id = id + 1")
        await again.until(lambda: again.state().durable_position > before, "it is durable")
        await judged_past(again, any_database)

    # Only the one that no look had agreed on.
    assert list(held) == [oids]
    assert again.gaps() == []
    keys = sorted(key for key in store.objects if "/journal/" in key)
    entries = [decode_entry(store.objects[key].body, key) for key in keys]
    stated = [entry.watch for entry in entries if entry.watch is not None and entry.watch.leaves]
    assert [list(watch.leaves) for watch in stated] == [[oids]]


async def test_a_partition_that_moves_to_another_root_is_a_gap_of_both(
    any_database: Database,
) -> None:
    make_partitioned(any_database)
    any_database.execute("CREATE TABLE sold (id int, region int) PARTITION BY LIST (region)")
    any_database.execute("ALTER TABLE sold REPLICA IDENTITY FULL")
    both = replace_tables("public.sales", "public.sold")
    async with running(any_database, MemoryStore(), configuration=both, settings=SLOW) as engine:
        for statement in (
            MADE,
            ROW,
            "ALTER TABLE sales DETACH PARTITION sales_3",
            "ALTER TABLE sold ATTACH PARTITION sales_3 FOR VALUES IN (3)",
            "INSERT INTO sold VALUES (2, 3)",
        ):
            any_database.execute(statement)
        await judged_past(engine, any_database)

    assert sorted(gap.table for gap in engine.gaps()) == ["public.sales", "public.sold"]
    assert engine.reasons() == {("public.sales", PARTITIONS), ("public.sold", PARTITIONS)}


async def staged(
    database: Database, store: MemoryStore, held: HeldSnapshot, attempt: Attempt
) -> list[StagedObject]:
    """All rows of a held table, as workers stage them."""
    name, objects = database.name, list[StagedObject]()
    for number, own in enumerate(held.tables[attempt.table].ranges):
        rows = RangeTask(
            name=f"{held.name}/{number}",
            database=name,
            version=attempt.version,
            configuration=INITIAL,
            point=attempt.point.position,
            commit_us=attempt.point.commit_us,
            attempt=attempt.number,
            range_number=number,
            begins_attempt=number == 0,
            own=own,
        )
        task = StagingTask(
            table=attempt.table,
            attempt=attempt.number,
            range_number=number,
            point=attempt.point.position,
            version=attempt.version.number,
            hour=attempt.hour,
            codec=CODEC_VERSION,
            compression=INITIAL.compression,
            layout=INITIAL.layout,
            prefix=SLOW.prefix,
            database=name,
            writer="a",
            bytes_max=1 << 20,
        )
        async with PostgresRangeReader(database.dsn).read(rows, keep_all) as batches:
            objects += await stage(store, task, batches, make_nonce=random_nonce)
    return objects


@pytest.mark.parametrize("concurrently", ["", " CONCURRENTLY"])
async def test_a_partition_that_only_a_snapshot_read_before_it_went_is_a_gap(
    any_database: Database, concurrently: LiteralString, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No look comes between the snapshot and what follows it.
    monkeypatch.setattr("engine.journal.committer.FINISHING_SECONDS", 1_000.0)
    make_partitioned(any_database)
    any_database.execute("INSERT INTO sales VALUES (1, 1), (2, 2)")
    store, read = MemoryStore(), list[int]()

    async def take(register: SnapshotRegister, _: str) -> None:
        while True:
            for name in register.needed():
                if not read:
                    any_database.execute("CREATE TABLE sales_3 AS SELECT 1 AS id, 3 AS region")
                    any_database.execute(
                        "ALTER TABLE sales ATTACH PARTITION sales_3 FOR VALUES IN (3)"
                    )
                async with snapshots_of(any_database, INITIAL).hold([name]) as held:
                    table = held.tables[name]
                    attempt = register.start(name, held.point, table.relation)
                    await register.started(attempt)
                    objects = await staged(any_database, store, held, attempt)
                    await register.whole(attempt, objects, partitions=table.partitions)
                if not read:
                    any_database.execute(
                        "ALTER TABLE sales DETACH PARTITION sales_3" + concurrently
                    )
                read.append(len(table.partitions))
            await asyncio.sleep(0.01)

    async with running(
        any_database, store, configuration=INITIAL, settings=SLOW, take_snapshots=take
    ) as engine:
        await engine.until(lambda: bool(read), "a snapshot")
        await judged_past(engine, any_database)
        gap = await engine.gap("public.sales", PARTITIONS)
        await engine.until(lambda: len(read) > 1, "another snapshot")
        await engine.until(lambda: engine.gaps()[0].mended != "", "it is visible")

    assert [one.number for one in engine.gaps()] == [gap.number]
    assert read == [4, 3]
    verdict = await verify(store, "lake", depth="full", concurrency=4, progress=SilentProgress())
    assert verdict.is_ok
    assert verdict.unmended_gaps == ()


async def test_partitions_under_their_own_names_are_tables_of_their_own(
    any_database: Database,
) -> None:
    make_partitioned(any_database)
    any_database.execute("CREATE PUBLICATION tailrace FOR TABLE sales")
    async with running(any_database, MemoryStore(), settings=SLOW) as engine:
        for statement in (MADE, ROW, "DROP TABLE sales_3"):
            any_database.execute(statement)
        await judged_past(engine, any_database)

    assert engine.reasons() == {("public.sales_3", "table-dropped")}
