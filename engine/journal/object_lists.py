"""Lists of staged objects that are too long for a journal entry.

Strategy: an entry is one request, so it has to stay short. A snapshot of a large table names very
many objects. From a size on they are listed in an object of their own, which is created before the
entry. The entry has its key and the SHA-256 of its bytes. Whoever needs the objects reads the list
and compares. The key holds a nonce, so an attempt that is repeated after a lost answer writes the
same bytes, and nobody else writes that key. The list of a writer that died before its entry stays
behind; nothing names it.

Invariant: a list is in the bucket before an entry names it. Nothing is done by a list whose bytes
are not those that the entry names.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence

import msgspec

from engine.journal.entry import FORMAT, ListedObjects, Snapshot
from engine.journal.retry import Patience
from engine.model.errors import JournalError, NewerFormat
from engine.model.interfaces import ObjectStore
from engine.model.layout import list_key
from engine.model.schema import TableName
from engine.model.staged_object import StagedObject

LIST_BYTES_MIN = 256 * 1024
"""From so many bytes of JSON on, an attempt's objects are listed apart from its entry."""

# From so many objects on, their JSON takes longer than handing them to a thread: 4 us an object.
_THREAD_OBJECTS = 1000
_JSON = "application/json"
_HINT = (
    "Restore it from the bucket's versions: it is needed until the snapshot's objects are visible."
)


class _Format(msgspec.Struct):
    format: int


class _List(msgspec.Struct, frozen=True):
    format: int
    table: str
    attempt: int
    objects: tuple[StagedObject, ...]


class ObjectLists:
    """The lists under one prefix. `make_nonce` gives hexadecimal digits, never the same twice."""

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        patience: Patience,
        make_nonce: Callable[[], str],
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._patience = patience
        self._make_nonce = make_nonce

    async def put(
        self, table: TableName, attempt: int, objects: Sequence[StagedObject]
    ) -> ListedObjects | None:
        """List the objects of an attempt where they are too many for an entry; else None.

        Waits for as long as the bucket does not answer. Cancellation leaves the request in doubt:
        there may be a list that nothing names.
        """
        listing = _List(FORMAT, str(table), attempt, tuple(objects))
        content, sha256 = (
            await asyncio.to_thread(_encoded, listing)
            if len(objects) >= _THREAD_OBJECTS
            else _encoded(listing)
        )
        if len(content) < LIST_BYTES_MIN:
            return None
        key = list_key(self._prefix, table, attempt, self._make_nonce())
        # A key that is taken is ours: an earlier request was applied, and its answer was lost.
        await self._patience.answered(
            lambda: self._store.create(key, content, content_type=_JSON, metadata={})
        )
        return ListedObjects(key, sha256, len(objects))

    async def objects_of(self, snapshot: Snapshot) -> tuple[StagedObject, ...]:
        """The objects that a whole attempt names, wherever they are listed.

        Raises JournalError where the list is not there or is another one. Cancellation changes
        nothing.
        """
        listed = snapshot.listed
        if listed is None:
            return snapshot.objects
        content = await self._patience.answered(lambda: self._store.get(listed.key))
        if content is None:
            text = f"{listed.key} is not there, and a journal entry names it"
            raise JournalError(text, hint=_HINT)
        if listed.count >= _THREAD_OBJECTS:
            return await asyncio.to_thread(listed_objects, snapshot, content)
        return listed_objects(snapshot, content)

    async def uploads_of(self, attempts: Sequence[Snapshot]) -> frozenset[str]:
        """The uploads that these whole attempts name. Errors and cancellation as `objects_of`."""
        found: set[str] = set()
        for snapshot in attempts:
            found.update(staged.upload_id for staged in await self.objects_of(snapshot))
        return frozenset(found)


def _encoded(listing: _List) -> tuple[bytes, str]:
    content = msgspec.json.encode(listing)
    return content, hashlib.sha256(content).hexdigest()


def listed_objects(snapshot: Snapshot, content: bytes) -> tuple[StagedObject, ...]:
    """The objects in the list that `snapshot` names, whose bytes are `content`.

    Raises JournalError where it is another list than that, NewerFormat.
    """
    listed = snapshot.listed
    assert listed is not None
    if hashlib.sha256(content).hexdigest() != listed.sha256:
        text = f"{listed.key} is another list than a journal entry names"
        raise JournalError(text, hint=_HINT)
    try:
        written = msgspec.json.decode(content, type=_Format).format
        if written > FORMAT:
            raise NewerFormat(
                f"{listed.key} has format {written}, this engine reads up to {FORMAT}",
                hint="A newer release has written here: run that release or a newer one.",
            )
        listing = msgspec.json.decode(content, type=_List)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JournalError(f"{listed.key} is no list of objects: {error}") from error
    whose = (listing.table, listing.attempt, len(listing.objects))
    if whose != (snapshot.table, snapshot.attempt, listed.count):
        raise JournalError(
            f"{listed.key} lists {whose[2]} objects of attempt {whose[1]} of {whose[0]}, the"
            f" journal names {listed.count} of attempt {snapshot.attempt} of {snapshot.table}"
        )
    return listing.objects
