"""The journal: the append-only log in the bucket that orders everything.

Strategy: entry `seq` is created with If-None-Match. So an append is a compare-and-swap, and all
engines agree on one history without leases or clocks. This module loads the journal, follows it and
appends to it. What entries mean is said in `entry`.

Invariant: `state` holds exactly the entries that are known to be in the bucket, in order. At most
one append is under way. After a lost answer the same bytes are sent again under the same key. A key
that is taken is ours if the bytes there are ours; otherwise it is another writer's.
"""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from engine.journal.entry import (
    FORMAT,
    Accepting,
    Answer,
    Durable,
    Entry,
    Gap,
    JournalState,
    Open,
    Pause,
    Planned,
    Snapshot,
    StreamStart,
    Watch,
    Writer,
    decode_entry,
    decode_state,
    encode_entry,
    encode_state,
)
from engine.journal.reading import JournalReader, StateFiles, read_in_order
from engine.journal.retry import Failure, Patience
from engine.journal.sight import Sight
from engine.model.errors import (
    ForeignPrefix,
    JournalError,
    JournalUnseen,
    NewerFormat,
    ObjectArchived,
    Superseded,
)
from engine.model.history import Landmark
from engine.model.interfaces import ObjectStore, SourceIdentity
from engine.model.layout import journal_key, state_key
from engine.model.position import LOG_BEGIN, LogPosition
from engine.model.record import RecordConfiguration
from engine.model.schema import TableVersion

# A state file is written when so many entries came since the last one. Who keeps it young where
# little happens is `state_keeper`.
STATE_INTERVAL = 500
_LOGGED_EVERY_SECONDS = 5.0
_JSON = "application/json"
_GZIP = "application/gzip"
_RESTORE_HINT = (
    "Restore it from the bucket's versions. A lifecycle rule must leave the newest state file and "
    "the entries behind it alone: docs/retention.md."
)
_EXPIRED_HINT = (
    "The pipeline stood still for longer than a rule of the bucket keeps objects. Restore the "
    "newest entries from the bucket's versions. Where there are none, give the pipeline a new "
    "prefix: it begins with a snapshot there. docs/retention.md"
)

_log = structlog.get_logger(__name__)


def random_nonce() -> str:
    """Hexadecimal digits that nobody had before."""
    return f"{random.getrandbits(128):032x}"


class JournalObserver(Protocol):
    """Who is told of appends and failed requests (the metrics)."""

    def journal_entry(self, kind: str) -> None:
        """One entry of that kind was appended by this writer."""
        ...

    def publish_error(self, code: str, *, retryable: bool) -> None:
        """One request failed."""
        ...


class Journal:
    """One prefix's journal as this process knows it.

    `begun_us` says when that was made which `load` began with, in Unix microseconds: the newest
    good state file, or where there is none the first entry. Where nothing was there, it is when
    somebody looked: every entry is younger. Who only reads has None then. `ended_us` says when the
    newest entry was made that was listed, and is None where nothing was there.
    `state_at` is when this process wrote its newest state file, by the event loop's time. Without a
    `sight` the journal is only read: see `sight`.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        writer: Writer,
        observer: JournalObserver,
        make_nonce: Callable[[], str] | None = None,
        *,
        sight: Sight | None = None,
    ) -> None:
        self.state = JournalState()
        self.prefix = prefix
        self.writer = writer
        self._store = store
        self._observer = observer
        self._make_nonce = make_nonce or random_nonce
        self._sight = sight
        self._appending = asyncio.Lock()
        self._patience = Patience(self._failed)
        self._reader = JournalReader(store, prefix, self._patience.answered)
        self._state_seq = self.state.seq
        self.begun_us: int | None = None
        self.ended_us: int | None = None
        self.state_at: float | None = None

    @property
    def failure(self) -> Failure | None:
        """Why a request of the journal's has no answer yet; None where none is being repeated."""
        return self._patience.failure

    @property
    def latest_failure(self) -> Failure | None:
        """The newest failure that a request of the journal's had."""
        return self._patience.latest

    # --- reading

    async def load(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Read the newest good state file and every entry behind it. Raises JournalError.

        `on_progress` is called for each entry. Cancellation leaves a part of it read: it has to be
        loaded anew.
        """
        began_us = self._sent_us
        # Nothing is known from before: however long ago this life began, all of it is read now.
        self._seen(began_us)
        files = await self._reader.states()
        found = await self._newest_good_state(files)
        self.state, self.begun_us = found.state, found.made_us
        self._state_seq = self.state.seq
        loading = _Loading(on_progress)

        async def take(seq: int, content: bytes | None) -> bool:
            await self._take_listed(seq, content, loading)
            return True

        await read_in_order(
            self._entries_listed(),
            lambda seq: self._reader.get(journal_key(self.prefix, seq)),
            take,
        )
        if await self.follow():
            self.ended_us = None
        if self.begun_us is None and self._sight is not None:
            self.begun_us = began_us
        if files.seqs and self.state.seq < 0:
            raise JournalError(
                f"the journal under {self.prefix or '/'} is gone: there are state files, of which "
                "none is good, and no entry",
                hint=_RESTORE_HINT,
            )
        if not found.is_entry_there and self.state.seq == self._state_seq:
            raise JournalError(
                f"the newest journal entries under {self.prefix or '/'} are gone: a state file "
                f"covers all up to entry {self.state.seq}, which is not there, nor is any later "
                "one. Nobody can tell what they said",
                hint=_EXPIRED_HINT,
            )

    async def _entries_listed(self) -> AsyncIterator[int]:
        begun_at = self.state.seq
        async for seq, made_us in self._reader.entries(begun_at - 1):
            self.ended_us = made_us
            if self.begun_us is None:
                self.begun_us = made_us
            if seq > begun_at:
                yield seq

    async def _newest_good_state(self, files: StateFiles) -> "_Found":
        for place in reversed(range(len(files.seqs))):
            seq = files.seqs[place]
            key = state_key(self.prefix, seq)
            try:
                state, is_entry_there = await self._good_state(seq, key)
            except NewerFormat:
                raise
            except (JournalError, ObjectArchived) as error:
                # An older one and more entries say the same.
                _log.warning("state file left out", key=key, error=str(error))
            else:
                return _Found(state, files.made_us[place], is_entry_there=is_entry_there)
        return _Found(JournalState(), None, is_entry_there=True)

    async def _good_state(self, seq: int, key: str) -> tuple[JournalState, bool]:
        """The state file `key`, and whether the entry is there up to which it folds.

        Raises JournalError, ObjectArchived where it cannot be used.
        """
        state = decode_state(await self._present(key), key)
        if state.seq != seq:
            raise JournalError(f"{key} says that it folds the journal up to entry {state.seq}")
        try:
            entry = await self._reader.get(journal_key(self.prefix, seq))
        except ObjectArchived:
            return state, True
        # If that entry is gone, the next one still names its hash.
        if entry is not None and hashlib.sha256(entry).hexdigest() != state.sha256:
            raise JournalError(f"{key} does not follow from entry {seq}")
        return state, entry is not None

    async def _take_listed(self, seq: int, content: bytes | None, loading: "_Loading") -> None:
        key = journal_key(self.prefix, seq)
        while seq > self.state.next_seq:
            # The listing left it out. Only an answer about the key itself says that it is gone.
            missing = await self._next()
            if missing is None:
                raise self._missing(seq)
            self._absorb(missing, self._next_key())
        if content is None:
            raise JournalError(f"{key} was listed and is not there", hint=_RESTORE_HINT)
        self._absorb(content, key)
        loading.absorbed(seq)

    def _missing(self, listed: int) -> JournalError:
        first, last = self.state.next_seq, listed - 1
        which = (
            f"journal entry {first} is"
            if first == last
            else f"journal entries {first} to {last} are"
        )
        return JournalError(
            f"{which} missing under {self.prefix or '/'}, and no good state file covers "
            f"{'it' if first == last else 'them'}",
            hint=_RESTORE_HINT,
        )

    async def follow(self) -> bool:
        """Absorb what is there after the last known entry. True when there was something.

        Cancellation keeps what was absorbed.
        """
        found = False
        while (content := await self._next()) is not None:
            self._absorb(content, journal_key(self.prefix, self.state.next_seq))
            found = True
        return found

    async def tail_moved(self) -> bool:
        """Whether somebody has written the entry after the last one known here.

        Cancellation changes nothing.
        """
        async with self._appending:
            return await self._next() is not None

    async def quiet(self) -> None:
        """Wait until no append is under way: its answer may be what the caller has to know.

        Cancellation changes nothing.
        """
        async with self._appending:
            return

    async def _next(self) -> bytes | None:
        await self._patience.answered(self.refuse_unseen)
        sent_us = self._sent_us
        content = await self._reader.get(self._next_key())
        self._seen(sent_us)
        return content

    async def refuse_unseen(self) -> None:
        """Raise JournalUnseen where nobody can know any more whether a successor wrote.

        Raises DestinationUnavailable instead while the bucket does not answer. Cancellation changes
        nothing.
        """
        if self._sight is None or not self._sight.is_lost:
            return
        # A bucket that is out of reach is waited for.
        await self._store.get(self._next_key())
        raise JournalUnseen(
            f"the journal was not looked at for {self._sight.hours:.1f} hours: entries behind"
            f" number {self.state.seq} may have come and expired",
        )

    @property
    def _sent_us(self) -> int:
        return self._sight.now_us() if self._sight is not None else 0

    def _seen(self, sent_us: int) -> None:
        if self._sight is not None:
            self._sight.seen(sent_us)

    async def _present(self, key: str) -> bytes:
        content = await self._reader.get(key)
        if content is None:
            raise JournalError(f"{key} is not there", hint=_RESTORE_HINT)
        return content

    async def _winner(self, key: str) -> bytes:
        """The entry `key` that somebody created."""
        content = await self._reader.get(key)
        if content is not None:
            return content
        # Whoever slept over the answer finds nothing there, where it has expired.
        await self._patience.answered(self.refuse_unseen)
        raise JournalError(f"{key} is taken and cannot be read", hint=_RESTORE_HINT)

    def _absorb(self, content: bytes, key: str) -> Entry:
        entry = decode_entry(content, key)
        self.state.absorb(entry, content)
        return entry

    def refuse_foreign(
        self, source: SourceIdentity, keeper: str = "", *, may_be_elsewhere: bool = False
    ) -> None:
        """Raise ForeignPrefix when the journal belongs to another source than `source`.

        It says what differs. `keeper` is what keeps the source's log, in words. `may_be_elsewhere`:
        it may have other facts, if type, database and lease are the same.
        """
        known = self.state.source
        if known is None or known.whose == source.whose:
            return
        there, here = known.whose, source.whose
        differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        is_elsewhere = not {"type", "database", "lease"} & set(differing)
        if is_elsewhere and may_be_elsewhere:
            return
        texts = [
            f"its pipeline reads through {known.lease!r}, and this one through"
            f" {keeper or repr(source.lease)}"
            if name == "lease"
            else f"its {name.replace('_', ' ')} is {there.get(name, '')!r}, and here it is"
            f" {here.get(name, '')!r}"
            for name in differing
        ]
        hint = "Give every pipeline a prefix of its own."
        if is_elsewhere:
            hint = (
                "This is another server. Let source.dsn lead to the one that the journal knows, or"
                " give this pipeline a prefix of its own."
            )
        elif differing == ["lease"]:
            hint = f"Read through {known.lease!r} again, or give this pipeline a prefix of its own."
        raise ForeignPrefix(
            f"the prefix {self.prefix!r} belongs to another source: {'; '.join(texts)}",
            hint=hint,
            is_elsewhere=is_elsewhere,
        )

    # --- writing

    async def open(
        self,
        source: SourceIdentity,
        configuration: RecordConfiguration,
        first: Durable | None,
        check: Callable[[], None] = lambda: None,
        accepting: Accepting | None = None,
        *,
        fork: LogPosition | None = None,
        stream_waits: bool = False,
    ) -> None:
        """Take over: append `open`, the next epoch, absorbing what the predecessor still writes.

        When the journal is empty, `first` becomes durable, and with `stream_waits` the stream waits
        for the initial snapshot. `accepting` is a loss that is accepted with this `open`, `fork`
        where the source left the journal's branch of its history. `check`
        raises when `state` must not be taken over; it is asked again after each entry that was
        absorbed. Raises Superseded when another writer opened first. Cancellation leaves the append
        in doubt: the journal must then be loaded anew.
        """
        epoch = self.state.epoch + 1
        async with self._appending:
            while True:
                check()
                is_first = self.state.seq < 0
                entry = self._entry(
                    epoch,
                    open=Open(source, configuration, fork or LOG_BEGIN),
                    durable=first if is_first else None,
                    accepting=accepting,
                    stream=StreamStart(waits=True) if is_first and stream_waits else None,
                )
                winner = await self._create(entry)
                if winner is None:
                    break
                if decode_entry(winner, self._next_key()).epoch >= epoch:
                    raise self._superseded()
                self._absorb(winner, self._next_key())
        await self._refuse_overwriting(entry)

    async def append(
        self,
        *,
        schemas: tuple[TableVersion, ...] = (),
        planned: tuple[Planned, ...] = (),
        landmark: Landmark | None = None,
        durable: Durable | None = None,
        snapshots: tuple[Snapshot, ...] = (),
        gaps: tuple[Gap, ...] = (),
        watch: Watch | None = None,
        answers: tuple[Answer, ...] = (),
        signals: tuple[Answer, ...] = (),
        pauses: tuple[Pause, ...] = (),
        accepted: bool = False,
        stream: StreamStart | None = None,
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
                landmark=landmark,
                durable=durable,
                snapshots=snapshots,
                gaps=gaps,
                watch=watch,
                answers=answers,
                signals=signals,
                pauses=pauses,
                accepted=accepted,
                stream=stream,
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
        landmark: Landmark | None = None,
        durable: Durable | None = None,
        snapshots: tuple[Snapshot, ...] = (),
        gaps: tuple[Gap, ...] = (),
        watch: Watch | None = None,
        answers: tuple[Answer, ...] = (),
        signals: tuple[Answer, ...] = (),
        pauses: tuple[Pause, ...] = (),
        accepting: Accepting | None = None,
        accepted: bool = False,
        stream: StreamStart | None = None,
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
            landmark=landmark,
            durable=durable,
            snapshots=snapshots,
            gaps=gaps,
            watch=watch,
            answers=answers,
            signals=signals,
            pauses=pauses,
            accepting=accepting,
            accepted=accepted,
            stream=stream,
            release=release,
        )

    async def _create(self, entry: Entry) -> bytes | None:
        """Create `entry` and absorb it. Another writer's bytes when the key is theirs."""
        content = encode_entry(entry)
        key, sent_us = self._next_key(), self._sent_us
        if not await self._create_once(key, content, _JSON):
            winner = await self._winner(key)
            # The same bytes, nonce included: an earlier request of ours was applied, and its answer
            # was lost.
            if winner != content:
                return winner
        self._seen(sent_us)
        # The entry is not decoded again, so the state shares with others what they hold of it.
        self.state.absorb(entry, content)
        for kind in entry.kinds:
            self._observer.journal_entry(kind)
        if self.state.seq - self._state_seq >= STATE_INTERVAL:
            await self._write_state()
        return None

    async def renew_state(self) -> None:
        """Write a state file now, so that the newest one is young. Raises Superseded.

        It folds an entry that says nothing else, where no other came since the last state file. The
        journal has to be ours. Behind the entry that releases it nothing is written. Cancellation
        leaves the append in doubt: the journal must then be loaded anew.
        """
        async with self._appending:
            if self.state.released:
                return
            is_covered = self.state.seq == self._state_seq
            if is_covered and await self._create(self._entry(self.state.epoch)) is not None:
                raise self._superseded()
            if self._state_seq < self.state.seq:
                await self._write_state()

    async def _write_state(self) -> None:
        # A state follows from the entries alone. Whoever wrote it first wrote the same bytes.
        seq = self.state.seq
        await self._create_once(state_key(self.prefix, seq), encode_state(self.state), _GZIP)
        self._state_seq = seq
        self.state_at = asyncio.get_running_loop().time()

    async def _refuse_overwriting(self, entry: Entry) -> None:
        """Prove that the store honours If-None-Match: create our own entry again, as it is.

        It was written just now: no rule of the bucket has taken it away or archived it.
        """
        key = journal_key(self.prefix, entry.seq)
        if await self._create_once(key, encode_entry(entry), _JSON):
            raise JournalError(
                f"the store created {key} a second time: it ignores If-None-Match",
                hint="Exactly once needs conditional writes: use a store that has them.",
            )

    async def _create_once(self, key: str, content: bytes, content_type: str) -> bool:
        async def attempt() -> bool:
            await self.refuse_unseen()
            return await self._store.create(
                key, content, content_type=content_type, metadata={}, in_one_request=True
            )

        return await self._patience.answered(attempt)

    def _failed(self, error: Failure) -> None:
        self._observer.publish_error(error.code, retryable=error.retryable)

    def _next_key(self) -> str:
        return journal_key(self.prefix, self.state.next_seq)

    def _superseded(self) -> Superseded:
        return Superseded(
            f"another writer appended journal entry {self.state.next_seq}",
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """The newest good state file, made at `made_us`, and whether its own entry is there.

    Without any: the state before the first entry.
    """

    state: JournalState
    made_us: int | None
    is_entry_there: bool


class _Loading:
    """How far a load is: a long one says so, every few seconds."""

    def __init__(self, on_progress: Callable[[], None]) -> None:
        self._on_progress = on_progress
        self._clock = asyncio.get_running_loop().time
        self._began = self._logged_at = self._clock()
        self._count = 0

    def absorbed(self, seq: int) -> None:
        self._count += 1
        self._on_progress()
        now = self._clock()
        if now - self._logged_at >= _LOGGED_EVERY_SECONDS:
            self._logged_at = now
            seconds = round(now - self._began, 1)
            _log.info("journal is being read", entries=self._count, seq=seq, seconds=seconds)
