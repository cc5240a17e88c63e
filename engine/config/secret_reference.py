"""A secret that AWS keeps: where it is, never what it is.

Strategy: a value `secretsmanager:NAME` or `ssm:NAME` says that the secret is kept there; `#KEY`
behind it says that what is kept is JSON, and which of its values is meant. Nothing is asked of AWS
here: who opens a connection reads the secret then, so a rotated one counts from the next connection
on.

Invariant: a text that begins as a reference does is one, or is refused. It is never taken for the
secret itself.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from engine.config.scalars import Secret
from engine.config.values import Kind, Unfit

Keeper = Literal["secretsmanager", "ssm"]

_FORM: Final = re.compile(r"(?P<keeper>secretsmanager|ssm):(?P<name>[^#]*)(?:#(?P<key>.*))?")
# An exclamation mark stands in the names that AWS gives, such as rds!db-….
_NAME: Final = re.compile(r"[A-Za-z0-9/_+=.@:!-]{1,2048}")
_ARN: Final = re.compile(
    r"arn:aws[a-z-]*:(?P<keeper>[a-z]+):(?P<region>[a-z0-9-]+):\d{12}:(?P<resource>.+)"
)
_BARE_ARN: Final = re.compile(r"arn:aws[a-z-]*:(secretsmanager|ssm):")


@dataclass(frozen=True, slots=True)
class SecretReference:
    """Where a secret is kept. `name` is a name or an ARN; without `key` all of it is meant."""

    keeper: Keeper
    name: str
    key: str = ""

    @property
    def region(self) -> str:
        """The region that the ARN names; empty for a name."""
        found = _ARN.fullmatch(self.name)
        return found["region"] if found else ""

    def __str__(self) -> str:
        return f"{self.keeper}:{self.name}" + (f"#{self.key}" if self.key else "")


@dataclass(frozen=True, slots=True)
class Login:
    """What a configuration takes from AWS to log in at its source.

    `references` say where its secrets are kept. `dsn` is the connection string, where the
    configuration itself has it. `has_token`: AWS's credentials sign what is the password.
    """

    references: tuple[SecretReference, ...]
    dsn: Secret | None
    has_token: bool


class SecretFailed(Exception):
    """A secret that could not be read: `text` says why, `hint` what mends it.

    `is_passing`: the same question may be answered later, with nothing changed.
    """

    def __init__(self, text: str, hint: str, *, is_passing: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        self.is_passing = is_passing


ReadSecret = Callable[[SecretReference], Awaitable[str]]
"""Reads a secret as it is now. Raises SecretFailed. Cancellation changes nothing."""


def reference_in(value: object) -> SecretReference | None:
    """The reference that `value` is; None where it is none. Raises Unfit for a wrong one."""
    if not isinstance(value, str):
        return None
    if _BARE_ARN.match(value):
        keeper = value.split(":")[2]
        raise Unfit("is an ARN alone", f'write what keeps it before the ARN: "{keeper}:arn:…"')
    found = _FORM.fullmatch(value)
    if found is None:
        return None
    keeper, name, key = found["keeper"], found["name"], found["key"]
    if not _NAME.fullmatch(name):
        raise Unfit("names no secret", f'write it as "{keeper}:NAME" or "{keeper}:NAME#KEY"')
    if key == "":
        raise Unfit("ends in a # without a key", "name the key of the secret's JSON, or drop the #")
    if name.startswith("arn:"):
        _check_arn(keeper, name)
    return SecretReference("ssm" if keeper == "ssm" else "secretsmanager", name, key or "")


def _check_arn(keeper: str, name: str) -> None:
    found = _ARN.fullmatch(name)
    if found is None or found["keeper"] != keeper:
        raise Unfit(
            f"has an ARN that is not one of {keeper}",
            f'write it as "{keeper}:arn:aws:{keeper}:REGION:ACCOUNT:…"',
        )
    if keeper == "secretsmanager" and found["resource"].count(":") > 1:
        raise Unfit(
            "has an ARN with more behind the secret's name",
            "ECS writes key and version there: end the ARN after the name, and write #KEY behind",
        )


def is_reference(value: object) -> bool:
    """Whether `value` says where a secret is kept, and so may be shown."""
    try:
        return reference_in(value) is not None
    except Unfit:
        return False


def referable(kind: Kind) -> Kind:
    """What `kind` takes, or a reference."""

    def parse(value: Any) -> Any:
        return reference_in(value) or kind.parse(value)

    return Kind(parse, kind.schema, kind.is_text)


def refuse_reference(value: str) -> None:
    """Raise Unfit for a reference, where only the secret itself is taken."""
    if reference_in(value) is not None:
        raise Unfit(
            "is a reference, which only source.dsn and source.password may be",
            "let ECS put the secret into an environment variable, and write ${NAME} here",
        )
