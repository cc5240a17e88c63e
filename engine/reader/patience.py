"""Patience of commands that only read the bucket: somebody waits for their answer."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina

from engine.journal.retry import Trouble
from engine.model.errors import DestinationUnavailable

PATIENCE_SECONDS = 30.0

_T = TypeVar("_T")


async def answered(attempt: Callable[[], Awaitable[_T]], /) -> _T:
    """The answer of `attempt`, which is repeated for `PATIENCE_SECONDS` while there is none.

    Raises the last DestinationUnavailable then. Cancellation leaves the last request in doubt.
    """
    trouble = Trouble()

    def is_unanswered(error: Exception) -> bool:
        if not isinstance(error, DestinationUnavailable):
            return False
        trouble.happened(error)
        return True

    async for trial in stamina.retry_context(
        on=is_unanswered, attempts=None, timeout=PATIENCE_SECONDS
    ):
        with trial:
            return await attempt()
    raise AssertionError("a retry ended without an answer")
