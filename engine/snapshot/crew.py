"""The crew: workers of a standard executor, and what happens when they die or stand still.

Strategy: the executor is made when the first task comes, and made anew when it broke. A process
pool breaks as a whole when one of its processes is killed: every task of it then fails at once, and
whoever gave it gives it again. Nothing of a task is kept here.

Invariant: no more tasks are under way than there are workers. So a task that waits can still be
taken back.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor
from typing import Protocol

import structlog

from engine.model.errors import TailraceError

_log = structlog.get_logger(__name__)

Work = Callable[[bytes], bytes]
"""What a worker runs: a function of a module that it can import."""


class WorkerLost(TailraceError):
    """A worker died, or its executor cannot be reached. The task may be given again."""

    retryable = True


class Workers(Protocol):
    """Where workers come from: one kind of executor."""

    @property
    def count(self) -> int:
        """How many tasks can be under way at once."""
        ...

    def start(self) -> Executor:
        """Make an executor. Raises WorkerLost where it cannot be reached."""
        ...

    def end(self, executor: Executor) -> None:
        """Let the executor go, with whatever it is doing. Never waits for a task.

        The tasks that it has end with BrokenExecutor, or are cancelled.
        """
        ...


class Crew:
    """Gives tasks to workers. `close` lets all of them go."""

    def __init__(self, workers: Workers, work: Work) -> None:
        self._workers = workers
        self._work = work
        self._executor: Executor | None = None
        self._starting = asyncio.Lock()
        self._task_count = 0
        self._free = asyncio.Semaphore(workers.count)

    @property
    def is_full(self) -> bool:
        """Whether every worker has a task."""
        return self._free.locked()

    @property
    def is_busy(self) -> bool:
        """Whether any worker has a task, also one that nobody waits for."""
        return self._task_count > 0

    async def run(self, task: bytes, on_start: Callable[[], None]) -> bytes:
        """The result of `task`, once a worker is free. `on_start` is called when one has it.

        Raises WorkerLost. Cancellation takes back a task that waits. One that is under way goes on,
        and its result is thrown away; its worker is free again when it ends.
        """
        await self._free.acquire()
        try:
            executor = await self._started()
            future = executor.submit(self._work, task)
        except BaseException as error:
            self._free.release()
            if isinstance(error, BrokenExecutor):
                raise self._lost(self._executor, error) from error
            raise
        loop = asyncio.get_running_loop()
        self._task_count += 1
        future.add_done_callback(lambda _: _tell(loop, self._done))
        on_start()
        try:
            return await asyncio.wrap_future(future)
        except BrokenExecutor as error:
            raise self._lost(executor, error) from error
        except asyncio.CancelledError as error:
            if _is_cancelling():
                raise
            # Its executor was ended before a worker had the task.
            raise self._lost(executor, error) from error
        except Exception as error:
            # What a worker cannot turn into a result, its executor gives in its place.
            raise WorkerLost(f"a snapshot's worker failed: {error!r}") from error

    async def _started(self) -> Executor:
        async with self._starting:
            if self._executor is None:
                self._executor = await asyncio.to_thread(self._workers.start)
            return self._executor

    def _lost(self, executor: Executor | None, error: BaseException) -> WorkerLost:
        if executor is not None and self._executor is executor:
            _log.warning("snapshot workers lost", error=str(error))
            self.renew()
        return WorkerLost(f"a snapshot's worker was lost: {error}")

    def _done(self) -> None:
        self._task_count -= 1
        self._free.release()

    def renew(self) -> None:
        """End every worker, whatever it does; the next task gets new ones. Never waits."""
        executor, self._executor = self._executor, None
        if executor is not None:
            self._workers.end(executor)

    def close(self) -> None:
        """End every worker. Never waits."""
        self.renew()


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # The engine has ended meanwhile.
        loop.call_soon_threadsafe(call)
