"""The row codec's oracle: the same contract in plain Python, written for reading, not for speed.

It shares nothing with the compiled modules but the kinds' numbers. It parses a message to Python
values first, and renders them afterwards with `json.dumps` and regular expressions. The codec does
both in one walk over the bytes.
"""

import base64
import hashlib
import hmac
import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum

from engine.model.errors import DecodeError
from engine.sources.postgres.types import (
    KIND_ARRAY,
    KIND_BOOLEAN,
    KIND_BYTEA,
    KIND_FLOAT,
    KIND_INTEGER,
    KIND_JSON,
    KIND_NUMERIC,
    KIND_TIMESTAMP,
    KIND_TIMESTAMPTZ,
)

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
TIMESTAMP = re.compile(
    r"([0-9]{4,}-[0-9]{2}-[0-9]{2}) ([0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?)(\+00)?( BC)?"
)
JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[ \t\n\r]+|[^" \t\n\r]+')
ARRAY_TOKEN = re.compile(r'[{},]|"(?:[^"\\]|\\.)*"|[^{},"\\]+', re.DOTALL)
COPY_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "\\": "\\"}
ARRAY_DEPTH_MAX = 6
HASHED = 128
"""In place of a kind: the column is written as a hash, whatever its type."""
SECRET = b"a secret of the tests, 32 bytes at least"


class Absent(Enum):
    """What a tuple says of a column instead of a value."""

    NULL = "n"
    UNCHANGED = "u"


Value = bytes | Absent
Tuple = list[Value]


@dataclass(frozen=True)
class Column:
    name: str
    kind: int
    is_identity: bool
    is_included: bool


@dataclass(frozen=True)
class Binding:
    database: str
    schema: str
    table: str
    version: int
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    envelope: str
    numeric: str
    json: str


@dataclass(frozen=True)
class Change:
    """One parsed change. `old_letter` says which columns the old row has: K, O, or none."""

    op: str
    old: Tuple | None
    old_letter: str
    new: Tuple | None


@dataclass(frozen=True)
class Taken:
    lines: bytes
    row_count: int
    first_position: str
    last_position: str
    operations: tuple[int, int, int, int, int]


@dataclass
class Buffer:
    lines: list[bytes] = field(default_factory=list)
    positions: list[str] = field(default_factory=list)
    ops: list[str] = field(default_factory=list)


@dataclass
class Object:
    """A rendered row: members in order, and the columns to be listed apart."""

    members: list[tuple[str, str]] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    json_null: list[str] = field(default_factory=list)


def braces(members: Sequence[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{quoted(name)}:{text}" for name, text in members) + "}"


def quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def text_of(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DecodeError("not valid UTF-8") from None


# ------------------------------------------------------------------------------------ values


def render_number(text: str) -> str:
    if text in ("NaN", "Infinity", "-Infinity"):
        return quoted(text)
    if not NUMBER.fullmatch(text):
        raise DecodeError("not a number")
    return text


def render_integer(text: str) -> str:
    if not INTEGER.fullmatch(text):
        raise DecodeError("not an integer")
    return text


def render_boolean(text: str) -> str:
    if text not in ("t", "f"):
        raise DecodeError("not a boolean")
    return "true" if text == "t" else "false"


def render_timestamp(text: str, *, has_zone: bool) -> str:
    if text in ("infinity", "-infinity"):
        return quoted(text)
    match = TIMESTAMP.fullmatch(text)
    if match is None or (match[3] is not None) != has_zone:
        raise DecodeError("not a timestamp")
    date, time, zone, era = match.groups()
    if era:
        return quoted(f"{date}T{time}{zone or ''}{era}")
    return quoted(f"{date}T{time}{'Z' if has_zone else ''}")


def render_bytea(text: str) -> str:
    if not re.fullmatch(r"\\x([0-9a-fA-F]{2})*", text):
        raise DecodeError("not bytea")
    return quoted(base64.b64encode(bytes.fromhex(text[2:])).decode())


def refuse_constant(name: str) -> None:
    raise ValueError(name)


def render_json(text: str) -> str:
    try:
        # Numbers are left alone: Python limits the digits of an integer, JSON does not.
        json.loads(text, parse_constant=refuse_constant, parse_int=str, parse_float=str)
    except ValueError:
        raise DecodeError("not JSON") from None
    return "".join(t for t in JSON_TOKEN.findall(text) if t.strip(" \t\n\r"))


def render_scalar(text: str, kind: int, binding: Binding) -> str:
    if kind == KIND_FLOAT or (kind == KIND_NUMERIC and binding.numeric == "number"):
        return render_number(text)
    if kind == KIND_JSON and binding.json == "embed":
        return render_json(text)
    renderers: dict[int, Callable[[str], str]] = {
        KIND_BOOLEAN: render_boolean,
        KIND_INTEGER: render_integer,
        KIND_TIMESTAMP: lambda text: render_timestamp(text, has_zone=False),
        KIND_TIMESTAMPTZ: lambda text: render_timestamp(text, has_zone=True),
        KIND_BYTEA: render_bytea,
    }
    return renderers.get(kind, quoted)(text)


def render_array(text: str, kind: int, binding: Binding) -> str:
    if text.startswith("["):
        return quoted(text)
    tokens = array_tokens(text)
    json_nulls: list[str] = []
    rendered = render_items(tokens, kind, binding, json_nulls)
    if next(tokens, None) is not None:
        raise DecodeError("text after the array")
    return quoted(text) if json_nulls else rendered


def array_tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        match = ARRAY_TOKEN.match(text, at)
        if match is None:
            raise DecodeError("not an array")
        yield match[0]
        at = match.end()


def render_items(tokens: Iterator[str], kind: int, binding: Binding, json_nulls: list[str]) -> str:
    """The array; elements that are JSON's null are added to `json_nulls`."""
    if next(tokens, None) != "{":
        raise DecodeError("not an array")
    return render_rest(tokens, kind, binding, json_nulls, 1)


def render_rest(
    tokens: Iterator[str], kind: int, binding: Binding, json_nulls: list[str], depth: int
) -> str:
    if depth > ARRAY_DEPTH_MAX:
        raise DecodeError("too deep")
    items: list[str] = []
    token = next(tokens, None)
    if token == "}":
        return "[]"
    while True:
        if token == "{":
            items.append(render_rest(tokens, kind, binding, json_nulls, depth + 1))
        else:
            items.append(render_element(token, kind, binding, json_nulls))
        token = next(tokens, None)
        if token == "}":
            return "[" + ",".join(items) + "]"
        if token != ",":
            raise DecodeError("not an array")
        token = next(tokens, None)


def render_element(token: str | None, kind: int, binding: Binding, json_nulls: list[str]) -> str:
    if token is None or token in ("}", ","):
        raise DecodeError("an element is missing")
    if token.startswith('"'):
        token = re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
    elif token.lower() == "null" and token.isascii():
        return "null"
    rendered = render_scalar(token, kind, binding)
    if kind == KIND_JSON and binding.json == "embed" and rendered == "null":
        json_nulls.append(token)
    return rendered


def render_row(row: Tuple, binding: Binding, *, letter: str) -> Object:
    rendered = Object()
    for column, value in zip(binding.columns, row, strict=True):
        if not column.is_included or (letter == "K" and not column.is_identity):
            continue
        if value is Absent.NULL:
            rendered.members.append((column.name, "null"))
        elif isinstance(value, bytes):
            text = render_value(column, value, binding)
            rendered.members.append((column.name, text))
            if column.kind == KIND_JSON and binding.json == "embed" and text == "null":
                rendered.json_null.append(column.name)
        elif letter == "N":
            rendered.unchanged.append(column.name)
    return rendered


def render_value(column: Column, value: bytes, binding: Binding) -> str:
    if column.kind == HASHED:
        return quoted(hmac.new(SECRET, value, hashlib.sha256).hexdigest())
    text = text_of(value)
    if column.kind & KIND_ARRAY:
        return render_array(text, column.kind & ~KIND_ARRAY, binding)
    return render_scalar(text, column.kind, binding)


# ---------------------------------------------------------------------------------- messages


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def read(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise DecodeError("too short")
        self.at += size
        return self.data[self.at - size : self.at]

    def integer(self, size: int) -> int:
        return int.from_bytes(self.read(size), "big")

    def letter(self) -> str:
        return self.read(1).decode("latin-1")

    def tuple(self, column_count: int) -> Tuple:
        if self.integer(2) != column_count:
            raise DecodeError("another number of columns")
        return [self.value() for _ in range(column_count)]

    def value(self) -> Value:
        tag = self.letter()
        if tag == "t":
            return self.read(self.integer(4))
        if tag not in ("n", "u"):
            raise DecodeError("unknown tag")
        return Absent(tag)


def parse_change(reader: Reader, message: str, column_count: int) -> Change:
    old: Tuple | None = None
    new: Tuple | None = None
    old_letter = ""
    letter = reader.letter()
    if letter in ("K", "O") and message in ("U", "D"):
        old_letter = letter
        old = reader.tuple(column_count)
        letter = reader.letter() if message == "U" else ""
    if message in ("I", "U"):
        if letter != "N":
            raise DecodeError("no new tuple")
        new = reader.tuple(column_count)
    elif old is None:
        raise DecodeError("no old tuple")
    if reader.at != len(reader.data):
        raise DecodeError("trailing bytes")
    return Change({"I": "c", "U": "u", "D": "d"}[message], old, old_letter, new)


def parse_copy(row: bytes, columns: Sequence[Column]) -> Tuple:
    """The row with a value for every column; those not included are NULL, and never written."""
    # latin-1 keeps the bytes apart; they are decoded as UTF-8 with the values.
    text = row.decode("latin-1")
    if not text.endswith("\n") or "\n" in text[:-1]:
        raise DecodeError("not one row")
    included = [column for column in columns if column.is_included]
    fields = text[:-1].split("\t") if included or text != "\n" else []
    if len(fields) != len(included):
        raise DecodeError("another number of fields")
    values = iter([copy_value(one) for one in fields])
    return [next(values) if column.is_included else Absent.NULL for column in columns]


def copy_value(text: str) -> Value:
    if text == r"\N":
        return Absent.NULL
    if re.search(r"\\(?![btnvfr\\])", re.sub(r"\\\\", "", text)):
        raise DecodeError("unknown escape")
    plain = re.sub(r"\\(.)", lambda match: COPY_ESCAPES[match[1]], text, flags=re.DOTALL)
    return plain.encode("latin-1")


# ---------------------------------------------------------------------------------- the codec


class TwinCodec:
    """See `engine.rowcodec.RowCodec`."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.bindings: dict[int, Binding] = {}
        self.buffers: dict[int, Buffer] = {}
        self.counts: dict[tuple[int, int], int] = {}
        self.commit_lsn = 0
        self.time_us = 0
        self.xid = 0

    def bind(
        self,
        relation_id: int,
        *,
        database: str,
        schema: str,
        table: str,
        version: int,
        columns: Sequence[tuple[str, int, bool, bool]],
        key: Sequence[str],
        envelope: str,
        numeric: str,
        json: str,
    ) -> None:
        self.bindings[relation_id] = Binding(
            database,
            schema,
            table,
            version,
            tuple(Column(*column) for column in columns),
            tuple(key),
            envelope,
            numeric,
            json,
        )

    def unbind(self, relation_id: int) -> None:
        del self.bindings[relation_id]

    def begin(self, commit_lsn: int, commit_time_us: int, xid: int) -> None:
        self.commit_lsn, self.time_us, self.xid = commit_lsn, commit_time_us, xid
        self.counts.clear()

    def encode(self, frame: bytes) -> int:
        reader = Reader(frame)
        letter, change_lsn, _, _, message, relation_id = (
            reader.letter(),
            reader.integer(8),
            reader.integer(8),
            reader.integer(8),
            reader.letter(),
            reader.integer(4),
        )
        if letter != "w" or message not in ("I", "U", "D"):
            raise DecodeError("not a row")
        binding = self.bindings.get(relation_id)
        if binding is None:
            return -1
        change = parse_change(reader, message, len(binding.columns))
        if message == "I" and change.new is not None:
            pairs = zip(binding.columns, change.new, strict=True)
            if any(column.is_included and value is Absent.UNCHANGED for column, value in pairs):
                raise DecodeError("an insert without a value")
        position = self.next_position(relation_id, change_lsn)
        line = self.line(change, binding, position, change_lsn)
        self.count(relation_id, change_lsn)
        return self.keep(relation_id, line, position, change.op)

    def encode_copy(self, relation_id: int, row: bytes, range_number: int, row_number: int) -> int:
        binding = self.bindings.get(relation_id)
        if binding is None:
            return -1
        change = Change("r", None, "", parse_copy(row, binding.columns))
        position = self.position(range_number, row_number)
        line = self.line(change, binding, position, range_number)
        return self.keep(relation_id, line, position, "r")

    def truncate(self, relation_id: int, change_lsn: int) -> int:
        binding = self.bindings.get(relation_id)
        if binding is None:
            return -1
        position = self.next_position(relation_id, change_lsn)
        line = self.line(Change("t", None, "", None), binding, position, change_lsn)
        self.count(relation_id, change_lsn)
        return self.keep(relation_id, line, position, "t")

    def next_position(self, relation_id: int, change_lsn: int) -> str:
        return self.position(change_lsn, self.counts.get((relation_id, change_lsn), 0))

    def take(self, relation_id: int) -> Taken | None:
        buffer = self.buffers.pop(relation_id, None)
        if buffer is None:
            return None
        c, u, d, r, t = (buffer.ops.count(op) for op in "cudrt")
        return Taken(
            b"".join(buffer.lines),
            len(buffer.lines),
            buffer.positions[0],
            buffer.positions[-1],
            (c, u, d, r, t),
        )

    def position(self, change_lsn: int, n: int) -> str:
        return f"{self.generation:04d}.{self.commit_lsn:016X}.{change_lsn:016X}.{n:06X}"

    def count(self, relation_id: int, change_lsn: int) -> None:
        if any(lsn > change_lsn for one, lsn in self.counts if one == relation_id):
            raise DecodeError("change_lsn goes back")
        self.counts[relation_id, change_lsn] = self.counts.get((relation_id, change_lsn), 0) + 1

    def keep(self, relation_id: int, line: str, position: str, op: str) -> int:
        buffer = self.buffers.setdefault(relation_id, Buffer())
        buffer.lines.append(line.encode() + b"\n")
        buffer.positions.append(position)
        buffer.ops.append(op)
        return sum(map(len, buffer.lines))

    # ------------------------------------------------------------------------------ envelopes

    def line(self, change: Change, binding: Binding, position: str, change_lsn: int) -> str:
        old = new = None
        # The flat envelope has no place for an update's old row; even so its messages are checked.
        is_old_wanted = binding.envelope != "flat" or change.op == "d"
        if change.old is not None and is_old_wanted:
            old = render_row(change.old, binding, letter=change.old_letter)
        if change.new is not None:
            new = render_row(change.new, binding, letter="N")
        shown = (old if change.op == "d" else new) or Object()
        # A snapshot's rows are of no transaction.
        xid = self.xid if change.op != "r" else 0
        lsn = change_lsn if xid else self.commit_lsn
        if binding.envelope == "flat":
            return braces(shown.members + self.flat(change.op, binding, position, shown))
        rows = [
            ("before", braces(old.members) if old else "null"),
            ("after", braces(new.members) if new else "null"),
        ]
        if binding.envelope == "debezium":
            return braces(
                rows + self.debezium(change.op, binding, position, shown, lsn=lsn, xid=xid)
            )
        metadata = self.metadata(change.op, binding, position, lsn, xid) + lists(shown)
        return braces([*rows, ("metadata", braces(metadata))])

    def metadata(
        self, op: str, binding: Binding, position: str, lsn: int, xid: int
    ) -> list[tuple[str, str]]:
        return [
            ("op", quoted(op)),
            ("connector", '"postgresql"'),
            ("db", quoted(binding.database)),
            ("schema", quoted(binding.schema)),
            ("table", quoted(binding.table)),
            ("key", quoted(binding.key)),
            ("version", quoted(binding.version)),
            ("source_ts_ms", quoted(self.time_us // 1000)),
            ("position", quoted(position)),
            ("lsn", quoted(lsn_text(lsn))),
            ("commit_lsn", quoted(lsn_text(self.commit_lsn))),
            ("xid", quoted(xid or None)),
        ]

    def debezium(
        self, op: str, binding: Binding, position: str, shown: Object, *, lsn: int, xid: int
    ) -> list[tuple[str, str]]:
        time_ms = quoted(self.time_us // 1000)
        source = [
            ("connector", '"postgresql"'),
            ("name", quoted(binding.database)),
            ("ts_ms", time_ms),
            ("ts_us", quoted(self.time_us)),
            ("ts_ns", quoted(self.time_us * 1000)),
            ("snapshot", quoted("true" if op == "r" or not xid else "false")),
            ("db", quoted(binding.database)),
            ("schema", quoted(binding.schema)),
            ("table", quoted(binding.table)),
            ("txId", quoted(xid or None)),
            ("lsn", quoted(lsn)),
            ("xmin", "null"),
            ("position", quoted(position)),
            *lists(shown),
        ]
        return [
            ("source", braces(source)),
            ("op", quoted(op)),
            ("ts_ms", time_ms),
            ("transaction", "null"),
        ]

    def flat(
        self, op: str, binding: Binding, position: str, shown: Object
    ) -> list[tuple[str, str]]:
        time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.time_us)
        return [
            ("_op", quoted(op)),
            ("_position", quoted(position)),
            ("_commit_ts", quoted(f"{time:%Y-%m-%dT%H:%M:%S.%fZ}".rjust(27, "0"))),
            ("_version", quoted(binding.version)),
            *[(f"_{name}", text) for name, text in lists(shown)],
        ]


def lsn_text(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lists(shown: Object) -> list[tuple[str, str]]:
    named = [("unchanged", shown.unchanged), ("json_null", shown.json_null)]
    return [(name, quoted(columns)) for name, columns in named if columns]


# ----------------------------------------------------------------------------- building frames


def value_bytes(value: Value) -> bytes:
    if isinstance(value, Absent):
        return value.value.encode()
    return b"t" + struct.pack(">I", len(value)) + value


def tuple_bytes(letter: str, values: Sequence[Value]) -> bytes:
    head = letter.encode() + struct.pack(">H", len(values))
    return head + b"".join(map(value_bytes, values))


def frame_bytes(change_lsn: int, message: str, relation_id: int, *tuples: bytes) -> bytes:
    head = b"w" + struct.pack(">QQQ", change_lsn, change_lsn, 0)
    return head + message.encode() + struct.pack(">I", relation_id) + b"".join(tuples)


def copy_bytes(values: Sequence[Value]) -> bytes:
    """A row as `COPY ... TO STDOUT` writes it."""
    escapes = {ord(char): f"\\{letter}" for letter, char in COPY_ESCAPES.items()}
    fields = [
        b"\\N"
        if isinstance(value, Absent)
        else value.decode("latin-1").translate(escapes).encode("latin-1")
        for value in values
    ]
    return b"\t".join(fields) + b"\n"
