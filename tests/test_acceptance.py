"""Accepting a loss alone: what may be accepted, what becomes void, and what one entry states."""

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from configured import make_settings
from engine.flow.chunk import empty_body
from engine.journal.acceptance import Acceptance, acceptable, explain
from engine.journal.entry import Accepting, Entry, JournalState, Planned, decode_entry
from engine.journal.gaps import LOST
from engine.journal.lanes import Lanes
from engine.journal.publisher import object_metadata
from engine.journal.recovery import Recovery
from engine.model.errors import (
    ForeignPrefix,
    LossKind,
    PositionLost,
    SourceUnavailable,
)
from engine.model.interfaces import ChangeStream
from engine.model.log_point import LogPoint
from engine.model.position import Position, behind
from engine.model.schema import Relation, TableVersion
from log_points import durable, place, point
from memory_store import StoredObject
from publishing import publisher_of
from small_bucket import ODD, ORDERS, Piece, SmallBucket, decompressed
from still_source import StillStream

if TYPE_CHECKING:
    from engine.journal.lease import Lease

E = 0x1000
BEGIN = JournalState(durable=durable(E, seq=0))
MOVED = PositionLost("it was moved", hint="Look.", loss="moved")
ELSEWHERE = ForeignPrefix("another server", is_elsewhere=True)


# --- what may be accepted


@pytest.mark.parametrize("loss", ["moved", "keeper", "history"])
def test_a_loss_is_accepted_by_what_is_durable_and_says_what_happened(loss: LossKind) -> None:
    error = PositionLost("it is gone", loss=loss)

    assert acceptable(error, BEGIN) == Accepting(place(E), loss, "it is gone")


def test_another_server_of_the_same_pipeline_has_another_history() -> None:
    assert acceptable(ELSEWHERE, BEGIN) == Accepting(place(E), "history", "another server")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ForeignPrefix("somebody else's"), BEGIN),
        (SourceUnavailable("no answer"), BEGIN),
        (ValueError("a bug"), BEGIN),
        (MOVED, JournalState()),
        (ELSEWHERE, JournalState()),
    ],
)
def test_what_is_no_loss_is_not_accepted(error: BaseException, state: JournalState) -> None:
    assert acceptable(error, state) is None


def test_the_hint_of_a_loss_names_it_behind_what_it_said_before() -> None:
    error = PositionLost("it was moved", hint="Look.", loss="moved")
    bare = PositionLost("it was moved")
    other = SourceUnavailable("no answer", hint="Wait.")

    for each in (error, bare, other):
        explain(each, BEGIN)

    assert error.hint.startswith("Look. Or go on with a gap")
    assert f"`tailrace run --accept-gap {place(E)}`" in error.hint
    assert bare.hint.startswith("Or go on with a gap")
    assert other.hint == "Wait."


# --- how it ends


class Source:
    """A lease that gives its stream to whoever asks, and says where the source stands."""

    def __init__(self, start: int) -> None:
        self.start = point(start)
        self.stream = StillStream()

    async def retake_anew(self, stack: AsyncExitStack, *_: object) -> tuple[ChangeStream, LogPoint]:
        return self.stream, self.start


def decide(relation: Relation, position: Position) -> TableVersion | None:
    raise NotImplementedError


class Rig:
    """A journal whose first writer planned objects, and whose second one accepts a loss."""

    def __init__(self) -> None:
        self.bucket = SmallBucket()
        self.pieces: list[Piece] = []

    async def opened(self, *ops: str, loss: LossKind = "keeper") -> "Rig":
        """An object of the table for each of `ops`; a second table has none."""
        bucket = self.bucket
        await bucket.take_over("writer-1")
        versions = bucket.version(ORDERS), bucket.version(ODD)
        self.pieces = [bucket.piece(ORDERS, each) for each in ops]
        plans = tuple(piece.planned for piece in self.pieces)
        await bucket.journal.append(schemas=versions, planned=plans)
        await bucket.take_over("writer-2", Accepting(place(E), loss, "it is gone"))
        return self

    async def settled(self, start: int) -> StillStream:
        """The log begins anew at `start`: what was acknowledged is in the stream."""
        bucket, source = self.bucket, Source(start)
        lease = cast("Lease", source)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            lanes = Lanes(group, 4)
            recovery = Recovery(
                journal=bucket.journal,
                lease=lease,
                publisher=publisher_of(bucket.store, bucket.journal, lanes),
                lanes=lanes,
                settings=make_settings(prefix=bucket.prefix),
                on_pass=lambda: None,
            )
            acceptance = Acceptance(
                journal=bucket.journal,
                lease=lease,
                recovery=recovery,
                configuration=bucket.configuration,
                clock=bucket.time_us,
            )
            await acceptance.settle(stack, decide)
        return source.stream

    @property
    def state(self) -> JournalState:
        return self.bucket.journal.state

    def entries(self) -> list[Entry]:
        objects = self.bucket.store.objects
        return [decode_entry(objects[k].body, k) for k in sorted(objects) if "/journal/" in k]

    def end_of(self, number: int) -> int:
        """The commit of that object's last row."""
        return int(self.pieces[number].planned.last.split(".")[1], 16)

    def gaps(self) -> dict[str, tuple[str, str]]:
        assert all(gap.reason == LOST for gap in self.state.gaps.values())
        return {gap.table: (gap.after, gap.until) for gap in self.state.gaps.values()}


async def test_every_known_table_has_a_gap_up_to_where_the_log_begins_anew() -> None:
    rig = await Rig().opened()

    stream = await rig.settled(0x9000)

    assert rig.gaps() == dict.fromkeys((str(ODD), str(ORDERS)), (place(E), place(0x9000)))
    assert rig.state.durable_position == place(0x9000)
    assert rig.state.accepting is None
    assert [acknowledged.position for acknowledged in stream.acknowledged] == [place(0x9000)]


async def test_a_table_that_is_not_captured_has_no_gap() -> None:
    rig = await Rig().opened()
    captured = msgspec.structs.replace(rig.bucket.configuration, tables=(str(ORDERS),))
    rig.bucket.configuration = captured

    await rig.settled(0x9000)

    assert list(rig.gaps()) == [str(ORDERS)]


async def test_what_nobody_can_make_any_more_is_there_with_nothing_in_it() -> None:
    rig = await Rig().opened("cc", "c")
    there, void = rig.pieces
    await rig.bucket.publish(there)

    await rig.settled(0x9000)

    objects = rig.bucket.store.objects
    assert decompressed(objects[there.planned.key].body, there.planned.key).count(b"\n") == 2
    assert decompressed(objects[void.planned.key].body, void.planned.key) == b""
    stated = [p for entry in rig.entries() for p in entry.planned if p.key == void.planned.key]
    assert [planned.rows for planned in stated] == [1, 0]
    assert rig.state.plans == {}


async def test_a_gap_covers_a_void_object_that_ends_behind_where_reading_goes_on() -> None:
    rig = await Rig().opened("ccc", loss="moved")
    end = rig.end_of(0)

    await rig.settled(end - 0x80)

    until = {str(ODD): place(end - 0x80), str(ORDERS): behind(place(end))}
    assert rig.gaps() == {table: (place(E), where) for table, where in until.items()}
    assert rig.state.durable_position == place(end - 0x80)


async def test_what_begins_where_reading_goes_on_is_still_to_be_made() -> None:
    rig = await Rig().opened("c", "c", loss="moved")
    void, kept = rig.pieces

    await rig.settled(rig.end_of(1) - 0x80)

    assert void.planned.key in rig.bucket.store.objects
    assert kept.planned.key not in rig.bucket.store.objects
    # Both were planned in one entry: durable stays in front of it.
    assert kept.planned.key in rig.state.plans
    assert rig.state.durable_seq == 0


async def stated_void(rig: Rig, piece: Piece) -> Planned:
    """A predecessor called an object void, and died: whoever goes on finds that in the journal."""
    nothing = {"rows": 0, "ops": {}, "raw_bytes": 0, "raw_crc32": "00000000"}
    stated = msgspec.structs.replace(piece.planned, **nothing)
    await rig.bucket.journal.append(planned=(stated,))
    await rig.bucket.take_over("writer-3")
    return stated


async def test_a_gap_covers_a_void_object_that_a_predecessor_made_before_it_died() -> None:
    rig = await Rig().opened("ccc", loss="moved")
    [void] = rig.pieces
    body, stated = empty_body("gzip"), await stated_void(rig, void)
    made = StoredObject(body, object_metadata(stated, "writer-2", len(body)))
    rig.bucket.store.objects[void.planned.key] = made
    end = rig.end_of(0)

    await rig.settled(end - 0x80)

    assert rig.gaps()[str(ORDERS)] == (place(E), behind(place(end)))


async def test_whoever_goes_on_calls_nothing_void_twice() -> None:
    rig = await Rig().opened("c", loss="moved")
    [void] = rig.pieces
    # Now the source stands in front of it.
    await stated_void(rig, void)

    await rig.settled(rig.end_of(0) - 0x80)

    again = [p for entry in rig.entries() for p in entry.planned if p.key == void.planned.key]
    assert [planned.rows for planned in again] == [1, 0]
    assert decompressed(rig.bucket.store.objects[void.planned.key].body, void.planned.key) == b""
    assert rig.gaps()[str(ORDERS)] == (place(E), behind(place(rig.end_of(0))))


@pytest.mark.parametrize(("loss", "start"), [("keeper", 0x1080), ("moved", E), ("history", E)])
async def test_positions_that_do_not_grow_are_another_log(loss: LossKind, start: int) -> None:
    rig = await Rig().opened("cc", loss=loss)
    before = rig.entries()

    with pytest.RaisesGroup(pytest.RaisesExc(PositionLost, match="another one")):
        await rig.settled(start)

    assert rig.entries() == before
    assert rig.pieces[0].planned.key not in rig.bucket.store.objects
