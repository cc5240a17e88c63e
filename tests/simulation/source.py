"""The database: one server with one slot, seen by each engine through a source of its own.

Strategy: the server is a log of transactions, a catalog that changes in mid-transaction, and a
slot. Tables leave the publication and come back; what is committed meanwhile is `lost`: the
walsender does not send it, ever. Nor does it say that a table is dropped. A change may be `broken`
for a while: a walsender that comes to it sends what is before it and ends with an error. A
connection walks the log as a walsender does: transactions that commit before the start are skipped
without a word, a start before `confirmed` becomes `confirmed`, keepalives never pass a commit not
yet sent. The core is told orders that are no addresses, and resume texts that only this server can
read. A receiver gets what one drain of the socket might have held: any number of messages, grouped
into batches.

Invariant: a record's line is a pure function of the change, the version's number, the record
configuration and the codec version; LSNs are even, and commit LSNs never go backwards while
`change_lsn` does.
"""

import asyncio
import bisect
import functools
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol
from zlib import crc32

import msgspec

from engine.lines.batcher import Batcher
from engine.model.batch import Boundary, Intake, Moved, Named, Signal
from engine.model.errors import LeaseHeld, PositionLost, SourceFailed, SourceUnavailable
from engine.model.history import Judge, Landmark
from engine.model.interfaces import (
    NO_MEASURES,
    NOT_PUBLISHED,
    PUBLISHED_LATE,
    Look,
    Reason,
    SourceIdentity,
    SourceMeasures,
    Standing,
    TableLook,
)
from engine.model.log_point import LogPoint
from engine.model.position import (
    NOWHERE,
    LogPosition,
    Position,
    commit_of,
    log_position,
    make_position,
)
from engine.model.record import RecordConfiguration
from engine.model.request import REQUEST_BYTES_MAX
from engine.model.schema import Column, Decide, Relation, TableName
from engine.model.trial import Judgement
from simulation.virtual_loop import Process, VirtualLoop

TABLES = tuple(TableName("public", name) for name in "abcd")
"""`d` is captured by some configurations only."""

HIDDEN = TableName("hidden", "x")
"""A name that no configuration captures: in some worlds tables have it for a while."""

_OIDS = {table: 16_000 + ord(table.table) for table in TABLES}

_ORDER_FIRST = 1_000_000
_ORDERS_AN_ADDRESS = 3

DROPPED = "dropped"
"""The `op` of a change that takes the table away with all its rows. No stream shows it."""

HOUR_US = 3_600_000_000
SHAPES = 3
LARGE_KEY = 7


@dataclass(frozen=True, slots=True)
class Change:
    """One row's change, as the log holds it.

    `renames` counts how often the table had got another name: a source shows its relation anew
    after each, also where no row came in between.
    """

    table: TableName
    position: Position
    commit_lsn: int
    commit_us: int
    key: int
    op: str
    oid: int
    shape: int
    renames: int = 0

    @property
    def relation(self) -> Relation:
        return relation_of(self.table, self.oid, self.shape)

    @property
    def is_moved(self) -> bool:
        """Whether the row had another key before, and its line has not all columns."""
        return self.op == "u" and crc32(f"{self.commit_lsn} {self.key}".encode()) % 8 == 0


@dataclass(frozen=True, slots=True)
class Sent:
    """A signal that somebody sent, as the log holds it: before the change of that number.

    `position` is empty where it was sent outside a transaction. Others have odd LSNs of their own.
    """

    position: Position
    content: bytes
    before: int

    @property
    def signal(self) -> Signal:
        size = len(self.content)
        return Signal(self.position, self.content if size <= REQUEST_BYTES_MAX else b"", size)

    def told(self, generation: int) -> "Sent":
        """In that generation."""
        is_inside = self.position != NOWHERE
        told = Position(f"{generation:04d}{self.position[4:]}") if is_inside else NOWHERE
        return replace(self, position=told)


@dataclass(frozen=True, slots=True)
class Transaction:
    """`is_bare`: it holds nothing but signals, and a stream without them does not show it."""

    place: LogPosition
    commit_lsn: int
    end_lsn: int
    commit_us: int
    changes: tuple[Change, ...]
    signals: tuple[Sent, ...] = ()
    is_bare: bool = False


Row = tuple[int, Position]
"""A row's key and its value: the position of the change that wrote it."""


@dataclass(frozen=True, slots=True)
class TableRead:
    """A table as a transaction sees it that sees everything before an address."""

    relation: Relation
    shape: int
    rows: tuple[Row, ...]


def fold_one(rows: dict[int, Position], op: str, key: int, value: Position) -> None:
    """Let one change happen to a table's rows."""
    if op in {"t", DROPPED}:
        rows.clear()
    elif op == "d":
        rows.pop(key, None)
    else:
        rows[key] = value


class RecordWriter:
    """Writes records under one configuration: everything that shapes a real line shapes these."""

    def __init__(self, configuration: RecordConfiguration) -> None:
        self.configuration = configuration
        self.captured = frozenset(table for table in TABLES if configuration.captures(table))
        self.digests = {table: configuration.record_digest(table) for table in TABLES}
        self._columns = {
            (table, shape): json.dumps(
                [
                    column.name
                    for column in columns_of(shape)
                    if configuration.is_included(table, column.name)
                ]
            )
            for table in TABLES
            for shape in range(SHAPES)
        }

    def line(self, change: Change, version: int, codec: int) -> bytes:
        """The record of a change."""
        # Some rows are larger than the smallest memory budgets.
        pad = "x" * 3_000 if change.key == LARGE_KEY else ""
        return (
            f'{{"position":"{change.position}","op":"{change.op}","key":{change.key},'
            f'"columns":{self._columns[change.table, change.shape]},"version":{version},'
            f'"shaped":"{self.digests[change.table]}","codec":{codec},"pad":"{pad}"}}\n'
        ).encode()

    def snapshot_line(
        self, read: "TableRead", position: str, row: "Row | None", version: int, codec: int
    ) -> bytes:
        """The record of a row that a snapshot read; of no row: the truncate record."""
        table = read.relation.table
        key, value = ("null", "") if row is None else row
        # So much is compressed at once: it may leave as a part of its own.
        pad = "x" * 17_000 if key == LARGE_KEY else ""
        return (
            f'{{"position":"{position}","op":"{"t" if row is None else "r"}","key":{key},'
            f'"value":"{value}","columns":{self._columns[table, read.shape]},"version":{version},'
            f'"shaped":"{self.digests[table]}","codec":{codec},"pad":"{pad}"}}\n'
        ).encode()


@functools.cache
def record_writer(configuration: RecordConfiguration) -> RecordWriter:
    """The writer of a configuration."""
    return RecordWriter(configuration)


def columns_of(shape: int) -> tuple[Column, ...]:
    """A shape's columns: the last one's name follows from the number."""
    return (
        Column("id", "integer", "integer", key=True, json="number", type_id=23),
        Column("note", "text", "text", key=False, type_id=25),
        Column(f"shape_{shape}", "text", "text", key=False, type_id=25),
    )


@functools.cache
def relation_of(table: TableName, oid: int, shape: int) -> Relation:
    """What the stream says of a table that has this name now."""
    return Relation(table, str(oid), columns_of(shape), ("id",))


class Holding(Protocol):
    """A snapshot that sessions with the server hold."""

    def lose(self) -> None: ...

    def rewrite(self, table: TableName) -> None: ...


class Asking(Protocol):
    """Who sends signals among what others write: None where nothing is sent."""

    def inside(self) -> bytes | None: ...

    def outside(self) -> bytes | None: ...


class ServerWatcher(Protocol):
    """Who is told what the server hears. `is_calm`: nobody is in anybody's way any more."""

    is_calm: bool

    def held(self, process: Process) -> None: ...

    def told(self, process: Process, confirmed: int) -> None: ...

    def acknowledged(self, process: Process, position: LogPosition) -> None: ...

    def failed_over(self, fork: LogPosition) -> None: ...

    def publishes(self, process: Process, table: TableName) -> None: ...

    def received(self, process: Process, intake: Intake) -> None: ...

    def failed(self, process: Process, change: Change) -> None: ...

    def missed(self, process: Process) -> None: ...


@dataclass(frozen=True, slots=True)
class Membership:
    """A table came into the publication at that LSN, or left it (`number` None)."""

    lsn: int
    table: TableName
    number: int | None


@dataclass(frozen=True, slots=True)
class Existence:
    """A table was dropped at that LSN, or one was created under its name."""

    lsn: int
    table: TableName
    is_there: bool


@dataclass
class Server:
    """The database server. `is_backward`: a smaller status update moves the slot back."""

    loop: VirtualLoop
    rnd: random.Random
    now_us: Callable[[], int]
    watcher: ServerWatcher
    is_backward: bool
    sender_timeout: float = 6.0
    trouble: float = 0.0
    is_down: bool = False
    wal: int = 0x100
    transactions: list[Transaction] = field(default_factory=list)
    # By OID: a table keeps its shape when it changes its name.
    shape: dict[int, int] = field(default_factory=lambda: dict.fromkeys(_OIDS.values(), 0))
    oids: dict[TableName, int] = field(default_factory=lambda: dict(_OIDS))
    away: dict[TableName, int] = field(default_factory=dict)
    next_oid: int = 17_000
    skew_us: int = 0
    has_slot: bool = False
    confirmed: int = 0
    persisted: int = 0
    made: int = 0
    connection: "Connection | None" = None
    counts: Counter[str] = field(default_factory=Counter)
    weights: tuple[TableName, ...] = TABLES
    alter_rate: float = 0.05
    forks: list[LogPosition] = field(default_factory=list)
    _fork: int = 0
    memberships: list[Membership] = field(default_factory=list)
    existences: list[Existence] = field(default_factory=list)
    lost: list[Change] = field(default_factory=list)
    broken: Change | None = None
    _addresses: dict[str, int] = field(default_factory=dict)
    # Where tables have the hidden name for a while, its chances; apart from all others.
    hiding: random.Random | None = None
    hide_rate: float = 0.0
    renamed: set[int] = field(default_factory=set)
    renames: Counter[int] = field(default_factory=Counter)
    # By OID, every captured name that the table ever had.
    had: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    # By name, all changes in order, sent or lost: what the rows of the table follow from.
    history: defaultdict[TableName, list[Change]] = field(default_factory=lambda: defaultdict(list))
    # What the ranges of held snapshots are, by the words that workers are told.
    ranges: dict[bytes, object] = field(default_factory=dict)
    held: "list[Holding]" = field(default_factory=list)
    # By timeline and place, what each snapshot saw: what comes behind a fork is forgotten later.
    seen: dict[tuple[int, str], dict[TableName, TableRead]] = field(default_factory=dict)
    # Where the log stopped being continuous: each begins a generation, known to who accepts that.
    begun: list[int] = field(default_factory=list)
    # Where it was restored to; 0: never.
    restored: int = 0
    # By name, from which address on it is which table in which shape.
    shown: defaultdict[TableName, list[tuple[int, int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    asking: Asking | None = None

    def __post_init__(self) -> None:
        self._note_shown(0)

    def hide_tables(self, seed: int) -> None:
        """From now on a table has the hidden name, and others take it and give it back."""
        self.hiding = random.Random(seed)
        # Away for the time of a few changes, or longer than an engine lives.
        self.hide_rate = self.hiding.choice((0.02, 0.2))
        self.oids[HIDDEN] = 16_999
        self.shape[16_999] = 0
        self._note_names()

    def _note_names(self) -> None:
        for table in TABLES:
            self.had[self.oids[table]].add(str(table))

    # --- the publication

    def membership(self, table: TableName) -> int | None:
        """Which membership of the table it is; None where the table is not published."""
        made = [known for known in self.memberships if known.table == table]
        return made[-1].number if made else 0

    def alter_publication(self) -> None:
        """A table leaves the publication, for a while or for the time of a few commits."""
        table = self.rnd.choice(TABLES)
        if self.membership(table) is None or self.hiding is not None:
            return
        self._set_membership(table, None)
        self.counts["left the publication"] += 1
        if self.rnd.random() < 0.5:
            for _ in range(self.rnd.choice((0, 1, 2))):
                self.commit()
            self.publish(table)
        else:
            self.loop.later(self.rnd.uniform(0.1, 8), self.publish, table)

    def publish(self, table: TableName) -> None:
        """Put the table back, where it is not there. One that was dropped cannot be."""
        if self.membership(table) is None and self.is_there(table):
            self._set_membership(table, len(self.memberships) + 1)

    def is_refused(self) -> bool:
        """Whether somebody is in the way of an engine that wants to publish a table.

        It tries again with its next look, which may come only after hundreds of seconds.
        """
        return self.rnd.random() < 0.2 and not self.watcher.is_calm

    def _set_membership(self, table: TableName, number: int | None) -> None:
        self.memberships.append(Membership(self.wal, table, number))
        self.wal += 2
        self.notify()

    # --- tables that are dropped

    def is_there(self, table: TableName, address: int | None = None) -> bool:
        """Whether there was a table of that name at that address; None: whether there is one."""
        return all(known.is_there for known in self._existences(table, address)[-1:])

    def was_dropped(self, table: TableName, address: int) -> bool:
        """Whether a table of that name was dropped before that address."""
        return bool(self._existences(table, address))

    def identity(self, table: TableName) -> str:
        """What a look calls the table: after a drop it is another one."""
        count = len(self._existences(table))
        return f"{table}/{count}" if count else str(table)

    def _existences(self, table: TableName, address: int | None = None) -> list[Existence]:
        return [
            known
            for known in self.existences
            if known.table == table and (address is None or known.lsn < address)
        ]

    def drop(self, table: TableName) -> bool:
        """Drop the table with its rows, unless it was dropped before. Whether it was there."""
        if self.is_down or self._existences(table):
            return False
        self.existences.append(Existence(self.wal, table, is_there=False))
        self._set_membership(table, None)
        oid, address = self.oids[table], self.wal
        dropped = Change(
            table,
            make_position(*self.order(address), address, 0),
            address,
            self.now_us() + self.skew_us,
            0,
            DROPPED,
            oid,
            self.shape[oid],
        )
        self.lost.append(dropped)
        self.history[table].append(dropped)
        # The one that may come.
        self.oids[table] = self.next_oid
        self.shape[self.next_oid] = 0
        self.next_oid += 1
        self._note_names()
        self._note_shown(address)
        self.wal += 2
        for held in self.held:
            held.rewrite(table)
        self.counts["tables dropped"] += 1
        return True

    def make_anew(self, table: TableName, *, is_published: bool) -> None:
        """Create another table under the name of one that was dropped."""
        if self.is_there(table):
            return
        self.existences.append(Existence(self.wal, table, is_there=True))
        self.wal += 2
        if is_published:
            self.publish(table)
        self.counts["tables made anew"] += 1
        self.notify()

    def _forget_after(self, fork: int) -> None:
        """The catalog, and what was lost, as another history has them."""
        self.memberships = [known for known in self.memberships if known.lsn < fork]
        self.existences = [known for known in self.existences if known.lsn < fork]
        self.lost = [change for change in self.lost if change.commit_lsn < fork]
        for table in TABLES:
            history = self.history[table]
            del history[bisect.bisect_left(history, fork, key=lambda c: c.commit_lsn) :]
            self.shown[table] = [one for one in self.shown[table] if one[0] < fork]
        self._note_shown(fork)

    # --- what a transaction sees

    def _note_shown(self, address: int) -> None:
        """From that address on tables look as they do now."""
        for table in TABLES:
            oid = self.oids[table]
            shown, now = self.shown[table], (oid, self.shape[oid])
            if not shown or shown[-1][1:] != now:
                shown.append((address, *now))

    def rows_before(self, table: TableName, place: LogPosition) -> dict[int, Position]:
        """The rows of the table, as the commits before that place left them."""
        rows: dict[int, Position] = {}
        for change in self.history[table]:
            if change.position >= place:
                break
            fold_one(rows, change.op, change.key, change.position)
        return rows

    def relation_before(self, table: TableName, address: int) -> tuple[Relation, int]:
        """How the table looked to those commits, and the number of its shape."""
        shown = [one for one in self.shown[table] if one[0] < address]
        _, oid, shape = shown[-1]
        return relation_of(table, oid, shape), shape

    def read_before(self, table: TableName, address: int) -> TableRead:
        """What a transaction reads of the table that sees everything before the address."""
        relation, shape = self.relation_before(table, address)
        rows = self.rows_before(table, self.place(address))
        return TableRead(relation, shape, tuple(sorted(rows.items())))

    def consistent_address(self) -> int:
        """Where a snapshot that is taken now sees everything before."""
        address = self._consistent_address()
        seen = {table: self.read_before(table, address) for table in TABLES}
        self.seen[self.timeline, self.place(address)] = seen
        return address

    def _consistent_address(self) -> int:
        """Taking one logs a record."""
        self.wal += 2
        self.notify()
        return self.wal

    # --- the log

    def commit(self, *, truncated: TableName | None = None) -> None:
        """One transaction, its shapes changing on the way; perhaps with a table truncated."""
        rnd = self.rnd
        count = rnd.choice((0, 1, 1, 2, 3, 8))
        commit_lsn = self.wal + 2 * rnd.choice((0, 0, 1, 3, 12))
        change_lsn = commit_lsn - 2 * count - 2 * rnd.randint(1, 9)
        commit_us = self.now_us() + self.skew_us
        order = self.commit_order(commit_lsn)
        numbers: Counter[tuple[TableName, int]] = Counter()
        changes: list[Change] = []
        signals = self._sent_outside()
        for _ in range(count):
            step = rnd.choice((0, 2))
            change_lsn += step
            if step:
                signals += self._sent_inside(order, change_lsn - 1, len(changes))
            if self.hiding is not None:
                self._hide(self.hiding)
                if self.hiding.random() < 0.4:
                    n = _counted(numbers, (HIDDEN, change_lsn))
                    position = make_position(*order, change_lsn, n)
                    changes.append(self._hidden_change(position, commit_lsn, commit_us))
            table = rnd.choice(self.weights)
            if truncated is not None and not numbers:
                table = truncated
            if not self.is_there(table):
                continue
            self._alter(table, self.alter_rate)
            n = _counted(numbers, (table, change_lsn))
            position = make_position(*order, change_lsn, n)
            key, op, oid = rnd.randint(1, 60), rnd.choice("cccuuudt"), self.oids[table]
            op = "t" if table == truncated else op
            shape, renames = self.shape[oid], self.renames[oid]
            change = Change(table, position, commit_lsn, commit_us, key, op, oid, shape, renames)
            (self.lost if self.membership(table) is None else changes).append(change)
            self.history[table].append(change)
        self._alter(rnd.choice(TABLES), 0.03)
        self._note_shown(commit_lsn)
        self.wal = commit_lsn + 2 * rnd.randint(1, 3)
        self.transactions.append(
            Transaction(
                log_position(*order),
                commit_lsn,
                self.wal,
                commit_us,
                tuple(changes),
                tuple(signals),
            )
        )
        self.counts["transactions"] += 1
        self.notify()

    def _hidden_change(self, position: Position, commit_lsn: int, commit_us: int) -> Change:
        oid = self.oids[HIDDEN]
        return Change(HIDDEN, position, commit_lsn, commit_us, 1, "c", oid, 0, self.renames[oid])

    def _sent_outside(self) -> list[Sent]:
        """What somebody sends outside of any transaction, before one is shown."""
        content = self.asking.outside() if self.asking is not None else None
        return [Sent(NOWHERE, content, 0)] if content is not None else []

    def _sent_inside(self, order: tuple[int, int], lsn: int, before: int) -> list[Sent]:
        """What somebody sends inside of a transaction, before the change with that number."""
        content = self.asking.inside() if self.asking is not None else None
        if content is None:
            return []
        return [Sent(make_position(*order, lsn, 0), content, before)]

    def send(self, contents: Sequence[bytes]) -> None:
        """One transaction that sends signals and does nothing else."""
        if self.is_down:
            return
        commit_lsn = self.wal + 2 * len(contents) + 2
        order, commit_us = self.commit_order(commit_lsn), self.now_us() + self.skew_us
        signals = tuple(
            Sent(make_position(*order, self.wal + 1 + 2 * index, 0), content, 0)
            for index, content in enumerate(contents)
        )
        self.wal = commit_lsn + 2
        self.transactions.append(
            Transaction(
                log_position(*order), commit_lsn, self.wal, commit_us, (), signals, is_bare=True
            )
        )
        self.counts["transactions of signals alone"] += 1
        self.notify()

    def move(self, table: TableName) -> None:
        """One transaction: a row moves to another key, and its line has not all columns."""
        if self.is_down or not self.is_there(table):
            return
        commit_lsn, oid = self.wal + 6, self.oids[table]
        order = self.commit_order(commit_lsn)
        position = make_position(*order, commit_lsn - 2, 0)
        shape, renames, commit_us = self.shape[oid], self.renames[oid], self.now_us() + self.skew_us
        changes = (
            Change(table, position, commit_lsn, commit_us, key, "u", oid, shape, renames)
            for key in range(1, 61)
        )
        change = next(change for change in changes if change.is_moved)
        is_lost = self.membership(table) is None
        if is_lost:
            self.lost.append(change)
        self.history[table].append(change)
        self._note_shown(commit_lsn)
        self.wal = commit_lsn + 2
        shown = () if is_lost else (change,)
        self.transactions.append(
            Transaction(log_position(*order), commit_lsn, self.wal, commit_us, shown)
        )
        self.counts["moved keys"] += 1
        self.notify()

    def _alter(self, table: TableName, rate: float) -> None:
        if self.rnd.random() < rate:
            oid = self.oids[table]
            self.shape[oid] = (self.shape[oid] + self.rnd.randint(1, SHAPES - 1)) % SHAPES
        elif self.rnd.random() < rate / 2:
            self._change_names(table)

    def _hide(self, chance: random.Random) -> None:
        """Perhaps a table and the one with the hidden name change names."""
        if chance.random() < self.hide_rate:
            table = chance.choice(TABLES)
            self.renamed |= {self.oids[table], self.oids[HIDDEN]}
            self.renames.update((self.oids[table], self.oids[HIDDEN]))
            self.oids[table], self.oids[HIDDEN] = self.oids[HIDDEN], self.oids[table]
            self._note_names()
            self.counts["names: hidden"] += 1

    def _change_names(self, table: TableName) -> None:
        """Another table takes the name: one made anew, the one that had it before, or a swap."""
        before = self.oids[table]
        act = self.rnd.choice(("make", "come back", "come back", "swap"))
        if act == "swap":
            other = self.rnd.choice(TABLES)
            self.oids[table], self.oids[other] = self.oids[other], before
        elif act == "come back" and table in self.away:
            self.oids[table], self.away[table] = self.away[table], before
        else:
            self.oids[table], self.away[table] = self.next_oid, before
            self.shape[self.next_oid] = 0
            self.next_oid += 1
        if act != "make":
            self.renamed |= {before, self.oids[table]}
            self.renames.update((before, self.oids[table]))
        self._note_names()
        self.counts[f"names: {act}"] += 1

    def break_change(self) -> None:
        """A change is committed that no walsender can send, until somebody mends it."""
        if self.broken is not None:
            return
        self.commit()
        changes = self.transactions[-1].changes
        if changes:
            self.broken = self.rnd.choice(changes)
            self.counts["changes broken"] += 1
            self.loop.later(self.rnd.uniform(5, 40), self.mend, self.broken)

    def mend(self, change: Change | None) -> None:
        """That change can be sent now."""
        if change is not None and change is self.broken:
            self.broken = None

    def write_something_else(self) -> None:
        """Log that holds nothing of ours."""
        self.wal += 2 * self.rnd.randint(1, 30)
        self.notify()

    # --- log points

    def order(self, address: int) -> tuple[int, int]:
        """Generation and order of a place. Orders grow with addresses, and are none."""
        return 1 + bisect.bisect_right(
            self.begun, address
        ), _ORDER_FIRST + _ORDERS_AN_ADDRESS * address

    def commit_order(self, address: int) -> tuple[int, int]:
        """Generation and order of the commit that is about to be written there."""
        return self.order(address)

    def place(self, address: int) -> LogPosition:
        """The place of an address of the log."""
        return log_position(*self.order(address))

    def address_of(self, place: str) -> int:
        """The address of a place; 0 where there is none."""
        return (int(place[5:], 16) - _ORDER_FIRST) // _ORDERS_AN_ADDRESS if place else 0

    @property
    def generation(self) -> int:
        """The newest one."""
        return 1 + len(self.begun)

    def told(self, place: LogPosition, generation: int) -> LogPosition:
        """A place as it is told to whoever believes that the log is in that generation."""
        return LogPosition(f"{generation:04d}{place[4:]}")

    @property
    def is_confirming(self) -> bool:
        """Whether it keeps what was acknowledged to it."""
        return True

    def point(self, address: int, commit_us: int = 0) -> LogPoint:
        """The log point at an address. Its resume text says nothing to anybody else."""
        resume = hashlib.sha256(f"{address}".encode()).hexdigest()[:10]
        self._addresses[resume] = address
        return LogPoint(self.place(address), resume, commit_us)

    def address_to_resume(self, point: LogPoint | None) -> int:
        """Where to read from for a log point that this server gave."""
        return self._addresses[point.resume] if point is not None else 0

    # --- the slot

    def start(
        self,
        process: Process,
        begin: LogPoint | None,
        configuration: RecordConfiguration,
        landmark: Landmark | None,
        *,
        generation: int,
    ) -> "Connection":
        """START_REPLICATION."""
        if not self.has_slot:
            self.watcher.missed(process)
            raise PositionLost("the slot is gone", loss="keeper")
        if self.connection is not None:
            raise LeaseHeld("the slot is held")
        confirmed = self.point(self.confirmed)
        confirmed = msgspec.structs.replace(
            confirmed, position=self.told(confirmed.position, generation)
        )
        judge = Judge(durable=begin, confirmed=confirmed, landmark=landmark)
        start = max(self.address_to_resume(judge.start), self.confirmed)
        self.connection = Connection(
            self, process, start, configuration, judge, generation=generation
        )
        self.counts["connections"] += 1
        self.watcher.held(process)
        return self.connection

    def make_slot(self) -> None:
        self.has_slot = True
        self.wal += 2
        self.confirmed = self.persisted = self.made = self.wal

    def drop_connection(self, connection: "Connection | None") -> None:
        """The server ends a connection, or notices its end; its socket may still hold data."""
        if connection is not None and connection is self.connection:
            self.forget_connection(connection)
            connection.close_at_server()

    def connections(self) -> list["Connection"]:
        """Those that are open."""
        return [self.connection] if self.connection is not None else []

    def connection_of(self, process: Process) -> "Connection | None":
        """The open one of that process."""
        return next((c for c in self.connections() if c.process is process), None)

    def forget_connection(self, connection: "Connection") -> None:
        """It is over: whoever comes next may hold the lease."""
        if connection is self.connection:
            self.connection = None

    def end_connections(self) -> None:
        """The server is gone."""
        for connection in self.connections():
            self.drop_connection(connection)
        for held in self.held:
            held.lose()

    def limit_of(self, connection: "Connection") -> int:
        """How far that connection may read."""
        del connection
        return self.wal

    def end_of_log(self) -> int:
        """How far whoever connects now may read."""
        return self.wal

    def notify(self) -> None:
        for connection in self.connections():
            connection.wake()

    def status_update(self, connection: "Connection", lsn: int) -> None:
        """A status update arrives."""
        if connection is not self.connection:
            return
        if lsn > self.confirmed or self.is_backward:
            self.confirmed = lsn

    def crash(self) -> None:
        """Gone and back, with the slot as it was written last."""
        self.end_connections()
        self.confirmed = self.persisted
        self.is_down = True
        self.loop.later(self.rnd.uniform(0.1, 5), self._come_back)

    @property
    def timeline(self) -> int:
        return 1 + len(self.forks)

    def fail_over(self, *, is_record_lost: bool = False, lost: int = 0) -> None:
        """A standby takes over; it may lack the last transactions, old connections have them.

        With `is_record_lost` it lacks only what was logged behind them; with `lost`, so many.
        """
        count = len(self.transactions)
        kept = count if is_record_lost else max(1, count - (lost or self.rnd.choice((0, 1, 2, 4))))
        while kept < count and self.transactions[kept - 1].end_lsn < self._fork:
            kept += 1
        if kept < count or is_record_lost:
            self.wal = max(self.transactions[kept - 1].end_lsn, self._fork)
        self._fork = self.wal
        self.broken = None  # It was this server's trouble.
        self.end_connections()
        self.transactions = self.transactions[:kept]
        self.forks.append(self.place(self.wal))
        self._forget_after(self.wal)
        self.confirmed = self.persisted = min(self.persisted, self.wal)
        self.is_down = True
        self.loop.later(self.rnd.uniform(0.1, 3), self._come_back)
        self.watcher.failed_over(self.forks[-1])

    def restore(self, *, is_grown: bool) -> None:
        """The disk as it was a few transactions ago; with `is_grown` it has written on since."""
        self.end_connections()
        before = self.wal
        kept = max(0, len(self.transactions) - 3)
        # Nobody notices that a transaction is gone which a stream need not show.
        while kept and all(one.is_bare for one in self.transactions[kept:]):
            kept -= 1
        self.wal = self.transactions[kept].commit_lsn - 2
        del self.transactions[kept:]
        self._forget_after(self.wal)
        self.confirmed = self.persisted = min(self.persisted, self.wal)
        self.has_slot = self.wal >= self.made
        self.restored = self.wal
        self._begin_generation()
        while is_grown and self.wal <= before:
            self.commit()

    def _begin_generation(self) -> None:
        self.begun.append(self.wal)

    def agree(self, generation: int) -> None:
        """The log is read on in that generation: its orders grew past what was read before.

        So nobody noticed that it is another log; but for the loss, nothing is wrong with that.
        """
        while self.generation > generation:
            del self.begun[-1]
            self._transactions_anew()

    def _transactions_anew(self) -> None:
        for index, transaction in enumerate(self.transactions):
            place = self.place(transaction.commit_lsn)
            if place == transaction.place:
                continue
            changes = tuple(map(self._placed, transaction.changes))
            signals = tuple(sent.told(int(place[:4])) for sent in transaction.signals)
            self.transactions[index] = replace(
                transaction, place=place, changes=changes, signals=signals
            )
        for table, history in self.history.items():
            self.history[table] = list(map(self._placed, history))
        self.lost = list(map(self._placed, self.lost))

    def _placed(self, change: Change) -> Change:
        """In the generation in which the log is read now."""
        place = self.place(change.commit_lsn)
        return replace(change, position=Position(f"{place[:4]}{change.position[4:]}"))

    def _come_back(self) -> None:
        self.is_down = False

    def watch_frozen(self, process: Process) -> None:
        """The walsender's timeout: a receiver that says nothing for so long loses the slot."""
        connection = self.connection_of(process)
        if connection is not None and process.is_frozen:
            self.counts["walsender timeout"] += 1
            self.drop_connection(connection)


def _counted(numbers: Counter[tuple[TableName, int]], key: tuple[TableName, int]) -> int:
    """How often the key was counted before."""
    numbers[key] += 1
    return numbers[key] - 1


Message = Change | Boundary | Sent


class Connection:
    """One walsender's walk along the log, and the socket behind it."""

    def __init__(
        self,
        server: Server,
        process: Process,
        start: int,
        configuration: RecordConfiguration,
        judge: Judge,
        *,
        generation: int,
    ) -> None:
        self.generation = generation
        self.server = server
        self.process = process
        self.start = start
        self.records = record_writer(configuration)
        self.judge = judge
        self._through = configuration.through
        self._log = server.transactions
        self.index = self.offset = self.told = 0
        self.is_heeding = False
        self.sent_max: int | None = None
        self.failed_at: Change | None = None
        self.is_keepalive_due = False
        self.is_left = False
        self.member = 0
        self._waiter: asyncio.Future[None] | None = None
        self._keepalive_later()

    @property
    def limit(self) -> int:
        """The address up to which its server has the log."""
        return self.server.limit_of(self)

    @property
    def _count(self) -> int:
        """How many transactions its server has."""
        count, limit = len(self._log), self.limit
        while count and self._log[count - 1].end_lsn > limit:
            count -= 1
        return count

    @property
    def is_open(self) -> bool:
        return self.sent_max is None

    @property
    def can_send(self) -> bool:
        """Whether what the engine sends on it still leaves the engine."""
        return self.is_open and not self.is_left and self.process.is_alive

    @property
    def is_inside_transaction(self) -> bool:
        return self.offset > 0

    def close_at_server(self) -> None:
        """Nothing more is sent; what was sent may still be read."""
        last = self._count
        self.sent_max = self.server.rnd.randint(min(self.index, last), last)
        self.wake()

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def keepalive(self) -> None:
        """The server has a position to tell."""
        self.is_keepalive_due = True
        self.wake()

    def _keepalive_later(self) -> None:
        if self.is_open:
            server = self.server
            server.loop.later(server.rnd.uniform(1, 8), self._keepalive_again)

    def _keepalive_again(self) -> None:
        self.keepalive()
        self._keepalive_later()

    @property
    def has_something(self) -> bool:
        if not self.is_open:
            return True
        return self.is_keepalive_due or self.index < self._count

    async def something(self) -> None:
        """Wait until the socket is readable. Cancellation loses nothing."""
        while not self.has_something:
            self._waiter = self.server.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def next_message(self) -> Message | None:
        """The next row or boundary that is in the socket, in the reader's generation."""
        message, server = self._next_message(), self.server
        if message is None or not server.begun or self.generation == server.generation:
            return message
        if isinstance(message, Change):
            position = f"{self.generation:04d}{message.position[4:]}"
            return replace(message, position=Position(position))
        if isinstance(message, Sent):
            return message.told(self.generation)
        landmark = message.landmark
        if landmark is not None:
            place = server.told(landmark.position, self.generation)
            landmark = msgspec.structs.replace(landmark, position=place)
        point = msgspec.structs.replace(
            message.point, position=server.told(message.point.position, self.generation)
        )
        return msgspec.structs.replace(message, point=point, landmark=landmark)

    def _next_message(self) -> Message | None:
        server = self.server
        limit = self._count
        if self.sent_max is not None:
            limit = min(limit, self.sent_max)
        while self.index < limit and self._is_passed_over(self._log[self.index]):
            self.index += 1
        if self.index >= limit:
            if self.is_open and self.is_keepalive_due:
                self.is_keepalive_due = False
                now_us = server.now_us() + server.skew_us
                return Boundary(server.point(self.limit, now_us), is_keepalive=True)
            return None
        transaction = self._log[self.index]
        if self.is_keepalive_due:  # Never past a commit that is not yet sent.
            self.is_keepalive_due = False
            point = server.point(transaction.commit_lsn, server.now_us())
            return Boundary(point, is_keepalive=True)
        return self._next_of(transaction)

    def _is_passed_over(self, transaction: Transaction) -> bool:
        is_hidden = transaction.is_bare and not self.is_heeding
        return transaction.commit_lsn < self.start or is_hidden

    def _fail(self, change: Change) -> None:
        """The walsender ends with an error; what it sent before can still be read."""
        self.failed_at, self.sent_max = change, self.index
        self.server.forget_connection(self)

    def _next_of(self, transaction: Transaction) -> Message | None:
        changes = transaction.changes
        while (sent := self._sent_here(transaction)) or self.offset < len(changes):
            if sent is not None:
                self.told += 1
                return sent
            change = changes[self.offset]
            if change is self.server.broken:
                self._fail(change)
                return None
            self.offset += 1
            if change.table in self.records.captured or change.table == HIDDEN:
                return change
        self.index, self.offset, self.told = self.index + 1, 0, 0
        server, commit_us = self.server, transaction.commit_us
        commit = server.point(transaction.commit_lsn, commit_us)
        # The first commit of a generation is behind the place at which it began.
        place = transaction.place
        landmark = Landmark(place, commit_us, self._through, commit.resume)
        return Boundary(
            server.point(transaction.end_lsn, commit_us),
            landmark=None if transaction.is_bare else landmark,
        )

    def _sent_here(self, transaction: Transaction) -> Sent | None:
        """The signal that comes next, if it comes before the next change."""
        signals = transaction.signals[self.told :] if self.is_heeding else ()
        return next((sent for sent in signals if sent.before <= self.offset), None)


@dataclass(frozen=True, slots=True)
class _Taken:
    """Lines of one table, as the batcher wants them."""

    rows: tuple[tuple[Change, bytes], ...]

    @property
    def lines(self) -> bytes:
        return b"".join(line for _, line in self.rows)

    @property
    def row_count(self) -> int:
        return len(self.rows)

    @property
    def first_position(self) -> str:
        return self.rows[0][0].position

    @property
    def last_position(self) -> str:
        return self.rows[-1][0].position

    @property
    def first_commit_us(self) -> int:
        return self.rows[0][0].commit_us

    @property
    def last_commit_us(self) -> int:
        return self.rows[-1][0].commit_us

    @property
    def operations(self) -> tuple[int, int, int, int, int]:
        counted = Counter(change.op for change, _ in self.rows)
        return counted["c"], counted["u"], counted["d"], counted["r"], counted["t"]


class _Lines:
    """Stands for the line writer: the batcher around it is the engine's."""

    def __init__(self, records: RecordWriter, codec: int) -> None:
        self._records = records
        self._codec = codec
        self._versions: dict[int, int] = {}
        self._rows: dict[int, list[tuple[Change, bytes]]] = {}
        self.moved: list[Moved] = []

    def bind(self, number: int, *, version: int, **_: object) -> None:
        assert number not in self._rows
        self._versions[number] = version

    def unbind(self, number: int) -> None:
        self._versions.pop(number, None)

    def holds_another_hour(self, commit_time_us: int) -> bool:
        hour = commit_time_us // HOUR_US
        return any(rows[-1][0].commit_us // HOUR_US != hour for rows in self._rows.values())

    def write(self, change: Change) -> int:
        """How many rows the table has now."""
        line = self._records.line(change, self._versions[change.oid], self._codec)
        rows = self._rows.setdefault(change.oid, [])
        rows.append((change, line))
        if change.is_moved:
            self.moved.append(Moved(change.table, commit_of(change.position)))
        return len(rows)

    @property
    def buffered(self) -> int:
        return len(self._rows)

    def take(self, number: int) -> _Taken | None:
        rows = self._rows.pop(number, None)
        return _Taken(tuple(rows)) if rows else None

    def take_some(self, table_count: int) -> list[tuple[int, _Taken]]:
        numbers = [*self._rows][:table_count]
        return [(number, _Taken(tuple(self._rows.pop(number)))) for number in numbers]


class SimulatedStream:
    """One engine's end of a connection: a `ChangeStream`."""

    def __init__(
        self,
        connection: Connection,
        decide: Decide,
        codec: int,
        *,
        is_single_rows: bool,
    ) -> None:
        self._connection = connection
        self._lines = _Lines(connection.records, codec)
        self._batcher = Batcher(
            self._lines,
            database="",
            configuration=connection.records.configuration,
            decide=decide,
            form_of=lambda _: 0,
            is_single_rows=is_single_rows,
        )
        self._is_single_rows = is_single_rows
        # By OID: as a relation was shown when it was bound.
        self._bound: dict[int, Relation] = {}
        self._told: dict[int, tuple[TableName, int]] = {}
        self._signals: list[Signal] = []
        self._acknowledged: LogPoint | None = None
        self._landmark: Landmark | None = None

    async def receive(self) -> Intake:
        connection = self._connection
        server = connection.server
        while True:
            await connection.something()
            if server.rnd.random() < 0.7:
                await asyncio.sleep(server.rnd.uniform(0.001, 0.05))
            intake = self._drain(server.rnd)
            if intake is not None:
                server.watcher.received(connection.process, intake)
                return intake

    def _drain(self, rnd: random.Random) -> Intake | None:
        """What one drain of the socket gives. What a lost connection leaves unread is forgotten."""
        rows_max = 1 if self._is_single_rows else rnd.choice((1, 2, 5, 100))
        boundary: Boundary | None = None
        is_cut = not self._connection.is_open and self._connection.failed_at is None
        is_lost = is_cut and rnd.random() < 0.4
        named: list[Named] = []
        for message in self._messages(rnd.choice((1, 2, 4, 8, 30))):
            if isinstance(message, Boundary):
                boundary = self._judged(message)
            elif isinstance(message, Sent):
                self._signals.append(message.signal)
            else:
                self._connection.judge.began(commit_of(message.position), message.commit_us)
                named += self._names(message)
                if message.table != HIDDEN:
                    self._take(message, rows_max)
        self._batcher.hand_over_all()
        batches, signals = self._batcher.taken(), self._take_signals()
        is_empty = not (boundary or batches or named or signals)
        is_dry = is_empty and not self._connection.is_open
        if is_dry and self._connection.failed_at is not None:
            self._connection.server.watcher.failed(
                self._connection.process, self._connection.failed_at
            )
            raise SourceFailed("a change cannot be sent", code="22P05")
        if is_lost or is_dry or not self._connection.process.is_alive:
            raise SourceUnavailable("connection lost")
        if is_empty:
            return None
        moved, self._lines.moved = tuple(self._lines.moved), []
        return Intake(batches, boundary, named=tuple(named), moved=moved, signals=signals)

    def _take_signals(self) -> tuple[Signal, ...]:
        """None while the log is judged."""
        if not self._connection.judge.is_done:
            return ()
        signals, self._signals = tuple(self._signals), []
        return signals

    def _names(self, change: Change) -> Iterator[Named]:
        """Under which name its table's rows come, where that is another one; now and then again."""
        hiding = self._connection.server.hiding
        if hiding is None:
            return
        shown = (change.table, change.renames)
        if self._told.get(change.oid) != shown or hiding.random() < 0.1:
            self._told[change.oid] = shown
            is_captured = change.table != HIDDEN
            yield Named(str(change.oid), change.table, is_captured, commit_of(change.position))

    def _judged(self, boundary: Boundary) -> Boundary | None:
        """The boundary, with the last commit before it; None while the log is judged."""
        judge = self._connection.judge
        if boundary.landmark is not None:
            self._landmark = boundary.landmark
            assert self._landmark.time_us is not None
            judge.began(self._landmark.position, self._landmark.time_us)
        judge.reached(boundary.position)
        if not judge.is_done:
            return None
        return msgspec.structs.replace(boundary, landmark=self._landmark)

    def _messages(self, count: int) -> Iterator[Message]:
        for _ in range(count):
            message = self._connection.next_message()
            if message is None:
                return
            yield message

    def _take(self, change: Change, rows_max: int) -> None:
        """Ask for the version where the protocol says so; skip what is not wanted."""
        batcher, oid = self._batcher, change.oid
        batcher.make_way(change.commit_us)
        # PostgreSQL repeats a relation when it likes: then it is asked once more.
        is_repeated = self._connection.server.rnd.random() < 0.1
        if is_repeated or self._bound.get(oid) is not change.relation:
            batcher.let_go(oid)
        if not batcher.is_bound(oid):
            if batcher.bind(oid, change.relation, change.position) is None:
                return
            self._bound[oid] = change.relation
        if self._lines.write(change) >= rows_max:
            batcher.hand_over(oid)

    async def standing(self) -> Standing:
        server = self._connection.server
        await asyncio.sleep(server.rnd.uniform(0.001, 0.1))
        if server.is_down or server.rnd.random() < server.trouble:
            raise SourceUnavailable("no answer")
        if not server.has_slot:
            raise PositionLost("the slot is gone", loss="keeper")
        standing = Standing(self._point(server.confirmed), self._point(self._connection.limit))
        server.watcher.told(self._connection.process, server.confirmed)
        await asyncio.sleep(server.rnd.uniform(0.001, 0.1))
        return standing

    def _point(self, address: int) -> LogPoint:
        server = self._connection.server
        point = server.point(address)
        return msgspec.structs.replace(
            point, position=server.told(point.position, self._connection.generation)
        )

    async def look(self) -> Look | None:
        server = self._connection.server
        if not server.is_confirming:
            # Nothing of it can be changed behind the stream.
            return None
        await asyncio.sleep(server.rnd.uniform(0.001, 0.5))
        if server.is_down or server.rnd.random() < server.trouble:
            raise SourceUnavailable("no answer")
        wal = server.told(server.place(server.wal), self._connection.generation)
        captured = [
            table
            for table in TABLES
            if table in self._connection.records.captured and server.is_there(table)
        ]
        others: frozenset[str] = frozenset()
        if server.hiding is None:
            tables = {
                table: _table_look(server.identity(table), server.membership(table))
                for table in captured
            }
        else:
            tables = {table: _named_look(server, server.oids[table]) for table in captured}
            others = frozenset(map(str, (server.oids[HIDDEN], *server.away.values())))
        await asyncio.sleep(server.rnd.uniform(0.001, 0.5))
        texts = {"left-publication": "it was away", PUBLISHED_LATE: "it came late"}
        texts |= {"table-dropped": "it went", "table-remade": "it is another one"}
        return Look(wal, wal, wal, {}, tables, texts, others)

    @property
    def _can_tell(self) -> bool:
        """What is acknowledged leaves the engine only when the log is judged."""
        return self._connection.can_send and self._connection.judge.is_done

    def acknowledge(self, point: LogPoint) -> None:
        is_first = self._acknowledged is None
        self._acknowledged = point
        self._send_status()
        if is_first:
            self._repeat_status()

    def leave(self) -> None:
        """Say the last acknowledgement once more, and go."""
        connection = self._connection
        if self._acknowledged is not None and self._can_tell:
            server = connection.server
            server.watcher.acknowledged(connection.process, self._acknowledged.position)
            server.status_update(connection, server.address_to_resume(self._acknowledged))
        connection.is_left = True

    def _send_status(self) -> None:
        connection = self._connection
        assert self._acknowledged is not None
        if self._can_tell:
            server = connection.server
            server.watcher.acknowledged(connection.process, self._acknowledged.position)
            address = server.address_to_resume(self._acknowledged)
            delay = server.rnd.choice((0.001, 0.01, 0.3))
            server.loop.later(delay, server.status_update, connection, address)

    def _repeat_status(self) -> None:
        connection = self._connection
        if connection.can_send:
            self._send_status()
            connection.server.loop.call_later(2, self._repeat_status)

    def ask_keepalive(self) -> None:
        connection = self._connection
        if connection.can_send:
            delay = connection.server.rnd.uniform(0.001, 0.1)
            connection.server.loop.later(delay, connection.keepalive)


def _table_look(identity: str, number: int | None) -> TableLook:
    """A table with that membership."""
    if number is None:
        reason = Reason("it is not published", "publish it")
        return TableLook(
            identity,
            {NOT_PUBLISHED: ()},
            {},
            frozenset(),
            {NOT_PUBLISHED: reason},
            arrives=False,
        )
    return TableLook(identity, {}, {"left-publication": str(number)}, frozenset(), {})


def _named_look(server: Server, oid: int) -> TableLook:
    """A table of a publication of all tables, where names change that are captured and not."""
    is_as_made = oid not in server.renamed
    return TableLook(str(oid), {}, {}, frozenset((PUBLISHED_LATE,)), {}, is_as_made)


class SimulatedSource:
    """One engine's view of the server: a `Source` and a `Publishing`. Its codec is `codec`."""

    def __init__(
        self, server: Server, process: Process, codec: int, *, is_heeding: bool = False
    ) -> None:
        """With `is_heeding` it asks for signals."""
        self._server = server
        self._is_heeding = is_heeding
        self._process = process
        self._codec = codec
        self._generation = 1

    async def _way(self) -> None:
        """One way to the server, which may be down or out of reach."""
        server = self._server
        await asyncio.sleep(server.rnd.uniform(0.001, 0.05))
        if not self._process.is_alive or server.is_down or server.rnd.random() < server.trouble:
            raise SourceUnavailable("no answer")

    async def identify(self) -> SourceIdentity:
        await self._way()
        branch = str(self._server.timeline)
        return SourceIdentity(
            "simulated", "shop", "tailrace", {"system": "7"}, branch, "tailrace", self.generation
        )

    @property
    def generation(self) -> int:
        """What the journal says; or what the log itself does, where it does."""
        return self._generation if self._server.is_confirming else self._server.generation

    def adopt(self, generation: int) -> None:
        self._generation = generation

    async def renew(self) -> None:
        await self._way()
        server = self._server
        if server.connection is not None:
            raise LeaseHeld("the slot is held")
        server.has_slot = False
        await self._way()
        if not server.has_slot:
            server.make_slot()
        await self._way()

    @property
    def keeper(self) -> str:
        return "the simulated slot"

    @property
    def measures(self) -> SourceMeasures:
        return NO_MEASURES

    def distance(self, begin: LogPoint, end: LogPoint) -> int:
        server = self._server
        return max(0, server.address_to_resume(end) - server.address_to_resume(begin))

    async def refused(self, tables: Sequence[TableName]) -> Mapping[TableName, Reason]:
        """See Publishing: it may add all tables, mostly."""
        await self._way()
        reason = Reason("the role may not", "ask its owner")
        return {table: reason for table in tables if self._server.is_refused()}

    async def publish(self, tables: Sequence[TableName]) -> Mapping[TableName, Reason]:
        """See Publishing: now and then somebody has a table locked."""
        await self._way()
        refused = {}
        for table in tables:
            if not self._server.is_there(table):
                refused[table] = Reason("there is no such table", "nothing: the next look tells")
            elif self._server.is_refused():
                refused[table] = Reason("it is locked", "nothing: it is tried again")
            elif self._process.is_alive:
                self._server.watcher.publishes(self._process, table)
                self._server.publish(table)
        return refused

    async def prepare(self, *, is_first: bool) -> None:
        await self._way()
        if not self._server.has_slot:
            if not is_first:
                self._server.watcher.missed(self._process)
                raise PositionLost("the slot is gone", loss="keeper")
            self._server.make_slot()
        await self._way()

    def trials(self, *, is_first: bool) -> AsyncIterator[Judgement]:
        raise AssertionError("no engine checks itself")

    async def seen(self) -> Standing | None:
        raise AssertionError("no engine checks itself")

    async def look(self) -> Look | None:
        raise AssertionError("no engine checks itself")

    def describe(self, identity: SourceIdentity) -> str:
        raise AssertionError("no engine checks itself")

    async def fork(self, branch: str) -> LogPosition:
        await self._way()
        return self._server.forks[int(branch) - 1]

    async def end(self) -> LogPoint:
        await self._way()
        point = self._server.point(self._server.end_of_log())
        return msgspec.structs.replace(
            point, position=self._server.told(point.position, self.generation)
        )

    @asynccontextmanager
    async def stream(
        self,
        start: LogPoint | None,
        configuration: RecordConfiguration,
        decide: Decide,
        *,
        landmark: Landmark | None = None,
        single_rows: bool = False,
    ) -> AsyncIterator[SimulatedStream]:
        await self._way()
        connection = self._server.start(
            self._process, start, configuration, landmark, generation=self.generation
        )
        connection.is_heeding = self._is_heeding
        stream = SimulatedStream(connection, decide, self._codec, is_single_rows=single_rows)
        try:
            await self._way()
            yield stream
        finally:
            if self._process.is_alive:
                stream.leave()
                # The walsender notices a little later that its client has gone.
                delay = self._server.rnd.choice((0.001, 0.01, 0.5))
                self._server.loop.later(delay, self._server.drop_connection, connection)
