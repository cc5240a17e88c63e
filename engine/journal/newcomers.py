"""Newcomers: tables that are captured by name and of which nothing arrives yet.

Strategy: after each look the source is asked which of them it may let arrive. Their snapshots are
wanted first. Once the journal says so, the source lets them arrive, and the next look sees it. What
the source may not do stands as an alarm, with the statement that mends it.

Invariant: nothing of a table arrives because of us before the journal says that its snapshot is
wanted. So no reader takes the rows that come then for all that the table has.
"""

from collections.abc import Mapping

import structlog

from engine.journal.snapshots import SnapshotRegister
from engine.model.errors import SourceError
from engine.model.interfaces import NOT_PUBLISHED, Look, Publishing, Reason
from engine.model.schema import TableName

_log = structlog.get_logger(__name__)


class Newcomers:
    """Lets tables arrive that appeared later; without `publishing` nobody does."""

    def __init__(self, publishing: Publishing | None, snapshots: SnapshotRegister) -> None:
        self._publishing = publishing
        self._snapshots = snapshots
        self._refused: dict[TableName, Reason] = {}

    def corrected(self, look: Look, standing: Mapping[str, Reason]) -> dict[str, Reason]:
        """`standing`, but of newcomers what the source said; one that was not tried is none."""
        if self._publishing is None:
            return dict(standing)
        return corrected(look, standing, self._refused)

    def is_due(self, look: Look) -> bool:
        """Whether `take` has something to do for that look."""
        return self._publishing is not None and bool(newcomers(look))

    async def take(self, look: Look) -> bool:
        """Let the newcomers of a look arrive, as far as that may be. Whether any does from now on.

        Waits for the journal. Cancellation leaves some wanted, and some of these arriving.
        """
        tables = newcomers(look)
        if self._publishing is None or not tables:
            return False
        try:
            refused = dict(await self._publishing.refused(tables))
            wanted = [table for table in tables if table not in refused]
            for table in wanted:
                self._snapshots.appear(table)
            await self._snapshots.stated(wanted)
            if wanted:
                refused |= await self._publishing.publish(wanted)
        except SourceError as error:
            # The next look tries again; until then the tables stand as that look shows them.
            _log.warning("new tables are not captured yet", reason=str(error))
            refused = {
                table: Reason(f"the table is not captured yet: {error}", error.hint or "")
                for table in tables
            }
            wanted = []
        self._refused = refused
        return any(table not in refused for table in wanted)


def corrected(
    look: Look, standing: Mapping[str, Reason], refused: Mapping[TableName, Reason]
) -> dict[str, Reason]:
    """`standing`, but of newcomers what `refused` says; one that it does not name is none."""
    told = {str(table): refused.get(table) for table in newcomers(look)}
    found = {table: told.get(table, reason) for table, reason in standing.items()}
    return {table: reason for table, reason in found.items() if reason is not None}


def newcomers(look: Look) -> list[TableName]:
    """The captured tables of which nothing arrives."""
    return [table for table, now in look.tables.items() if NOT_PUBLISHED in now.keeps]
