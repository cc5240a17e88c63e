"""A snapshot's worker: the function that executors run, and the process that it runs in.

Strategy: `work` is all that an executor is given: bytes in, bytes out. A process on this machine is
told the engine's configuration when it starts. A worker of a cluster reads its own, as `tailrace
run` would. Each thread that does tasks keeps an event loop, a connection to the bucket and a
session with the source from one task to the next.

Invariant: a local worker never outlives its engine.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AsyncExitStack
from typing import Final

from engine.config import Configuration, load
from engine.destinations.s3 import S3ObjectStore
from engine.kinds import range_reader, s3_settings
from engine.snapshot.work import stage_range

_configured: Configuration | None = None
_of_thread = threading.local()


def work(task: bytes) -> bytes:
    """Do one task. See `engine.snapshot.work.stage_range` for what becomes of it."""
    worker: _Worker | None = getattr(_of_thread, "worker", None)
    if worker is None:
        worker = _of_thread.worker = _Worker(_configuration())
    return worker.do(task)


def _configuration() -> Configuration:
    return _configured if _configured is not None else load(None, os.environ).configuration


class _Worker:
    """What one thread keeps between tasks."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._runner = asyncio.Runner()
        self._open = AsyncExitStack()
        self._store = self._runner.run(self._enter())
        self._reader = range_reader(configuration)

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

    @property
    def count(self) -> int:
        """How many processes there are."""
        return self._count

    def start(self) -> Executor:
        """Make the processes. They start with their first task."""
        return ProcessPoolExecutor(
            self._count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self._configuration,),
        )

    def end(self, executor: Executor) -> None:
        """Kill the processes. They are the only children that an engine has."""
        for process in multiprocessing.active_children():
            process.kill()
        executor.shutdown(wait=False)


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
