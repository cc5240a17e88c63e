"""Holding the lease: what is waited for, what is compared, and what is refused."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from engine.journal.entry import Accepting, Snapshot, Writer
from engine.journal.journal import Journal
from engine.journal.lease import Lease
from engine.journal.sight import Sight
from engine.model.errors import (
    ForeignPrefix,
    LeaseHeld,
    LossKind,
    PositionLost,
    SourceChanged,
    SourceUnavailable,
    Superseded,
)
from engine.model.interfaces import Standing
from engine.model.position import Position
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableVersion
from engine.operate.alarms import Alarms
from engine.operate.metrics import Metrics
from log_points import durable, identity, place, point
from memory_store import MemoryStore
from still_source import StillSource, StillStream

if TYPE_CHECKING:
    from engine.operate.status import Phase

CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))
HELD = LeaseHeld("somebody reads it")
AWAY = SourceUnavailable("nobody answers")
E = 150
HOUR_US = 3_600_000_000


def decide(relation: Relation, position: Position) -> TableVersion | None:
    raise NotImplementedError


class Rig:
    """A lease of a source, and a journal that is ours, durable up to E."""

    def __init__(self, held: StillStream | None = None) -> None:
        self.store = MemoryStore()
        self.source = StillSource(held)
        self.phases: list[Phase] = []
        self.journal = self.another_journal("first")
        self.lease = self.lease_of(self.journal)

    def lease_of(self, journal: Journal) -> Lease:
        return Lease(
            self.source,
            journal,
            standby_interval=0.001,
            on_phase=self.phases.append,
            alarms=Alarms(lambda: 0),
        )

    def another_journal(self, name: str, sight: Sight | None = None) -> Journal:
        writer = Writer(name, name, "test")
        return Journal(self.store, "lake", writer, Metrics(CollectorRegistry()), sight=sight)

    async def opened(self) -> "Rig":
        await self.journal.open(self.source.known, CONFIGURATION, durable(E, seq=-1))
        return self


async def test_a_start_stands_by_while_somebody_else_holds_it_and_follows_the_journal() -> None:
    rig = Rig()
    other = rig.another_journal("other")
    await other.open(rig.source.known, CONFIGURATION, durable(E, seq=-1))
    rig.source.refusals = [HELD, HELD]

    async with AsyncExitStack() as stack:
        taken = await rig.lease.take(stack, CONFIGURATION, decide)

    assert rig.phases == ["standby", "standby"]
    assert rig.journal.state.seq == 0
    # The first attempt knew of no journal. The last one begins where the other's is durable.
    assert [start and start.position for start in rig.source.starts] == [None, place(E), place(E)]
    assert (taken.seq, taken.fork) == (0, None)
    assert rig.source.held.acknowledged == []


async def test_a_source_that_is_away_is_tried_again_and_said_so_by_a_standby() -> None:
    rig = Rig()
    rig.source.refusals = [HELD, AWAY]

    async with AsyncExitStack() as stack:
        await rig.lease.take(stack, CONFIGURATION, decide)

    assert rig.phases == ["standby", "reconnecting"]
    assert rig.lease.failure is None


async def test_a_start_that_waits_for_days_for_its_source_opens_the_journal_all_the_same() -> None:
    rig = Rig()
    # Each attempt to connect takes seven hours.
    sight = Sight(lambda: 7 * HOUR_US * len(rig.source.starts), 12 * 3600)
    journal = rig.another_journal("late", sight)
    lease = rig.lease_of(journal)
    rig.source.refusals = [AWAY, AWAY]

    async with AsyncExitStack() as stack:
        await lease.take(stack, CONFIGURATION, decide)
        await journal.open(rig.source.known, CONFIGURATION, durable(E, seq=-1))

    assert (journal.state.seq, len(rig.source.starts)) == (0, 3)


async def test_what_is_accepted_is_not_once_somebody_wrote_while_the_source_was_away() -> None:
    rig = Rig()
    other = rig.another_journal("other")
    await other.open(rig.source.known, CONFIGURATION, durable(E, seq=-1))
    rig.source.refusals = [AWAY]
    rig.lease.accepting = Accepting(place(E - 50), "keeper", "gone")

    async with AsyncExitStack() as stack:
        await rig.lease.take(stack, CONFIGURATION, decide)

    # The last attempt begins where the other's is durable.
    assert [start and start.position for start in rig.source.starts] == [None, place(E)]
    assert rig.lease.accepting is None


async def test_what_is_compared_is_acknowledged_up_to_e_and_no_further() -> None:
    rig = await Rig().opened()

    async with AsyncExitStack() as stack:
        await rig.lease.retake(stack, CONFIGURATION, decide)

    [acknowledged] = rig.source.held.acknowledged
    assert (acknowledged.position, acknowledged.resume) == (place(E), point(E).resume)


async def test_a_source_that_was_confirmed_past_e_lost_what_lies_between() -> None:
    rig = await Rig(StillStream(confirmed=E + 10)).opened()

    async with AsyncExitStack() as stack:
        with pytest.raises(PositionLost, match="what lies between is lost") as caught:
            await rig.lease.retake(stack, CONFIGURATION, decide)

    assert point(E).resume in str(caught.value)
    assert point(E + 10).resume in str(caught.value)
    assert "its log" in caught.value.hint
    assert rig.source.held.acknowledged == []


async def test_a_successor_that_confirmed_more_supersedes_and_loses_nothing() -> None:
    rig = await Rig(StillStream(confirmed=E + 10)).opened()
    successor = rig.another_journal("second")
    await successor.load()
    await successor.open(rig.source.known, CONFIGURATION, durable(E, seq=-1))

    async with AsyncExitStack() as stack:
        with pytest.raises(Superseded):
            await rig.lease.retake(stack, CONFIGURATION, decide)


async def test_a_log_that_ends_before_e_was_restored() -> None:
    rig = await Rig(StillStream(end=E - 10)).opened()

    async with AsyncExitStack() as stack:
        with pytest.raises(PositionLost, match="restored to an earlier time"):
            await rig.lease.retake(stack, CONFIGURATION, decide)


class MovingStream(StillStream):
    """The journal becomes durable up to `durable_up_to` while it is asked how it stands."""

    def __init__(self, *, end: int, durable_up_to: int) -> None:
        super().__init__(end=end)
        self.durable_up_to = durable_up_to
        self.journal: Journal | None = None

    async def standing(self) -> Standing:
        if self.journal is not None:
            journal, self.journal = self.journal, None
            await journal.append(durable=durable(self.durable_up_to, seq=0))
        return await super().standing()


async def test_a_server_that_lags_behind_an_e_that_moves_meanwhile_is_asked_again() -> None:
    lagging = MovingStream(end=E + 5, durable_up_to=E + 10)
    rig = await Rig(lagging).opened()
    lagging.journal = rig.journal
    server = StillStream(end=E + 10)

    async with AsyncExitStack() as stack:
        rig.source.then = [server]
        stream = await rig.lease.retake(stack, CONFIGURATION, decide)

    assert stream is server
    assert [start and start.position for start in rig.source.starts] == [place(E), place(E + 10)]
    assert lagging.acknowledged == []


async def test_a_log_that_ends_before_an_e_that_moved_meanwhile_was_restored_if_it_stays_so() -> (
    None
):
    restored = MovingStream(end=E + 5, durable_up_to=E + 10)
    rig = await Rig(restored).opened()
    restored.journal = rig.journal

    async with AsyncExitStack() as stack:
        with pytest.raises(PositionLost, match="restored to an earlier time"):
            await rig.lease.retake(stack, CONFIGURATION, decide)

    assert [start and start.position for start in rig.source.starts] == [place(E), place(E + 10)]
    assert restored.acknowledged == []


async def test_another_source_is_refused() -> None:
    rig = await Rig().opened()
    rig.source.known = msgspec.structs.replace(identity(), facts={"system_identifier": "other"})

    with pytest.raises(ForeignPrefix) as caught:
        await rig.lease.identify()

    # What is the same is not told.
    text = str(caught.value)
    assert "its system identifier is '7', and here it is 'other'" in text
    assert "database" not in text
    assert "another server" in caught.value.hint


async def test_who_reads_through_something_else_is_told_what_and_nothing_more() -> None:
    rig = await Rig().opened()
    rig.source.known = msgspec.structs.replace(identity(), lease="other")

    with pytest.raises(ForeignPrefix) as caught:
        await rig.lease.identify()

    text = str(caught.value)
    assert "its pipeline reads through 'tailrace', and this one through" in text
    assert "identifier" not in text
    assert caught.value.hint.startswith("Read through 'tailrace' again")


async def test_another_database_is_told_beside_all_else_that_differs() -> None:
    rig = await Rig().opened()
    rig.source.known = msgspec.structs.replace(identity(), database="stock", lease="other")

    with pytest.raises(ForeignPrefix) as caught:
        await rig.lease.identify()

    text = str(caught.value)
    assert "its database is 'shop', and here it is 'stock'; its pipeline reads through" in text
    assert caught.value.hint == "Give every pipeline a prefix of its own."


async def test_a_fork_before_what_a_named_snapshot_saw_is_refused() -> None:
    rig = await Rig().opened()
    seen = Snapshot("public.orders", "whole", 1, place(E + 10), 1, "2026-11-28T09")
    await rig.journal.append(snapshots=(seen,))

    rig.lease.refuse_fork(place(E + 10))
    with pytest.raises(PositionLost, match="history"):
        rig.lease.refuse_fork(place(E + 9))


async def test_a_fork_before_e_is_refused_and_one_behind_it_starts_over() -> None:
    rig = await Rig().opened()
    rig.source.known = msgspec.structs.replace(identity(), branch="other")

    rig.source.fork_at = place(E - 1)
    with pytest.raises(PositionLost, match="left the journal's branch"):
        await rig.lease.identify()

    rig.source.fork_at = place(E)
    async with AsyncExitStack() as stack:
        with pytest.raises(SourceChanged):
            await rig.lease.retake(stack, CONFIGURATION, decide)


@pytest.mark.parametrize(
    ("loss", "fork"),
    [(None, place(E + 5)), ("moved", place(E + 5)), ("keeper", None), ("history", None)],
)
async def test_whoever_takes_over_learns_of_the_fork_also_where_a_loss_is_accepted(
    loss: LossKind | None, fork: str | None
) -> None:
    """But where the log is kept anew: it begins behind everything, and the fork says nothing."""
    rig = await Rig().opened()
    rig.source.known = msgspec.structs.replace(identity(), branch="other")
    rig.source.fork_at = place(E + 5)
    if loss is not None:
        rig.lease.accepting = Accepting(place(E), loss, "gone")

    async with AsyncExitStack() as stack:
        taken = await rig.lease.take(stack, CONFIGURATION, decide)

    assert taken.fork == fork


@pytest.mark.parametrize("loss", ["moved", "keeper"])
async def test_a_failover_since_a_loss_was_named_is_a_larger_loss(loss: LossKind) -> None:
    """What the new server wrote between the fork and E would be in no object and in no gap."""
    rig = await Rig().opened()
    rig.source.known = msgspec.structs.replace(identity(), branch="other")
    rig.source.fork_at = place(E - 1)
    rig.lease.accepting = Accepting(place(E), loss, "gone")

    async with AsyncExitStack() as stack:
        with pytest.raises(PositionLost, match="left the journal's branch") as caught:
            await rig.lease.take(stack, CONFIGURATION, decide)

    assert caught.value.loss == "history"
    assert rig.source.starts == []


@pytest.mark.parametrize("loss", ["moved", "keeper"])
async def test_another_server_since_a_loss_was_named_is_a_larger_loss(loss: LossKind) -> None:
    rig = await Rig().opened()
    rig.source.known = msgspec.structs.replace(identity(), facts={"system": "8"})
    rig.lease.accepting = Accepting(place(E), loss, "gone")

    with pytest.raises(ForeignPrefix) as caught:
        await rig.lease.identify()

    assert caught.value.is_elsewhere


async def test_who_accepts_another_log_is_not_compared_with_it() -> None:
    rig = await Rig().opened()
    rig.source.known = msgspec.structs.replace(identity(), branch="other", facts={"system": "8"})
    rig.source.fork_at = place(E - 1)
    rig.lease.accepting = Accepting(place(E), "history", "it is another one")

    found = await rig.lease.identify()

    assert (found.branch, found.generation) == ("other", 2)


async def test_whoever_cannot_be_held_again_is_left_and_tried_again() -> None:
    rig = await Rig().opened()
    rig.source.refusals = [HELD, AWAY]

    async with AsyncExitStack() as stack:
        stream = await rig.lease.retake(stack, CONFIGURATION, decide)
        assert stream is rig.source.held
        assert rig.source.left_count == 0

    assert len(rig.source.starts) == 3
    assert rig.source.left_count == 1
