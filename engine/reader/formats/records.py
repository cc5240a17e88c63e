"""A record or a row, taken apart: what every form needs, with its values as JSON text. Pure."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engine.journal.entry import time_us_of
from engine.model.errors import ReadRefused
from engine.model.record import FLAT_FIELDS, Envelope

Values = Mapping[str, msgspec.Raw]


class Taken(msgspec.Struct, frozen=True, gc=False):
    """One change. `before` and `after` are None where the record has none.

    `time_ms` is the commit's, in Unix milliseconds. `json_null` are columns that hold JSON's null.
    """

    op: str
    position: str
    version: int
    time_ms: int
    unchanged: tuple[str, ...]
    json_null: tuple[str, ...]
    before: Values | None
    after: Values | None


class _Metadata(msgspec.Struct, gc=False):
    op: str
    position: str
    version: int
    source_ts_ms: int
    unchanged: tuple[str, ...] = ()
    json_null: tuple[str, ...] = ()


class _Standard(msgspec.Struct, gc=False):
    before: dict[str, msgspec.Raw] | None
    after: dict[str, msgspec.Raw] | None
    metadata: _Metadata


class _Origin(msgspec.Struct, gc=False):
    position: str
    ts_ms: int
    unchanged: tuple[str, ...] = ()
    json_null: tuple[str, ...] = ()


class _Debezium(msgspec.Struct, gc=False):
    before: dict[str, msgspec.Raw] | None
    after: dict[str, msgspec.Raw] | None
    source: _Origin
    op: str


_STANDARD: Final = msgspec.json.Decoder(_Standard)
_DEBEZIUM: Final = msgspec.json.Decoder(_Debezium)
_ROW: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_REQUIRED: Final = ("op", "position", "version", "commit_ts")


def row(line: bytes) -> Values:
    """A row of the current state. Raises ReadRefused where it is none."""
    try:
        return _ROW.decode(line)
    except msgspec.DecodeError as error:
        raise _malformed() from error


def change(line: bytes, envelope: Envelope, version: int, flat_prefix: str) -> Taken:
    """A record, taken apart. Raises ReadRefused where it is none of that envelope."""
    try:
        if envelope == "flat":
            return _flat(line, flat_prefix)
        if envelope == "debezium":
            return _debezium(_DEBEZIUM.decode(line), version)
        return _standard(_STANDARD.decode(line))
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise _malformed() from error


def _malformed() -> ReadRefused:
    return ReadRefused("content-differs", "a line is no record of its version's envelope")


def _standard(record: _Standard) -> Taken:
    said = record.metadata
    return Taken(
        said.op,
        said.position,
        said.version,
        said.source_ts_ms,
        said.unchanged,
        said.json_null,
        record.before,
        record.after,
    )


def _debezium(record: _Debezium, version: int) -> Taken:
    said = record.source
    return Taken(
        record.op,
        said.position,
        version,
        said.ts_ms,
        said.unchanged,
        said.json_null,
        record.before,
        record.after,
    )


def _flat(line: bytes, prefix: str) -> Taken:
    columns = _ROW.decode(line)
    said: dict[str, Any] = {}
    for field in FLAT_FIELDS:
        found = columns.pop(prefix + field, None)
        said[field] = msgspec.json.decode(found) if found is not None else None
    op, position, version, time = (said[field] for field in _REQUIRED)
    if not (isinstance(op, str) and isinstance(position, str) and isinstance(version, int)):
        raise TypeError("another envelope")
    is_gone = op in {"d", "t"}
    return Taken(
        op,
        position,
        version,
        time_us_of(time) // 1000,
        tuple(said["unchanged"] or ()),
        tuple(said["json_null"] or ()),
        columns if op == "d" else None,
        None if is_gone else columns,
    )
