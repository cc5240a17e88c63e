"""Requests to a running engine: objects that somebody creates, and what one of them says.

A request is asked of whoever runs under the prefix. Its name begins with the time at which it was
made, so names sort by time; what follows is random, so two never meet. Pure.
"""

import re
from datetime import UTC, datetime
from typing import Final

import msgspec

from engine.model.layout import requests_folder

REQUEST_FORMAT: Final = 1
REQUEST_BYTES_MAX: Final = 65_536
"""A request names some tables. What is larger is none."""

_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-[0-9a-f]{16}", re.ASCII)
_TIME_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_SUFFIX = ".json"


class RequestRefused(Exception):
    """A request will not be done. The text says why, in plain words, to whoever asked."""


class Request(msgspec.Struct, frozen=True):
    """What is asked: a kind, a word in kebab case, and the tables that it is about."""

    format: int
    kind: str
    tables: tuple[str, ...] = ()


class _Format(msgspec.Struct):
    format: int


def request_name(time_us: int, nonce: str) -> str:
    """The name of a request that is made at `time_us`; `nonce`: 16 hexadecimal digits."""
    moment = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}.{time_us % 1_000_000:06d}Z-{nonce}"


def request_time_us(name: str) -> int:
    """When it was made, in Unix microseconds. Raises ValueError where it is no request's name."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"not a request's name: {name!r}")
    moment = datetime.strptime(found[1], _TIME_FORMAT).replace(tzinfo=UTC)
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond


def request_key(prefix: str, name: str) -> str:
    """The key of the request of that name."""
    return f"{requests_folder(prefix)}{name}{_SUFFIX}"


def request_name_of(prefix: str, key: str) -> str | None:
    """The name of the request that `key` holds; None where it is the key of none."""
    name = key.removeprefix(requests_folder(prefix)).removesuffix(_SUFFIX)
    if request_key(prefix, name) != key:
        return None
    try:
        request_time_us(name)
    except ValueError:
        return None
    return name


def encode_request(request: Request) -> bytes:
    """The bytes of a request's object."""
    return msgspec.json.encode(request)


def decode_request(content: bytes) -> Request:
    """What an object asks. Raises RequestRefused where it is no request, or of a newer format."""
    try:
        written = msgspec.json.decode(content, type=_Format).format
        if written > REQUEST_FORMAT:
            raise RequestRefused(
                f"it has format {written}, and this engine reads up to {REQUEST_FORMAT}"
            )
        return msgspec.json.decode(content, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(f"it is no request: {error}") from error
