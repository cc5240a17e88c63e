"""The proof: three accounts of the same changes, each from another source, have to agree.

1. What the database's own triggers counted, committed with the changes.
2. What the journal says is in the bucket, checked to the last record: `verify --depth full`.
3. What a reader that knows nothing of the journal finds in the bucket.

And the table `orders`, made again from its changes, has to be the table in the database.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine import app
from engine.config import load_destination
from engine.demo import shop
from engine.demo.bucket_reader import BucketReader
from engine.demo.shop import Tally
from engine.demo.workspace import BUCKET, PREFIX, Workspace
from engine.reader.verify import Progress, Verdict, verify

BUSIEST_COUNT: Final = 5


@dataclass(frozen=True, slots=True)
class Proof:
    """The accounts. Fingerprints are (count, total, hash), `busiest` are rows for the eye."""

    committed: Tally
    found: Tally
    verdict: Verdict
    orders_in_database: tuple[int, str, str]
    orders_in_bucket: tuple[int, str, str]
    orders_pattern: str
    busiest: Sequence[tuple[Any, ...]]

    @property
    def is_ok(self) -> bool:
        """Whether all agree."""
        return self.verdict.is_ok and self.are_counts_equal and self.are_orders_equal

    @property
    def are_counts_equal(self) -> bool:
        """Whether the bucket holds as many records of each table and op as were committed."""
        return self.found == self.committed and self.verdict.rows == sum(self.committed.values())

    @property
    def are_orders_equal(self) -> bool:
        """Whether the orders made from their changes are those in the database."""
        return self.orders_in_bucket == self.orders_in_database


async def prove(workspace: Workspace, progress: Progress) -> Proof:
    """Take all accounts. The engine has ended. Cancellation leaves nothing behind."""
    async with await shop.connect(workspace.dsn) as connection:
        committed = await shop.committed(connection)
        orders = await shop.orders_fingerprint(connection)
    destination = load_destination(workspace.configuration_file, {})
    async with app.open_bucket(destination) as store:
        verdict = await verify(
            store,
            destination.prefix,
            depth="full",
            concurrency=destination.concurrency,
            progress=progress,
        )
    progress.reached("reading with DuckDB", 0, None)
    found, orders_found, pattern, busiest = await asyncio.to_thread(_read, workspace)
    return Proof(committed, found, verdict, orders, orders_found, pattern, busiest)


def _read(
    workspace: Workspace,
) -> tuple[Tally, tuple[int, str, str], str, Sequence[tuple[Any, ...]]]:
    spill_folder = workspace.folder / "duckdb"
    with BucketReader(workspace.s3, BUCKET, PREFIX, spill_folder) as reader:
        found = reader.counts()
        reader.read_orders()
        busiest = reader.busiest_orders(BUSIEST_COUNT)
        return found, reader.orders_fingerprint(), reader.orders_pattern, busiest
