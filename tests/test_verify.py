"""verify: what the engine makes is right, and every way to break it is found by its code."""

import asyncio
import copy
import gzip
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damages import Damage, Damages
from engine.journal.entry import (
    Accepting,
    Durable,
    Entry,
    Gap,
    JournalState,
    Pause,
    Planned,
    encode_state,
)
from engine.journal.gaps import LOST
from engine.model.errors import DestinationRefused, DestinationUnavailable
from engine.model.interfaces import ListedObject, ObjectHead
from engine.model.layout import journal_folder, journal_key, own_folder, state_key
from engine.model.position import LogPosition, Position
from engine.model.record import Compression, Envelope, Layout
from engine.reader.verify import Code, Depth, Verdict, verify
from engine.reader.verify.expiry_audit import hour_of_key
from log_points import durable as durable_at
from memory_store import MemoryStore, StoredObject
from small_bucket import (
    ODD,
    ORDERS,
    PREFIX,
    START_US,
    Piece,
    SmallBucket,
    compressed,
    decompressed,
    make_bucket,
    restated,
    rewrite_journal,
    rewrite_plan,
    stored,
)
from test_verify_requests import REQUEST_CODES
from test_verify_snapshots import SNAPSHOT_CODES

DOCUMENT = Path(__file__).parent.parent / "docs" / "verify.md"


class SilentProgress:
    def reached(self, phase: str, done: int, total: int | None) -> None:
        pass


async def judged(
    store: Any, depth: Depth = "full", prefix: str = PREFIX, *, days_later: float = 0.5
) -> Verdict:
    """Judge the small bucket, so many days after it was made."""
    now_us = START_US + int(days_later * 86_400_000_000)
    return await verify(
        store,
        prefix,
        depth=depth,
        concurrency=4,
        progress=SilentProgress(),
        clock=lambda: now_us,
    )


def codes(verdict: Verdict) -> set[Code]:
    return {found.code for found in (*verdict.problems, *verdict.warnings)}


# --- nothing is wrong


@pytest.mark.parametrize("depth", ["light", "full"])
@pytest.mark.parametrize("layout", ["hive", "plain"])
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("envelope", ["standard", "debezium", "flat"])
async def test_what_the_engine_makes_is_right(
    envelope: Envelope, compression: Compression, layout: Layout, depth: Depth
) -> None:
    bucket = await make_bucket(envelope=envelope, compression=compression, layout=layout)

    verdict = await judged(bucket.store, depth)

    assert verdict.problems == ()
    assert (verdict.objects, verdict.rows, verdict.pending) == (5, 14, 2)
    assert verdict.entries == 9


async def test_tables_are_told_with_their_durable_objects() -> None:
    bucket = await make_bucket()

    verdict = await judged(bucket.store)

    odd, orders = verdict.tables
    assert (odd.table, odd.objects, odd.rows, odd.pending) == (str(ODD), 1, 1, 0)
    assert (orders.table, orders.objects, orders.rows, orders.pending) == (str(ORDERS), 4, 13, 2)
    assert orders.versions == (1, 2)
    assert orders.first == bucket.pieces[0].planned.first
    assert orders.last == bucket.pieces[4].planned.last


async def test_gaps_are_told_as_they_were_stated_last_and_are_no_problem() -> None:
    bucket = await make_bucket()
    edit_entry(bucket, 5, gaps=(GAP, msgspec.structs.replace(GAP, number=2)))
    mended = msgspec.structs.replace(GAP, until="0001.B", mended="snapshot 3")
    edit_entry(bucket, 7, gaps=(mended,))

    verdict = await judged(bucket.store)

    assert verdict.is_ok
    assert [(gap.number, gap.until, gap.mended) for gap in verdict.gaps] == [
        (1, "0001.B", "snapshot 3"),
        (2, "", ""),
    ]
    assert [gap.number for gap in verdict.unmended_gaps] == [2]


def void_of(planned: Planned) -> Planned:
    """Its statement when nobody can make it any more."""
    return msgspec.structs.replace(planned, rows=0, ops={}, raw_bytes=0, raw_crc32="00000000")


async def accepted(*, is_late: bool = False) -> SmallBucket:
    """Two objects are planned, and one of them is there; then what follows the first is lost.

    `is_late`: the second one arrives with its rows after it was called void.
    """
    bucket = SmallBucket()
    await bucket.take_over("writer-1")
    version = bucket.version(ORDERS)
    one = bucket.piece(ORDERS, "ccc")
    await bucket.journal.append(schemas=(version,), planned=(one.planned,))
    await bucket.publish(one)
    lost = bucket.durable()
    two = bucket.piece(ORDERS, "cu")
    await bucket.journal.append(planned=(two.planned,), durable=lost)
    await bucket.take_over("writer-2", Accepting(lost.position, "keeper", "it is gone"))
    void = void_of(two.planned)
    await bucket.journal.append(planned=(void,))
    await bucket.publish(two if is_late else Piece(void, compressed(b"", two.planned.key)))
    end = bucket.durable()
    gap = Gap(1, str(ORDERS), lost.position, end.position, LOST, "it is gone")
    await bucket.journal.append(gaps=(gap,), durable=end, accepted=True)
    return bucket


@pytest.mark.parametrize("depth", ["light", "full"])
@pytest.mark.parametrize(("is_late", "rows"), [(False, 3), (True, 5)])
async def test_a_void_object_counts_the_rows_that_are_in_it(
    depth: Depth, rows: int, *, is_late: bool
) -> None:
    bucket = await accepted(is_late=is_late)

    verdict = await judged(bucket.store, depth)

    assert verdict.problems == ()
    assert (verdict.objects, verdict.rows, verdict.pending) == (2, rows, 0)


async def test_a_void_object_with_other_rows_than_were_planned_is_found() -> None:
    bucket = await accepted(is_late=True)
    there = stored(bucket, 1)
    there.metadata["rows"] = "1"

    assert codes(await judged(bucket.store)) == {Code.METADATA_DIFFERS}


async def test_a_bucket_without_a_prefix_is_judged_whole() -> None:
    bucket = await make_bucket(prefix="")

    assert (await judged(bucket.store, prefix="")).problems == ()


async def test_a_neighbour_whose_prefix_begins_alike_is_not_looked_at() -> None:
    bucket = await make_bucket()
    await make_bucket(bucket.store, prefix=PREFIX + "-2")
    bucket.store.objects[PREFIX + "-2/foreign"] = StoredObject(b"", {})

    assert (await judged(bucket.store)).problems == ()


async def test_what_check_and_whoever_asks_for_something_write_is_not_looked_at() -> None:
    bucket = await make_bucket()
    bucket.store.objects[own_folder(PREFIX) + "check/put"] = StoredObject(b"", {})
    bucket.store.objects[own_folder(PREFIX) + "requests/7"] = StoredObject(b"", {})

    assert (await judged(bucket.store)).problems == ()


async def test_what_a_refused_prefix_inside_this_one_left_is_no_problem() -> None:
    bucket = await make_bucket()
    for name in ("write-9333133d9d5b9f16", "parts-9333133d9d5b9f16"):
        key = f"{own_folder(f'{PREFIX}/inner')}check/{name}"
        bucket.store.objects[key] = StoredObject(b"", {})

    assert codes(await judged(bucket.store)) == set()


async def test_an_unlooked_for_restatement_is_as_good_as_the_first_statement() -> None:
    bucket = await make_bucket()
    first = bucket.pieces[4]
    bucket.store.objects[first.planned.key].body = first.body
    again = restated(bucket, first).planned
    metadata = bucket.store.objects[first.planned.key].metadata
    metadata["size-bytes"] = str(len(first.body))
    assert metadata["raw-bytes"] == str(again.raw_bytes)
    metadata |= {
        "codec": "1",
        "raw-bytes": str(first.planned.raw_bytes),
        "raw-crc32": first.planned.raw_crc32,
    }

    assert (await judged(bucket.store)).problems == ()


# --- what a rule of the bucket took away


def remove(bucket: SmallBucket, *pieces: int) -> None:
    for index in pieces:
        del bucket.store.objects[bucket.pieces[index].planned.key]


# Pieces 0, 2, 3 and 4 are objects of orders; 1 is the only one of the odd table.
@pytest.mark.parametrize("depth", ["light", "full"])
@pytest.mark.parametrize(("pieces", "tables"), [((0,), 1), ((0, 2, 3), 1), ((0, 1, 2, 3, 4), 2)])
async def test_old_objects_that_are_gone_before_the_oldest_have_expired(
    pieces: tuple[int, ...], tables: int, depth: Depth
) -> None:
    bucket = await make_bucket()
    remove(bucket, *pieces)

    verdict = await judged(bucket.store, depth, days_later=2)

    assert verdict.problems == ()
    assert verdict.expired == len(pieces)
    assert (verdict.objects, verdict.rows) == (5, 14)
    assert sum(table.expired > 0 for table in verdict.tables) == tables
    [warning] = verdict.warnings
    assert warning.code is Code.OBJECTS_EXPIRED
    assert warning.key == bucket.pieces[pieces[-1]].planned.key
    assert f"{len(pieces)} object" in warning.text
    assert f"of {tables} table" in warning.text


@pytest.mark.parametrize(
    ("missing", "expired"), [((2,), 0), ((0, 3), 1), ((4,), 0), ((0, 2, 4), 2)]
)
async def test_a_hole_in_the_middle_is_a_problem_however_old_it_is(
    missing: tuple[int, ...], expired: int
) -> None:
    bucket = await make_bucket()
    remove(bucket, *missing)

    verdict = await judged(bucket.store, days_later=400)

    [problem] = verdict.problems
    assert (problem.code, problem.key) == (
        Code.OBJECT_MISSING,
        bucket.pieces[missing[-1]].planned.key,
    )
    assert verdict.expired == expired


async def test_an_object_that_is_less_than_a_day_old_cannot_have_expired() -> None:
    bucket = await make_bucket()
    remove(bucket, 0, 1, 2, 3, 4)

    verdict = await judged(bucket.store, days_later=0.9)

    assert [problem.code for problem in verdict.problems] == [Code.OBJECT_MISSING] * 5
    assert verdict.warnings == ()


async def test_objects_that_are_looked_up_out_of_order_are_judged_in_order() -> None:
    bucket = await make_bucket()
    remove(bucket, 2)
    first, asked = bucket.pieces[0].planned.key, asyncio.Event()

    async def hold(key: str) -> None:
        if key == first:
            await asked.wait()
        elif key == bucket.pieces[4].planned.key:
            asked.set()

    bucket.store.before_head = hold

    verdict = await judged(bucket.store, days_later=400)

    assert [problem.key for problem in verdict.problems] == [bucket.pieces[2].planned.key]


async def test_a_schema_may_have_expired_with_the_first_objects_of_its_version() -> None:
    bucket = await make_bucket()
    remove(bucket, 0, 1)
    for table, version in ((ORDERS, 1), (ODD, 1)):
        del bucket.store.objects[bucket.layout.schema_key(table, version)]

    verdict = await judged(bucket.store, days_later=2)

    assert verdict.problems == ()


async def test_a_schema_of_a_version_whose_objects_are_all_there_is_missed() -> None:
    bucket = await make_bucket()
    remove(bucket, 0)
    del bucket.store.objects[bucket.layout.schema_key(ORDERS, 2)]

    verdict = await judged(bucket.store, days_later=400)

    assert [problem.code for problem in verdict.problems] == [Code.SCHEMA_MISSING]


async def test_a_state_file_that_expires_while_we_read_is_no_problem() -> None:
    bucket = await make_bucket()
    for seq in range(3):
        del bucket.store.objects[journal_key(PREFIX, seq)]
    bucket.store.objects[state_key(PREFIX, 2)] = StoredObject(b"an older one", {})

    class Expiring(MemoryStore):
        """Takes the older state file away once it is listed."""

        async def get(self, key: str) -> bytes | None:
            self.objects.pop(state_key(PREFIX, 2), None)
            return await super().get(key)

    verdict = await judged(Expiring(bucket.store.objects))

    assert verdict.problems == ()
    assert codes(verdict) == {Code.JOURNAL_EXPIRED}


@pytest.mark.parametrize(
    ("key", "hour"),
    [
        ("a/database=x/schema=y/table=z/version=0001/year=2026/month=11/day=02/hour=07/o.gz", "07"),
        ("x/y/z/0001/2026/11/02/07/o.gz", "07"),
    ],
)
def test_an_objects_hour_is_read_from_its_key_in_either_layout(key: str, hour: str) -> None:
    assert hour_of_key(key) == f"2026-11-02T{hour}"


# --- every way to break it

Break = Callable[[SmallBucket], None]

DAMAGES = Damages[SmallBucket]()
damage = DAMAGES


def entry(bucket: SmallBucket, seq: int) -> StoredObject:
    return bucket.store.objects[journal_key(PREFIX, seq)]


def edit_entry(bucket: SmallBucket, seq: int, /, **changes: object) -> None:
    """Change one entry; the journal's hashes hold."""

    def edit(entry: Entry) -> Entry:
        return msgspec.structs.replace(entry, **changes) if entry.seq == seq else entry

    rewrite_journal(bucket.store, edit)


def without_states(bucket: SmallBucket) -> None:
    """For damage that shows in a state file as well."""
    del bucket.store.objects[state_key(PREFIX, 3)]


def edit_lines(bucket: SmallBucket, index: int, edit: Callable[[bytes], bytes]) -> None:
    """Change an object's lines, with its plan's and metadata's length and CRC left as they are."""
    found = stored(bucket, index)
    key = bucket.pieces[index].planned.key
    found.body = compressed(edit(decompressed(found.body, key)), key)
    found.metadata["size-bytes"] = str(len(found.body))


@damage({Code.NO_JOURNAL})
def the_journal_is_gone(bucket: SmallBucket) -> None:
    for key in [k for k in bucket.store.objects if k.startswith(journal_folder(PREFIX))]:
        del bucket.store.objects[key]


@damage({Code.NO_JOURNAL})
def nothing_is_there(bucket: SmallBucket) -> None:
    bucket.store.objects.clear()


@damage({Code.NEWER_FORMAT})
def a_newer_release_has_written(bucket: SmallBucket) -> None:
    entry(bucket, 8).body = entry(bucket, 8).body.replace(b'"format":1', b'"format":2')


@damage({Code.NEWER_FORMAT})
def a_newer_release_has_written_what_this_one_cannot_read(bucket: SmallBucket) -> None:
    entry(bucket, 4).body = b'{"format":2,"sequence":"4"}'


@damage({Code.ENTRY_MISSING, Code.CHAIN_BROKEN, Code.UNNAMED_OBJECT})
def an_entry_with_a_plan_is_gone(bucket: SmallBucket) -> None:
    del bucket.store.objects[journal_key(PREFIX, 2)]


@damage({Code.ENTRY_MISSING})
def an_entry_without_a_plan_is_gone(bucket: SmallBucket) -> None:
    del bucket.store.objects[journal_key(PREFIX, 7)]


@damage({Code.ENTRY_MISSING})
def the_first_entry_is_gone(bucket: SmallBucket) -> None:
    # Database and record configuration are lost with it, so keys and schemas are not judged before
    # the next writer; the schemas of version 1 are then named by nothing.
    del bucket.store.objects[journal_key(PREFIX, 0)]
    del bucket.store.objects[state_key(PREFIX, 3)]
    for table in (ORDERS, ODD):
        del bucket.store.objects[bucket.layout.schema_key(table, 1)]


async def test_what_a_state_file_plans_is_read_under_its_own_flat_prefix() -> None:
    bucket = await make_bucket(envelope="flat", flat_prefix="_cdc_")
    for seq in range(4):
        del bucket.store.objects[journal_key(PREFIX, seq)]

    verdict = await judged(bucket.store)

    # Known from the state file alone, and proved to its last line.
    assert b'"_cdc_op":"c"' in decompressed(stored(bucket, 3).body, ".gz")
    assert verdict.problems == ()


@damage({Code.JOURNAL_EXPIRED})
def the_first_entries_have_expired(bucket: SmallBucket) -> None:
    for seq in range(3):
        del bucket.store.objects[journal_key(PREFIX, seq)]


@damage({Code.JOURNAL_EXPIRED})
def the_first_entries_are_archived(bucket: SmallBucket) -> None:
    bucket.store.archived |= {journal_key(PREFIX, seq) for seq in range(4)}


@damage(
    {Code.JOURNAL_EXPIRED, Code.OBJECT_MISSING, Code.SIZE_DIFFERS, Code.CONTENT_DIFFERS},
    {Code.BODY_UNREADABLE},
)
def what_came_later_is_still_proved(bucket: SmallBucket) -> None:
    the_first_entries_have_expired(bucket)
    stored(bucket, 3).body = stored(bucket, 3).body[:-20]
    del bucket.store.objects[bucket.pieces[4].planned.key]


@damage({Code.JOURNAL_EXPIRED, Code.UNNAMED_OBJECT})
def what_no_entry_can_have_planned_is_unnamed(bucket: SmallBucket) -> None:
    the_first_entries_have_expired(bucket)
    late = Position("0001.00000000000FFFFF.00000000000FFFF0.000000")
    key = bucket.layout.object_key(ORDERS, 2, "2026-11-22T12", late, "gzip")
    bucket.store.objects[key] = StoredObject(b"", {})


@damage({Code.ENTRY_UNREADABLE, Code.CHAIN_BROKEN, Code.UNNAMED_OBJECT})
def a_later_entry_is_archived(bucket: SmallBucket) -> None:
    bucket.store.archived.add(journal_key(PREFIX, 2))


@damage(more={Code.OBJECT_ARCHIVED})
def an_object_is_archived(bucket: SmallBucket) -> None:
    bucket.store.archived.add(bucket.pieces[2].planned.key)


@damage({Code.PREFIX_NESTED})
def another_pipeline_lies_inside(bucket: SmallBucket) -> None:
    for key, found in list(bucket.store.objects.items()):
        bucket.store.objects[key.replace(PREFIX, f"{PREFIX}/inner", 1)] = found
    bucket.store.objects[own_folder(f"{PREFIX}/inner") + "check/write-1"] = StoredObject(b"", {})
    bucket.store.objects[own_folder(f"{PREFIX}/inner") + "requests/7"] = StoredObject(b"", {})


@damage({Code.PREFIX_NESTED, Code.UNNAMED_OBJECT})
def somebody_else_writes_there_too(bucket: SmallBucket) -> None:
    another_pipeline_lies_inside(bucket)
    bucket.store.objects[f"{PREFIX}/inner/notes.txt"] = StoredObject(b"", {})


@damage({Code.UNNAMED_OBJECT})
def an_inner_pipeline_has_lost_its_journal(bucket: SmallBucket) -> None:
    another_pipeline_lies_inside(bucket)
    for key in [k for k in bucket.store.objects if "/inner/_tailrace/" in k]:
        del bucket.store.objects[key]


@damage({Code.SIZE_DIFFERS})
def a_size_is_another(bucket: SmallBucket) -> None:
    stored(bucket, 2).metadata["size-bytes"] = "7"


@damage({Code.SIZE_DIFFERS, Code.CONTENT_DIFFERS}, {Code.BODY_UNREADABLE})
def an_object_is_cut_by_20_bytes(bucket: SmallBucket) -> None:
    stored(bucket, 2).body = stored(bucket, 2).body[:-20]


@damage({Code.ENTRY_MISSING})
def the_entry_of_a_takeover_is_gone(bucket: SmallBucket) -> None:
    del bucket.store.objects[journal_key(PREFIX, 4)]


@damage({Code.UNNAMED_OBJECT})
def the_last_entry_is_gone(bucket: SmallBucket) -> None:
    del bucket.store.objects[journal_key(PREFIX, 8)]


@damage({Code.ENTRY_UNREADABLE})
def an_entry_is_cut_off(bucket: SmallBucket) -> None:
    entry(bucket, 7).body = entry(bucket, 7).body[:-10]


@damage({Code.ENTRY_UNREADABLE})
def an_entry_is_empty(bucket: SmallBucket) -> None:
    entry(bucket, 7).body = b""


@damage({Code.ENTRY_UNREADABLE})
def an_entry_states_no_position(bucket: SmallBucket) -> None:
    position = LogPosition("0001.0000000000001100")
    durable = Durable(position, "0/1100", "2026-11-22T09:51:55.000000Z", 6)
    edit_entry(bucket, 7, durable=durable)
    last = entry(bucket, 7)
    last.body = last.body.replace(position.encode(), b"nowhere")


@damage({Code.ENTRY_UNREADABLE, Code.CHAIN_BROKEN, Code.UNNAMED_OBJECT})
def an_entry_states_no_table(bucket: SmallBucket) -> None:
    rewrite_plan(bucket, 2, table="orders")


@damage({Code.HASH_MISMATCH})
def an_entry_has_a_byte_more(bucket: SmallBucket) -> None:
    entry(bucket, 7).body += b"\n"


@damage({Code.HASH_MISMATCH, Code.METADATA_DIFFERS}, {Code.CONTENT_DIFFERS})
def a_checksum_in_an_entry_is_altered(bucket: SmallBucket) -> None:
    crc = bucket.pieces[2].planned.raw_crc32.encode()
    without_states(bucket)
    entry(bucket, 2).body = entry(bucket, 2).body.replace(crc, crc[::-1])


@damage({Code.ENTRY_MISPLACED})
def an_entry_has_another_number(bucket: SmallBucket) -> None:
    edit_entry(bucket, 6, seq=66)


@damage(
    {Code.ENTRY_MISPLACED, Code.HASH_MISMATCH, Code.RESTATED_LATE, Code.METADATA_DIFFERS},
    {Code.CONTENT_DIFFERS},
)
def two_entries_change_places(bucket: SmallBucket) -> None:
    one, two = entry(bucket, 6), entry(bucket, 7)
    one.body, two.body = two.body, one.body


@damage({Code.EPOCH_WRONG})
def an_entry_has_another_epoch(bucket: SmallBucket) -> None:
    edit_entry(bucket, 7, epoch=1)


@damage({Code.EPOCH_WRONG})
def a_takeover_skips_an_epoch(bucket: SmallBucket) -> None:
    def edit(entry: Entry) -> Entry:
        return msgspec.structs.replace(entry, epoch=3) if entry.seq >= 4 else entry

    rewrite_journal(bucket.store, edit)


@damage({Code.EPOCH_WRONG})
def a_writer_goes_on_after_it_was_superseded(bucket: SmallBucket) -> None:
    def edit(entry: Entry) -> Entry:
        writer = msgspec.structs.replace(entry.writer, id="writer-1")
        return msgspec.structs.replace(entry, writer=writer) if entry.seq == 7 else entry

    rewrite_journal(bucket.store, edit)


@damage({Code.NONCE_REPEATED})
def a_nonce_comes_twice(bucket: SmallBucket) -> None:
    edit_entry(bucket, 6, nonce="n")
    edit_entry(bucket, 7, nonce="n")


@damage({Code.SOURCE_CHANGED})
def another_slot_writes_on(bucket: SmallBucket) -> None:
    _edit_source(bucket, lease="other")


@damage({Code.SOURCE_CHANGED})
def another_system_writes_on_in_the_same_generation(bucket: SmallBucket) -> None:
    _edit_source(bucket, facts={"system_identifier": "1"})


def _edit_source(bucket: SmallBucket, **changes: object) -> None:
    def edit(entry: Entry) -> Entry:
        if entry.seq != 4 or entry.open is None:
            return entry
        source = msgspec.structs.replace(entry.open.source, **changes)
        opened = msgspec.structs.replace(entry.open, source=source)
        return msgspec.structs.replace(entry, open=opened)

    rewrite_journal(bucket.store, edit)


@damage({Code.STATE_DIFFERS})
def a_state_file_is_no_gzip(bucket: SmallBucket) -> None:
    bucket.store.objects[state_key(PREFIX, 3)].body = b"{}"


@damage({Code.STATE_DIFFERS})
def a_state_file_is_of_another_entry(bucket: SmallBucket) -> None:
    bucket.store.objects[state_key(PREFIX, 2)] = bucket.store.objects.pop(state_key(PREFIX, 3))


@damage({Code.STATE_DIFFERS})
def a_state_file_forgets_a_frontier(bucket: SmallBucket) -> None:
    found = bucket.store.objects[state_key(PREFIX, 3)]
    state = msgspec.json.decode(gzip.decompress(found.body), type=JournalState)
    del state.frontiers[str(ODD)]
    found.body = encode_state(state)


@damage({Code.UNNAMED_OBJECT})
def a_state_file_has_no_entry(bucket: SmallBucket) -> None:
    found = bucket.store.objects[state_key(PREFIX, 3)]
    bucket.store.objects[state_key(PREFIX, 99)] = found


@damage({Code.DURABLE_BACK})
def durable_goes_back(bucket: SmallBucket) -> None:
    edit_entry(bucket, 7, durable=durable_at(0x1100, "2026-11-22T09:51:55.000000Z", seq=6))


@damage({Code.DURABLE_AHEAD, Code.OBJECT_MISSING})
def durable_is_ahead_of_its_entry(bucket: SmallBucket) -> None:
    durable = durable_at(0x1F00, "2026-11-22T09:51:55.000000Z", seq=9)
    edit_entry(bucket, 8, durable=durable)


@damage({Code.OBJECT_MISSING})
def durable_passes_an_object_that_is_missing(bucket: SmallBucket) -> None:
    edit_entry(bucket, 8, durable=durable_at(0x1F00, "2026-11-22T09:51:55.000000Z", seq=8))


@damage({Code.PLAN_BEFORE_DURABLE})
def rows_come_after_they_were_said_to_be_durable(bucket: SmallBucket) -> None:
    durable = durable_at(0xFFFF, "2026-11-22T09:51:55.000000Z", seq=6)
    edit_entry(bucket, 7, durable=durable)


@damage({Code.PLAN_COUNTS})
def a_plans_ops_do_not_add_up(bucket: SmallBucket) -> None:
    # A pending object that is not there: nothing else can contradict it.
    rewrite_plan(bucket, 6, ops={"c": 2})


@damage({Code.PLAN_COUNTS})
def a_plan_has_an_unknown_op(bucket: SmallBucket) -> None:
    rewrite_plan(bucket, 6, ops={"x": 1})


@damage({Code.PLAN_ORDER})
def one_row_has_two_positions(bucket: SmallBucket) -> None:
    last = bucket.pieces[6].planned.last
    rewrite_plan(bucket, 6, last=last[:-1] + "1")


@damage({Code.PLAN_ORDER, Code.VERSION_WRONG}, {Code.POSITIONS_DIFFER})
def a_plan_ends_before_it_begins(bucket: SmallBucket) -> None:
    without_states(bucket)
    rewrite_plan(bucket, 1, last=bucket.pieces[1].planned.first.replace("0001.", "0000.", 1))


@damage({Code.CHAIN_BROKEN})
def rows_are_missing_between_two_plans(bucket: SmallBucket) -> None:
    without_states(bucket)
    previous = bucket.pieces[3].planned.previous
    rewrite_plan(bucket, 3, previous=previous[:-1] + "1")


@damage({Code.CHAIN_BROKEN})
def two_plans_overlap(bucket: SmallBucket) -> None:
    without_states(bucket)
    rewrite_plan(bucket, 3, previous=bucket.pieces[2].planned.first)


@damage({Code.VERSION_NUMBER, Code.VERSION_UNKNOWN, Code.UNNAMED_OBJECT})
def a_version_skips_a_number(bucket: SmallBucket) -> None:
    _edit_version(bucket, number=3)


@damage({Code.VERSION_UNKNOWN, Code.UNNAMED_OBJECT})
def a_version_is_not_in_the_journal(bucket: SmallBucket) -> None:
    without_states(bucket)
    edit_entry(bucket, 3, schemas=())


@damage({Code.VERSION_BACK, Code.VERSION_WRONG, Code.KEY_WRONG}, {Code.RECORD_MISPLACED})
def a_version_goes_back(bucket: SmallBucket) -> None:
    rewrite_plan(bucket, 5, version=1)


@damage({Code.VERSION_WRONG, Code.SCHEMA_DIFFERS})
def a_version_begins_after_its_first_row(bucket: SmallBucket) -> None:
    _edit_version(bucket, first=bucket.pieces[3].planned.last)


def _edit_version(bucket: SmallBucket, **changes: object) -> None:
    without_states(bucket)

    def edit(entry: Entry) -> Entry:
        if entry.seq != 3:
            return entry
        version = msgspec.structs.replace(entry.schemas[0], **changes)
        return msgspec.structs.replace(entry, schemas=(version,))

    rewrite_journal(bucket.store, edit)


@damage({Code.HOUR_BACK, Code.KEY_WRONG})
def an_hour_goes_back(bucket: SmallBucket) -> None:
    rewrite_plan(bucket, 6, hour="2026-11-22T08")


@damage({Code.KEY_WRONG})
def an_object_lies_in_another_version(bucket: SmallBucket) -> None:
    without_states(bucket)
    old = bucket.pieces[3].planned.key
    new = old.replace("version=0002", "version=0001")
    bucket.store.objects[new] = bucket.store.objects.pop(old)
    rewrite_plan(bucket, 3, key=new)


@damage({Code.OBJECT_MISSING, Code.UNNAMED_OBJECT})
def an_object_is_moved(bucket: SmallBucket) -> None:
    old = bucket.pieces[3].planned.key
    new = old.replace("version=0002", "version=0001")
    bucket.store.objects[new] = bucket.store.objects.pop(old)


@damage({Code.RESTATEMENT_DIFFERS})
def a_restatement_has_other_rows(bucket: SmallBucket) -> None:
    def edit(entry: Entry) -> Entry:
        if entry.seq != 5:
            return entry
        planned = msgspec.structs.replace(entry.planned[0], previous="0001")
        later = msgspec.structs.replace(entry.planned[0], hour="2026-11-23T01")
        assert planned != later
        return msgspec.structs.replace(entry, planned=(*entry.planned, later))

    rewrite_journal(bucket.store, edit)


@damage({Code.RESTATED_LATE})
def a_durable_plan_is_stated_again(bucket: SmallBucket) -> None:
    def edit(entry: Entry) -> Entry:
        if entry.seq != 8:
            return entry
        again = msgspec.structs.replace(bucket.pieces[0].planned, codec=2)
        return msgspec.structs.replace(entry, planned=(*entry.planned, again))

    rewrite_journal(bucket.store, edit)


GAP = Gap(1, str(ORDERS), "0001.A", "", "operations", "updates were left out")


@damage({Code.GAP_WRONG})
def a_gap_skips_a_number(bucket: SmallBucket) -> None:
    edit_entry(bucket, 6, gaps=(GAP, msgspec.structs.replace(GAP, number=3)))


@damage({Code.GAP_WRONG})
def a_gap_is_stated_again_for_another_table(bucket: SmallBucket) -> None:
    edit_entry(bucket, 5, gaps=(GAP,))
    edit_entry(bucket, 6, gaps=(msgspec.structs.replace(GAP, table=str(ODD)),))


@damage({Code.PAUSE_WRONG})
def a_table_is_passed_over_and_no_gap_says_so(bucket: SmallBucket) -> None:
    edit_entry(bucket, 6, pauses=(Pause(str(ORDERS), "paused", "2026-11-29T09:00:00.000000Z"),))


@damage({Code.ACCEPTED_WRONG})
def a_loss_is_accepted_that_nobody_named(bucket: SmallBucket) -> None:
    edit_entry(bucket, 6, gaps=(GAP,), accepted=True)


@damage({Code.ACCEPTED_WRONG})
def a_loss_is_being_accepted_beside_no_open(bucket: SmallBucket) -> None:
    edit_entry(bucket, 6, accepting=Accepting(LogPosition("0001.A"), "keeper", "it is gone"))


@damage({Code.ACCEPTED_WRONG})
def an_object_is_void_and_no_loss_is_being_accepted(bucket: SmallBucket) -> None:
    void = void_of(bucket.pieces[5].planned)

    def edit(entry: Entry) -> Entry:
        return (
            msgspec.structs.replace(entry, planned=(*entry.planned, void))
            if entry.seq == 8
            else entry
        )

    rewrite_journal(bucket.store, edit)


@damage({Code.OBJECT_MISSING})
def an_object_is_deleted(bucket: SmallBucket) -> None:
    del bucket.store.objects[bucket.pieces[2].planned.key]


@damage({Code.OBJECT_EMPTY}, {Code.BODY_UNREADABLE})
def an_object_is_empty(bucket: SmallBucket) -> None:
    stored(bucket, 2).body = b""


def _alter_metadata(name: str) -> None:
    def apply(bucket: SmallBucket) -> None:
        stored(bucket, 2).metadata[name] += "1"

    apply.__name__ = f"metadata_says_another_{name}"
    damage({Code.METADATA_DIFFERS})(apply)


for _name in (
    "first-position",
    "last-position",
    "previous-position",
    "rows",
    "ops",
    "version",
    "codec",
    "raw-bytes",
    "raw-crc32",
    "writer",
):
    _alter_metadata(_name)


@damage({Code.METADATA_DIFFERS, Code.SIZE_DIFFERS})
def metadata_is_gone(bucket: SmallBucket) -> None:
    stored(bucket, 2).metadata.clear()


@damage({Code.METADATA_DIFFERS})
def a_pending_object_is_not_what_was_planned(bucket: SmallBucket) -> None:
    stored(bucket, 5).metadata["rows"] = "2"


@damage({Code.UNNAMED_OBJECT})
def a_foreign_object_is_there(bucket: SmallBucket) -> None:
    key = bucket.pieces[0].planned.key.replace(".ndjson.gz", ".csv")
    bucket.store.objects[key] = StoredObject(b"", {})


@damage({Code.UNNAMED_OBJECT})
def a_foreign_object_is_in_our_own_folder(bucket: SmallBucket) -> None:
    bucket.store.objects[own_folder(PREFIX) + "lock"] = StoredObject(b"", {})


@damage({Code.UNNAMED_OBJECT})
def a_foreign_object_is_in_the_journal(bucket: SmallBucket) -> None:
    bucket.store.objects[journal_folder(PREFIX) + "5.json"] = StoredObject(b"", {})


@damage({Code.SCHEMA_MISSING})
def a_schema_is_missing(bucket: SmallBucket) -> None:
    del bucket.store.objects[bucket.layout.schema_key(ORDERS, 2)]


@damage({Code.SCHEMA_DIFFERS})
def a_schema_is_altered(bucket: SmallBucket) -> None:
    bucket.store.objects[bucket.layout.schema_key(ORDERS, 2)].body += b" "


@damage({Code.UNNAMED_OBJECT})
def a_schema_has_no_version(bucket: SmallBucket) -> None:
    bucket.store.objects[bucket.layout.schema_key(ORDERS, 3)] = StoredObject(b"", {})


@damage({Code.SIZE_DIFFERS, Code.CONTENT_DIFFERS}, {Code.BODY_UNREADABLE})
def a_body_is_truncated(bucket: SmallBucket) -> None:
    stored(bucket, 2).body = stored(bucket, 2).body[:-1]


@damage(more={Code.BODY_UNREADABLE})
def a_bit_flips(bucket: SmallBucket) -> None:
    body = bytearray(stored(bucket, 2).body)
    body[len(body) // 2] ^= 1
    stored(bucket, 2).body = bytes(body)


@damage({Code.SIZE_DIFFERS, Code.CONTENT_DIFFERS}, {Code.BODY_UNREADABLE})
def bytes_follow_the_body(bucket: SmallBucket) -> None:
    stored(bucket, 2).body += b"\0"


@damage({Code.SIZE_DIFFERS, Code.CONTENT_DIFFERS}, {Code.BODY_UNREADABLE})
def another_body_follows_far_behind(bucket: SmallBucket) -> None:
    stored(bucket, 2).body += bytes(200_000)


@damage(more={Code.CONTENT_DIFFERS})
def a_value_is_altered(bucket: SmallBucket) -> None:
    edit_lines(bucket, 2, lambda lines: lines.replace(b'"id":7', b'"id":8', 1))


@damage(more={Code.CONTENT_DIFFERS, Code.ROWS_DIFFER, Code.OPS_DIFFER})
def a_row_is_missing(bucket: SmallBucket) -> None:
    def edit(lines: bytes) -> bytes:
        rows = lines.splitlines(keepends=True)
        return b"".join([rows[0], *rows[2:]])

    edit_lines(bucket, 2, edit)


@damage(more={Code.CONTENT_DIFFERS, Code.ROWS_DIFFER, Code.OPS_DIFFER, Code.POSITION_ORDER})
def a_row_is_doubled(bucket: SmallBucket) -> None:
    def edit(lines: bytes) -> bytes:
        rows = lines.splitlines(keepends=True)
        return b"".join([rows[0], rows[1], *rows[1:]])

    edit_lines(bucket, 2, edit)


@damage(more={Code.CONTENT_DIFFERS, Code.ROWS_DIFFER, Code.OPS_DIFFER, Code.POSITIONS_DIFFER})
def the_last_row_is_missing(bucket: SmallBucket) -> None:
    edit_lines(bucket, 2, lambda lines: b"".join(lines.splitlines(keepends=True)[:-1]))


@damage(more={Code.CONTENT_DIFFERS, Code.POSITION_ORDER})
def rows_are_out_of_order(bucket: SmallBucket) -> None:
    def edit(lines: bytes) -> bytes:
        one, two, three, four = lines.splitlines(keepends=True)
        return one + three + two + four

    edit_lines(bucket, 2, edit)


@damage(more={Code.CONTENT_DIFFERS, Code.LINE_MALFORMED})
def the_last_newline_is_missing(bucket: SmallBucket) -> None:
    edit_lines(bucket, 2, lambda lines: lines[:-1])


@damage(more={Code.CONTENT_DIFFERS, Code.LINE_MALFORMED})
def a_line_is_no_json(bucket: SmallBucket) -> None:
    edit_lines(bucket, 2, lambda lines: lines.replace(b"{", b"[", 1))


@damage(more={Code.CONTENT_DIFFERS, Code.LINE_MALFORMED, Code.ROWS_DIFFER})
def an_empty_line_is_there(bucket: SmallBucket) -> None:
    edit_lines(bucket, 2, lambda lines: lines.replace(b"\n", b"\n\n", 1))


@damage(more={Code.CONTENT_DIFFERS, Code.LINE_MALFORMED})
def records_have_another_envelope(bucket: SmallBucket) -> None:
    edit_lines(bucket, 2, lambda lines: lines.replace(b'"metadata"', b'"source"'))


@damage(more={Code.CONTENT_DIFFERS, Code.LINE_MALFORMED})
def a_deleted_row_is_there_afterwards(bucket: SmallBucket) -> None:
    edit_lines(bucket, 2, lambda lines: lines.replace(b'"after":null', b'"after":{}', 1))


@damage(more={Code.CONTENT_DIFFERS, Code.LINE_MALFORMED})
def an_op_is_no_text(bucket: SmallBucket) -> None:
    edit_lines(bucket, 2, lambda lines: lines.replace(b'"op":"c"', b'"op":{}', 1))


@damage(more={Code.CONTENT_DIFFERS, Code.RECORD_MISPLACED})
def a_record_is_of_another_table(bucket: SmallBucket) -> None:
    edit_lines(bucket, 2, lambda lines: lines.replace(b'"orders"', b'"borders"', 1))


@damage(more={Code.CONTENT_DIFFERS, Code.RECORD_MISPLACED})
def a_record_is_of_another_version(bucket: SmallBucket) -> None:
    edit_lines(bucket, 2, lambda lines: lines.replace(b'"version":1', b'"version":2', 1))


@damage(
    more={
        Code.CONTENT_DIFFERS,
        Code.ROWS_DIFFER,
        Code.OPS_DIFFER,
        Code.POSITIONS_DIFFER,
        Code.RECORD_MISPLACED,
    }
)
def two_objects_change_bodies(bucket: SmallBucket) -> None:
    one, two = stored(bucket, 2), stored(bucket, 3)
    one.body, two.body = two.body, one.body
    for found in (one, two):
        found.metadata["size-bytes"] = str(len(found.body))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
async def test_each_damage_is_found_by_its_codes(damage: Damage[SmallBucket]) -> None:
    bucket = await make_bucket()
    damage.apply(bucket)

    light, full = await judged(bucket.store, "light"), await judged(bucket.store, "full")

    # Other lines end in another gzip trailer: the last bytes tell.
    seen = damage.more & {Code.CONTENT_DIFFERS}
    assert codes(light) == damage.light | seen, light.problems
    assert codes(full) == damage.light | damage.more, full.problems


@pytest.mark.parametrize("envelope", ["debezium", "flat"])
@pytest.mark.parametrize(
    "damage",
    [a_row_is_missing, rows_are_out_of_order, the_last_newline_is_missing, a_line_is_no_json],
    ids=lambda damage: str(damage.__name__),
)
async def test_damaged_records_are_found_in_every_envelope(
    envelope: Envelope, damage: Break
) -> None:
    bucket = await make_bucket(envelope=envelope)
    damage(bucket)

    verdict = await judged(bucket.store)

    expected = next(d.more for d in DAMAGES if d.apply is damage)
    assert codes(verdict) == expected


@pytest.mark.parametrize("damage", [a_body_is_truncated, bytes_follow_the_body])
async def test_damaged_zstd_is_found(damage: Break) -> None:
    bucket = await make_bucket(compression="zstd")
    damage(bucket)

    assert codes(await judged(bucket.store, "light")) == {Code.SIZE_DIFFERS}
    assert codes(await judged(bucket.store)) == {Code.SIZE_DIFFERS, Code.BODY_UNREADABLE}


def test_every_code_has_a_damage_that_shows_it() -> None:
    shown = set[Code]().union(*(damage.light | damage.more for damage in DAMAGES))

    # Objects expire as time passes: no damage does it.
    shown.add(Code.OBJECTS_EXPIRED)
    assert set(Code) - shown - SNAPSHOT_CODES - REQUEST_CODES == set()


def test_every_code_is_documented_and_nothing_else() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", DOCUMENT.read_text(), flags=re.MULTILINE)

    assert sorted(documented) == sorted(Code)


async def test_no_problem_shows_a_value_of_a_row() -> None:
    bucket = await make_bucket()
    edit_lines(bucket, 2, lambda lines: lines.replace(b"12.50", b"secret").replace(b'"\n', b"\n"))
    edit_lines(bucket, 0, lambda lines: lines.replace(b'"note":"', b'"note":secret"'))

    verdict = await judged(bucket.store)

    assert not verdict.is_ok
    assert "secret" not in repr(verdict)


@pytest.mark.parametrize("depth", [900, 1022, 1024, 5000, 100_000])
async def test_json_that_is_nested_deeper_than_a_parser_goes_is_no_problem(depth: int) -> None:
    bucket = await make_bucket()
    deep = b'"note":' + b'[{"[":' * depth + b'"}\\\\\\""' + b"}]" * depth
    edit_lines(bucket, 2, lambda lines: re.sub(rb'"note":"[^,]*"(?=[,}])', lambda _: deep, lines))

    verdict = await judged(bucket.store)

    assert codes(verdict) == {Code.CONTENT_DIFFERS}


async def test_deep_json_that_is_not_closed_is_a_problem() -> None:
    bucket = await make_bucket()
    deep = b'"note":' + b"[" * 5000 + b"]" * 4999
    edit_lines(bucket, 2, lambda lines: re.sub(rb'"note":"[^,]*"(?=[,}])', lambda _: deep, lines))

    verdict = await judged(bucket.store)

    assert codes(verdict) == {Code.CONTENT_DIFFERS, Code.LINE_MALFORMED}


async def test_one_damage_does_not_hide_another() -> None:
    bucket = await make_bucket()
    an_entry_with_a_plan_is_gone(bucket)
    a_schema_is_altered(bucket)
    del bucket.store.objects[bucket.pieces[4].planned.key]

    verdict = await judged(bucket.store)

    assert codes(verdict) >= {Code.ENTRY_MISSING, Code.SCHEMA_DIFFERS, Code.OBJECT_MISSING}


_MADE = asyncio.run(make_bucket())
ORIGINAL = _MADE.store.objects
PENDING = _MADE.pieces[5].planned.key
# Nothing follows the last entry yet that would name its hash.
ALTERABLE = sorted(set(ORIGINAL) - {journal_key(PREFIX, 8)})


@given(st.sampled_from(ALTERABLE), st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_any_corrupted_byte_of_any_object_is_found(key: str, index: int, mask: int) -> None:
    store = MemoryStore(copy.deepcopy(ORIGINAL))
    body = bytearray(store.objects[key].body)
    body[index % len(body)] ^= mask
    store.objects[key].body = bytes(body)

    verdict = asyncio.run(judged(store))

    # gzip's header has bits that say nothing: time, system, effort, "probably text".
    is_idle = key.endswith(".gz") and index % len(body) < 10
    assert not verdict.is_ok or (
        is_idle and gzip.decompress(body) == gzip.decompress(ORIGINAL[key].body)
    )


@given(st.sampled_from(ALTERABLE), st.integers(0, 10**6))
@settings(max_examples=75, deadline=None)
def test_any_object_that_is_cut_off_is_found(key: str, length: int) -> None:
    store = MemoryStore(copy.deepcopy(ORIGINAL))
    found = store.objects[key]
    found.body = found.body[: length % len(found.body)]

    assert not asyncio.run(judged(store)).is_ok


@pytest.mark.parametrize("key", [key for key in ALTERABLE if "/state/" not in key])
def test_any_object_that_is_deleted_is_missed(key: str) -> None:
    store = MemoryStore(copy.deepcopy(ORIGINAL))
    del store.objects[key]

    verdict = asyncio.run(judged(store, "light"))

    # The object of the last entry's plan is pending: it may be absent. The first entry may have
    # expired: a state file covers it.
    assert (verdict.is_ok and not verdict.warnings) == (key == PENDING)
    assert verdict.is_ok == (key in {PENDING, journal_key(PREFIX, 0)})


# --- an engine at work meanwhile


async def test_an_object_that_was_planned_and_put_while_we_listed_is_no_problem() -> None:
    bucket = await make_bucket()

    async def publish(prefix: str) -> None:
        if prefix == f"{PREFIX}/":
            bucket.store.before_list = MemoryStore().before_list
            piece = bucket.piece(ORDERS, "cc")
            await bucket.journal.append(planned=(piece.planned,), durable=bucket.durable())
            await bucket.publish(piece)

    bucket.store.before_list = publish

    verdict = await judged(bucket.store)

    assert verdict.problems == ()
    assert verdict.pending == 2


async def test_a_plan_that_was_restated_while_we_looked_is_no_problem() -> None:
    bucket = await make_bucket()
    pending = bucket.pieces[6]

    async def restate(key: str) -> None:
        if key == pending.planned.key:
            bucket.store.before_head = MemoryStore().before_head
            await bucket.take_over("writer-3")
            again = restated(bucket, pending)
            await bucket.journal.append(planned=(again.planned,))
            await bucket.publish(again)

    bucket.store.before_head = restate

    assert (await judged(bucket.store)).problems == ()


async def test_a_plan_that_was_restated_and_made_durable_while_we_looked_is_no_problem() -> None:
    bucket = await make_bucket()
    pending = bucket.pieces[6]

    async def restate(key: str) -> None:
        if key == pending.planned.key:
            bucket.store.before_head = MemoryStore().before_head
            again = restated(bucket, pending)
            await bucket.journal.append(planned=(again.planned,))
            await bucket.publish(again)
            await bucket.journal.append(durable=bucket.durable())

    bucket.store.before_head = restate

    assert (await judged(bucket.store)).problems == ()


# --- the bucket itself


class OnceUnavailable(MemoryStore):
    """The first request of each kind is not answered; a listing breaks off behind its first key."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner.objects)
        self._asked: set[str] = set()

    async def get(self, key: str) -> bytes | None:
        self._fail_once("get")
        return await super().get(key)

    async def head(self, key: str) -> ObjectHead | None:
        self._fail_once("head")
        return await super().head(key)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        async for listed in super().list(prefix, after=after):
            yield listed
            self._fail_once("list")

    def _fail_once(self, kind: str) -> None:
        if kind not in self._asked:
            self._asked.add(kind)
            raise DestinationUnavailable("no answer", code="Timeout")


async def test_unanswered_requests_are_repeated() -> None:
    bucket = await make_bucket()

    assert (await judged(OnceUnavailable(bucket.store))).problems == ()


class Refused(MemoryStore):
    async def head(self, key: str) -> ObjectHead | None:
        raise DestinationRefused("head: 403", hint="grant s3:GetObject")


async def test_a_refusal_ends_it_with_the_error_itself() -> None:
    bucket = await make_bucket()

    with pytest.raises(DestinationRefused, match="403"):
        await judged(Refused(bucket.store.objects))


async def test_a_long_journal_is_read_page_by_page() -> None:
    bucket = await make_bucket()
    await bucket.publish(bucket.pieces[6])
    for _ in range(1010):
        await bucket.journal.append(durable=bucket.durable())
    begun = time.monotonic()

    verdict = await judged(bucket.store)

    assert verdict.entries == 1019
    # Two more state files came with it, and the fold equals them.
    assert verdict.problems == ()
    assert time.monotonic() - begun < 60


def test_the_documented_json_has_these_very_fields() -> None:
    text = DOCUMENT.read_text()
    example = re.search(r"```json\n(.*?)```", text, flags=re.DOTALL)
    assert example is not None

    assert list(json.loads(example[1])) == [
        "ok",
        "tables",
        "objects",
        "rows",
        "pending",
        "expired",
        "problems",
        "gaps",
        "warnings",
        "snapshots",
    ]
