"""Run a coroutine that a signal cancels.

A handler that raises does so wherever the loop is, perhaps inside the call that starts a process,
which nobody knows then and nobody ends.
"""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """What `main` returns, as by `asyncio.run`.

    The first SIGINT or SIGTERM cancels it: KeyboardInterrupt once it has ended, and others are
    ignored from then on. Else the handlers are afterwards what they were before.
    """
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    is_interrupted = False

    async def watched() -> _T:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            nonlocal is_interrupted
            if not is_interrupted:
                is_interrupted = True
                task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, interrupt)
        try:
            return await main
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN if is_interrupted else handlers[number])

    try:
        found = asyncio.run(watched())
    except asyncio.CancelledError as error:
        if is_interrupted:
            raise KeyboardInterrupt from error
        raise
    if is_interrupted:
        raise KeyboardInterrupt
    return found
