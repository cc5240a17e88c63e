"""Somebody who reads the bucket: one table's changes since a cursor, again and again.

Strategy: the engine's own reader gets a copy of the bucket, at times of its own, whatever the
engines are doing. It has no part in the world: nothing that it does takes time there, and no chance
of the world is drawn for it. So it runs in a loop of its own, in a thread that the world waits for.

Invariant: after each reading, what it gave in all is every change in the bucket that is before the
place it names, each once and in order, and every row of the snapshots that it found.
"""

import asyncio
import random
import threading
from typing import TYPE_CHECKING, Any, Final

import orjson

from engine.model.errors import ReadRefused
from engine.reader.table.reading import Question, open_reading
from memory_store import MemoryStore
from memory_store import StoredObject as Kept
from simulation.monitor import decompressed
from simulation.source import TABLES
from simulation.violation import Violation

if TYPE_CHECKING:
    from simulation.monitor import Monitor
    from simulation.store import Bucket

WORLDS: Final = 0.2
_PREFIX: Final = "lake"
_FORGETFUL: Final = 0.1


class BucketReader:
    """Reads one table in a loop. The monitor's counts say what it met."""

    def __init__(self, bucket: "Bucket", monitor: "Monitor", seed: int) -> None:
        self.rnd = random.Random(f"reader {seed}")
        self.is_on = self.rnd.random() < WORLDS
        self._bucket = bucket
        self._monitor = monitor
        self._counts = monitor.counts
        self._table = str(self.rnd.choice(TABLES))
        self._cursor = ""
        self._changes: list[str] = []
        self._rows: set[str] = set()

    def read(self) -> None:
        """Read on from the cursor, and compare. Raises Violation."""
        if self._cursor and self.rnd.random() < _FORGETFUL:
            # Somebody begins anew.
            self._cursor, self._changes, self._rows = "", [], set()
        try:
            records, self._cursor, until = self._answer(self._cursor)
        except ReadRefused as error:
            # One that never had a row may be left out again: then the journal forgets it.
            if error.code == "table-unknown" and not (self._changes or self._rows):
                return
            raise Violation(f"a reader is refused: {error.code}: {error}") from error
        self._counts["readings"] += 1
        self._take(records)
        there = self._there(until)
        if self._changes != there:
            lacks = sorted(set(there) - set(self._changes))
            has = sorted(set(self._changes) - set(there))
            text = f"lacks {lacks[:3]} and has {has[:3]} more, before {until}"
            raise Violation(f"a reader of {self._table} {text}")

    def finish(self) -> None:
        """Who reads on gets nothing twice; who begins now, nothing else. Raises Violation."""
        self.read()
        self.read()
        try:
            records, _, _ = self._answer("")
        except ReadRefused as error:
            if error.code == "table-unknown":
                return
            raise Violation(f"a new reader is refused: {error.code}: {error}") from error
        for record in records:
            if _is_row(record) and record["position"] not in self._rows:
                raise Violation(f"a reader of {self._table} lacks the row {record['position']}")
        changes = [record["position"] for record in records if not _is_row(record)]
        if changes != self._changes:
            raise Violation("a new reader reads other changes")

    def _take(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            position = record["position"]
            if _is_row(record):
                if position in self._rows:
                    raise Violation(f"a reader gets the row {position} twice")
                self._rows.add(position)
                self._counts["rows that a reader got"] += 1
                continue
            if self._changes and position <= self._changes[-1]:
                raise Violation(f"a reader gets {position} behind {self._changes[-1]}")
            self._changes.append(position)

    def _there(self, until: str) -> list[str]:
        """The positions of all changes in the bucket that are before `until`."""
        objects, plans = self._bucket.objects, self._monitor.journal.plans
        return sorted(
            position
            for key, statements in plans.items()
            if statements[0].planned["table"] == self._table and (stored := objects.get(key))
            for line in decompressed(stored).splitlines()
            if (position := orjson.loads(line)["position"]) < until
        )

    def _answer(self, since: str) -> tuple[list[dict[str, Any]], str, str]:
        answers: list[tuple[list[dict[str, Any]], str, str] | BaseException] = []

        def run() -> None:
            try:
                answers.append(asyncio.run(self._asked(since)))
            except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits.
                answers.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        [answer] = answers
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def _asked(self, since: str) -> tuple[list[dict[str, Any]], str, str]:
        store = MemoryStore(
            {
                key: Kept(stored.body, dict(stored.metadata), stored.created_us)
                for key, stored in self._bucket.objects.items()
            }
        )
        question = Question(table=self._table, since=since, allows_gaps=True)
        reading = await open_reading(store, _PREFIX, question)
        records: list[dict[str, Any]] = []
        async with reading.lines() as some:
            async for lines in some:
                records += [orjson.loads(line) for line in bytes(lines.lines).splitlines()]
        return records, reading.cursor, reading.known.until


def _is_row(record: dict[str, Any]) -> bool:
    """Whether a snapshot read it. Only those records have values."""
    return "value" in record
