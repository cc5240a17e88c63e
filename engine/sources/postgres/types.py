"""PostgreSQL's types as the readers of rows know them, and as a schema names them.

A type kind is the name that a schema carries (`integer`, `timestamptz`, `integer[]`). It says how a
value is written, not what its type is called. One table maps kinds to numbers. Another one maps the
numbers to the forms that the compiled readers know (values.pxd); there the modes of numeric and
json decide too. Arrays append `[]` and are told by a flag. A domain is its base type. A type that
is not listed is text.

Invariant: a kind depends on the type's OID alone (a domain's base type cannot change). So a replay
binds as the first reading did.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engine.model.record import JsonMode, NumericMode, RecordConfiguration
from engine.model.schema import Column
from engine.sources.postgres import values

FIRST_USER_OID: Final = 16384
"""FirstNormalObjectId: OIDs below it are PostgreSQL's own and mean the same in every database."""

KIND_TEXT: Final = 0
KIND_BOOLEAN: Final = 1
KIND_INTEGER: Final = 2
KIND_FLOAT: Final = 3
KIND_NUMERIC: Final = 4
KIND_TIMESTAMP: Final = 5
KIND_TIMESTAMPTZ: Final = 6
KIND_DATE: Final = 7
KIND_TIME: Final = 8
KIND_TIMETZ: Final = 9
KIND_INTERVAL: Final = 10
KIND_BYTEA: Final = 11
KIND_JSON: Final = 12
KIND_MONEY: Final = 13
KIND_ARRAY: Final = 64
"""A flag: `KIND_ARRAY | KIND_INTEGER` is an array of integers."""

# pg_type.dat of PostgreSQL 18: the OIDs of built-in types never change. (type, array of it)
_SCALARS: Final = {
    KIND_BOOLEAN: ((16, 1000),),
    KIND_INTEGER: ((20, 1016), (21, 1005), (23, 1007), (26, 1028)),
    KIND_FLOAT: ((700, 1021), (701, 1022)),
    KIND_NUMERIC: ((1700, 1231),),
    KIND_TIMESTAMP: ((1114, 1115),),
    KIND_TIMESTAMPTZ: ((1184, 1185),),
    KIND_DATE: ((1082, 1182),),
    KIND_TIME: ((1083, 1183),),
    KIND_TIMETZ: ((1266, 1270),),
    KIND_INTERVAL: ((1186, 1187),),
    KIND_BYTEA: ((17, 1001),),
    KIND_JSON: ((114, 199), (3802, 3807)),
    KIND_MONEY: ((790, 791),),
}

# Arrays whose elements are text here. Not box[] (1020): its delimiter is `;`.
_TEXT_ARRAYS: Final = (
    143, 210, 270, 271, 272, 273, 629, 651, 719, 775, 1002, 1003, 1006, 1008, 1009, 1010, 1011,
    1012, 1013, 1014, 1015, 1017, 1018, 1019, 1027, 1034, 1040, 1041, 1263, 1561, 1563, 2201,
    2207, 2208, 2209, 2210, 2211, 2949, 2951, 3221, 3643, 3644, 3645, 3735, 3770, 3905, 3907,
    3909, 3911, 3913, 3927, 4073, 4090, 4097, 4192, 5039, 6150, 6151, 6152, 6153, 6155, 6157,
)  # fmt: skip

_FORMS: Final = {
    KIND_BOOLEAN: values.FORM_BOOLEAN,
    KIND_INTEGER: values.FORM_INTEGER,
    KIND_FLOAT: values.FORM_NUMBER,
    KIND_TIMESTAMP: values.FORM_TIMESTAMP,
    KIND_TIMESTAMPTZ: values.FORM_TIMESTAMPTZ,
    KIND_BYTEA: values.FORM_BYTEA,
}
"""The form in which a kind is read, whatever the modes. A kind that is not listed is text."""

_KINDS_BY_NAME: Final[Mapping[str, int]] = {
    "text": KIND_TEXT,
    "boolean": KIND_BOOLEAN,
    "integer": KIND_INTEGER,
    "float": KIND_FLOAT,
    "numeric": KIND_NUMERIC,
    "timestamp": KIND_TIMESTAMP,
    "timestamptz": KIND_TIMESTAMPTZ,
    "date": KIND_DATE,
    "time": KIND_TIME,
    "timetz": KIND_TIMETZ,
    "interval": KIND_INTERVAL,
    "bytea": KIND_BYTEA,
    "json": KIND_JSON,
    "money": KIND_MONEY,
}
_NAMES: Final = {kind: name for name, kind in _KINDS_BY_NAME.items()}

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


def form_of(kind: int, numeric: NumericMode, json: JsonMode) -> int:
    """How the compiled readers take values of a kind, one of `KIND_`, with the modes applied."""
    element = kind & ~KIND_ARRAY
    form = _FORMS.get(element, values.FORM_TEXT)
    if element == KIND_NUMERIC and numeric == "number":
        form = values.FORM_NUMBER
    elif element == KIND_JSON and json == "embed":
        form = values.FORM_JSON
    return form | values.FORM_ARRAY if kind & KIND_ARRAY else form


def column_form(column: Column, configuration: RecordConfiguration) -> int:
    """How the compiled readers take a column's values: it follows from its kind and the modes."""
    return form_of(kind_number(column.type_kind), configuration.numeric, configuration.json)


def kind_number(type_kind: str) -> int:
    """The number of a kind; text's for one that this release does not know."""
    name = type_kind.removesuffix("[]")
    kind = _KINDS_BY_NAME.get(name, KIND_TEXT)
    return kind | KIND_ARRAY if name != type_kind else kind


def builtin_kind(type_oid: int) -> int:
    """The number of the kind of a built-in type or of an array of one; text's for every other OID.

    A domain is the caller's to resolve: pass its base type's OID.
    """
    return _KINDS_BY_OID.get(type_oid, KIND_TEXT)


def type_kind(type_oid: int, user_types: Mapping[int, UserType]) -> str:
    """The kind of a type, followed through `user_types`; an unknown OID is text."""
    kind = _resolve(type_oid, user_types)
    name = _NAMES[kind & ~KIND_ARRAY]
    return f"{name}[]" if kind & KIND_ARRAY else name


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
        return builtin_kind(type_oid)
    if user_type.element_oid:
        return _array_of(_resolve(user_type.element_oid, user_types))
    return _resolve(user_type.base_oid, user_types)


def _array_of(element_kind: int) -> int:
    # An element that is itself an array (through a domain) is printed as one quoted string.
    if element_kind & KIND_ARRAY:
        element_kind = KIND_TEXT
    return element_kind | KIND_ARRAY


def _kinds_by_oid() -> dict[int, int]:
    kinds = dict.fromkeys(_TEXT_ARRAYS, KIND_ARRAY | KIND_TEXT)
    for kind, pairs in _SCALARS.items():
        for scalar, array in pairs:
            kinds[scalar] = kind
            kinds[array] = KIND_ARRAY | kind
    return kinds


_KINDS_BY_OID: Final = _kinds_by_oid()
