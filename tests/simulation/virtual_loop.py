"""An asyncio event loop whose time is virtual and whose processes can be frozen and killed.

Strategy: when nothing is ready, time jumps to the next timer. So hours pass in milliseconds, and a
run depends on its seed alone. Every callback belongs to the process from whose context it was
scheduled (a context variable). Callbacks of a frozen process are held back until it is resumed
(SIGSTOP). Those of a killed process are dropped (kill -9: no handler, no `finally`, no last
request). What belongs to no process is the outside world.

Invariant: time never goes back, and two runs of the same program schedule the same callbacks in the
same order.
"""

import asyncio
import contextlib
import heapq
import itertools
import math
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import collections

Result = TypeVar("Result")


class DeadlockError(Exception):
    """Nothing is ready and no timer is set: something is waited for that will never come."""


class Process:
    """Everything that runs in one context: what a signal to a process would reach."""

    __slots__ = ("held", "is_alive", "is_frozen", "name", "woken_at")

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.is_frozen = False
        self.woken_at = -math.inf
        self.held: list[asyncio.Handle] = []


_process: ContextVar[Process | None] = ContextVar("process", default=None)


def current_process() -> Process | None:
    """The process that the running callback belongs to; None for the outside world."""
    return _process.get()


class NumberedTask(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks are walked in one order in every run."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], *, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """No selector, no threads, no signals: callbacks and timers only.

    `world` is the outside world's context.
    """

    # What BaseEventLoop keeps, untyped.
    _ready: "collections.deque[Any]"
    _scheduled: list[tuple[float, int, Any]]

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._numbers = itertools.count(1)
        self._timer_numbers = itertools.count()
        self._tasks: list[NumberedTask] = []
        self.world = Context()
        self.turn_count = 0

    def time(self) -> float:
        return self._now

    # --- processes

    def start(
        self, process: Process, coroutine: Coroutine[Any, Any, Result]
    ) -> "asyncio.Task[Result]":
        """Run `coroutine` as the main task of `process`."""
        context = Context()
        context.run(_process.set, process)
        task: asyncio.Task[Result] = self.create_task(coroutine, context=context)
        return task

    def signal(self, process: Process, callback: Callable[..., object], *arguments: Any) -> None:
        """Run a signal's callback in `process`; a frozen one gets it when it is resumed."""
        context = Context()
        context.run(_process.set, process)
        self.call_soon(callback, *arguments, context=context)

    def freeze(self, process: Process) -> None:
        """Hold back everything that `process` would do."""
        process.is_frozen = True

    def resume(self, process: Process) -> None:
        """Let `process` go on with what was held back; its timers run on late."""
        process.is_frozen = False
        process.woken_at = self.time()
        self._ready.extend(process.held)
        process.held.clear()

    def kill(self, process: Process) -> None:
        """End `process` between two instructions: none of its callbacks runs any more."""
        process.is_alive = False
        process.held.clear()

    def later(self, delay: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Call back in the outside world, whoever asks for it."""
        self.call_at(self._now + delay, callback, *arguments, context=self.world)

    # --- what asyncio asks of a loop

    # Both are asyncio's own without its checks: a schedule calls them some thousand times.
    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        # The number keeps equal times in order, and a tuple compares without a call into Python.
        heapq.heappush(self._scheduled, (when, next(self._timer_numbers), timer))
        return timer

    def create_task(self, coro: Any, *, name: object = None, context: Context | None = None) -> Any:
        number = next(self._numbers)
        task = NumberedTask(coro, number=number, loop=self, name=name, context=context)
        # A killed process's tasks are never finished: without a reference they would be
        # collected, and collecting a coroutine runs its `finally` blocks.
        self._tasks.append(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Work that leaves the loop takes no virtual time and needs no thread."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - the caller's to raise
            future.set_exception(error)
        return future

    def _run_once(self) -> None:
        if not self._ready:
            self._jump()
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_process)
            if process is None:
                handle._run()
            elif not process.is_alive:
                continue
            elif process.is_frozen:
                process.held.append(handle)
            else:
                handle._run()
        self.turn_count += 1

    def _jump(self) -> None:
        """Move on to the next timer and make ready what is due then."""
        scheduled = self._scheduled
        while scheduled and self._is_void(scheduled[0][2]):
            heapq.heappop(scheduled)
        if not scheduled:
            raise DeadlockError(f"nothing to do at {self._now:.3f} s")
        self._now = max(self._now, scheduled[0][0])
        while scheduled and scheduled[0][0] <= self._now:
            self._ready.append(heapq.heappop(scheduled)[2])

    @staticmethod
    def _is_void(handle: Any) -> bool:
        process = handle._context.get(_process)
        return handle._cancelled or (process is not None and not process.is_alive)

    def _write_to_self(self) -> None:
        """Nothing to wake: there is no selector."""

    def _process_events(self, event_list: object) -> None:
        """Nothing comes from outside."""

    def _asyncgen_finalizer_hook(self, agen: object) -> None:
        """An abandoned generator is left alone: its process is dead, or its world is over."""

    def dispose(self) -> None:
        """Close, and let go of the tasks that were never finished; their world is gone."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine = task.get_coro()
                assert isinstance(coroutine, Coroutine)
                # What cleanup asks for is ignored; a cleanup that awaits is a RuntimeError.
                with contextlib.suppress(Exception, BaseExceptionGroup):
                    coroutine.close()
        self._ready.clear()
        self._scheduled.clear()
        self.close()
