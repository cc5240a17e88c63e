"""Names that an engine tells apart: where it ignores case, twins get a number.

Invariant: the same names give the same answer, whichever of them somebody asked for.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


def distinct(
    names: Iterable[str],
    taken: Iterable[str] = (),
    allowed: Callable[[str], str] = str,
) -> dict[str, str]:
    """Each name as it is, or with a number behind it where an earlier one differs in case alone.

    `taken` are names that none may have, and `allowed` makes one that may be. The order of `names`
    decides who keeps its own.
    """
    used = {name.casefold() for name in taken}
    found: dict[str, str] = {}
    for name in names:
        given, number = allowed(name), 1
        while given.casefold() in used:
            number += 1
            given = f"{allowed(name)}_{number}"
        used.add(given.casefold())
        found[name] = given
    return found


def free(name: str, taken: Iterable[str]) -> str:
    """`name`, with as many underscores before it as it takes to be none of `taken`."""
    used = {other.casefold() for other in taken}
    while name.casefold() in used:
        name = f"_{name}"
    return name


@dataclass(frozen=True, slots=True)
class Names:
    """What is made of one table, by name. `schema` and `table` are as the engine is told them.

    `taken` are the tables of that schema: no part of another is called so.
    """

    quoted: Callable[[str], str]
    schema: str
    table: str
    taken: frozenset[str]

    @property
    def state(self) -> str:
        """The table as it is now, quoted, with its schema."""
        return f"{self.quoted(self.schema)}.{self.quoted(self.table)}"

    def part(self, name: str, quoted: Callable[[str], str] | None = None) -> str:
        """Something beside it, quoted, with the schema; `quoted` where a statement has its own."""
        quote = quoted or self.quoted
        [given] = distinct([f"{self.table}_{name}"], self.taken).values()
        return f"{quote(self.schema)}.{quote(given)}"

    def alone(self, name: str) -> str:
        """Likewise, where there can be no schema: two underscores, so that no two are the same."""
        schema, table = (part.replace("_", "_1") for part in (self.schema, self.table))
        return self.quoted(f"{schema}__{table}__{name}")
