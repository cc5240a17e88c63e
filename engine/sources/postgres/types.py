"""PostgreSQL's types as the row codec and a schema's reader know them.

A type kind is the name that a schema carries (`integer`, `timestamptz`, `integer[]`): how a value
is written, not what it is called. One table maps kinds to the codec's constants and to the JSON
type of the values; arrays append `[]` and are told by a flag. A domain is its base type; what is
not listed is text.

Invariant: a kind depends on the type's OID alone (a domain's base type cannot change), so a replay
binds as the first reading did.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engine import rowcodec
from engine.envelope import JsonMode, NumericMode

FIRST_USER_OID: Final = 16384
"""FirstNormalObjectId: OIDs below it are PostgreSQL's own and mean the same in every database."""

_CODEC_KINDS: Final[Mapping[str, int]] = {
    "text": rowcodec.KIND_TEXT,
    "boolean": rowcodec.KIND_BOOLEAN,
    "integer": rowcodec.KIND_INTEGER,
    "float": rowcodec.KIND_FLOAT,
    "numeric": rowcodec.KIND_NUMERIC,
    "timestamp": rowcodec.KIND_TIMESTAMP,
    "timestamptz": rowcodec.KIND_TIMESTAMPTZ,
    "date": rowcodec.KIND_DATE,
    "time": rowcodec.KIND_TIME,
    "timetz": rowcodec.KIND_TIMETZ,
    "interval": rowcodec.KIND_INTERVAL,
    "bytea": rowcodec.KIND_BYTEA,
    "json": rowcodec.KIND_JSON,
    "money": rowcodec.KIND_MONEY,
}
_NAMES: Final = {kind: name for name, kind in _CODEC_KINDS.items()}

_JSON_TYPES: Final = {"boolean": "boolean", "integer": "number", "float": "number"}


@dataclass(frozen=True, slots=True)
class UserType:
    """A row of pg_type that is not PostgreSQL's own.

    `base_oid` is a domain's base type, `element_oid` a true array's element type (0 where there is
    none).
    """

    oid: int
    base_oid: int
    element_oid: int


def codec_kind(type_kind: str) -> int:
    """The codec's constant for a kind; text for one that this release does not know."""
    name = type_kind.removesuffix("[]")
    kind = _CODEC_KINDS.get(name, rowcodec.KIND_TEXT)
    return kind | rowcodec.KIND_ARRAY if name != type_kind else kind


def type_kind(type_oid: int, user_types: Mapping[int, UserType]) -> str:
    """The kind of a type, followed through `user_types`; an unknown OID is text."""
    kind = _resolve(type_oid, user_types)
    name = _NAMES[kind & ~rowcodec.KIND_ARRAY]
    return f"{name}[]" if kind & rowcodec.KIND_ARRAY else name


def json_type(kind: str, numeric: NumericMode, json: JsonMode) -> str:
    """The JSON type of a kind's values: `number`, `string`, `boolean`, `array` or `any`."""
    if kind.endswith("[]"):
        return "array"
    if kind == "numeric":
        return "number" if numeric == "number" else "string"
    if kind == "json":
        return "any" if json == "embed" else "string"
    return _JSON_TYPES.get(kind, "string")


def _resolve(type_oid: int, user_types: Mapping[int, UserType]) -> int:
    user_type = user_types.get(type_oid)
    if user_type is None:
        return rowcodec.builtin_kind(type_oid)
    if user_type.element_oid:
        return _array_of(_resolve(user_type.element_oid, user_types))
    return _resolve(user_type.base_oid, user_types)


def _array_of(element_kind: int) -> int:
    # An element that is itself an array (through a domain) is printed as one quoted string.
    if element_kind & rowcodec.KIND_ARRAY:
        element_kind = rowcodec.KIND_TEXT
    return element_kind | rowcodec.KIND_ARRAY
