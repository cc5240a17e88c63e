"""Strays: tables whose rows came under another captured name than the one that is agreed.

Strategy: the stream says under which name rows of a table come. Where that is not the name of the
look that was judged last, the table was renamed. A look that surely shows everything up to those
rows says whether it has the name still. If not, its rows under that name are no other table's. The
journal says as much of what a former engine captured behind the look that it judged last.

Invariant: pure. Each name is told once.
"""

from collections.abc import Iterable, Iterator, Mapping

from engine.journal.entry import JournalState
from engine.model.position import commit_of


class Strays:
    """By a table's identity. Points are log points, as a position's prefix."""

    def __init__(self, known: Iterable[tuple[str, str, str]]) -> None:
        """`known`: identity, name and newest commit of what a former engine captured."""
        self._names: dict[str, dict[str, str]] = {}
        for stray in known:
            self.came(*stray)

    def came(self, identity: str, table: str, at: str) -> None:
        """Rows of a table that is agreed under another name come as `table` at `at`."""
        names = self._names.setdefault(identity, {})
        names[table] = max(names.get(table, ""), at)

    def passed(self, since: str) -> Iterator[tuple[str, str]]:
        """Identity and name of those whose newest rows commit before `since`, once."""
        for identity, names in list(self._names.items()):
            for table in [table for table, at in names.items() if at < since]:
                del names[table]
                yield identity, table
            if not names:
                del self._names[identity]


def strays_of(
    state: JournalState, homes: Mapping[str, str], clean: str
) -> Iterator[tuple[str, str, str]]:
    """What the journal knows of rows behind `clean` that came under other names.

    `homes` are the agreed names, by identity.
    """
    for table, versions in state.versions.items():
        begun = [version for version in versions if version.first is not None]
        frontier = state.frontiers.get(table)
        found = {v.relation.identity: commit_of(v.first) for v in begun if v.first is not None}
        if frontier is not None:
            # A version may be older than the table's absence from its name.
            planned = [v for v in begun if v.first is not None and v.first <= frontier.last]
            found |= {v.relation.identity: commit_of(frontier.last) for v in planned[-1:]}
        for identity, at in found.items():
            if homes.get(identity, table) != table and at >= clean:
                yield identity, table, at
