"""How a running engine is asked to stop.

Strategy: whoever owns the process (its signals) calls `request`. Whoever runs the pipeline waits on
`requested`, and drains. Asking twice is the same as asking once here. What a second signal does is
decided in the process.
"""

import asyncio


class StopSignal:
    """One request to stop, with its reason.

    Must be made inside the running event loop's thread; `request` may be called from a signal
    callback of that loop.
    """

    __slots__ = ("_reason", "requested")

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self._reason = ""

    @property
    def reason(self) -> str:
        """What asked first, such as `SIGTERM`; empty while nothing has."""
        return self._reason

    def request(self, reason: str) -> None:
        """Ask for the drain. The first reason stays; later calls change nothing."""
        if not self.requested.is_set():
            self._reason = reason
            self.requested.set()
