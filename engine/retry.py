"""Patience: how a request to the bucket is repeated.

One attempt is the adapter's; here the same bytes are sent again for as long as it takes, with
jittered back-off, because an answer that never came is neither success nor failure.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from engine.errors import DestinationUnavailable

WAIT_SECONDS_MAX = 5.0
_WAIT_SECONDS_FIRST = 0.1

_T = TypeVar("_T")
OnFailure = Callable[[DestinationUnavailable], None]


async def until_answered(attempt: Callable[[], Awaitable[_T]], on_failure: OnFailure) -> _T:
    """The first usable answer of `attempt`, made again while it is DestinationUnavailable.

    `on_failure` is told of each failed attempt. Other errors pass. Cancellation leaves the last
    request in doubt.
    """

    def is_unanswered(error: Exception) -> bool:
        if isinstance(error, DestinationUnavailable):
            on_failure(error)
            return True
        return False

    async for trial in stamina.retry_context(
        on=is_unanswered,
        attempts=None,
        timeout=None,
        wait_initial=_WAIT_SECONDS_FIRST,
        wait_max=WAIT_SECONDS_MAX,
        wait_jitter=_WAIT_SECONDS_FIRST,
    ):
        with trial:
            return await attempt()
    raise AssertionError("a retry without limit ended")
