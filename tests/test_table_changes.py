"""Changes of a table, read from a bucket that the engine's own parts made: each once."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from engine.journal.entry import Entry, Gap, encode_state
from engine.model.errors import ReadRefused
from engine.model.interfaces import ObjectHead
from engine.model.layout import ObjectPlace, journal_key, state_key
from engine.model.position import Position, behind, commit_of
from engine.reader.table import Until, kept, parse_until
from engine.reader.table.cursor import decode_cursor, encode_cursor
from engine.reader.table.links import link_of
from log_points import durable, place, point
from memory_store import MemoryStore, StoredObject
from small_bucket import (
    ODD,
    ORDERS,
    PREFIX,
    SmallBucket,
    make_bucket,
    rewrite_journal,
    stored,
)
from small_snapshot import Snapshots, range_numbers, relation
from table_reader import Answer, asked


async def refused(store: MemoryStore, **question: Any) -> ReadRefused:
    with pytest.raises(ReadRefused) as caught:
        await asked(store, **question)
    return caught.value


@dataclass
class CountingStore(MemoryStore):
    got: list[str] = field(default_factory=list)

    async def get(self, key: str) -> bytes | None:
        self.got.append(key)
        return await super().get(key)


async def streamed(*ops: str, store: MemoryStore | None = None) -> SmallBucket:
    """A bucket with an object of orders for each word, all durable."""
    bucket = SmallBucket(store)
    await bucket.take_over("writer-1")
    version = bucket.version(ORDERS)
    for number, word in enumerate(ops):
        await published(bucket, word, schemas=(version,) if not number else ())
    return bucket


async def published(bucket: SmallBucket, ops: str, **parts: Any) -> None:
    piece = bucket.piece(ORDERS, ops)
    await bucket.journal.append(planned=(piece.planned,), **parts)
    await bucket.publish(piece)
    await bucket.journal.append(durable=bucket.durable())


# --- what is read


@pytest.mark.parametrize("envelope", ["standard", "debezium", "flat"])
@pytest.mark.parametrize("layout", ["hive", "plain"])
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_every_durable_change_is_read_once_and_none_that_is_not(
    envelope: Any, layout: Any, compression: Any
) -> None:
    bucket = await make_bucket(envelope=envelope, layout=layout, compression=compression)

    answer = await asked(bucket.store)

    assert len(answer.lines) == 13
    assert len(set(answer.lines)) == 13
    assert answer.doubts == []


async def test_changes_come_in_the_order_of_positions() -> None:
    bucket = await make_bucket()

    answer = await asked(bucket.store)

    assert answer.ops == "cccudcutccccc"
    assert answer.positions == sorted(answer.positions)


async def test_each_cursor_goes_on_exactly_behind_its_object() -> None:
    bucket = await make_bucket()
    whole = await asked(bucket.store)

    rests = [await asked(bucket.store, since=cursor) for cursor in whole.cursors]

    assert [len(rest.lines) for rest in rests] == [9, 5, 3, 0]
    assert all(whole.lines[-len(rest.lines) :] == rest.lines for rest in rests[:-1])


async def test_the_same_cursor_gives_the_same_batches() -> None:
    bucket = await make_bucket()
    [first, *_] = (await asked(bucket.store)).cursors

    answers = [await asked(bucket.store, since=first) for _ in range(2)]

    assert answers[0].cursors == answers[1].cursors
    assert answers[0].lines == answers[1].lines


async def test_a_loop_of_reads_gives_each_change_once_while_objects_appear() -> None:
    bucket = await streamed("cc")
    answers: list[Answer] = [await asked(bucket.store)]

    for ops in ("u", "ccd", "t", "c"):
        await published(bucket, ops)
        answers.append(await asked(bucket.store, since=answers[-1].reading.cursor))

    whole = await asked(bucket.store)
    assert [answer.ops for answer in answers] == ["cc", "u", "ccd", "t", "c"]
    assert [line for answer in answers for line in answer.lines] == whole.lines


async def test_an_object_is_cut_where_durable_is() -> None:
    bucket = await streamed("c")
    piece = bucket.piece(ORDERS, "cdu")
    await bucket.journal.append(planned=(piece.planned,))
    await bucket.publish(piece)
    middle = int(commit_of(piece.planned.first)[5:], 16) + 1
    await bucket.journal.append(durable=durable(middle, seq=bucket.journal.state.seq))

    before = await asked(bucket.store)
    early = Until(position=commit_of(piece.planned.first))
    back = await asked(bucket.store, since=before.reading.cursor, until=early)
    await bucket.journal.append(durable=bucket.durable())
    rest = await asked(bucket.store, since=back.reading.cursor)

    assert (before.ops, back.ops, rest.ops) == ("cc", "", "du")
    assert (await asked(bucket.store)).lines == before.lines + rest.lines


async def test_an_object_counts_that_durable_has_passed_though_its_entry_waits_for_another() -> (
    None
):
    bucket = await streamed("cc")
    vouched = bucket.journal.state.seq
    piece = bucket.piece(ORDERS, "cu")
    await bucket.journal.append(planned=(piece.planned,))
    await bucket.publish(piece)
    # Another table's object of that entry is not there yet: `seq` stays behind, the place does not.
    await bucket.journal.append(durable=bucket.durable(vouched))
    assert piece.planned.key in bucket.journal.state.plans

    answer = await asked(bucket.store)
    await published(bucket, "c")
    rest = await asked(bucket.store, since=answer.reading.cursor)

    assert (answer.ops, rest.ops) == ("cccu", "c")


async def test_a_table_without_objects_has_no_changes_and_a_cursor() -> None:
    bucket = await streamed()
    await bucket.journal.append(schemas=(bucket.version(ORDERS),), durable=bucket.durable())

    nothing = await asked(bucket.store)
    await published(bucket, "c")
    then = await asked(bucket.store, since=nothing.reading.cursor)

    assert (nothing.lines, then.ops) == ([], "c")


async def test_a_layout_that_changed_is_no_break() -> None:
    bucket = await streamed("cc")
    other = SmallBucket(bucket.store, layout="plain")
    for name in ("commit", "_tails", "_versions"):
        setattr(other, name, getattr(bucket, name))
    await other.take_over("writer-2")
    await published(other, "dd")

    first, *_ = (await asked(bucket.store)).cursors

    assert (await asked(bucket.store)).ops == "ccdd"
    assert (await asked(bucket.store, since=first)).ops == "dd"


async def test_a_later_read_lists_from_its_cursor_on() -> None:
    bucket = await streamed("c", "c", "c", store=CountingStore())
    cursor = (await asked(bucket.store)).cursors[1]
    heads: list[str] = []

    async def before_head(key: str) -> None:
        heads.append(key)

    bucket.store.before_head = before_head
    await asked(bucket.store, since=cursor)

    # The object that the cursor names, and the one behind it.
    assert heads == [piece.planned.key for piece in bucket.pieces[1:]]


async def test_an_object_without_rows_is_no_break() -> None:
    bucket = await make_bucket()
    stored(bucket, 2).metadata |= {"rows": "0", "raw-bytes": "0", "raw-crc32": "00000000"}

    answer = await asked(bucket.store)

    assert answer.ops == "cccu" + "ccccc"


# --- what is not of the chain


async def test_what_the_journal_does_not_name_is_not_read() -> None:
    bucket = await streamed("c", "c")
    key = bucket.pieces[0].planned.key
    stranger = bucket.store.objects[key]
    folder = key.rpartition("/")[0]
    position = bucket.pieces[0].planned.first
    between = Position(position[:-1] + "9")
    bucket.store.objects |= {
        f"{folder}/{between}.ndjson.gz": StoredObject(
            stranger.body, {**stranger.metadata, "first-position": between}
        ),
        f"{folder}/{position}.txt": stranger,
        f"{folder}/{Position(position[:-1] + '8')}.ndjson.gz": StoredObject(b"no", {}),
    }

    answer = await asked(bucket.store)

    assert answer.ops == "cc"


async def test_an_object_that_is_missing_in_between_is_named() -> None:
    bucket = await streamed("c", "d", "u")
    del bucket.store.objects[bucket.pieces[1].planned.key]

    error = await refused(bucket.store)
    allowed = await asked(bucket.store, allows_gaps=True)

    assert error.code == "object-missing"
    assert bucket.pieces[1].planned.last in str(error)
    assert (allowed.ops, allowed.doubts) == ("u", ["object-missing"])


async def test_the_newest_object_may_not_be_missing_either() -> None:
    bucket = await streamed("c", "d")
    del bucket.store.objects[bucket.pieces[1].planned.key]

    assert (await refused(bucket.store)).code == "object-missing"


async def test_what_expired_is_named_unless_the_cursor_is_behind_it() -> None:
    bucket = await streamed("c", "d", "u")
    cursors = (await asked(bucket.store)).cursors
    del bucket.store.objects[bucket.pieces[0].planned.key]
    before = await asked(bucket.store, since=cursors[0])
    del bucket.store.objects[bucket.pieces[1].planned.key]

    error = await refused(bucket.store)
    late = await refused(bucket.store, since=cursors[0])
    behind_it = await asked(bucket.store, since=cursors[1])

    assert before.ops == "du"
    assert (error.code, late.code, behind_it.ops) == ("expired", "expired", "u")


async def test_an_object_that_was_altered_is_named() -> None:
    bucket = await streamed("c", "d")
    other = bucket.store.objects[bucket.pieces[0].planned.key]
    bucket.store.objects[bucket.pieces[1].planned.key].body = other.body

    error = await refused(bucket.store)

    assert error.code == "content-differs"
    assert bucket.pieces[1].planned.key in str(error)


@pytest.mark.parametrize("cut", [slice(0, -9), slice(0, 3), slice(0, 0)])
async def test_an_object_that_was_cut_is_named(cut: slice) -> None:
    bucket = await streamed("c")
    found = stored(bucket, 0)
    found.body = found.body[cut]

    assert (await refused(bucket.store)).code == "content-differs"


# --- cursors


async def test_a_text_that_is_no_cursor_is_refused() -> None:
    bucket = await streamed("c")
    cursor = (await asked(bucket.store)).reading.cursor
    texts = ("x", cursor[:-1], cursor[1:], cursor.replace(".", "", 1), cursor[:-9] + "." + "0" * 8)

    codes = [(await refused(bucket.store, since=text)).code for text in texts]

    assert set(codes) == {"cursor-malformed"}
    assert (await asked(bucket.store, since=f" {cursor}\n")).lines == []


async def test_every_changed_character_of_a_cursor_is_found() -> None:
    bucket = await streamed("c")
    cursor = (await asked(bucket.store)).reading.cursor

    for number, character in enumerate(cursor):
        other = "A" if character != "A" else "B"
        with pytest.raises(ReadRefused, match="cursor"):
            decode_cursor(cursor[:number] + other + cursor[number + 1 :])


async def test_a_cursor_of_a_newer_form_says_so() -> None:
    with pytest.raises(ReadRefused, match="tr2, this release reads tr1"):
        decode_cursor("tr2.abc.00000000")


async def test_a_cursor_of_another_table_prefix_or_source_is_refused() -> None:
    bucket = await make_bucket()
    own = decode_cursor((await asked(bucket.store)).reading.cursor)
    others = (replace(own, prefix="other"), replace(own, source="0" * 12))
    odd = (await asked(bucket.store, table=str(ODD))).reading.cursor

    codes = [
        (await refused(bucket.store, since=text)).code
        for text in (odd, *map(encode_cursor, others))
    ]

    assert codes == ["cursor-foreign"] * 3


async def test_a_cursor_that_is_ahead_of_the_journal_is_refused() -> None:
    longer, shorter = await streamed("c", "c", "c"), await streamed("c")
    cursor = (await asked(longer.store)).reading.cursor

    assert (await refused(shorter.store, since=cursor)).code == "cursor-ahead"


async def test_a_cursor_that_is_ahead_is_refused_wherever_the_read_is_to_end() -> None:
    bucket = await streamed("c", "c")
    cursor = (await asked(bucket.store)).cursors[-1]
    ahead = encode_cursor(replace(decode_cursor(cursor), through="0001.FFFFFFFFFFFFFFFF"))
    until = Until(position=bucket.journal.state.durable_position)

    assert (await refused(bucket.store, since=ahead, until=until)).code == "cursor-ahead"


async def test_a_cursor_whose_object_is_none_of_the_stream_is_refused() -> None:
    bucket = await streamed("cc", "c", "c")
    [first, *_] = (await asked(bucket.store)).cursors
    own = decode_cursor(first)
    astray = replace(own, anchor=Position(own.anchor[:-1] + "1"))

    assert (await refused(bucket.store, since=encode_cursor(astray))).code == "cursor-foreign"


async def test_a_cursor_is_short_and_printable() -> None:
    bucket = await make_bucket()

    cursor = (await asked(bucket.store)).reading.cursor

    assert len(cursor) < 400
    assert cursor.isascii()
    assert cursor.isprintable()
    assert " " not in cursor


# --- tables


async def test_a_table_that_is_not_known_is_named_with_those_that_are() -> None:
    bucket = await make_bucket()

    error = await refused(bucket.store, table="public.order")

    assert error.code == "table-unknown"
    assert "public.orders" in str(error)


async def test_a_table_may_be_called_without_its_schema() -> None:
    bucket = await make_bucket()

    assert (await asked(bucket.store, table="orders")).reading.known.table == ORDERS


# --- up to where


async def test_a_read_ends_at_the_position_that_is_asked_for() -> None:
    bucket = await make_bucket()
    whole = await asked(bucket.store)

    for number, position in enumerate(whole.positions):
        until = behind(commit_of(Position(position)))
        answer = await asked(bucket.store, until=Until(position=until))
        assert answer.lines == whole.lines[: number + 1]


async def test_a_read_up_to_a_position_goes_on_from_its_cursor() -> None:
    bucket = await make_bucket()
    whole = await asked(bucket.store)

    for position in whole.positions:
        until = Until(position=commit_of(Position(position)))
        first = await asked(bucket.store, until=until)
        rest = await asked(bucket.store, since=first.reading.cursor)
        assert first.lines + rest.lines == whole.lines


async def test_a_time_means_the_last_durable_place_that_is_not_later() -> None:
    bucket = SmallBucket()
    await bucket.take_over("writer-1")
    version = bucket.version(ORDERS)
    for number, ops in enumerate("cud"):
        piece = bucket.piece(ORDERS, ops)
        schemas = (version,) if not number else ()
        await bucket.journal.append(planned=(piece.planned,), schemas=schemas)
        await bucket.publish(piece)
        stated = replace(bucket.durable(), commit_time=f"2026-11-22T10:0{number}:00.000000Z")
        await bucket.journal.append(durable=stated)

    answers = [
        await asked(bucket.store, until=parse_until(f"2026-11-22T10:0{text}Z"))
        for text in ("0:00", "0:59", "1:00", "2:00")
    ]
    error = await refused(bucket.store, until=parse_until("2026-11-22T10:02:01Z"))

    assert [answer.ops for answer in answers] == ["c", "c", "cu", "cud"]
    assert error.code == "not-durable"


async def test_what_is_not_durable_yet_is_not_read() -> None:
    bucket = await make_bucket()

    error = await refused(bucket.store, until=Until(position=place(1 << 60)))

    assert error.code == "not-durable"


async def test_what_was_before_the_pipeline_is_not_there() -> None:
    bucket = await make_bucket()

    error = await refused(bucket.store, until=Until(position=place(1)))

    assert error.code == "before-the-journal"


async def test_a_place_whose_entries_expired_is_named() -> None:
    bucket = await make_bucket()
    for seq in range(4):
        del bucket.store.objects[journal_key(PREFIX, seq)]
    known = await asked(bucket.store)

    late = await refused(bucket.store, until=Until(position=place(0x1100)))

    assert (len(known.lines), late.code) == (13, "journal-expired")


async def test_a_state_file_is_begun_with_that_does_not_reach_too_far() -> None:
    store = CountingStore()
    bucket = await streamed("c", "c", store=store)
    until = Until(position=bucket.journal.state.durable_position)
    begin = bucket.journal.state.seq
    for ops in ("c", "c", "c"):
        content = encode_state(bucket.journal.state)
        seq = bucket.journal.state.seq
        await store.create(
            state_key(PREFIX, seq), content, content_type="application/gzip", metadata={}
        )
        await published(bucket, ops)
    store.got.clear()

    answer = await asked(store, until=until)

    assert answer.ops == "cc"
    assert all(journal_key(PREFIX, seq) not in store.got for seq in range(begin))


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-11-28T12:00:00", "0001", "0001.0000000000001100.00", "tr1.x.y"]
)
def test_what_is_neither_a_place_nor_a_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_until(text)


def test_a_date_means_its_beginning_in_utc() -> None:
    assert parse_until("1970-01-02").time_us == 86_400_000_000
    assert parse_until("1970-01-01T01:00:00+01:00").time_us == 0
    assert parse_until("0001.0000000000001100").position == place(0x1100)


# --- snapshots


async def with_snapshot(*, is_durable: bool = True) -> Snapshots:
    """Two changes, a snapshot of five rows, a change that is planned behind it."""
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    version = bucket.version(ORDERS)
    piece = bucket.piece(ORDERS, "cc")
    await snapshots.append(planned=(piece.planned,), schemas=(version,))
    await bucket.publish(piece)
    await snapshots.append(snapshots.durable())
    await snapshots.make_whole(ORDERS)
    await snapshots.complete()
    if is_durable:
        await go_on(snapshots, "u")
    return snapshots


async def go_on(snapshots: Snapshots, ops: str) -> None:
    bucket = snapshots.bucket
    piece = bucket.piece(ORDERS, ops)
    await snapshots.append(planned=(piece.planned,))
    await bucket.publish(piece)
    await snapshots.append(snapshots.durable())


async def test_a_snapshots_records_stand_where_it_was_taken() -> None:
    snapshots = await with_snapshot()

    answer = await asked(snapshots.bucket.store)

    assert answer.ops == "cctrrrrru"
    assert answer.positions == sorted(answer.positions)


async def test_a_snapshot_that_became_visible_is_read_once() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    version = bucket.version(ORDERS)
    piece = bucket.piece(ORDERS, "cc")
    await snapshots.append(planned=(piece.planned,), schemas=(version,))
    await bucket.publish(piece)
    await snapshots.append(snapshots.durable())
    before = await asked(bucket.store)
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    await go_on(snapshots, "u")
    meanwhile = await asked(bucket.store, since=before.reading.cursor)

    await snapshots.register.whole(attempt, await snapshots.stage(attempt))
    await snapshots.append()
    whole = await asked(bucket.store, since=meanwhile.reading.cursor)
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    visible = await asked(bucket.store, since=whole.reading.cursor)
    after = await asked(bucket.store, since=visible.reading.cursor)

    # The stream was read past the snapshot's point before its rows became visible.
    ops = [answer.ops for answer in (before, meanwhile, whole, visible, after)]
    assert ops == ["cc", "u", "", "trrrrr", ""]


async def test_within_a_snapshot_each_cursor_goes_on_behind_its_object() -> None:
    snapshots = await with_snapshot()
    store = snapshots.bucket.store
    whole = await asked(store)

    rests = [await asked(store, since=cursor) for cursor in whole.cursors]

    assert [rest.ops for rest in rests] == ["trrrrru", "rrrrru", "rru", "u", ""]


async def test_a_later_snapshot_is_read_too() -> None:
    snapshots = await with_snapshot()
    store = snapshots.bucket.store
    before = await asked(store)
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    await snapshots.make_whole(ORDERS, {0: "t", 1: "r"})
    await snapshots.complete()
    await go_on(snapshots, "d")

    later = await asked(store, since=before.reading.cursor)

    assert later.ops == "trd"
    # Of two snapshots the later one is without loss: it supersedes the other.
    assert (await asked(store)).ops == "ccutrd"


async def test_an_attempt_that_is_void_is_never_read() -> None:
    snapshots = await with_snapshot(is_durable=False)
    bucket = snapshots.bucket
    await go_on(snapshots, "u")
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    await snapshots.make_whole(ORDERS, {0: "t", 1: "R", 2: "R"}, bytes_max=1)
    # One object of the attempt becomes visible, and one is lost with its upload.
    lost = next(iter(bucket.store.uploads))
    del bucket.store.uploads[lost]
    await snapshots.complete()
    await snapshots.append(snapshots.durable())

    answer = await asked(bucket.store)

    assert [stated.snapshot.state for stated in bucket.journal.state.snapshots.values()] == ["void"]
    assert answer.ops == "ccu"


async def test_objects_of_a_snapshot_are_found_where_its_entry_expired() -> None:
    snapshots = await with_snapshot()
    bucket = snapshots.bucket
    whole = await asked(bucket.store)
    expire(bucket)

    # A change may have a place that looks like one of a snapshot.
    alike = Position(f"{place(0x1000)}.{1 << 40:016X}.000000")
    key = bucket.pieces[0].planned.key
    bucket.store.objects[key.replace(bucket.pieces[0].planned.first, alike)] = bucket.store.objects[
        key
    ]

    answer = await asked(bucket.store)

    assert answer.lines == whole.lines
    rests = [await asked(bucket.store, since=cursor) for cursor in answer.cursors]
    assert [rest.ops for rest in rests] == ["trrrrru", "rrrrru", "rru", "u", ""]


@pytest.mark.parametrize("left", range(3))
async def test_a_snapshot_whose_entry_and_objects_expired_is_named(left: int) -> None:
    """Ranges are uploaded side by side: a rule may take some objects a day before the others."""
    snapshots = await with_snapshot()
    bucket = snapshots.bucket
    staged = [key for key, kept in bucket.store.objects.items() if "attempt" in kept.metadata]
    for key in sorted(staged)[left:]:
        del bucket.store.objects[key]
    expire(bucket)

    assert (await refused(bucket.store)).code == "snapshot-expired"


def expire(bucket: SmallBucket) -> None:
    """A state file covers all entries, and all but the newest are gone."""
    state = bucket.journal.state
    for seq in range(state.seq):
        del bucket.store.objects[journal_key(PREFIX, seq)]
    bucket.store.objects[state_key(PREFIX, state.seq)] = StoredObject(encode_state(state), {})


async def test_segments_are_read_each_at_its_place() -> None:
    snapshots = await segmented()
    store = snapshots.bucket.store

    answer = await asked(store)
    rests = [await asked(store, since=cursor) for cursor in answer.cursors]
    is_sorted = answer.positions == sorted(answer.positions)
    expire(snapshots.bucket)
    again = await asked(store)

    assert answer.ops == "cc" + "tr" + "u" + "rr" + "d" + "r" + "c"
    assert is_sorted
    assert all(answer.lines[-len(rest.lines) :] == rest.lines for rest in rests if rest.lines)
    assert again.lines == answer.lines


async def segmented() -> Snapshots:
    """Three segments of a snapshot, and a change between each two."""
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    version = bucket.version(ORDERS)
    piece = bucket.piece(ORDERS, "cc")
    await snapshots.append(planned=(piece.planned,), schemas=(version,))
    await bucket.publish(piece)
    await snapshots.append(snapshots.durable())
    for number, (ranges, rest, ops) in enumerate(
        (({0: "t", 1: "r"}, "a", "u"), ({0: "rr"}, "b", "d"), ({0: "r"}, "", "c"))
    ):
        attempt = snapshots.start(ORDERS, rest=" ab"[number].strip())
        await snapshots.append()
        numbered = ranges if not number else range_numbers(number, *ranges.values())
        objects = await snapshots.stage(attempt, numbered)
        await snapshots.register.whole(attempt, objects, rest=rest)
        await snapshots.append()
        await snapshots.complete()
        await snapshots.append(snapshots.durable())
        await go_on(snapshots, ops)
    return snapshots


async def test_of_a_snapshot_that_is_not_complete_nothing_is_read() -> None:
    snapshots = await with_snapshot()
    register = snapshots.register
    register.resync(ORDERS)
    await snapshots.append()
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    objects = await snapshots.stage(attempt, {0: "t", 1: "r"})
    await register.whole(attempt, objects, rest="more")
    await snapshots.append()
    await snapshots.complete()
    await snapshots.append(snapshots.durable())

    assert (await asked(snapshots.bucket.store)).ops == "ccu"


# --- what stands between the stream and a snapshot


async def spanning(*, hours: int = 0) -> Snapshots:
    """An object of the stream with two rows, and a snapshot whose point lies between them.

    The snapshot was taken so many hours after the object's hour.
    """
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    version = bucket.version(ORDERS)
    piece = bucket.piece(ORDERS, "cu")
    snapshots.register.capture(ORDERS)
    await snapshots.append(planned=(piece.planned,), schemas=(version,))
    await bucket.publish(piece)
    # This bucket's clock goes with its commits.
    bucket.commit += hours << 11
    between = point(int(commit_of(piece.planned.first)[5:], 16) + 1, bucket.time_us())
    attempt = snapshots.register.start(ORDERS, between, relation(ORDERS))
    await snapshots.append()
    objects = await snapshots.stage(attempt, {0: "t", 1: "R"})
    await snapshots.register.whole(attempt, objects)
    await snapshots.append()
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    return snapshots


async def test_an_object_that_reaches_over_a_snapshots_point_is_read_on_both_sides() -> None:
    snapshots = await spanning()
    store = snapshots.bucket.store

    answer = await asked(store)
    rests = [await asked(store, since=cursor) for cursor in answer.cursors]

    assert answer.ops == "ctru"
    assert [rest.ops for rest in rests] == [
        "".join(ops) for ops in (("t", "r", "u"), ("r", "u"), ("u",), ())
    ]


async def test_a_snapshot_whose_point_is_not_durable_is_not_read() -> None:
    snapshots = await with_snapshot(is_durable=False)
    bucket = snapshots.bucket
    before = durable(bucket.commit, seq=bucket.journal.state.seq)
    await snapshots.append(before)

    answer = await asked(bucket.store)
    await snapshots.append(snapshots.durable())
    rest = await asked(bucket.store, since=answer.reading.cursor)

    assert bucket.journal.state.visible_snapshot(str(ORDERS)) is not None
    assert (answer.ops, rest.ops) == ("c", "ctrrrrr")


async def test_what_was_given_is_not_given_again_up_to_an_earlier_place() -> None:
    snapshots = await with_snapshot()
    store = snapshots.bucket.store
    early = snapshots.bucket.journal.state.durable_position
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    await snapshots.make_whole(ORDERS, {0: "t", 1: "r"})
    await snapshots.complete()
    await go_on(snapshots, "d")
    cursor = (await asked(store)).reading.cursor

    back = await asked(store, since=cursor, until=Until(position=early))
    rest = await asked(store, since=back.reading.cursor)

    assert (back.lines, rest.lines) == ([], [])


async def test_changes_begin_with_the_snapshot_where_older_ones_expired() -> None:
    snapshots = await with_snapshot()
    bucket = snapshots.bucket
    await go_on(snapshots, "d")
    del bucket.store.objects[bucket.pieces[0].planned.key]

    based = await asked(bucket.store)
    del bucket.store.objects[bucket.pieces[1].planned.key]
    error = await refused(bucket.store)

    assert (based.ops, based.doubts) == ("trrrrrud", [])
    assert error.code == "expired"


async def test_a_cursor_behind_what_expired_goes_on_with_the_snapshot_that_supersedes_it() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    schemas: tuple[Any, ...] = (bucket.version(ORDERS),)
    gone = []
    cursor = ""
    for ops in ("cc", "cu"):
        piece = bucket.piece(ORDERS, ops)
        await snapshots.append(planned=(piece.planned,), schemas=schemas)
        await bucket.publish(piece)
        await snapshots.append(snapshots.durable())
        schemas = ()
        gone.append(piece.planned.key)
        cursor = cursor or (await asked(bucket.store)).cursors[-1]
    await snapshots.make_whole(ORDERS, {0: "t", 1: "r"})
    await snapshots.complete()
    piece = bucket.piece(ORDERS, "d")
    await snapshots.append(planned=(piece.planned,))
    await bucket.publish(piece)
    await snapshots.append(snapshots.durable())
    for key in gone:
        del bucket.store.objects[key]

    answer = await asked(bucket.store, since=cursor)

    assert answer.ops == "trd"
    assert answer.doubts == []


async def test_objects_that_the_journal_names_are_not_looked_up() -> None:
    snapshots = await with_snapshot()
    heads: list[str] = []

    async def before_head(key: str) -> None:
        heads.append(key)

    snapshots.bucket.store.before_head = before_head
    await asked(snapshots.bucket.store)

    assert heads == [piece.planned.key for piece in snapshots.bucket.pieces]


@dataclass
class VanishingStore(MemoryStore):
    async def get(self, key: str) -> bytes | None:
        return None if key.endswith(".ndjson.gz") else await super().get(key)


async def test_an_object_that_goes_while_it_is_read_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A small one is read when it is asked what it is.
    monkeypatch.setattr(kept, "SMALL_BYTES_MAX", 0)
    bucket = await streamed("c")

    error = await refused(VanishingStore(bucket.store.objects))

    assert error.code == "object-missing"
    assert bucket.pieces[0].planned.key in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"first-position": f"{place(0x1101)}.0000000000001080.000000"},
        {"version": "2"},
        {"version": "x"},
        {"rows": ""},
        {"last-position": f"{place(0x1000)}.0000000000001080.000000"},
        {"last-position": "later"},
        {"previous-position": f"{place(0x1100)}.0000000000001080.000001"},
    ],
)
def test_what_says_something_else_than_its_key_is_no_object_of_a_stream(
    changes: dict[str, str],
) -> None:
    first = Position(f"{place(0x1100)}.0000000000001080.000000")
    said = {
        "first-position": first,
        "last-position": first,
        "version": "1",
        "rows": "1",
        "ops": "c=1",
        "raw-bytes": "10",
        "raw-crc32": "00000000",
    }
    at = ObjectPlace(1, "2026-11-22T11", first)

    right = link_of("key", at, ObjectHead(1, said))
    wrong = link_of("key", at, ObjectHead(1, said | changes))

    assert right is not None
    assert wrong is None


# --- gaps


def gap(**changes: Any) -> Gap:
    given: dict[str, Any] = {
        "number": 1,
        "table": str(ORDERS),
        "after": place(0x1200),
        "until": place(0x1300),
        "reason": "left-publication",
        "text": "it was away",
    }
    return Gap(**{**given, **changes})


async def with_gap(**changes: Any) -> SmallBucket:
    bucket = await streamed("cc", "cc", "c")
    await bucket.journal.append(gaps=(gap(**changes),))
    return bucket


async def test_changes_with_a_gap_among_them_are_refused_by_name() -> None:
    bucket = await with_gap()

    error = await refused(bucket.store)
    allowed = await asked(bucket.store, allows_gaps=True)

    assert error.code == "gap"
    assert "left-publication" in str(error)
    assert (allowed.ops, allowed.doubts) == ("ccccc", ["gap"])


@pytest.mark.parametrize(
    "changes",
    [
        {"mended": "attempt 1 of its snapshot"},
        {"table": "public.others"},
        {"after": place(1 << 50), "until": ""},
        {"attempt": 3, "position": place(0x1250)},
    ],
)
async def test_a_gap_that_leaves_nothing_out_here_is_none(changes: dict[str, Any]) -> None:
    bucket = await with_gap(**changes)

    assert (await asked(bucket.store)).doubts == []


async def test_a_gap_before_the_cursor_is_none() -> None:
    bucket = await with_gap()
    cursors = (await asked(bucket.store, allows_gaps=True)).cursors

    codes = [
        answer.doubts
        for cursor in cursors
        for answer in [await asked(bucket.store, since=cursor, allows_gaps=True)]
    ]

    assert codes == [["gap"], [], []]


async def test_a_gap_that_goes_on_stands_for_every_later_read() -> None:
    bucket = await with_gap(until="")
    cursor = (await asked(bucket.store, allows_gaps=True)).reading.cursor

    assert (await refused(bucket.store, since=cursor)).code == "gap"


async def test_a_row_that_a_snapshot_left_out_is_a_gap_of_that_attempt() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    await snapshots.make_whole(ORDERS, left_out=(1,))
    await snapshots.complete()
    await snapshots.append(snapshots.durable())

    error = await refused(bucket.store)
    allowed = await asked(bucket.store, allows_gaps=True)

    assert (error.code, allowed.ops) == ("gap", "trrrrr")
    assert (await asked(bucket.store, since=allowed.reading.cursor)).doubts == []


async def test_a_table_that_is_not_captured_any_more_is_named() -> None:
    bucket = await streamed("c")

    def edit(entry: Entry) -> Entry:
        if entry.open is None:
            return entry
        other = replace(entry.open.configuration, exclude=("public.orders",))
        return replace(entry, open=replace(entry.open, configuration=other))

    rewrite_journal(bucket.store, edit)

    assert (await refused(bucket.store)).code == "not-captured"
