"""The publisher alone: what it keeps in memory of tables."""

import asyncio
from collections.abc import Mapping

import pytest

from engine.journal.lanes import Lanes
from engine.journal.publisher import PlannedPut, Publisher
from engine.journal.retry import Patience
from engine.journal.schema_files import SchemaFiles
from memory_store import MemoryStore
from small_bucket import ODD, ORDERS, Piece, SmallBucket


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


class NobodyWatches:
    def publishes_in_flight(self, n: int) -> None:
        pass

    def published(self, *_: object) -> None:
        pass

    def publish_error(self, code: str, *, retryable: bool) -> None:
        pass


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
        lanes, patience = Lanes(group, 1), Patience(lambda _: None)
        publisher = Publisher(
            store=store,
            journal=bucket.journal,
            clock=lambda: 0,
            observer=NobodyWatches(),
            lanes=lanes,
            schema_files=SchemaFiles(store, bucket.journal, patience),
            patience=patience,
        )
        for piece in pieces:
            publisher.publish(published(bucket, piece), lambda put: seen.append(put.planned.key))
            await lanes.idle()

    # Asked for once more where it was forgotten, and everything is there all the same.
    assert len(store.schemas) == asked
    assert seen == [piece.planned.key for piece in pieces]
    assert set(seen) <= set(store.objects)


def published(bucket: SmallBucket, piece: Piece) -> PlannedPut:
    return PlannedPut(piece.planned, bucket.journal.state.seq, piece.body, 0, bucket.layout)
