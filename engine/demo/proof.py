"""The proof: three accounts of the same changes, each from another source, have to agree.

1. What the database's own triggers counted, committed with the changes.
2. What the journal says is in the bucket, checked to the last record: `verify --depth full`.
3. What a reader that knows nothing of the journal finds in the bucket.

And the table `orders`, made again from its snapshot and its changes, has to be the table in the
database. Every row of it that was there before the engine has to be in the snapshot exactly once.
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
    existing: int
    existing_found: int
    orders_pattern: str
    busiest: Sequence[tuple[Any, ...]]

    @property
    def is_ok(self) -> bool:
        """Whether all agree."""
        are_equal = self.are_counts_equal and self.are_orders_equal and self.are_existing_equal
        return self.verdict.is_ok and are_equal

    @property
    def are_counts_equal(self) -> bool:
        """Whether the bucket holds as many changes of each table and op as were committed."""
        return self.changes_found == self.committed and self.verdict.rows == sum(
            self.found.values()
        )

    @property
    def changes_found(self) -> Tally:
        """Records of the stream in the bucket, without those of snapshots."""
        return {(table, op): count for (table, op), count in self.found.items() if op in "cud"}

    @property
    def are_existing_equal(self) -> bool:
        """Whether every row that was there before is in the bucket as one that was read."""
        return self.existing_found == self.existing

    @property
    def are_orders_equal(self) -> bool:
        """Whether the orders made from their changes are those in the database."""
        return self.orders_in_bucket == self.orders_in_database


async def prove(workspace: Workspace, progress: Progress) -> Proof:
    """Take all accounts. The engine has ended. Cancellation leaves nothing behind."""
    async with await shop.connect(workspace.dsn) as connection:
        committed = await shop.committed(connection)
        existing = committed.pop(shop.EXISTING, 0)
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
    found = await asyncio.to_thread(_read, workspace, existing)
    return Proof(
        committed=committed,
        found=found.counts,
        verdict=verdict,
        orders_in_database=orders,
        orders_in_bucket=found.orders,
        existing=existing,
        existing_found=found.existing,
        orders_pattern=found.pattern,
        busiest=found.busiest,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What a reader finds in the bucket."""

    counts: Tally
    orders: tuple[int, str, str]
    existing: int
    pattern: str
    busiest: Sequence[tuple[Any, ...]]


def _read(workspace: Workspace, existing: int) -> _Found:
    spill_folder = workspace.folder / "duckdb"
    with BucketReader(workspace.s3, BUCKET, PREFIX, spill_folder) as reader:
        counts = reader.counts()
        reader.read_orders()
        return _Found(
            counts=counts,
            orders=reader.orders_fingerprint(),
            existing=reader.existing_orders(existing),
            pattern=reader.orders_pattern,
            busiest=reader.busiest_orders(BUSIEST_COUNT),
        )
