"""The completer: what the journal names becomes visible, or its attempt is void."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest

from engine.journal.completer import REFUSALS_MAX
from engine.journal.entry import Snapshot, StreamStart
from engine.model.errors import DestinationUnavailable, JournalError, Superseded, TailraceError
from engine.model.interfaces import ObjectHead
from engine.model.position import snapshot_position
from engine.model.staged_object import StagedObject
from engine.model.staging import Completion, StagedPart
from memory_store import MemoryStore, StoredObject
from small_bucket import ORDERS, SmallBucket
from small_snapshot import Snapshots

Answer = Callable[[str, int], Completion | DestinationUnavailable | None]
"""What a completion of that key is answered, the n-th time; None: as the store would."""


class ToldStore(MemoryStore):
    """A store that answers as it is told, and keeps what was asked of it in order."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.answer: Answer = lambda _key, _count: None

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        if key.endswith("schema.json"):
            self.asked.append(key)
        return await super().create(
            key, body, content_type=content_type, metadata=metadata, in_one_request=in_one_request
        )

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[StagedPart], *, crc32: str
    ) -> Completion:
        self.asked.append(key)
        answer = self.answer(key, self.asked.count(key))
        if isinstance(answer, DestinationUnavailable):
            raise answer
        return answer or await super().complete_upload(key, upload_id, parts, crc32=crc32)

    async def abort_upload(self, key: str, upload_id: str) -> bool:
        self.asked.append(f"abort {key}")
        return await super().abort_upload(key, upload_id)

    async def head(self, key: str) -> ObjectHead | None:
        self.asked.append(f"look at {key}")
        return await super().head(key)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.journal.retry._WAIT_SECONDS_FIRST", 0.0001)
    monkeypatch.setattr("engine.journal.retry.WAIT_SECONDS_MAX", 0.001)


@pytest.fixture
def store() -> ToldStore:
    return ToldStore()


async def opened(store: MemoryStore, writer: str = "writer-1", commit: int = 0x1000) -> Snapshots:
    bucket = SmallBucket(store, snapshot="initial")
    bucket.commit = commit
    await bucket.take_over(writer)
    return Snapshots(bucket)


def stated(snapshots: Snapshots) -> Snapshot:
    return snapshots.bucket.journal.state.snapshots[str(ORDERS)].snapshot


def is_visible(snapshots: Snapshots) -> bool:
    """Whether the register was told so."""
    return snapshots.register.oldest_pending_seq is None and not is_void(snapshots)


def is_void(snapshots: Snapshots) -> bool:
    return [pending.state for pending in snapshots.register.pending] == ["void"]


def there(store: MemoryStore, objects: Sequence[StagedObject]) -> list[bool]:
    return [staged.key in store.objects for staged in objects]


async def completed_by_hand(store: MemoryStore, staged: StagedObject) -> None:
    await MemoryStore.complete_upload(
        store, staged.key, staged.upload_id, staged.parts, crc32=staged.crc32
    )


async def failing(snapshots: Snapshots) -> TailraceError:
    """The error that ends the completion."""
    with pytest.raises(ExceptionGroup) as caught:
        await snapshots.complete()
    (error,) = caught.value.exceptions
    assert isinstance(error, TailraceError)
    return error


# --- it becomes visible


async def test_what_the_journal_names_becomes_visible(store: ToldStore) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)

    await snapshots.complete()

    assert all(there(store, objects))
    assert is_visible(snapshots)
    assert store.uploads == {}


async def test_nothing_is_completed_before_schema_json_and_range_0_comes_last(
    store: ToldStore,
) -> None:
    snapshots = await opened(store)
    ranges = {0: "tR", 1: "RR", 2: "r"}
    objects = await snapshots.make_whole(ORDERS, ranges, bytes_max=1)
    begin, *rows = (staged.key for staged in objects)
    assert len(rows) == 3

    await snapshots.complete()

    schema, *completed, last = store.asked
    assert schema == snapshots.bucket.layout.schema_key(ORDERS, 1)
    assert sorted(completed) == sorted(rows)
    assert last == begin


async def test_a_lanes_objects_become_visible_in_order_and_lanes_do_not_wait(
    store: ToldStore,
) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS, {0: "t", 1: "RRR", 2: "r"}, bytes_max=1)
    held = objects[1].key
    refusals = 5

    def answer(key: str, count: int) -> DestinationUnavailable | None:
        is_refused = key == held and count <= refusals
        return DestinationUnavailable("slow", code="SlowDown") if is_refused else None

    store.answer = answer
    await snapshots.complete()

    lane = [staged.key for staged in objects if staged.range_number == 1]
    assert [key for key in store.asked if key in lane] == [held] * refusals + lane
    assert store.asked.index(objects[4].key) < store.asked.index(lane[1])


async def test_a_completer_is_idle_when_all_that_was_given_is_decided(store: ToldStore) -> None:
    snapshots = await opened(store)
    await snapshots.make_whole(ORDERS)

    async with asyncio.TaskGroup() as group:
        completer = snapshots.completer(group)
        before = completer.is_idle
        completer.resume()
        meanwhile = completer.is_idle
    assert (before, meanwhile, completer.is_idle) == (True, False, True)


async def test_a_key_that_an_earlier_completion_of_ours_took_is_done(store: ToldStore) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)
    for staged in objects:
        await completed_by_hand(store, staged)

    await snapshots.complete()

    assert is_visible(snapshots)


async def test_an_upload_that_is_gone_is_done_where_its_object_is_there(store: ToldStore) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)
    for staged in objects:
        await completed_by_hand(store, staged)
    store.answer = lambda _key, _count: Completion.GONE

    await snapshots.complete()

    assert is_visible(snapshots)


async def test_an_answer_that_never_came_is_asked_for_again(store: ToldStore) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)
    lost = DestinationUnavailable("no answer", code="Timeout")
    store.answer = lambda _key, count: lost if count <= REFUSALS_MAX + 5 else None

    await snapshots.complete()

    # However often: only what the store says for good is given up.
    assert all(there(store, objects))
    assert is_visible(snapshots)
    assert not any(asked.startswith("abort") for asked in store.asked)


async def test_a_successor_goes_on_and_looks_at_what_the_predecessor_completed(
    store: ToldStore,
) -> None:
    before = await opened(store)
    objects = await before.make_whole(ORDERS)
    await completed_by_hand(store, objects[1])

    after = await opened(store, "writer-2", before.bucket.commit)
    await after.complete()

    assert all(there(store, objects))
    assert is_visible(after)


async def test_what_is_visible_already_is_not_asked_for_again(store: ToldStore) -> None:
    snapshots = await opened(store)
    await snapshots.make_whole(ORDERS)
    await snapshots.complete()
    await snapshots.append(snapshots.durable())
    store.asked.clear()

    await snapshots.complete()

    assert store.asked == []


# --- it does not


async def test_an_upload_that_is_gone_without_its_object_voids_the_attempt(
    store: ToldStore,
) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)
    await store.abort_upload(objects[2].key, objects[2].upload_id)

    await snapshots.complete()

    # What was visible before stays; the record that supersedes everything older is not there.
    assert there(store, objects) == [False, True, False]
    assert is_void(snapshots)
    assert store.uploads == {}


async def test_behind_a_gone_upload_its_lane_is_not_gone_on_with(store: ToldStore) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS, {0: "t", 1: "RR"}, bytes_max=1)
    await store.abort_upload(objects[1].key, objects[1].upload_id)

    await snapshots.complete()

    assert there(store, objects) == [False, False, False]
    assert is_void(snapshots)


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "InvalidPart", "BadDigest"])
async def test_a_refusal_that_stays_is_given_up_after_its_upload_was_aborted(
    store: ToldStore, code: str
) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)
    refused = objects[1].key
    conflict = DestinationUnavailable("refused", code=code)
    store.answer = lambda key, _count: conflict if key == refused else None

    await snapshots.complete()

    asked = [request for request in store.asked if request.endswith(refused)]
    # First the upload goes: else it might become visible behind the look.
    assert asked == [refused] * REFUSALS_MAX + [f"abort {refused}", f"look at {refused}"]
    assert is_void(snapshots)
    assert not there(store, objects)[1]


async def test_a_refusal_that_passes_is_no_reason_to_give_up(store: ToldStore) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)
    conflict = DestinationUnavailable("refused", code="ConditionalRequestConflict")
    store.answer = lambda _key, count: conflict if count < REFUSALS_MAX else None

    await snapshots.complete()

    assert all(there(store, objects))
    assert is_visible(snapshots)


async def test_a_refused_upload_whose_object_came_all_the_same_is_done(store: ToldStore) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)
    for staged in objects:
        await completed_by_hand(store, staged)
    conflict = DestinationUnavailable("refused", code="ConditionalRequestConflict")
    store.answer = lambda _key, _count: conflict

    await snapshots.complete()

    assert is_visible(snapshots)


# --- somebody else was there


def foreign(staged: StagedObject, store: MemoryStore) -> None:
    """Another upload's object under the same key."""
    upload = store.uploads[staged.upload_id]
    store.objects[staged.key] = StoredObject(
        b"".join(upload.parts.values()), {**upload.metadata, "nonce": "another"}
    )


async def test_a_strangers_object_under_the_key_is_an_error(store: ToldStore) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)
    foreign(objects[1], store)

    error = await failing(snapshots)

    assert isinstance(error, JournalError)
    assert objects[1].key in str(error)
    assert snapshots.register.pending == ()


async def test_an_object_of_another_size_is_a_strangers(store: ToldStore) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)
    await completed_by_hand(store, objects[1])
    store.objects[objects[1].key].body += b"more"

    assert isinstance(await failing(snapshots), JournalError)


async def test_a_strangers_object_may_be_a_successors(store: ToldStore) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)
    foreign(objects[1], store)
    await opened(store, "writer-2", snapshots.bucket.commit)

    assert isinstance(await failing(snapshots), Superseded)


# --- what is left over


async def test_other_uploads_of_the_attempt_are_aborted_and_no_others(store: ToldStore) -> None:
    snapshots = await opened(store)
    attempt = snapshots.start(ORDERS)
    await snapshots.append()
    # Another worker did the same range, and was later.
    objects = await snapshots.stage(attempt)
    (late,) = await snapshots.stage(attempt, {1: "rrr"})
    await snapshots.register.whole(attempt, objects)
    await snapshots.append()
    later = snapshot_position(attempt.point.position, attempt.number + 1, 1, 0)
    key = snapshots.bucket.layout.object_key(ORDERS, 1, attempt.hour, later, "gzip")
    kept = await store.begin_upload(key, content_type="", metadata={})

    await snapshots.complete()

    assert late.upload_id not in store.uploads
    assert set(store.uploads) == {kept}
    assert is_visible(snapshots)


async def test_uploads_that_cannot_be_listed_are_left_and_nothing_else_happens(
    store: ToldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = await opened(store)
    objects = await snapshots.make_whole(ORDERS)

    def unavailable(*_: object) -> None:
        raise DestinationUnavailable("list uploads: SlowDown", code="SlowDown")

    monkeypatch.setattr(store, "list_uploads", unavailable)
    await snapshots.complete()

    assert all(there(store, objects))
    assert is_visible(snapshots)


async def test_where_the_stream_waits_objects_become_visible_in_the_order_of_their_names(
    store: ToldStore,
) -> None:
    snapshots = await opened(store)
    await snapshots.bucket.journal.append(stream=StreamStart(waits=True))
    objects = await snapshots.make_whole(ORDERS)
    wanted = sorted(staged.key for staged in objects)
    seen: list[list[bool]] = []

    def answer(_key: str, count: int) -> Completion | DestinationUnavailable | None:
        # Whoever is slow holds up those behind it.
        seen.append([key in store.objects for key in wanted])
        return DestinationUnavailable("slow", code="SlowDown") if count == 1 else None

    store.answer = answer
    await snapshots.complete()

    assert is_visible(snapshots)
    assert all(there == sorted(there, reverse=True) for there in seen)
    assert [key for key in store.asked if key in wanted] == [key for key in wanted for _ in "12"]
