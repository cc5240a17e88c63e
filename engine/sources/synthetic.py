"""A source without a database: a log that is computed, for measuring the engine alone.

Strategy: row `i` of the log follows from `i`. A few hundred Insert messages are made once, as a
walsender would send them; a transaction is the same messages under its own commit LSN, handed to
the row codec as those of a real stream are. So everything from the row codec on is the engine's
own work, and nothing waits for a database.

Invariant: the log is the same for everybody who asks for it with the same arguments: a successor
makes again what its predecessor planned.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from engine.batch import Batch, Boundary, Intake, Operations
from engine.envelope import RecordConfiguration
from engine.history import Landmark
from engine.interfaces import ChangeStream, SlotState, SourceIdentity
from engine.position import Lsn, Position
from engine.rowcodec import (
    KIND_BOOLEAN,
    KIND_FLOAT,
    KIND_INTEGER,
    KIND_JSON,
    KIND_NUMERIC,
    KIND_TEXT,
    KIND_TIMESTAMPTZ,
    RowCodec,
    Rows,
)
from engine.schema import Column, Decide, Relation, TableName

ROWS_A_TRANSACTION: Final = 1_000
_TRANSACTIONS_AN_INTAKE: Final = 2
"""About what a drain of a socket gives: 540 KiB of messages."""

_TABLES_FEW: Final = 64
_TRANSACTIONS_HELD: Final = 24
"""Where more tables than few are busy, a stream holds rows, up to 16 MiB of lines."""

_END_SECONDS: Final = 0.1

_LSN_A_TRANSACTION: Final = 0x100000
_BEGAN_US: Final = 1_767_225_600_000_000
"""2026-01-01 00:00 UTC. The log's time is its own: a million rows are one second of it."""

_COLUMNS: Final = (
    ("id", "bigint", "integer", KIND_INTEGER, "number"),
    ("quantity", "integer", "integer", KIND_INTEGER, "number"),
    ("name", "text", "text", KIND_TEXT, "string"),
    ("amount", "numeric(12,2)", "numeric", KIND_NUMERIC, "string"),
    ("changed_at", "timestamp with time zone", "timestamptz", KIND_TIMESTAMPTZ, "string"),
    ("is_paid", "boolean", "boolean", KIND_BOOLEAN, "boolean"),
    ("ratio", "double precision", "float", KIND_FLOAT, "number"),
    ("reference", "uuid", "text", KIND_TEXT, "string"),
    ("attributes", "jsonb", "json", KIND_JSON, "any"),
    ("due", "date", "text", KIND_TEXT, "string"),
    ("status", "character varying(40)", "text", KIND_TEXT, "string"),
    ("grade", "smallint", "integer", KIND_INTEGER, "number"),
)


class SyntheticSource:
    """Implements `engine.interfaces.Source`: `row_count` inserts, spread evenly over tables."""

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
            system_identifier=f"{self._row_count}/{len(self._relations)}",
            timeline=1,
            database="synthetic",
            slot="",
            publication="",
        )

    async def prepare(self, *, is_first: bool) -> None:
        """See Source: nothing is needed."""

    async def flush_lsn(self) -> Lsn:
        """See Source."""
        return end_lsn_of(self._transaction_count)

    async def fork_lsn(self, timeline: int) -> Lsn:
        """See Source: there is only one timeline."""
        raise AssertionError(f"a computed log never forks, nor has timeline {timeline}")

    def stream(
        self,
        start: Lsn,
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
    """Implements `engine.interfaces.ChangeStream`."""

    def __init__(
        self,
        *,
        relations: tuple[Relation, ...],
        row_count: int,
        start: Lsn,
        configuration: RecordConfiguration,
        decide: Decide,
        is_single_rows: bool,
    ) -> None:
        self._relations = {relation.oid: relation for relation in relations}
        self._frames = tuple(_frame(index, relations) for index in range(ROWS_A_TRANSACTION))
        self._row_count = row_count
        self._next = start // _LSN_A_TRANSACTION
        self._configuration = configuration
        self._decide = decide
        self._is_single_rows = is_single_rows
        self._codec = RowCodec(1)
        self._versions: dict[int, int] = {}
        self._acknowledged = start

    async def receive(self) -> Intake:
        """See ChangeStream. At the log's end there is nothing but the boundary, again and again."""
        is_at_end = self._next * ROWS_A_TRANSACTION >= self._row_count
        await asyncio.sleep(_END_SECONDS if is_at_end else 0)
        batches: list[Batch] = []
        is_held = len(self._relations) > _TABLES_FEW
        for _ in range(_TRANSACTIONS_HELD if is_held else _TRANSACTIONS_AN_INTAKE):
            if self._next * ROWS_A_TRANSACTION < self._row_count:
                self._transact(batches)
        self._take(batches)
        boundary = Boundary(end_lsn_of(self._next), _commit_us(self._next))
        return Intake(tuple(batches), boundary)

    def _transact(self, batches: list[Batch]) -> None:
        number, rows_left = self._next, self._row_count - self._next * ROWS_A_TRANSACTION
        self._next += 1
        # A batch lies within one hour of commit time.
        if _commit_us(number) // 3_600_000_000 != _commit_us(number - 1) // 3_600_000_000:
            self._take(batches)
        self._codec.begin(_commit_lsn(number), _commit_us(number), number + 1)
        encode = self._codec.encode
        for frame in self._frames[:rows_left]:
            if self._is_single_rows or encode(frame) < 0:
                self._decide_row(frame, batches)

    def _decide_row(self, frame: bytes, batches: list[Batch]) -> None:
        oid, change_lsn = int.from_bytes(frame[26:30], "big"), int.from_bytes(frame[1:9], "big")
        relation = self._relations[oid]
        version = self._decide(relation, Position(self._codec.next_position(oid, change_lsn)))
        if version is None:
            self._codec.skip(oid, change_lsn)
            return
        self._versions[oid] = version.number
        self._codec.bind(
            oid,
            database="synthetic",
            schema=relation.table.schema,
            table=relation.table.table,
            version=version.number,
            columns=[(name, kind, name == "id", True) for name, _, _, kind, _ in _COLUMNS],
            key=relation.key,
            envelope=self._configuration.envelope,
            numeric=self._configuration.numeric,
            json=self._configuration.json,
        )
        self._codec.encode(frame)
        if self._is_single_rows:
            self._take(batches)

    def _take(self, batches: list[Batch]) -> None:
        for oid, rows in self._codec.take_all():
            batches.append(_batch(self._relations[oid].table, self._versions[oid], rows))

    async def slot_state(self) -> SlotState:
        """See ChangeStream."""
        end = end_lsn_of(-(-self._row_count // ROWS_A_TRANSACTION))
        return SlotState(self._acknowledged, end, self._acknowledged)

    async def look(self) -> None:
        """See ChangeStream: a computed log is what it is."""

    def acknowledge(self, lsn: Lsn) -> None:
        """See ChangeStream."""
        self._acknowledged = lsn

    def ask_keepalive(self) -> None:
        """See ChangeStream: every intake says where it is."""


@asynccontextmanager
async def _entered(stream: SyntheticStream) -> AsyncIterator[ChangeStream]:
    yield stream


def end_lsn_of(transaction_count: int) -> Lsn:
    """Where the log stands behind so many transactions."""
    return Lsn(transaction_count * _LSN_A_TRANSACTION)


def _commit_lsn(number: int) -> Lsn:
    return Lsn((number + 1) * _LSN_A_TRANSACTION - 1)


def _commit_us(number: int) -> int:
    return _BEGAN_US + number * ROWS_A_TRANSACTION


def _relation(number: int) -> Relation:
    return Relation(
        table=TableName("public", f"changes_{number:05d}"),
        oid=number,
        replica_identity="d",
        columns=tuple(
            Column(name, text, kind, key=name == "id", json=json)
            for name, text, kind, _, json in _COLUMNS
        ),
        key=("id",),
    )


def _frame(index: int, relations: tuple[Relation, ...]) -> bytes:
    """An Insert as a walsender sends it: PostgreSQL manual, logical replication's messages."""
    oid = relations[index % len(relations)].oid
    change_lsn = index + 1
    values = (
        f"{index + 1_000_000}",
        f"{index % 1000}",
        f"customer name {index}",
        f"{index % 100_000 / 100:.2f}",
        "2026-01-01 09:51:54.056779+00",
        "t" if index % 2 else "f",
        f"{index * 1.5}",
        f"{index * 0x9E3779B9 % 2**32:08x}-0000-4000-8000-{index:012x}",
        f'{{"k": {index}, "v": "a few words that are the same"}}',
        "2026-01-01",
        f"status {index % 10}",
        f"{index % 100}",
    )
    texts = [value.encode() for value in values]
    columns = b"".join(struct.pack(">ci", b"t", len(text)) + text for text in texts)
    header = struct.pack(">cQQq", b"w", change_lsn, change_lsn, 0)
    return header + struct.pack(">cIcH", b"I", oid, b"N", len(texts)) + columns


def _batch(table: TableName, version: int, rows: Rows) -> Batch:
    return Batch(
        table=table,
        version=version,
        lines=rows.lines,
        row_count=rows.row_count,
        operations=Operations(*rows.operations),
        first=Position(rows.first_position),
        last=Position(rows.last_position),
        first_commit_us=rows.first_commit_us,
        last_commit_us=rows.last_commit_us,
    )
