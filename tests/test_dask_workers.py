"""A Dask cluster as the snapshot's workers: a real scheduler, and workers that are killed."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.servers.server_process import LOOPBACK, free_ports
from engine.snapshot.crew import WorkerLost
from engine.worker import DaskWorkers
from load_tests.engine_process import EngineProcess, until
from test_initial_snapshot import ROWS, Lake, lake  # noqa: F401 - the fixture

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.parametrize("any_postgres", ["postgres"], indirect=True),
]


@dataclass
class Cluster:
    """A scheduler, and workers that read the configuration in `file`."""

    folder: Path
    address: str
    environment: dict[str, str]
    stack: ExitStack
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def run(self, name: str, *words: str) -> "subprocess.Popen[bytes]":
        log = self.stack.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", *words], env=self.environment, stdout=log, stderr=log
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def add_worker(self) -> None:
        name = f"worker-{len(self.workers)}"
        words = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", LOOPBACK)
        self.workers.append(
            self.run(name, "distributed.cli.dask_worker", f"tcp://{self.address}", *words)
        )


@pytest.fixture
def cluster(lake: Lake, tmp_path: Path) -> Iterator[Cluster]:  # noqa: F811
    [port] = free_ports(1)
    file = tmp_path / "worker.toml"
    file.write_text(lake.pipeline.to_toml())
    environment = {
        **lake.pipeline.environment,
        "PATH": "/usr/bin:/bin",
        "TAILRACE_CONFIG": str(file),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with ExitStack() as stack:
        found = Cluster(tmp_path, f"{LOOPBACK}:{port}", environment, stack)
        found.run(
            "scheduler",
            "distributed.cli.dask_scheduler",
            *("--host", LOOPBACK, "--port", str(port), "--no-dashboard", "--no-show"),
        )
        lake.pipeline = lake.pipeline.changed(source__snapshot_workers=f"dask://{found.address}")
        yield found


async def test_a_cluster_reads_every_row_once_although_a_worker_is_killed(
    lake: Lake,  # noqa: F811
    cluster: Cluster,
) -> None:
    cluster.add_worker()
    cluster.add_worker()
    with EngineProcess(
        lake.pipeline.changed(source__snapshot_rows_per_second=0),
        lake.folder,
        "run",
        "run",
        "--until-caught-up",
    ) as engine:

        async def is_reading() -> bool:
            status = await engine.status()
            return bool(status and status["snapshots"])

        await until(is_reading, "a table that is read")
        cluster.workers[0].kill()
        assert await engine.ended(seconds=120) == 0, engine.log

    orders = (await lake.records())["orders"]
    assert [record["metadata"]["op"] for record in orders] == ["t"] + ["r"] * ROWS
    assert (await lake.verified())["ok"]


async def test_a_scheduler_that_is_not_there_is_told_and_the_stream_goes_on(
    lake: Lake,  # noqa: F811
) -> None:
    [port] = free_ports(1)
    pipeline = lake.pipeline.changed(source__snapshot_workers=f"dask://{LOOPBACK}:{port}")
    with EngineProcess(pipeline, lake.folder, "run", "run") as engine:
        await engine.reaches("streaming")
        lake.database.execute("INSERT INTO orders VALUES (0, 'later', 1)")

        async def is_visible() -> bool:
            status = await engine.status()
            return bool(status and status["objects_total"])

        await until(is_visible, "an object of the stream")
        await until(lambda: said(engine, "no workers at the Dask scheduler"), "what is wrong")
        await engine.stop()
    assert "install tailrace[dask]" not in engine.log


async def said(engine: EngineProcess, text: str) -> bool:
    return text in engine.log


async def test_a_scheduler_without_workers_is_told(cluster: Cluster) -> None:
    async def reached() -> str:
        try:
            await asyncio.to_thread(DaskWorkers(cluster.address).start)
        except WorkerLost as error:
            return str(error)
        return ""

    async def is_told() -> bool:
        return "it has no workers" in await reached()

    await until(is_told, "what is wrong")
