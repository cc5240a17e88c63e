"""How much of its log the source retains for us, against its limit, and how long that lasts.

Strategy: of each look at the source the room that is left is kept, for `WINDOW_SECONDS`. The time
left is what is there, at the rate at which it shrank over that time. While the engine keeps up, the
room does not shrink, and there is no such time.

Invariant: pure; as many looks as `LOOKS_MAX` are kept.
"""

import math
from collections import deque
from typing import Final

import msgspec

WINDOW_SECONDS: Final = 300.0
LOOKS_MAX: Final = 64
_SURE_SECONDS: Final = 10.0
"""Two looks that are closer say nothing of a rate."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """Log that is retained for us at `looked_us` (Unix microseconds), in the source's unit.

    `limit` is how much the source will retain, `left` how much may still be written before it drops
    what we have not acknowledged (None: there is no limit). `seconds_left` is how long that takes
    at the recent rate (None: it does not shrink, or there is no limit).
    """

    looked_us: int
    retained: int
    limit: int | None = None
    left: int | None = None
    seconds_left: float | None = None


class RetentionWatch:
    """What the looks at the source showed."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, float]] = deque(maxlen=LOOKS_MAX)
        self._newest: Retention | None = None

    @property
    def newest(self) -> Retention | None:
        """As of the last look; None before there was one."""
        return self._newest

    def looked(self, now_us: int, retained: float, left: float) -> None:
        """A look showed this; an infinite `left` means that there is no limit."""
        if math.isinf(left):
            self._looks.clear()
            self._newest = Retention(looked_us=now_us, retained=int(retained))
            return
        looks = self._looks
        while looks and now_us - looks[0][0] > WINDOW_SECONDS * 1e6:
            looks.popleft()
        seconds_left = _seconds_left(looks[0], now_us, left) if looks else None
        looks.append((now_us, left))
        self._newest = Retention(
            looked_us=now_us,
            retained=int(retained),
            # The limit as the source keeps it: whole files of its log.
            limit=int(retained + left),
            left=int(left),
            seconds_left=seconds_left,
        )


def _seconds_left(first: tuple[int, float], now_us: int, left: float) -> float | None:
    seconds, shrank = (now_us - first[0]) / 1e6, first[1] - left
    if seconds < _SURE_SECONDS or shrank <= 0:
        return None
    return round(max(0.0, left) * seconds / shrank, 1)
