"""Recovery: what a redo pass says of the source."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, cast

import pytest

from engine.journal import recovery
from engine.journal.entry import JournalState, Planned, Statement
from engine.journal.recovery import Recovery
from engine.model.batch import Batch, Intake, Operations
from engine.model.errors import SourceFailed
from engine.model.interfaces import ChangeStream
from engine.model.position import LogPosition, Position
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from log_points import boundary

if TYPE_CHECKING:
    from engine.journal.journal import Journal
    from engine.journal.lanes import Lanes
    from engine.journal.lease import Lease
    from engine.journal.publisher import Publisher
    from engine.journal.settings import Settings

FIRST = Position("0001.0000000000000064.0000000000000060.000000")
PLANNED = Planned(
    table="public.t",
    key="k",
    previous=Position(""),
    first=FIRST,
    last=FIRST,
    rows=1,
    ops={"c": 1},
    version=1,
    codec=1,
    raw_bytes=3,
    raw_crc32="00000000",
    hour="",
)
ROW = Batch(
    table=TableName("public", "t"),
    version=1,
    lines=b"{}\n",
    row_count=1,
    operations=Operations(1, 0, 0, 0),
    first=FIRST,
    last=FIRST,
    first_commit_us=0,
    last_commit_us=0,
)
FAILURE = SourceFailed("a value cannot be sent", code="22P05")


class Stream:
    def __init__(self, *, is_broken: bool) -> None:
        self._is_broken = is_broken

    async def receive(self) -> Intake:
        if self._is_broken:
            raise FAILURE
        return Intake((ROW,), boundary(0x65))


class LeaseDouble:
    """Gives two streams that break, then a whole one, and keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def retake(self, stack: AsyncExitStack, *_: object, **__: object) -> ChangeStream:
        return cast("ChangeStream", Stream(is_broken=self.told.count("failed") < 2))

    def failed(self, error: SourceFailed, position: LogPosition) -> None:
        self.told.append("failed")

    def caught_up(self) -> None:
        self.told.append("caught up")


class JournalDouble:
    def __init__(self) -> None:
        self.state = JournalState()


async def test_a_pass_that_was_read_ends_what_is_known_of_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recovery, "_LOST_PASS_SECONDS", 0.0)
    lease = LeaseDouble()
    redo = Recovery(
        journal=cast("Journal", JournalDouble()),
        lease=cast("Lease", lease),
        publisher=cast("Publisher", None),
        lanes=cast("Lanes", None),
        settings=cast("Settings", None),
        on_pass=lambda: lease.told.append("redo"),
    )
    configuration = RecordConfiguration(through="tailrace", tables=("public.*",))

    chunks = await redo._read([(Statement(PLANNED, 1, 1),)], configuration)

    assert [chunk.row_count for chunk in chunks] == [1]
    assert lease.told == ["failed", "failed", "caught up", "redo"]
