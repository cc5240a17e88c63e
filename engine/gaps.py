"""Gaps: what is known to be missing, from the moment it is seen until the journal says so.

Strategy: whoever learns of a loss states a gap here, in the same step in which it learns of it. The
committer puts everything that was stated and is not journalled into its next entry, whichever that
is. A gap may be stated again: it ends, or it is mended.

Invariant: an entry holds every gap that was stated before the entry was made. So `durable` never
passes a loss whose gap is not in the same entry or in an earlier one, and no object is planned
around a row that was left out unless the journal says that it was.
"""

import msgspec

from engine.journal_entry import Gap, JournalState


class GapRegister:
    """The gaps of one journal: those that it holds, and those that wait for its next entry."""

    def __init__(self, state: JournalState) -> None:
        self._state = state
        self._pending: dict[int, Gap] = {}
        self._next_number = max(state.gaps, default=0) + 1

    @property
    def pending(self) -> tuple[Gap, ...]:
        """The statements that the journal does not hold yet, in the order of their numbers."""
        return tuple(gap for _, gap in sorted(self._pending.items()))

    @property
    def standing(self) -> tuple[Gap, ...]:
        """Every gap as it was stated last, journalled or not, in the order of their numbers."""
        return tuple(gap for _, gap in sorted((self._state.gaps | self._pending).items()))

    def state(
        self,
        table: str,
        *,
        after: str,
        until: str,
        reason: str,
        text: str,
        key: str = "",
        position: str = "",
    ) -> Gap:
        """State a gap that nobody has stated before. It waits for the journal's next entry."""
        number = self._next_number
        self._next_number += 1
        gap = Gap(number, table, after, until, reason, text, key=key, position=position)
        self._pending[number] = gap
        return gap

    def end(self, number: int, until: str) -> None:
        """Say where a gap ends that is known already."""
        self._restate(msgspec.structs.replace(self._known(number), until=until))

    def mend(self, number: int, mended: str) -> None:
        """Say by what the lost changes of a gap were made good."""
        self._restate(msgspec.structs.replace(self._known(number), mended=mended))

    def journalled(self, gaps: tuple[Gap, ...]) -> None:
        """These statements are in the journal; one that was changed meanwhile still waits."""
        for gap in gaps:
            if self._pending.get(gap.number) == gap:
                del self._pending[gap.number]

    def _known(self, number: int) -> Gap:
        return self._pending.get(number) or self._state.gaps[number]

    def _restate(self, gap: Gap) -> None:
        self._pending[gap.number] = gap
