"""Unseen tables: rows of them were captured, and no look has agreed on them yet.

Strategy: the stream says of which tables rows come. A look that surely shows everything up to the
last of them, and does not show the table, comes too late: the table was made and went between two
looks. The journal says as much of a former engine's tables: those that it never agreed on, whose
rows no gap follows.

Invariant: pure. A table is told as gone once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.journal.entry import JournalState
from engine.model.interfaces import Look
from engine.model.position import commit_of
from engine.model.schema import MESSAGES_IDENTITY


@dataclass(frozen=True, slots=True)
class _Rows:
    """Under which name the newest known rows of a table came, and in which commit."""

    table: str
    at: str


class Unseen:
    """By a table's identity. Points are log points, as a position's prefix."""

    def __init__(self, known: Mapping[str, tuple[str, str]]) -> None:
        """`known`: name and newest commit of tables that a former engine did not agree on."""
        self._rows = {identity: _Rows(*rows) for identity, rows in known.items()}

    def came(self, identity: str, table: str, at: str) -> None:
        """Rows of a table that is not agreed come as `table` at `at`."""
        known = self._rows.get(identity)
        if known is None or known.at <= at:
            self._rows[identity] = _Rows(table, at)

    def gone(self, look: Look) -> Iterator[tuple[str, str]]:
        """Identity and name of those that the look proves gone, or away; they are told once.

        Those that it shows are forgotten.
        """
        here = {now.identity for now in look.tables.values()}
        self._rows = {known: rows for known, rows in self._rows.items() if known not in here}
        since = look.since or ""
        for identity, rows in list(self._rows.items()):
            if rows.at < since and identity not in look.parts:
                del self._rows[identity]
                yield identity, rows.table


def unseen_of(state: JournalState) -> dict[str, tuple[str, str]]:
    """What the journal knows of tables whose rows are planned and that no look has agreed on.

    The table of messages is none of them.
    """
    watch = state.watch
    seen = {MESSAGES_IDENTITY}
    if watch is not None:
        seen |= {agreed.identity for agreed in watch.tables.values()} | watch.away.keys()
    ends: dict[str, list[str]] = {}
    for gap in state.gaps.values():
        ends.setdefault(gap.table, []).append(gap.until)
    found: dict[str, tuple[str, str]] = {}
    for table, versions in state.versions.items():
        frontier = state.frontiers.get(table)
        if frontier is None:
            continue
        identities = [
            version.relation.identity
            for version in versions
            if version.first is not None and version.first <= frontier.last
        ]
        is_told = any(not end or end > frontier.last for end in ends.get(table, ()))
        if identities and identities[-1] not in seen and not is_told:
            found[identities[-1]] = (table, commit_of(frontier.last))
    return found
