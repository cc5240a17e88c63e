"""What is wrong with a configuration: all of it at once, each with its place and a way out.

Invariant: a problem shows a value only as it was given (never what `${VAR}` stood for), and only
for keys that may be shown.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.model.errors import ConfigurationError
from engine.model.plural import counted

HIDDEN = "(not shown)"

_SHOWN_CHARACTERS_MAX = 80


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: `file`, `environment` or `default`; `place` as messages name it."""

    kind: str
    place: str
    line: int = 0

    def __str__(self) -> str:
        return self.place


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `shown` is the value as it may be printed, or None."""

    origin: Origin
    key: str
    text: str
    hint: str = ""
    shown: str | None = None

    def __str__(self) -> str:
        value = "" if self.shown is None else f" = {_cut(self.shown)}"
        # An unknown variable is its own place.
        place = "" if self.key == self.origin.place else f"{self.origin}: "
        line = f"{place}{self.key}{value} {self.text}"
        return f"{line}\n    {self.hint}" if self.hint else line


class ConfigurationProblems(ConfigurationError):
    """All problems of one configuration, in the order of their lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        ordered = sorted(problems, key=lambda problem: (problem.origin.kind, problem.origin.line))
        count = counted(len(ordered), "problem")
        lines = [f"the configuration has {count}", *map(str, ordered)]
        super().__init__(
            "\n  ".join("\n".join(lines).split("\n")),
            hint="`tailrace config schema` describes every key; nothing was started",
        )
        self.problems = tuple(ordered)


def shown(value: Any) -> str:
    """A value as TOML would write it, more or less."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _cut(text: str) -> str:
    if len(text) > _SHOWN_CHARACTERS_MAX:
        return text[:_SHOWN_CHARACTERS_MAX] + "…"
    return text
