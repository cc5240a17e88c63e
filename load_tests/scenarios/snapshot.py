"""`snapshot`: rows that are there already, read once.

Strategy: the tables are filled before anybody reads. Each run of the engine is a first start with a
slot and a prefix of its own, and ends when everything is in the bucket. Its workers are its
children, so their CPU is in its own. All readers' rates are those of the whole process: the engine
starts, waits for older transactions, takes its snapshot and ends, as a user's first start does.

Invariant: what the engine's last run published is verified, and must be all rows.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import psutil
import psycopg

from load_tests.backlog import publish, slot_name
from load_tests.backlog_scenario import NEWEST, order
from load_tests.engine_reader import EngineReader, last_cpu_seconds, plain_environment
from load_tests.measurement import RunFailed, Watched, measure
from load_tests.peers import TABLE_PEERS, Peer, Task
from load_tests.plan import Plan
from load_tests.processes import tree_cpu_seconds
from load_tests.recorder import Recorder
from load_tests.result import ENGINE, Target
from load_tests.run import Run
from load_tests.scenarios.drain import DRAIN
from load_tests.scenarios.drain_wide import DRAIN_WIDE
from load_tests.servers import (
    NAME,
    Bucket,
    Database,
    ServerUnusable,
    open_bucket,
    open_database,
)
from load_tests.workload import Connection, Workload

WORKERS_CPU: Final = "workers_cpu_us"
"""The figure: the workers' CPU a row."""

WORKER_MEMORY: Final = "worker_peak_bytes"
"""The figure: the peak RSS of the largest worker."""

_SMALL_TABLES: Final = 200
_SMALL_ROWS: Final = 100
"""A small table has at least so many."""

# For the estimate alone, on two quiet cores.
_SERVERS_SECONDS: Final = 6.0
_START_SECONDS: Final = 2.5
_TABLE_SECONDS: Final = 0.05
_ROW_US: Final = 2.0
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
    """Tables of one kind. Of the plan's rows they hold a `share`; a row weighs so many of the
    first kind's."""

    workload: Workload
    share: float
    weight: float
    table_count: int = 1


VARIANTS: Final = (
    Variant(replace(DRAIN.workloads[0], variant="12 columns"), 1.0, 1.0),
    Variant(replace(DRAIN_WIDE.workloads[0], variant="100 columns"), 0.1, 8.0),
    Variant(_SMALL, 0.1, 0.5, _SMALL_TABLES),
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """See `Scenario`."""

    name: str = "snapshot"
    title: str = "Rows that are there already"
    text: str = (
        "Tables that are full before the engine starts: 12 columns, a tenth of the rows with 100 "
        f"columns, a tenth in {_SMALL_TABLES} small tables. The engine at its defaults, a worker a "
        "CPU, from its start until every row is in the bucket. Its own CPU is that of its workers "
        "too. The walsender's CPU is here that of all the server's processes."
    )
    rows: int = 1_000_000
    rows_least: int = 200_000
    """With fewer, starts and ends are most of what is seen."""
    targets: tuple[Target, ...] = (
        Target(
            text="the workers' CPU a row",
            quantity=WORKERS_CPU,
            bound=1.0,
            direction="at most",
            variants=("12 columns",),
        ),
    )

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
        peers = [peer for peer in TABLE_PEERS.values() if not plan.peers or peer.name in plan.peers]
        for peer in peers:
            recorder.peer(peer)
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
            row_count, table_count = _filled(
                database, workload, max(int(rows * variant.share), 1), recorder
            )
            bench = _Bench(database, bucket, Path(folder), row_count, table_count)
            failures = bench.rounds(plan, recorder, peers)
            with recorder.step("verifying what was published (full)"):
                bench.verify(plan, recorder)
        return failures


def _estimate(variant: Variant, plan: Plan, rows: int) -> float:
    count = rows * variant.share * variant.weight
    readers = 1 + sum(not plan.peers or name in plan.peers for name in TABLE_PEERS)
    run = _START_SECONDS + variant.table_count * _TABLE_SECONDS + count * _ROW_US / 1e6
    once = _SERVERS_SECONDS + count * (_WRITE_US + _VERIFY_ROW_US) / 1e6
    return once + run * readers * (plan.rounds + 1)


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


@dataclass(frozen=True, slots=True)
class _Bench:
    """Full tables, a bucket, and a folder for logs and configuration files."""

    database: Database
    bucket: Bucket
    folder: Path
    row_count: int
    table_count: int

    @property
    def _engine(self) -> EngineReader:
        return EngineReader(self.database, self.bucket, self.folder, snapshot="initial")

    def rounds(self, plan: Plan, recorder: Recorder, peers: Sequence[Peer]) -> list[str]:
        """Run everybody; the failures of peers. Raises RunFailed where the engine failed."""
        left, failures = {peer.name: peer for peer in peers}, []
        for number in range(plan.rounds + 1):
            for reader in order((*left, ENGINE), number):
                peer = left.get(reader)
                try:
                    with recorder.step(f"round {number} of {plan.rounds}: {reader}"):
                        run = self._run(peer, number)
                except RunFailed as failure:
                    if peer is None:
                        raise
                    del left[reader]
                    failures.append(f"{reader}: {failure}")
                    recorder.note(f"{reader} failed in round {number}")
                else:
                    recorder.add(run)
        return failures

    def verify(self, plan: Plan, recorder: Recorder) -> None:
        """Judge what the engine published in the last round."""
        found = self._engine.verify(
            slot_name(f"{ENGINE}_{plan.rounds}"),
            # Each table's snapshot begins with a truncate record.
            row_count=self.row_count + self.table_count,
            depth="full",
        )
        recorder.verified(found)

    def _run(self, peer: Peer | None, number: int) -> Run:
        """One run of a peer, or of the engine."""
        name = f"{peer.name if peer is not None else ENGINE}_{number}"
        log = self.folder / f"{name}.log"
        slot = slot_name(name)
        engine = self._engine
        if peer is None:
            engine.configure(slot)
            command, environment = engine.command(slot, "--until-caught-up"), engine.environment
        else:
            command = peer.command(self._task(name))
            environment = {**plain_environment(), **self.database.environment}
        with self.database.connect() as connection:
            server = _postmaster(self.database, connection)
            before = tree_cpu_seconds(server) if server else 0.0
            measured = measure(
                command,
                environment=environment,
                log=log,
                watched=Watched(self.bucket, is_family=True),
            )
            seconds = tree_cpu_seconds(server) - before if server else None
            if peer is None:
                connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        usage = msgspec.structs.replace(measured.usage, walsender_cpu_seconds=seconds)
        figures: dict[str, float] = {}
        if peer is None:
            workers = usage.own_cpu_seconds - last_cpu_seconds(log)
            figures[WORKERS_CPU] = workers * 1e6 / self.row_count
        if measured.child_peak_rss_bytes:
            figures[WORKER_MEMORY] = float(measured.child_peak_rss_bytes)
        return Run(
            reader=peer.name if peer is not None else ENGINE,
            round=number,
            rows=self.row_count,
            command=command,
            usage=usage,
            series={"memory": measured.memory},
            figures=figures,
        )

    def _task(self, name: str) -> Task:
        folder = self.folder / name
        folder.mkdir()
        return Task(
            dsn=self.database.dsn,
            slot="",
            publication=NAME,
            end_lsn="",
            row_count=self.row_count,
            folder=folder,
            programs=self.database.programs,
        )


def _postmaster(database: Database, connection: Connection) -> int | None:
    """The server's first process, whose children all the others are."""
    return psutil.Process(connection.info.backend_pid).ppid() if database.is_local else None


SNAPSHOT = Snapshot()
