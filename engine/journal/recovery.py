"""Recovery: planned objects that are not visible are made again from the source's log.

Strategy: after `open`, every object planned behind durable's entry is looked up. While any is
missing, the stream runs in passes from E, under the record configuration of the epoch that first
planned the oldest one, for as many objects as memory allows, until everything up to the highest
planned position has been read. Rows, versions and positions follow from the log, so whoever makes
an object makes the same.

Invariant: a pass appends no `durable` and what it reads beyond its objects counts as nothing.
Objects of a table become visible in order.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import msgspec
import structlog

from engine.flow.chunk import (
    PIECE_BYTES_MAX,
    ChunkBuilder,
    SealedChunk,
    crc32_text,
    empty_body,
)
from engine.journal.entry import Planned, Statement
from engine.journal.journal import Journal
from engine.journal.lanes import Lanes
from engine.journal.lease import Lease
from engine.journal.publisher import PlannedPut, Publisher
from engine.journal.settings import Settings
from engine.model.batch import Batch, Intake
from engine.model.errors import JournalError, SourceUnavailable
from engine.model.interfaces import ChangeStream
from engine.model.layout import TableLayout
from engine.model.plural import counted
from engine.model.position import Position, commit_of
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableName, TableVersion

_LOOKUPS_AT_ONCE = 16
# Some 700 bytes each: an entry is one request, never parts.
_RESTATED_AN_ENTRY = 2_000
# An estimate: isal gave a sixth where it was measured, and the raw bytes are bounded beside it.
_COMPRESSED_SHARE = 4

# A proxy without a server behind it breaks every connection at once.
_LOST_PASS_SECONDS = 0.5

Plan = tuple[Statement, ...]

_log = structlog.get_logger(__name__)


class Recovery:
    """Finds and makes again what a predecessor planned and did not publish."""

    def __init__(
        self,
        *,
        journal: Journal,
        lease: Lease,
        publisher: Publisher,
        lanes: Lanes,
        settings: Settings,
        on_pass: Callable[[], None],
    ) -> None:
        """`on_pass` is called when a pass was read: the source gave what it was asked for."""
        self._on_pass = on_pass
        self._journal = journal
        self._lease = lease
        self._publisher = publisher
        self._lanes = lanes
        self._settings = settings

    async def missing(self) -> list[Plan]:
        """The plans whose objects are not there and never were, oldest first.

        Raises JournalError when another object is under a planned key, Superseded when a successor
        restated it. Cancellation changes nothing.
        """
        plans = sorted(self._journal.state.plans.values(), key=_plan_order)
        missing: list[Plan] = []
        for begin in range(0, len(plans), _LOOKUPS_AT_ONCE):
            some = plans[begin : begin + _LOOKUPS_AT_ONCE]
            async with asyncio.TaskGroup() as group:
                looks = [
                    group.create_task(self._publisher.is_there(plan[0].planned.key))
                    for plan in some
                ]
            missing += [plan for plan, look in zip(some, looks, strict=True) if not look.result()]
        return [plan for plan in missing if not self._was_visible(plan)]

    def _was_visible(self, plan: Plan) -> bool:
        """Whether E says that the object was there: a rule of the bucket took it away.

        Other tables may hold back the entry up to which all objects exist, and not E. The log need
        not have the rows any more.
        """
        return plan[0].planned.first < self._journal.state.durable_position

    async def redo(self, missing: list[Plan]) -> None:
        """Make each of `missing` visible. Raises JournalError where the log gives other rows.

        Cancellation leaves some of them visible, and some to whoever redoes next.
        """
        while missing:
            configuration = self._configuration_of(missing[0])
            chosen = self._choose(missing, configuration)
            _log.info("redo pass", objects=len(chosen), missing=len(missing))
            chunks = await self._read(chosen, configuration)
            await self._publish(chosen, chunks, configuration)
            missing = missing[len(chosen) :]

    async def void(self, missing: list[Plan], now_us: int) -> None:
        """Make each of `missing` visible with no row in it: the log does not have them any more.

        It is stated before. An object that is there by now is as one of its plan's statements says.
        Raises Superseded, JournalError. Cancellation leaves some of them visible, and some to
        whoever goes on.
        """
        voided = [self._void_statement(plan) for plan in missing]
        stated = tuple(planned for planned, is_new in voided if is_new)
        await self._restate(stated)
        for plan, (planned, _) in zip(missing, voided, strict=True):
            configuration = self._configuration_of(plan)
            body = empty_body(configuration.compression)
            layout = self._layout(configuration)
            self._publisher.publish(PlannedPut(planned, plan[0].seq, body, now_us, layout))
        await self._lanes.idle()

    def _void_statement(self, plan: Plan) -> tuple[Planned, bool]:
        """The plan's statement of no rows, and whether it has to be journalled first."""
        for statement in plan:
            if statement.planned.is_void:
                return statement.planned, False
        return msgspec.structs.replace(
            plan[0].planned,
            rows=0,
            ops={},
            codec=self._settings.codec_version,
            raw_bytes=0,
            raw_crc32=crc32_text(0),
        ), True

    def _configuration_of(self, plan: Plan) -> RecordConfiguration:
        return self._journal.state.configurations[plan[0].epoch]

    def _choose(self, missing: list[Plan], configuration: RecordConfiguration) -> list[Plan]:
        """The oldest of one configuration, as many as half of the memory holds; at least one."""
        chosen: list[Plan] = []
        held = raw = 0
        limit = self._settings.memory_bytes_max
        for plan in missing:
            held += _held_bytes(plan[0].planned)
            # Lines that do not compress (base64) are held as they are.
            raw += plan[0].planned.raw_bytes
            is_too_much = chosen and (held > limit // 2 or raw > limit)
            if is_too_much or self._configuration_of(plan) != configuration:
                break
            chosen.append(plan)
        return chosen

    async def _read(
        self, chosen: Sequence[Plan], configuration: RecordConfiguration
    ) -> list[SealedChunk]:
        while True:
            replay = _Replay([plan[0].planned for plan in chosen], configuration, self._journal)
            async with AsyncExitStack() as stack:
                stream = await self._lease.retake(
                    stack, configuration, replay.decide, single_rows=True
                )
                try:
                    await replay.read(stream)
                except SourceUnavailable as error:
                    _log.warning("redo pass starts again", error=str(error))
                    self._lease.failed(error)
            if replay.is_complete:
                # Whatever failed before, at any place of the pass, was read now.
                self._lease.caught_up()
                self._on_pass()
                return replay.chunks()
            await asyncio.sleep(_LOST_PASS_SECONDS)

    async def _publish(
        self,
        chosen: Sequence[Plan],
        chunks: Sequence[SealedChunk],
        configuration: RecordConfiguration,
    ) -> None:
        layout = self._layout(configuration)
        statements = [
            self._statement(plan, chunk) for plan, chunk in zip(chosen, chunks, strict=True)
        ]
        restated = tuple(planned for planned, is_new in statements if is_new)
        await self._restate(restated)
        for plan, chunk, (planned, _) in zip(chosen, chunks, statements, strict=True):
            self._publisher.publish(
                PlannedPut(planned, plan[0].seq, chunk.body.whole(), chunk.last_commit_us, layout)
            )
        await self._lanes.idle()

    def _layout(self, configuration: RecordConfiguration) -> TableLayout:
        source = self._journal.state.source
        assert source is not None
        return TableLayout(self._settings.prefix, source.database, configuration.layout)

    async def _restate(self, restated: tuple[Planned, ...]) -> None:
        for begin in range(0, len(restated), _RESTATED_AN_ENTRY):
            await self._journal.append(planned=restated[begin : begin + _RESTATED_AN_ENTRY])

    def _statement(self, plan: Plan, chunk: SealedChunk) -> tuple[Planned, bool]:
        """The plan's statement for our codec, and whether it has to be journalled first."""
        first = plan[0].planned
        if chunk.row_count != first.rows:
            raise JournalError(
                f"{first.key} was planned with {counted(first.rows, 'row')}, the log gives "
                f"{chunk.row_count}",
                hint="What the source sends of the table changed behind our back.",
            )
        codec, raw_crc32 = self._settings.codec_version, crc32_text(chunk.raw_crc32)
        for statement in plan:
            planned = statement.planned
            if planned.codec == codec:
                if (planned.raw_bytes, planned.raw_crc32) == (chunk.raw_bytes, raw_crc32):
                    return planned, False
                raise JournalError(
                    f"{first.key} was planned with other lines than the log gives now",
                    hint="The source's catalog changed, or a setting that shapes values.",
                )
        planned = msgspec.structs.replace(
            first, codec=codec, raw_bytes=chunk.raw_bytes, raw_crc32=raw_crc32
        )
        return planned, True


class _Replay:
    """One pass's reading: rows of the chosen plans into chunks, everything else ignored."""

    def __init__(
        self, plans: Sequence[Planned], configuration: RecordConfiguration, journal: Journal
    ) -> None:
        self.is_complete = False
        self._plans = plans
        self._configuration = configuration
        self._builders: dict[str, ChunkBuilder] = {}
        self._last_commit = commit_of(max(plan.last for plan in plans))
        self._of_table: dict[TableName, list[Planned]] = {}
        for plan in plans:
            self._of_table.setdefault(plan.table_name, []).append(plan)
        self._versions: dict[tuple[TableName, int], TableVersion] = {
            (table, version.number): version
            for table in self._of_table
            for version in journal.state.versions_of(table)
        }

    def decide(self, relation: Relation, position: Position) -> TableVersion | None:
        plan = self._plan_at(relation.table, position)
        return self._version_of(plan, relation) if plan is not None else None

    def _version_of(self, plan: Planned, relation: Relation) -> TableVersion:
        version = self._versions[relation.table, plan.version]
        # By name and position alone, rows of another table of that name would be taken for its.
        if version.relation.shape != relation.shape:
            raise JournalError(
                f"{plan.key} was planned under version {plan.version} of the table, the log shows"
                " another table or other columns at its positions",
                hint="What the source keeps for us was moved, or its history is another one now.",
            )
        return version

    def _plan_at(self, table: TableName, position: Position) -> Planned | None:
        plans = self._of_table.get(table, ())
        return next((plan for plan in plans if plan.first <= position <= plan.last), None)

    async def read(self, stream: ChangeStream) -> None:
        """Read until the pass is complete. Raises SourceUnavailable when the connection is lost."""
        while not self.is_complete:
            # No intake is kept while the next one is waited for: it may be large.
            self._take_all(await stream.receive())

    def _take_all(self, intake: Intake) -> None:
        for batch in intake.batches:
            self._take(batch)
        if intake.boundary is not None:
            self.is_complete = intake.boundary.position > self._last_commit

    def _take(self, batch: Batch) -> None:
        plan = self._plan_at(batch.table, batch.first)
        if plan is None:
            return
        builder = self._builders.get(plan.key)
        if builder is None:
            self._builders[plan.key] = ChunkBuilder(batch, self._configuration.compression, 0.0)
        else:
            builder.add(batch)

    def chunks(self) -> list[SealedChunk]:
        return [self._chunk(plan) for plan in self._plans]

    def _chunk(self, plan: Planned) -> SealedChunk:
        builder = self._builders.pop(plan.key, None)
        if builder is None:
            raise JournalError(
                f"{plan.key} was planned with {counted(plan.rows, 'row')}, the log gives none",
                hint="The source no longer publishes the table, or what it keeps for us was moved.",
            )
        return builder.seal("drain")


def _held_bytes(planned: Planned) -> int:
    """What a chunk of that plan holds while it is made again: a piece that is raw, and the rest."""
    return min(planned.raw_bytes, PIECE_BYTES_MAX) + planned.raw_bytes // _COMPRESSED_SHARE


def _plan_order(plan: Plan) -> tuple[int, str, Position]:
    return (plan[0].seq, plan[0].planned.table, plan[0].planned.first)
