"""The prefix: what has to be so before anything is made for it.

Strategy: these questions are asked at each start, before anything is made in the source, because a
source that nobody reads retains its log.

- Objects may be created, and are not overwritten.
- A prefix with tables' objects and without a journal has lost its journal.
- A prefix inside another pipeline's, or around one, is refused while it is still empty.

Invariant: nothing is written but one object under `_tailrace/check/`, and that only once.
"""

import asyncio
from collections.abc import AsyncIterator

from engine.journal.reading import JournalReader
from engine.journal.retry import Failure, OnFailure, Patience
from engine.model.errors import DestinationRefused, ForeignPrefix, JournalError
from engine.model.interfaces import ObjectStore
from engine.model.layout import (
    TableLayout,
    below,
    check_folder,
    entry_seq,
    journal_folder,
    own_folder,
    prefix_of,
)

# The proof has the content type of tables' objects, because only those take the storage class.
_RECORDS = "application/x-ndjson"
_PROOF = b"tailrace check\n"
# Keys of one page are enough: whoever wrote here before wrote more than one object, and ours come
# first in a folder.
_KEYS_LOOKED_AT = 1000
_FOLDERS_LOOKED_AT = 32


class Prefix:
    """One prefix of a bucket, as a start looks at it. `on_failure`: told of failed attempts."""

    def __init__(self, store: ObjectStore, prefix: str, on_failure: OnFailure) -> None:
        self._store = store
        self._prefix = prefix
        self._patience = Patience(on_failure)
        self._reader = JournalReader(store, prefix, self._patience.answered)

    @property
    def latest_failure(self) -> Failure | None:
        """The newest failure that a request to the prefix had."""
        return self._patience.latest

    async def prove_write(self, name: str) -> None:
        """Create one object of that name, as tables' objects are made. Raises DestinationRefused.

        A key that is taken proves the right too, and that nothing is overwritten. Where objects are
        made otherwise (another key, class or tag), `name` has to be another one. Cancellation
        leaves in doubt whether the object is there, which does no harm.
        """
        key = check_folder(self._prefix) + name
        if await self._create(key) and await self._create(key):
            raise DestinationRefused(
                f"the store created {key} twice: it ignores If-None-Match",
                hint="Exactly once needs conditional writes: use a store that has them.",
            )

    async def prove_read(self, name: str) -> None:
        """Read the object that `prove_write` made. Raises DestinationRefused.

        Cancellation changes nothing.
        """
        key = check_folder(self._prefix) + name
        if await self._patience.answered(lambda: self._store.get(key)) is None:
            raise DestinationRefused(
                f"the store does not find {key}, which it has",
                hint="Exactly once needs a store that gives what was written before.",
            )

    async def _create(self, key: str) -> bool:
        return await self._patience.answered(
            lambda: self._store.create(
                key, _PROOF, content_type=_RECORDS, metadata={}, in_one_request=True
            )
        )

    async def refuse_orphans(self, database: str) -> None:
        """Raise JournalError where tables' objects are there, and so a journal was.

        Cancellation changes nothing.
        """
        plain = TableLayout(self._prefix, database, "plain").database_folder()
        for folder in (f"{below(self._prefix)}database=", plain):
            key = await self._first_of_ours(folder)
            if key is not None:
                raise JournalError(
                    f"there are tables' objects under {self._prefix or '/'}, {key} for one, and "
                    "no journal that names them",
                    hint=f"The journal was deleted, or has expired: restore "
                    f"{own_folder(self._prefix)} from the bucket's versions, or give the pipeline "
                    "a new prefix.",
                )

    async def _first_of_ours(self, folder: str) -> str | None:
        async for key in self._few(folder):
            if prefix_of(key) == self._prefix:
                return key
        return None

    async def neighbours(self) -> tuple[str, ...]:
        """Other pipelines' prefixes that this one lies in, and those directly inside it.

        Found as far as the role may list, and among the first folders only. Cancellation changes
        nothing.
        """
        others = [*_parents(self._prefix), *await self._children()]
        async with asyncio.TaskGroup() as group:
            looks = [group.create_task(self._is_pipeline(other)) for other in others]
        return tuple(other for other, look in zip(others, looks, strict=True) if look.result())

    async def refuse_neighbours(self) -> None:
        """Raise ForeignPrefix where another pipeline's prefix holds this one, or lies in it.

        Cancellation changes nothing.
        """
        found = await self.neighbours()
        if found:
            raise ForeignPrefix(self.neighbour_text(found[0]), hint=NEIGHBOUR_HINT)

    def neighbour_text(self, other: str) -> str:
        """What is wrong with that neighbour, in words."""
        is_around = self._prefix.startswith(below(other))
        where = "lies inside" if is_around else "is around"
        return (
            f"the prefix {self._prefix!r} {where} {other!r}, which is another pipeline's: "
            "its journal is there"
        )

    async def _is_pipeline(self, prefix: str) -> bool:
        try:
            async for key in self._few(journal_folder(prefix)):
                if entry_seq(prefix, key) is not None:
                    return True
        except DestinationRefused:
            # This role may list only its own prefix. What it cannot see it cannot judge.
            pass
        return False

    async def _few(self, folder: str) -> AsyncIterator[str]:
        count = 0
        async for key in self._reader.keys(folder):
            yield key
            count += 1
            if count == _KEYS_LOOKED_AT:
                return

    async def _children(self) -> list[str]:
        try:
            folders = await self._patience.answered(
                lambda: self._store.folders(below(self._prefix))
            )
        except DestinationRefused:
            return []
        others = [
            folder.rstrip("/")
            for folder in folders
            if folder != own_folder(self._prefix)
            and not folder.startswith(f"{below(self._prefix)}database=")
        ]
        return others[:_FOLDERS_LOOKED_AT]


NEIGHBOUR_HINT = (
    "Give every pipeline a prefix of its own, neither inside another one's nor around it."
)


def _parents(prefix: str) -> list[str]:
    """The prefixes that `prefix` lies in, the outermost first."""
    parts = prefix.split("/") if prefix else []
    return ["/".join(parts[:count]) for count in range(len(parts))]
