"""A source without a database: a log that is computed, for measuring the engine alone.

Strategy: row `i` of the log follows from `i`. The values of a thousand rows are made once. A
transaction is the same values under its own place in the log. They are handed to the line writer,
as the reader of a real stream does. So everything from the line writer on is the engine's own work,
and nothing waits for a database.

Invariant: the log is the same for everybody who asks for it with the same arguments: a successor
makes again what its predecessor planned.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from engine.lines.batcher import Batcher
from engine.lines.holding import Holding
from engine.lines.writer import (
    OP_CREATE,
    VALUE_BOOLEAN,
    VALUE_JSON,
    VALUE_NUMBER,
    VALUE_TEXT,
    LineWriter,
)
from engine.model.batch import Boundary, Intake
from engine.model.history import Landmark
from engine.model.interfaces import (
    NO_MEASURES,
    ChangeStream,
    SourceIdentity,
    SourceMeasures,
    Standing,
)
from engine.model.log_point import LogPoint
from engine.model.position import LogPosition, Position, log_position
from engine.model.record import RecordConfiguration
from engine.model.schema import Column, Decide, Relation, TableName
from engine.model.trial import Judgement, judgements

ROWS_A_TRANSACTION: Final = 1_000
_TRANSACTIONS_AN_INTAKE: Final = 2
"""Transactions in one intake: about what a drain of a socket gives, 1.2 MiB of lines."""

_END_SECONDS: Final = 0.1

_ORDERS_A_TRANSACTION: Final = 0x100000
_BEGAN_US: Final = 1_767_225_600_000_000
"""2026-01-01 00:00 UTC. The log's time is its own: a million rows are one second of it."""

_COLUMNS: Final = (
    ("id", "bigint", "integer", VALUE_NUMBER, "number"),
    ("quantity", "integer", "integer", VALUE_NUMBER, "number"),
    ("name", "text", "text", VALUE_TEXT, "string"),
    ("amount", "numeric(12,2)", "numeric", VALUE_TEXT, "string"),
    ("changed_at", "timestamp with time zone", "timestamptz", VALUE_TEXT, "string"),
    ("is_paid", "boolean", "boolean", VALUE_BOOLEAN, "boolean"),
    ("ratio", "double precision", "float", VALUE_NUMBER, "number"),
    ("reference", "uuid", "text", VALUE_TEXT, "string"),
    ("attributes", "jsonb", "json", VALUE_JSON, "any"),
    ("due", "date", "text", VALUE_TEXT, "string"),
    ("status", "character varying(40)", "text", VALUE_TEXT, "string"),
    ("grade", "smallint", "integer", VALUE_NUMBER, "number"),
)


_FORMS: Final = {name: form for name, _, _, form, _ in _COLUMNS}

Values = tuple[bytes, ...]


class SyntheticSource:
    """Implements `engine.model.interfaces.Source`: `row_count` inserts, spread over tables."""

    def __init__(self, *, row_count: int, table_count: int = 1) -> None:
        """At most `ROWS_A_TRANSACTION` tables: each transaction has rows of all of them."""
        if not 1 <= table_count <= ROWS_A_TRANSACTION:
            raise ValueError(f"{table_count} tables: 1 to {ROWS_A_TRANSACTION} are possible")
        self._transaction_count = -(-row_count // ROWS_A_TRANSACTION)
        self._row_count = row_count
        self._relations = tuple(_relation(number) for number in range(1, table_count + 1))

    async def identify(self) -> SourceIdentity:
        """See Source."""
        return SourceIdentity(
            type="synthetic",
            database="synthetic",
            lease="",
            facts={"log": f"{self._row_count} rows over {len(self._relations)} tables"},
            branch="",
            through="",
        )

    async def prepare(self, *, is_first: bool) -> None:
        """See Source: nothing is needed."""

    def adopt(self, generation: int) -> None:
        """See Source. Its log is always the same one."""

    async def renew(self) -> None:
        """See Source. Nothing can be lost. Cancellation changes nothing."""

    def trials(self, *, is_first: bool) -> AsyncIterator[Judgement]:
        """See Source: nothing is needed."""
        del is_first
        return judgements()

    async def seen(self) -> None:
        """See Source: nothing keeps its log, which is computed."""

    async def look(self) -> None:
        """See Source: nobody can change anything behind it."""

    def describe(self, identity: SourceIdentity) -> str:
        """See Source."""
        return f"a computed log, {identity.facts['log']}"

    @property
    def keeper(self) -> str:
        """See Source."""
        return "the computed log"

    @property
    def measures(self) -> SourceMeasures:
        """See Source."""
        return NO_MEASURES

    def distance(self, begin: LogPoint, end: LogPoint) -> int:
        """See Source."""
        return max(0, transactions_before(end) - transactions_before(begin)) * _ORDERS_A_TRANSACTION

    async def end(self) -> LogPoint:
        """See Source."""
        return end_of(self._transaction_count)

    async def fork(self, branch: str) -> LogPosition:
        """See Source: a computed log has one history."""
        raise AssertionError(f"a computed log never forks, nor has a branch {branch!r}")

    def stream(
        self,
        start: LogPoint | None,
        configuration: RecordConfiguration,
        decide: Decide,
        *,
        landmark: Landmark | None = None,
        single_rows: bool = False,
    ) -> AbstractAsyncContextManager[ChangeStream]:
        """See Source. A computed log has one history."""
        del landmark
        stream = SyntheticStream(
            relations=self._relations,
            row_count=self._row_count,
            start=start,
            configuration=configuration,
            decide=decide,
            is_single_rows=single_rows,
        )
        return _entered(stream)


class SyntheticStream:
    """Implements `engine.model.interfaces.ChangeStream`."""

    def __init__(
        self,
        *,
        relations: tuple[Relation, ...],
        row_count: int,
        start: LogPoint | None,
        configuration: RecordConfiguration,
        decide: Decide,
        is_single_rows: bool,
    ) -> None:
        self._relations = dict(enumerate(relations, 1))
        self._rows = tuple(_row(index, relations) for index in range(ROWS_A_TRANSACTION))
        self._row_count = row_count
        self._next = transactions_before(start)
        self._lines = LineWriter(1, connector="synthetic")
        self._batcher = Batcher(
            self._lines,
            database="synthetic",
            configuration=configuration,
            decide=decide,
            form_of=lambda column: _FORMS[column.name],
            is_single_rows=is_single_rows,
        )
        self._holding = Holding()
        self._acknowledged = start or end_of(0)

    async def receive(self) -> Intake:
        """See ChangeStream. At the log's end there is nothing but the boundary, again and again."""
        loop, batcher, holding = asyncio.get_running_loop(), self._batcher, self._holding
        now, held_seconds = loop.time(), holding.seconds(loop.time())
        while not batcher.is_handing_over:
            await asyncio.sleep(_END_SECONDS if self._is_at_end else 0)
            for _ in range(_TRANSACTIONS_AN_INTAKE):
                if not self._is_at_end:
                    self._transact()
            now = loop.time()
            held_seconds = holding.seconds(now)
            if self._is_at_end or not holding.is_on(now, self._lines.buffered):
                break
            if batcher.has_batches:
                return Intake(batcher.taken(), None, held_seconds)
        batcher.hand_over_some()
        batches, is_all = batcher.taken(), not batcher.is_handing_over
        holding.handed_over(now, len(batches), is_all=is_all)
        boundary = Boundary(end_of(self._next)) if is_all else None
        return Intake(batches, boundary, held_seconds)

    @property
    def _is_at_end(self) -> bool:
        return self._next * ROWS_A_TRANSACTION >= self._row_count

    def _transact(self) -> None:
        number, rows_left = self._next, self._row_count - self._next * ROWS_A_TRANSACTION
        self._next += 1
        self._batcher.make_way(_commit_us(number))
        order = _order(number)
        fields = b',"commit":"%016X","transaction":%d,"computed":true' % (order, number + 1)
        self._lines.begin(order, _commit_us(number), fields=fields)
        write, size_max = self._lines.write, self._batcher.size_max
        for table, change, values in self._rows[:rows_left]:
            buffered = write(table, change, OP_CREATE, None, values)
            if not 0 <= buffered <= size_max:
                self._stopped_at(buffered, table, change, values)

    def _stopped_at(self, buffered: int, table: int, change: int, values: Values) -> None:
        """The table is full, or has to be bound before its row is written."""
        if buffered < 0:
            position = Position(self._lines.next_position(table, change))
            if self._batcher.bind(table, self._relations[table], position) is None:
                self._lines.skip(table, change)
                return
            buffered = self._lines.write(table, change, OP_CREATE, None, values)
        if buffered > self._batcher.size_max:
            self._batcher.hand_over(table)

    async def standing(self) -> Standing:
        """See ChangeStream."""
        return Standing(self._acknowledged, end_of(-(-self._row_count // ROWS_A_TRANSACTION)))

    async def look(self) -> None:
        """See ChangeStream: a computed log is what it is."""

    def acknowledge(self, point: LogPoint) -> None:
        """See ChangeStream."""
        self._acknowledged = point

    def ask_keepalive(self) -> None:
        """See ChangeStream: every intake says where it is."""


@asynccontextmanager
async def _entered(stream: SyntheticStream) -> AsyncIterator[ChangeStream]:
    yield stream


def end_of(transaction_count: int) -> LogPoint:
    """The log point behind so many transactions. It can be read from by their number."""
    position = log_position(1, transaction_count * _ORDERS_A_TRANSACTION)
    return LogPoint(position, str(transaction_count), _commit_us(transaction_count))


def transactions_before(point: LogPoint | None) -> int:
    """How many transactions lie before a log point; 0 without one."""
    return int(point.resume) if point is not None else 0


def _order(number: int) -> int:
    return (number + 1) * _ORDERS_A_TRANSACTION - 1


def _commit_us(number: int) -> int:
    return _BEGAN_US + number * ROWS_A_TRANSACTION


def _relation(number: int) -> Relation:
    return Relation(
        table=TableName("public", f"changes_{number:05d}"),
        identity=str(number),
        columns=tuple(
            Column(name, text, kind, key=name == "id", json=json)
            for name, text, kind, _, json in _COLUMNS
        ),
        key=("id",),
    )


def _row(index: int, relations: tuple[Relation, ...]) -> tuple[int, int, Values]:
    """A row's table, its place in the transaction, and its values."""
    values = (
        f"{index + 1_000_000}",
        f"{index % 1000}",
        f"customer name {index}",
        f"{index % 100_000 / 100:.2f}",
        "2026-01-01T09:51:54.056779Z",
        "true" if index % 2 else "false",
        f"{index * 1.5}",
        f"{index * 0x9E3779B9 % 2**32:08x}-0000-4000-8000-{index:012x}",
        f'{{"k":{index},"v":"a few words that are the same"}}',
        "2026-01-01",
        f"status {index % 10}",
        f"{index % 100}",
    )
    return index % len(relations) + 1, index + 1, tuple(value.encode() for value in values)
