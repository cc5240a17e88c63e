"""The journal: the append-only log in the bucket that orders everything.

Strategy: entry `seq` is created with If-None-Match, so an append is a compare-and-swap and all
engines agree on one history without leases or clocks. This module loads it, follows it and
appends to it; what entries mean is journal_entry's.

Invariant: `state` holds exactly the entries that are known to be in the bucket, in order. At most
one append is under way. A lost answer is asked for again with the same bytes under the same key;
a key that is taken is ours when the bytes are, else another writer's.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from engine.envelope import RecordConfiguration
from engine.errors import ForeignPrefix, JournalError, Superseded
from engine.interfaces import ObjectStore, SourceIdentity
from engine.journal_entry import (
    FORMAT,
    Durable,
    Entry,
    Gap,
    JournalState,
    Open,
    Planned,
    Writer,
    decode_entry,
    decode_state,
    encode_entry,
    encode_state,
)
from engine.layout import journal_folder, journal_key, seq_of, state_folder, state_key
from engine.retry import Failure, Patience
from engine.schema import TableVersion

STATE_INTERVAL = 500
_READS_AT_ONCE = 16
_JSON = "application/json"
_GZIP = "application/gzip"


class JournalObserver(Protocol):
    """Who is told of appends and failed requests (the metrics)."""

    def journal_entry(self, kind: str) -> None:
        """One entry of that kind was appended by this writer."""
        ...

    def publish_error(self, code: str, *, retryable: bool) -> None:
        """One request failed."""
        ...


class Journal:
    """One prefix's journal as this process knows it."""

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        writer: Writer,
        observer: JournalObserver,
        make_nonce: Callable[[], str] | None = None,
    ) -> None:
        self.state = JournalState()
        self.prefix = prefix
        self.writer = writer
        self._store = store
        self._observer = observer
        self._make_nonce = make_nonce or (lambda: f"{random.getrandbits(128):032x}")
        self._appending = asyncio.Lock()
        self._patience = Patience(self._failed)

    @property
    def failure(self) -> Failure | None:
        """Why a request of the journal's has no answer yet; None where none is being repeated."""
        return self._patience.failure

    # --- reading

    async def load(self) -> None:
        """Read the newest state file and every entry behind it. Raises JournalError."""
        states = await self._patience.answered(lambda: self._listed(state_folder(self.prefix)))
        if states:
            content = await self._present(states[-1])
            self.state = decode_state(content, states[-1])
        await self._load_entries()
        await self.follow()

    async def _load_entries(self) -> None:
        after = journal_key(self.prefix, self.state.seq) if self.state.seq >= 0 else ""
        folder = journal_folder(self.prefix)
        keys = await self._patience.answered(lambda: self._listed(folder, after))
        for begin in range(0, len(keys), _READS_AT_ONCE):
            await self._absorb_keys(keys[begin : begin + _READS_AT_ONCE])

    async def _listed(self, folder: str, after: str = "") -> list[str]:
        return [listed.key async for listed in self._store.list(folder, after=after)]

    async def _absorb_keys(self, keys: list[str]) -> None:
        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(self._present(key)) for key in keys]
        for key, read in zip(keys, reads, strict=True):
            if seq_of(key) != self.state.next_seq:
                raise JournalError(
                    f"journal entry {self.state.next_seq} is missing under {self.prefix or '/'}",
                    hint="Entries are never deleted: restore it from the bucket's versions.",
                )
            self._absorb(read.result(), key)

    async def follow(self) -> bool:
        """Absorb what is there after the last known entry. True when there was something."""
        found = False
        while (content := await self._next()) is not None:
            self._absorb(content, journal_key(self.prefix, self.state.next_seq))
            found = True
        return found

    async def tail_moved(self) -> bool:
        """Whether somebody has written the entry after the last one known here."""
        async with self._appending:
            return await self._next() is not None

    async def quiet(self) -> None:
        """Wait until no append is under way: its answer may be what the caller has to know."""
        async with self._appending:
            return

    async def _next(self) -> bytes | None:
        key = journal_key(self.prefix, self.state.next_seq)
        return await self._patience.answered(lambda: self._store.get(key))

    async def _present(self, key: str) -> bytes:
        content = await self._patience.answered(lambda: self._store.get(key))
        if content is None:
            raise JournalError(f"{key} was listed and is not there")
        return content

    def _absorb(self, content: bytes, key: str) -> Entry:
        entry = decode_entry(content, key)
        self.state.absorb(entry, content)
        return entry

    def refuse_foreign(self, source: SourceIdentity) -> None:
        """Raise ForeignPrefix when the journal belongs to another source than `source`."""
        known = self.state.source
        if known is None:
            return
        theirs = (known.type, known.system_identifier, known.database, known.slot)
        ours = (source.type, source.system_identifier, source.database, source.slot)
        if theirs != ours:
            raise ForeignPrefix(
                f"the prefix {self.prefix!r} belongs to slot {known.slot!r} of database "
                f"{known.database!r} on system {known.system_identifier}; this is slot "
                f"{source.slot!r} of {source.database!r} on system {source.system_identifier}",
                hint="Give every pipeline a prefix of its own.",
            )

    # --- writing

    async def open(
        self,
        source: SourceIdentity,
        configuration: RecordConfiguration,
        first: Durable,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over: append `open`, the next epoch, absorbing what the predecessor still writes.

        `first` becomes durable when the journal is empty. `check` raises when `state` must not be
        taken over; it is asked again after each entry that was absorbed. Raises Superseded when
        another writer opened first.
        """
        epoch = self.state.epoch + 1
        async with self._appending:
            while True:
                check()
                entry = self._entry(
                    epoch,
                    open=Open(source, configuration),
                    durable=first if self.state.seq < 0 else None,
                )
                winner = await self._create(entry)
                if winner is None:
                    break
                if decode_entry(winner, self._next_key()).epoch >= epoch:
                    raise self._superseded()
                self._absorb(winner, self._next_key())
        await self._refuse_overwriting()

    async def append(
        self,
        *,
        schemas: tuple[TableVersion, ...] = (),
        planned: tuple[Planned, ...] = (),
        durable: Durable | None = None,
        gaps: tuple[Gap, ...] = (),
        release: bool = False,
    ) -> int:
        """Append one entry and return its number. Raises Superseded.

        Waits for as long as the bucket does not answer. Cancellation leaves the append in doubt:
        the journal must then be loaded anew.
        """
        async with self._appending:
            entry = self._entry(
                self.state.epoch,
                schemas=schemas,
                planned=planned,
                durable=durable,
                gaps=gaps,
                release=release,
            )
            if await self._create(entry) is not None:
                raise self._superseded()
            return entry.seq

    def _entry(
        self,
        epoch: int,
        *,
        open: Open | None = None,  # noqa: A002 - the entry's own word
        schemas: tuple[TableVersion, ...] = (),
        planned: tuple[Planned, ...] = (),
        durable: Durable | None = None,
        gaps: tuple[Gap, ...] = (),
        release: bool = False,
    ) -> Entry:
        return Entry(
            format=FORMAT,
            seq=self.state.next_seq,
            epoch=epoch,
            nonce=self._make_nonce(),
            writer=self.writer,
            previous_sha256=self.state.sha256,
            open=open,
            schemas=schemas,
            planned=planned,
            durable=durable,
            gaps=gaps,
            release=release,
        )

    async def _create(self, entry: Entry) -> bytes | None:
        """Create `entry` and absorb it. Another writer's bytes when the key is theirs."""
        content = encode_entry(entry)
        key = self._next_key()
        if not await self._create_once(key, content, _JSON):
            winner = await self._present(key)
            # The same nonce: an earlier request of ours was applied and its answer lost.
            if winner != content:
                return winner
        # Not decoded again: what others hold of the entry is shared with the state.
        self.state.absorb(entry, content)
        for kind in entry.kinds:
            self._observer.journal_entry(kind)
        if entry.seq % STATE_INTERVAL == STATE_INTERVAL - 1:
            await self._write_state()
        return None

    async def _write_state(self) -> None:
        # A state follows from the entries alone: whoever wrote it first wrote the same.
        await self._create_once(
            state_key(self.prefix, self.state.seq), encode_state(self.state), _GZIP
        )

    async def _refuse_overwriting(self) -> None:
        """Prove that the store honours If-None-Match: create entry 0 again, with its own bytes."""
        key = journal_key(self.prefix, 0)
        content = await self._present(key)
        if await self._create_once(key, content, _JSON):
            raise JournalError(
                f"the store created {key} a second time: it ignores If-None-Match",
                hint="Exactly once needs conditional writes: use a store that has them.",
            )

    async def _create_once(self, key: str, content: bytes, content_type: str) -> bool:
        return await self._patience.answered(
            lambda: self._store.create(key, content, content_type=content_type, metadata={})
        )

    def _failed(self, error: Failure) -> None:
        self._observer.publish_error(error.code, retryable=error.retryable)

    def _next_key(self) -> str:
        return journal_key(self.prefix, self.state.next_seq)

    def _superseded(self) -> Superseded:
        return Superseded(
            f"another writer appended journal entry {self.state.next_seq}",
            hint="Two engines may share a pipeline: this one stops, the other goes on.",
        )
