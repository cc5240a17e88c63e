"""Somebody who reads the bucket: one table's changes since a cursor, again and again.

Strategy: the engine's own reader gets a copy of the bucket, at times of its own, whatever the
engines are doing. It has no part in the world: nothing that it does takes time there, and no chance
of the world is drawn for it. So it runs in a loop of its own, in a thread that the world waits for.

The same reader folds tables' current rows. Its fold takes lines of real records. So each line of
the simulation is written anew as one, between the object and the fold. All else is the engine's.

Invariant: after each reading, what it gave in all is every change in the bucket that is before the
place it names, each once and in order, and every row of the snapshots that it found. The current
rows are the server's as of the place they name, or the reader is refused by a name that is true.
"""

import asyncio
import random
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import orjson

from engine.model.errors import JournalError, ReadRefused
from engine.model.position import LogPosition, Position
from engine.model.schema import TableName, TableVersion
from engine.reader.table.bodies import Bodies, Body
from engine.reader.table.reading import Question, Reading, open_reading
from engine.reader.table.steps import Step
from memory_store import MemoryStore
from memory_store import StoredObject as Kept
from simulation.monitor import decompressed, is_within
from simulation.source import DROPPED, TABLES, fold_one
from simulation.violation import Violation

if TYPE_CHECKING:
    from simulation.monitor import Monitor
    from simulation.source import Server
    from simulation.store import Bucket

_Answer = TypeVar("_Answer")

WORLDS: Final = 0.2
_PREFIX: Final = "lake"
_FORGETFUL: Final = 0.1
_CURRENT: Final = 0.3

_EXPIRED: Final = frozenset(
    {"expired", "snapshot-expired", "journal-expired", "object-missing", "table-unknown"}
)
"""What a reader may be told of any table where objects expire."""


class BucketReader:
    """Reads one table in a loop. The monitor's counts say what it met."""

    def __init__(
        self,
        bucket: "Bucket",
        monitor: "Monitor",
        server: "Server",
        seed: int,
        *,
        is_expiring: bool = False,
    ) -> None:
        self.rnd = random.Random(f"reader {seed}")
        self.is_on = self.rnd.random() < WORLDS
        self._bucket = bucket
        self._monitor = monitor
        self._server = server
        self._is_expiring = is_expiring
        self._counts = monitor.counts
        self._table = str(self.rnd.choice(TABLES))
        self._cursor = ""
        self._changes: list[str] = []
        self._rows: set[str] = set()

    def read(self) -> None:
        """Read on from the cursor, and compare. Raises Violation."""
        if self._monitor.is_doomed:
            return  # The monitor follows the journal no further, and nobody goes on with it.
        if self._cursor and self.rnd.random() < _FORGETFUL:
            # Somebody begins anew.
            self._cursor, self._changes, self._rows = "", [], set()
        if self.rnd.random() < _CURRENT:
            self._fold(self._table)
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

    def fold(self) -> None:
        """The current rows of all tables are the server's, or refused. Raises Violation."""
        for table in TABLES:
            self._fold(str(table))

    def _fold(self, table: str) -> None:
        if self._monitor.is_doomed:
            return
        try:
            rows, until = _in_a_thread(lambda: self._asked_rows(table))
        except ReadRefused as error:
            self._counts[f"current rows refused: {error.code}"] += 1
            if not self._is_right(error.code, table):
                text = f"refused: {error.code}: {error}"
                raise Violation(f"a reader of {table}'s current rows is {text}") from error
            return
        except JournalError as error:
            if self._is_expiring:
                return
            raise Violation(f"a reader of {table}'s current rows: {error}") from error
        if self._is_left_out(table) or self._is_unstated(table, until):
            self._counts["current rows not compared"] += 1
            return
        self._counts["current rows read"] += 1
        self._counts["current rows"] += len(rows)
        there = sorted(self._rows_there(TableName.parse(table), until).items())
        if rows != there:
            lacks, has = sorted({*there} - {*rows}), sorted({*rows} - {*there})
            text = f"lack {lacks[:3]} and have {has[:3]} more, of {len(there)} before {until}"
            raise Violation(f"{table}'s current rows {text}")

    def _is_left_out(self, table: str) -> bool:
        """Whether settings left it out for a while, and it has no snapshot since.

        The journal states no gap of that, and a truncate record may hide that there is none.
        """
        journal = self._monitor.journal
        stated = journal.snapshots.stated.get(table)
        is_based = stated is not None and stated.visible is not None
        return not is_based and TableName.parse(table) not in self._monitor.always_captured

    def _is_unstated(self, table: str, until: str) -> bool:
        """Whether the server did not send something that no gap states, or not yet.

        The monitor judges whether one has to: a commit becomes durable before the next look.
        """
        gaps = self._monitor.journal.gaps.values()
        return any(
            str(change.table) == table
            and change.position < until
            and not any(is_within(change, gap) for gap in gaps)
            for change in self._server.lost
        )

    def _rows_there(self, name: TableName, until: str) -> dict[int, str]:
        """The server's rows that the bucket can give before `until`, and what made each so.

        A table that takes the name has rows of its own there: from its first record on the old
        one's are gone. In the simulation a name keeps its rows, and a snapshot reads all of them.
        """
        stated = self._monitor.journal.snapshots.stated.get(str(name))
        visible = stated.visible if stated is not None else None
        rows: dict[int, Position] = {}
        point, oid = "", 0
        if visible is not None and visible.point <= until:
            point = visible.began
            rows = self._server.rows_before(name, LogPosition(point))
            number = visible.snapshot["version"]
            known = self._monitor.journal.versions[str(name)]
            oid = next(version.oid for version in known if version.number == number)
        for change in self._server.history[name]:
            if point <= change.position < until:
                if change.op != DROPPED and change.oid != oid:
                    rows.clear()
                    oid = change.oid
                fold_one(rows, change.op, change.key, change.position)
        return {key: str(value) for key, value in rows.items()}

    def _is_right(self, code: str, table: str) -> bool:
        """Whether it is true what the reader is told."""
        journal = self._monitor.journal
        stated = journal.snapshots.stated.get(table)
        gaps = [gap for gap in journal.gaps.values() if gap["table"] == table]
        truths = {
            "table-unknown": table not in journal.known or not journal.plans,
            "not-captured": not journal.configuration.captures(TableName.parse(table)),
            "unfinished": table in journal.snapshots.unfinished(journal.durable or ""),
            "no-snapshot": stated is None or stated.visible is None,
            "rename-unclear": any(gap["reason"] == "columns-unclear" for gap in gaps),
            "gap": any(not gap.get("mended") for gap in gaps),
        }
        return truths.get(code, False) or (self._is_expiring and code in _EXPIRED)

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
        return _in_a_thread(lambda: self._asked(since))

    async def _asked(self, since: str) -> tuple[list[dict[str, Any]], str, str]:
        question = Question(table=self._table, since=since, allows_gaps=True)
        reading = await open_reading(self._copy(), _PREFIX, question)
        records: list[dict[str, Any]] = []
        async with reading.lines() as some:
            async for lines in some:
                records += [orjson.loads(line) for line in bytes(lines.lines).splitlines()]
        return records, reading.cursor, reading.known.until

    async def _asked_rows(self, table: str) -> tuple[list[tuple[int, str]], str]:
        reading = await open_reading(self._copy(), _PREFIX, Question(table=table, is_current=True))
        reading = replace(reading, bodies=cast("Bodies", _RealBodies(reading)))
        rows: list[tuple[int, str]] = []
        async with reading.lines() as some:
            async for lines in some:
                found = map(orjson.loads, bytes(lines.lines).splitlines())
                rows += [(row["id"], row["note"]) for row in found]
        return sorted(rows), reading.known.until

    def _copy(self) -> MemoryStore:
        return MemoryStore(
            {
                key: Kept(stored.body, dict(stored.metadata), stored.created_us)
                for key, stored in self._bucket.objects.items()
            }
        )


class _RealBodies:
    """Bodies whose lines are written anew, as the engine would write them."""

    def __init__(self, reading: Reading) -> None:
        self._bodies = reading.bodies
        self._versions = {version.number: version for version in reading.known.versions}

    async def of(
        self, steps: Iterable[Step], group: asyncio.TaskGroup
    ) -> AsyncGenerator[Body, None]:
        async with aclosing(self._bodies.of(steps, group)) as bodies:
            async for body in bodies:
                version = self._versions[body.step.version]
                lines = [
                    _real(orjson.loads(line), version) for line in body.lines.tobytes().splitlines()
                ]
                yield Body(body.step, memoryview(b"".join(lines)))


def _real(record: dict[str, Any], version: TableVersion) -> bytes:
    """A record of the simulation as a line of the standard envelope.

    The text column holds which change made the row what it is.
    """
    table, key, op = version.relation.table, record["key"], record["op"]
    names = [column.name for column in version.relation.columns]
    row = dict.fromkeys(names, "") | {"id": key, "note": record.get("value", record["position"])}
    line = {
        "before": {"id": key} if op == "d" else None,
        "after": row if op not in "dt" else None,
        "metadata": {
            "op": op,
            "connector": "simulated",
            "db": "shop",
            "schema": table.schema,
            "table": table.table,
            "key": ["id"],
            "version": version.number,
            "source_ts_ms": 0,
            "position": record["position"],
        },
    }
    return orjson.dumps(line) + b"\n"


def _in_a_thread(ask: Callable[[], Coroutine[Any, Any, _Answer]]) -> _Answer:
    answers: list[_Answer | BaseException] = []

    def run() -> None:
        try:
            answers.append(asyncio.run(ask()))
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits.
            answers.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    [answer] = answers
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _is_row(record: dict[str, Any]) -> bool:
    """Whether a snapshot read it. Only those records have values."""
    return "value" in record
