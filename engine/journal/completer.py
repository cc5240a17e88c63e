"""The completer: staged objects that the journal names become visible, or their attempt is void.

Strategy: once an entry names an attempt as whole, each of its uploads is completed, create-only,
lane by lane. A completion is asked for again until there is an answer. The lane of range 0 comes
last: its first record says that everything before it is superseded, so whoever sees that record
sees the rest. Where the stream waits for the initial snapshot, a loader may go by names alone.
There a table's objects become visible one after the other, in the order of their names. A
completion's answer may be lost. So an upload that is gone proves nothing by itself: the object is
looked for then.

Invariant: no upload is completed before the entry that names it is in the journal. An attempt is
void only where an upload is gone and its object is not there.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from engine.journal.entry import Snapshot
from engine.journal.journal import Journal
from engine.journal.lanes import Done, Lanes
from engine.journal.object_lists import ObjectLists
from engine.journal.retry import Patience
from engine.journal.schema_files import SchemaFiles
from engine.journal.snapshots import SnapshotRegister
from engine.journal.uploads import abort_attempt
from engine.model.errors import DestinationUnavailable, JournalError, Superseded
from engine.model.interfaces import ObjectStore
from engine.model.lane import Lane
from engine.model.layout import TableLayout
from engine.model.position import snapshot_segment
from engine.model.staged_object import StagedObject, is_staged_as
from engine.model.staging import Completion

REFUSALS_MAX = 20
"""How often the store may ask for the parts again. After that the upload is given up."""

# The store will not make the object of this upload, however often it is asked.
_LASTING_CODES = frozenset({"ConditionalRequestConflict", "InvalidPart", "BadDigest"})

_log = structlog.get_logger(__name__)


class Completer:
    """Completes what the journal names as whole. Its tasks live in `group`."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        journal: Journal,
        register: SnapshotRegister,
        lanes: Lanes,
        schema_files: SchemaFiles,
        lists: ObjectLists,
        patience: Patience,
        prefix: str,
        group: asyncio.TaskGroup,
    ) -> None:
        self._store = store
        self._journal = journal
        self._register = register
        self._lanes = lanes
        self._schema_files = schema_files
        self._lists = lists
        self._patience = patience
        self._prefix = prefix
        self._group = group
        self._under_way = 0

    @property
    def is_idle(self) -> bool:
        """Whether every attempt that was given is visible or void."""
        return not self._under_way

    def resume(self) -> None:
        """Go on with every attempt that the journal names and whose objects may be missing."""
        for stated in self._journal.state.snapshots.values():
            if stated.snapshot.state == "whole" and not stated.is_visible:
                self.complete(stated.snapshot, stated.seq, stated.epoch)

    def complete(self, snapshot: Snapshot, seq: int, epoch: int) -> None:
        """Make visible what entry `seq` of `epoch` names as whole. Never waits."""
        self._under_way += 1
        self._group.create_task(self._complete(_Completion(snapshot, seq, epoch)))

    async def _complete(self, attempt: "_Completion") -> None:
        snapshot, layout = attempt.snapshot, self._layout(attempt.epoch)
        await self._schema_files.ensure(snapshot.table_name, snapshot.version, layout)
        objects = await self._lists.objects_of(snapshot)
        if await self._all_in_turn(attempt, objects):
            self._register.visible(snapshot)
            if not snapshot.rest:
                _log.info("snapshot finished", table=snapshot.table, attempt=snapshot.attempt)
        else:
            _log.warning("snapshot attempt void", table=snapshot.table, attempt=snapshot.attempt)
            self._register.void(snapshot)
        self._under_way -= 1
        await self._abort_rest(snapshot, layout.table_folder(snapshot.table_name))

    async def _abort_rest(self, snapshot: Snapshot, folder: str) -> None:
        """Throw away what other workers staged of the attempt, and what cannot become visible."""
        try:
            await abort_attempt(
                self._store,
                folder,
                snapshot_segment(snapshot.point, snapshot.attempt, snapshot.segment),
            )
        except DestinationUnavailable as error:
            # It costs storage, nothing else; the next engine's start tries again.
            _log.warning("uploads not aborted", table=snapshot.table, error=str(error))

    def _layout(self, epoch: int) -> TableLayout:
        state = self._journal.state
        assert state.source is not None
        layout = state.configurations[epoch].layout
        return TableLayout(self._prefix, state.source.database, layout)

    async def _all_in_turn(self, attempt: "_Completion", objects: Sequence[StagedObject]) -> bool:
        """Whether all of `objects` became visible, each in its turn."""
        if self._register.is_stream_waiting:
            for staged in sorted(objects, key=lambda staged: staged.key):
                if not await self._all_visible(attempt, (staged,)):
                    return False
            return True
        marker = [staged for staged in objects if staged.range_number == 0]
        rows = [staged for staged in objects if staged.range_number != 0]
        return await self._all_visible(attempt, rows) and await self._all_visible(attempt, marker)

    async def _all_visible(self, attempt: "_Completion", objects: Sequence[StagedObject]) -> bool:
        """Whether all of `objects` became visible; the lanes beside each other."""
        done = asyncio.Event()
        waiting = len(objects)

        def one_done() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                done.set()

        for staged in objects:
            self._submit(attempt, staged, one_done)
        if objects:
            await done.wait()
        return not attempt.is_void

    def _submit(self, attempt: "_Completion", staged: StagedObject, done: Done) -> None:
        snapshot = attempt.snapshot
        lane = Lane(snapshot.table_name, snapshot.attempt, staged.range_number)
        self._lanes.submit(lane, attempt.seq, lambda: self._make_visible(attempt, staged), done)

    async def _make_visible(self, attempt: "_Completion", staged: StagedObject) -> None:
        if attempt.is_void:
            return
        answer = await self._patience.answered(_Asking(self._store, staged).ask)
        if answer is Completion.CREATED or await self._is_there(attempt.snapshot, staged):
            return
        attempt.is_void = True

    async def _is_there(self, snapshot: Snapshot, staged: StagedObject) -> bool:
        """Whether the object is there, made of this very upload.

        Raises Superseded where a successor may have named another one, JournalError where a
        stranger wrote it.
        """
        head = await self._patience.answered(lambda: self._store.head(staged.key))
        if head is None:
            return False
        if head.size == staged.size_bytes and is_staged_as(
            head.metadata, staged, version=snapshot.version, attempt=snapshot.attempt
        ):
            return True
        if await self._journal.tail_moved():
            raise Superseded(f"{staged.key} was staged by another writer")
        raise JournalError(
            f"{staged.key} holds another object than the journal names",
            hint="Something else writes under this prefix: give it a prefix of its own.",
        )


@dataclass(slots=True)
class _Completion:
    """One attempt on its way to being visible."""

    snapshot: Snapshot
    seq: int
    epoch: int
    is_void: bool = False


class _Asking:
    """One upload's completion, asked for until the store will or finally will not."""

    def __init__(self, store: ObjectStore, staged: StagedObject) -> None:
        self._store = store
        self._staged = staged
        self._refused = 0

    async def ask(self) -> Completion:
        """One attempt. Raises DestinationUnavailable without a usable answer."""
        staged = self._staged
        try:
            return await self._store.complete_upload(
                staged.key, staged.upload_id, staged.parts, crc32=staged.crc32
            )
        except DestinationUnavailable as error:
            self._refused += error.code in _LASTING_CODES
            if self._refused < REFUSALS_MAX:
                raise
        # It must not become visible later on: first it is aborted, then the object is looked for.
        await self._store.abort_upload(staged.key, staged.upload_id)
        return Completion.GONE
