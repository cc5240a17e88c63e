"""The walk through the bucket: the journal first, then its objects, then everything that is there.

Strategy: the journal is read in order while workers look up the objects that it says are durable,
so memory does not grow with their number. Plans that are not durable at its end are `pending`:
their objects may be absent, and what is there must be right. The listing comes last. An engine may
run all the while: whatever the journal as read does not explain is judged again after reading the
entries that came since, because every plan is in the journal before its object is visible.

Invariant: nothing is written. At most twice `concurrency` requests are under way, and at full depth
at most `BODIES_AT_ONCE` bodies are in memory.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, ParamSpec, Protocol, TypeVar

import stamina

from engine.errors import DestinationUnavailable, TailraceError
from engine.interfaces import ObjectStore
from engine.layout import journal_folder, journal_key, own_folder, seq_of, state_folder, state_key
from engine.verify.journal_audit import JournalAudit
from engine.verify.object_audit import PlannedObject, judge_body, judge_head
from engine.verify.problem import Code, Problem
from engine.verify.verdict import Verdict

Depth = Literal["light", "full"]

# Two cores parse; more bodies would only wait in memory.
BODIES_AT_ONCE = 4
PATIENCE_SECONDS = 30.0
# S3 lists up to 1,000 keys in an answer.
_PAGE_KEYS = 1000
_CHECK_FOLDER = "check/"

_T = TypeVar("_T")
_P = ParamSpec("_P")


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
) -> Verdict:
    """Judge everything under `prefix` up to the last durable entry.

    Raises DestinationUnavailable when the bucket does not answer for long, DestinationRefused
    when it will not. Cancellation leaves nothing behind.
    """
    walk = _Walk(store, prefix, depth, concurrency, progress)
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


class _Walk:
    """One verification."""

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        depth: Depth,
        concurrency: int,
        progress: Progress,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._depth = depth
        self._concurrency = concurrency
        self._progress = progress
        self._audit = JournalAudit(prefix)
        self._problems: list[Problem] = []
        self._entry_count = 0
        self._judged = 0
        self._bodies = asyncio.Semaphore(BODIES_AT_ONCE)
        self._schemas_seen: set[str] = set()

    async def run(self) -> Verdict:
        # State files first: whatever they fold is then in the journal's listing.
        states = {key async for key in self._keys(state_folder(self._prefix))}
        async with self._workers() as judge:
            await self._read_journal(states, judge)
            tables, state = self._audit.tables(), self._audit.state
            durable = state.durable
            entries = self._audit.entries
        problems = list(self._audit.problems)
        if not self._entry_count:
            text = "there is no journal under this prefix"
            problems.append(Problem(Code.NO_JOURNAL, journal_folder(self._prefix), text))
        elif self._audit.is_readable:
            await self._judge_pending()
            await self._judge_listing()
        return Verdict(
            tables=tables,
            entries=entries,
            durable_lsn=durable.lsn if durable is not None else "",
            durable_time=durable.commit_time if durable is not None else "",
            problems=(*problems, *sorted(self._problems, key=lambda found: found.key)),
            gaps=self._audit.gaps,
        )

    # --- the journal

    async def _read_journal(
        self, states: set[str], judge: Callable[[PlannedObject], Awaitable[None]]
    ) -> None:
        folder = journal_folder(self._prefix)
        keys = [key async for key in self._keys(folder) if _is_entry(self._prefix, key)]
        self._entry_count = len(keys)
        for begin in range(0, len(keys), self._concurrency):
            window = keys[begin : begin + self._concurrency]
            for key, content in zip(window, await self._contents(window), strict=True):
                for planned in await self._read_entry(key, content):
                    await judge(planned)
                if not self._audit.is_readable:
                    return
                await self._judge_state(key, states)
            self._progress.reached("journal", begin + len(window), len(keys))

    async def _contents(self, keys: Sequence[str]) -> list[bytes]:
        async with asyncio.TaskGroup() as group:
            reads = [group.create_task(self._get(key)) for key in keys]
        return [read.result() or b"" for read in reads]

    async def _read_entry(self, key: str, content: bytes) -> tuple[PlannedObject, ...]:
        return await _aside(self._audit.read, key, seq_of(key), content)

    async def _judge_state(self, entry_key: str, states: set[str]) -> None:
        key = state_key(self._prefix, seq_of(entry_key))
        if key not in states:
            return
        content = await self._get(key)
        problem = await _aside(self._audit.judge_state, key, content or b"")
        if problem is not None:
            self._problems.append(problem)

    async def _follow(self) -> dict[str, PlannedObject]:
        """Read the entries that were appended since; the objects that became durable, by key."""
        finished: dict[str, PlannedObject] = {}
        while self._audit.is_readable:
            key = journal_key(self._prefix, self._audit.state.next_seq)
            content = await self._get(key)
            if content is None:
                break
            finished.update({p.key: p for p in await self._read_entry(key, content)})
        return finished

    # --- objects

    @asynccontextmanager
    async def _workers(self) -> AsyncIterator[Callable[[PlannedObject], Awaitable[None]]]:
        """Workers that judge durable objects; what is yielded waits for room and hands one over."""
        queue: asyncio.Queue[PlannedObject | None] = asyncio.Queue(2 * self._concurrency)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._work(queue))
            yield queue.put
            for _ in range(self._concurrency):
                await queue.put(None)

    async def _work(self, queue: "asyncio.Queue[PlannedObject | None]") -> None:
        while (planned := await queue.get()) is not None:
            problems = await self._judge_object(planned)
            if problems is None:
                text = f"planned by entry {planned.seq} and durable, and not there"
                problems = [Problem(Code.OBJECT_MISSING, planned.key, text)]
                await self._judge_schema(planned.schema_key)
            self._problems.extend(problems)

    async def _judge_object(self, planned: PlannedObject) -> list[Problem] | None:
        """What is wrong with the object; None where it is not there."""
        head = await self._answered(lambda: self._store.head(planned.key))
        self._judged += 1
        self._progress.reached("objects", self._judged, None)
        if head is None:
            return None
        await self._judge_schema(planned.schema_key)
        problems = judge_head(planned, head, self._audit.writers)
        if self._depth == "full":
            async with self._bodies:
                body = await self._get(planned.key)
                problems.extend(await _aside(judge_body, planned, body or b""))
        return problems

    async def _judge_schema(self, key: str | None) -> None:
        """The schema.json of a version that has objects."""
        if key is None or key in self._schemas_seen:
            return
        self._schemas_seen.add(key)
        expected = self._audit.schema(key)
        if expected is None:
            return
        content = await self._get(key)
        if content is None:
            text = "a version with objects has no schema.json"
            self._problems.append(Problem(Code.SCHEMA_MISSING, key, text))
        elif content != expected:
            self._problems.append(_schema_problem(key))

    async def _judge_pending(self) -> None:
        """Objects that are planned and not durable: absent or right."""
        doubtful: list[PlannedObject] = []
        places = asyncio.Semaphore(self._concurrency)

        async def judge(planned: PlannedObject) -> None:
            async with places:
                if await self._judge_object(planned):
                    doubtful.append(planned)

        async with asyncio.TaskGroup() as group:
            for planned in self._audit.pending:
                group.create_task(judge(planned))
        if not doubtful:
            return
        # Another engine may have stated the plan anew after we read the journal.
        finished = await self._follow()
        for known in doubtful:
            planned = finished.get(known.key) or self._audit.pending_at(known.key) or known
            self._problems.extend(await self._judge_object(planned) or ())

    # --- everything that is there

    async def _judge_listing(self) -> None:
        unexplained: list[str] = []
        listed = 0
        async for key in self._keys(f"{self._prefix}/" if self._prefix else ""):
            listed += 1
            if listed % 1000 == 0:
                self._progress.reached("listing", listed, None)
            if not await self._is_named(key):
                unexplained.append(key)
        self._progress.reached("listing", listed, listed)
        if not unexplained:
            return
        await self._follow()
        for key in unexplained:
            if not await self._is_named(key):
                text = "nothing in the journal names this object"
                self._problems.append(Problem(Code.UNNAMED_OBJECT, key, text))

    async def _is_named(self, key: str) -> bool:
        own = own_folder(self._prefix)
        if key.startswith(own):
            return self._is_own(key, key.removeprefix(own))
        if self._audit.is_planned(key):
            return True
        expected = self._audit.schema(key)
        if expected is None:
            return False
        if key not in self._schemas_seen:
            self._schemas_seen.add(key)
            if await self._get(key) != expected:
                self._problems.append(_schema_problem(key))
        return True

    def _is_own(self, key: str, name: str) -> bool:
        if name.startswith(_CHECK_FOLDER):
            return True
        try:
            seq = seq_of(key)
        except ValueError:
            return False
        names = (journal_key(self._prefix, seq), state_key(self._prefix, seq))
        return key in names and seq < self._audit.state.next_seq

    # --- the bucket

    async def _keys(self, folder: str) -> AsyncIterator[str]:
        """The keys that begin with `folder`, in order."""
        after = ""
        while keys := await self._answered(partial(self._page, folder, after)):
            for key in keys:
                yield key
            after = keys[-1]

    async def _page(self, folder: str, after: str) -> list[str]:
        # A listing that fails on its way is asked for again from here on, not from the start.
        keys: list[str] = []
        async for listed in self._store.list(folder, after=after):
            keys.append(listed.key)
            if len(keys) == _PAGE_KEYS:
                break
        return keys

    async def _get(self, key: str) -> bytes | None:
        return await self._answered(lambda: self._store.get(key))

    async def _answered(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        async for trial in stamina.retry_context(
            on=DestinationUnavailable, attempts=None, timeout=PATIENCE_SECONDS
        ):
            with trial:
                return await attempt()
        raise AssertionError("a retry ended without an answer")


async def _aside(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Do CPU work of more than 5 ms beside the event loop: the only place that does."""
    return await asyncio.to_thread(work, *args, **kwargs)


def _is_entry(prefix: str, key: str) -> bool:
    try:
        return key == journal_key(prefix, seq_of(key))
    except ValueError:
        return False


def _schema_problem(key: str) -> Problem:
    text = "it is not what its version in the journal gives"
    return Problem(Code.SCHEMA_DIFFERS, key, text)
