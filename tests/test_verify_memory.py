"""verify holds one number a planned object, however long journal and listing are."""

import asyncio
import gc
import hashlib
import random
import tracemalloc
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from engine.journal.entry import (
    FORMAT,
    Entry,
    Open,
    Planned,
    Writer,
    decode_entry,
    encode_entry,
)
from engine.journal.publisher import object_metadata
from engine.model.interfaces import ListedObject, ObjectTail
from engine.model.layout import TableLayout, journal_key
from engine.model.position import NOWHERE, make_position
from engine.model.record import RecordConfiguration
from engine.model.schema import Column, Relation, TableName, TableVersion
from engine.model.schema_document import schema_document
from engine.reader.verify import Verdict, verify
from engine.reader.verify.key_set import KeySet
from log_points import durable, identity
from memory_store import MemoryStore

CONFIGURATION = RecordConfiguration(through="tailrace", tables=("*.*",))
SOURCE = identity()
WRITER = Writer("w", "task", "test")
ORDERS = TableName("public", "orders")
LAYOUT = TableLayout("lake", "shop", "hive")
COLUMNS = (Column("id", "integer", "integer", key=True),)
HOUR = "2026-11-22T09"


class LongBucket(MemoryStore):
    """A journal of so many entries, each with one plan; its objects are made when asked for."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self._entries: list[bytes] = []
        relation = Relation(ORDERS, "1", COLUMNS, ("id",))
        version = TableVersion(1, make_position(1, 1, 1, 0), "", relation)
        self._schema = schema_document(version, None, "shop")
        previous, digest = NOWHERE, ""
        for seq in range(entries):
            position = make_position(1, seq * 16 + 16, seq * 16, 0)
            key = LAYOUT.object_key(ORDERS, 1, HOUR, position, "gzip")
            planned = Planned(
                str(ORDERS),
                key,
                previous,
                position,
                position,
                1,
                {"c": 1},
                1,
                1,
                9,
                "00000000",
                HOUR,
            )
            entry = Entry(
                format=FORMAT,
                seq=seq,
                epoch=1,
                nonce=str(seq),
                writer=WRITER,
                previous_sha256=digest,
                open=Open(SOURCE, CONFIGURATION) if seq == 0 else None,
                schemas=(version,) if seq == 0 else (),
                planned=(planned,),
                durable=durable(seq * 16 + 1, "", seq=seq),
            )
            content = encode_entry(entry)
            digest, previous = hashlib.sha256(content).hexdigest(), position
            self._entries.append(content)

    async def get(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        if key.endswith("schema.json"):
            return self._schema
        seq = int(key.rsplit("/", 1)[1].split(".", maxsplit=1)[0])
        return self._entries[seq] if seq < len(self._entries) else None

    def _planned(self, seq: int) -> Planned:
        return decode_entry(self._entries[seq], "").planned[0]

    async def tail(self, key: str, size_bytes: int) -> ObjectTail | None:
        await asyncio.sleep(0)
        commit = int(key.rsplit("/", 1)[1].split(".")[1], 16)
        planned = self._planned(commit // 16 - 1)
        return ObjectTail(30, object_metadata(planned, "w", 30), bytes(4) + b"\t\0\0\0")

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ListedObject]:
        begin = 0
        if after.endswith(".json") and "/journal/" in after:
            begin = int(after.rsplit("/", 1)[1].split(".", maxsplit=1)[0]) + 1
        if prefix.endswith("/journal/") or (prefix == "lake/" and "database=" not in after):
            for seq in range(begin, len(self._entries)):
                yield ListedObject(journal_key("lake", seq), 1, 0)
        if prefix == "lake/":
            commit = int(after.rsplit("/", 1)[1].split(".")[1], 16) if "database=" in after else 0
            for seq in range(commit // 16, len(self._entries)):
                yield ListedObject(self._planned(seq).key, 1, 0)


class SilentProgress:
    def reached(self, phase: str, done: int, total: int | None) -> None:
        pass


def peak_bytes(entries: int) -> tuple[int, Verdict]:
    """What a verification of so many entries holds at most, beside the bucket itself."""
    bucket = LongBucket(entries)
    # Else what other tests left decides how rarely cycles are looked for.
    gc.collect()
    gc.freeze()
    # How many objects live long is counted here, and they are to be few.
    gc.collect()
    tracemalloc.start()
    try:
        verdict = asyncio.run(
            verify(bucket, "lake", depth="light", concurrency=16, progress=SilentProgress())
        )
        return tracemalloc.get_traced_memory()[1], verdict
    finally:
        tracemalloc.stop()
        gc.unfreeze()


@pytest.mark.timeout(300)
def test_memory_does_not_grow_with_the_journal_but_for_a_number_an_object() -> None:
    # With fewer entries, pages and the window of reads ahead are not full yet. A peak varies by
    # some 300,000 bytes from one measurement to the next, so the two lengths are far apart.
    # In a process of its own: threads that other tests have left would be counted, too.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        small, _ = apart.submit(peak_bytes, 4_000).result()
        large, verdict = apart.submit(peak_bytes, 14_000).result()

    assert verdict.problems == ()
    assert (verdict.entries, verdict.objects) == (14_000, 14_000)
    assert large - small < 10_000 * 60


def test_a_key_set_holds_what_was_added_and_nothing_else() -> None:
    chance, keys = random.Random(7), KeySet()
    texts = [f"lake/{chance.getrandbits(64)}" for _ in range(20_000)]

    for text in texts[::2]:
        keys.add(text)
        keys.add(text)

    assert len(keys) == 10_000
    assert all(text in keys for text in texts[::2])
    assert not any(text in keys for text in texts[1::2])
