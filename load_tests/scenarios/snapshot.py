"""`snapshot`: rows that are there already, read once.

Strategy: the tables are filled before anybody reads. The engine reads in several ways: with two
workers, with one, with those of a Dask cluster. All take turns with the peers. Rates are those of
the whole process, as a user's first start is, and beside them the rate of the reading alone.

A peer against which nothing is promised reads large tables in one round only.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
import psycopg

from load_tests import dask_cluster
from load_tests.backlog import publish
from load_tests.backlog_scenario import NEWEST, order
from load_tests.measurement import RunFailed
from load_tests.peers import TABLE_PEERS, Peer
from load_tests.peers.copies import COPY, COPY_TWO
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.result import Target, Unless
from load_tests.scenarios.drain import DRAIN
from load_tests.scenarios.drain_wide import DRAIN_WIDE
from load_tests.servers import Database, ServerUnusable, open_bucket, open_database
from load_tests.snapshot_bench import (
    A_CPU_SECOND,
    BUSY,
    DASK,
    ONE_WORKER,
    READING,
    TWO_WORKERS,
    Bench,
    Way,
)
from load_tests.workload import Connection, Workload

_SMALL_TABLES: Final = 200
_SMALL_ROWS: Final = 100
"""A small table has at least so many."""

_ROWS_IN_EVERY_ROUND: Final = 3_000_000
"""With more, a peer against which nothing is promised reads in the first round only: the others'
rounds would take half an hour."""

_HELD_AGAINST: Final = (COPY.name, COPY_TWO.name)
"""The peers that stand for the server, and read in every round."""

# For the estimate alone, on two quiet cores.
_SERVERS_SECONDS: Final = 6.0
_START_SECONDS: Final = 3.0
_TABLE_SECONDS: Final = 0.05
_ROW_US: Final = 2.5
_WRITE_US: Final = 8.0
_VERIFY_ROW_US: Final = 4.0


def _write_small(_: Database, connection: Connection, row_count: int) -> int:
    table_count = min(max(row_count // _SMALL_ROWS, 1), _SMALL_TABLES)
    each = row_count // table_count
    for number in range(table_count):
        connection.execute(
            f"CREATE TABLE small_{number} AS SELECT i AS id, 'name ' || i AS name "
            f"FROM generate_series(1, {each}) AS i".encode()
        )
    return each * table_count


_SMALL = Workload(variant="small tables", write=_write_small)


@dataclass(frozen=True, slots=True)
class Variant:
    """Tables of one kind. Of the plan's rows they hold a `share`, up to `rows_max`; a row weighs so
    many of the first kind's."""

    workload: Workload
    share: float
    weight: float
    table_count: int = 1
    rows_max: int | None = None
    ways: tuple[Way, ...] = (TWO_WORKERS,)

    def rows(self, rows: int) -> int:
        """How many, of so many of the plan."""
        return max(min(int(rows * self.share), self.rows_max or rows), 1)


_MIXED: Final = "12 columns"
_EVERY_WAY: Final = (TWO_WORKERS, ONE_WORKER, DASK)

VARIANTS: Final = (
    Variant(replace(DRAIN.workloads[0], variant=_MIXED), 1.0, 1.0, ways=_EVERY_WAY),
    Variant(replace(DRAIN_WIDE.workloads[0], variant="100 columns"), 0.1, 8.0, rows_max=200_000),
    Variant(_SMALL, 0.1, 0.5, _SMALL_TABLES, rows_max=200_000),
)

_NO_CPU_LEFT: Final = Unless(
    quantity=BUSY,
    above=0.9,
    text="the server had no CPU left for a second worker: share of the machine's CPUs in use",
)

TARGETS: Final = (
    Target(
        text="rows/s, reading alone",
        quantity=READING,
        bound=0.9,
        direction="at least",
        reader=ONE_WORKER.reader,
        peer=COPY.name,
        variants=(_MIXED,),
    ),
    Target(
        text="rows/s, whole process",
        quantity="rate",
        bound=0.9,
        direction="at least",
        reader=ONE_WORKER.reader,
        peer=COPY.name,
        variants=(_MIXED,),
    ),
    *(
        Target(
            text="rows a CPU-second of the workers",
            quantity=A_CPU_SECOND,
            bound=1_000_000.0,
            direction="at least",
            reader=way.reader,
            variants=(_MIXED,),
        )
        for way in (TWO_WORKERS, ONE_WORKER)
    ),
    Target(
        text="rows/s of two workers, reading alone",
        quantity=READING,
        bound=1.8,
        direction="at least",
        peer=ONE_WORKER.reader,
        variants=(_MIXED,),
        unless=_NO_CPU_LEFT,
    ),
    Target(
        text="rows/s, reading alone",
        quantity=READING,
        bound=0.95,
        direction="at least",
        reader=DASK.reader,
        peer=TWO_WORKERS.reader,
        variants=(_MIXED,),
    ),
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """See `Scenario`."""

    name: str = "snapshot"
    title: str = "Rows that are there already"
    text: str = (
        "Tables that are full before the engine starts: 12 columns, a tenth of the rows (200,000 "
        f"at most) with 100 columns, and as many in {_SMALL_TABLES} small tables. The engine with "
        "two workers, and for 12 columns with one and with a Dask cluster of two too, from its "
        "start until every row is in the bucket. Its own CPU is that of its workers too. The "
        "walsender's CPU is here that of all the server's processes."
    )
    rows: int = 1_000_000
    rows_least: int = 200_000
    """With fewer, starts and ends are most of what is seen."""
    targets: tuple[Target, ...] = TARGETS

    def estimate_seconds(self, plan: Plan) -> float:
        """See `Scenario`."""
        return sum(_estimate(variant, plan, plan.rows or self.rows) for variant in VARIANTS)

    def smaller(self, plan: Plan, seconds: float) -> Plan | None:
        """See `Scenario`."""
        if plan.rows is not None:
            return None
        fixed = self.estimate_seconds(msgspec.structs.replace(plan, rows=1))
        rows = int(self.rows * (seconds - fixed) / self.estimate_seconds(plan))
        return msgspec.structs.replace(plan, rows=rows) if rows >= self.rows_least else None

    def measure(self, plan: Plan, recorder: Recorder) -> None:
        """See `Scenario`. A peer's failure is told at the end."""
        peers = _available(plan, recorder)
        failures: list[str] = []
        try:
            for major in plan.postgres_majors or (NEWEST,):
                for variant in VARIANTS:
                    failures += self._measure_group(plan, recorder, major, variant, peers)
        except psycopg.Error as error:
            raise ServerUnusable(f"the database refused: {error}") from error
        if failures:
            raise RunFailed("\n".join(failures))

    def _measure_group(
        self,
        plan: Plan,
        recorder: Recorder,
        major: int,
        variant: Variant,
        peers: Sequence[Peer],
    ) -> list[str]:
        workload, rows = variant.workload, plan.rows or self.rows
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tailrace-load-"))
            database = stack.enter_context(open_database(plan, major))
            bucket = stack.enter_context(open_bucket(plan))
            recorder.release(database.version, "")
            recorder.begin(database.version, variant=workload.variant)
            if rows < self.rows:
                recorder.note(f"{rows:,} rows instead of {self.rows:,}")
            row_count, table_count = _filled(database, workload, variant.rows(rows), recorder)
            bench = Bench(database, bucket, Path(folder), row_count, table_count)
            ways = tuple(
                way for way in variant.ways if way is not DASK or not dask_cluster.absence()
            )
            readers = {peer.name: peer for peer in peers} | {way.reader: way for way in ways}
            failures = _measure_rounds(bench, plan, recorder, readers)
            _tell_gain(recorder)
            for way in reversed(ways):
                # The last one, that of all targets, record by record.
                is_full = way is TWO_WORKERS
                with recorder.step(f"verifying what {way.reader} published"):
                    recorder.verified(bench.verify(way, plan.rounds, is_full=is_full))
        return failures


def _available(plan: Plan, recorder: Recorder) -> tuple[Peer, ...]:
    """The peers that can run; the result says of the others, and of Dask, why they cannot."""
    found: list[Peer] = []
    for peer in _named(plan):
        if why := peer.absence():
            recorder.absent(peer.name, why)
        else:
            recorder.peer(peer)
            found.append(peer)
    for way in _EVERY_WAY:
        recorder.reader(way.reader, way.text)
    if why := dask_cluster.absence():
        recorder.absent(DASK.reader, why)
    return tuple(found)


def _named(plan: Plan) -> tuple[Peer, ...]:
    return tuple(peer for peer in TABLE_PEERS.values() if not plan.peers or peer.name in plan.peers)


def turn(readers: Mapping[str, Peer | Way], number: int, row_count: int) -> tuple[str, ...]:
    """Who reads in a round, in its order.

    In the warm-up it is one reader of the tables and one of the engine: then the tables are in
    memory, and Python's modules are compiled.
    """
    in_round = order(tuple(readers), number)
    if number == 0:
        return tuple(name for name in in_round if name in (COPY.name, TWO_WORKERS.reader))
    if number == 1 or row_count <= _ROWS_IN_EVERY_ROUND:
        return in_round
    return tuple(
        name for name in in_round if isinstance(readers[name], Way) or name in _HELD_AGAINST
    )


def _measure_rounds(
    bench: Bench, plan: Plan, recorder: Recorder, readers: Mapping[str, Peer | Way]
) -> list[str]:
    """Run everybody; the failures of peers. Raises RunFailed where the engine failed."""
    left, failures = dict(readers), []
    if bench.row_count > _ROWS_IN_EVERY_ROUND and plan.rounds > 1:
        recorder.note(f"peers other than {' and '.join(_HELD_AGAINST)} read in round 1 only")
    for number in range(plan.rounds + 1):
        for name in turn(left, number, bench.row_count):
            try:
                with recorder.step(f"round {number} of {plan.rounds}: {name}"):
                    run = bench.run(left[name], number)
            except RunFailed as failure:
                if isinstance(left[name], Way):
                    raise
                del left[name]
                failures.append(f"{name}: {failure}")
                recorder.note(f"{name} failed in round {number}")
            else:
                recorder.add(run)
    return failures


def _tell_gain(recorder: Recorder) -> None:
    """What two readers gain over one: the engine's workers, beside the server's own connections."""
    pairs = (
        (READING, TWO_WORKERS.reader, ONE_WORKER.reader, "two workers read"),
        ("rate", COPY_TWO.name, COPY.name, "two connections of psql read"),
    )
    texts = []
    for name, two, one, text in pairs:
        both = [recorder.group.values(reader, name) for reader in (two, one)]
        if all(both):
            texts.append(f"{text} {median(both[0]) / median(both[1]):.2f} × as fast as one")
    if len(texts) == len(pairs):
        recorder.note("; ".join(texts))


def _estimate(variant: Variant, plan: Plan, rows: int) -> float:
    row_count = variant.rows(rows)
    count = row_count * variant.weight
    run = _START_SECONDS + variant.table_count * _TABLE_SECONDS + count * _ROW_US / 1e6
    rounds = plan.rounds if row_count <= _ROWS_IN_EVERY_ROUND else 1
    once = _SERVERS_SECONDS + count * (_WRITE_US + _VERIFY_ROW_US) / 1e6
    seconds = once + run * (plan.rounds * len(variant.ways) + 1)
    for peer in _named(plan):
        if not peer.absence():
            often = plan.rounds + 1 if peer.name in _HELD_AGAINST else rounds
            seconds += often * (peer.start_seconds + count * peer.row_us / 1e6)
    return seconds


def _filled(
    database: Database, workload: Workload, row_count: int, recorder: Recorder
) -> tuple[int, int]:
    """Make and fill the tables; how many rows and tables there are."""
    with database.connect() as connection:
        with recorder.step(f"writing about {row_count:,} rows into {database.version}"):
            for statement in workload.tables:
                connection.execute(statement.encode())
            written = workload.write(database, connection, row_count)
            table_count = publish(connection)
            # Whoever reads a row first would otherwise write its hint bits.
            connection.execute("VACUUM (ANALYZE)")
        if database.is_local:
            connection.execute("CHECKPOINT")
    recorder.fact("rows", written)
    recorder.fact("tables", table_count)
    return written, table_count


SNAPSHOT = Snapshot()
