"""A snapshot's worker: the function that executors run, and the process that it runs in.

Strategy: `work` is all that an executor is given: bytes in, bytes out. A process on this machine is
told the engine's configuration when it starts. A worker of a cluster reads its own, as `tailrace
run` would. Each thread that does tasks keeps an event loop and its connections to the bucket from
one task to the next. What its source keeps is the source's matter.

Invariant: a local worker never outlives its engine.
"""

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, Final

from stamina.instrumentation import set_on_retry_hooks

from engine.config import Configuration, load
from engine.destinations.s3 import S3ObjectStore
from engine.kinds import range_reader, s3_settings
from engine.model.errors import TailraceError
from engine.snapshot.crew import WorkerLost
from engine.snapshot.work import failed, stage_range

_configured: Configuration | None = None
_of_thread = threading.local()


def work(task: bytes) -> bytes:
    """Do one task. See `engine.snapshot.work.stage_range` for what becomes of it."""
    worker: _Worker | None = getattr(_of_thread, "worker", None)
    if worker is None:
        try:
            worker = _of_thread.worker = _Worker(_configuration())
        except TailraceError as error:
            # A cluster's worker may have no configuration, or one that cannot be used.
            return failed(error)
    return worker.do(task)


def _configuration() -> Configuration:
    return _configured if _configured is not None else load(None, os.environ).configuration


class _Worker:
    """What one thread keeps between tasks."""

    def __init__(self, configuration: Configuration) -> None:
        # A request that is made again is no news. What fails is told in the task's result.
        set_on_retry_hooks(())
        self._configuration = configuration
        self._runner = asyncio.Runner()
        self._open = AsyncExitStack()
        self._store = self._runner.run(self._enter())
        self._reader = range_reader(configuration, is_of_engine=_configured is not None)

    async def _enter(self) -> S3ObjectStore:
        settings = s3_settings(self._configuration.destination)
        return await self._open.enter_async_context(S3ObjectStore(settings))

    def do(self, task: bytes) -> bytes:
        return self._runner.run(
            stage_range(
                task,
                store=self._store,
                bucket=self._configuration.destination.bucket,
                reader=self._reader,
            )
        )


class LocalWorkers:
    """Processes on this machine, spawned: see `engine.snapshot.crew.Workers`."""

    def __init__(self, configuration: Configuration, count: int) -> None:
        self._configuration = configuration
        self._count = count

    def start(self) -> tuple[Executor, int]:
        """Make the processes. They start with their first task."""
        executor = ProcessPoolExecutor(
            self._count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self._configuration,),
        )
        return executor, self._count

    def end(self, executor: Executor) -> None:
        """Kill the processes. They are the only children that an engine has."""
        for process in multiprocessing.active_children():
            process.kill()
        executor.shutdown(wait=False)


class DaskWorkers:
    """The workers of a Dask cluster: see `engine.snapshot.crew.Workers`.

    Each needs this package, of the engine's release, and its own configuration, as `tailrace run`
    finds it. A thread of a worker does one task at a time.
    """

    def __init__(self, scheduler: str) -> None:
        self._scheduler = scheduler
        self._clients: dict[Executor, Any] = {}

    def start(self) -> tuple[Executor, int]:
        """Reach the scheduler. Its workers of this moment are those that count."""
        try:
            # It has no types.
            distributed: Any = importlib.import_module("distributed")
        except ImportError as error:
            raise WorkerLost(
                "the package distributed is not installed", hint="install tailrace[dask]"
            ) from error
        try:
            client = distributed.Client(
                f"tcp://{self._scheduler}", timeout=_REACH_SECONDS, set_as_default=False
            )
            count = sum(client.ncores().values())
        except (OSError, TimeoutError) as error:
            raise self._unreachable(type(error).__name__) from error
        if not count:
            client.close(timeout=_REACH_SECONDS)
            raise self._unreachable("it has no workers")
        # The same bytes are another task each time: a task is given again because it failed.
        executor: Executor = client.get_executor(pure=False, retries=0)
        self._clients[executor] = client
        return executor, count

    def _unreachable(self, reason: str) -> WorkerLost:
        return WorkerLost(
            f"no workers at the Dask scheduler {self._scheduler}: {reason}",
            hint="Start scheduler and workers, or set source.snapshot_workers.",
        )

    def end(self, executor: Executor) -> None:
        """Let go of the tasks; what a worker has begun goes on, and nobody waits for it."""
        client = self._clients.pop(executor)
        threading.Thread(target=_close, args=(executor, client), daemon=True).start()


def _close(executor: Executor, client: Any) -> None:
    with contextlib.suppress(Exception):  # It may be gone already.
        executor.shutdown(wait=False)
        client.close(timeout=_REACH_SECONDS)


_REACH_SECONDS: Final = 10.0

_STOPPED_WITH_ENGINE: Final = 1


def _begin(configuration: Configuration) -> None:
    """The first thing that a local worker does."""
    global _configured  # noqa: PLW0603 - an initializer has no other way to tell the tasks
    _configured = configuration
    for number in (signal.SIGINT, signal.SIGHUP):
        # A terminal sends these to the workers too. The engine decides what becomes of them.
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_engine, daemon=True).start()


def _end_with_engine() -> None:
    engine = multiprocessing.parent_process()
    if engine is not None:
        engine.join()
        os._exit(_STOPPED_WITH_ENGINE)
