"""Full tables, read by the engine in each of its ways and by each peer, one after the other.

Strategy: each run of the engine is a first start with a slot and a prefix of its own, and ends when
every row is in the bucket. Its local workers are its children, so their CPU is in its own. A
cluster's workers are looked at before and after, and added.

Invariant: what the engine published in the last round is verified, in each of its ways, and must be
all rows.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import psutil

from load_tests.backlog import slot_name
from load_tests.bucket_client import bytes_below
from load_tests.dask_cluster import DaskCluster, free_address, open_cluster
from load_tests.engine_reader import (
    EngineReader,
    last_cpu_seconds,
    plain_environment,
    snapshot_seconds,
)
from load_tests.measurement import Measured, Watched, measure
from load_tests.peers import Peer, Task
from load_tests.processes import tree_cpu_seconds
from load_tests.result import ENGINE, Verification
from load_tests.run import Run
from load_tests.servers import NAME, Bucket, Database
from load_tests.workload import Connection

WORKER_MEMORY: Final = "worker_peak_bytes"
"""The figure: the peak RSS of the largest worker."""

A_CPU_SECOND: Final = "reader_rows_per_cpu_second"
"""The figure: rows for each CPU-second of the workers; of a peer, of all its processes."""

READING: Final = "reading_rows_per_second"
"""The figure: the rate without the engine's start and end; of a peer, that of its whole life."""

OUTPUT: Final = "output_bytes"
"""The figure: what was published, or written into a folder."""

BUSY: Final = "machine_busy_ratio"
"""The figure: the share of the machine's CPUs that was used meanwhile, by whomever."""

_WORKERS: Final = 2


@dataclass(frozen=True, slots=True)
class Way:
    """The engine, with workers of one kind: a reader."""

    reader: str
    slug: str
    """In names of slots and files."""
    workers: str
    """As `source.snapshot_workers` has it; empty for those of a cluster, whose address is new each
    time."""
    text: str


TWO_WORKERS: Final = Way(
    ENGINE, ENGINE, f"local:{_WORKERS}", "With two workers: processes of this machine."
)
ONE_WORKER: Final = Way(f"{ENGINE}, 1 worker", "one_worker", "local:1", "With one worker.")
DASK: Final = Way(
    f"{ENGINE}, Dask",
    "dask",
    "",
    "With a Dask cluster of two workers on this machine, which is there before the engine starts. "
    "The CPU of its scheduler and workers is in the engine's own.",
)


@dataclass(frozen=True, slots=True)
class Bench:
    """Full tables, a bucket, and a folder for logs and configuration files."""

    database: Database
    bucket: Bucket
    folder: Path
    row_count: int
    table_count: int

    def run(self, reader: Peer | Way, number: int) -> Run:
        """One run. Raises RunFailed where it does not end well."""
        if isinstance(reader, Peer):
            return self._run_peer(reader, number)
        return self._run_engine(reader, number)

    def verify(self, way: Way, number: int, *, is_full: bool) -> Verification:
        """Judge what the engine published in a round."""
        return self._engine(way.workers).verify(
            _slot(way, number),
            # Each table's snapshot begins with a truncate record.
            row_count=self.row_count + self.table_count,
            depth="full" if is_full else "light",
        )

    def _run_peer(self, peer: Peer, number: int) -> Run:
        folder = self.folder / f"{peer.name}_{number}"
        folder.mkdir()
        task = Task(
            dsn=self.database.dsn,
            slot="",
            publication=NAME,
            end_lsn="",
            row_count=self.row_count,
            folder=folder,
            programs=self.database.programs,
        )
        command = peer.command(task)
        with self.database.connect() as connection:
            environment = {**plain_environment(), **self.database.environment}
            measured = self._measured(connection, command, environment, f"{peer.name}_{number}")
        written = sum(file.stat().st_size for file in (folder / "files").rglob("*.*"))
        shutil.rmtree(folder)
        return Run(
            reader=peer.name,
            round=number,
            rows=self.row_count,
            command=command,
            usage=measured.usage,
            series={"memory": measured.memory},
            figures=self._figures(measured, measured.usage.own_cpu_seconds, written),
        )

    def _run_engine(self, way: Way, number: int) -> Run:
        name, slot = f"{way.slug}_{number}", _slot(way, number)
        address = "" if way.workers else free_address()
        engine = self._engine(way.workers or f"dask://{address}")
        file = engine.configure(slot)
        command = engine.command(slot, "--until-caught-up")
        with self.database.connect() as connection, self._cluster(address, engine, file) as cluster:
            before = cluster.cpu_seconds if cluster else 0.0
            workers_before = cluster.workers_cpu_seconds if cluster else 0.0
            measured = self._measured(connection, command, engine.environment, name)
            log = self.folder / f"{name}.log"
            workers = measured.usage.own_cpu_seconds - last_cpu_seconds(log)
            if cluster:
                workers = cluster.workers_cpu_seconds - workers_before
                measured = _added(measured, cluster, cluster.cpu_seconds - before)
            connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        # The journal is beside them, and is no row.
        written = bytes_below(self.bucket, f"{engine.prefix(slot)}/database=")
        return Run(
            reader=way.reader,
            round=number,
            rows=self.row_count,
            command=command,
            usage=measured.usage,
            series={"memory": measured.memory},
            figures={
                **self._figures(measured, workers, written),
                READING: self.row_count / snapshot_seconds(log),
            },
        )

    def _measured(
        self,
        connection: Connection,
        command: Sequence[str],
        environment: Mapping[str, str],
        name: str,
    ) -> Measured:
        """Run a command; the walsender's CPU is that of all the server's processes."""
        server = _postmaster(self.database, connection)
        before = tree_cpu_seconds(server) if server else 0.0
        measured = measure(
            command,
            environment=environment,
            log=self.folder / f"{name}.log",
            watched=Watched(self.bucket, is_family=True),
        )
        seconds = tree_cpu_seconds(server) - before if server else None
        usage = msgspec.structs.replace(measured.usage, walsender_cpu_seconds=seconds)
        return replace(measured, usage=usage)

    def _figures(self, measured: Measured, cpu_seconds: float, written: int) -> dict[str, float]:
        """Of one run; its rows are held against `cpu_seconds`."""
        usage, memory = measured.usage, measured.child_peak_rss_bytes
        return {
            READING: self.row_count / usage.wall_seconds,
            # The kernel's clock ticks every 10 ms: less is not seen.
            A_CPU_SECOND: self.row_count / max(cpu_seconds, 0.01),
            **({WORKER_MEMORY: float(memory)} if memory else {}),
            **({OUTPUT: float(written)} if written else {}),
            BUSY: usage.machine_cpu_seconds / usage.wall_seconds / (os.cpu_count() or 1),
        }

    def _engine(self, workers: str) -> EngineReader:
        return EngineReader(
            self.database,
            self.bucket,
            self.folder,
            snapshot="initial",
            snapshot_workers=workers,
        )

    @contextmanager
    def _cluster(
        self, address: str, engine: EngineReader, file: Path
    ) -> Iterator[DaskCluster | None]:
        """A new one for each run, so that its workers are as young as local ones."""
        if not address:
            yield None
            return
        folder = file.with_suffix("")
        folder.mkdir()
        environment = {**engine.environment, "TAILRACE_CONFIG": str(file)}
        with open_cluster(address, _WORKERS, environment=environment, folder=folder) as cluster:
            yield cluster


def _slot(way: Way, number: int) -> str:
    return slot_name(f"{way.slug}_{number}")


def _added(measured: Measured, cluster: DaskCluster, cpu_seconds: float) -> Measured:
    """With the CPU and the memory of a cluster."""
    own = measured.usage.own_cpu_seconds + cpu_seconds
    usage = msgspec.structs.replace(measured.usage, own_cpu_seconds=own)
    return replace(measured, usage=usage, child_peak_rss_bytes=cluster.worker_peak_bytes)


def _postmaster(database: Database, connection: Connection) -> int | None:
    """The server's first process, whose children all the others are."""
    return psutil.Process(connection.info.backend_pid).ppid() if database.is_local else None
