"""Typed values by key, and what went wrong on the way: what the rules about several keys read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.config.gather import Gathered, Given
from engine.config.problems import HIDDEN, Problem


@dataclass(slots=True)
class Parsed:
    """`values` lacks the keys that have a problem: their rules look with `values.get`."""

    gathered: Gathered
    environment: Mapping[str, str]
    values: dict[tuple[str, str], Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def value(self, section: str, name: str) -> Any:
        return self.values[section, name]

    def section(self, wanted: str) -> dict[str, Any]:
        return {name: value for (section, name), value in self.values.items() if section == wanted}

    def given(self, section: str, name: str) -> Given | None:
        return self.gathered.givens.get((section, name))

    def complain(
        self, section: str, name: str, text: str, hint: str, *, is_secret: bool = False
    ) -> None:
        """A problem of a key that may or may not have been given."""
        given = self.given(section, name)
        origin = given.origin if given else self.gathered.missing_origin(section)
        as_given = (HIDDEN if is_secret else given.shown) if given else None
        self.problems.append(Problem(origin, f"{section}.{name}", text, hint, as_given))
