"""The proof: three accounts of the same changes, each from another source, have to agree.

1. What the database's own triggers counted, committed with the changes.
2. What the journal says is in the bucket, checked to the last record: `verify --depth full`.
3. What a reader that knows nothing of the journal finds in the bucket.

And each table as `tailrace read --current` gives it, and as the view shows it that `tailrace views
duckdb` prints, has to be the table in the database. Every row that was there before the engine has
to be in the snapshot exactly once.
"""

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import app
from engine.config import load_destination
from engine.demo import commands, shop
from engine.demo.bucket_reader import BucketReader
from engine.demo.shop import State, Tally
from engine.demo.workspace import BUCKET, PREFIX, Workspace
from engine.reader.verify import Progress, Verdict, verify


@dataclass(frozen=True, slots=True)
class Proof:
    """The accounts. States are by table, `newest` are rows for the eye."""

    committed: Tally
    found: Tally
    verdict: Verdict
    in_database: Mapping[str, State]
    in_answers: Mapping[str, State]
    in_views: Mapping[str, State]
    existing: int
    existing_found: int
    newest: Sequence[tuple[Any, ...]]

    @property
    def is_ok(self) -> bool:
        """Whether all agree."""
        are_states_equal = self.are_answers_equal and self.are_views_equal
        are_counts_equal = self.are_counts_equal and self.are_existing_equal
        return self.verdict.is_ok and are_states_equal and are_counts_equal

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
    def are_answers_equal(self) -> bool:
        """Whether `tailrace read --current` gives the tables that are in the database."""
        return self.in_answers == self.in_database

    @property
    def are_views_equal(self) -> bool:
        """Whether the views show the tables that are in the database."""
        return self.in_views == self.in_database


async def prove(workspace: Workspace, progress: Progress) -> Proof:
    """Take all accounts. The engine has ended. Cancellation leaves nothing behind."""
    async with await shop.connect(workspace.dsn) as connection:
        committed = await shop.committed(connection)
        existing = committed.pop(shop.EXISTING, 0)
        states = await shop.states(connection)
    destination = load_destination(workspace.configuration_file, {})
    async with app.open_bucket(destination) as store:
        verdict = await verify(
            store,
            destination.prefix,
            depth="full",
            concurrency=destination.concurrency,
            progress=progress,
        )
    found = await asyncio.to_thread(_read, workspace, existing, progress.reached)
    return Proof(
        committed=committed,
        found=found.counts,
        verdict=verdict,
        in_database=states,
        in_answers=found.in_answers,
        in_views=found.in_views,
        existing=existing,
        existing_found=found.existing,
        newest=found.newest,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What readers find in the bucket."""

    counts: Tally
    in_answers: Mapping[str, State]
    in_views: Mapping[str, State]
    existing: int
    newest: Sequence[tuple[Any, ...]]


def _read(
    workspace: Workspace, existing: int, reached: Callable[[str, int, int | None], None]
) -> _Found:
    spill_folder = workspace.folder / "duckdb"
    with BucketReader(workspace.s3, BUCKET, PREFIX, spill_folder) as reader:
        reached("counting with DuckDB", 0, None)
        counts = reader.counts()
        commands.print_views(workspace, workspace.views_file)
        reader.make_views(workspace.views_file)
        in_views, in_answers = {}, {}
        for table in shop.DIGESTS:
            reached(f"the view of {table}", 0, None)
            in_views[table] = reader.state_in_view(table)
            reached(f"tailrace read {table} --current", 0, None)
            in_answers[table] = _answer(workspace, reader, table)
        return _Found(
            counts=counts,
            in_answers=in_answers,
            in_views=in_views,
            existing=reader.existing_orders(existing),
            newest=reader.newest_orders(),
        )


def _answer(workspace: Workspace, reader: BucketReader, table: str) -> State:
    """What `tailrace read --current` gives. The file goes: it is as large as the table."""
    with tempfile.TemporaryDirectory(dir=workspace.folder, prefix="read-") as folder:
        file = Path(folder) / f"{table}.ndjson"
        commands.read_current(workspace, f"{shop.SCHEMA}.{table}", file)
        return reader.state_in_file(table, file)
