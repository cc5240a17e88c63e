"""Cursors: how far a reader has read one table, as a text that it keeps. Pure.

Strategy: a cursor names the place up to which the stream was read, and the object where to go on,
by its place in the table's folder. So the next read lists from there. `anchor` ties the next object
to what was read: it is the position that this object names as the one before it.

Invariant: the text is printable ASCII without a space. A text that was cut or mixed up is refused,
and so is a cursor of another table or of another pipeline.
"""

import base64
import binascii
import hashlib
import re
import zlib
from typing import Final

import msgspec

from engine.model.errors import ReadRefused
from engine.model.interfaces import SourceIdentity
from engine.model.position import NOWHERE, Position

_MARK: Final = "tr1"
_TEXT = re.compile(r"(tr\d+)\.([A-Za-z0-9_-]+)\.([0-9a-f]{8})")
_HINT: Final = (
    "Give the text as `tailrace read` printed it, or leave --since out to begin with what is there."
)


class Cursor(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was read of one table.

    Records of the stream that sort before `through` were read. The next object of the stream names
    `anchor` as the position before it. It does not sort before `first`, which was filed under
    `version` and `hour`; these are empty where nothing of the stream was read. Of the table's
    snapshots, the records of attempt `attempt` that do not sort behind `given` were read, and so
    were earlier attempts, or they were superseded.
    """

    table: str
    prefix: str
    source: str
    through: str = ""
    anchor: Position = NOWHERE
    version: int = 0
    hour: str = ""
    first: Position = NOWHERE
    attempt: int = 0
    given: Position = NOWHERE


def encode_cursor(cursor: Cursor) -> str:
    """The cursor as text."""
    content = base64.urlsafe_b64encode(msgspec.json.encode(cursor)).rstrip(b"=").decode()
    return f"{_MARK}.{content}.{zlib.crc32(content.encode()):08x}"


def decode_cursor(text: str) -> Cursor:
    """The inverse of `encode_cursor`. Raises ReadRefused where `text` is no cursor."""
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise ReadRefused("cursor-malformed", "this is no cursor", hint=_HINT)
    if found[1] != _MARK:
        raise ReadRefused(
            "cursor-malformed",
            f"this cursor has the form {found[1]}, this release reads {_MARK}",
            hint="Read with the release that gave the cursor, or a newer one.",
        )
    if f"{zlib.crc32(found[2].encode()):08x}" != found[3]:
        raise ReadRefused("cursor-malformed", "this cursor was cut or altered", hint=_HINT)
    try:
        content = base64.urlsafe_b64decode(found[2] + "=" * (-len(found[2]) % 4))
        return msgspec.json.decode(content, type=Cursor)
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReadRefused("cursor-malformed", "this is no cursor", hint=_HINT) from error


def source_digest(source: SourceIdentity) -> str:
    """A short name of a source. Its server may be another one after a loss that was accepted."""
    named = (source.type, source.database, source.lease)
    return hashlib.sha256(msgspec.json.encode(named)).hexdigest()[:12]


def require_own(cursor: Cursor, *, table: str, prefix: str, source: str) -> None:
    """Raise ReadRefused unless it is a cursor of that table, under that prefix."""
    for what, known, wanted in (
        ("table", cursor.table, table),
        ("prefix", cursor.prefix or "/", prefix or "/"),
        ("source", cursor.source, source),
    ):
        if known != wanted:
            raise ReadRefused(
                "cursor-foreign",
                f"this cursor is one of {what} {known}, and {what} {wanted} is read",
                hint="Keep a cursor for each table of each pipeline.",
            )
