"""One table read from a bucket in memory, and what came of it."""

import json
from dataclasses import dataclass
from typing import Any

from engine.model.interfaces import ObjectStore
from engine.reader.table import Question, Reading, open_reading
from small_bucket import PREFIX


@dataclass
class Answer:
    """`cursors` are those behind each object, in order; the last one is that of all."""

    reading: Reading
    lines: list[bytes]
    cursors: list[str]

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def positions(self) -> list[str]:
        return [record["metadata"]["position"] for record in self.records]

    @property
    def ops(self) -> str:
        return "".join(record["metadata"]["op"] for record in self.records)

    @property
    def doubts(self) -> list[str]:
        return [doubt.code for doubt in self.reading.doubts]


async def asked(store: ObjectStore, prefix: str = PREFIX, **question: Any) -> Answer:
    """The whole answer. Raises ReadRefused."""
    question.setdefault("table", "public.orders")
    reading = await open_reading(store, prefix, Question(**question))
    lines: list[bytes] = []
    cursors: list[str] = []
    async with reading.lines() as answer:
        async for some in answer:
            lines += bytes(some.lines).splitlines(keepends=True)
            cursors.append(some.cursor)
    return Answer(reading, lines, cursors)
