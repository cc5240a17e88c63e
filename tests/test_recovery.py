"""Recovery alone: which objects are missing, what is made again, and what the log must not say."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from engine.flow.chunk import ChunkLimits
from engine.journal import recovery
from engine.journal.entry import JournalState, Planned, Statement
from engine.journal.lanes import Lanes
from engine.journal.recovery import Recovery
from engine.journal.settings import Settings
from engine.model.batch import Batch, Intake, Operations
from engine.model.errors import JournalError, SourceFailed
from engine.model.interfaces import ChangeStream
from engine.model.position import Position
from engine.model.record import RecordConfiguration
from engine.model.schema import Decide, Relation, TableName, TableVersion
from log_points import BEGIN_TIME, boundary, durable
from memory_store import MemoryStore
from publishing import publisher_of
from small_bucket import ORDERS, Piece, SmallBucket, decompressed

if TYPE_CHECKING:
    from engine.journal.journal import Journal
    from engine.journal.lease import Lease
    from engine.journal.publisher import Publisher

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

    def failed(self, error: SourceFailed) -> None:
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


class RecordedBucket(SmallBucket):
    """Keeps the batches that its pieces were made of: the source's log."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        super().__init__(store)
        self.log: list[Batch] = []

    def batches(self, table: TableName, ops: str) -> Iterable[Batch]:
        made = list(super().batches(table, ops))
        self.log += made
        return made


class Log:
    """A lease whose stream gives the whole log again, to whoever wants its rows."""

    def __init__(self, bucket: RecordedBucket, relation: Relation) -> None:
        self._bucket = bucket
        self._relation = relation
        self.passes: list[RecordConfiguration] = []
        self.wanted: list[TableVersion | None] = []

    async def retake(
        self,
        stack: AsyncExitStack,
        configuration: RecordConfiguration,
        decide: Decide,
        *,
        single_rows: bool,
    ) -> ChangeStream:
        assert single_rows
        self.passes.append(configuration)
        self.wanted = [decide(self._relation, batch.first) for batch in self._bucket.log]
        wanted = zip(self._bucket.log, self.wanted, strict=True)
        rows = tuple(batch for batch, version in wanted if version is not None)
        return cast("ChangeStream", Whole(Intake(rows, boundary(1 << 40))))

    def caught_up(self) -> None:
        pass


class Whole:
    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def receive(self) -> Intake:
        return self._intake


class Rig:
    """What a first writer planned and did not publish, and a second writer that has to."""

    def __init__(self) -> None:
        self.bucket = RecordedBucket()
        self.pieces: list[Piece] = []
        self.memory_bytes_max = 1 << 20
        self.codec = 1

    async def planned(self, *ops: str) -> "Rig":
        bucket = self.bucket
        await bucket.take_over("writer-1")
        version = bucket.version(ORDERS)
        self.pieces = [bucket.piece(ORDERS, each) for each in ops]
        plans = tuple(piece.planned for piece in self.pieces)
        await bucket.journal.append(schemas=(version,), planned=plans)
        self.log = Log(bucket, version.relation)
        await bucket.take_over("writer-2")
        return self

    async def redo(self) -> list[str]:
        """Make again whatever is missing; the keys that were."""
        journal, store = self.bucket.journal, self.bucket.store
        async with asyncio.TaskGroup() as group:
            lanes = Lanes(group, 4)
            redoing = Recovery(
                journal=journal,
                lease=cast("Lease", self.log),
                publisher=publisher_of(store, journal, lanes),
                lanes=lanes,
                settings=self._settings(),
                on_pass=lambda: None,
            )
            missing = await redoing.missing()
            await redoing.redo(missing)
        return [plan[0].planned.key for plan in missing]

    def _settings(self) -> Settings:
        return Settings(
            bucket="lake",
            prefix=self.bucket.prefix,
            codec_version=self.codec,
            limits=ChunkLimits(1 << 20, 1_000, 1.0),
            queue_bytes_max=1 << 20,
            memory_bytes_max=self.memory_bytes_max,
            concurrency=4,
            append_interval=0.001,
            drain_seconds=1.0,
            stream_waits=False,
        )

    def lines(self, number: int) -> bytes:
        key = self.pieces[number].planned.key
        return decompressed(self.bucket.store.objects[key].body, key)


async def test_only_what_is_missing_is_made_again_with_the_lines_that_were_planned() -> None:
    rig = await Rig().planned("ccc", "cu", "d")
    await rig.bucket.publish(rig.pieces[1])
    before = dict(rig.bucket.store.objects)

    redone = await rig.redo()

    assert redone == [rig.pieces[0].planned.key, rig.pieces[2].planned.key]
    assert rig.lines(0) == decompressed(rig.pieces[0].body, redone[0])
    assert rig.lines(2) == decompressed(rig.pieces[2].body, redone[1])
    # Rows of the object that is there, and whatever lies beyond, are nobody's in a pass.
    assert [version is not None for version in rig.log.wanted] == [*[True] * 3, *[False] * 2, True]
    assert {key: rig.bucket.store.objects[key] for key in before} == before
    assert rig.bucket.journal.state.durable_seq == -1


async def test_where_everything_is_there_nothing_is_read() -> None:
    rig = await Rig().planned("c", "c")
    for piece in rig.pieces:
        await rig.bucket.publish(piece)

    assert await rig.redo() == []
    assert rig.log.passes == []


async def test_an_object_in_front_of_e_that_is_gone_has_expired_and_is_not_made_again() -> None:
    rig = await Rig().planned("ccc", "cu", "d")
    behind_one = durable(rig.bucket.commit - 0x300 + 0x10, BEGIN_TIME, seq=-1)
    await rig.bucket.journal.append(durable=behind_one)
    # Another table held back the entry up to which everything is there.
    assert rig.pieces[0].planned.last < behind_one.position < rig.pieces[1].planned.first
    assert len(rig.bucket.journal.state.plans) == 3

    redone = await rig.redo()

    assert redone == [piece.planned.key for piece in rig.pieces[1:]]


async def test_a_pass_makes_as_many_objects_as_the_memory_holds() -> None:
    rig = await Rig().planned("cc", "cc", "cc")
    rig.memory_bytes_max = 2 * rig.pieces[0].planned.raw_bytes

    await rig.redo()

    assert len(rig.log.passes) == 3
    assert all(piece.planned.key in rig.bucket.store.objects for piece in rig.pieces)


async def test_a_plan_is_made_again_under_the_configuration_of_its_epoch() -> None:
    rig = await Rig().planned("c")
    first = rig.bucket.configuration
    rig.bucket.configuration = msgspec.structs.replace(first, compression="zstd", layout="plain")
    await rig.bucket.take_over("writer-3")
    later = rig.bucket.piece(ORDERS, "c")
    await rig.bucket.journal.append(planned=(later.planned,))
    await rig.bucket.take_over("writer-4")

    await rig.redo()

    assert rig.log.passes == [first, rig.bucket.configuration]


async def test_another_codec_states_the_plan_again_before_the_object_is_there() -> None:
    rig = await Rig().planned("cc")
    rig.codec = 7

    await rig.redo()

    key = rig.pieces[0].planned.key
    codecs = [stated.planned.codec for stated in rig.bucket.journal.state.plans[key]]
    assert codecs == [1, 7]
    assert rig.bucket.store.objects[key].metadata["codec"] == "7"


async def test_another_number_of_rows_is_a_named_error() -> None:
    rig = await Rig().planned("ccc")
    del rig.bucket.log[1]

    with pytest.RaisesGroup(pytest.RaisesExc(JournalError, match="3 rows, the log gives 2")):
        await rig.redo()

    assert rig.pieces[0].planned.key not in rig.bucket.store.objects


async def test_no_rows_at_all_are_a_named_error() -> None:
    rig = await Rig().planned("c")
    rig.bucket.log.clear()

    with pytest.RaisesGroup(pytest.RaisesExc(JournalError, match="the log gives none")):
        await rig.redo()


async def test_other_lines_of_the_same_codec_are_a_named_error() -> None:
    rig = await Rig().planned("c")
    rig.bucket.log[0] = msgspec.structs.replace(rig.bucket.log[0], lines=b'{"id":8}\n')

    with pytest.RaisesGroup(pytest.RaisesExc(JournalError, match="other lines than the log")):
        await rig.redo()


async def test_another_table_at_the_planned_positions_is_a_named_error() -> None:
    rig = await Rig().planned("c")
    relation = rig.log._relation
    rig.log._relation = msgspec.structs.replace(relation, identity="another")

    with pytest.RaisesGroup(pytest.RaisesExc(JournalError, match="another\\s+table")):
        await rig.redo()
