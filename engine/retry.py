"""Patience: how a request to the bucket is repeated.

One attempt is the adapter's; here the same bytes are sent again for as long as it takes, with
jittered back-off, because an answer that never came is neither success nor failure.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina
import structlog

from engine.errors import DestinationRefused, DestinationUnavailable

WAIT_SECONDS_MAX = 5.0
_WAIT_SECONDS_FIRST = 0.1
# One line a minute and request through a long outage.
_LOGGED_EVERY = 12

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")
Failure = DestinationUnavailable | DestinationRefused
OnFailure = Callable[[Failure], None]


async def until_answered(attempt: Callable[[], Awaitable[_T]], on_failure: OnFailure) -> _T:
    """The first usable answer of `attempt`, made again while it is DestinationUnavailable.

    `on_failure` is told of each failed attempt. Other errors pass. Cancellation leaves the last
    request in doubt.
    """
    failure_count = 0

    def is_unanswered(error: Exception) -> bool:
        nonlocal failure_count
        if not isinstance(error, DestinationUnavailable | DestinationRefused):
            return False
        on_failure(error)
        if not error.retryable:
            return False
        if failure_count % _LOGGED_EVERY == 0:
            _log.warning("destination unavailable", error=str(error), code=error.code)
        failure_count += 1
        return True

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
