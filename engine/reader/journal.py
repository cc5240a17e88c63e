"""The journal, read by a command: for those who ask and wait, and write nothing to it.

Strategy: it is loaded as an engine loads it, from the newest good state file on. A bucket that does
not answer is asked again for `PATIENCE_SECONDS`, not for ever: somebody is waiting.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from engine.journal.entry import JournalState, Writer
from engine.journal.journal import Journal
from engine.model.errors import DestinationUnavailable, JournalError
from engine.model.interfaces import ObjectStore
from engine.model.layout import requests_folder
from engine.model.request import request_key, request_name_of

PATIENCE_SECONDS = 30.0
LISTED_MAX = 10_000

_T = TypeVar("_T")


class _Silent:
    """Nobody counts what a command reads."""

    def journal_entry(self, kind: str) -> None:
        del kind

    def publish_error(self, code: str, *, retryable: bool) -> None:
        del code, retryable


class JournalView:
    """One prefix's journal, as far as it was read."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self.prefix = prefix
        self._store = store
        self._journal = Journal(store, prefix, Writer("", "", ""), _Silent())

    @property
    def state(self) -> JournalState:
        """The journal folded."""
        return self._journal.state

    async def load(self) -> None:
        """Read all of it. Raises JournalError where there is none, and DestinationError.

        Cancellation leaves a part of it read.
        """
        await self._in_time(self._journal.load())
        if self.state.source is None:
            raise JournalError(
                f"there is no journal under {self.prefix or '/'}",
                hint="Check destination.bucket and destination.prefix, or run the pipeline first.",
            )

    async def follow(self) -> None:
        """Read what came since. Cancellation keeps what was read."""
        await self._in_time(self._journal.follow())

    async def waiting(self) -> tuple[str, ...]:
        """The names of requests that have no answer, the oldest first.

        No more than `LISTED_MAX` objects are looked at. Cancellation changes nothing.
        """
        return await self._in_time(self._waiting())

    async def _waiting(self) -> tuple[str, ...]:
        through = self.state.answers_through
        after = request_key(self.prefix, through) if through else ""
        waiting: list[str] = []
        listed_count = 0
        async for listed in self._store.list(requests_folder(self.prefix), after=after):
            name = request_name_of(self.prefix, listed.key)
            if name is not None and not self.state.is_answered(name):
                waiting.append(name)
            listed_count += 1
            if listed_count == LISTED_MAX:
                break
        return tuple(waiting)

    async def _in_time(self, reading: Awaitable[_T]) -> _T:
        earlier = self._journal.latest_failure
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await reading
        except TimeoutError as error:
            # Whoever was cancelled has let go of its own failure by now.
            latest = self._journal.latest_failure
            if latest is not None and latest is not earlier:
                raise latest from error
            raise DestinationUnavailable(
                f"the journal could not be read within {PATIENCE_SECONDS:g} s",
                hint="Check the network, and destination.endpoint_url.",
            ) from error
