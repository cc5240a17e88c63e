"""What one engine's SQL says otherwise than another's.

Strategy: a dialect is a value: a few functions from text to text. The fold is written once, with
what all of them share; statements that make tables and load them are each engine's own.

Invariant: text from outside goes into a statement only by `identifier` and `literal`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.reader.views.column import ViewColumn


@dataclass(frozen=True, slots=True)
class Typed:
    """A value under its type.

    `may_not_fit`: there are values that the type does not hold. Those are null.
    """

    sql: str
    may_not_fit: bool = False


@dataclass(frozen=True, slots=True)
class Types:
    """What values of the plain types are made by.

    `integers` has the types of smallint and integer, `real` is the short float, `bytes_of` makes
    bytes of base64.
    """

    integers: Mapping[str, str]
    real: str
    bytes_of: str

    def typed(self, text: str, column: ViewColumn) -> Typed | None:
        """A value of a plain type; None: it is of another."""
        match "text" if column.is_hashed else column.kind:
            case "boolean":
                return Typed(f"CAST({text} AS BOOLEAN)")
            case "integer":
                return Typed(f"CAST({text} AS {self.integers.get(column.type, 'BIGINT')})")
            case "float":
                return Typed(f"CAST({text} AS {self.real if column.type == 'real' else 'DOUBLE'})")
            case "bytea":
                return Typed(f"{self.bytes_of}({text})")
            case "date":
                # A cast may ignore what follows the day.
                sure = f"CASE WHEN {text} NOT LIKE '% BC' THEN {text} END"
                return Typed(f"TRY_CAST({sure} AS DATE)", may_not_fit=True)
            case _:
                return None


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one engine says it.

    `text` takes a column's value, as text, out of an object (`before` or `after`) by the name that
    it has there; of arrays and JSON that is their JSON text. `has` says whether a list of texts
    holds one. `typed` makes a value of such a text. `joined` joins texts that are not null.
    `repeated` follows a FROM: each row as often as the number says. `is_case_kept`: it tells names
    apart that differ in case. `allowed` makes a name one that the engine takes, quoted or not.
    """

    name: str
    identifier: Callable[[str], str]
    literal: Callable[[str], str]
    text: Callable[[str, str, ViewColumn], str]
    has: Callable[[str, str], str]
    typed: Callable[[str, ViewColumn], Typed]
    joined: Callable[[tuple[str, ...]], str]
    repeated: Callable[[str], str]
    is_case_kept: bool = False
    allowed: Callable[[str], str] = str


def quoted_double(name: str) -> str:
    """An identifier in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def quoted_back(name: str) -> str:
    """An identifier in backticks."""
    return "`" + name.replace("`", "``") + "`"


def standard_literal(text: str) -> str:
    """A text where a backslash is a character as any other."""
    return "'" + text.replace("'", "''") + "'"


def escaped_literal(text: str) -> str:
    """A text where a backslash escapes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def numeric_size(column: ViewColumn, digits_max: int) -> tuple[int, int] | None:
    """Precision and scale of its numbers, where its type says them and `digits_max` suffice.

    A negative scale rounds before the point; one beyond the precision leaves only decimals.
    """
    if column.kind != "numeric" or column.is_hashed:
        return None
    name, _, size = column.type.partition("(")
    digits, comma, places = size.rstrip(")").partition(",")
    if name != "numeric" or not comma:
        return None
    precision, scale = int(digits), int(places)
    if scale < 0:
        precision, scale = precision - scale, 0
    precision = max(precision, scale)
    return (precision, scale) if precision <= digits_max else None
