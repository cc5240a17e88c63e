"""The engine's process: its event loop, its signals, its garbage collector, its end.

Strategy: the first SIGTERM, SIGINT or SIGHUP asks for the drain; a second one, or the drain limit,
ends the process at once, whatever it is doing. That is safe by the protocol: what the journal does
not say is done again. When the engine has ended, its exit code is decided: a signal that comes
later changes it only if one more follows.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Final, Never, Protocol

import structlog

from engine import app
from engine.cli.output import complain
from engine.config import Configuration
from engine.model.errors import StopLimit
from engine.operate import logs
from engine.operate.status import StatusProvider
from engine.pipeline.stop import StopSignal

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

DRAIN_GRACE_SECONDS = 1.0
"""The engine keeps its drain limit itself and says what was left; this is for one that cannot."""

# malloc.h of glibc. 32 MiB is the most that M_MMAP_THRESHOLD may be.
_M_TRIM_THRESHOLD: Final = -1
_M_ARENA_MAX: Final = -8
_M_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 32 * 1024 * 1024

_GC_OBJECTS: Final = 10_000

_log = structlog.get_logger("engine.process")


class Engine(Protocol):
    """What runs in the process: `engine.app.run`."""

    def __call__(
        self,
        configuration: Configuration,
        *,
        stop: StopSignal,
        until_caught_up: bool,
        on_start: Callable[[StatusProvider], None],
    ) -> Coroutine[None, None, None]:
        """Run until `stop` is requested, or until everything is done. Raises TailraceError.

        `on_start` is called when everything is imported and nothing is connected.
        """
        ...


def run_engine(
    configuration: Configuration, *, until_caught_up: bool, engine: Engine = app.run
) -> int:
    """Run the engine to its end; the answer is the exit code. Raises what the engine raised."""
    logs.configure(configuration.log, in_thread=True)
    keep_memory()
    taken = _taken_signals()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_supervised(configuration, engine, taken, until_caught_up=until_caught_up))
    finally:
        _Late.install(taken)
        logs.flush()
    return 0


def _taken_signals() -> tuple[signal.Signals, ...]:
    """Those that stop the engine: `nohup` and its like have some ignored, and they stay so."""
    return tuple(n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN)


async def _supervised(
    configuration: Configuration,
    engine: Engine,
    taken: tuple[signal.Signals, ...],
    *,
    until_caught_up: bool,
) -> None:
    loop = asyncio.get_running_loop()
    stop = StopSignal()
    ending = _Ending(loop, stop, configuration.engine.drain_seconds)
    for number in taken:
        loop.add_signal_handler(number, ending.on_signal, number)
    try:
        await engine(
            configuration, until_caught_up=until_caught_up, stop=stop, on_start=settle_memory
        )
    finally:
        ending.cancel()
        # While the loop closes, nobody would handle them.
        signal.pthread_sigmask(signal.SIG_BLOCK, taken)
    if until_caught_up and stop.requested.is_set():
        raise StopLimit(
            f"{stop.reason} came before everything was published that was committed at the start",
            hint="What is published stays so. The same command goes on from there.",
        )


class _Late:
    """Signals after the engine's end. The first is too late; one more is impatience."""

    _count = 0

    @classmethod
    def install(cls, taken: tuple[signal.Signals, ...]) -> None:
        for number in taken:
            signal.signal(number, cls._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, taken)

    @classmethod
    def _on_signal(cls, number: int, frame: object) -> None:
        del number, frame
        cls._count += 1
        if cls._count > 1:
            os._exit(StopLimit.exit_code)


class _Ending:
    """What signals do, in their order."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, stop: StopSignal, drain_seconds: float
    ) -> None:
        self._loop = loop
        self._stop = stop
        self._drain_seconds = drain_seconds
        self._limit: asyncio.TimerHandle | None = None

    def on_signal(self, number: signal.Signals) -> None:
        if self._stop.requested.is_set():
            end_at_once(f"a second signal ({number.name}) came before the drain was done")
        _log.info("draining", signal=number.name, limit_seconds=self._drain_seconds)
        self._stop.request(number.name)
        self._limit = self._loop.call_later(
            self._drain_seconds + DRAIN_GRACE_SECONDS,
            end_at_once,
            "the drain took longer than engine.drain_seconds",
        )

    def cancel(self) -> None:
        if self._limit is not None:
            self._limit.cancel()


def end_at_once(text: str) -> Never:
    """End the process without unwinding: nothing that hangs can hold it."""
    complain(text, "nothing is lost: the next start makes again what was not published")
    with contextlib.suppress(OSError, ValueError):
        logs.flush()
    os._exit(StopLimit.exit_code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Uvloop's where it is there."""
    try:
        import uvloop  # noqa: PLC0415 - not to be had everywhere
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def keep_memory() -> None:
    """Have malloc keep what a chunk leaves, up to `_KEPT_BYTES`, for the next one.

    By default malloc gives every block of over 128 KiB back to the system, and the next chunk's
    pages are made anew. A million rows then took 12,000 more page faults, at 4 us each on a virtual
    machine. Threads take from the same heap. If they had one of their own, nobody could use what a
    chunk leaves there. Only glibc has these settings. Elsewhere nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, 1)


def settle_memory(_: StatusProvider) -> None:
    """Collect garbage from now on, but never look again at what was imported.

    A full collection of these 120,000 objects takes 60 ms, which is more than the loop may stall at
    all. So they are not even collected once. Batches have no cycles and are not tracked. The number
    of tracked objects grows with the number of tables. A look at them for every 700 new objects
    costs more than it frees.
    """
    gc.freeze()
    gc.set_threshold(_GC_OBJECTS)
    gc.enable()
