"""What a walsender says: frames of the streaming replication protocol, pgoutput's messages in them.

Sources: PostgreSQL manual, 54.4 "Streaming Replication Protocol" (frames), 54.5 and 54.9 "Logical
Replication Message Formats" (messages), for proto_version 1, text format, streaming off.

Strategy: one cursor over the bytes, one small reader per message, a table from type byte to reader.
The stream itself hands rows, Begins and Commits to compiled code and never comes here with them;
their readers are for slow paths and for checking that code.

Invariant: malformed bytes raise DecodeError, nothing else. A message is taken whole: bytes left
over are malformed. Nothing here reads a clock or a socket. Times are Unix microseconds, UTC.
"""

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from engine.model.errors import DecodeError
from engine.model.plural import counted
from engine.sources.postgres.lsn import Lsn

Buffer = bytes | bytearray | memoryview

POSTGRES_EPOCH_US: Final = 946_684_800_000_000
"""2000-01-01 00:00 UTC, where PostgreSQL's clock starts, in Unix microseconds."""

HEADER_SIZE: Final = 25
"""Bytes of an XLogData frame before its message: `w`, data start, WAL end, send time."""

KEEPALIVE_SIZE: Final = 18

_STATUS: Final = struct.Struct(">cQQQqB")
_U8: Final = struct.Struct(">B")
_I16: Final = struct.Struct(">h")
_I32: Final = struct.Struct(">i")
_U32: Final = struct.Struct(">I")
_I64: Final = struct.Struct(">q")
_U64: Final = struct.Struct(">Q")


class Unchanged(enum.Enum):
    """Stands where a TOASTed value was not sent because the row's change left it alone."""

    TOKEN = enum.auto()


TupleValue = bytes | None | Unchanged
TupleData = tuple[TupleValue, ...]


class OldTuple(enum.Enum):
    """What the replica identity gives of the row before: nothing, its key, or the whole row."""

    ABSENT = ""
    KEY = "K"
    WHOLE = "O"


@dataclass(frozen=True, slots=True)
class XLogData:
    """A frame that carries one message; `start_lsn` is the change's own (0 for a Relation)."""

    start_lsn: Lsn
    end_lsn: Lsn
    sent_us: int
    message: bytes


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server's position, and whether it wants a status update at once."""

    end_lsn: Lsn
    sent_us: int
    is_reply_wanted: bool


@dataclass(frozen=True, slots=True)
class Begin:
    commit_lsn: Lsn
    commit_us: int
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """`end_lsn` is where the commit's WAL record ends: a position to acknowledge."""

    commit_lsn: Lsn
    end_lsn: Lsn
    commit_us: int


@dataclass(frozen=True, slots=True)
class Origin:
    commit_lsn: Lsn
    name: str


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """`is_key`: part of the replica identity. FULL flags every column."""

    name: str
    type_oid: int
    type_modifier: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class RelationMessage:
    """A table as the rows after it are laid out; sent again before the first row after a DDL."""

    oid: int
    schema: str
    table: str
    replica_identity: str
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, slots=True)
class TypeMessage:
    oid: int
    schema: str
    name: str


@dataclass(frozen=True, slots=True)
class Insert:
    relation_oid: int
    new: TupleData


@dataclass(frozen=True, slots=True)
class Update:
    relation_oid: int
    old_kind: OldTuple
    old: TupleData
    new: TupleData


@dataclass(frozen=True, slots=True)
class Delete:
    relation_oid: int
    old_kind: OldTuple
    old: TupleData


@dataclass(frozen=True, slots=True)
class Truncate:
    relation_oids: tuple[int, ...]
    is_cascade: bool
    is_identity_restart: bool


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """What `pg_logical_emit_message` wrote."""

    is_transactional: bool
    message_lsn: Lsn
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class MessageHead:
    """A logical message that may be cut off: `content` is what is there of `size` bytes."""

    is_transactional: bool
    prefix: bytes
    size: int
    content: bytes


Frame = XLogData | Keepalive
Message = (
    Begin
    | Commit
    | Origin
    | RelationMessage
    | TypeMessage
    | Insert
    | Update
    | Delete
    | Truncate
    | LogicalMessage
)


class _Cursor:
    """Reads forward over one frame or message; every read past the end is a DecodeError."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: Buffer) -> None:
        self._data = bytes(data)
        self._offset = 0

    def number(self, form: struct.Struct) -> int:
        try:
            (value,) = form.unpack_from(self._data, self._offset)
        except struct.error:
            raise self._short() from None
        self._offset += form.size
        assert isinstance(value, int)
        return value

    def take(self, size: int) -> bytes:
        end = self._offset + size
        if size < 0 or end > len(self._data):
            raise self._short()
        taken = self._data[self._offset : end]
        self._offset = end
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._offset)

    def letter(self) -> str:
        return self.take(1).decode("latin-1")

    def text(self) -> str:
        """A string up to its zero byte."""
        end = self._data.find(b"\0", self._offset)
        if end < 0:
            raise self._short()
        raw = self.take(end - self._offset)
        self._offset += 1
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise DecodeError(f"a name is not UTF-8: {raw!r}") from None

    def count(self, form: struct.Struct) -> int:
        count = self.number(form)
        if count < 0:
            raise DecodeError(f"a negative count: {count}")
        return count

    def end(self) -> None:
        if self._offset != len(self._data):
            left = len(self._data) - self._offset
            raise DecodeError(
                f"{counted(left, 'byte')} left over in a message of {len(self._data)}"
            )

    def _short(self) -> DecodeError:
        return DecodeError(f"a message of {counted(len(self._data), 'byte')} ends too early")


def decode_frame(data: Buffer) -> Frame:
    """One CopyData payload. Raises DecodeError."""
    cursor = _Cursor(data)
    tag = cursor.letter()
    if tag == "w":
        start, end, sent = cursor.number(_U64), cursor.number(_U64), cursor.number(_I64)
        return XLogData(Lsn(start), Lsn(end), sent + POSTGRES_EPOCH_US, cursor.rest())
    if tag == "k":
        end, sent = cursor.number(_U64), cursor.number(_I64)
        is_reply_wanted = cursor.number(_U8) != 0
        cursor.end()
        return Keepalive(Lsn(end), sent + POSTGRES_EPOCH_US, is_reply_wanted)
    raise DecodeError(f"an unknown frame: {tag!r}")


def decode_message(data: Buffer) -> Message:
    """One pgoutput message, as XLogData carries it. Raises DecodeError."""
    cursor = _Cursor(data)
    tag = cursor.letter()
    reader = _READERS.get(tag)
    if reader is None:
        raise DecodeError(f"an unknown message: {tag!r}")
    message = reader(cursor)
    cursor.end()
    return message


def decode_message_head(data: Buffer) -> MessageHead | None:
    """A logical message, of which the end may be cut off. Raises DecodeError.

    None: its prefix is longer than what is there. Neither prefix nor content need be any text.
    """
    cursor = _Cursor(data)
    _expect(cursor.letter(), "M")
    flags = cursor.number(_U8)
    if flags > 1:
        raise DecodeError(f"a logical message with flags {flags}")
    cursor.number(_U64)
    prefix, is_whole, rest = cursor.rest().partition(b"\0")
    if not is_whole or len(rest) < _I32.size:
        return None
    size = int(_I32.unpack_from(rest)[0])
    if size < 0:
        raise DecodeError(f"a negative count: {size}")
    return MessageHead(bool(flags), prefix, size, rest[_I32.size :][:size])


def encode_status(
    *, write_lsn: Lsn, flush_lsn: Lsn, sent_us: int, is_reply_wanted: bool = False
) -> bytes:
    """A standby status update; `flush_lsn` is said to be applied, too.

    0/0 is no position: the server takes such an update as a sign of life and moves nothing.
    """
    return _STATUS.pack(
        b"r", write_lsn, flush_lsn, flush_lsn, sent_us - POSTGRES_EPOCH_US, is_reply_wanted
    )


def _begin(cursor: _Cursor) -> Begin:
    commit_lsn, commit_time = cursor.number(_U64), cursor.number(_I64)
    return Begin(Lsn(commit_lsn), commit_time + POSTGRES_EPOCH_US, cursor.number(_U32))


def _commit(cursor: _Cursor) -> Commit:
    flags = cursor.number(_U8)
    if flags:
        raise DecodeError(f"a Commit with flags {flags}")
    commit_lsn, end_lsn = cursor.number(_U64), cursor.number(_U64)
    return Commit(Lsn(commit_lsn), Lsn(end_lsn), cursor.number(_I64) + POSTGRES_EPOCH_US)


def _origin(cursor: _Cursor) -> Origin:
    return Origin(Lsn(cursor.number(_U64)), cursor.text())


def _relation(cursor: _Cursor) -> RelationMessage:
    oid = cursor.number(_U32)
    # An empty namespace is the protocol's short form of pg_catalog.
    schema = cursor.text() or "pg_catalog"
    table = cursor.text()
    replica_identity = cursor.letter()
    if replica_identity not in "dnfi":
        raise DecodeError(f"an unknown replica identity: {replica_identity!r}")
    columns = tuple(_relation_column(cursor) for _ in range(cursor.count(_I16)))
    return RelationMessage(oid, schema, table, replica_identity, columns)


# Tables often have columns alike, and thousands of tables thousands of them.
_shared_column = lru_cache(maxsize=16_384)(RelationColumn)


def _relation_column(cursor: _Cursor) -> RelationColumn:
    flags = cursor.number(_U8)
    if flags > 1:
        raise DecodeError(f"a column with flags {flags}")
    name, type_oid = cursor.text(), cursor.number(_U32)
    return _shared_column(name, type_oid, cursor.number(_I32), bool(flags))


def _type(cursor: _Cursor) -> TypeMessage:
    oid = cursor.number(_U32)
    schema = cursor.text() or "pg_catalog"
    return TypeMessage(oid, schema, cursor.text())


def _insert(cursor: _Cursor) -> Insert:
    oid = cursor.number(_U32)
    _expect(cursor.letter(), "N")
    return Insert(oid, _tuple(cursor))


def _update(cursor: _Cursor) -> Update:
    oid = cursor.number(_U32)
    tag = cursor.letter()
    if tag == "N":
        return Update(oid, OldTuple.ABSENT, (), _tuple(cursor))
    old_kind = _old_kind(tag)
    old = _tuple(cursor)
    _expect(cursor.letter(), "N")
    return Update(oid, old_kind, old, _tuple(cursor))


def _delete(cursor: _Cursor) -> Delete:
    oid = cursor.number(_U32)
    old_kind = _old_kind(cursor.letter())
    return Delete(oid, old_kind, _tuple(cursor))


def _old_kind(tag: str) -> OldTuple:
    if tag not in ("K", "O"):
        raise DecodeError(f"an unknown tuple: {tag!r}")
    return OldTuple(tag)


def _tuple(cursor: _Cursor) -> TupleData:
    return tuple(_value(cursor) for _ in range(cursor.count(_I16)))


def _value(cursor: _Cursor) -> TupleValue:
    match cursor.letter():
        case "n":
            return None
        case "u":
            return Unchanged.TOKEN
        case "t":
            return cursor.take(cursor.count(_I32))
        case tag:
            raise DecodeError(f"an unknown value: {tag!r}")


def _truncate(cursor: _Cursor) -> Truncate:
    count = cursor.count(_I32)
    options = cursor.number(_U8)
    if options > 3:
        raise DecodeError(f"a Truncate with options {options}")
    # Taken before the numbers are read: a corrupt count must not make us reserve memory for it.
    raw = cursor.take(count * 4)
    oids = struct.unpack(f">{count}I", raw)
    return Truncate(oids, bool(options & 1), bool(options & 2))


def _logical_message(cursor: _Cursor) -> LogicalMessage:
    flags = cursor.number(_U8)
    if flags > 1:
        raise DecodeError(f"a logical message with flags {flags}")
    message_lsn, prefix = cursor.number(_U64), cursor.text()
    content = cursor.take(cursor.count(_I32))
    return LogicalMessage(bool(flags), Lsn(message_lsn), prefix, content)


def _expect(tag: str, wanted: str) -> None:
    if tag != wanted:
        raise DecodeError(f"expected {wanted!r}, not {tag!r}")


_READERS: Final[dict[str, Callable[[_Cursor], Message]]] = {
    "B": _begin,
    "C": _commit,
    "O": _origin,
    "R": _relation,
    "Y": _type,
    "I": _insert,
    "U": _update,
    "D": _delete,
    "T": _truncate,
    "M": _logical_message,
}
