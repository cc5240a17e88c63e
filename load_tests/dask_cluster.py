"""A Dask cluster on this machine: a scheduler, and workers that read for the engine.

Strategy: the cluster is there before the engine starts, as a user's is. Each of its workers has one
thread, and the configuration that its environment names. What they use is what the kernel accounts
to them meanwhile, so their start is not in it.

Invariant: no process of it outlives the block, nor the harness.
"""

import importlib.util
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.servers.server_process import LOOPBACK, ServerCommand, ServerProcess, free_ports
from load_tests.processes import cpu_seconds, peak_rss_bytes

_START_SECONDS_MAX: Final = 60.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGKILL)


def absence() -> str:
    """Why there can be no cluster, and what to do about it; empty where there can."""
    found = importlib.util.find_spec("distributed")
    return "" if found is not None else "the package distributed is not installed: run `make setup`"


@dataclass(frozen=True, slots=True)
class DaskCluster:
    """A cluster whose workers are all there; its processes by their ids."""

    scheduler: int
    workers: tuple[int, ...]

    @property
    def cpu_seconds(self) -> float:
        """Of all its processes so far."""
        return cpu_seconds(self.scheduler) + self.workers_cpu_seconds

    @property
    def workers_cpu_seconds(self) -> float:
        """Of its workers so far."""
        return sum(map(cpu_seconds, self.workers))

    @property
    def worker_peak_bytes(self) -> int:
        """The peak RSS of the largest worker."""
        return max(map(peak_rss_bytes, self.workers))


def free_address() -> str:
    """Where a scheduler may listen, `host:port`."""
    [port] = free_ports(1)
    return f"{LOOPBACK}:{port}"


@contextmanager
def open_cluster(
    address: str, worker_count: int, *, environment: Mapping[str, str], folder: Path
) -> Iterator[DaskCluster]:
    """A scheduler that listens on `address`, and workers that it knows.

    Their logs are in `folder`. Raises ServerError where one does not start.
    """
    host, _, port = address.partition(":")
    plain = ("--no-dashboard", "--host", host)
    with ExitStack() as stack:

        def start(name: str, module: str, *words: str, said: bytes) -> int:
            log = folder / f"{name}.log"
            process = ServerProcess(
                ServerCommand(
                    arguments=(sys.executable, "-m", f"distributed.cli.{module}", *words, *plain),
                    directory=folder,
                    environment=environment,
                    log=log,
                    end_signal=signal.SIGKILL,
                )
            )
            stack.callback(process.end, _SIGNALS)
            process.wait_ready(lambda: said in log.read_bytes(), _START_SECONDS_MAX)
            return process.pid

        scheduler = start(
            "scheduler", "dask_scheduler", "--port", port, "--no-show", said=b"Scheduler at:"
        )
        workers = tuple(
            start(
                f"worker-{number}",
                "dask_worker",
                *(f"tcp://{address}", "--nthreads", "1", "--no-nanny"),
                said=b"Registered to:",
            )
            for number in range(worker_count)
        )
        yield DaskCluster(scheduler, workers)
