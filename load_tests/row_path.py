"""`python -m load_tests.row_path`: a row's CPU from its frame to its chunk, by number of tables.

Strategy: the real assembler, ledger, router, chunks and metrics, fed with frames that are made
before each turn; no database, no S3, no sockets, and a clock that goes by the rows. The rows are
those of scenario `many-tables`. All paths take turns in one process, in stretches of some
milliseconds, so that a busy machine slows all of them alike: what counts are the ratios.

    python -m load_tests.row_path                     the ratios to one table, and the longest turns
    python -m load_tests.row_path --path "100 tables"  one path alone, for a profiler

A turn is what happens between two returns to the event loop: reading, or cutting the chunks that
are old enough. Planning, publishing and journal are not in it.
"""

import argparse
import gc
import itertools
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Never

from prometheus_client import CollectorRegistry

from engine.cli.process import keep_memory, settle_memory
from engine.flow.budget import MemoryBudget
from engine.flow.chunk import ChunkLimits
from engine.flow.ledger import Ledger
from engine.flow.router import Router
from engine.journal.committer import CUTS_A_TURN
from engine.lines.holding import Holding
from engine.model.batch import Intake
from engine.model.position import Position
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableVersion
from engine.operate.metrics import Metrics
from engine.sources.postgres.assembler import Assembler, Drained
from engine.sources.postgres.catalog import Catalog
from engine.sources.postgres.frames import ListedFrames
from engine.sources.postgres.gulps import DRAIN_BYTES_MAX

_MIB = 1024 * 1024
_POSTGRES_TIME_US = 848_664_000_000_000
_TYPES = (
    *(("id", 20), ("quantity", 23), ("name", 25), ("amount", 1700), ("changed_at", 1184)),
    *(("is_paid", 16), ("ratio", 701), ("reference", 2950), ("attributes", 3802), ("due", 1082)),
    *(("status", 1043), ("grade", 21)),
)
_ROW_COUNT = 997
_PUBLISH_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Shape:
    """So many tables; `hot_count` of them take 90 % of the rows, if any.

    A transaction's rows go to tables of their own choice each, or, with `tables_a_transaction`, by
    turns to the next so many tables.
    """

    table_count: int
    hot_count: int = 0
    rows_a_second: int = 330_000
    rows_a_transaction: int = 1_800
    tables_a_transaction: int = 0

    def tables(self) -> Iterator[int]:
        """Each row's table, for ever."""
        chance = random.Random(5)
        if self.tables_a_transaction:
            for first in itertools.count(0, self.tables_a_transaction):
                for row in range(self.rows_a_transaction):
                    yield 1 + (first + row % self.tables_a_transaction) % self.table_count
        while True:
            is_hot = self.hot_count and chance.random() < 0.9
            yield chance.randint(1, self.hot_count if is_hot else self.table_count)


ONE = "1 table"
SHAPES = {
    ONE: Shape(1),
    "100 tables": Shape(100),
    "5,000 tables, skewed": Shape(5_000, hot_count=50),
}
STEADY = "steady: 5,000 tables, 20,000 rows/s"
STEADY_SHAPE = Shape(5_000, rows_a_second=20_000, rows_a_transaction=400, tables_a_transaction=20)


def _carried(message: bytes, lsn: int = 0) -> bytes:
    return b"w" + struct.pack(">QQq", lsn, lsn, _POSTGRES_TIME_US) + message


def _relation(oid: int) -> bytes:
    columns = b"".join(
        struct.pack(">B", place == 0) + name.encode() + struct.pack(">xIi", type_oid, -1)
        for place, (name, type_oid) in enumerate(_TYPES)
    )
    head = b"R" + struct.pack(">I", oid) + b"public\0" + f"changes_{oid}".encode() + b"\0d"
    return _carried(head + struct.pack(">h", len(_TYPES)) + columns)


def _tuple(number: int) -> bytes:
    i = number + 100_000
    values = (
        f"{i}",
        f"{i % 1000}",
        f"customer name {i}",
        f"{i % 100_000 / 100:.2f}",
        f"2026-11-21 10:31:54.{number:06d}+00",
        "t" if i % 2 else "f",
        f"{i * 1.5}",
        f"{i * 0x9E3779B9 % 2**32:08x}-{i * 40503 % 2**16:04x}-4000-8000-{i * 7919 % 2**48:012x}",
        f'{{"k": {i}, "v": "a few words that are the same"}}',
        "2026-11-21",
        f"status {i % 10}",
        f"{i % 100}",
    )
    body = b"".join(struct.pack(">cI", b"t", len(v)) + v.encode() for v in values)
    return b"N" + struct.pack(">H", len(values)) + body


@dataclass
class Feed:
    """The frames of one shape."""

    shape: Shape
    tables: Iterator[int] = field(init=False)
    rows: Sequence[bytes] = field(default_factory=lambda: [_tuple(n) for n in range(_ROW_COUNT)])
    lsn: int = 0x1000000

    def __post_init__(self) -> None:
        self.tables = self.shape.tables()

    def meeting(self) -> Iterator[list[bytes]]:
        """Transactions with each table's relation and first row."""
        for oid in range(1, self.shape.table_count + 1):
            yield [_relation(oid), *self._transaction([oid])]

    def transaction(self) -> list[bytes]:
        count = self.shape.rows_a_transaction
        return self._transaction(list(itertools.islice(self.tables, count)))

    def _transaction(self, oids: Sequence[int]) -> list[bytes]:
        commit_lsn = self.lsn + 256 * len(oids) + 256
        pack, rows = struct.Struct(">QQqcI").pack, self.rows
        begin = struct.pack(">cQqI", b"B", commit_lsn, _POSTGRES_TIME_US, 7)
        frames = [_carried(begin)]
        for place, oid in enumerate(oids):
            lsn = self.lsn + 256 * place
            head = pack(lsn, lsn, _POSTGRES_TIME_US, b"I", oid)
            frames.append(b"w" + head + rows[lsn % _ROW_COUNT])
        self.lsn = commit_lsn + 256
        end = struct.pack(">cBQQq", b"C", 0, commit_lsn, self.lsn, _POSTGRES_TIME_US)
        return [*frames, _carried(end)]


class Path:
    """One engine's way from frames to chunks, and what it took."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.row_count = 0
        self.turns: list[float] = []
        self.cut_turns: list[float] = []
        self.batch_count = 0
        self.chunk_count = 0
        self.seconds = 0.0
        self._feed = Feed(shape)
        self._now = 1_000.0
        self._publish_at = self._now + _PUBLISH_SECONDS
        self._holding = Holding()
        self._assembler = Assembler(
            database="shop",
            generation=1,
            configuration=RecordConfiguration("tailrace", tables=("public.*",)),
            decide=_always_first,
            catalog=Catalog(),
        )
        self._budget = MemoryBudget(96 * _MIB)
        self._router = Router(
            queue_bytes_max=32 * _MIB,
            limits=ChunkLimits(16 * _MIB, 1_000_000, 30.0),
            compression="gzip",
            budget=self._budget,
            on_cut=_nothing,
            on_waiting=_nothing,
        )
        self._ledger = Ledger({})
        self._metrics = Metrics(CollectorRegistry())
        for frames in self._feed.meeting():
            self._turn(frames, 1)
        # The chunks that hold a first row are of all ages.
        self.reset()

    def reset(self) -> None:
        """Count from here on."""
        self.row_count = self.batch_count = self.chunk_count = 0
        self.seconds = 0.0
        self.turns, self.cut_turns = [], []

    def read(self, row_count: int) -> None:
        """Read about so many rows, and cut and publish as often as an engine would."""
        for _ in range(row_count // self.shape.rows_a_transaction):
            self._turn(self._feed.transaction(), self.shape.rows_a_transaction)

    def _turn(self, frames: list[bytes], row_count: int) -> None:
        self._now += row_count / self.shape.rows_a_second
        listed = ListedFrames(frames)
        is_over = False
        while not is_over:
            began = time.thread_time()
            if not self._assembler.is_handing_over:
                is_over = self._assembler.drain(listed, DRAIN_BYTES_MAX) is Drained.EMPTY
            self._hand_over()
            self._took(began, self.turns)
            is_over = is_over and not self._assembler.is_handing_over
        self.row_count += row_count
        if self._now >= self._publish_at:
            self._publish_at = self._now + _PUBLISH_SECONDS
            self._publish()

    def _took(self, began: float, turns: list[float]) -> None:
        seconds = time.thread_time() - began
        self.seconds += seconds
        turns.append(seconds)

    def _hand_over(self) -> None:
        # As PostgresStream has it.
        assembler, holding, now = self._assembler, self._holding, self._now
        held_seconds = holding.seconds(now)
        is_handing_over = assembler.is_handing_over
        if not is_handing_over and holding.is_on(now, assembler.buffered_bytes):
            if assembler.has_full_batches:
                self._take(assembler.full_batches(held_seconds))
        elif assembler.has_intake:
            intake = assembler.intake(held_seconds)
            is_all = not assembler.is_handing_over
            holding.handed_over(now, len(intake.batches), is_all=is_all)
            self._take(intake)

    def _take(self, intake: Intake) -> None:
        # As Streaming has it.
        self._ledger.read(intake)
        self._router.route(intake, self._now)
        for batch in intake.batches:
            self._metrics.rows(batch.table, batch.operations)
        self.batch_count += len(intake.batches)

    def _publish(self) -> None:
        router = self._router
        if self._budget.is_full:
            router.cut_largest()
        due = router.due(self._now + _PUBLISH_SECONDS)
        for begin in range(0, len(due), CUTS_A_TURN):
            began = time.thread_time()
            router.cut(due[begin : begin + CUTS_A_TURN], "age")
            self._took(began, self.cut_turns)
        for chunk in router.take_sealed():
            self.chunk_count += 1
            self._ledger.visible(chunk.table, chunk.last)
            router.published(chunk.table, len(chunk.body))


def _always_first(relation: Relation, position: Position) -> TableVersion:
    return TableVersion(1, position, "", relation)


def _nothing() -> None:
    """Nobody waits."""


def _no_status() -> Never:
    raise AssertionError("nobody asks for a status here")


def compare(say: Callable[[str], None], rounds: int, rows: int) -> None:
    """The paths by turns. A round's ratio to one table is of two stretches that lie together.

    Its median leaves out what happens in few stretches, such as the end of a second for which
    rows were held; the ratio of all stretches' sums has everything, and more of the machine's mood.
    """
    paths = {name: Path(shape) for name, shape in SHAPES.items()}
    for path in paths.values():
        # Until chunks and buffers have grown.
        path.read(200_000)
    gc.collect()
    settle_memory(_no_status)
    costs: dict[str, list[float]] = {name: [] for name in paths}
    batch_counts = dict.fromkeys(paths, 0)
    for number in range(rounds):
        for name in sorted(paths, reverse=bool(number % 2)):
            path = paths[name]
            path.reset()
            path.read(rows)
            costs[name].append(path.seconds / path.row_count * 1e6)
            batch_counts[name] += path.batch_count
    for name, found in costs.items():
        ratio = median(cost / one for cost, one in zip(found, costs[ONE], strict=True))
        say(
            f"{name:24}{median(found):7.3f} µs a row (median), {ratio:.3f} of one table's;"
            f" with everything {mean(found):.3f}, {mean(found) / mean(costs[ONE]):.3f};"
            f" {rows * rounds / batch_counts[name]:.0f} rows a batch"
        )


def stalls(say: Callable[[str], None]) -> None:
    """The longest turns, by the CPU that they took."""
    for name, shape, rows in (
        ("5,000 tables, skewed, at full speed", SHAPES["5,000 tables, skewed"], 700_000),
        (STEADY, STEADY_SHAPE, 800_000),
    ):
        path = Path(shape)
        path.read(shape.rows_a_second)
        path.reset()
        path.read(rows)
        say(f"{name}: {path.seconds / path.row_count * 1e6:.2f} µs a row")
        for kind, turns in (("reading", path.turns), ("cutting", path.cut_turns)):
            longest = sorted(turns, reverse=True)[:25:6]
            text = ", ".join(f"{turn * 1e3:.1f}" for turn in longest)
            say(f"  {kind}: {len(turns)} turns; the longest, the 7th, 13th, 19th, 25th: {text} ms")


def main() -> int:
    """What the arguments say."""
    parser = argparse.ArgumentParser(description="A row's CPU by number of tables.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--rows", type=int, default=7_200, help="of a path in a round")
    parser.add_argument("--path", choices=[*SHAPES, "steady"], help="this one alone")
    arguments = parser.parse_args()
    keep_memory()
    if arguments.path:
        path = Path(SHAPES.get(arguments.path, STEADY_SHAPE))
        path.read(arguments.rows)
        print(f"{path.seconds / path.row_count * 1e6:.3f} µs a row")
        return 0
    compare(print, arguments.rounds, arguments.rows)
    stalls(print)
    return 0


if __name__ == "__main__":
    sys.exit(main())
