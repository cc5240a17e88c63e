"""One key of the configuration: its name, its kind of value, its default, its help.

Invariant: `is_shown` is an allow-list. A key is never printed unless it says here that it may be. A
new key is hidden until somebody decides.
"""

from dataclasses import dataclass
from typing import Any, Final

from engine.config.values import Kind, Unfit

REQUIRED: Final = object()
"""The default of a key that has to be given."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `default` is written as an operator would write it; None: no value."""

    section: str
    name: str
    kind: Kind
    text: str
    default: Any = None
    is_shown: bool = False

    @property
    def path(self) -> str:
        """`section.name`, as messages name it."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that overrides it."""
        return f"TAILRACE_{self.section.upper()}__{self.name.upper()}"


def check_not_empty(value: str) -> None:
    """Raise Unfit for text without a visible character."""
    if not value.strip():
        raise Unfit("is empty")
