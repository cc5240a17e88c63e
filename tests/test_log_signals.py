"""Signals in the source's log: how they are read, judged and done once."""

import json
import struct
from collections import Counter

import pytest
from msgspec.structs import replace

from engine.journal.entry import ANSWERS_KEPT, Accepting, Answer, Entry, JournalState, Writer
from engine.journal.requests import SnapshotDeeds
from engine.journal.signals import LIMIT_SECONDS, SIGNALS_MAX, SignalRegister
from engine.model.batch import Signal
from engine.model.errors import DecodeError, LossKind, PositionLost
from engine.model.history import Judge, Landmark
from engine.model.position import NOWHERE, LogPosition, commit_of, log_position, make_position
from engine.model.record import RecordConfiguration
from engine.model.request import REQUEST_BYTES_MAX
from engine.sources.postgres.assembler import Assembler
from engine.sources.postgres.catalog import Catalog
from engine.sources.postgres.lsn import Lsn, log_point
from engine.sources.postgres.pgoutput import decode_message_head
from golden_frames import FRAMES
from memory_store import MemoryStore
from small_bucket import ORDERS, START_US, SmallBucket
from small_snapshot import Snapshots
from test_postgres_assembler import (
    NOON_US,
    always_first,
    begin,
    carried,
    commit,
    fed,
    insert,
    keepalive,
    relation,
)

ASK = json.dumps({"format": 1, "kind": "resync", "tables": [str(ORDERS)]}).encode()


def message(
    lsn: int, content: bytes = ASK, *, prefix: bytes = b"tailrace", is_transactional: bool = True
) -> bytes:
    head = struct.pack(">cBQ", b"M", is_transactional, lsn) + prefix + b"\0"
    return carried(head + struct.pack(">i", len(content)) + content, lsn)


def reader(judge: Judge | None = None, *, are_bare_hidden: bool = True) -> Assembler:
    return Assembler(
        database="shop",
        generation=1,
        configuration=RecordConfiguration("tailrace", tables=("public.*",)),
        decide=always_first,
        catalog=Catalog(),
        judge=judge,
        are_bare_hidden=are_bare_hidden,
    )


# --- how they are read


def test_a_signal_has_the_place_of_its_change_and_comes_with_its_commit() -> None:
    intake = fed(reader(), begin(100), message(90), commit(100))

    assert intake.signals == (Signal(make_position(1, 100, 90, 0), ASK, len(ASK)),)
    assert intake.boundary is not None


def test_signals_come_in_the_streams_order_among_rows() -> None:
    rows = (relation(1, "orders", "id"), insert(1, 91, 1))

    intake = fed(reader(), begin(100), message(90), *rows, message(92), commit(100))

    assert [signal.position[-23:-7] for signal in intake.signals] == [f"{90:016X}", f"{92:016X}"]
    assert [batch.row_count for batch in intake.batches] == [1]


def test_a_message_outside_a_transaction_has_no_place() -> None:
    intake = fed(reader(), message(90, is_transactional=False), keepalive(95))

    assert [signal.position for signal in intake.signals] == [NOWHERE]


def test_messages_of_others_are_passed_over_whatever_is_in_them() -> None:
    others = (message(90, prefix=b"other"), message(91, prefix=b"\xff"), message(92, prefix=b""))
    long = message(93, prefix=b"x" * 200_000)

    intake = fed(reader(), begin(100), *others, long, commit(100))

    assert intake.signals == ()


def test_of_a_long_message_only_its_size_is_kept() -> None:
    content = b"x" * 5_000_000

    intake = fed(reader(), begin(100), message(90, content), commit(100))

    assert intake.signals == (Signal(make_position(1, 100, 90, 0), b"", len(content)),)


def test_a_message_that_is_cut_anywhere_is_none_or_malformed() -> None:
    whole = FRAMES["message"][25:]
    found = decode_message_head(whole)

    for size in range(len(whole)):
        try:
            head = decode_message_head(whole[:size])
        except DecodeError:
            continue
        assert head is None or head.content == b"hello"[: len(head.content)]
    assert found is not None
    assert (found.prefix, found.content, found.size) == (b"tailrace", b"hello", 5)


@pytest.mark.parametrize(
    "content", [b"N\0", b"M\2" + 8 * b"\0", b"M\0" + 8 * b"\0" + b"p\0\xff\xff\xff\xff"]
)
def test_a_malformed_message_is_refused(content: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_message_head(content)


# --- transactions that hold nothing but messages: a stream without them does not show any


def landmark_of(*frames: bytes, are_bare_hidden: bool = True) -> str:
    boundary = fed(reader(are_bare_hidden=are_bare_hidden), *frames).boundary
    assert boundary is not None
    return boundary.landmark.position if boundary.landmark is not None else ""


def test_a_transaction_of_messages_alone_is_no_landmark() -> None:
    rows = (begin(50), relation(1, "orders", "id"), insert(1, 40, 1), commit(50))
    bare = (begin(100), message(90), commit(100))

    assert landmark_of(*rows, *bare) == log_position(1, 50)
    assert landmark_of(*rows, *bare, are_bare_hidden=False) == log_position(1, 100)


def test_a_transaction_with_rows_behind_a_message_is_a_landmark() -> None:
    rows = (relation(1, "orders", "id"), insert(1, 91, 1))

    assert landmark_of(begin(100), message(90), *rows, commit(100)) == log_position(1, 100)


def judging(*, confirmed: int = 20) -> Judge:
    """What is durable is 200, and the journal's newest commit is at 100."""
    return Judge(
        durable=log_point(1, Lsn(200)),
        confirmed=log_point(1, Lsn(confirmed)),
        landmark=Landmark(log_position(1, 100), NOON_US, "tailrace"),
    )


def test_a_transaction_of_messages_alone_is_not_judged() -> None:
    bare = (begin(150), message(140), commit(150))
    rows = (relation(1, "orders", "id"), insert(1, 95, 1))
    frames = (begin(100), *rows, commit(100), *bare, keepalive(200))

    intake = fed(reader(judging()), *frames)

    assert intake.boundary is not None
    assert [signal.position for signal in intake.signals] == [make_position(1, 150, 140, 0)]


def test_a_transaction_with_a_row_behind_a_message_is_judged_at_the_row() -> None:
    rows = (relation(1, "orders", "id"), insert(1, 95, 1))
    strange = (begin(150), message(140), insert(1, 145, 2))
    reading = reader(judging())

    with pytest.raises(PositionLost):
        fed(reading, begin(100), *rows, commit(100), *strange)


def test_no_signal_is_handed_over_while_the_log_is_judged() -> None:
    reading = reader(judging())

    before = fed(reading, begin(100), message(90), relation(1, "orders", "id"), insert(1, 95, 1))
    after = fed(reading, commit(100), keepalive(200))

    assert before.signals == ()
    assert len(after.signals) == 1


# --- how they are done


class Engine:
    """One writer with its signals and snapshots; an entry is made when a test says so."""

    def __init__(self, bucket: SmallBucket) -> None:
        self.bucket = bucket
        self.snapshots = Snapshots(bucket)
        self.counts: Counter[str] = Counter()
        state = bucket.journal.state
        deeds = SnapshotDeeds(state, self.snapshots.register, bucket.configuration)
        self.register = SignalRegister(
            state=state,
            deeds=deeds.by_kind,
            clock=lambda: START_US,
            wake=lambda: None,
            count=lambda outcome: self.counts.update([outcome]),
        )

    @property
    def state(self) -> JournalState:
        return self.bucket.journal.state

    async def append(self) -> None:
        snapshots, signals = self.snapshots.register.pending, self.register.pending
        seq = await self.bucket.journal.append(snapshots=snapshots, signals=signals)
        self.snapshots.register.journalled(snapshots, seq)
        self.register.journalled(signals)

    @property
    def outcomes(self) -> list[str]:
        return [answer.outcome for answer in self.register.pending]


async def engine(
    store: MemoryStore | None = None,
    writer: str = "writer-1",
    *,
    fork: LogPosition | None = None,
    accepting: Accepting | None = None,
) -> Engine:
    bucket = SmallBucket(store, snapshot="initial")
    await bucket.take_over(writer, accepting, fork)
    one = Engine(bucket)
    if store is None:
        one.snapshots.register.capture(ORDERS)
        await one.append()
    return one


def signal(order: int, content: bytes = ASK, *, generation: int = 1) -> Signal:
    position = make_position(generation, (1 << 40) + order, 1, 0)
    return Signal(position, content, len(content))


async def test_a_signal_is_done_once_in_a_life_and_in_the_next() -> None:
    one = await engine()
    one.register.take([signal(1)], 0.0)
    one.register.take([signal(1)], 1.0)
    pending = one.outcomes
    await one.append()
    one.register.take([signal(1)], 2.0)
    two = await engine(one.bucket.store, "writer-2")
    two.register.take([signal(1)], 0.0)
    again = two.outcomes
    two.register.take([signal(2), signal(1, generation=2)], 0.0)

    assert pending == ["done"]
    assert one.outcomes == again == []
    assert two.outcomes == ["done", "done"]
    assert one.counts == Counter(done=1)


async def test_a_signal_that_no_entry_answers_is_done_by_the_successor() -> None:
    one = await engine()
    one.register.take([signal(1)], 0.0)
    two = await engine(one.bucket.store, "writer-2")

    two.register.take([signal(1)], 0.0)

    assert two.outcomes == ["done"]


def place_of(order: int) -> LogPosition:
    """Before the commit with the signal of that number."""
    return commit_of(signal(order).position)


async def test_a_signal_behind_a_fork_is_new_whatever_was_answered_there() -> None:
    one = await engine()
    one.register.take([signal(1), signal(5)], 0.0)
    await one.append()
    two = await engine(one.bucket.store, "writer-2", fork=place_of(3))

    two.register.take([signal(1), signal(3), signal(4)], 0.0)

    assert list(two.state.signals) == [signal(1).position]
    assert two.outcomes == ["done", "done"]


@pytest.mark.parametrize(("loss", "outcomes"), [("keeper", ["done"]), ("moved", [])])
async def test_a_signal_in_a_log_that_is_made_anew_is_new(
    loss: LossKind, outcomes: list[str]
) -> None:
    """A slot that somebody moved has the same log behind it, and what was answered there."""
    one = await engine()
    one.register.take([signal(5)], 0.0)
    await one.append()
    lost = one.state.durable_position
    two = await engine(one.bucket.store, "writer-2", accepting=Accepting(lost, loss, "gone"))
    start = replace(two.bucket.durable(), position=place_of(3))
    await two.bucket.journal.append(durable=start, accepted=True)

    after = await engine(one.bucket.store, "writer-3")
    after.register.take([signal(4)], 0.0)

    assert after.outcomes == outcomes


async def test_what_commits_before_e_is_over() -> None:
    one = await engine()
    assert one.state.durable is not None
    order = int(one.state.durable.position.rpartition(".")[2], 16)

    one.register.take([Signal(make_position(1, order - 1, 1, 0), ASK, len(ASK))], 0.0)
    before = one.outcomes
    one.register.take([Signal(make_position(1, order, 1, 0), ASK, len(ASK))], 0.0)

    assert before == []
    assert one.outcomes == ["done"]


async def test_one_that_belongs_to_no_transaction_is_ignored() -> None:
    one = await engine()

    one.register.take([Signal(NOWHERE, ASK, len(ASK))], 0.0)

    assert one.outcomes == []
    assert one.counts == Counter(ignored=1)


async def test_one_that_is_too_long_is_refused() -> None:
    one = await engine()

    one.register.take([Signal(signal(1).position, b"", REQUEST_BYTES_MAX + 1)], 0.0)

    [answer] = one.register.pending
    assert answer.outcome == "refused"
    assert "65537 bytes" in answer.text


async def test_a_flood_is_limited_and_others_are_taken_later() -> None:
    one = await engine()

    one.register.take([signal(n) for n in range(SIGNALS_MAX + 5)], 0.0)
    early = one.counts.copy()
    one.register.take([signal(100)], LIMIT_SECONDS - 0.1)
    one.register.take([signal(101)], LIMIT_SECONDS)

    assert early == Counter(done=SIGNALS_MAX, dropped=5)
    assert one.counts == Counter(done=SIGNALS_MAX + 1, dropped=6)


async def test_one_that_was_dropped_is_not_taken_when_it_is_read_again() -> None:
    one = await engine()
    flood = [signal(n) for n in range(SIGNALS_MAX + 1)]
    one.register.take(flood, 0.0)

    one.register.take(flood, LIMIT_SECONDS)

    assert one.counts == Counter(done=SIGNALS_MAX, dropped=1)


async def test_the_journal_remembers_the_newest_answers_and_that_all_before_are_over() -> None:
    state = JournalState()
    names = [signal(n).position for n in range(ANSWERS_KEPT + 10)]
    for seq, name in enumerate(names):
        answer = Answer(name, "resync", "refused", "2026-11-22T09:51:54.056779Z")
        entry = Entry(
            format=1,
            seq=seq,
            epoch=1,
            nonce=str(seq),
            writer=Writer("w", "t", "r"),
            previous_sha256=state.sha256,
            signals=(answer,),
        )
        state.absorb(entry, str(seq).encode())

    assert list(state.signals) == names[10:]
    assert state.signals_through == names[-1]
    assert state.answers_through == ""
