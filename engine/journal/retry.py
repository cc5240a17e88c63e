"""Patience: how a request to the bucket is repeated.

The adapter makes one attempt. Here the same bytes are sent again for as long as it takes, with
jittered back-off, because an answer that never came is neither success nor failure. Whoever has
another way to go on gives a limit.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina
import structlog

from engine.model.errors import DestinationRefused, DestinationUnavailable

# The pauses are short beside the 25 s that a drain has. A store that is overloaded still gets only
# one request in 2 s.
WAIT_SECONDS_MAX = 2.0
_WAIT_SECONDS_FIRST = 0.1
# A request that goes on failing says so at once, after 5, 10, 20, 40 and 80 s, and then once a
# minute.
_LOGGED_SECONDS_FIRST = 5.0
_LOGGED_SECONDS_MAX = 60.0

_log = structlog.get_logger(__name__)

_T = TypeVar("_T")
Failure = DestinationUnavailable | DestinationRefused
OnFailure = Callable[[Failure], None]


class Patience:
    """Repeats requests until they are answered, and knows which of them fail now.

    `on_failure` is told of each failed attempt. After `attempts_max` of one request its last
    failure passes, and nothing is logged: whoever gets it says it. None: there is no limit.
    """

    def __init__(self, on_failure: OnFailure, *, attempts_max: int | None = None) -> None:
        self._on_failure = on_failure
        self._attempts_max = attempts_max
        self._failing: dict[Trouble, Failure] = {}
        self.latest: Failure | None = None
        """The newest failure that there was, also of a request that was given up since."""

    @property
    def failure(self) -> Failure | None:
        """The newest failure of a request that still waits for an answer."""
        return next(reversed(self._failing.values()), None)

    async def answered(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """The first usable answer of `attempt`, made again after errors that are retryable.

        Other errors pass. Cancellation leaves the last request in doubt.
        """
        # Nearly every request is answered at once. Making stamina's retry takes 40 us of the loop.
        try:
            return await attempt()
        except (DestinationUnavailable, DestinationRefused) as error:
            failure = error
        return await self._repeated(attempt, failure)

    async def _repeated(self, attempt: Callable[[], Awaitable[_T]], failure: Failure) -> _T:
        """The same, where the first attempt ended with `failure` already."""
        first: Failure | None = failure
        trouble = Trouble()

        def is_unanswered(error: Exception) -> bool:
            if not isinstance(error, DestinationUnavailable | DestinationRefused):
                return False
            self._on_failure(error)
            self.latest = _told(error)
            if not error.retryable:
                return False
            if self._attempts_max is None:
                trouble.happened(error)
            self._failing.pop(trouble, None)
            self._failing[trouble] = error
            return True

        try:
            async for trial in stamina.retry_context(
                on=is_unanswered,
                attempts=self._attempts_max,
                timeout=None,
                wait_initial=_WAIT_SECONDS_FIRST,
                wait_max=WAIT_SECONDS_MAX,
                wait_jitter=_WAIT_SECONDS_FIRST,
            ):
                with trial:
                    if first is not None:
                        failure, first = first, None
                        raise failure
                    return await attempt()
        finally:
            self._failing.pop(trouble, None)
        raise AssertionError("a retry ended without an answer")


def _told(error: Failure) -> Failure:
    """The same without its traceback, which would keep the request's body for as long."""
    kind = DestinationUnavailable if error.retryable else DestinationRefused
    return kind(str(error), code=error.code, hint=error.hint)


class Trouble:
    """The failures of one request: the first is logged, later ones at growing distances."""

    def __init__(self) -> None:
        self._count = 0
        self._began = 0.0
        self._log_at = 0.0

    def happened(self, error: Failure) -> None:
        now = asyncio.get_running_loop().time()
        if not self._count:
            self._began = self._log_at = now
        self._count += 1
        if now < self._log_at:
            return
        seconds = now - self._began
        self._log_at = now + min(max(seconds, _LOGGED_SECONDS_FIRST), _LOGGED_SECONDS_MAX)
        _log.warning(
            "destination unavailable",
            error=str(error),
            code=error.code,
            attempt=self._count,
            seconds=round(seconds, 1),
        )
