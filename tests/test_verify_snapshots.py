"""verify: snapshots that the engine's own parts made are right, and every damage has its code."""

import asyncio
import copy
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
import pytest
from msgspec.structs import replace

from damages import Damage, Damages
from engine.cli.verify import _as_json, _say_unfinished
from engine.flow.chunk import crc32_text
from engine.journal.entry import (
    Durable,
    Entry,
    Gap,
    ListedObjects,
    Open,
    Snapshot,
    StreamStart,
    encode_state,
)
from engine.journal.gaps import PUBLISHED_AFTER_ALL
from engine.journal.retry import Patience
from engine.journal.schema_files import SchemaFiles
from engine.model.batch import Batch, LeftOut
from engine.model.layout import journal_key, list_key, state_key
from engine.model.position import LogPosition, Position, make_position, snapshot_position
from engine.model.record import Compression, Envelope, Layout
from engine.model.schema import TableName
from engine.model.staged_object import StagedObject
from engine.reader.verify import Code, Depth, TableVerdict, Verdict, verify
from engine.snapshot.staging import stage
from memory_store import MemoryStore, StoredObject
from small_bucket import (
    ODD,
    ORDERS,
    PREFIX,
    START_US,
    SmallBucket,
    compressed,
    decompressed,
    rewrite_journal,
)
from small_snapshot import Snapshots, range_numbers

LEFT = TableName("public", "left")
PENDING = TableName("public", "pending")
STARTED = TableName("public", "started")
RANGES = {0: "t", 1: "RRR", 2: "rr"}
DAY_US = 86_400_000_000


class SilentProgress:
    def reached(self, phase: str, done: int, total: int | None) -> None:
        pass


async def judged(store: Any, depth: Depth = "full") -> Verdict:
    return await verify(
        store,
        PREFIX,
        depth=depth,
        concurrency=4,
        progress=SilentProgress(),
        clock=lambda: START_US + DAY_US // 2,
    )


def codes(verdict: Verdict) -> set[Code]:
    return {found.code for found in (*verdict.problems, *verdict.warnings)}


@dataclass
class Made:
    """A bucket, and what was staged for it: objects by the word for what became of them.

    `streamed` is the key of a stream's object.
    """

    bucket: SmallBucket
    objects: dict[str, tuple[StagedObject, ...]]
    streamed: str

    @property
    def store(self) -> MemoryStore:
        return self.bucket.store


async def make_bucket(
    *,
    envelope: Envelope = "standard",
    compression: Compression = "gzip",
    layout: Layout = "hive",
) -> Made:
    """A bucket with a snapshot in every state.

    Orders is streamed and finished. Of the oddly named table the first attempt is void, one object
    of it is there, and the second one is finished. An attempt of `left` is whole, one object of it
    is there, and the next writer does not capture the table. Of `pending` an attempt is whole, and
    one object is there; of `started` one is started. A state file folds up to where orders is
    whole, and nothing of it is durable.
    """
    bucket = SmallBucket(
        envelope=envelope, compression=compression, layout=layout, snapshot="initial"
    )
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    objects: dict[str, tuple[StagedObject, ...]] = {}
    version, streamed = bucket.version(ORDERS), bucket.piece(ORDERS, "ccu")
    snapshots.register.capture(ORDERS)
    await snapshots.append(planned=(streamed.planned,), schemas=(version,))
    await bucket.publish(streamed)

    objects["void"] = await snapshots.make_whole(ODD, {0: "t", 1: "r", 2: "r"})
    await bucket.store.abort_upload(objects["void"][2].key, objects["void"][2].upload_id)
    await snapshots.complete()
    await snapshots.append(snapshots.durable(1))
    objects["again"] = await snapshots.make_whole(ODD, {0: "t", 1: "r"})
    objects["finished"] = await snapshots.make_whole(ORDERS, RANGES, bytes_max=1)
    await bucket.store.create(
        state_key(PREFIX, bucket.journal.state.seq),
        encode_state(bucket.journal.state),
        content_type="application/gzip",
        metadata={},
    )
    await snapshots.complete()
    more = bucket.piece(ORDERS, "d")
    await snapshots.append(planned=(more.planned,))
    await bucket.publish(more)
    objects["left"] = await snapshots.make_whole(LEFT, {0: "t", 1: "r"})
    await snapshots.append(snapshots.durable(bucket.journal.state.seq - 2))
    await schema_made(bucket, LEFT)
    await completed(bucket.store, objects["left"][1])

    bucket.configuration = replace(bucket.configuration, exclude=("public.left",))
    await bucket.take_over("writer-2")
    snapshots = Snapshots(bucket)
    snapshots.register.capture(PENDING)
    await snapshots.append(snapshots.durable())
    objects["pending"] = await snapshots.make_whole(PENDING, {0: "t", 1: "r"})
    snapshots.start(STARTED)
    await snapshots.append(snapshots.durable(bucket.journal.state.seq - 1))
    await schema_made(bucket, PENDING)
    await completed(bucket.store, objects["pending"][1])
    return Made(bucket, objects, streamed.planned.key)


async def schema_made(bucket: SmallBucket, table: TableName) -> None:
    files = SchemaFiles(bucket.store, bucket.journal, Patience(lambda _: None))
    await files.ensure(table, 1, bucket.layout)


async def completed(store: MemoryStore, staged: StagedObject) -> None:
    await store.complete_upload(staged.key, staged.upload_id, staged.parts, crc32=staged.crc32)


# --- nothing is wrong


@pytest.mark.parametrize("depth", ["light", "full"])
@pytest.mark.parametrize("layout", ["hive", "plain"])
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("envelope", ["standard", "debezium", "flat"])
async def test_what_the_engine_makes_is_right(
    envelope: Envelope, compression: Compression, layout: Layout, depth: Depth
) -> None:
    made = await make_bucket(envelope=envelope, compression=compression, layout=layout)

    verdict = await judged(made.store, depth)

    assert verdict.problems == ()
    assert verdict.warnings == ()


async def test_tables_are_told_with_the_objects_of_their_snapshots() -> None:
    made = await make_bucket()

    verdict = await judged(made.store)

    told = {table.table: table for table in verdict.tables}
    assert {name: table.snapshot for name, table in told.items()} == {
        str(ODD): "finished",
        str(ORDERS): "finished",
        str(PENDING): "whole",
        str(STARTED): "started",
    }
    orders, odd = told[str(ORDERS)], told[str(ODD)]
    assert (orders.objects, orders.rows) == (2, 4)
    assert (orders.snapshot_objects, orders.snapshot_rows) == (5, 6)
    # Of the attempt that is void nothing is counted.
    assert (odd.objects, odd.snapshot_objects, odd.snapshot_rows) == (0, 2, 2)
    assert told[str(PENDING)].pending == 2
    assert (verdict.objects, verdict.rows, verdict.pending) == (9, 12, 2)
    assert [table.table for table in verdict.unfinished] == [str(PENDING), str(STARTED)]


async def test_a_snapshot_whose_point_is_not_durable_is_whole_and_no_more() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    before = bucket.durable()
    bucket.commit += 0x100
    await snapshots.make_whole(ORDERS)
    await snapshots.complete()
    seq = bucket.journal.state.seq
    unfinished = snapshots.register.unfinished(before.position, seq)
    await snapshots.append(replace(before, seq=seq, unfinished=unfinished))

    verdict = await judged(bucket.store)

    (orders,) = verdict.tables
    assert verdict.problems == ()
    assert (orders.snapshot, orders.is_unfinished) == ("whole", True)
    assert (orders.snapshot_objects, orders.pending) == (3, 0)


@pytest.mark.parametrize("what", ["void", "left", "pending"])
@pytest.mark.parametrize("is_there", [True, False])
async def test_what_no_entry_promises_may_be_there_or_not(what: str, *, is_there: bool) -> None:
    made = await make_bucket()
    for staged in made.objects[what]:
        if not is_there:
            made.store.objects.pop(staged.key, None)
        elif staged.upload_id in made.store.uploads:
            await completed(made.store, staged)

    assert (await judged(made.store)).problems == ()


async def test_entries_that_are_gone_are_covered_by_a_state_file_with_snapshots() -> None:
    made = await make_bucket()
    seq = expire(made)

    verdict = await judged(made.store)

    assert seq == 8
    assert codes(verdict) == {Code.JOURNAL_EXPIRED}
    orders = next(table for table in verdict.tables if table.table == str(ORDERS))
    # The state file names them, and a later entry says that they are durable.
    assert (orders.snapshot, orders.snapshot_objects) == ("finished", 5)


async def test_lists_of_objects_are_read_behind_a_state_file_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.journal.object_lists.LIST_BYTES_MIN", 2_000)
    made = await make_bucket()
    (key,) = (key for key in made.store.objects if "/snapshots/" in key)
    whole = await judged(made.store)
    expire(made)

    verdict = await judged(made.store)
    del made.store.objects[key]
    without = await judged(made.store)

    assert whole.problems == ()
    assert codes(verdict) == {Code.JOURNAL_EXPIRED}
    orders = next(table for table in verdict.tables if table.table == str(ORDERS))
    assert (orders.snapshot, orders.snapshot_objects) == ("finished", 5)
    assert codes(without) == {Code.JOURNAL_EXPIRED, Code.LIST_MISSING}


async def test_what_a_state_file_names_is_proved() -> None:
    made = await make_bucket()
    expire(made)
    del made.store.objects[made.objects["finished"][1].key]
    made.store.objects[made.objects["again"][1].key].metadata["nonce"] = "another"

    verdict = await judged(made.store, "light")

    assert codes(verdict) == {
        Code.JOURNAL_EXPIRED,
        Code.OBJECT_MISSING,
        Code.METADATA_DIFFERS,
    }


@pytest.mark.parametrize("table", [LEFT, PENDING])
async def test_behind_a_state_file_only_what_was_before_it_may_have_expired(
    table: TableName,
) -> None:
    # Nothing of these two was named before: no entry that is gone can have.
    made = await make_bucket()
    expire(made)
    known = made.objects["left" if table == LEFT else "pending"][1]
    foreign = known.key.replace(known.first, f"{known.first[:-6]}00FFFF")
    made.store.objects[foreign] = copy.deepcopy(made.store.objects[known.key])

    verdict = await judged(made.store)

    assert codes(verdict) == {Code.JOURNAL_EXPIRED, Code.UNNAMED_OBJECT}


async def test_an_attempt_that_is_void_in_a_state_file_has_objects_that_cannot_be_proved() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    objects = await snapshots.make_whole(ORDERS)
    await bucket.store.abort_upload(objects[2].key, objects[2].upload_id)
    await snapshots.complete()
    seq = await snapshots.append()
    await bucket.store.create(
        state_key(PREFIX, seq), encode_state(bucket.journal.state), content_type="", metadata={}
    )
    await bucket.journal.append()
    for gone in range(seq + 1):
        del bucket.store.objects[journal_key(PREFIX, gone)]

    verdict = await judged(bucket.store)

    assert objects[1].key in bucket.store.objects
    assert codes(verdict) == {Code.JOURNAL_EXPIRED}
    assert "1 object that they named" in verdict.warnings[0].text


async def test_objects_that_become_visible_while_we_look_are_no_problem() -> None:
    made = await make_bucket()

    async def complete(prefix: str) -> None:
        if prefix == f"{PREFIX}/":
            made.store.before_list = MemoryStore().before_list
            snapshots = Snapshots(made.bucket)
            await snapshots.make_whole(STARTED)
            await snapshots.complete()

    made.store.before_list = complete

    assert (await judged(made.store)).problems == ()


def test_people_read_which_tables_are_unfinished(capsys: pytest.CaptureFixture[str]) -> None:
    tables = tuple(
        TableVerdict(name, 1, 2, 0, Position(""), Position(""), (1,), "started", 3, 4)
        for name in [f"public.t{number}" for number in range(60)]
    )

    _say_unfinished(tables)
    lines = capsys.readouterr().out.splitlines()
    found = _as_json(Verdict(tables[:1], 1, "", "", ()))

    assert lines[0] == "unfinished  public.t0  its snapshot is started"
    assert lines[50].startswith("… and 10 more")
    assert found["snapshots"] == [
        {"table": "public.t0", "state": "started", "objects": 3, "rows": 4}
    ]
    assert (found["objects"], found["rows"]) == (4, 6)


async def make_segments(*, segments: int = 3) -> Made:
    """A bucket with a snapshot of orders in three segments, of which so many are visible."""
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    objects = await snapshots.make_whole(ORDERS, {0: "t", 1: "rr"}, rest="3")
    for number, rest in ((1, "7"), (2, ""))[: segments - 1]:
        await snapshots.complete()
        await snapshots.append(snapshots.durable())
        bucket.commit += 0x100
        attempt = snapshots.start(ORDERS, rest=snapshots.register.rest(ORDERS))
        await snapshots.append()
        staged = await snapshots.stage(attempt, range_numbers(number, "rr", "r"))
        await snapshots.register.whole(attempt, staged, rest=rest)
        await snapshots.append()
        objects += staged
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    return Made(bucket, {"finished": objects}, "")


@pytest.mark.parametrize(
    ("segments", "progress"), [(1, "started"), (2, "started"), (3, "finished")]
)
async def test_segments_of_an_attempt_are_counted_together(segments: int, progress: str) -> None:
    made = await make_segments(segments=segments)

    verdict = await judged(made.store)

    (orders,) = verdict.tables
    assert verdict.problems == ()
    assert (orders.snapshot, orders.is_unfinished) == (progress, segments < 3)
    assert orders.snapshot_objects == len(made.objects["finished"]) == 2 * segments
    assert orders.snapshot_rows == 3 * segments


@pytest.mark.parametrize(("added", "found"), [(-9, set()), (0, set()), (1, {Code.STATE_DIFFERS})])
async def test_a_state_file_may_have_snapshots_whose_objects_nobody_counted(
    added: int, found: set[Code]
) -> None:
    """An older release wrote it, or a newer one that began with what that one wrote."""
    made = await make_segments(segments=2)
    state = made.bucket.journal.state
    stated = state.snapshots[str(ORDERS)]
    count = max(stated.object_count + added, 0)
    edited = msgspec.structs.replace(
        state,
        snapshots={str(ORDERS): msgspec.structs.replace(stated, object_count=count)},
    )
    made.store.objects[state_key(PREFIX, state.seq)] = StoredObject(encode_state(edited), {})

    verdict = await judged(made.store)

    assert stated.object_count == 4
    assert codes(verdict) == found


# --- every way to break it

SEGMENT_DAMAGES = Damages[Made]()


def restate_segment(made: Made, number: int, /, *states: str, **changes: object) -> None:
    """Change the statements of that segment, or those of some states."""

    def edited(snapshot: Snapshot) -> Snapshot:
        is_it = snapshot.segment == number and (not states or snapshot.state in states)
        return replace(snapshot, **changes) if is_it else snapshot

    def edit(entry: Entry) -> Entry:
        return replace(entry, snapshots=tuple(map(edited, entry.snapshots)))

    rewrite(made, edit)


@SEGMENT_DAMAGES({Code.SNAPSHOT_ORDER, Code.SNAPSHOT_DIFFERS})
def a_segment_is_left_out(made: Made) -> None:
    restate_segment(made, 2, "started", segment=3)


@SEGMENT_DAMAGES({Code.SNAPSHOT_ORDER, Code.UNFINISHED_WRONG})
def a_segment_follows_an_attempt_that_has_no_more(made: Made) -> None:
    restate_segment(made, 1, "whole", rest="")


@SEGMENT_DAMAGES({Code.SNAPSHOT_ORDER, Code.UNFINISHED_WRONG})
def a_segment_begins_before_the_one_before_is_visible(made: Made) -> None:
    def edit(entry: Entry) -> Entry:
        if entry.durable is None or not entry.seq:
            return entry
        return replace(entry, durable=replace(entry.durable, seq=0))

    rewrite(made, edit)


@SEGMENT_DAMAGES({Code.SNAPSHOT_ORDER})
def a_segment_says_another_beginning(made: Made) -> None:
    restate_segment(made, 2, began=LogPosition("0001.0000000000000042"))


@SEGMENT_DAMAGES({Code.SNAPSHOT_ORDER})
def a_first_segment_says_that_another_one_was_before(made: Made) -> None:
    restate_segment(made, 0, began=LogPosition("0001.0000000000000042"))


@SEGMENT_DAMAGES({Code.SNAPSHOT_ATTEMPT, Code.SNAPSHOT_ORDER, Code.SNAPSHOT_DIFFERS})
def a_segment_is_of_another_attempt(made: Made) -> None:
    restate_segment(made, 2, "started", attempt=2)


@SEGMENT_DAMAGES({Code.UNFINISHED_WRONG})
def a_table_of_which_more_is_to_be_read_is_called_finished(made: Made) -> None:
    restate_segment(made, 2, "whole", rest="9")


@pytest.mark.parametrize("found", SEGMENT_DAMAGES, ids=lambda found: found.name)
async def test_every_damage_to_segments_is_found_by_its_code(found: Damage[Made]) -> None:
    made = await make_segments()

    found.apply(made)

    assert codes(await judged(made.store, "light")) == found.light


DAMAGES = Damages[Made]()
damage = DAMAGES


def expire(made: Made) -> int:
    """Take away all entries that the state file folds."""
    (state,) = (key for key in made.store.objects if "/state/" in key)
    seq = int(state.rsplit("/", 1)[1].split(".")[0])
    for gone in range(seq + 1):
        del made.store.objects[journal_key(PREFIX, gone)]
    return seq


def rewrite(made: Made, edit: Callable[[Entry], Entry]) -> None:
    """Edit all entries; the state file says what was before, so it goes."""
    for key in [key for key in made.store.objects if "/state/" in key]:
        del made.store.objects[key]
    rewrite_journal(made.store, edit)


def restate(made: Made, table: TableName, state: str, of: int = 1, /, **changes: object) -> None:
    """Change the statements of that table, state and attempt."""

    def edited(snapshot: Snapshot) -> Snapshot:
        is_it = (snapshot.table, snapshot.state, snapshot.attempt) == (str(table), state, of)
        return replace(snapshot, **changes) if is_it else snapshot

    def edit(entry: Entry) -> Entry:
        return replace(entry, snapshots=tuple(map(edited, entry.snapshots)))

    rewrite(made, edit)


def unstate(made: Made, table: TableName, state: str, attempt: int = 1) -> None:
    """Leave those statements out."""

    def edit(entry: Entry) -> Entry:
        left = tuple(
            snapshot
            for snapshot in entry.snapshots
            if (snapshot.table, snapshot.state, snapshot.attempt) != (str(table), state, attempt)
        )
        return replace(entry, snapshots=left)

    rewrite(made, edit)


def edit_finished(made: Made, index: int, **changes: object) -> None:
    """Name that object of orders' snapshot otherwise."""
    objects = list(made.objects["finished"])
    objects[index] = replace(objects[index], **changes)
    restate(made, ORDERS, "whole", objects=tuple(objects))


def stored(made: Made, index: int, what: str = "finished") -> StoredObject:
    return made.store.objects[made.objects[what][index].key]


def edit_durable(made: Made, edit: Callable[[Durable], Durable]) -> None:
    """Change the last durable."""
    last = made.bucket.journal.state.seq

    def edited(entry: Entry) -> Entry:
        if entry.seq != last:
            return entry
        assert entry.durable is not None
        return replace(entry, durable=edit(entry.durable))

    rewrite(made, edited)


# Its objects


@damage({Code.OBJECT_MISSING})
def an_object_is_gone(made: Made) -> None:
    del made.store.objects[made.objects["finished"][2].key]


@damage({Code.METADATA_DIFFERS})
def an_object_is_of_another_upload(made: Made) -> None:
    stored(made, 2).metadata["nonce"] = "another"


@damage({Code.METADATA_DIFFERS})
def an_object_says_another_attempt(made: Made) -> None:
    stored(made, 2).metadata["attempt"] = "2"


@damage({Code.METADATA_DIFFERS})
def an_object_is_of_a_writer_that_never_opened(made: Made) -> None:
    stored(made, 2).metadata["writer"] = "writer-9"


@damage({Code.METADATA_DIFFERS})
def an_object_of_a_void_attempt_is_of_another_upload(made: Made) -> None:
    stored(made, 1, "void").metadata["nonce"] = "another"


@damage({Code.METADATA_DIFFERS})
def an_object_of_an_attempt_that_was_given_up_is_of_another_upload(made: Made) -> None:
    stored(made, 1, "left").metadata["nonce"] = "another"


@damage({Code.METADATA_DIFFERS})
def a_pending_object_is_of_another_upload(made: Made) -> None:
    stored(made, 1, "pending").metadata["nonce"] = "another"


@damage({Code.SIZE_DIFFERS, Code.CONTENT_DIFFERS}, {Code.BODY_UNREADABLE})
def an_object_is_cut_off(made: Made) -> None:
    stored(made, 2).body = stored(made, 2).body[:-20]


@damage({Code.SIZE_DIFFERS})
def an_object_has_another_size_than_was_staged(made: Made) -> None:
    known = made.objects["finished"][2]
    part = replace(known.parts[0], size_bytes=known.size_bytes + 1)
    edit_finished(made, 2, size_bytes=known.size_bytes + 1, parts=(part,))


@damage({Code.CONTENT_DIFFERS})
def an_object_has_other_lines_than_were_staged(made: Made) -> None:
    edit_finished(made, 2, raw_crc32="00000000")


@damage(more={Code.RECORD_MISPLACED})
def a_record_says_another_table(made: Made) -> None:
    key = made.objects["finished"][4].key
    lines = decompressed(stored(made, 4).body, key).replace(b'"orders"', b'"ordres"', 1)
    body = stored(made, 4).body = compressed(lines, key)
    edit_finished(
        made,
        4,
        raw_crc32=crc32_text(zlib.crc32(lines)),
        size_bytes=len(body),
        parts=(one_part(made, 4, len(body)),),
    )


def one_part(made: Made, index: int, size_bytes: int) -> Any:
    return replace(made.objects["finished"][index].parts[0], size_bytes=size_bytes)


@damage({Code.OBJECT_MISSING})
def durable_vouches_for_what_is_not_all_there(made: Made) -> None:
    seq = made.bucket.journal.state.seq - 1
    edit_durable(made, lambda stated: replace(stated, seq=seq, unfinished=(str(STARTED),)))


@damage({Code.UNNAMED_OBJECT})
def an_upload_that_no_entry_names_is_visible(made: Made) -> None:
    known = made.objects["pending"][1]
    other = known.key.replace(known.first, f"{known.first[:-6]}00FFFF")
    made.store.objects[other] = copy.deepcopy(made.store.objects[known.key])


@damage({Code.SCHEMA_MISSING})
def a_version_that_only_a_snapshot_has_lacks_its_schema(made: Made) -> None:
    del made.store.objects[made.bucket.layout.schema_key(ODD, 1)]


# Lanes


def without(made: Made, index: int) -> None:
    """Neither named nor there."""
    objects = made.objects["finished"]
    del made.store.objects[objects[index].key]
    left = tuple(staged for staged in objects if staged is not objects[index])
    restate(made, ORDERS, "whole", objects=left)


@damage({Code.LANE_BROKEN})
def a_lane_has_a_hole(made: Made) -> None:
    without(made, 2)


@damage({Code.LANE_BROKEN})
def a_lane_begins_behind_its_first_object(made: Made) -> None:
    without(made, 1)


@damage({Code.LANE_BROKEN})
def there_is_no_range_0(made: Made) -> None:
    without(made, 0)


@damage({Code.LANE_BROKEN})
def an_object_is_in_the_lane_of_another_range(made: Made) -> None:
    edit_finished(made, 4, range_number=7)


@damage({Code.LANE_BROKEN}, {Code.POSITIONS_DIFFER})
def an_object_ends_in_another_lane(made: Made) -> None:
    edit_finished(made, 4, last=Position(made.objects["finished"][4].last.replace("2.", "3.", 1)))


@damage(
    {Code.LANE_BROKEN, Code.KEY_WRONG, Code.METADATA_DIFFERS},
    {Code.POSITIONS_DIFFER},
)
def an_object_ends_before_it_begins(made: Made) -> None:
    known = made.objects["finished"][4]
    edit_finished(made, 4, first=known.last, last=known.first)


@damage({Code.LANE_BROKEN}, {Code.POSITIONS_DIFFER})
def an_object_of_two_rows_has_one_position(made: Made) -> None:
    edit_finished(made, 4, last=made.objects["finished"][4].first)


# Truncate records, counts, names


@damage({Code.TRUNCATE_WRONG}, {Code.OPS_DIFFER})
def another_range_has_a_truncate_record(made: Made) -> None:
    edit_finished(made, 4, ops={"r": 1, "t": 1})


@damage({Code.TRUNCATE_WRONG}, {Code.OPS_DIFFER})
def range_0_has_no_truncate_record(made: Made) -> None:
    edit_finished(made, 0, ops={"r": 1})


@damage({Code.PLAN_COUNTS}, {Code.OPS_DIFFER})
def rows_by_op_do_not_add_up(made: Made) -> None:
    edit_finished(made, 4, ops={"r": 3})


@damage({Code.PLAN_COUNTS}, {Code.OPS_DIFFER})
def a_snapshot_has_changes(made: Made) -> None:
    edit_finished(made, 4, ops={"c": 2})


@damage({Code.PLAN_COUNTS})
def parts_do_not_add_up(made: Made) -> None:
    edit_finished(made, 4, parts=(one_part(made, 4, 7),))


@damage({Code.PLAN_COUNTS})
def a_part_is_left_out(made: Made) -> None:
    part = made.objects["finished"][4].parts[0]
    edit_finished(made, 4, parts=(replace(part, number=2),))


@damage({Code.KEY_WRONG})
def a_key_is_of_another_hour(made: Made) -> None:
    key = made.objects["finished"][2].key
    other = key.replace("/hour=", "/hour=2").replace("/hour=21", "/hour=2")
    edit_finished(made, 2, key=other)
    made.store.objects[other] = made.store.objects.pop(key)


@damage({Code.NAMED_TWICE})
def two_objects_are_of_one_upload(made: Made) -> None:
    edit_finished(made, 2, upload_id=made.objects["finished"][1].upload_id)


@damage({Code.NAMED_TWICE})
def two_objects_have_one_nonce(made: Made) -> None:
    nonce = made.objects["finished"][1].nonce
    edit_finished(made, 2, nonce=nonce)
    stored(made, 2).metadata["nonce"] = nonce


@damage(
    {
        Code.NAMED_TWICE,
        Code.KEY_WRONG,
        Code.METADATA_DIFFERS,
        Code.SIZE_DIFFERS,
        Code.CONTENT_DIFFERS,
    },
    {Code.ROWS_DIFFER, Code.OPS_DIFFER, Code.POSITIONS_DIFFER},
)
def a_key_is_that_of_a_streams_object(made: Made) -> None:
    del made.store.objects[made.objects["finished"][4].key]
    edit_finished(made, 4, key=made.streamed)


# Statements


@damage({Code.SNAPSHOT_ORDER})
def an_attempt_is_whole_that_was_never_started(made: Made) -> None:
    unstate(made, ORDERS, "started")


@damage({Code.SNAPSHOT_ORDER})
def an_attempt_is_void_that_was_never_whole(made: Made) -> None:
    unstate(made, ODD, "whole")
    for staged in made.objects["void"]:
        made.store.objects.pop(staged.key, None)


@damage({Code.SNAPSHOT_ORDER})
def an_attempt_is_started_while_another_one_becomes_visible(made: Made) -> None:
    unstate(made, ODD, "void")


@damage({Code.SNAPSHOT_ATTEMPT})
def a_table_is_wanted_with_a_number_that_no_attempt_has(made: Made) -> None:
    restate(made, PENDING, "wanted", 0, attempt=1)


@damage({Code.SNAPSHOT_ATTEMPT})
def an_attempt_leaves_a_number_out(made: Made) -> None:
    restate(made, STARTED, "started", attempt=2)


@damage({Code.SNAPSHOT_DIFFERS})
def a_void_says_another_hour(made: Made) -> None:
    restate(made, ODD, "void", hour="2026-11-23T00")


@damage({Code.SNAPSHOT_DIFFERS})
def a_void_says_another_point(made: Made) -> None:
    restate(made, ODD, "void", point=LogPosition("0001.0000000000001234"))


@damage({Code.SNAPSHOT_DIFFERS, Code.SNAPSHOT_ATTEMPT})
def a_void_says_another_attempt(made: Made) -> None:
    # The second one then has no number of its own.
    restate(made, ODD, "void", attempt=2)


@damage({Code.SNAPSHOT_DIFFERS, Code.VERSION_UNKNOWN})
def a_void_says_another_version(made: Made) -> None:
    restate(made, ODD, "void", version=2)


@damage({Code.SNAPSHOT_UNCAPTURED})
def a_table_is_not_captured(made: Made) -> None:
    reopen(made, exclude=("public.left", "public.started"))


@damage({Code.SNAPSHOT_UNCAPTURED})
def snapshots_are_off(made: Made) -> None:
    reopen(made, snapshot="never")


def reopen(made: Made, **changes: object) -> None:
    """Let the second writer open with another configuration."""

    def edit(entry: Entry) -> Entry:
        if entry.open is None or entry.epoch != 2:
            return entry
        configuration = replace(entry.open.configuration, **changes)
        return replace(entry, open=Open(entry.open.source, configuration))

    rewrite(made, edit)


@damage({Code.SNAPSHOT_UNASKED})
def rows_are_planned_of_a_table_whose_snapshot_nobody_asked_for(made: Made) -> None:
    unstate(made, ORDERS, "wanted", 0)
    # By then the list had it.
    first = min(seq for seq, entry in entries(made).items() if entry.durable and seq)

    def edit(entry: Entry) -> Entry:
        if entry.seq != first or entry.durable is None:
            return entry
        return replace(entry, durable=replace(entry.durable, unfinished=(str(ODD),)))

    rewrite(made, edit)


@damage({Code.STREAM_EARLY})
def rows_are_planned_and_durable_while_the_stream_waits(made: Made) -> None:
    say_of_stream(made, 0, StreamStart(waits=True))


@damage({Code.STREAM_EARLY})
def the_stream_starts_and_did_not_wait(made: Made) -> None:
    say_of_stream(made, 1, StreamStart(waits=False))


@damage({Code.STREAM_EARLY})
def a_stream_begins_where_no_snapshot_is_visible(made: Made) -> None:
    say_of_stream(made, 0, StreamStart(waits=True, begins={str(ORDERS): LogPosition("0001.F")}))


def say_of_stream(made: Made, seq: int, start: StreamStart) -> None:
    rewrite(made, lambda entry: replace(entry, stream=start) if entry.seq == seq else entry)


def entries(made: Made) -> dict[int, Entry]:
    found = (o.body for key, o in made.store.objects.items() if "/journal/" in key)
    decoded = [msgspec.json.decode(body, type=Entry) for body in found]
    return {entry.seq: entry for entry in decoded}


@damage({Code.VERSION_UNKNOWN})
def a_snapshots_version_is_not_journalled(made: Made) -> None:
    restate(made, STARTED, "started", version=9)


@damage({Code.UNFINISHED_WRONG})
def the_list_leaves_a_table_out(made: Made) -> None:
    edit_durable(made, lambda stated: replace(stated, unfinished=(str(PENDING),)))


@damage({Code.UNFINISHED_WRONG})
def the_list_has_a_table_that_is_finished(made: Made) -> None:
    names = (str(ORDERS), str(PENDING), str(STARTED))
    edit_durable(made, lambda stated: replace(stated, unfinished=names))


@damage({Code.ENTRY_UNREADABLE})
def a_point_is_none(made: Made) -> None:
    restate(made, STARTED, "started", point="0001")


@damage({Code.ENTRY_UNREADABLE})
def an_attempts_number_is_none(made: Made) -> None:
    restate(made, STARTED, "started", attempt=-1)


# Lists of objects


def list_apart(made: Made, *objects: StagedObject) -> str:
    """List orders' objects, or these, apart from their entry; the list's key."""
    key = list_key(PREFIX, ORDERS, 1, "0a1b")
    named = objects or made.objects["finished"]
    body = orjson.dumps(
        {
            "format": 1,
            "table": str(ORDERS),
            "attempt": 1,
            "objects": [msgspec.to_builtins(staged) for staged in named],
        }
    )
    made.store.objects[key] = StoredObject(body, {})
    listed = ListedObjects(key, hashlib.sha256(body).hexdigest(), len(named))
    restate(made, ORDERS, "whole", objects=(), listed=listed)
    return key


@damage()
def objects_are_listed_apart(made: Made) -> None:
    list_apart(made)


@damage()
def a_list_is_there_that_no_entry_names(made: Made) -> None:
    key = list_key(PREFIX, ORDERS, 7, "0a1b")
    made.store.objects[key] = StoredObject(b"[]", {})


@damage({Code.UNNAMED_OBJECT})
def something_else_lies_beside_the_lists(made: Made) -> None:
    made.store.objects[f"{PREFIX}/_tailrace/snapshots/notes.txt"] = StoredObject(b"", {})


@damage({Code.LIST_MISSING, Code.UNNAMED_OBJECT})
def a_list_is_gone(made: Made) -> None:
    del made.store.objects[list_apart(made)]


@damage({Code.LIST_MISSING, Code.UNNAMED_OBJECT})
def a_list_is_archived(made: Made) -> None:
    made.store.archived.add(list_apart(made))


@damage({Code.LIST_DIFFERS, Code.UNNAMED_OBJECT})
def a_list_has_other_bytes(made: Made) -> None:
    made.store.objects[list_apart(made)].body += b" "


@damage({Code.LIST_DIFFERS, Code.UNNAMED_OBJECT})
def a_list_has_a_position_that_is_none(made: Made) -> None:
    first, *rest = made.objects["finished"]
    list_apart(made, replace(first, first=Position("0001")), *rest)


@damage({Code.LANE_BROKEN, Code.UNNAMED_OBJECT})
def a_list_leaves_an_object_out(made: Made) -> None:
    objects = made.objects["finished"]
    list_apart(made, *objects[:2], *objects[3:])


SNAPSHOT_CODES = set[Code]().union(*(found.light | found.more for found in DAMAGES))
_MADE = asyncio.run(make_bucket())


@pytest.mark.parametrize("depth", ["light", "full"])
@pytest.mark.parametrize("found", DAMAGES, ids=lambda found: found.name)
async def test_every_damage_is_found_by_its_code(found: Damage[Made], depth: Depth) -> None:
    made = copy.deepcopy(_MADE)

    found.apply(made)
    verdict = await judged(made.store, depth)

    expected = found.light | (found.more if depth == "full" else set())
    assert codes(verdict) == expected, verdict.problems


async def test_an_attempt_that_another_writer_started_cannot_be_whole() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    await snapshots.register.whole(attempt, await snapshots.stage(attempt))
    whole = snapshots.register.pending
    await bucket.take_over("writer-2")
    await bucket.journal.append(snapshots=whole)

    assert codes(await judged(bucket.store)) == {Code.SNAPSHOT_ORDER}


async def test_a_truncate_record_behind_rows_is_found_where_every_record_is_read() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    attempt = snapshots.start(ORDERS)
    await snapshots.append()

    async def turned_round() -> AsyncIterator[Batch]:
        async for batch in snapshots.batches(attempt, 0, "rt"):
            if not batch.operations.t:
                yield batch
                continue
            # By itself it takes the first row's place.
            at = Position(f"{batch.first[:-1]}1")
            lines = batch.lines.replace(batch.first.encode(), at.encode())
            yield replace(batch, lines=lines, first=at, last=at)

    task = snapshots.task(attempt, 0)
    objects = await stage(bucket.store, task, turned_round(), make_nonce=snapshots.nonce)
    await snapshots.register.whole(attempt, objects)
    await snapshots.append()
    await snapshots.complete()
    await snapshots.append(snapshots.durable())

    assert codes(await judged(bucket.store, "light")) == set()
    assert codes(await judged(bucket.store)) == {Code.TRUNCATE_WRONG}


# --- rows that were left out


async def make_left_out() -> Made:
    """A bucket whose second attempt takes the place of rows that were left out before it.

    Gap 1 is of a row that the first attempt left out, gap 2 of one that the second attempt left
    out. Gaps 3, 4 and 5 are of rows of the stream: one before the second attempt's point, one
    behind it, and one that an object is planned around after all.
    """
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    version, streamed = bucket.version(ORDERS), bucket.piece(ORDERS, "c")
    snapshots.register.capture(ORDERS)
    await snapshots.append(planned=(streamed.planned,), schemas=(version,))
    await bucket.publish(streamed)
    first = await snapshots.make_whole(ORDERS, {0: "t"}, left_out=(1,))
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    bucket.commit += 0x100
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    second = await snapshots.make_whole(ORDERS, {0: "t"}, left_out=(1,))
    await snapshots.complete()
    for order in (bucket.commit - 0x80, bucket.commit + 0x8, bucket.commit + 0x180):
        position = make_position(1, order, order, 0)
        snapshots.gaps.leave_out(LeftOut(ORDERS, position, "odd", ""))
    await snapshots.append(snapshots.durable())

    await bucket.take_over("writer-2")
    snapshots = Snapshots(bucket)
    snapshots.register.arrive((ORDERS,))
    more = bucket.piece(ORDERS, "cc").planned
    snapshots.gaps.planned(more.table, more.first, more.last)
    await snapshots.append(planned=(more,))
    await bucket.publish(bucket.pieces[-1])
    await snapshots.append(snapshots.durable())
    return Made(bucket, {"first": first, "second": second}, streamed.planned.key)


async def test_rows_that_were_left_out_are_mended_by_what_the_journal_shows() -> None:
    made = await make_left_out()

    verdict = await judged(made.store)

    assert verdict.problems == ()
    assert [(gap.attempt, gap.mended) for gap in verdict.gaps] == [
        (1, "attempt 2 of its snapshot"),
        (2, ""),
        (0, "attempt 2 of its snapshot"),
        (0, ""),
        (0, PUBLISHED_AFTER_ALL),
    ]


def edit_gap(made: Made, number: int, change: Callable[[Entry, Gap], Gap]) -> None:
    """Change the statements of a gap."""

    def edit(entry: Entry) -> Entry:
        gaps = (change(entry, gap) if gap.number == number else gap for gap in entry.gaps)
        return replace(entry, gaps=tuple(gaps))

    rewrite(made, edit)


def mended_at_once(_: Entry, gap: Gap) -> Gap:
    return replace(gap, mended="it is")


def a_row_of_another_attempt(made: Made) -> None:
    edit_gap(made, 2, lambda _, gap: replace(gap, attempt=1))


def a_row_of_an_attempt_that_nobody_started(made: Made) -> None:
    point = made.bucket.durable().position
    position = snapshot_position(point, 9, 0, 1)
    edit_gap(made, 2, lambda _, gap: replace(gap, attempt=9, position=position))


def a_row_of_a_snapshot_at_no_position(made: Made) -> None:
    edit_gap(made, 2, lambda _, gap: replace(gap, position="0001.A"))


def a_row_of_a_snapshot_becomes_one_of_the_stream(made: Made) -> None:
    edit_gap(made, 1, lambda _, gap: replace(gap, attempt=0) if gap.mended else gap)


def a_row_is_mended_before_a_later_attempt_is_visible(made: Made) -> None:
    edit_gap(made, 1, mended_at_once)


def also_mend(made: Made, number: int, is_it: Callable[[Entry], bool]) -> None:
    """Mend a gap in an entry too that is about others."""
    mended = replace(made.bucket.journal.state.gaps[number], mended="it is")

    def edit(entry: Entry) -> Entry:
        return replace(entry, gaps=(*entry.gaps, mended)) if is_it(entry) else entry

    rewrite(made, edit)


def a_row_is_mended_by_its_own_attempt(made: Made) -> None:
    also_mend(made, 2, lambda entry: entry.open is not None and entry.seq > 0)


def a_row_behind_the_point_is_mended_by_the_snapshot(made: Made) -> None:
    also_mend(made, 4, lambda entry: entry.open is not None and entry.seq > 0)


def a_row_is_mended_by_an_object_behind_it(made: Made) -> None:
    also_mend(made, 4, lambda entry: bool(entry.planned) and entry.seq > 1)


def a_row_of_the_stream_is_mended_before_the_snapshot_is_visible(made: Made) -> None:
    edit_gap(made, 3, mended_at_once)


def a_row_of_the_stream_is_mended_and_no_object_is_planned_around_it(made: Made) -> None:
    edit_gap(made, 5, mended_at_once)


@pytest.mark.parametrize(
    "damage",
    [
        a_row_of_another_attempt,
        a_row_of_an_attempt_that_nobody_started,
        a_row_of_a_snapshot_at_no_position,
        a_row_of_a_snapshot_becomes_one_of_the_stream,
        a_row_is_mended_before_a_later_attempt_is_visible,
        a_row_is_mended_by_its_own_attempt,
        a_row_behind_the_point_is_mended_by_the_snapshot,
        a_row_is_mended_by_an_object_behind_it,
        a_row_of_the_stream_is_mended_before_the_snapshot_is_visible,
        a_row_of_the_stream_is_mended_and_no_object_is_planned_around_it,
    ],
    ids=lambda damage: damage.__name__,
)
async def test_a_gap_of_a_row_that_contradicts_the_journal_is_wrong(
    damage: Callable[[Made], None],
) -> None:
    made = await make_left_out()

    damage(made)

    assert codes(await judged(made.store)) == {Code.GAP_WRONG}


async def test_a_row_of_a_snapshot_is_in_no_object_that_is_planned_around_it() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    version = bucket.version(ORDERS)
    snapshots.register.capture(ORDERS)
    await snapshots.append(schemas=(version,))
    first = bucket.piece(ORDERS, "c").planned
    await snapshots.make_whole(ORDERS, {0: "t"}, left_out=(1,))
    bucket.pieces.clear()
    [gap] = snapshots.gaps.standing
    around = replace(first, last=bucket.piece(ORDERS, "c").planned.first, rows=2, ops={"c": 2})
    assert around.first < gap.position < around.last
    snapshots.gaps.mend(gap.number, PUBLISHED_AFTER_ALL)
    await snapshots.append(planned=(around,))

    verdict = await judged(bucket.store, "light")

    assert [found.code for found in verdict.problems] == [Code.GAP_WRONG]
