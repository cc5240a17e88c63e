"""Absences: tables whose rows come under names that are not captured, and since when.

Strategy: the stream says under which name rows of a table come. A look says which tables have names
that are not captured. A table that was captured once is away from then on, until it comes under a
captured name again. That is in the journal, because another engine may see the table come back. Of
a table that was never captured, it is known only while this engine lives.

What is read again after a reconnect tells of the past. So a table is back only where it comes at or
behind the newest point at which it was away.

Invariant: pure. An absence of a table that was captured ends only by `came` or `returned`, whose
caller states the gap, or where the table is gone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from engine.journal.entry import Absence
from engine.model.schema import TableVersion


@dataclass(frozen=True, slots=True)
class _Name:
    """A captured name that a table has, or had, and where its rows came under it."""

    table: str
    at: str


class Absences:
    """By a table's identity. Points are log points, as a position's prefix."""

    def __init__(self, names: Mapping[str, str], away: Mapping[str, Absence]) -> None:
        """Begin with the captured names that tables had, and with those that are away."""
        self._names = {identity: _Name(table, "") for identity, table in names.items()}
        self._away = dict(away)

    @property
    def stated(self) -> dict[str, Absence]:
        """Those that the journal has to hold: of tables that were captured."""
        return {identity: away for identity, away in self._away.items() if away.table}

    def of(self, identity: str) -> Absence | None:
        """The table's absence, where it is away."""
        return self._away.get(identity)

    def left(self, identity: str, at: str) -> bool:
        """Rows of the table came at `at` and were passed over.

        Whether that was not known before.
        """
        known = self._away.get(identity)
        if known is None:
            name = self._names.get(identity)
            self._away[identity] = Absence(name.table if name is not None else "", at, at)
            return True
        self._away[identity] = msgspec.structs.replace(known, seen=max(known.seen, at))
        return False

    def seen_there(self, identity: str, table: str, at: str) -> None:
        """A look that shows everything before `at` shows the table under a captured name."""
        name = self._names.get(identity)
        if name is None or name.at < at:
            self._names[identity] = _Name(table, at)

    def seen_away(self, identity: str, table: str, *, since: str, seen: str) -> None:
        """A look shows that the table, which was `table` at `since`, is away up to `seen`."""
        known = self._away.get(identity)
        if known is not None:
            since, seen = min(known.since, since), max(known.seen, seen)
        self._away[identity] = Absence(table, since, seen)

    def came(self, identity: str, table: str, at: str) -> Absence | None:
        """Rows of the table come as `table` at `at`. The absence that ends by that, if any."""
        self._names[identity] = _Name(table, at)
        known = self._away.get(identity)
        if known is None or at < known.seen:
            return None
        return self._away.pop(identity)

    def returned(self, identity: str) -> None:
        """A look shows that the table is there."""
        self._away.pop(identity, None)

    def forget_gone(self, there: Iterable[str], before: str) -> None:
        """Forget tables that a look does not show which shows everything before `before`."""
        kept = frozenset(there)
        self._names = {
            identity: name
            for identity, name in self._names.items()
            if identity in kept or name.at >= before
        }
        self._away = {
            identity: away
            for identity, away in self._away.items()
            if identity in kept or away.seen >= before
        }


def captured_names(versions: Mapping[str, tuple[TableVersion, ...]]) -> dict[str, str]:
    """By identity, the table's newest name under which rows of it were captured."""
    newest: dict[str, tuple[str, str]] = {}
    for table, known in versions.items():
        for version in known:
            first = version.first or ""
            identity = version.relation.identity
            newest[identity] = max(newest.get(identity, ("", "")), (first, table))
    return {identity: table for identity, (_, table) in newest.items()}
