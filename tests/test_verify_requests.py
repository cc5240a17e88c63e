"""verify: what the journal says of requests is right, and every damage to it has its code."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from engine.journal.entry import Answer, Entry
from engine.model.position import make_position
from engine.model.request import request_name
from engine.reader.verify import Code, Depth, verify
from log_points import place
from memory_store import MemoryStore
from small_bucket import ODD, ORDERS, PREFIX, START_US, SmallBucket, rewrite_journal
from small_snapshot import Snapshots

CANCELLED, WANTED = (request_name(START_US + n, "0123456789abcdef") for n in (0, 1))


class SilentProgress:
    def reached(self, phase: str, done: int, total: int | None) -> None:
        pass


def answer(name: str, kind: str, *tables: object) -> Answer:
    return Answer(name, kind, "done", "2026-11-22T09:51:54.056779Z", tuple(map(str, tables)))


async def make_bucket() -> MemoryStore:
    """Orders is cancelled, then asked for again; the other table stays cancelled."""
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    for table in (ORDERS, ODD):
        snapshots.register.capture(table)
    await snapshots.append()
    for table in (ORDERS, ODD):
        snapshots.register.cancel(table)
    await answered(snapshots, answer(CANCELLED, "cancel", ORDERS, ODD))
    snapshots.register.resync(ORDERS)
    await answered(snapshots, answer(WANTED, "resync", ORDERS))
    return bucket.store


async def answered(snapshots: Snapshots, given: Answer) -> None:
    """The entry that has an answer and what it led to."""
    stated = snapshots.register.pending
    seq = await snapshots.bucket.journal.append(snapshots=stated, answers=(given,))
    snapshots.register.journalled(stated, seq)


async def codes(store: MemoryStore, depth: Depth = "light") -> set[Code]:
    verdict = await verify(store, PREFIX, depth=depth, concurrency=4, progress=SilentProgress())
    return {found.code for found in (*verdict.problems, *verdict.warnings)}


def without_statements(entry: Entry) -> Entry:
    return replace(entry, snapshots=()) if entry.answers else entry


def without_cancellations(entry: Entry) -> Entry:
    kept = tuple(each for each in entry.snapshots if each.state != "cancelled")
    return replace(entry, snapshots=kept)


def given_twice_in_one_entry(entry: Entry) -> Entry:
    return replace(entry, answers=entry.answers * 2)


def given_again_later(entry: Entry) -> Entry:
    again = tuple(replace(each, name=CANCELLED) for each in entry.answers)
    return replace(entry, answers=again)


def about_a_table_that_nobody_knows(entry: Entry) -> Entry:
    other = tuple(replace(each, tables=("public.nothing",)) for each in entry.answers)
    return replace(entry, answers=other)


def cancelled_as_an_attempt(entry: Entry) -> Entry:
    numbered = tuple(
        replace(each, attempt=7) if each.state == "cancelled" else each for each in entry.snapshots
    )
    return replace(entry, snapshots=numbered)


DAMAGES = (
    (without_statements, Code.REQUEST_WRONG),
    (without_cancellations, Code.REQUEST_WRONG),
    (given_twice_in_one_entry, Code.REQUEST_WRONG),
    (given_again_later, Code.REQUEST_WRONG),
    (about_a_table_that_nobody_knows, Code.REQUEST_WRONG),
    (cancelled_as_an_attempt, Code.SNAPSHOT_ATTEMPT),
)
REQUEST_CODES = {code for _, code in DAMAGES}


@pytest.mark.parametrize("depth", ["light", "full"])
async def test_requests_that_were_done_are_right(depth: Depth) -> None:
    assert await codes(await make_bucket(), depth) == set()


@pytest.mark.parametrize(("damage", "code"), DAMAGES)
async def test_every_damage_to_answers_is_found_by_its_code(
    damage: Callable[[Entry], Entry], code: Code
) -> None:
    store = await make_bucket()

    rewrite_journal(store, damage)

    assert code in await codes(store)


@pytest.mark.parametrize("had_snapshot", [False, True])
async def test_a_table_that_is_gone_before_its_answer_is_right(*, had_snapshot: bool) -> None:
    """Somebody asks for a snapshot of it, and drops it. One that had a snapshot is as before."""
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    snapshots.register.capture(ORDERS)
    await snapshots.append()
    if had_snapshot:
        await snapshots.make_whole(ORDERS)
        await snapshots.complete()
        await snapshots.append(snapshots.durable())

    snapshots.register.resync(ORDERS)
    snapshots.register.vanish((ORDERS,), place(bucket.commit))
    await answered(snapshots, answer(WANTED, "resync", ORDERS))

    assert await codes(bucket.store, "full") == set()


async def make_signalled() -> MemoryStore:
    """Orders is cancelled by a signal, then asked for again by another one."""
    bucket = SmallBucket(snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    snapshots.register.capture(ORDERS)
    await snapshots.append()
    snapshots.register.cancel(ORDERS)
    await signalled(snapshots, answer(make_position(1, 1 << 40, 1, 0), "cancel", ORDERS))
    snapshots.register.resync(ORDERS)
    await signalled(snapshots, answer(make_position(1, 1 << 40, 2, 0), "resync", ORDERS))
    return bucket.store


async def signalled(snapshots: Snapshots, given: Answer) -> None:
    stated = snapshots.register.pending
    seq = await snapshots.bucket.journal.append(snapshots=stated, signals=(given,))
    snapshots.register.journalled(stated, seq)


def without_signalled_statements(entry: Entry) -> Entry:
    return replace(entry, snapshots=()) if entry.signals else entry


def answered_again(entry: Entry) -> Entry:
    first = answer(make_position(1, 1 << 40, 1, 0), "explode")
    return replace(entry, signals=(first,)) if entry.signals else entry


async def test_signals_are_right_as_they_are_made() -> None:
    assert await codes(await make_signalled()) == set()


@pytest.mark.parametrize("damage", [without_signalled_statements, answered_again])
async def test_a_signal_that_is_not_done_or_done_twice_is_found(
    damage: Callable[[Entry], Entry],
) -> None:
    store = await make_signalled()

    rewrite_journal(store, damage)

    assert await codes(store) == {Code.REQUEST_WRONG}
