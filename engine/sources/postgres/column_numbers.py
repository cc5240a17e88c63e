"""Which numbers the columns have that the stream sends. It shows only their names, in their order.

PostgreSQL numbers a table's columns as they are made, and gives no number twice. A row lies between
two looks at the catalog. What is the same in both looks was the same at the row.

Strategy: a column that nobody touched between the looks is known by its name. The others lie
between those, in the order of their numbers. Where only one choice is left, it is taken.

Invariant: pure. A number that is told is the column's; where there is a doubt, none is told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class SeenColumn(Protocol):
    """A column as a look saw it. `written` is another one whenever somebody touched the column."""

    @property
    def number(self) -> int: ...
    @property
    def written(self) -> str: ...
    @property
    def is_generated(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class SeenTable:
    """A table as a look saw it.

    `height` is the highest number that a column ever had, `dropped` are those of columns that are
    gone. `is_listed`: a publication names columns of the table, so not all are sent.
    """

    columns: Mapping[str, SeenColumn] = field(default_factory=dict)
    height: int = 0
    dropped: frozenset[int] = frozenset()
    is_listed: bool = False

    @property
    def is_all_sent(self) -> bool:
        """Whether every column is sent."""
        return not self.is_listed and not any(c.is_generated for c in self.columns.values())


UNBORN = SeenTable()
"""Every table before its first column."""


def column_numbers(names: Sequence[str], before: SeenTable, now: SeenTable) -> list[int]:
    """The numbers of the columns sent as `names` between two looks; 0 where one is not known."""
    numbers = [_untouched(name, before, now) for name in names]
    if not before.is_all_sent or not now.is_all_sent:
        return numbers
    anchored = set(numbers)
    begin, above = 0, 0
    for index in range(len(numbers) + 1):
        if index < len(numbers) and not numbers[index]:
            continue
        below = numbers[index] if index < len(numbers) else now.height + 1
        candidates = [n for n in range(above + 1, below) if n not in before.dropped]
        candidates = [n for n in candidates if n not in anchored]
        if index > begin:
            numbers[begin:index] = _chosen(index - begin, candidates, before, now)
        begin, above = index + 1, below
    return numbers


def _untouched(name: str, before: SeenTable, now: SeenTable) -> int:
    column, known = now.columns.get(name), before.columns.get(name)
    if column is None or known is None:
        return 0
    is_same = (column.number, column.written) == (known.number, known.written)
    return column.number if is_same else 0


def _chosen(count: int, candidates: list[int], before: SeenTable, now: SeenTable) -> list[int]:
    """The numbers of `count` columns that follow each other."""
    went = [n for n in candidates if n in now.dropped]
    came = [n for n in candidates if n > before.height]
    stayed = [n for n in candidates if n not in went and n not in came]
    if count == len(candidates):
        return candidates
    if not went and count >= len(stayed):
        # Of those that came, the first ones were there.
        return candidates[:count]
    if count == len(stayed):
        return stayed
    return [0] * count
