"""The kinds of source that the configuration knows: each has a section of its own.

Strategy: the keys of every kind stand under `[source]`, and `source.type` says which of them count.
A kind is a module that has its keys, a type for what they become, the rules that need several of
them (`settle`) and the making (`make`). A new kind adds its module, a line in `SOURCES`, and its
type to `OwnConfiguration`; whoever has to tell kinds apart then fails the type check until it does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from engine.config import postgres
from engine.config.key import Key
from engine.config.postgres import PostgresConfiguration

if TYPE_CHECKING:
    from engine.config.parsed import Parsed
    from engine.config.secret_reference import Login

OwnConfiguration: TypeAlias = PostgresConfiguration
"""What one kind of source has of its own: a union, of one kind so far."""


@dataclass(frozen=True, slots=True)
class SourceSection:
    """One kind of source.

    `login` is what a login takes from AWS, by `login_keys`, of which some may be missing or wrong.
    `settle` is called when every key was parsed, also where some have problems; it may complain and
    change values. `make` is called only where nothing is wrong.
    """

    keys: tuple[Key, ...]
    settle: "Callable[[Parsed], None]"
    make: "Callable[[Parsed], OwnConfiguration]"
    login_keys: tuple[Key, ...]
    login: "Callable[[Parsed], Login]"


SOURCES: Final[Mapping[str, SourceSection]] = {
    "postgres": SourceSection(
        postgres.KEYS, postgres.settle, postgres.make, postgres.LOGIN_KEYS, postgres.login
    )
}
"""The known kinds, by `source.type`."""
