"""A Dask cluster under test: a scheduler, and workers each on a machine of its own, as it were.

Strategy: a machine is a network namespace, joined to this one by a cable (a veth pair). A worker
reaches database and bucket by proxies of its own, so a test knows what that worker asks, and can
hold it. Where namespaces cannot be made (they need root), a worker is a plain process, and its
cable is cut at its proxies.
"""

import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from psycopg.conninfo import make_conninfo

from engine.servers.fault_proxy import Hold, HttpFaultProxy, Request, TcpFaultProxy, When
from engine.servers.server_process import LOOPBACK, free_ports
from faults.snapshot_rig import SnapshotRig
from load_tests.engine_process import until

_WORKER = "from distributed.cli.dask_worker import main; main()"
_SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"
_NET_ATTEMPTS_MAX = 20

_TRIES_MAX = 8
"""A client sends a request that has no answer so often at most, while a test holds it."""


def _ip(*words: str) -> None:
    """Run `ip`. Raises CalledProcessError with what it said."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass(frozen=True, slots=True)
class Machine:
    """A place for a process: a namespace, or this one where `namespace` is empty."""

    host: str
    address: str
    namespace: str = ""
    cable: str = ""

    @property
    def command(self) -> tuple[str, ...]:
        """What a command line begins with."""
        return ("ip", "netns", "exec", self.namespace) if self.namespace else ()

    def plug_in(self) -> None:
        """Join it to this one."""
        _ip("-n", self.namespace, "link", "set", self.cable, "up")
        _ip("-n", self.namespace, "route", "add", "default", "dev", self.cable)

    def unplug(self) -> None:
        """Take its cable out: its routes are gone, its connections stay."""
        _ip("-n", self.namespace, "link", "set", self.cable, "down")


def _taken_net() -> str:
    """The first three numbers of a net whose host's address is ours now, and nobody else's."""
    for attempt in range(_NET_ATTEMPTS_MAX):
        net = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        try:
            _ip("addr", "add", f"{net}.254/32", "dev", "lo")
        except subprocess.CalledProcessError:
            # Another process may have it. Any other reason fails in the same way next time.
            if attempt == _NET_ATTEMPTS_MAX - 1:
                raise
        else:
            return net
    raise AssertionError


@contextmanager
def namespaces(count: int) -> Iterator[tuple[Machine, ...]]:
    """So many machines in namespaces of their own. Raises CalledProcessError without the right."""
    if shutil.which("ip") is None:
        raise FileNotFoundError("ip")
    mark = secrets.token_hex(3)
    with ExitStack() as stack:
        # Where cables are cut, this address stays.
        net = _taken_net()
        host = f"{net}.254"
        stack.callback(_ip, "addr", "del", f"{host}/32", "dev", "lo")
        machines = []
        for number in range(1, count + 1):
            machine = Machine(host, f"{net}.{number}", f"tr{mark}-{number}", f"tr{mark}b{number}")
            _ip("netns", "add", machine.namespace)
            stack.callback(_ip, "netns", "del", machine.namespace)
            here = f"tr{mark}a{number}"
            pair = ("type", "veth", "peer", "name", machine.cable, "netns", machine.namespace)
            _ip("link", "add", here, *pair)
            _ip("link", "set", here, "up")
            _ip("route", "add", f"{machine.address}/32", "dev", here, "src", host)
            there = ("-n", machine.namespace)
            _ip(*there, "link", "set", "lo", "up")
            _ip(*there, "addr", "add", f"{machine.address}/32", "dev", machine.cable)
            machine.plug_in()
            machines.append(machine)
        yield tuple(machines)


@dataclass(slots=True, eq=False)
class Worker:
    """A worker of the cluster, and the proxies by which it reaches database and bucket."""

    machine: Machine
    bucket: HttpFaultProxy
    database: TcpFaultProxy
    file: Path
    process: "subprocess.Popen[bytes]"
    log: Path

    def stop(self) -> None:
        """It does nothing more, and its connections stay."""
        self.process.send_signal(signal.SIGSTOP)

    def revive(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Nothing reaches it, and nothing comes from it, for the length of the block."""
        if self.machine.namespace:
            self.machine.unplug()
            try:
                yield
            finally:
                self.machine.plug_in()
        else:
            with self.bucket.blackout(), self.database.blackout():
                yield


def is_again(request: Request, first: Request | None) -> bool:
    """Whether a client sends the same request once more."""
    return first is not None and (
        (request.method, request.key, request.parameters)
        == (first.method, first.key, first.parameters)
    )


@dataclass(slots=True)
class FirstHold:
    """Holds of which one catches a request, and the others what the same worker sends again."""

    worker: Worker | None = None
    request: Request | None = None
    holds: list[Hold] = field(default_factory=list)

    async def reached(self) -> tuple[Worker, "FirstHold"]:
        """Whose request was caught, and these holds. Cancellation changes nothing."""

        async def look() -> bool:
            return any(hold.is_reached for hold in self.holds)

        await until(look, "a request of a worker")
        assert self.worker is not None
        return self.worker, self

    def release(self) -> None:
        """Let all that was caught go on, and nothing else is held. Never waits."""
        for hold in self.holds:
            hold.release()


@dataclass(slots=True)
class Cluster:
    """A scheduler and its workers. Both may be started and killed at any time."""

    rig: SnapshotRig
    machines: tuple[Machine, ...]
    s3_port: int
    port: int
    stack: AsyncExitStack
    workers: list[Worker] = field(default_factory=list)
    scheduler: "subprocess.Popen[bytes] | None" = None
    _worker_count: int = 0

    @property
    def address(self) -> str:
        return f"{self.machines[0].host}:{self.port}"

    def start_scheduler(self) -> None:
        host = self.machines[0].host
        words = ("--host", host, "--port", str(self.port), "--no-dashboard", "--no-show")
        self.scheduler = self._run("scheduler", (), _SCHEDULER, *words)

    def kill_scheduler(self) -> None:
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()

    async def add_worker(self, machine: Machine, preamble: str = "") -> Worker:
        """Start a worker on `machine`; `preamble` is Python that it runs first.

        Cancellation leaves it to the cluster's end.
        """
        own = await self.stack.enter_async_context(HttpFaultProxy(self.s3_port, host=machine.host))
        rows = await self.stack.enter_async_context(
            TcpFaultProxy(self.rig.database.server.port, host=machine.host)
        )
        self._worker_count += 1
        name = f"worker-{self._worker_count}"
        file = self.rig.folder / f"{name}.toml"
        dsn = make_conninfo(self.rig.database.dsn, host=machine.host, port=rows.port)
        changed = self.rig.pipeline.changed(
            source__dsn=dsn, destination__endpoint_url=own.endpoint_url
        )
        file.write_text(changed.to_toml())
        words = (f"tcp://{self.address}", "--nthreads", "1", "--no-nanny", "--no-dashboard")
        process = self._run(
            name,
            machine.command,
            preamble + _WORKER,
            *words,
            *("--host", machine.address, "--name", name),
            TAILRACE_CONFIG=str(file),
        )
        log = self.rig.folder / f"{name}.log"
        worker = Worker(machine, own, rows, file, process, log)
        self.workers.append(worker)
        return worker

    def _run(
        self, name: str, before: tuple[str, ...], program: str, *words: str, **environment: str
    ) -> "subprocess.Popen[bytes]":
        with (self.rig.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*before, sys.executable, "-c", program, *words],
                env={
                    **self.rig.pipeline.environment,
                    "PATH": "/usr/sbin:/usr/bin:/bin",
                    "AWS_EC2_METADATA_DISABLED": "true",
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def hold_first(self, when: When) -> FirstHold:
        """Hold the first such request of any worker, before the bucket hears of it.

        What that worker sends again is held too. Other workers' requests pass.
        """
        first = FirstHold()
        for worker in self.workers:

            def is_first(request: Request, worker: Worker = worker) -> bool:
                if first.worker is None and when(request):
                    first.worker, first.request = worker, request
                    return True
                return first.worker is worker and is_again(request, first.request)

            first.holds += [worker.bucket.hold_next(is_first) for _ in range(_TRIES_MAX)]
        return first

    async def first_held(self, when: When) -> tuple[Worker, FirstHold]:
        """The worker whose request is the first to be held. Cancellation leaves the holds."""
        return await self.hold_first(when).reached()

    @property
    def logs(self) -> str:
        """The ends of what scheduler and workers said."""
        files = [*sorted(self.rig.folder.glob("worker-*.log")), self.rig.folder / "scheduler.log"]
        return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in files)


@asynccontextmanager
async def cluster(
    rig: SnapshotRig, machines: tuple[Machine, ...], s3_port: int
) -> AsyncIterator[Cluster]:
    """A cluster without a scheduler or workers yet; the rig's engines are told where it will be.

    Leaving the block, also by cancellation, kills everything that it started.
    """
    [port] = free_ports(1)
    async with AsyncExitStack() as stack:
        found = Cluster(rig, machines, s3_port, port, stack)
        rig.pipeline = rig.pipeline.changed(source__snapshot_workers=f"dask://{found.address}")
        yield found
        # Whoever is stopped cannot end.
        for worker in found.workers:
            if worker.process.poll() is None:
                worker.revive()


def loopback(count: int) -> tuple[Machine, ...]:
    """Places that are all this one."""
    return (Machine(LOOPBACK, LOOPBACK),) * count
