"""The crew: workers of a standard executor, and what happens when they die or stand still.

Strategy: the executor is made when the first task comes, and made anew when it broke. A process
pool breaks as a whole when one of its processes is killed: every task of it then fails at once, and
whoever gave it gives it again. Nothing of a task is kept here.

Invariant: no more tasks are under way than there are workers. So a task that waits can still be
taken back.
"""

import asyncio
import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from engine.model.errors import TailraceError

_START_AGAIN_SECONDS: Final = 5.0
"""Whoever asks sooner for workers that could not be had is told so at once: a start takes long."""

_log = structlog.get_logger(__name__)

Work = Callable[[bytes], bytes]
"""What a worker runs: a function of a module that it can import."""


class WorkerLost(TailraceError):
    """A worker died, or its executor cannot be reached. The task may be given again."""

    retryable = True


class Workers(Protocol):
    """Where workers come from: one kind of executor."""

    def start(self) -> tuple[Executor, int]:
        """Make an executor, and say how many tasks it can have under way at once.

        May wait, so it is called in a thread. Raises WorkerLost where there are no workers.
        """
        ...

    def end(self, executor: Executor) -> None:
        """Let the executor go, with whatever it is doing. Never waits for a task.

        The tasks that it has end with BrokenExecutor, or are cancelled.
        """
        ...


@dataclass(slots=True, eq=False)
class _Executor:
    """An executor that was started, and which of its workers are free."""

    executor: Executor
    free: asyncio.Semaphore


class Crew:
    """Gives tasks to workers."""

    def __init__(self, workers: Workers, work: Work) -> None:
        self._workers = workers
        self._work = work
        self._now: _Executor | None = None
        self._starting = asyncio.Lock()
        self._start_failed: tuple[float, WorkerLost] | None = None
        self._task_count = 0

    @property
    def is_full(self) -> bool:
        """Whether every worker has a task."""
        return self._now is not None and self._now.free.locked()

    @property
    def has_free(self) -> bool:
        """Whether there are workers, and one of them has no task and gets none just now."""
        return self._now is not None and not self._now.free.locked()

    @property
    def is_busy(self) -> bool:
        """Whether any worker has a task, also one that nobody waits for."""
        return self._task_count > 0

    async def run(self, task: bytes, on_start: Callable[[], None]) -> bytes:
        """The result of `task`, once a worker is free. `on_start` is called when one has it.

        Raises WorkerLost. Cancellation takes back a task that waits. One that is under way goes on,
        and its result is thrown away; its worker is free again when it ends.
        """
        now = await self._free()
        try:
            future = now.executor.submit(self._work, task)
        except Exception as error:
            # It takes no tasks any more: a client that lost its scheduler, say.
            now.free.release()
            raise self._lost(now, error, is_broken=True) from error
        loop = asyncio.get_running_loop()
        self._task_count += 1
        future.add_done_callback(lambda _: _tell(loop, functools.partial(self._done, now)))
        on_start()
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as error:
            if _is_cancelling():
                raise
            # Its executor was ended before a worker had the task.
            raise self._lost(now, error) from error
        except Exception as error:
            # Whatever an executor says of a task that gave no result.
            raise self._lost(now, error) from error

    async def _free(self) -> _Executor:
        """The executor, with one of its workers taken for a task."""
        while True:
            async with self._starting:
                now = self._now = self._now or await self._started()
            await now.free.acquire()
            if now is self._now:
                return now
            now.free.release()

    async def _started(self) -> _Executor:
        """New workers. Cancellation ends those that come too late."""
        loop = asyncio.get_running_loop()
        if self._start_failed is not None:
            failed_at, failure = self._start_failed
            if loop.time() - failed_at < _START_AGAIN_SECONDS:
                raise WorkerLost(str(failure), hint=failure.hint)
        starting = loop.run_in_executor(None, self._workers.start)
        try:
            executor, count = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._end_unwanted)
            raise
        except WorkerLost as error:
            self._start_failed = loop.time(), error
            raise
        return _Executor(executor, asyncio.Semaphore(count))

    def _end_unwanted(self, starting: asyncio.Future[tuple[Executor, int]]) -> None:
        if not starting.cancelled() and starting.exception() is None:
            self._workers.end(starting.result()[0])

    def _lost(self, now: _Executor, error: BaseException, *, is_broken: bool = False) -> WorkerLost:
        text = f"a snapshot's worker was lost: {type(error).__name__}"
        is_broken = is_broken or isinstance(error, BrokenExecutor | asyncio.CancelledError)
        if is_broken and self._now is now:
            _log.warning("snapshot workers lost", error=type(error).__name__)
            self.let_go()
        return WorkerLost(text)

    def _done(self, now: _Executor) -> None:
        self._task_count -= 1
        now.free.release()

    def let_go(self) -> None:
        """Let every worker go, whatever it does; the next task gets new ones. Never waits."""
        now, self._now = self._now, None
        if now is not None:
            self._workers.end(now.executor)


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # The engine has ended meanwhile.
        loop.call_soon_threadsafe(call)
