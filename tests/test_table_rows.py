"""The current rows of a table: which objects they follow from, and when they are refused."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.journal.entry import Agreed, Entry, Watch
from engine.model.position import LogPosition, Position, log_position, make_position
from engine.model.schema import Column, Relation, TableVersion
from engine.reader.table import Until, kept
from engine.reader.table.folding import Folding
from engine.reader.table.links import Link, chain
from engine.reader.table.projection import projection, unrecorded
from engine.reader.table.reading import in_order
from engine.reader.table.snapshot import Piece, Pieces, Segment
from engine.reader.table.steps import LAST, Step, steps
from fold_rig import Body, Table, as_read, as_values, newest_first, shape
from log_points import durable
from memory_store import MemoryStore
from small_bucket import ORDERS, SmallBucket, rewrite_journal
from small_snapshot import Snapshots, range_numbers
from table_reader import asked
from test_table_changes import (
    CountingStore,
    expire,
    go_on,
    published,
    refused,
    segmented,
    spanning,
    streamed,
    with_snapshot,
)

SEVEN = {"id": 7, "note": 'déjà "vu"\n'}


async def rows(store: MemoryStore, **question: Any) -> list[dict[str, Any]]:
    answer = await asked(store, is_current=True, **question)
    return [json.loads(line) for line in answer.lines]


# --- what the rows follow from


@pytest.mark.parametrize("envelope", ["standard", "debezium"])
async def test_rows_follow_from_the_snapshot_and_what_came_since(envelope: Any) -> None:
    bucket = SmallBucket(CountingStore(), snapshot="initial", envelope=envelope)
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    version = bucket.version(ORDERS)
    await snapshots.append(schemas=(version,))
    await snapshots.make_whole(ORDERS, {0: "t", 1: "R"})
    await snapshots.complete()
    await go_on(snapshots, "u")

    found = await rows(bucket.store)

    assert sorted(row["id"] for row in found) == [7, 8]
    assert SEVEN in found


async def test_what_is_older_than_the_snapshot_is_not_read() -> None:
    snapshots = await with_snapshot()
    bucket = snapshots.bucket
    old, new = (piece.planned.key for piece in bucket.pieces)
    store = CountingStore(bucket.store.objects)

    assert await rows(store) == [SEVEN]

    assert old not in store.got
    assert new in store.got


async def test_what_is_older_than_the_snapshot_may_have_expired() -> None:
    snapshots = await with_snapshot()
    bucket = snapshots.bucket
    del bucket.store.objects[bucket.pieces[0].planned.key]
    expire(bucket)

    assert await rows(bucket.store) == [SEVEN]


async def test_what_came_since_the_snapshot_may_not_have_expired() -> None:
    snapshots = await with_snapshot()
    bucket = snapshots.bucket
    del bucket.store.objects[bucket.pieces[1].planned.key]

    assert (await refused(bucket.store, is_current=True)).code in {"object-missing", "expired"}


async def test_what_is_older_than_a_truncate_record_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A small one comes with what it says of itself.
    monkeypatch.setattr(kept, "SMALL_BYTES_MAX", 0)
    bucket = await streamed("cc", "ct", "c", store=CountingStore())
    store = bucket.store
    assert isinstance(store, CountingStore)

    found = await rows(store)

    assert found == [SEVEN]
    assert bucket.pieces[0].planned.key not in store.got


async def test_segments_are_folded_each_at_its_place() -> None:
    snapshots = await segmented()

    before = await rows(snapshots.bucket.store)
    await go_on(snapshots, "d")

    assert before == [SEVEN]
    assert await rows(snapshots.bucket.store) == []


@pytest.mark.parametrize("envelope", ["standard", "debezium"])
async def test_an_object_over_two_points_may_have_no_row_between_them(envelope: Any) -> None:
    bucket = SmallBucket(snapshot="initial", envelope=envelope)
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    version = bucket.version(ORDERS)
    first = bucket.piece(ORDERS, "c")
    await snapshots.append(planned=(first.planned,), schemas=(version,))
    await bucket.publish(first)
    await snapshots.append(snapshots.durable())
    begin = bucket.commit
    piece = bucket.piece(ORDERS, "uu")
    end = bucket.commit
    bucket.commit = begin + 0x110
    for number, (ranges, rest) in enumerate((({0: "t", 1: "r"}, "a"), ({0: "rr"}, ""))):
        attempt = snapshots.start(ORDERS, rest="a" if number else "")
        await snapshots.append()
        numbered = range_numbers(number, *ranges.values()) if number else ranges
        objects = await snapshots.stage(attempt, numbered)
        await snapshots.register.whole(attempt, objects, rest=rest)
        await snapshots.append()
        await snapshots.complete()
        await snapshots.append(snapshots.durable())
        bucket.commit += 0x10
    bucket.commit = end
    await snapshots.append(planned=(piece.planned,))
    await bucket.publish(piece)
    await snapshots.append(snapshots.durable())

    answer = await asked(bucket.store, is_current=True)

    assert [json.loads(line) for line in answer.lines] == [SEVEN]
    assert any(step.low and step.high != LAST for step in answer.reading.steps)


async def test_a_place_that_was_stated_again_with_more_finished_is_read_so() -> None:
    snapshots = await with_snapshot()
    bucket = snapshots.bucket
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    bucket.commit += 0x100
    await snapshots.make_whole(ORDERS, {0: "t", 1: "R"})
    bucket.commit += 0x100
    # Durable passes the snapshot's point before its objects are all there.
    await snapshots.append(snapshots.durable(bucket.journal.state.seq - 1))
    place = bucket.journal.state.durable_position
    assert bucket.journal.state.unfinished(place)
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    assert bucket.journal.state.durable_position == place
    then = await asked(bucket.store, is_current=True)
    await go_on(snapshots, "c")

    again = await asked(bucket.store, is_current=True, until=Until(position=place))

    assert again.lines == then.lines


def insert(table: Table) -> None:
    table.insert({"id": "5", "idb": "1"})


def delete(table: Table) -> None:
    table.delete(2)


@pytest.mark.parametrize("changes", [(insert,), (delete,), (insert, delete)])
def test_rows_that_are_all_key_come_once_from_the_stream_and_a_later_segment(
    changes: tuple[Callable[[Table], None], ...],
) -> None:
    names = ("id", "idb")
    table = Table(shape(*names, key=names, is_whole_row=True))
    table.begin()
    for number in "1234":
        table.insert({"id": number, "idb": "1"})
    table.cut()
    first = segment_of(table, lambda row: row["id"] in {"1", "2"})
    table.begin()
    for change in changes:
        change(table)
    table.cut()
    point, (_truncate, *bodies) = segment_of(table, lambda row: row["id"] not in {"1", "2"})
    columns = tuple(
        Column(name, "bigint", "integer", key=True, number=place)
        for place, name in enumerate(names, 1)
    )
    version = TableVersion(1, Position(""), "r", Relation(ORDERS, "1", columns, names))
    folding = Folding(version, (version,), is_divided=True)
    fold = folding.next_pass()
    assert fold is not None

    found = b"".join(
        rows
        for body, low, high in newest_first(table.bodies, [first, (point, bodies)])
        for rows in folding.taken(
            fold,
            memoryview(body.lines),
            dataclasses.replace(step_of(1, 0), low=low, high=high or LAST),
        )
    )
    folding.finish(fold)

    assert as_read(found.splitlines(), names) == as_values(table.rows, names)


def segment_of(
    table: Table, is_in: Callable[[dict[str, str | None]], bool]
) -> tuple[LogPosition, list[Body]]:
    """A snapshot of some of the table's rows."""
    every = table.rows
    table.rows = [row for row in every if is_in(row)]
    found = table.snapshot()
    table.rows = every
    return found


async def test_rows_are_counted_only_where_no_segment_is_behind_changes_of_its_rows() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    await snapshots.append(schemas=(bucket.version(ORDERS),))
    await snapshots.make_whole(ORDERS, {0: "t", 1: "r"}, rest="a")
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    await go_on(snapshots, "c")
    attempt = snapshots.start(ORDERS, rest="a")
    await snapshots.append()
    objects = await snapshots.stage(attempt, range_numbers(1, "r"))
    await snapshots.register.whole(attempt, objects)
    await snapshots.append()
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    key_of_all_columns(bucket)
    divided = await rows(bucket.store)
    await go_on(snapshots, "tcc")
    key_of_all_columns(bucket)

    truncated = await rows(bucket.store)

    assert divided == [SEVEN]
    # No row is in a segment any more. Whether the table still has a key is not known.
    assert truncated == [SEVEN, SEVEN]


async def test_rows_of_a_snapshot_without_segments_are_counted() -> None:
    snapshots = await with_snapshot()
    key_of_all_columns(snapshots.bucket)

    assert await rows(snapshots.bucket.store) == [SEVEN] * 5


def key_of_all_columns(bucket: SmallBucket) -> None:
    """Have the journal say that the key of orders is all of its columns."""

    def edit(entry: Entry) -> Entry:
        return replace(entry, schemas=tuple(map(keyed, entry.schemas)))

    def keyed(version: TableVersion) -> TableVersion:
        columns = tuple(replace(column, key=True) for column in version.relation.columns)
        names = tuple(column.name for column in columns)
        return replace(version, relation=replace(version.relation, columns=columns, key=names))

    rewrite_journal(bucket.store, edit, bucket.prefix)


async def test_a_deleted_row_is_gone_and_an_earlier_one_does_not_come_back() -> None:
    snapshots = await with_snapshot()
    await go_on(snapshots, "ud")

    assert await rows(snapshots.bucket.store) == []


async def test_a_table_is_read_as_it_was() -> None:
    snapshots = await with_snapshot()
    bucket = snapshots.bucket
    first = bucket.journal.state.durable_position
    await go_on(snapshots, "d")
    second = bucket.journal.state.durable_position
    snapshots.register.resync(ORDERS)
    await snapshots.append()
    await snapshots.make_whole(ORDERS, {0: "t", 1: "R"})
    await snapshots.complete()
    await go_on(snapshots, "c")

    found = [
        await rows(bucket.store, until=Until(position=until))
        for until in (first, second, bucket.journal.state.durable_position)
    ]

    assert [sorted(row["id"] for row in some) for some in found] == [[7], [], [7, 8]]


async def test_what_is_older_than_a_truncate_record_may_have_expired() -> None:
    bucket = await streamed("cc", "ct", "c")
    del bucket.store.objects[bucket.pieces[0].planned.key]

    assert await rows(bucket.store) == [SEVEN]


async def test_a_truncate_record_that_is_not_durable_yet_truncates_nothing() -> None:
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    await snapshots.append(schemas=(bucket.version(ORDERS),))
    await snapshots.make_whole(ORDERS, {0: "t", 1: "R"})
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    piece = bucket.piece(ORDERS, "ut")
    await snapshots.append(planned=(piece.planned,))
    await bucket.publish(piece)
    middle = int(piece.planned.first.split(".")[1], 16) + 1

    await snapshots.append(durable(middle, seq=bucket.journal.state.seq))
    before = await rows(bucket.store)
    await snapshots.append(snapshots.durable())

    assert sorted(row["id"] for row in before) == [7, 8]
    assert await rows(bucket.store) == []


async def test_an_object_that_began_long_before_the_snapshot_is_found() -> None:
    snapshots = await spanning(hours=72)

    found = await rows(snapshots.bucket.store)

    assert sorted(row["id"] for row in found) == [7, 8]


async def test_a_default_that_rows_got_and_nobody_recorded_is_named() -> None:
    bucket = await streamed("t", "c")
    added = Column("total", "text", "text", key=False, type_id=25, default="now()")
    await published(bucket, "c", schemas=(bucket.version(ORDERS, added),))

    error = await refused(bucket.store, is_current=True)

    assert error.code == "default-unrecorded"


# --- when they are refused


async def test_a_table_whose_snapshot_is_not_finished_is_refused() -> None:
    snapshots = await with_snapshot()
    snapshots.register.resync(ORDERS)
    await snapshots.append(snapshots.durable())

    error = await refused(snapshots.bucket.store, is_current=True)
    allowed = await asked(snapshots.bucket.store, is_current=True, allows_gaps=True)

    assert error.code == "unfinished"
    assert "--allow-gaps" in error.hint
    # The snapshot before is as good as it was.
    assert (len(allowed.lines), allowed.doubts) == (1, ["unfinished"])


async def test_a_table_without_a_snapshot_is_refused_unless_it_was_truncated() -> None:
    bucket = await streamed("cc")

    error = await refused(bucket.store, is_current=True)
    await published(bucket, "t")

    assert error.code == "no-snapshot"
    assert await rows(bucket.store) == []


async def test_the_flat_envelope_shows_no_state() -> None:
    bucket = SmallBucket(envelope="flat")
    await bucket.take_over("writer-1")
    await published(bucket, "t", schemas=(bucket.version(ORDERS),))

    error = await refused(bucket.store, is_current=True)

    assert error.code == "state-unknown"
    assert "flat" in str(error)


async def test_rows_with_a_gap_since_the_snapshot_are_refused() -> None:
    snapshots = await with_snapshot()
    commit = snapshots.bucket.commit
    snapshots.gaps.state(
        str(ORDERS),
        after=log_position(1, commit),
        until="",
        reason="not-published",
        text="it is away",
    )
    await snapshots.append()

    assert (await refused(snapshots.bucket.store, is_current=True)).code == "gap"


async def test_a_gap_before_the_snapshot_is_none() -> None:
    snapshots = await with_snapshot()
    snapshots.gaps.state(
        str(ORDERS), after="0001.0", until="0001.0000000000001000", reason="x", text="it was away"
    )
    await snapshots.append()

    assert await rows(snapshots.bucket.store) == [SEVEN]


@pytest.mark.parametrize("aspect", ["operations", "key"])
async def test_a_source_that_leaves_something_out_is_named(aspect: str) -> None:
    snapshots = await with_snapshot()
    agreed = Agreed("16384", keeps={aspect: ("insert",)})
    watch = Watch("tailrace", "", tables={str(ORDERS): agreed})
    await snapshots.bucket.journal.append(watch=watch)

    assert (await refused(snapshots.bucket.store, is_current=True)).code == aspect


# --- columns that changed


def column(name: str, number: int = 0, **facts: Any) -> Column:
    return Column(name, "text", "text", key=name == "id", number=number, **facts)


def versions(*shapes: tuple[Column, ...]) -> tuple[TableVersion, ...]:
    return tuple(
        TableVersion(number, Position(""), "r", Relation(ORDERS, "16384", columns, ("id",)))
        for number, columns in enumerate(shapes, 1)
    )


def projected(line: bytes, *shapes: tuple[Column, ...]) -> bytes:
    known = versions(*shapes)
    return projection(known[0], known[-1], known).rows(line)


ID = column("id", 1)


def test_rows_of_the_same_columns_stay_the_same_bytes() -> None:
    line = b'{"id" : "1","a":1.50}\n'

    assert projected(line, (ID, column("a")), (ID, column("a", nullable=False))) is line


def test_a_value_keeps_the_text_that_was_recorded() -> None:
    line = b'{"id":1,"a":12345678901234567890.50,"j":{"b": [1e400]}}\n'
    before = (ID, column("a"), column("j"))

    assert projected(line, before, (ID, column("j"), column("a"))) == (
        b'{"id":1,"j":{"b": [1e400]},"a":12345678901234567890.50}\n'
    )


def test_a_dropped_column_is_left_out_and_an_added_one_is_null() -> None:
    shapes = ((ID, column("a", 2)), (ID, column("b", 3)))

    assert projected(b'{"id":1,"a":"x"}\n', *shapes) == b'{"id":1,"b":null}\n'


def test_an_added_column_has_what_rows_got_that_were_there() -> None:
    shapes = ((ID,), (ID, column("b", 2, default="'x'", fill='"x"')))

    assert projected(b'{"id":1}\n', *shapes) == b'{"id":1,"b":"x"}\n'
    assert [*unrecorded([1], versions(*shapes)[-1], versions(*shapes))] == []


def test_a_renamed_column_has_its_new_name() -> None:
    shapes = ((ID, column("a", 2)), (ID, column("b", 2)), (ID, column("c", 2)))

    assert projected(b'{"id":1,"a":"x"}\n', *shapes) == b'{"id":1,"c":"x"}\n'


def test_a_column_that_was_dropped_and_added_again_is_another_one() -> None:
    shapes = ((ID, column("a")), (ID,), (ID, column("a")))

    assert projected(b'{"id":1,"a":"x"}\n', *shapes) == b'{"id":1,"a":null}\n'


@pytest.mark.parametrize(
    ("shapes", "code"),
    [
        (((ID,), (ID, column("b", 2, default="now()"))), "default-unrecorded"),
        (((ID, column("b")), (ID, Column("b", "int", "integer", key=False))), "type-changed"),
        (((ID, column("b", included=False)), (ID, column("b"))), "column-unrecorded"),
        (((ID, column("a")), (ID, column("b"))), "rename-unclear"),
        (((ID, column("b")), (ID, column("b", hashed=True))), "type-changed"),
    ],
)
def test_values_that_nobody_recorded_are_named(
    shapes: tuple[tuple[Column, ...], ...], code: str
) -> None:
    known = versions(*shapes)

    assert [doubt.code for doubt in unrecorded([1, 2], known[-1], known)] == [code]
    # Rows of the newest version alone lack nothing.
    assert [*unrecorded([2], known[-1], known)] == []


def step_of(version: int, place: int) -> Step:
    position = make_position(1, place, place - 8, 0)
    return Step("key", 1, version, position, position, 1, 1, "")


def test_a_snapshots_version_holds_before_versions_of_lower_and_higher_numbers() -> None:
    # The snapshot was whole before the rows from before its point were streamed again.
    added = column("b", 2, default="'x'", fill='"x"')
    snapshot, before, after = versions((ID, added), (ID,), (ID, added, column("c", 3)))
    steps = [step_of(1, 200), step_of(3, 300), step_of(3, 400)]

    ordered = in_order(steps, after, (snapshot, before, after))

    assert ordered == (snapshot, after)
    assert projection(snapshot, after, ordered).rows(b'{"id":1,"b":"own"}\n') == (
        b'{"id":1,"b":"own","c":null}\n'
    )


def test_rows_of_a_higher_number_than_the_newest_versions_have_its_columns() -> None:
    # A snapshot takes an older version again where the table has its shape once more.
    added = column("b", 2)
    newest, later = versions((ID,), (ID, added))

    ordered = in_order([step_of(1, 100), step_of(2, 200)], newest, (newest, later))

    assert [version.number for version in ordered] == [2, 1]
    assert projection(later, newest, ordered).rows(b'{"id":1,"b":"x"}\n') == b'{"id":1}\n'
    retyped_id = Column("id", "int", "integer", key=True, number=1)
    retyped = replace(newest, relation=replace(newest.relation, columns=(retyped_id,)))
    assert [doubt.code for doubt in unrecorded([2], retyped, (later, retyped))] == ["type-changed"]


def test_another_table_of_the_name_has_nothing_to_carry_over() -> None:
    first, second = versions((ID,), (ID, column("b", 2, default="now()")))
    other = replace(second, relation=replace(second.relation, identity="2"))

    assert [*unrecorded([1, 2], other, (first, other))] == []


# --- steps


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Link], list[Position], Pieces | None, str, str]:
    """A stream in objects, and a snapshot of some segments as of points among its commits."""
    orders = sorted(draw(st.sets(st.integers(2, 60), min_size=1, max_size=20)))
    positions = [
        make_position(1, 2 * order, change, 0)
        for order in orders
        for change in range(draw(st.integers(1, 3)))
    ]
    cuts = sorted(draw(st.sets(st.integers(1, len(positions)), max_size=6)) | {len(positions)})
    links = []
    previous, begin = Position(""), 0
    for cut in cuts:
        some = positions[begin:cut]
        links.append(link(some, previous))
        previous, begin = some[-1], cut
    points = sorted(draw(st.sets(st.integers(1, 62), max_size=3)))
    pieces = None
    if points:
        segments = tuple(segment(log_position(1, 2 * point)) for point in points)
        pieces = Pieces(1, segments, is_named=True)
    low, high = sorted(log_position(1, 2 * draw(st.integers(0, 63))) for _ in range(2))
    return links, positions, pieces, low, high


def link(positions: list[Position], previous: Position) -> Link:
    first, last = positions[0], positions[-1]
    return Link(first, 1, 1, "", first, last, previous, len(positions), False, 1, "")


def segment(point: LogPosition) -> Segment:
    before = log_position(1, int(point[5:], 16) - 1)
    firsts = [Position(f"{before}.0000010000000000.00000{n}") for n in (0, 1)]
    pieces = tuple(Piece(first, 1, first, first, 1, 1, "") for first in firsts)
    return Segment(point, 1, "", pieces)


def rows_of(step: Step, positions: list[Position]) -> list[Position]:
    if step.attempt:
        return [step.first]
    whole = [p for p in positions if step.first <= p <= step.last]
    return [p for p in whole if step.low <= p < step.high]


@given(streams())
def test_every_row_is_in_one_step_and_all_are_in_order(
    case: tuple[list[Link], list[Position], Pieces | None, str, str],
) -> None:
    links, positions, pieces, low, high = case

    found = [*steps(links, pieces, low=low, high=high)]

    read = [position for step in found for position in rows_of(step, positions)]
    of_snapshot = [p.first for s in (pieces.segments if pieces else ()) for p in s.pieces]
    wanted = sorted([*(p for p in positions if low <= p < high), *of_snapshot])
    of_stream = [p for p in read if p not in of_snapshot]
    assert sorted(read) == wanted
    assert of_stream == sorted(of_stream)
    if pieces is None or pieces.begin >= low:
        assert read == sorted(read)


@given(streams())
def test_the_chain_is_found_among_strangers_whatever_their_order(
    case: tuple[list[Link], list[Position], Pieces | None, str, str],
) -> None:
    links, positions, *_ = case

    whole = chain(reversed(links), positions[-1], "")
    cut = chain(links[1:], positions[-1], "")

    assert (list(whole.links), whole.missing) == (links, "")
    assert (list(cut.links), cut.missing) == (links[1:], links[0].last)
    assert positions[-1] < LAST
