"""One value of a record, as JSON text, into what a column of that kind holds. Pure.

Strategy: docs/values.md says how each kind is written. A value that a kind allows and that the
column's type has no room for (an infinite time, NaN in a decimal, an array of arrays) is refused by
name: it never becomes null, or another value. Reading that column as text always works.

Invariant: no error's text holds a value.
"""

import base64
import binascii
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from engine.model.errors import ReadRefused
from engine.reader.formats.columns import TEXT, ColumnKind

Convert = Callable[[bytes], Any]
"""JSON text into a value. Any: each kind has its own type. Raises ValueError."""

_MICROSECONDS: Final = 1_000_000
_DAY_SECONDS: Final = 86_400
_MOMENT: Final = re.compile(
    r"(\d{4,})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?(?:Z|\+00)?( BC)?"
)
_TIME: Final = re.compile(r"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?")
_RAWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_TEXTS: Final = msgspec.json.Decoder(str)


def converter(column: ColumnKind) -> Convert:
    """How values of the column are read that are not null. Its errors name the column."""
    convert = _converter(column)
    hint = f"Read the column as text, as it was recorded: --text {column.name}"

    def named(value: bytes) -> Any:
        try:
            return convert(value)
        except (ValueError, InvalidOperation, msgspec.DecodeError, binascii.Error) as error:
            reason = "has a value that its type has no room for, such as an infinite one"
            raise ReadRefused(
                "value-unrepresentable", f"column {column.name!r} {reason}", hint=hint
            ) from error

    return named


def _converter(column: ColumnKind) -> Convert:
    if column.kind.endswith("[]"):
        element = ColumnKind(column.name, column.kind.removesuffix("[]"), column.digits)
        return _listed(_converter(element))
    if column.kind == "numeric":
        return _decimal(column.digits) if column.digits is not None else text_of
    return _BY_KIND.get(column.kind, text_of)


def text_of(value: bytes) -> str:
    """A string's characters; of everything else its JSON text, as it was recorded."""
    return _TEXTS.decode(value) if value.startswith(b'"') else value.decode()


def _boolean(value: bytes) -> bool:
    if value not in {b"true", b"false"}:
        raise ValueError
    return value == b"true"


def _integer(value: bytes) -> int:
    return int(value)


def _float(value: bytes) -> float:
    return float(text_of(value))


def _decimal(digits: tuple[int, int]) -> Convert:
    precision, scale = digits

    def convert(value: bytes) -> Decimal:
        number = Decimal(text_of(value))
        if not number.is_finite():
            raise ValueError
        _, figures, exponent = number.as_tuple()
        # A value of an older version may have more digits than the column has now.
        if -int(exponent) > scale or len(figures) + int(exponent) > precision - scale:
            raise ValueError
        return number

    return convert


def _binary(value: bytes) -> bytes:
    return base64.b64decode(text_of(value), validate=True)


def _moment(value: bytes) -> int:
    """Microseconds since 1970, however far away."""
    found = _MOMENT.fullmatch(text_of(value))
    if found is None:
        raise ValueError
    days = _days(found)
    hours, minutes, seconds = (int(found[n] or 0) for n in (4, 5, 6))
    fraction = int((found[7] or "").ljust(6, "0"))
    of_day = (hours * 60 + minutes) * 60 + seconds
    return (days * _DAY_SECONDS + of_day) * _MICROSECONDS + fraction


def _date(value: bytes) -> int:
    """Days since 1970, however far away."""
    found = _MOMENT.fullmatch(text_of(value))
    if found is None or found[4] is not None:
        raise ValueError
    return _days(found)


def _days(found: "re.Match[str]") -> int:
    """Days since 1970 in the proleptic Gregorian calendar, where 1 BC is the year 0."""
    year, month, day = int(found[1]), int(found[2]), int(found[3])
    if found[8]:
        year = 1 - year
    # A year that begins in March ends with the leap day.
    year -= month <= 2
    months = (month + 9) % 12
    era_days = year * 365 + year // 4 - year // 100 + year // 400
    return era_days + (153 * months + 2) // 5 + day - 1 - 719_468


def _time(value: bytes) -> int:
    """Microseconds since midnight. The end of a day, 24:00:00, is no time of it."""
    found = _TIME.fullmatch(text_of(value))
    if found is None or found[1] > "23":
        raise ValueError
    seconds = (int(found[1]) * 60 + int(found[2])) * 60 + int(found[3])
    return seconds * _MICROSECONDS + int((found[4] or "").ljust(6, "0"))


def _listed(convert: Convert) -> Convert:
    def elements(value: bytes) -> list[Any]:
        if not value.startswith(b"["):
            # With a lower bound other than 1 it is a string.
            raise ValueError
        found = [bytes(element) for element in _RAWS.decode(value)]
        if convert is not text_of and any(one.startswith(b"[") for one in found):
            raise ValueError
        return [None if one == b"null" else convert(one) for one in found]

    return elements


_BY_KIND: Final[dict[str, Convert]] = {
    "boolean": _boolean,
    "integer": _integer,
    "float": _float,
    "timestamp": _moment,
    "timestamptz": _moment,
    "date": _date,
    "time": _time,
    "bytea": _binary,
    TEXT: text_of,
}
"""Kinds that are not listed are text: their strings have no better type that all readers know."""
