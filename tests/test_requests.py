"""Requests by way of the bucket: judged, done once, and answered in the entry that does them."""

import contextlib
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.journal.entry import ANSWERS_KEPT, Answer, JournalState
from engine.journal.requests import (
    AHEAD_US,
    REQUESTS_A_LOOK,
    RequestRegister,
    RequestWatch,
    SnapshotDeeds,
)
from engine.model.errors import DestinationRefused, DestinationUnavailable
from engine.model.layout import requests_folder
from engine.model.record import SnapshotMode
from engine.model.request import (
    REQUEST_BYTES_MAX,
    Request,
    RequestRefused,
    decode_request,
    encode_request,
    request_key,
    request_name,
    request_name_of,
    request_time_us,
)
from memory_store import MemoryStore
from small_bucket import ODD, ORDERS, PREFIX, START_US, SmallBucket
from small_snapshot import Snapshots

NONCE = "0123456789abcdef"
US_MAX = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()) * 1_000_000


class Engine:
    """One writer with its requests and snapshots; an entry is made when a test says so."""

    def __init__(self, bucket: SmallBucket) -> None:
        self.bucket = bucket
        self.snapshots = Snapshots(bucket)
        state = bucket.journal.state
        deeds = SnapshotDeeds(state, self.snapshots.register, bucket.configuration)
        self.woken = 0
        self.register = RequestRegister(
            state=state, deeds=deeds.by_kind, clock=self.now_us, wake=self._wake
        )

    def now_us(self) -> int:
        return START_US

    def _wake(self) -> None:
        self.woken += 1

    @property
    def state(self) -> JournalState:
        return self.bucket.journal.state

    async def look(self) -> None:
        """One look."""
        watch = RequestWatch(
            store=self.bucket.store,
            prefix=PREFIX,
            register=self.register,
            clock=self.now_us,
            interval=0,
        )
        await watch.look()

    async def append(self) -> int:
        """The next entry, as the committer makes it."""
        snapshots, answers = self.snapshots.register.pending, self.register.pending
        seq = await self.bucket.journal.append(snapshots=snapshots, answers=answers)
        self.snapshots.register.journalled(snapshots, seq)
        self.register.journalled(answers)
        return seq

    async def know(self, *tables: object) -> None:
        """The journal speaks of these tables, and nobody takes their snapshots."""
        for table in (ORDERS, ODD):
            if table in tables:
                self.snapshots.register.capture(table)
        await self.append()

    async def ask(self, body: bytes | Request, *, at_us: int = START_US, nonce: str = NONCE) -> str:
        """Somebody creates a request."""
        name = request_name(at_us, nonce)
        content = body if isinstance(body, bytes) else encode_request(body)
        await self.bucket.store.create(
            request_key(PREFIX, name), content, content_type="application/json", metadata={}
        )
        return name

    def snapshot_state(self) -> str:
        return self.state.snapshots[str(ORDERS)].snapshot.state


async def engine(
    snapshot: SnapshotMode = "initial", store: MemoryStore | None = None, writer: str = "writer-1"
) -> Engine:
    bucket = SmallBucket(store, snapshot=snapshot)
    await bucket.take_over(writer)
    return Engine(bucket)


def resync(*tables: object) -> Request:
    return Request(1, "resync", tuple(map(str, tables)))


def cancel(*tables: object) -> Request:
    return Request(1, "cancel", tuple(map(str, tables)))


# --- names and bytes


@given(st.integers(0, US_MAX), st.integers(0, US_MAX), st.integers(0, 2**64 - 1))
def test_names_sort_by_time_and_tell_it(first: int, second: int, nonce: int) -> None:
    names = [request_name(time_us, f"{nonce:016x}") for time_us in (first, second)]

    assert [request_time_us(name) for name in names] == [first, second]
    assert (names[0] < names[1]) == (first < second)
    assert request_name_of(PREFIX, request_key(PREFIX, names[0])) == names[0]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x",
        f"20261301T000000.000000Z-{NONCE}",
        f"20260230T000000.000000Z-{NONCE}",
        f"20261129T000000.000000Z-{NONCE.upper()}",
        f"20261129T000000.000000Z-{NONCE}.json",
        f"a/20261129T000000.000000Z-{NONCE}",
    ],
)
def test_other_keys_are_no_requests(name: str) -> None:
    assert request_name_of(PREFIX, f"{requests_folder(PREFIX)}{name}.json") is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(content: bytes) -> None:
    with contextlib.suppress(RequestRefused):
        request = decode_request(content)
        assert decode_request(encode_request(request)) == request


# --- what becomes of a request


async def test_a_resync_is_done_and_answered_in_one_entry() -> None:
    running = await engine()
    await running.know(ORDERS)
    running.snapshots.start(ORDERS)
    await running.snapshots.append()
    name = await running.ask(resync(ORDERS))

    await running.look()
    before = running.state.is_answered(name)
    await running.append()

    assert not before
    assert running.woken == 1
    assert running.snapshot_state() == "wanted"
    assert running.state.answers[name] == Answer(
        name, "resync", "done", "2026-11-22T09:51:54.056779Z", (str(ORDERS),)
    )


async def test_an_answered_request_is_not_done_again() -> None:
    running = await engine()
    await running.know(ORDERS)
    await running.ask(resync(ORDERS))
    await running.look()
    await running.append()
    running.snapshots.start(ORDERS)
    await running.snapshots.append()

    await running.look()

    assert running.register.pending == ()
    assert running.snapshot_state() == "started"


async def test_a_request_that_waits_for_its_entry_is_not_taken_twice() -> None:
    running = await engine()
    await running.know(ORDERS)
    await running.ask(resync(ORDERS))

    await running.look()
    await running.look()

    assert len(running.register.pending) == 1
    assert running.woken == 1


async def test_a_crash_before_the_entry_leaves_the_request_to_the_successor() -> None:
    first = await engine()
    await first.know(ORDERS)
    name = await first.ask(resync(ORDERS))
    await first.look()
    is_judged = bool(first.register.pending)

    second = await engine(store=first.bucket.store, writer="writer-2")
    await second.look()
    await second.append()

    assert is_judged
    assert second.state.answers[name].outcome == "done"


async def test_a_crash_after_the_entry_leaves_nothing_to_do() -> None:
    first = await engine()
    await first.know(ORDERS)
    await first.ask(cancel(ORDERS))
    await first.look()
    await first.append()

    second = await engine(store=first.bucket.store, writer="writer-2")
    await second.look()

    assert second.register.pending == ()
    assert second.snapshot_state() == "cancelled"


async def test_two_engines_that_took_one_request_do_it_once() -> None:
    first = await engine()
    await first.know(ORDERS)
    name = await first.ask(resync(ORDERS))
    await first.look()
    second = await engine(store=first.bucket.store, writer="writer-2")
    await second.look()
    await second.append()

    with pytest.raises(Exception, match="another writer"):
        await first.append()
    third = await engine(store=first.bucket.store, writer="writer-3")

    assert third.state.answers[name].outcome == "done"
    assert [answer.name for answer in third.state.answers.values()] == [name]


async def test_cancelling_ends_an_attempt_and_says_where_there_was_nothing() -> None:
    running = await engine()
    await running.know(ORDERS)
    await running.snapshots.make_whole(ODD)
    name = await running.ask(cancel(ORDERS, ODD))

    await running.look()
    await running.append()

    assert running.snapshot_state() == "cancelled"
    assert running.state.answers[name].text == f"there was nothing to cancel of {ODD}"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (b"{", "no request"),
        (b"[]", "no request"),
        (b'{"format":1}', "no request"),
        (b'{"format":1,"kind":"resync","tables":[7]}', "no request"),
        (b'{"format":2,"kind":"resync"}', "format 2"),
        (b"\xff", "no request"),
        (b"[" * 60_000, "no request"),
        (b" " * (REQUEST_BYTES_MAX + 1), "65537 bytes"),
        (Request(1, "dance", ("public.orders",)), "knows: cancel, resync"),
        (resync(), "names no table"),
        (resync("orders"), "not schema.table"),
        (resync("public.order"), "did you mean public.orders?"),
        (resync("public.zzzzzz"), "it knows public.orders"),
        (resync("public.orders", "public.zzzzzz"), "knows no public.zzzzzz;"),
        (cancel("public.orders"), "nothing to cancel of public.orders"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_the_reason(
    asked: bytes | Request, reason: str
) -> None:
    running = await engine()
    await running.snapshots.make_whole(ORDERS)
    name = await running.ask(asked)

    await running.look()
    await running.append()
    await running.look()

    answer = running.state.answers[name]
    assert answer.outcome == "refused"
    assert reason in answer.text
    assert running.register.pending == ()
    assert running.snapshot_state() == "whole"


async def test_an_engine_that_takes_no_snapshots_refuses() -> None:
    running = await engine("never")
    name = await running.ask(resync(ORDERS))

    await running.look()
    await running.append()

    assert '"never"' in running.state.answers[name].text


# --- what lies among the requests


async def test_a_look_takes_only_so_many() -> None:
    running = await engine()
    await running.know(ORDERS)
    for number in range(REQUESTS_A_LOOK + 3):
        await running.ask(b"{", nonce=f"{number:016x}")

    await running.look()

    assert len(running.register.pending) == REQUESTS_A_LOOK


async def test_objects_that_are_no_requests_are_left_alone() -> None:
    running = await engine()
    for key in ("readme.txt", "sub/folder.json", ""):
        await running.bucket.store.create(
            requests_folder(PREFIX) + key, b"{", content_type="text/plain", metadata={}
        )

    await running.look()

    assert running.register.pending == ()


async def test_a_request_from_the_future_waits() -> None:
    running = await engine()
    await running.ask(b"{", at_us=START_US + AHEAD_US + 1)
    near = await running.ask(b"{", at_us=START_US + AHEAD_US)

    await running.look()

    assert [answer.name for answer in running.register.pending] == [near]


@pytest.mark.parametrize("error", [DestinationUnavailable("gone"), DestinationRefused("403")])
async def test_a_request_that_cannot_be_read_holds_up_nobody(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await engine()
    await running.ask(b"{")

    async def get(key: str) -> bytes | None:
        raise error

    monkeypatch.setattr(running.bucket.store, "get", get)
    await running.look()

    outcomes = [answer.outcome for answer in running.register.pending]
    assert outcomes == (["refused"] if isinstance(error, DestinationRefused) else [])


# --- what the journal remembers


async def test_forgotten_requests_are_over_all_the_same() -> None:
    state = JournalState()
    begin = datetime(2026, 11, 29, tzinfo=UTC)
    names = [
        request_name(int((begin + timedelta(seconds=n)).timestamp()) * 1_000_000, NONCE)
        for n in range(ANSWERS_KEPT + 5)
    ]
    late = request_name(int(begin.timestamp()) * 1_000_000 + 1, NONCE)

    for name in names:
        state._absorb_answers((Answer(name, "resync", "done", ""),))

    assert len(state.answers) == ANSWERS_KEPT
    assert all(state.is_answered(name) for name in names)
    assert state.answers_through == names[4]
    assert state.is_answered(late)
    assert not state.is_answered(names[-1] + "0")
    assert msgspec.json.decode(msgspec.json.encode(state), type=JournalState) == state
