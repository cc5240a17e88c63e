"""Opening a journal while its last writer may still be at work."""

from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from engine.journal.entry import Writer
from engine.journal.journal import Journal
from engine.model.errors import PositionLost
from engine.model.record import RecordConfiguration
from engine.operate.metrics import Metrics
from log_points import durable, identity, place
from memory_store import MemoryStore

IDENTITY = identity()
CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))
FIRST = durable(0x64, seq=-1)
LATER = durable(0xC8, "1970-01-02T00:00:01.000000Z", seq=0)


def journal(store: MemoryStore, name: str) -> Journal:
    return Journal(store, "lake", Writer(name, name, "test"), Metrics(CollectorRegistry()))


@dataclass
class Check:
    """Refuses a journal that went further than `most`; called after so many entries."""

    journal: Journal
    most: int

    def __post_init__(self) -> None:
        self.asked_at: list[int] = []

    def __call__(self) -> None:
        self.asked_at.append(self.journal.state.seq)
        if self.journal.state.durable_position > place(self.most):
            raise PositionLost("what was planned is not in this history")


async def opened_beside_a_late_entry(most: int) -> tuple[Journal, Check]:
    """The successor has read the journal when its predecessor's last entry arrives."""
    store = MemoryStore()
    predecessor, successor = journal(store, "a"), journal(store, "b")
    await predecessor.open(IDENTITY, CONFIGURATION, FIRST)
    await successor.load()
    await predecessor.append(durable=LATER)
    check = Check(successor, most)
    return successor, check


async def test_an_entry_that_came_late_is_checked_before_the_journal_is_ours() -> None:
    successor, check = await opened_beside_a_late_entry(most=0x64)

    with pytest.raises(PositionLost):
        await successor.open(IDENTITY, CONFIGURATION, FIRST, check=check)

    assert check.asked_at == [0, 1]
    assert successor.state.epoch == 1, "the next epoch was not opened"


async def test_an_entry_that_came_late_and_is_fine_is_absorbed() -> None:
    successor, check = await opened_beside_a_late_entry(most=0xC8)

    await successor.open(IDENTITY, CONFIGURATION, FIRST, check=check)

    assert check.asked_at == [0, 1]
    assert (successor.state.epoch, successor.state.seq) == (2, 2)
