"""The walk through the bucket: the journal first, then its objects, then everything that is there.

Strategy: the journal is read in order, and ahead, while workers look up the objects that it says
are durable. Keys are listed page by page. So memory does not grow with the number of entries or
objects, but for one number a named object.

The first entries may be gone or archived, as a lifecycle rule leaves them. Then the walk begins at
the oldest good state file behind which all is there, and says so. Objects that are named and not
durable at the journal's end are `pending`: they may be absent, and what is there must be right. So
may those of a snapshot that was given up.

The listing comes last. An engine may run all the while. Every object is in the journal before
it is visible. So whatever the journal as read does not explain is judged again, after the
entries that came since were read.

Invariant: nothing is written. At most twice `concurrency` requests are under way, and at full depth
at most `BODIES_AT_ONCE` bodies are in memory.
"""

import asyncio
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal, ParamSpec, Protocol, TypeVar

from engine.journal.entry import Snapshot, decode_entry, decode_state
from engine.journal.reading import PAGE_KEYS, JournalReader, read_in_order
from engine.model.errors import JournalError, ObjectArchived, TailraceError
from engine.model.interfaces import Clock, ObjectStore
from engine.model.layout import (
    below,
    check_folder,
    entry_seq,
    is_list_key,
    journal_folder,
    journal_key,
    own_folder,
    prefix_of,
    requests_folder,
    state_key,
    state_seq,
)
from engine.model.plural import counted
from engine.reader.patience import answered
from engine.reader.verify.expiry_audit import ExpiryAudit, Presence
from engine.reader.verify.journal_audit import JournalAudit
from engine.reader.verify.object_audit import (
    TRAILER_BYTES,
    NamedObject,
    judge_body,
    judge_head,
    judge_trailer,
    rows_told,
)
from engine.reader.verify.problem import Code, Problem
from engine.reader.verify.snapshot_audit import Lists
from engine.reader.verify.verdict import Verdict

Depth = Literal["light", "full"]
_Queue = asyncio.Queue[tuple[int, NamedObject] | None]

# Two cores parse; more bodies would only wait in memory.
BODIES_AT_ONCE = 4
_PROGRESS_EVERY = 100

_T = TypeVar("_T")
_P = ParamSpec("_P")


def _wall_clock() -> int:
    return time.time_ns() // 1000


class Progress(Protocol):
    """Who is told how far the walk is."""

    def reached(self, phase: str, done: int, total: int | None) -> None:
        """`done` of `total` (None: unknown) in that phase: journal, objects, listing."""
        ...


async def verify(
    store: ObjectStore,
    prefix: str,
    *,
    depth: Depth,
    concurrency: int,
    progress: Progress,
    clock: Clock = _wall_clock,
) -> Verdict:
    """Judge everything under `prefix` up to the last durable entry.

    `clock` tells how old an object is at least.

    Raises DestinationUnavailable when the bucket does not answer for long, DestinationRefused
    when it will not. Cancellation leaves nothing behind.
    """
    walk = _Walk(store, prefix, depth, concurrency, progress, expiry=ExpiryAudit(clock()))
    try:
        return await walk.run()
    except BaseExceptionGroup as group:
        error = _first_error(group)
        if error is None:
            raise
        raise error from group


def _first_error(error: BaseException) -> TailraceError | None:
    """The first error of ours among an error and those that it groups."""
    if isinstance(error, BaseExceptionGroup):
        inner = (_first_error(member) for member in error.exceptions)
        return next((found for found in inner if found is not None), None)
    return error if isinstance(error, TailraceError) else None


@dataclass(frozen=True, slots=True)
class _Read:
    """An entry and, where there is one, the state file that folds up to it. None: not to be had."""

    content: bytes | None
    state: bytes | None
    is_archived: bool = False


class _Walk:
    """One verification."""

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        depth: Depth,
        concurrency: int,
        progress: Progress,
        *,
        expiry: ExpiryAudit,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._depth = depth
        self._concurrency = concurrency
        self._progress = progress
        self._reader = JournalReader(store, prefix, answered)
        self._audit = JournalAudit(prefix)
        self._expiry = expiry
        self._durable_count = 0
        self._schemas_gone: list[Problem] = []
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._states: array[int] = array("Q")
        self._first_listed: int | None = None
        self._judged = 0
        self._bodies = asyncio.Semaphore(BODIES_AT_ONCE)
        self._schemas_seen: set[str] = set()
        self._neighbours: dict[str, int] = {}
        self._unprovable = 0
        # By table, rows of objects that were called void and are there with their rows.
        self._void_rows: Counter[str] = Counter()

    async def run(self) -> Verdict:
        # State files first: whatever they fold is then in the journal's listing.
        self._states = await self._reader.state_seqs()
        self._first_listed = await anext(self._reader.entry_seqs(-1), None)
        begun_at = await self._begin()
        async with self._workers() as judge:
            await self._read_journal(judge)
            tables, state = self._audit.tables(), self._audit.state
            durable = state.durable
            entries = self._audit.entries
        # Every durable object was looked at, and no pending one yet.
        tables = tuple(
            replace(
                t,
                rows=t.rows + self._void_rows[t.table],
                expired=self._expiry.counts[t.table],
            )
            for t in tables
        )
        problems = list(self._audit.problems)
        if self._first_listed is None:
            text = "there is no journal under this prefix"
            problems.append(Problem(Code.NO_JOURNAL, journal_folder(self._prefix), text))
        elif self._audit.is_readable:
            await self._judge_pending()
            await self._judge_listing()
        self._problems += [p for p in self._schemas_gone if not self._expiry.has_expired(p.key)]
        self._warn(begun_at)
        return Verdict(
            tables=tables,
            entries=entries,
            durable_position=durable.position if durable is not None else "",
            durable_time=durable.commit_time if durable is not None else "",
            problems=(*problems, *sorted(self._problems, key=lambda found: found.key)),
            gaps=self._audit.gaps,
            warnings=tuple(self._warnings),
        )

    def _warn(self, begun_at: int | None) -> None:
        if begun_at is not None:
            text = (
                f"entries up to {begun_at} are gone or archived, and this state file covers them; "
                f"{counted(self._unprovable, 'object')} that they named cannot be proved: "
                "neither that all are there nor that none was altered"
            )
            key = state_key(self._prefix, begun_at)
            self._warnings.append(Problem(Code.JOURNAL_EXPIRED, key, text))
        expired = self._expiry.warning
        if expired is not None:
            self._warnings.append(expired)
        for prefix, count in sorted(self._neighbours.items()):
            text = (
                f"another pipeline's prefix lies inside this one: {counted(count, 'object')} under "
                "it were not judged"
            )
            self._warnings.append(Problem(Code.PREFIX_NESTED, below(prefix), text))

    # --- the journal

    async def _begin(self) -> int | None:
        """Begin behind a state file where the first entries are gone or archived: its number."""
        first = self._first_listed
        if first is None or not self._states:
            return None
        if first == 0 and (await self._content(journal_key(self._prefix, 0)))[0] is not None:
            return None
        # The readable part is the newer end of the journal. The walk begins at the oldest state
        # file in that part.
        low = bisect_left(self._states, max(first - 1, 0))
        high = len(self._states) - 1
        while low < high:
            middle = (low + high) // 2
            behind = journal_key(self._prefix, self._states[middle] + 1)
            if (await self._content(behind))[0] is None:
                low = middle + 1
            else:
                high = middle
        for seq in self._states[low:]:
            if await self._begin_at(seq):
                return seq
        return None

    async def _begin_at(self, seq: int) -> bool:
        key = state_key(self._prefix, seq)
        content, _ = await self._content(key)
        if content is None:
            # It is archived, or has expired since it was listed: a later one does as well.
            return False
        try:
            state = decode_state(content, key)
        except JournalError as error:
            self._problems.append(Problem(Code.STATE_DIFFERS, key, str(error)))
            return False
        if state.seq != seq:
            text = f"it says that it folds the journal up to entry {state.seq}"
            self._problems.append(Problem(Code.STATE_DIFFERS, key, text))
            return False
        await _aside(self._audit.begin, state, await self._lists_of(state.named_attempts))
        return True

    async def _read_journal(self, judge: Callable[[NamedObject], Awaitable[None]]) -> None:
        count = 0

        async def take(seq: int, read: _Read) -> bool:
            nonlocal count
            key = journal_key(self._prefix, seq)
            if read.is_archived:
                self._audit.skip(key, seq, "it is archived: restore it, and verify again")
                return True
            for named in await self._read_entry(key, seq, read.content or b""):
                await judge(named)
            if self._audit.is_readable and read.state is not None:
                await self._judge_state(seq, read.state)
            count += 1
            if count % _PROGRESS_EVERY == 0:
                self._progress.reached("journal", count, None)
            return self._audit.is_readable

        seqs = self._reader.entry_seqs(self._audit.state.seq)
        await read_in_order(seqs, self._read, take, self._concurrency)
        self._progress.reached("journal", count, count)

    async def _read(self, seq: int) -> _Read:
        content, is_archived = await self._content(journal_key(self._prefix, seq))
        state = None
        place = bisect_left(self._states, seq)
        if place < len(self._states) and self._states[place] == seq:
            # One that is archived, or has expired since it was listed, is not judged.
            state, _ = await self._content(state_key(self._prefix, seq))
        return _Read(content, state, is_archived)

    async def _content(self, key: str) -> tuple[bytes | None, bool]:
        """The object's bytes or None, and whether it is archived."""
        try:
            return await self._reader.get(key), False
        except ObjectArchived:
            return None, True

    async def _read_entry(self, key: str, seq: int, content: bytes) -> tuple[NamedObject, ...]:
        lists = await self._lists_of(_attempts_listed(content))
        return await _aside(self._audit.read, key, seq, content, lists)

    async def _lists_of(self, attempts: Sequence[Snapshot]) -> Lists:
        """The lists of objects that these attempts name, as they are."""
        keys = [snapshot.listed.key for snapshot in attempts if snapshot.listed is not None]
        return {key: (await self._content(key))[0] for key in keys}

    async def _judge_state(self, seq: int, content: bytes) -> None:
        key = state_key(self._prefix, seq)
        problem = await _aside(self._audit.judge_state, key, content)
        if problem is not None:
            self._problems.append(problem)

    async def _follow(self) -> dict[str, NamedObject]:
        """Read the entries that were appended since; the objects that became durable, by key."""
        finished: dict[str, NamedObject] = {}
        while self._audit.is_readable:
            seq = self._audit.state.next_seq
            key = journal_key(self._prefix, seq)
            content, _ = await self._content(key)
            if content is None:
                break
            finished.update({p.key: p for p in await self._read_entry(key, seq, content)})
        return finished

    # --- objects

    @asynccontextmanager
    async def _workers(self) -> AsyncIterator[Callable[[NamedObject], Awaitable[None]]]:
        """Workers that judge durable objects; what is yielded waits for room and hands one over."""
        queue: _Queue = asyncio.Queue(2 * self._concurrency)

        async def hand_over(named: NamedObject) -> None:
            number, self._durable_count = self._durable_count, self._durable_count + 1
            await queue.put((number, named))

        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._work(queue))
            yield hand_over
            for _ in range(self._concurrency):
                await queue.put(None)

    async def _work(self, queue: "_Queue") -> None:
        while (given := await queue.get()) is not None:
            number, named = given
            problems = await self._judge_object(named)
            presence: Presence = "there"
            if problems is None:
                presence = "given up" if named.may_be_absent else "gone"
            self._problems.extend(problems or ())
            for missing, problem in self._expiry.found(number, named, presence):
                self._problems.append(problem)
                await self._judge_schema(missing.schema_key)

    async def _judge_object(self, named: NamedObject) -> list[Problem] | None:
        """What is wrong with the object; None where it is not there."""
        tail = await answered(lambda: self._store.tail(named.key, TRAILER_BYTES))
        self._judged += 1
        self._progress.reached("objects", self._judged, None)
        if tail is None:
            return None
        await self._judge_schema(named.schema_key)
        if named.is_void:
            self._void_rows[str(named.table)] += rows_told(named, tail)
        problems = judge_head(named, tail, self._audit.known_writers)
        found = judge_trailer(named, tail)
        if self._depth == "full":
            told = await self._judge_body(named)
            codes = {problem.code for problem in told}
            found = (*(problem for problem in found if problem.code not in codes), *told)
        return [*problems, *found]

    async def _judge_body(self, named: NamedObject) -> tuple[Problem, ...]:
        async with self._bodies:
            body, is_archived = await self._content(named.key)
            if is_archived:
                text = "it is archived: restore it to have its records judged"
                return (Problem(Code.OBJECT_ARCHIVED, named.key, text),)
            return await _aside(judge_body, named, body or b"")

    async def _judge_schema(self, key: str | None) -> None:
        """The schema.json of a version that has objects."""
        if key is None or key in self._schemas_seen:
            return
        self._schemas_seen.add(key)
        expected = self._audit.schema(key)
        if expected is None:
            return
        content, is_archived = await self._content(key)
        if content is None:
            text = "a version with objects has no schema.json" + " to be read" * is_archived
            self._schemas_gone.append(Problem(Code.SCHEMA_MISSING, key, text))
        elif content != expected:
            self._problems.append(_schema_problem(key))

    async def _judge_pending(self) -> None:
        """Objects that are named and not durable: absent or right."""
        doubtful: list[NamedObject] = []
        places = asyncio.Semaphore(self._concurrency)

        async def judge(named: NamedObject) -> None:
            async with places:
                if await self._judge_object(named):
                    doubtful.append(named)

        async with asyncio.TaskGroup() as group:
            for named in self._audit.pending:
                group.create_task(judge(named))
        if not doubtful:
            return
        # Another engine may have stated the plan anew after we read the journal.
        finished = await self._follow()
        for known in doubtful:
            named = finished.get(known.key) or self._audit.pending_at(known.key) or known
            self._problems.extend(await self._judge_object(named) or ())

    # --- everything that is there

    async def _judge_listing(self) -> None:
        unexplained: list[str] = []
        listed = 0
        async for key in self._reader.keys(below(self._prefix)):
            listed += 1
            if listed % _PROGRESS_EVERY == 0:
                self._progress.reached("listing", listed, None)
            if not await self._is_named(key):
                unexplained.append(key)
            if len(unexplained) == PAGE_KEYS:
                await self._judge_unexplained(unexplained)
        self._progress.reached("listing", listed, listed)
        await self._judge_unexplained(unexplained)

    async def _judge_unexplained(self, keys: list[str]) -> None:
        """What the journal as read does not name; `keys` is empty afterwards."""
        if not keys:
            return
        await self._follow()
        for key in keys:
            if not await self._is_named(key):
                text = "nothing in the journal names this object"
                self._problems.append(Problem(Code.UNNAMED_OBJECT, key, text))
        keys.clear()

    async def _is_named(self, key: str) -> bool:
        if key.startswith(own_folder(self._prefix)):
            return self._is_own(key)
        if self._audit.is_named(key):
            return True
        expected = self._audit.schema(key)
        if expected is None:
            return await self._is_not_ours_to_judge(key)
        if key not in self._schemas_seen:
            self._schemas_seen.add(key)
            if (await self._content(key))[0] != expected:
                self._problems.append(_schema_problem(key))
        return True

    def _is_own(self, key: str) -> bool:
        if key.startswith((check_folder(self._prefix), requests_folder(self._prefix))):
            return True
        if is_list_key(self._prefix, key):
            # A writer may have died behind it, before its entry.
            return True
        seq = entry_seq(self._prefix, key)
        if seq is None:
            seq = state_seq(self._prefix, key)
        return seq is not None and seq < self._audit.state.next_seq

    async def _is_not_ours_to_judge(self, key: str) -> bool:
        """Whether an entry that is gone may have named it, or another pipeline inside did."""
        prefix = prefix_of(key)
        if prefix == self._prefix:
            is_expired = self._audit.may_be_expired(key)
            self._unprovable += is_expired
            return is_expired
        if prefix is None or not prefix.startswith(below(self._prefix)):
            return False
        if key.startswith(check_folder(prefix)):
            # Somebody tried a configuration whose prefix lies inside this one: `check` and the
            # start refuse it, and these objects stay, because nobody may delete them.
            return True
        if prefix not in self._neighbours:
            if await anext(self._reader_of(prefix).entry_seqs(-1), None) is None:
                return False
            self._neighbours[prefix] = 0
        self._neighbours[prefix] += 1
        return True

    def _reader_of(self, prefix: str) -> JournalReader:
        return JournalReader(self._store, prefix, answered)


def _attempts_listed(content: bytes) -> tuple[Snapshot, ...]:
    """The attempts of an entry whose objects are listed apart; an entry that is none has none."""
    if b'"listed"' not in content:
        return ()
    try:
        return decode_entry(content, "").snapshots
    except JournalError:
        return ()


async def _aside(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Do CPU work of more than 5 ms beside the event loop: the only place that does."""
    return await asyncio.to_thread(work, *args, **kwargs)


def _schema_problem(key: str) -> Problem:
    text = "it is not what its version in the journal gives"
    return Problem(Code.SCHEMA_DIFFERS, key, text)
