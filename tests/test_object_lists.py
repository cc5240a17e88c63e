"""Long lists of staged objects: apart from the entry, there before it, and compared."""

import hashlib
import re

import msgspec
import orjson
import pytest

from engine.journal.entry import Snapshot, decode_state, encode_state
from engine.model.errors import (
    DestinationUnavailable,
    JournalError,
    NewerFormat,
    SnapshotStale,
)
from engine.model.layout import is_list_key, list_key, prefix_of
from engine.model.schema import TableName
from memory_store import MemoryStore
from small_bucket import ODD, ORDERS, PREFIX, SmallBucket
from small_snapshot import Snapshots

RANGES = {0: "t", 1: "rrr", 2: "rr", 3: "r"}


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.journal.object_lists.LIST_BYTES_MIN", 2_000)
    monkeypatch.setattr("engine.journal.retry._WAIT_SECONDS_FIRST", 0.0001)


async def opened(store: MemoryStore | None = None, writer: str = "writer-1") -> Snapshots:
    bucket = SmallBucket(store, snapshot="initial")
    await bucket.take_over(writer)
    return Snapshots(bucket)


def stated(snapshots: Snapshots) -> Snapshot:
    return snapshots.bucket.journal.state.snapshots[str(ORDERS)].snapshot


def lists(store: MemoryStore) -> list[str]:
    return [key for key in store.objects if "/snapshots/" in key]


def edit(store: MemoryStore, snapshot: Snapshot, **changes: object) -> Snapshot:
    """Write the list otherwise, and give the statement that names it so."""
    assert snapshot.listed is not None
    found = store.objects[snapshot.listed.key]
    found.body = orjson.dumps({**orjson.loads(found.body), **changes})
    sha256 = hashlib.sha256(found.body).hexdigest()
    return msgspec.structs.replace(
        snapshot, listed=msgspec.structs.replace(snapshot.listed, sha256=sha256)
    )


# --- where the objects are named


async def test_few_objects_are_named_by_the_entry() -> None:
    snapshots = await opened()

    objects = await snapshots.make_whole(ORDERS, {0: "t", 1: "r"})

    assert (stated(snapshots).objects, stated(snapshots).listed) == (objects, None)
    assert lists(snapshots.bucket.store) == []


async def test_many_objects_are_listed_apart_under_a_key_of_the_attempt() -> None:
    snapshots = await opened()

    objects = await snapshots.make_whole(ORDERS, RANGES)

    named, listed = stated(snapshots), stated(snapshots).listed
    assert named.objects == ()
    assert listed is not None
    assert lists(snapshots.bucket.store) == [listed.key]
    assert re.fullmatch(
        f"{PREFIX}/_tailrace/snapshots/public.orders/1-[0-9a-f]{{32}}.json", listed.key
    )
    body = snapshots.bucket.store.objects[listed.key].body
    assert (hashlib.sha256(body).hexdigest(), listed.count) == (listed.sha256, len(objects))
    assert await snapshots.lists.objects_of(named) == objects


async def test_very_many_objects_are_encoded_and_read_beside_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.journal.object_lists._THREAD_OBJECTS", 3)
    snapshots = await opened()

    objects = await snapshots.make_whole(ORDERS, RANGES)

    assert await snapshots.lists.objects_of(stated(snapshots)) == objects


async def test_the_list_is_there_before_the_register_has_anything_to_say() -> None:
    snapshots = await opened()
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    objects = await snapshots.stage(attempt, RANGES)
    seen: list[int] = []
    create = snapshots.bucket.store.create

    async def watched(key: str, body: bytes, **others: object) -> bool:
        seen.append(len(snapshots.register.pending))
        return await create(key, body, **others)  # type: ignore[arg-type] # as it came

    snapshots.bucket.store.create = watched  # type: ignore[method-assign] # a spy
    await snapshots.register.whole(attempt, objects)

    assert seen == [0]
    assert [pending.state for pending in snapshots.register.pending] == ["whole"]


async def test_a_lost_answer_writes_the_same_list_again() -> None:
    snapshots = await opened()
    create, asked = snapshots.bucket.store.create, list[str]()

    async def unlucky(key: str, body: bytes, **others: object) -> bool:
        answer = await create(key, body, **others)  # type: ignore[arg-type] # as it came
        if "/snapshots/" in key:
            asked.append(key)
            if len(asked) < 3:
                raise DestinationUnavailable("no answer", code="Timeout")
        return answer

    snapshots.bucket.store.create = unlucky  # type: ignore[method-assign] # a fault
    objects = await snapshots.make_whole(ORDERS, RANGES)

    assert len(asked) == 3
    assert lists(snapshots.bucket.store) == list(set(asked))
    assert await snapshots.lists.objects_of(stated(snapshots)) == objects


async def test_an_attempt_that_is_given_up_meanwhile_is_not_named() -> None:
    snapshots = await opened()
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    objects = await snapshots.stage(attempt, RANGES)
    create = snapshots.bucket.store.create

    async def slow(key: str, body: bytes, **others: object) -> bool:
        snapshots.register.give_up(attempt)
        return await create(key, body, **others)  # type: ignore[arg-type] # as it came

    snapshots.bucket.store.create = slow  # type: ignore[method-assign] # a gate
    with pytest.raises(SnapshotStale, match="was given up"):
        await snapshots.register.whole(attempt, objects)

    assert snapshots.register.pending == ()
    assert snapshots.register.needed() == (ORDERS,)


async def test_names_of_very_many_objects_are_said_by_several_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.journal.snapshots.NAMES_BYTES_MAX", 2_500)
    snapshots = await opened()
    tables = [TableName("public", name) for name in "abc"]
    attempts = [snapshots.start(table) for table in tables]
    await snapshots.append()
    for attempt in attempts:
        objects = await snapshots.stage(attempt, {0: "t", 1: "r"})
        await snapshots.register.whole(attempt, objects)
    snapshots.register.capture(ODD)

    said = []
    while pending := snapshots.register.pending:
        woken = snapshots.woken
        said.append([(snapshot.table, snapshot.state) for snapshot in pending])
        await snapshots.append(snapshots.durable())
        is_woken = snapshots.woken > woken
        assert is_woken == bool(snapshots.register.pending)

    first, *rest = said
    assert first == [("public.a", "whole"), (str(ODD), "wanted")]
    assert rest == [[("public.b", "whole")], [("public.c", "whole")]]


# --- who reads them


async def test_what_a_list_names_becomes_visible_and_the_state_forgets_the_list() -> None:
    snapshots = await opened()
    objects = await snapshots.make_whole(ORDERS, RANGES)

    await snapshots.complete()
    await snapshots.append(snapshots.durable())

    assert all(staged.key in snapshots.bucket.store.objects for staged in objects)
    assert stated(snapshots).listed is None


async def test_a_state_file_holds_where_the_list_is() -> None:
    snapshots = await opened()
    await snapshots.make_whole(ORDERS, RANGES)
    state = snapshots.bucket.journal.state

    read = decode_state(encode_state(state), "state")

    assert read == state
    assert read.named_attempts == (stated(snapshots),)


async def test_a_successor_spares_and_completes_what_a_list_names() -> None:
    before = await opened()
    objects = await before.make_whole(ORDERS, RANGES)

    after = await opened(before.bucket.store, "writer-2")
    spared = await after.lists.uploads_of(after.bucket.journal.state.named_attempts)
    await after.complete()

    assert spared == {staged.upload_id for staged in objects}
    assert all(staged.key in before.bucket.store.objects for staged in objects)


# --- a list that is not what the entry names


async def refused(snapshots: Snapshots) -> JournalError:
    with pytest.raises(ExceptionGroup) as caught:
        await snapshots.complete()
    (error,) = caught.value.exceptions
    assert isinstance(error, JournalError)
    return error


async def test_a_list_that_is_gone_is_refused_by_its_key() -> None:
    snapshots = await opened()
    await snapshots.make_whole(ORDERS, RANGES)
    (key,) = lists(snapshots.bucket.store)
    del snapshots.bucket.store.objects[key]

    error = await refused(snapshots)

    assert f"{key} is not there" in str(error)
    assert "Restore it" in error.hint


async def test_a_list_with_other_bytes_is_refused_and_nothing_is_completed() -> None:
    snapshots = await opened()
    objects = await snapshots.make_whole(ORDERS, RANGES)
    (key,) = lists(snapshots.bucket.store)
    snapshots.bucket.store.objects[key].body += b" "

    error = await refused(snapshots)

    assert f"{key} is another list" in str(error)
    assert {staged.upload_id for staged in objects} <= set(snapshots.bucket.store.uploads)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"table": "public.other"}, "of attempt 1 of public.other"),
        ({"attempt": 2}, "of attempt 2"),
        ({"objects": []}, "lists 0 objects"),
        ({"objects": 7}, "no list of objects"),
    ],
)
async def test_a_list_of_something_else_is_refused(changes: dict[str, object], text: str) -> None:
    snapshots = await opened()
    await snapshots.make_whole(ORDERS, RANGES)
    named = edit(snapshots.bucket.store, stated(snapshots), **changes)

    with pytest.raises(JournalError, match=text):
        await snapshots.lists.objects_of(named)


async def test_a_list_of_a_newer_format_asks_for_a_newer_release() -> None:
    snapshots = await opened()
    await snapshots.make_whole(ORDERS, RANGES)
    named = edit(snapshots.bucket.store, stated(snapshots), format=2)

    with pytest.raises(NewerFormat):
        await snapshots.lists.objects_of(named)


# --- keys


@pytest.mark.parametrize("prefix", ["", "pipes/shop"])
@pytest.mark.parametrize(
    "table", [ORDERS, ODD, TableName("a.b/c~", "ü" * 63), TableName("s", "x" * 500)]
)
def test_a_lists_key_is_the_prefixs_own(prefix: str, table: TableName) -> None:
    key = list_key(prefix, table, 12, "0a1b")

    assert prefix_of(key) == prefix
    assert is_list_key(prefix, key)
    assert not is_list_key("pipes/other", key)
    assert len(key.encode()) < 400


def test_two_tables_never_share_a_lists_folder() -> None:
    folders = {
        list_key("", table, 1, "0a").rsplit("/", 1)[0]
        for table in (TableName("a.b", "c"), TableName("a", "b.c"), TableName("a", "b%2Ec"))
    }

    assert len(folders) == 3


@pytest.mark.parametrize(
    "key",
    [
        "_tailrace/snapshots/a.b/1.json",
        "_tailrace/snapshots/a/1-0a.json",
        "_tailrace/journal/1.json",
    ],
)
def test_other_keys_are_no_lists(key: str) -> None:
    assert not is_list_key("", key)
