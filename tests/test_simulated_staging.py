"""The simulated bucket's uploads in bad weather: what was staged becomes one object, or none."""

import random
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import pytest

from engine.flow.chunk import crc32_text
from engine.model.errors import DestinationUnavailable, UploadGone
from engine.model.staging import Completion
from simulation.store import Bucket, SimulatedStore, StoredObject, Upload, Weather
from simulation.virtual_loop import Process, VirtualLoop
from staged_objects import RECORDS, Staged, upload_ids

_T = TypeVar("_T")

KEY = "lake/k"
BODIES = (b"one\n", b"two\n", b"three\n")
CRC32 = crc32_text(zlib.crc32(b"".join(BODIES)))


class _Watcher:
    """Keeps what was made and whose uploads were aborted; nothing else is of interest."""

    def __init__(self) -> None:
        self.made: list[StoredObject] = []
        self.aborted: list[str] = []

    def created(self, stored: StoredObject) -> None:
        self.made.append(stored)

    def aborts(self, _sender: Process, key: str, _upload_id: str) -> None:
        self.aborted.append(key)

    def __getattr__(self, _name: str) -> Callable[..., bool]:
        return lambda *_: False


class World:
    def __init__(self, seed: int, *, trouble: float) -> None:
        self.loop = VirtualLoop()
        self.watcher = _Watcher()
        self.bucket = Bucket(
            loop=self.loop,
            rnd=random.Random(seed),
            now_us=lambda: int(self.loop.time() * 1_000_000),
            watcher=cast("Any", self.watcher),
            part_bytes=1 << 30,
            weather=Weather(trouble=trouble),
        )
        self.store = SimulatedStore(self.bucket, Process("engine"))

    def run(self, work: Awaitable[_T]) -> _T:
        async def main() -> _T:
            return await work

        return self.loop.run_until_complete(main())


async def until_answered(attempt: Callable[[], Awaitable[_T]]) -> _T:
    while True:
        try:
            return await attempt()
        except DestinationUnavailable:
            continue


async def stage(store: SimulatedStore) -> Staged:
    upload_id = await until_answered(
        lambda: store.begin_upload(KEY, content_type=RECORDS, metadata={"nonce": "a"})
    )
    parts = []
    for number, body in enumerate(BODIES, start=1):

        async def put(number: int = number, body: bytes = body) -> Any:
            return await store.put_part(KEY, upload_id, number, body)

        parts.append(await until_answered(put))
    return Staged(KEY, upload_id, tuple(parts), CRC32)


async def finish(store: SimulatedStore, upload: Staged) -> Completion:
    return await until_answered(
        lambda: store.complete_upload(KEY, upload.upload_id, upload.parts, crc32=upload.crc32)
    )


def test_whatever_the_weather_the_staged_object_is_made_once() -> None:
    counts: Counter[str] = Counter()
    answers: Counter[Completion] = Counter()
    for seed in range(80):
        world = World(seed, trouble=0.3)

        async def work(store: SimulatedStore = world.store) -> Completion:
            return await finish(store, await stage(store))

        answers[world.run(work())] += 1
        world.loop.dispose()

        assert [(made.key, made.body) for made in world.watcher.made] == [(KEY, b"".join(BODIES))]
        assert world.watcher.made[0].metadata == {"nonce": "a"}
        counts.update(world.bucket.counts)

    # A completion whose answer was lost is answered in each of the three ways when it is repeated.
    assert set(answers) == set(Completion)
    again = sum(count for name, count in counts.items() if name.startswith("completed again"))
    assert again > 10
    assert counts["applied late: part"] > 10
    assert counts["applied late: completion"] > 1


def test_what_was_aborted_is_never_made_also_not_by_a_late_completion() -> None:
    counts: Counter[str] = Counter()
    for seed in range(40):
        world = World(seed, trouble=0.3)

        async def work(world: World = world) -> None:
            upload = await stage(world.store)
            await until_answered(lambda: world.store.abort_upload(KEY, upload.upload_id))
            assert await finish(world.store, upload) is Completion.GONE
            with pytest.raises(UploadGone):
                await until_answered(
                    lambda: world.store.put_part(KEY, upload.upload_id, 1, b"late")
                )

        world.run(work())
        world.loop.dispose()

        assert world.watcher.made == []
        assert world.watcher.aborted == [KEY]
        counts.update(world.bucket.counts)

    assert counts["no such upload"] >= 40
    assert counts["part of no upload"] >= 40


def test_every_upload_is_listed_over_pages_of_any_size() -> None:
    for seed in range(20):
        world = World(seed, trouble=0.0)
        numbers = [world.bucket.begin_upload(f"lake/{count % 3}", {}) for count in range(7)]
        world.bucket.uploads[world.bucket.next_number()] = Upload("other/k", 0)

        listed = world.run(upload_ids(world.store, "lake/"))
        world.loop.dispose()

        assert listed == {str(number) for number in numbers}
