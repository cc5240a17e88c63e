"""Where a kill struck: told afterwards, from the bucket, the slot and the stream alone.

    committed ──▶ planned ──▶ published ──▶ durable ──▶ acknowledged

Each window is what lies between two of these; one kill may strike several, since tables and
objects are at different points at the same instant.
"""

from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum

from engine.sources.postgres.lsn import Lsn
from faults.bucket_image import Look
from faults.twin import Changes


class Window(Enum):
    BEFORE_PLAN = "committed rows that no plan names"
    PLAN_TO_PUBLISH = "planned objects that are missing"
    PUBLISH_TO_DURABLE = "visible objects planned behind durable's entry"
    DURABLE_TO_ACKNOWLEDGE = "a slot confirmed to less than the journal's durable"
    INSIDE_TRANSACTION = "a table's frontier inside a transaction"


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What a dead engine left, and up to where the server's log then reached."""

    look: Look
    confirmed_lsn: Lsn
    flush_lsn: Lsn

    @property
    def is_acknowledged_too_far(self) -> bool:
        """Whether the server was told of more than the journal holds."""
        return self.confirmed_lsn > self.look.durable_lsn

    def windows(self, stream: Changes) -> frozenset[Window]:
        """The windows; `stream` is the twin's, read at any time after the kill."""
        look = self.look
        missing = set(look.missing)
        behind = [key for key, plan in look.planned.items() if plan["seq"] > look.durable_seq]
        tests = {
            Window.BEFORE_PLAN: self._has_unplanned(stream),
            Window.PLAN_TO_PUBLISH: bool(missing),
            Window.PUBLISH_TO_DURABLE: any(key not in missing for key in behind),
            Window.DURABLE_TO_ACKNOWLEDGE: self.confirmed_lsn < look.durable_lsn,
            Window.INSIDE_TRANSACTION: self._is_inside_transaction(stream),
        }
        return frozenset(window for window, is_hit in tests.items() if is_hit)

    def _has_unplanned(self, stream: Changes) -> bool:
        frontiers = self.look.frontiers
        return any(
            frontiers.get(table, "") < change.position and _commit(change.position) < self.flush_lsn
            for table, changes in stream.items()
            for change in changes
        )

    def _is_inside_transaction(self, stream: Changes) -> bool:
        for table, frontier in self.look.frontiers.items():
            positions = [change.position for change in stream.get(table, ())]
            after = bisect_right(positions, frontier)
            if after < len(positions) and _commit(positions[after]) == _commit(frontier):
                return True
        return False


def _commit(position: str) -> int:
    return int(position[5:21], 16)
