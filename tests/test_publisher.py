"""The publisher alone: who becomes visible when, and whose object lies under a planned key."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from engine.journal.lanes import Lanes
from engine.journal.publisher import PlannedPut, object_metadata
from engine.journal.retry import Patience
from engine.journal.schema_files import SchemaFiles
from engine.model.errors import (
    DestinationUnavailable,
    JournalError,
    JournalUnseen,
    Superseded,
)
from memory_store import MemoryStore, StoredObject
from publishing import publisher_of
from small_bucket import ODD, ORDERS, Piece, SmallBucket, restated


class CountingStore(MemoryStore):
    """Counts who asks for which schema.json."""

    def __init__(self) -> None:
        super().__init__()
        self.schemas: list[str] = []

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
            self.schemas.append(key)
        return await super().create(
            key,
            body,
            content_type=content_type,
            metadata=metadata,
            in_one_request=in_one_request,
        )


class ForgetfulStore(MemoryStore):
    """Loses the answers of the next `lost_count` objects; keeps what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.lost_count = 0
        self.bodies: list[bytes] = []

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        is_created = await super().create(
            key,
            body,
            content_type=content_type,
            metadata=metadata,
            in_one_request=in_one_request,
        )
        if content_type == "application/x-ndjson":
            self.bodies.append(body)
            if self.lost_count:
                self.lost_count -= 1
                raise DestinationUnavailable("the answer is lost", code="Timeout")
        return is_created


class HollowStore(MemoryStore):
    """Says of every object that its key is taken."""

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        if content_type == "application/x-ndjson":
            return False
        return await super().create(
            key,
            body,
            content_type=content_type,
            metadata=metadata,
            in_one_request=in_one_request,
        )


@dataclass
class Rig:
    """A publisher of a bucket that has planned one object a letter, all of one table."""

    bucket: SmallBucket
    pieces: list[Piece]
    seen: list[str] = field(default_factory=list)

    @classmethod
    async def planned(cls, store: MemoryStore, count: int = 1) -> "Rig":
        bucket = SmallBucket(store)
        await bucket.take_over("writer-1")
        version = bucket.version(ORDERS)
        pieces = [bucket.piece(ORDERS, "c") for _ in range(count)]
        plans = tuple(piece.planned for piece in pieces)
        await bucket.journal.append(schemas=(version,), planned=plans)
        return cls(bucket, pieces)

    async def publish(self) -> None:
        """Give all objects to a publisher, and wait until they are visible."""
        store, journal = self.bucket.store, self.bucket.journal
        async with asyncio.TaskGroup() as group:
            lanes = Lanes(group, 1)
            publisher = publisher_of(store, journal, lanes)
            for piece in self.pieces:
                publisher.publish(
                    published(self.bucket, piece), lambda put: self.seen.append(put.planned.key)
                )
            await lanes.idle()

    @property
    def keys(self) -> list[str]:
        return [piece.planned.key for piece in self.pieces]

    def put_before(self, metadata: dict[str, str]) -> None:
        """Somebody has made the first object already."""
        self.bucket.store.objects[self.keys[0]] = StoredObject(self.pieces[0].body, metadata)


@pytest.mark.parametrize(("known_max", "asked"), [(2, 2), (1, 4)])
async def test_the_schemas_that_are_known_to_be_there_are_bounded(
    monkeypatch: pytest.MonkeyPatch, known_max: int, asked: int
) -> None:
    monkeypatch.setattr("engine.journal.schema_files.SCHEMAS_KNOWN_MAX", known_max)
    store = CountingStore()
    bucket = SmallBucket(store)
    await bucket.take_over("writer-1")
    versions = (bucket.version(ORDERS), bucket.version(ODD))
    pieces = [bucket.piece(table, "c") for table in (ORDERS, ODD, ORDERS, ODD, ODD)]
    await bucket.journal.append(schemas=versions, planned=tuple(piece.planned for piece in pieces))
    seen: list[str] = []

    async with asyncio.TaskGroup() as group:
        lanes = Lanes(group, 1)
        publisher = publisher_of(store, bucket.journal, lanes)
        for piece in pieces:
            publisher.publish(published(bucket, piece), lambda put: seen.append(put.planned.key))
            await lanes.idle()

    # Asked for once more where it was forgotten, and everything is there all the same.
    assert len(store.schemas) == asked
    assert seen == [piece.planned.key for piece in pieces]
    assert set(seen) <= set(store.objects)


async def test_who_slept_over_a_plan_puts_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await Rig.planned(MemoryStore(), count=1)

    async def refuse() -> None:
        raise JournalUnseen("the machine slept")

    monkeypatch.setattr(rig.bucket.journal, "refuse_unseen", refuse)

    with pytest.raises(ExceptionGroup) as caught:
        await rig.publish()

    assert isinstance(caught.value.exceptions[0], JournalUnseen)
    assert not rig.bucket.store.objects.keys() & set(rig.keys)


@pytest.mark.parametrize(("known_seconds", "asked"), [(3600.0, 1), (0.0, 3)])
async def test_a_schema_that_has_expired_is_put_again_once_it_is_asked_for_anew(
    known_seconds: float, asked: int
) -> None:
    store = CountingStore()
    rig = await Rig.planned(store, count=3)
    files = SchemaFiles(store, rig.bucket.journal, Patience(lambda _: None), known_seconds)
    key = rig.bucket.layout.schema_key(ORDERS, 1)
    await files.ensure(ORDERS, 1, rig.bucket.layout)
    first = store.objects.pop(key)

    await files.ensure(ORDERS, 1, rig.bucket.layout)
    await files.ensure(ORDERS, 1, rig.bucket.layout)

    assert len(store.schemas) == asked
    assert (store.objects.get(key) == first) == (asked > 1)


async def test_objects_of_a_table_are_there_in_order_behind_their_schema() -> None:
    rig = await Rig.planned(MemoryStore(), count=3)

    await rig.publish()

    assert rig.seen == rig.keys
    objects = rig.bucket.store.objects
    made = [key for key in objects if "/_tailrace/" not in key]
    assert made == [rig.bucket.layout.schema_key(ORDERS, 1), *rig.keys]
    for piece in rig.pieces:
        body = objects[piece.planned.key].body
        assert body == piece.body
        metadata = object_metadata(piece.planned, "writer-1", len(body))
        assert objects[piece.planned.key].metadata == metadata


async def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_bytes() -> None:
    store = ForgetfulStore()
    rig = await Rig.planned(store)
    store.lost_count = 1

    await rig.publish()

    assert rig.seen == rig.keys
    assert store.bodies == [rig.pieces[0].body] * 2


async def test_an_object_that_any_statement_of_its_plan_says_is_ours() -> None:
    rig = await Rig.planned(MemoryStore())
    again = restated(rig.bucket, rig.pieces[0])
    await rig.bucket.journal.append(planned=(again.planned,))
    rig.put_before(object_metadata(rig.pieces[0].planned, "writer-0", 1))
    rig.pieces = [again]

    await rig.publish()

    assert rig.seen == rig.keys


async def test_an_object_of_somebody_else_under_a_planned_key_is_a_named_error() -> None:
    rig = await Rig.planned(MemoryStore())
    rig.put_before({"first-position": "another"})

    with pytest.RaisesGroup(pytest.RaisesExc(JournalError, match="another object than")):
        await rig.publish()

    assert not rig.seen


async def test_an_object_that_a_successor_may_have_restated_means_that_we_are_superseded() -> None:
    rig = await Rig.planned(MemoryStore())
    rig.put_before({"first-position": "another"})
    ours = rig.bucket.journal
    await rig.bucket.take_over("writer-2")
    rig.bucket.journal = ours

    with pytest.RaisesGroup(pytest.RaisesExc(Superseded, match="restated by another writer")):
        await rig.publish()


async def test_a_key_that_is_taken_by_nothing_is_a_named_error() -> None:
    rig = await Rig.planned(HollowStore())

    with pytest.RaisesGroup(pytest.RaisesExc(JournalError, match="cannot be looked up")):
        await rig.publish()


def published(bucket: SmallBucket, piece: Piece) -> PlannedPut:
    return PlannedPut(piece.planned, bucket.journal.state.seq, piece.body, 0, bucket.layout)
