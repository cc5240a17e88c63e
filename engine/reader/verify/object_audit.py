"""One object against what the journal says of it: its metadata, and what its records say.

Strategy: the body is decompressed piece by piece and cut into lines. So memory stays near one piece
and one line beyond the compressed body. Of each code, only the first problem of an object is kept:
a body out of order is one finding, not a million.

Invariant: pure; nothing but the arguments decides.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from struct import Struct
from typing import Any, Never, assert_never, cast

import orjson
import zstandard
from isal import isal_zlib

from engine.flow.chunk import crc32_text
from engine.journal.entry import Planned
from engine.journal.publisher import SIZE
from engine.model.errors import DecodeError
from engine.model.interfaces import ObjectHead, ObjectTail
from engine.model.plural import counted
from engine.model.record import FLAT_PREFIX, Envelope
from engine.model.schema import TableName
from engine.model.staged_object import StagedObject
from engine.reader.verify.problem import Code, Problem

# Compressed bytes fed at a time. Deflate expands at most 1,032 times: 66 MiB of lines at once.
_PIECE_BYTES = 64 * 1024
_GZIP_WINDOW_BITS = 31
_ZSTD_SUFFIX = ".zst"
_WRITER = "writer"
_GZIP_TRAILER = Struct("<II")
TRAILER_BYTES = _GZIP_TRAILER.size
# The library's stub calls the class an instance.
_GzipError = cast("type[Exception]", isal_zlib.IsalError)
# The standard library's parser takes as many levels as Python calls may nest, less the calls that
# run.
_LENIENT_DEPTH_MAX = 200
_DIGITS_MAX = 20
_BRACKET_OR_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_OPENING = frozenset((b"[", b"{"))
_CLOSING = frozenset((b"]", b"}"))
# Ops whose record holds the row as it is afterwards.
_PRESENT_AFTER = frozenset("cur")


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An object as the journal names it: planned for a stream, or staged for a snapshot.

    `statements` are all that the journal says of it, the oldest first, from entry `seq` on;
    `metadata` is what the object says of itself, by each of them. `size_bytes` is None where only
    the writer knows it. `envelope` is None where the journal lost the configuration that says so.
    `database` is the source's, `flat_prefix` what the flat envelope's own names begin with in this
    version. `may_be_absent`: the journal no longer promises it, but it may be there.
    """

    statements: tuple[Planned | StagedObject, ...]
    metadata: tuple[Mapping[str, str], ...]
    table: TableName
    version: int
    seq: int
    database: str
    envelope: Envelope | None
    schema_key: str | None
    flat_prefix: str = FLAT_PREFIX
    size_bytes: int | None = None
    may_be_absent: bool = False

    @property
    def plan(self) -> Planned | StagedObject:
        """The first statement: key, positions and rows are the same in all."""
        return self.statements[0]

    @property
    def key(self) -> str:
        return self.statements[0].key

    @property
    def is_void(self) -> bool:
        """Whether it may have no rows: a loss was accepted before anybody made it."""
        return any(isinstance(s, Planned) and s.is_void for s in self.statements)


def judge_head(named: NamedObject, head: ObjectHead, writers: set[str] | None) -> list[Problem]:
    """What the look-up of an object that is there shows.

    `writers` are the ids of all writers that opened the journal; None where they are not known.
    """
    problems = []
    if head.size == 0:
        problems.append(Problem(Code.OBJECT_EMPTY, named.key, "the object has no bytes"))
    differences = [_difference(head.metadata, stated) for stated in named.metadata]
    if all(differences):
        problems.append(Problem(Code.METADATA_DIFFERS, named.key, differences[-1]))
    elif writers is not None and head.metadata.get(_WRITER) not in writers:
        text = f"written by {head.metadata.get(_WRITER)!r}, a writer that never opened the journal"
        problems.append(Problem(Code.METADATA_DIFFERS, named.key, text))
    stated_size = head.metadata.get(SIZE, "") if named.size_bytes is None else named.size_bytes
    if head.size and str(stated_size) != str(head.size):
        text = f"it has {counted(head.size, 'byte')}, its writer put {stated_size or 'no number'}"
        problems.append(Problem(Code.SIZE_DIFFERS, named.key, text))
    return problems


def rows_told(named: NamedObject, head: ObjectHead) -> int:
    """How many rows an object has that is there: those of the statement that it was made by.

    None where it was made by none of them: that is a problem by itself.
    """
    for statement, metadata in zip(named.statements, named.metadata, strict=True):
        if not _difference(head.metadata, metadata):
            return statement.rows
    return 0


def judge_trailer(named: NamedObject, tail: ObjectTail) -> tuple[Problem, ...]:
    """What the last bytes show: a gzip trailer states length and CRC32 of the lines.

    So an object that was cut off or exchanged is found by the journal's word, without its body.
    """
    if named.key.endswith(_ZSTD_SUFFIX) or tail.last is None or not tail.size:
        return ()
    if len(tail.last) == TRAILER_BYTES:
        crc, raw_bytes = _GZIP_TRAILER.unpack(tail.last)
        stated = {(s.raw_crc32, s.raw_bytes & 0xFFFFFFFF) for s in named.statements}
        if (crc32_text(crc), raw_bytes) in stated:
            return ()
    text = "its last bytes are not the gzip trailer of the planned lines"
    return (Problem(Code.CONTENT_DIFFERS, named.key, text),)


def _difference(metadata: Mapping[str, str], stated: Mapping[str, str]) -> str:
    """Where `metadata` is not what is `stated`, as text; empty where it is."""
    for name, value in stated.items():
        if metadata.get(name, "") != value:
            return f"its metadata says {name} {metadata.get(name)!r}, the journal {value!r}"
    return ""


def judge_body(named: NamedObject, body: bytes) -> tuple[Problem, ...]:
    """What the body shows: that it can be read, its lines' CRC32 and length, and every record."""
    lines = _Lines(named)
    try:
        for piece in _decompressed(body, named.key):
            lines.feed(piece)
    except DecodeError as error:
        return (Problem(Code.BODY_UNREADABLE, named.key, str(error)),)
    return lines.finish()


def _left_over(size_bytes: int) -> DecodeError:
    follow = "follows" if size_bytes == 1 else "follow"
    return DecodeError(f"{counted(size_bytes, 'byte')} {follow} the end of the compressed stream")


def _decompressed(body: bytes, key: str) -> Iterator[bytes]:
    """The lines' bytes in pieces. Raises DecodeError unless `body` is exactly one whole stream."""
    stream = _decompressor(key)
    try:
        for begin in range(0, len(body), _PIECE_BYTES):
            if stream.eof:
                raise _left_over(len(body) - begin)
            yield stream.decompress(body[begin : begin + _PIECE_BYTES])
    except (_GzipError, zstandard.ZstdError) as error:
        raise DecodeError(f"it cannot be decompressed: {error}") from error
    if not stream.eof:
        raise DecodeError("the compressed stream is cut off")
    if stream.unused_data:
        raise _left_over(len(stream.unused_data))


def _decompressor(key: str) -> Any:
    # Any: the two libraries' objects share `decompress`, `eof` and `unused_data`, and no type.
    if key.endswith(_ZSTD_SUFFIX):
        return zstandard.ZstdDecompressor().decompressobj()
    return isal_zlib.decompressobj(_GZIP_WINDOW_BITS)


@dataclass(frozen=True, slots=True)
class _Record:
    """What every envelope tells: op, position, and where the record belongs."""

    op: str
    position: str
    place: tuple[object, ...]


class _Lines:
    """The lines of one body, as they come."""

    def __init__(self, named: NamedObject) -> None:
        self._named = named
        self._plan = named.plan
        self._read = _reader(named.envelope, named.flat_prefix)
        self._is_staged = isinstance(named.plan, StagedObject)
        self._place = _expected_place(named)
        self._fragments: list[bytes] = []
        self._found: dict[Code, Problem] = {}
        self._ops: Counter[str] = Counter()
        self._rows = 0
        self._raw_bytes = 0
        self._crc = 0
        self._first = ""
        self._last = ""

    def feed(self, piece: bytes) -> None:
        self._raw_bytes += len(piece)
        self._crc = isal_zlib.crc32(piece, self._crc)
        whole, newline, rest = piece.rpartition(b"\n")
        if newline:
            self._fragments.append(whole)
            for line in b"".join(self._fragments).split(b"\n"):
                self._line(line)
            self._fragments.clear()
        if rest:
            self._fragments.append(rest)

    def _line(self, line: bytes) -> None:
        self._rows += 1
        try:
            record = self._read(_parsed(line)) if self._read is not None else None
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            # No message may carry a value of the row.
            is_json = isinstance(error, KeyError | TypeError)
            kind = "no such record" if is_json else "no JSON"
            self._note(Code.LINE_MALFORMED, f"{kind} in the {self._named.envelope} envelope")
            return
        if record is not None:
            self._record(record)

    def _record(self, record: _Record) -> None:
        self._ops[record.op] += 1
        if record.op == "t" and self._is_staged and self._rows > 1:
            # A snapshot's truncate record supersedes whatever sorts before it.
            self._note(Code.TRUNCATE_WRONG, "a truncate record behind rows of the snapshot")
        if record.place != self._place:
            self._note(Code.RECORD_MISPLACED, f"it says {record.place}, the journal {self._place}")
        if record.position <= self._last:
            self._note(
                Code.POSITION_ORDER, f"position {record.position} does not follow {self._last}"
            )
        self._first = self._first or record.position
        self._last = record.position

    def _note(self, code: Code, text: str) -> None:
        if code not in self._found:
            self._found[code] = Problem(code, self._named.key, f"line {self._rows}: {text}")

    def finish(self) -> tuple[Problem, ...]:
        if self._fragments:
            self._rows += 1
            self._note(Code.LINE_MALFORMED, "it does not end in a newline")
        key, plan = self._named.key, self._plan
        problems = list(self._found.values())
        content = (self._raw_bytes, crc32_text(self._crc))
        if not any((s.raw_bytes, s.raw_crc32) == content for s in self._named.statements):
            text = (
                f"its lines have {counted(content[0], 'byte')} and CRC32 {content[1]}, planned "
                f"were {plan.raw_bytes} and {plan.raw_crc32}"
            )
            problems.append(Problem(Code.CONTENT_DIFFERS, key, text))
        if self._named.is_void and not self._rows:
            return tuple(problems)
        if self._rows != plan.rows:
            text = f"it has {counted(self._rows, 'row')}, planned were {plan.rows}"
            problems.append(Problem(Code.ROWS_DIFFER, key, text))
        if self._read is not None and Code.LINE_MALFORMED not in self._found:
            problems.extend(self._judge_records())
        return tuple(problems)

    def _judge_records(self) -> Iterator[Problem]:
        key, plan = self._named.key, self._plan
        if dict(self._ops) != plan.ops:
            text = f"its rows by op are {dict(self._ops)}, planned were {plan.ops}"
            yield Problem(Code.OPS_DIFFER, key, text)
        if (self._first, self._last) != (plan.first, plan.last):
            text = (
                f"it goes from {self._first} to {self._last}, planned was from {plan.first} to "
                f"{plan.last}"
            )
            yield Problem(Code.POSITIONS_DIFFER, key, text)


def _parsed(line: bytes) -> Any:
    """The line as Python's objects. Raises json.JSONDecodeError or UnicodeDecodeError.

    A database's JSON may hold more than the fast parser takes: values nested deeper, numbers beyond
    any float, half surrogate pairs. Of such a line what lies deeper is left out, and its numbers
    with a fraction or an exponent stay text. Its checksum was taken whole.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        shallow = _shallow(line, _LENIENT_DEPTH_MAX)
        return _LENIENT.decode((line if shallow is None else shallow).decode())


def _shallow(line: bytes, depth_max: int) -> bytes | None:
    """The line with null for all from `depth_max` levels on; None where nothing lies there."""
    kept: list[bytes] = []
    depth = begin = 0
    for match in _BRACKET_OR_STRING.finditer(line):
        if match[0] in _OPENING:
            depth += 1
            if depth == depth_max:
                kept += (line[begin : match.start()], b"null")
        elif match[0] in _CLOSING:
            depth -= 1
            if depth == depth_max - 1:
                begin = match.end()
    return b"".join([*kept, line[begin:]]) if kept and depth < depth_max else None


def _whole_number(digits: str) -> int | str:
    # A record's own numbers are short; Python makes no number of more than 4,300 digits.
    return int(digits) if len(digits) < _DIGITS_MAX else digits


def _no_constant(name: str) -> Never:
    raise json.JSONDecodeError("NaN and Infinity are not JSON", name, 0)


_LENIENT = json.JSONDecoder(parse_int=_whole_number, parse_float=str, parse_constant=_no_constant)


def _expected_place(named: NamedObject) -> tuple[object, ...]:
    """What every record of the object must say of its table and version, as its envelope can."""
    name, version = named.table, named.version
    match named.envelope:
        case "standard":
            return (named.database, name.schema, name.table, version)
        case "debezium":
            return (named.database, name.schema, name.table)
        case "flat":
            return (version,)
        case None:
            return ()
        case _:
            assert_never(named.envelope)


def _reader(envelope: Envelope | None, flat_prefix: str) -> Callable[[Any], _Record] | None:
    """How a parsed line is read. The reader raises KeyError or TypeError for another envelope's."""
    match envelope:
        case "standard":
            return _standard
        case "debezium":
            return _debezium
        case "flat":
            return partial(_flat, flat_prefix)
        case None:
            return None
        case _:
            assert_never(envelope)


def _standard(line: Any) -> _Record:
    metadata = line["metadata"]
    op = metadata["op"]
    _require_images(line, op)
    place = (metadata["db"], metadata["schema"], metadata["table"], metadata["version"])
    return _Record(op, _text(metadata["position"]), place)


def _debezium(line: Any) -> _Record:
    source = line["source"]
    op = line["op"]
    _require_images(line, op)
    place = (source["db"], source["schema"], source["table"])
    return _Record(op, _text(source["position"]), place)


def _flat(prefix: str, line: Any) -> _Record:
    op, position = _text(line[prefix + "op"]), _text(line[prefix + "position"])
    return _Record(op, position, (line[prefix + "version"],))


def _require_images(line: Any, op: object) -> None:
    """The row before and after, as far as the op has one; TypeError otherwise."""
    before, after = line["before"], line["after"]
    if isinstance(after, dict) != (op in _PRESENT_AFTER):
        raise TypeError
    if not (before is None or isinstance(before, dict)):
        raise TypeError


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
