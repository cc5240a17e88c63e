"""Requests: what somebody asks of the running engine by way of the bucket, done once.

Strategy: a request is an object under `_tailrace/requests/`, which whoever may write to the bucket
creates. The engine lists that folder at an interval and reads what it has not answered. A request
is judged and done in one step without an await: what it leads to and its answer are in the
journal's same next entry. So a crash before that entry leaves the request as it was, and after it
nobody does it again: not a successor either, because the journal remembers what it answered.

Invariant: no request is done twice, and none is done without an answer. A request that cannot be
read, or asks for what cannot be, is answered with a refusal. At most `REQUESTS_A_LOOK` are taken in
one look, and an object that is no request costs one line of the log.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

import structlog

from engine.journal.entry import Answer, JournalState, Outcome, time_text
from engine.journal.snapshots import SnapshotRegister
from engine.model.errors import DestinationError, DestinationRefused
from engine.model.interfaces import Clock, ListedObject, ObjectStore
from engine.model.layout import requests_folder
from engine.model.plural import counted
from engine.model.record import RecordConfiguration
from engine.model.request import (
    REQUEST_BYTES_MAX,
    Request,
    RequestRefused,
    decode_request,
    request_key,
    request_name_of,
    request_time_us,
)
from engine.model.schema import TableName

REQUESTS_A_LOOK = 20
LISTED_A_LOOK = 10_000

AHEAD_US = 3_600_000_000
"""A name that is later than now by more than this waits: the journal forgets by names."""

_NAMES_SHOWN = 10
_KIND_LENGTH = 40
_TEXT_LENGTH = 2_000
_TOLD_MAX = 1_000

_log = structlog.get_logger(__name__)

Deed = Callable[[Request], str]
"""Does what a request of its kind asks, without waiting; what there is to say of it, if anything.

Raises RequestRefused, and then has done nothing.
"""


def answered(
    deeds: Mapping[str, Deed], name: str, content: bytes, at_us: int, *, refusal: str = ""
) -> Answer:
    """Do what a request asks, or refuse it: its answer. Never waits.

    With a `refusal` it is not done. What was done, or refused, is logged.
    """
    request = Request(0, "")
    outcome: Outcome = "done"
    text = refusal
    try:
        if not refusal:
            request = decode_request(content)
            text = _deed(deeds, request.kind)(request)
    except RequestRefused as error:
        refusal = text = str(error)
    if refusal:
        outcome = "refused"
    kind = request.kind[:_KIND_LENGTH]
    if outcome == "done":
        _log.info("request done", request=name, kind=kind, text=text)
    else:
        _log.warning("request refused", request=name, kind=kind, text=text)
    return Answer(
        name=name,
        kind=kind,
        outcome=outcome,
        at=time_text(at_us),
        tables=request.tables,
        text=text[:_TEXT_LENGTH],
    )


def _deed(deeds: Mapping[str, Deed], kind: str) -> Deed:
    deed = deeds.get(kind)
    if deed is None:
        kinds = ", ".join(sorted(deeds))
        raise RequestRefused(f"this engine knows no such request; it knows: {kinds}")
    return deed


class RequestRegister:
    """What this writer knows of requests. `wake` is called when there is an answer to append."""

    def __init__(
        self,
        *,
        state: JournalState,
        deeds: Mapping[str, Deed],
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._state = state
        self._deeds = deeds
        self._clock = clock
        self._wake = wake
        self._pending: dict[str, Answer] = {}

    def is_open(self, name: str) -> bool:
        """Whether the request has no answer yet."""
        return name not in self._pending and not self._state.is_answered(name)

    @property
    def through(self) -> str:
        """Requests up to this name are over: see `JournalState.answers_through`."""
        return self._state.answers_through

    def take(self, name: str, content: bytes) -> None:
        """Do what an open request asks, or refuse it: its answer is pending then. Never waits."""
        self._pending[name] = answered(self._deeds, name, content, self._clock())
        self._wake()

    def refuse(self, name: str, reason: str) -> None:
        """An open request that cannot be read. Never waits."""
        self._pending[name] = answered(self._deeds, name, b"", self._clock(), refusal=reason)
        self._wake()

    # --- for the committer

    @property
    def pending(self) -> tuple[Answer, ...]:
        """What the next entry has to say, beside what the requests led to."""
        return tuple(self._pending.values())

    def journalled(self, answers: Sequence[Answer]) -> None:
        """The journal has these answers."""
        for answer in answers:
            del self._pending[answer.name]


class SnapshotDeeds:
    """The requests that are about tables' snapshots: `resync` and `cancel`."""

    def __init__(
        self,
        state: JournalState,
        register: SnapshotRegister,
        configuration: RecordConfiguration,
    ) -> None:
        self._state = state
        self._register = register
        self._configuration = configuration

    @property
    def by_kind(self) -> Mapping[str, Deed]:
        """Each with its kind."""
        return {"resync": self.resync, "cancel": self.cancel}

    def resync(self, request: Request) -> str:
        """A new snapshot of each table is wanted. Raises RequestRefused."""
        for table in self._tables(request):
            self._register.resync(table)
        return ""

    def cancel(self, request: Request) -> str:
        """No attempt is made until somebody asks again. Raises RequestRefused."""
        tables = self._tables(request)
        idle = [str(table) for table in tables if not self._register.cancel(table)]
        if len(idle) == len(tables):
            raise RequestRefused(f"there is nothing to cancel of {_some(idle)}")
        return f"there was nothing to cancel of {_some(idle)}" if idle else ""

    def _tables(self, request: Request) -> list[TableName]:
        if self._configuration.snapshot == "never":
            raise RequestRefused('this engine takes no snapshots: its snapshot is "never"')
        if not request.tables:
            raise RequestRefused("it names no table")
        return tables_named(request, self._state, self._configuration)


def tables_named(
    request: Request, state: JournalState, configuration: RecordConfiguration
) -> list[TableName]:
    """The tables that a request names, each once.

    Raises RequestRefused where the journal does not speak of one, or the configuration leaves it
    out.
    """
    known = known_tables(state)
    tables = [_parsed(text) for text in dict.fromkeys(request.tables)]
    unknown = [str(table) for table in tables if str(table) not in known]
    if unknown:
        raise RequestRefused(unknown_text(unknown, known))
    left_out = [str(table) for table in tables if not configuration.captures(table)]
    if left_out:
        raise RequestRefused(f"the configuration leaves out {_some(left_out)}")
    return tables


def known_tables(state: JournalState) -> frozenset[str]:
    """The tables that the journal speaks of."""
    watched = state.watch.tables if state.watch is not None else {}
    known = (state.frontiers, state.attempts, state.snapshots, state.versions, watched)
    return frozenset(name for names in known for name in names)


def unknown_text(unknown: Sequence[str], known: frozenset[str]) -> str:
    """That these tables are not known, and which names are near, or are there at all."""
    text = f"the journal knows no {_some(unknown)}"
    # Somebody may have left out the schema.
    bare = {name.rpartition(".")[2]: name for name in sorted(known)}
    near = get_close_matches(unknown[0], sorted(known), n=3)
    near = near or [bare[name] for name in get_close_matches(unknown[0], bare, n=3)]
    if near:
        return f"{text}; did you mean {_some(near)}?"
    return f"{text}; it knows {_some(sorted(known))}" if known else f"{text}, and no table at all"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _parsed(text: str) -> TableName:
    try:
        return TableName.parse(text)
    except ValueError as error:
        raise RequestRefused(str(error)) from error


class RequestWatch:
    """Looks for requests at an interval. `run` is its whole life."""

    def __init__(
        self,
        *,
        store: ObjectStore,
        prefix: str,
        register: RequestRegister,
        clock: Clock,
        interval: float,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._register = register
        self._clock = clock
        self._interval = interval
        self._told: set[str] = set()
        self.looked = asyncio.Event()
        """Set once there was a look, also a vain one."""

    async def run(self, *, is_at_once: bool = False) -> None:
        """Look until cancelled, which leaves requests that were not taken as they are.

        The first look is at once, or after the interval.
        """
        if not is_at_once:
            await asyncio.sleep(self._interval)
        while True:
            await self.look()
            self.looked.set()
            await asyncio.sleep(self._interval)

    async def look(self) -> None:
        """Take what is there. What cannot be had now is left to the next look.

        Cancellation leaves the rest to it, too.
        """
        try:
            await self._look()
        except DestinationRefused as error:
            self._tell_once("requests cannot be looked for", str(error))
        except DestinationError as error:
            _log.debug("requests were not looked for", error=str(error))

    async def _look(self) -> None:
        through = self._register.through
        after = request_key(self._prefix, through) if through else ""
        listed_count = taken_count = 0
        async for listed in self._store.list(requests_folder(self._prefix), after=after):
            listed_count += 1
            taken_count += await self._take(listed)
            if taken_count == REQUESTS_A_LOOK:
                return
            if listed_count == LISTED_A_LOOK:
                text = f"no more than {counted(LISTED_A_LOOK, 'object')} are looked at"
                self._tell_once("too many objects among the requests", text)
                return

    async def _take(self, listed: ListedObject) -> bool:
        """Whether it was an open request: then it has its answer."""
        name = request_name_of(self._prefix, listed.key)
        if name is None:
            self._tell_once("no request, left alone", listed.key)
            return False
        if not self._register.is_open(name):
            return False
        if request_time_us(name) > self._clock() + AHEAD_US:
            self._tell_once("a request from the future waits for its time", listed.key)
            return False
        if listed.size > REQUEST_BYTES_MAX:
            size, most = counted(listed.size, "byte"), counted(REQUEST_BYTES_MAX, "byte")
            self._register.refuse(name, f"it has {size}, and a request has {most} at most")
            return True
        return await self._read(name, listed.key)

    async def _read(self, name: str, key: str) -> bool:
        try:
            content = await self._store.get(key)
        except DestinationRefused as error:
            # It would stay so, and must not hold up those behind it.
            self._register.refuse(name, f"it cannot be read: {error}")
            return True
        if content is None:
            return False
        self._register.take(name, content)
        return True

    def _tell_once(self, event: str, text: str) -> None:
        """In one line of the log; of very many things only the first ones."""
        if text not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add(text)
            _log.warning(event, text=text)
