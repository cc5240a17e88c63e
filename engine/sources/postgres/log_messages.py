"""Logical messages as records: a table of their own, which no database has.

Strategy: a message takes the way of a row. It becomes an Insert of a table under a schema whose
name PostgreSQL keeps for itself, so no table of anybody's has it. Everything behind (versions,
chunks, plans, `verify`) knows no difference.

The server gives a message the place in the log where it ends. So a message and the change that
follows it, of another table, may have the same position.

A message that belongs to no transaction has no place in the order of commits, and is no record.
The frame reader hands out the beginning of a long one: then the record has prefix and size alone.
"""

import struct
from typing import Final

from msgspec.structs import replace

from engine.model.record import RecordConfiguration
from engine.model.schema import MESSAGES_IDENTITY, Column, Relation, TableName
from engine.sources.postgres.pgoutput import HEADER_SIZE, MessageHead

MESSAGES: Final = TableName("pg_logical", "messages")

MESSAGES_OID: Final = 1
"""No table has it: it is below those that PostgreSQL gives out."""

CONTENT_BYTES_MAX: Final = 65_536
"""A longer content is not in the record."""

_COLUMNS: Final = (
    Column("prefix", "text", "text", key=False, type_id=25),
    Column("content", "text", "text", key=False, type_id=25),
    Column("bytes", "bytea", "bytea", key=False, type_id=17),
    Column("size", "bigint", "integer", key=False, json="number", type_id=20),
)
_INSERT: Final = struct.Struct("!cIch")
_VALUE: Final = struct.Struct("!ci")


def messages_relation(configuration: RecordConfiguration) -> Relation:
    """The table of messages, as its rows are bound."""
    columns = tuple(
        replace(column, included=configuration.is_included(MESSAGES, column.name))
        for column in _COLUMNS
    )
    return Relation(MESSAGES, MESSAGES_IDENTITY, columns, ())


def is_transactional(frame: bytes) -> bool:
    """Whether the message of this frame belongs to a transaction."""
    return bool(frame[HEADER_SIZE + 1] & 1)


def insert_frame(frame: bytes, head: MessageHead) -> bytes:
    """The frame of an Insert that says what the message's `frame` says, at the same place."""
    text, raw = _content(head)
    size = str(head.size).encode() if head.size >= 0 else None
    values = [_text(head.prefix), text, raw, size]
    row = b"".join(
        b"n" if value is None else _VALUE.pack(b"t", len(value)) + value for value in values
    )
    return frame[:HEADER_SIZE] + _INSERT.pack(b"I", MESSAGES_OID, b"N", len(values)) + row


def _content(head: MessageHead) -> tuple[bytes | None, bytes | None]:
    """The content as text, or where it is none as the text of a bytea; neither where it is long."""
    if not 0 <= head.size <= CONTENT_BYTES_MAX:
        return None, None
    text = _text(head.content)
    return (text, None) if text is not None else (None, b"\\x" + head.content.hex().encode())


def _text(content: bytes) -> bytes | None:
    """The bytes, where they are text that PostgreSQL could have."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return None
    return None if b"\0" in content else content
