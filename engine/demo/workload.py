"""The workload: writers that change the shop at a given rate until told to stop.

Strategy: a few connections write at once, in transactions of very different sizes. Some
transactions are rolled back, whole or to a savepoint. What was rolled back must never be seen
anywhere.
"""

import asyncio
from dataclasses import dataclass, field
from random import Random

from engine.demo import shop
from engine.demo.shop import Clerk, Tally
from engine.sources.postgres.lsn import Lsn

_WRITER_COUNT = 4
_TRANSACTIONS_PER_SECOND = 100
_BEHIND_SECONDS_MAX = 1.0
_FIRST_CUSTOMERS = 50
_ROLLED_BACK = 0.02
_SAVEPOINTS = 0.04


@dataclass(slots=True)
class Written:
    """What this run has committed so far, for the display. The proof asks the database."""

    rows: Tally = field(default_factory=dict)
    row_count: int = 0
    transaction_count: int = 0
    roll_back_count: int = 0

    def add(self, rows: Tally) -> None:
        """Count one transaction."""
        self.transaction_count += 1
        for key, count in rows.items():
            self.rows[key] = self.rows.get(key, 0) + count
            self.row_count += count


async def write(
    dsn: str, rate: float, stop: asyncio.Event, written: Written, *, existing_count: int
) -> None:
    """Change about `rate` rows a second until `stop` is set, and count them in `written`.

    The first `existing_count` orders were there before the engine.

    Returns when every transaction has ended. Cancellation rolls back those under way.
    """
    async with await shop.connect(dsn) as connection:
        first = await shop.newest_key(connection) + 1
    pace = _Pace(rate, stop)
    async with asyncio.TaskGroup() as group:
        for number in range(_WRITER_COUNT):
            group.create_task(
                _write(dsn, first + number, pace, written, existing_count=existing_count)
            )


async def write_last(dsn: str, written: Written) -> Lsn:
    """Commit one more change, after all others.

    The answer lies before its commit and after all others: who has read beyond it has read
    everything. Cancellation leaves it in doubt whether the change was committed.
    """
    async with await shop.connect(dsn) as connection:
        clerk = Clerk(connection, Random(), await shop.newest_key(connection) + 1, 1)  # noqa: S311
        await clerk.record(1)
        lsn = await clerk.insert_lsn()
        written.add(await clerk.commit())
        return lsn


class _Pace:
    """Spreads the rows of all writers over time."""

    def __init__(self, rate: float, stop: asyncio.Event) -> None:
        self.stop = stop
        self.size_mean = max(1.0, rate / _TRANSACTIONS_PER_SECOND)
        self._rate = rate
        self._next = asyncio.get_running_loop().time()

    async def wait(self, rows: int) -> bool:
        """Wait until `rows` more are due. False when it is time to stop."""
        now = asyncio.get_running_loop().time()
        due = max(self._next, now - _BEHIND_SECONDS_MAX)
        self._next = due + rows / self._rate
        try:
            async with asyncio.timeout_at(due):
                await self.stop.wait()
        except TimeoutError:
            return True
        return False


async def _write(
    dsn: str, first: int, pace: _Pace, written: Written, *, existing_count: int
) -> None:
    dice = Random(first)  # noqa: S311 - simulated, and the same each time.
    async with await shop.connect(dsn) as connection:
        clerk = Clerk(connection, dice, first, _WRITER_COUNT, existing_count=existing_count)
        await clerk.register(_FIRST_CUSTOMERS)
        written.add(await clerk.commit())
        rows = 1
        while await pace.wait(rows):
            await clerk.work(1 + int(dice.expovariate(1 / pace.size_mean)))
            rows = clerk.row_count
            if dice.random() < _SAVEPOINTS:
                await clerk.think_again()
            if dice.random() < _ROLLED_BACK:
                await clerk.roll_back()
                written.roll_back_count += 1
            else:
                written.add(await clerk.commit())
