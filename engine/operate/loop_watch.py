"""How late the event loop is: what everything else in the process waits for.

Strategy: a timer is set four times a second, and the watch tells how much later than asked it
fires. A turn of the loop that is too long, and a process that does not get its processor, show
alike. No task is needed, so no error of an engine passes through here.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Self

INTERVAL: Final = 0.25
"""Seconds between two timers. Four calls a second cost nothing. A longer stall always meets one."""


class LoopWatch:
    """Watches inside `with`, on the running loop. `tell` is given seconds."""

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._arm(asyncio.get_running_loop())
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + INTERVAL
        self._timer = loop.call_at(due, self._fired, loop, due)

    def _fired(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._tell(max(0.0, loop.time() - due))
        self._arm(loop)
