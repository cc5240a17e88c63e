"""Pauses: what is taken, what is dropped under which gap, and what resumes it."""

import asyncio

import pytest
from msgspec.structs import replace

from engine.flow.ledger import Ledger
from engine.flow.reception import Reception
from engine.journal.causes import STREAM, STREAM_PAUSED, TABLE_PAUSED
from engine.journal.entry import Gap
from engine.journal.pauses import PauseRegister
from engine.model.batch import Batch, Boundary, Intake, Operations
from engine.model.position import Position, behind, commit_of, make_position
from engine.model.record import OnSchemaChange, TableRule
from engine.model.request import Request, RequestRefused
from engine.model.schema import Column, Relation, TableVersion
from engine.operate.alarms import Alarms
from engine.reader.verify.pause_audit import wrong_pauses
from log_points import point
from small_bucket import ODD, ORDERS, SmallBucket
from small_snapshot import Snapshots, relation

MORE = Column("more", "integer", "integer", key=False, json="number", type_id=23)


def at(commit: int) -> Position:
    return make_position(1, 0x2000 + commit, 0x2000 + commit - 8, 0)


def shaped(*more: Column) -> Relation:
    plain = relation(ORDERS)
    return replace(plain, columns=(*plain.columns, *more))


def version(number: int, first: Position, shape: Relation, record: str = "") -> TableVersion:
    return TableVersion(number, first, record, shape)


FIRST = version(1, at(1), shaped())
SECOND = version(2, at(20), shaped(MORE))


class Rig:
    """One writer's pauses; an entry is made when a test says so."""

    def __init__(self, bucket: SmallBucket, mode: OnSchemaChange) -> None:
        bucket.configuration = replace(
            bucket.configuration,
            on_schema_change=mode,
            rules=(TableRule("Odd?Schema.*", on_schema_change="continue"),),
        )
        self.bucket = bucket
        self.snapshots = Snapshots(bucket)
        self.ledger = Ledger({})
        self.alarms = Alarms(bucket.time_us)
        self.woken = 0
        self.pauses = PauseRegister(
            state=bucket.journal.state,
            gaps=self.snapshots.gaps,
            snapshots=self.snapshots.register,
            ledger=self.ledger,
            configuration=bucket.configuration,
            clock=bucket.time_us,
            alarms=self.alarms,
            wake=self._wake,
        )

    def _wake(self) -> None:
        self.woken += 1

    async def append(self) -> None:
        """The next entry, with all that is pending."""
        pauses, gaps = self.pauses.pending, self.snapshots.gaps.pending
        await self.bucket.journal.append(pauses=pauses, gaps=gaps)
        self.pauses.journalled(pauses)
        self.snapshots.gaps.journalled(gaps)

    def read(self, boundary: int) -> None:
        self.ledger.read(Intake((), Boundary(point(0x2000 + boundary))))

    @property
    def gaps(self) -> list[tuple[str, str, str]]:
        return [(gap.reason, gap.after, gap.until) for gap in self.snapshots.gaps.standing]


async def rig(mode: OnSchemaChange = "continue", *, is_snapshot_on: bool = False) -> Rig:
    bucket = SmallBucket(snapshot="initial" if is_snapshot_on else "never")
    await bucket.take_over("writer-1")
    await bucket.journal.append(
        schemas=(FIRST, replace(FIRST, relation=replace(FIRST.relation, table=ODD)))
    )
    return Rig(bucket, mode)


async def successor(before: Rig, mode: OnSchemaChange) -> Rig:
    bucket = SmallBucket(before.bucket.store, snapshot=before.bucket.configuration.snapshot)
    await bucket.take_over("writer-2")
    return Rig(bucket, mode)


def asked(*tables: str) -> Request:
    return Request(1, "", tables)


async def test_a_stream_pauses_before_a_changed_shape_and_not_before_anything_else() -> None:
    one = await rig("pause")
    same = replace(SECOND, relation=FIRST.relation, record="other")

    assert one.pauses.admits(None, FIRST)
    assert one.pauses.admits(FIRST, same)
    assert not one.alarms.is_set(STREAM_PAUSED)
    assert not one.pauses.admits(FIRST, SECOND)
    assert one.pauses.is_paused
    assert one.alarms.is_set(STREAM_PAUSED)
    # A row of another table is taken all the same, until the reader looks.
    assert one.pauses.wants(relation(ODD), at(21))
    one.read(30)
    one.pauses.admits(FIRST, version(2, at(10), shaped(MORE)))
    one.read(5)
    boundary = one.ledger.durable_boundary()
    assert boundary is not None
    assert boundary.position == commit_of(at(5))
    assert one.woken


async def test_no_row_behind_the_one_at_which_the_stream_stopped_is_received_before_it() -> None:
    one = await rig("pause")
    state, configuration = one.bucket.journal.state, one.bucket.configuration
    record = configuration.record_digest
    journalled = {
        str(ORDERS): (version(1, at(1), shaped(), record(ORDERS)),),
        str(ODD): (version(1, at(1), relation(ODD), record(ODD)),),
    }
    reception = Reception(
        journalled=journalled,
        durable=lambda: state.durable_position,
        ledger=one.ledger,
        configuration=configuration,
    )
    reception.gate = one.pauses

    def take(shape: Relation, position: Position) -> int | None:
        """The version under which the row is received; None where it is not."""
        decided = reception.decide(shape, position)
        if decided is None:
            return None
        operations = Operations(1, 0, 0, 0, 0)
        batch = Batch(shape.table, decided.number, b"x\n", 1, operations, position, position, 0, 0)
        one.ledger.read(Intake((batch,), None))
        return decided.number

    # All of it comes before the reader looks: the shape changes and changes back.
    assert take(shaped(MORE), at(20)) is None
    assert take(shaped(), at(21)) is None
    assert take(relation(ODD), at(22)) == 1
    assert one.gaps == []
    # To accept the shape takes no row of it before the first one is read again.
    one.pauses.resume(asked())
    assert take(shaped(MORE), at(23)) is None

    one.pauses.reread()

    assert take(shaped(MORE), at(20)) == 2
    assert take(relation(ODD), at(22)) is None
    assert take(relation(ODD), at(24)) == 1


async def test_a_rule_decides_for_its_tables() -> None:
    one = await rig("pause")
    odd = replace(SECOND, relation=replace(SECOND.relation, table=ODD))

    assert one.pauses.admits(FIRST, odd)
    assert not one.pauses.is_paused


async def test_to_resume_accepts_the_shape_once_for_a_successor_too() -> None:
    one = await rig("pause")
    one.pauses.admits(FIRST, SECOND)
    await one.append()
    two = await successor(one, "pause")
    assert two.pauses.is_paused

    two.pauses.resume(asked())
    await two.append()
    three = await successor(two, "pause")

    for each in (two, three):
        assert not each.pauses.is_paused
        assert not each.alarms.is_set(STREAM_PAUSED)
        assert each.pauses.admits(FIRST, SECOND)
        assert not each.pauses.admits(FIRST, SECOND)
        assert not each.pauses.admits(SECOND, version(3, at(40), shaped()))
    assert two.pauses.is_reread_wanted
    two.pauses.reread()
    assert not two.pauses.is_reread_wanted


async def test_a_shape_that_was_accepted_and_began_is_another_one_the_next_time() -> None:
    one = await rig("pause")
    one.pauses.admits(FIRST, SECOND)
    one.pauses.resume(asked())
    await one.append()
    assert one.bucket.journal.state.accepted_shapes

    await one.bucket.journal.append(schemas=(replace(SECOND, first=None),))
    assert one.bucket.journal.state.accepted_shapes
    await one.bucket.journal.append(schemas=(replace(SECOND, number=3),))

    assert not one.bucket.journal.state.accepted_shapes


async def test_a_table_is_passed_over_under_one_gap_until_it_is_resumed() -> None:
    one = await rig("gap", is_snapshot_on=True)
    assert not one.pauses.admits(FIRST, SECOND)
    assert not one.pauses.wants(shaped(MORE), at(25))
    assert one.pauses.wants(relation(ODD), at(25))
    assert one.gaps == [("schema-changed", commit_of(at(20)), "")]
    assert one.alarms.is_set(TABLE_PAUSED, str(ORDERS))
    await one.append()

    two = await successor(one, "gap")
    assert not two.pauses.wants(shaped(MORE), at(20))
    assert not two.pauses.wants(shaped(MORE), at(50))
    # A connection that was lost gives rows again.
    assert not two.pauses.wants(shaped(MORE), at(30))
    two.read(40)
    two.pauses.resume(asked(str(ORDERS)))

    end = behind(commit_of(at(50)))
    assert two.gaps == [("schema-changed", commit_of(at(20)), end)]
    assert not two.pauses.wants(shaped(MORE), at(50))
    assert two.pauses.wants(shaped(MORE), at(51))
    assert two.pauses.admits(FIRST, version(2, at(51), shaped(MORE)))
    assert [stated.state for stated in two.snapshots.register.pending] == ["wanted"]
    assert not two.alarms.is_set(TABLE_PAUSED, str(ORDERS))


async def test_a_shape_that_changed_again_while_it_was_passed_over_is_accepted() -> None:
    other = shaped(replace(MORE, name="other"))
    one = await rig("gap")
    one.pauses.admits(FIRST, SECOND)
    one.pauses.wants(other, at(30))

    one.pauses.resume(asked())

    assert one.pauses.admits(FIRST, version(2, at(60), other))
    assert not one.pauses.admits(FIRST, SECOND)


async def test_a_gap_that_a_predecessor_stated_without_its_pause_goes_on() -> None:
    one = await rig("gap")
    one.pauses.admits(FIRST, SECOND)
    await one.bucket.journal.append(gaps=one.snapshots.gaps.pending)

    two = await successor(one, "gap")
    # It may have other settings, and then nothing is missing from E on.
    assert two.gaps == [("schema-changed", commit_of(at(20)), behind(commit_of(at(20))))]

    two.pauses.admits(FIRST, SECOND)

    assert two.gaps == [("schema-changed", commit_of(at(20)), "")]
    assert len(two.snapshots.gaps.standing) == 1


async def test_whoever_asks_may_pause_a_table_and_everything_is_resumed_at_once() -> None:
    one = await rig()
    interrupted = []
    one.pauses.interrupt = lambda: interrupted.append(one.pauses.is_paused)

    one.pauses.pause(asked(str(ORDERS)))
    assert one.pauses.is_reread_wanted
    assert one.pauses.tables == (str(ORDERS),)
    assert one.gaps == [("paused", one.bucket.journal.state.durable_position, "")]
    one.pauses.pause(asked())
    assert interrupted == [False, True]
    await one.append()
    assert set(one.bucket.journal.state.pauses) == {STREAM, str(ORDERS)}

    one.pauses.resume(asked())
    await one.append()

    assert one.bucket.journal.state.pauses == {}
    assert not one.bucket.journal.state.accepted_shapes
    assert [until != "" for _, _, until in one.gaps] == [True]


async def test_what_cannot_be_paused_or_resumed_is_refused() -> None:
    one = await rig()

    with pytest.raises(RequestRefused, match="nothing is paused"):
        one.pauses.resume(asked())
    with pytest.raises(RequestRefused, match="knows no"):
        one.pauses.pause(asked("public.nobody"))
    one.pauses.pause(asked())
    one.pauses.pause(asked(str(ORDERS)))
    with pytest.raises(RequestRefused, match="paused already"):
        one.pauses.pause(asked())
    with pytest.raises(RequestRefused, match="paused already"):
        one.pauses.pause(asked(str(ORDERS)))
    with pytest.raises(RequestRefused, match="not paused"):
        one.pauses.resume(asked(str(ODD)))


async def test_to_resume_a_table_resumes_the_stream_that_paused_because_of_it() -> None:
    one = await rig("pause")
    one.pauses.admits(FIRST, SECOND)

    one.pauses.resume(asked(str(ORDERS)))

    assert not one.pauses.is_paused


async def test_whoever_waits_goes_on_once_the_stream_is_resumed() -> None:
    one = await rig()
    one.pauses.pause(asked())
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        waiting = group.create_task(one.pauses.resumed())
        await asyncio.sleep(0)
        assert not waiting.done()

        one.pauses.resume(asked())


async def test_an_open_that_does_not_capture_a_paused_table_forgets_its_pause() -> None:
    one = await rig()
    one.pauses.pause(asked(str(ORDERS)))
    one.pauses.pause(asked())
    await one.append()

    bucket = SmallBucket(one.bucket.store)
    bucket.configuration = replace(bucket.configuration, exclude=(str(ORDERS),))
    await bucket.take_over("writer-2")

    assert set(bucket.journal.state.pauses) == {STREAM}


async def test_a_gap_that_a_predecessor_ended_without_its_pause_goes_on() -> None:
    one = await rig()
    one.pauses.pause(asked(str(ORDERS)))
    await one.append()
    [(_, begin, _)] = one.gaps
    one.pauses.resume(asked())
    await one.bucket.journal.append(gaps=one.snapshots.gaps.pending)

    two = await successor(one, "continue")

    assert not two.pauses.wants(relation(ORDERS), at(50))
    assert two.gaps == [("paused", begin, "")]
    assert two.woken
    two.pauses.resume(asked(str(ORDERS)))
    assert two.gaps == [("paused", begin, behind(commit_of(at(50))))]


@pytest.mark.parametrize("is_snapshot_on", [False, True])
async def test_a_paused_table_that_was_left_out_for_a_while_is_read_again(
    is_snapshot_on: bool,  # noqa: FBT001
) -> None:
    one = await rig(is_snapshot_on=is_snapshot_on)
    one.pauses.pause(asked(str(ORDERS)))
    one.pauses.pause(asked(str(ODD)))
    await one.append()
    begin = one.gaps[0][1]
    out = SmallBucket(one.bucket.store)
    out.configuration = replace(out.configuration, exclude=(str(ORDERS),))
    await out.take_over("writer-2")
    # While it is left out it goes on to lose changes.
    assert Rig(out, "continue").gaps == [("paused", begin, ""), ("paused", begin, "")]

    back = await successor(one, "continue")

    end = behind(back.bucket.journal.state.durable_position)
    assert back.gaps == [("paused", begin, end), ("paused", begin, "")]
    assert back.pauses.tables == (str(ODD),)
    assert back.woken
    assert back.pauses.wants(relation(ORDERS), at(1))
    register = back.snapshots.register
    register.arrive([ORDERS, ODD])
    assert register.needed() == ((ORDERS,) if is_snapshot_on else ())


async def test_what_is_durable_behind_a_paused_row_is_wrong_and_a_drop_that_no_gap_states() -> None:
    one = await rig("pause")
    one.pauses.admits(FIRST, SECOND)
    [pause] = one.pauses.pending
    state = one.bucket.journal.state
    state.pauses = {"": pause}
    assert list(wrong_pauses(state)) == []

    assert state.durable is not None
    state.durable = replace(state.durable, position=behind(commit_of(at(20))))
    assert len(list(wrong_pauses(state))) == 1

    state.pauses = {str(ORDERS): replace(pause, table=str(ORDERS))}
    assert len(list(wrong_pauses(state))) == 1
    state.gaps = {1: Gap(1, str(ORDERS), commit_of(at(20)), "", "schema-changed", "it changed")}
    assert list(wrong_pauses(state)) == []
