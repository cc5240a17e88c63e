"""Kinds of values: how one value of the configuration becomes its type.

Strategy: a `Kind` is a parser, and the JSON Schema of what the parser accepts. A parser gets what
TOML gave (text, number, boolean, list, table). It answers the typed value, or raises `Unfit`, whose
text says what would fit.

Invariant: no parser repeats the value that it was given. The caller decides whether it may be
shown.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.config.scalars import Address, WorkersAddress

Parser = Callable[[Any], Any]


class Unfit(Exception):
    """The value does not fit: `text` completes "this value …", `hint` says what to write.

    `is_secret`: it holds what no message may show, though its key may be shown.
    """

    def __init__(self, text: str, hint: str = "", *, is_secret: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        self.is_secret = is_secret


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value. An environment variable holds the text itself (`is_text`), else TOML."""

    parse: Parser
    schema: Mapping[str, Any]
    is_text: bool = True


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def text(check: Callable[[str], None] | None = None, *, pattern: str | None = None) -> Kind:
    """Text. `check` may raise Unfit; `pattern` is for the schema only."""

    def parse(value: Any) -> str:
        if not isinstance(value, str):
            raise Unfit("is not text", "put it in quotes")
        if "\0" in value or "\n" in value:
            raise Unfit("holds a line break or a zero byte")
        if check is not None:
            check(value)
        return value

    schema: dict[str, Any] = {"type": "string"}
    if pattern is not None:
        schema["pattern"] = pattern
    return Kind(parse, schema)


def choice(*names: str, later: Mapping[str, str] | None = None) -> Kind:
    """One of `names`.

    `later` holds values that a coming release takes, each with what to do today.
    """
    later = later or {}

    def parse(value: Any) -> str:
        if value in names:
            return str(value)
        if isinstance(value, str) and value in later:
            raise Unfit("is not in this release", later[value])
        raise Unfit(f"is not one of {_listed(names)}", nearest(value, names))

    return Kind(parse, {"enum": list(names)})


def boolean() -> Kind:
    """A truth value."""

    def parse(value: Any) -> bool:
        if not isinstance(value, bool):
            raise Unfit("is not true or false", "write it without quotes")
        return value

    return Kind(parse, {"type": "boolean"}, is_text=False)


def integer(least: int, most: int) -> Kind:
    """A whole number between the two, both included."""

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Unfit("is not a whole number", "write it without quotes")
        if not least <= value <= most:
            raise Unfit(f"is not between {least:,} and {most:,}")
        return value

    return Kind(parse, {"type": "integer", "minimum": least, "maximum": most}, is_text=False)


def size(least: int, most: int, *, words: Mapping[str, Any] | None = None) -> Kind:
    """Bytes: a whole number, or text such as "16MiB" (1024) or "8MB" (1000).

    `words` stand for themselves.
    """
    words = words or {}

    def parse(value: Any) -> Any:
        if isinstance(value, str) and value in words:
            return words[value]
        size_bytes = int(_amount(value, _SIZE, _SIZE_UNITS, 'a size such as "16MiB" or "8MB"'))
        if not least <= size_bytes <= most:
            raise Unfit(f"is not between {size_text(least)} and {size_text(most)}")
        return size_bytes

    numbers = r"^\d+(\.\d+)?\s*([bB]|[kKmMgG]([iI])?[bB])?$"
    accepted: list[dict[str, Any]] = [
        {"type": "integer", "minimum": least, "maximum": most},
        {"type": "string", "pattern": numbers},
    ]
    if words:
        accepted.append({"enum": list(words)})
    return Kind(parse, {"anyOf": accepted})


def duration(least: float, most: float) -> Kind:
    """Seconds: a number, or text such as "500ms", "30s", "2m", "1h"."""

    def parse(value: Any) -> float:
        seconds = _amount(value, _DURATION, _DURATION_UNITS, 'a time such as "30s" or "500ms"')
        if not least <= seconds <= most:
            raise Unfit(f"is not between {least:g} s and {most:g} s")
        return seconds

    accepted = [
        {"type": "number", "minimum": least, "maximum": most},
        {"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|s|m|h)?$"},
    ]
    return Kind(parse, {"anyOf": accepted})


def texts(check: Callable[[str], None], *, example: str, least: int = 0) -> Kind:
    """A list of texts, each of which `check` accepts, none twice."""

    def parse(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise Unfit("is not a list of texts", f"write it as {example}")
        if len(value) < least:
            raise Unfit("is empty", f"write it as {example}")
        for item in value:
            check(item)
        return tuple(dict.fromkeys(value))

    schema = {"type": "array", "items": {"type": "string"}, "minItems": least}
    return Kind(parse, schema, is_text=False)


def tags() -> Kind:
    """Object tags by S3's rules: at most ten, keys to 128 and values to 256 characters."""

    def parse(value: Any) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise Unfit("is not a table of texts", 'write it as { team = "sales" }')
        if len(value) > 10:
            raise Unfit("has more than ten tags", "S3 takes at most ten tags an object")
        for key, tag in value.items():
            if not 1 <= len(key) <= 128 or len(tag) > 256 or key.startswith("aws:"):
                raise Unfit(
                    "has a tag that S3 refuses",
                    "a key has 1 to 128 characters and no aws: in front, a value at most 256",
                )
        return tuple(value.items())

    schema = {"type": "object", "maxProperties": 10, "additionalProperties": {"type": "string"}}
    return Kind(parse, schema, is_text=False)


def address() -> Kind:
    """`host:port`, `[IPv6]:port`, `:port` (all interfaces); `off` or nothing for no server."""

    def parse(value: Any) -> Address | None:
        if value in ("", "off"):
            return None
        if not isinstance(value, str):
            raise Unfit("is not host:port", 'write it as "0.0.0.0:9464", or "off"')
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9._-]*)):(\d{1,5})", value)
        if match is None or int(match[3]) > 65535:
            raise Unfit("is not host:port", 'write it as "0.0.0.0:9464", or "off"')
        return Address(match[1] or match[2] or "0.0.0.0", int(match[3]))  # noqa: S104 - asked for

    return Kind(parse, {"type": "string"})


_LOCAL_WORKERS = r"local(?::([1-9]\d{0,3}))?"
_DASK_WORKERS = r"dask://((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d{1,5})"


def workers() -> Kind:
    """`local` (as many processes as there are CPUs), `local:N`, or `dask://host:port`."""

    def parse(value: Any) -> WorkersAddress:
        if isinstance(value, str):
            if match := re.fullmatch(_LOCAL_WORKERS, value):
                return WorkersAddress(int(match[1] or 0))
            if match := re.fullmatch(_DASK_WORKERS, value):
                return WorkersAddress(scheduler=match[1])
        raise Unfit(
            "names no workers",
            'write "local", "local:4" for four processes, or "dask://host:8786" for a cluster',
        )

    return Kind(parse, {"type": "string", "pattern": f"^({_LOCAL_WORKERS}|{_DASK_WORKERS})$"})


def from_text(kind: Kind, given: str) -> Any:
    """The value that `given`, from the environment or an expansion, stands for. May raise Unfit."""
    if kind.is_text:
        return given
    try:
        return tomllib.loads(f"value = {given}")["value"]
    except tomllib.TOMLDecodeError:
        raise Unfit("is not TOML", 'lists as ["a", "b"], tables as { a = "b" }') from None


def size_text(size_bytes: int) -> str:
    """A size as one would write it: the largest unit that divides it."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return f"{size_bytes:,} bytes"


def nearest(value: Any, names: tuple[str, ...], *, cutoff: float = 0.6) -> str:
    """`did you mean "x"?` where one of `names` is close to the value."""
    # difflib costs 6 ms to import; only a mistake needs it.
    from difflib import get_close_matches  # noqa: PLC0415

    found = get_close_matches(str(value).lower(), names, n=1, cutoff=cutoff)
    return f'did you mean "{found[0]}"?' if found else ""


def _amount(
    value: Any, pattern: re.Pattern[str], units: Mapping[str, float], expected: str
) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < 2**63:  # NaN fails too.
            raise Unfit(f"is not {expected}")
        return value
    match = pattern.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = match[2].lower() if match else ""
    factor = next((units[name] for name in units if name.lower() == unit), None)
    if match is None or factor is None:
        raise Unfit(f"is not {expected}", f"units are {', '.join(filter(None, units))}")
    return float(match[1]) * factor


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)
