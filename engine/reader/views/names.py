"""Names that an engine tells apart: where it ignores case, twins get a number.

Invariant: the same names give the same answer, whichever of them somebody asked for.
"""

from collections.abc import Iterable


def distinct(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Each name as it is, or with a number behind it where an earlier one differs in case alone.

    `taken` are names that none may have. The order of `names` decides who keeps its own.
    """
    used = {name.casefold() for name in taken}
    found: dict[str, str] = {}
    for name in names:
        given, number = name, 1
        while given.casefold() in used:
            number += 1
            given = f"{name}_{number}"
        used.add(given.casefold())
        found[name] = given
    return found


def free(name: str, taken: Iterable[str]) -> str:
    """`name`, with as many underscores before it as it takes to be none of `taken`."""
    used = {other.casefold() for other in taken}
    while name.casefold() in used:
        name = f"_{name}"
    return name
