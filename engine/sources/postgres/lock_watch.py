"""The watch of a snapshot's locks: whoever waits behind them must not wait for long.

Strategy: the keepers themselves are asked who waits for their locks. They are there as long as
their locks are, while a session of its own may be lost and find no room again: somebody who waits
for our locks makes every later query of that table wait, until the server has no connection to
spare. The keepers are asked in turn, so that each one is heard of often: a session that is silent
may be taken for a dead one, by a firewall in between. A keeper that does not answer in time is not
waited for, and the next one is asked.

Invariant: there is a time limit for whatever the watch waits for. Nobody may hold locks unwatched:
where no keeper answered for a while, the snapshot is stale.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Never

import structlog

from engine.model.errors import SnapshotStale, SourceError
from engine.sources.postgres.held_session import HeldSession
from engine.sources.postgres.locks import Waiter, waiters

LOCK_YIELD_SECONDS: Final = 2.0
"""How long somebody may wait for a lock behind ours, where nobody says otherwise."""

_LOOK_SECONDS: Final = 1.0

_ANSWER_SECONDS: Final = 5.0
"""After so long the next keeper is asked. Two keepers that say nothing have twice that."""

_LEAVE_SECONDS: Final = 1.0
"""How long the last answers are waited for, before those who owe them are cut off."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class LockWatch:
    """Watches the locks of these sessions, which see a snapshot, while `running`."""

    def __init__(self, keepers: Sequence[HeldSession], yield_seconds: float) -> None:
        self._keepers = list(keepers)
        self._pids = [keeper.pid for keeper in keepers]
        self._yield_seconds = yield_seconds
        self._asked: dict[asyncio.Task[list[Waiter] | None], HeldSession] = {}
        self._answered_at = 0.0
        self._end: SnapshotStale | None = None
        self._is_over = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch until the block ends, which may take a second. It ends nothing by itself.

        Afterwards the sessions are good for nothing but their end. Cancellation ends the block.
        """
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._run(group))
            try:
                yield
            except Exception as error:  # noqa: BLE001 - raised below, bare: it is not the group's
                failure = error
            finally:
                watching.cancel()
                await self._leave()
        if failure is not None:
            raise failure

    async def over(self) -> Never:
        """Wait until the snapshot has to be let go of, and raise SnapshotStale, which says why.

        Cancellation changes nothing.
        """
        await self._is_over.wait()
        assert self._end is not None, "it is over for a reason"
        raise self._end

    @asynccontextmanager
    async def guarding(self) -> AsyncIterator[None]:
        """Cancel the block where the snapshot has to be let go of, and raise SnapshotStale.

        Cancellation ends the block.
        """
        failure: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self.over())
                try:
                    yield
                except Exception as error:  # noqa: BLE001 - as above
                    failure = error
                finally:
                    watching.cancel()
        except* SnapshotStale as stale:
            failure = self._end or stale
        if failure is not None:
            raise failure

    async def _run(self, group: asyncio.TaskGroup) -> None:
        try:
            await self._look_on(group)
        except SnapshotStale as stale:
            self._end = stale
            self._is_over.set()

    async def _leave(self) -> None:
        # A question that is cancelled would wait until the server is told, or cannot be.
        if self._asked:
            await asyncio.wait(self._asked, timeout=_LEAVE_SECONDS)
        for task, keeper in self._asked.items():
            if not task.done():
                keeper.cut_off()
        # Cut off, they end at once.
        if self._asked:
            await asyncio.wait(self._asked)

    async def _look_on(self, group: asyncio.TaskGroup) -> Never:
        loop = asyncio.get_running_loop()
        self._answered_at = loop.time()
        left = self._yield_seconds
        while True:
            # Where somebody's time is over before the next look, it comes sooner.
            await asyncio.sleep(min(left, _LOOK_SECONDS))
            found = await self._look(group)
            if found is not None:
                self._answered_at = loop.time()
                left = self._left(found)
            elif loop.time() - self._answered_at >= _ANSWER_SECONDS * len(self._pids):
                raise SnapshotStale(
                    "a snapshot lets go of its tables: nobody says who waits for them, for"
                    f" {loop.time() - self._answered_at:.0f} s",
                    hint="see the server, and the network in between",
                )

    def _left(self, found: list[Waiter]) -> float:
        """For how long whoever waits the longest may still wait."""
        waited = found[0].seconds if found else 0.0
        if waited >= self._yield_seconds:
            raise SnapshotStale(f"a snapshot lets go of its tables: {found[0]}")
        return self._yield_seconds - waited

    async def _look(self, group: asyncio.TaskGroup) -> list[Waiter] | None:
        """Who waits for our locks, the longest first; None where that is not known."""
        # Whoever is busy with something else, or was asked last, comes last.
        for keeper in sorted(self._keepers, key=lambda keeper: keeper.is_busy):
            if keeper not in self._asked.values():
                self._asked[group.create_task(self._ask(keeper))] = keeper
                if (found := await self._answer()) is not None:
                    self._keepers.remove(keeper)
                    self._keepers.append(keeper)
                    return found
        self._keepers = [keeper for keeper in self._keepers if not keeper.is_lost]
        if not self._keepers:
            raise SnapshotStale("both sessions that keep the snapshot were lost")
        return await self._answer() if self._asked else None

    async def _answer(self) -> list[Waiter] | None:
        """The first answer of those that were asked; None where none comes in time."""
        done, _ = await asyncio.wait(
            self._asked, timeout=_ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            del self._asked[task]
        answers = (task.result() for task in done)
        return next((answer for answer in answers if answer is not None), None)

    async def _ask(self, keeper: HeldSession) -> list[Waiter] | None:
        try:
            return await waiters(keeper, self._pids)
        except SourceError as error:
            _log.debug("a keeper does not say who waits for its locks", error=str(error))
            return None
