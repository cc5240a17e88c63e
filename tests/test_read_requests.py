"""How many requests it costs to read a table, counted where they cross the wire."""

from collections import Counter

import pytest

from configured import make_destination
from engine import app
from engine.model.interfaces import ObjectHead, ObjectTail
from engine.reader.table import kept
from engine.servers.fault_proxy import HttpFaultProxy
from engine.servers.servers import EmbeddedS3
from memory_store import MemoryStore
from small_bucket import PREFIX
from table_reader import Answer, asked
from test_table_changes import streamed

OBJECTS = 16


class AskedStore(MemoryStore):
    """Counts how its objects are asked for."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store.objects)
        self.asked: Counter[str] = Counter()

    async def head(self, key: str) -> ObjectHead | None:
        self.asked["head"] += key.endswith(".ndjson.gz")
        return await super().head(key)

    async def whole(self, key: str) -> ObjectTail | None:
        found = await super().whole(key)
        # Which is one request elsewhere.
        self.asked["head"] -= 1
        self.asked["whole"] += 1
        return found


async def read(
    s3: EmbeddedS3, bucket: str, prefix: str, **question: bool
) -> tuple[Answer, Counter[str]]:
    """A table of so many objects, each of a row, and by which methods its objects were asked."""
    store = (await streamed(*"c" * OBJECTS)).store
    async with HttpFaultProxy(s3.port) as proxy:
        destination = make_destination(
            bucket=bucket, prefix=prefix, region="us-east-1", endpoint_url=proxy.endpoint_url
        )
        async with app.open_bucket(destination) as opened:
            for key, made in store.objects.items():
                await opened.create(
                    key.replace(PREFIX, prefix, 1),
                    made.body,
                    content_type="application/x-ndjson",
                    metadata={name: text for name, text in made.metadata.items() if text},
                )
            before = len(proxy.requests)
            # The table never had a snapshot, which is no question here.
            answer = await asked(opened, prefix, allows_gaps=True, **question)
        requests = [one for one in proxy.requests[before:] if one.key.endswith(".ndjson.gz")]
    return answer, Counter(one.method for one in requests)


@pytest.mark.usefixtures("aws_environment")
@pytest.mark.parametrize("question", [{}, {"is_current": True}])
async def test_a_small_object_is_one_request(
    s3: EmbeddedS3, shared_bucket: str, prefix: str, question: dict[str, bool]
) -> None:
    answer, methods = await read(s3, shared_bucket, prefix, **question)

    # Each record is of the same row.
    assert len(answer.lines) == (1 if question else OBJECTS)
    assert methods == {"GET": OBJECTS}


@pytest.mark.usefixtures("aws_environment")
async def test_a_large_object_is_two_requests_and_is_not_kept(
    s3: EmbeddedS3, shared_bucket: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "SMALL_BYTES_MAX", 100)

    answer, methods = await read(s3, shared_bucket, prefix)

    assert len(answer.lines) == OBJECTS
    assert methods == {"HEAD": OBJECTS, "GET": OBJECTS}


async def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    store = (await streamed(*"c" * OBJECTS)).store
    sizes = [len(made.body) for key, made in store.objects.items() if key.endswith(".ndjson.gz")]
    monkeypatch.setattr(kept, "BYTES_MAX", sum(sizes[:10]))
    asking = AskedStore(store)

    answer = await asked(asking)

    assert len(answer.lines) == OBJECTS
    assert asking.asked == {"whole": 10, "head": OBJECTS - 10}


async def test_what_is_before_the_cursor_is_not_got_again() -> None:
    store = (await streamed(*"c" * OBJECTS)).store
    cursor = (await asked(store)).cursors[9]
    asking = AskedStore(store)

    answer = await asked(asking, since=cursor)

    assert len(answer.lines) == OBJECTS - 10
    # The cursor's own object shows that none is missing behind it.
    assert asking.asked == {"whole": OBJECTS - 10, "head": 1}
