"""The fold reads the writer's lines, in both envelopes, and nothing else.

Golden lines are what a real PostgreSQL sent, written by the engine. What is broken in them is
random: cut, changed, moved. Bodies lie at the edge of memory that may not be read.
"""

import ctypes
import json
import mmap
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.model.errors import DecodeError, StateUnknown
from engine.model.record import Envelope
from engine.reader.fold.fold import Fold
from engine.reader.fold.shape import Shape
from fold_rig import Body, Table, folded, folded_plainly, newest_first, records, shape
from rowcodec_golden import captured, golden_lines

ENVELOPES: tuple[Envelope, ...] = ("standard", "debezium")


# --- golden lines


def _golden(envelope: Envelope) -> dict[str, bytes]:
    """The golden lines by table, as the stream and the snapshot have them."""
    found: defaultdict[str, bytes] = defaultdict(bytes)
    for line in golden_lines(envelope).splitlines(keepends=True):
        record = json.loads(line)
        found[(record.get("metadata") or record["source"])["table"]] += line
    return found


def _golden_shapes(envelope: Envelope) -> dict[str, Shape]:
    found = {}
    for relation in captured()["relations"].values():
        names = tuple(name for name, _, _ in relation["columns"])
        key = tuple(relation["key"]) or names
        made = shape(*names, key=key, version=3, envelope=envelope, is_whole_row=key == names)
        found[relation["table"]] = made
    return found


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize("is_stream_alone", [False, True])
def test_golden_lines_give_what_a_plain_fold_gives(
    envelope: Envelope, *, is_stream_alone: bool
) -> None:
    shapes = _golden_shapes(envelope)
    compared = 0

    for table, lines in _golden(envelope).items():
        bodies = _stream(lines, envelope) if is_stream_alone else [_body(lines)]
        key = shapes[table].key
        found = [line for _, line in folded(newest_first(bodies), [shapes[table]])]
        plain = folded_plainly(bodies, key)
        assert _parsed(found) == Counter(json.dumps(row) for row in plain)
        compared += len(found)

    assert compared > 10


def _body(lines: bytes) -> Body:
    positions = [position for position, _, _ in records([Body(lines, 3, "", "")])]
    return Body(lines, 3, positions[0], positions[-1])


def _stream(lines: bytes, envelope: Envelope) -> list[Body]:
    """What is before the snapshot's truncate record."""
    body = _body(lines)
    ops = [op for _, op, _ in records([body])]
    count = len(ops) - ops[::-1].index("t") - 1
    kept = b"".join(body.lines.splitlines(keepends=True)[:count])
    return [_body(kept)] if kept else []


def _parsed(lines: list[bytes]) -> Counter[str]:
    return Counter(json.dumps(json.loads(line)) for line in lines)


def test_rows_are_the_very_text_that_was_recorded() -> None:
    table = Table(shape("id", "doc", "text", key=("id",)))
    table.begin()
    table.insert({"id": "1", "doc": '{"a" : 2.50e+10, "b":"\\u00e9"}', "text": "größe\n"})
    table.cut()

    found = folded(newest_first(table.bodies), [table.shape])

    assert found == [
        (1, b'{"id":1,"doc":{"a":2.50e+10,"b":"\\u00e9"},"text":"gr\xc3\xb6\xc3\x9fe\\n"}')
    ]


# --- lines that are broken


def _fold(lines: bytes | memoryview, of: Shape) -> None:
    fold = Fold(of)
    for _ in fold.take(lines, of):
        pass
    fold.finish()


def _table(envelope: Envelope = "standard", *, is_full: bool = False) -> Table:
    """A table with each kind of record, one of a row that lacks a column."""
    names = ("id", "text", "doc")
    key = names if is_full else ("id",)
    table = Table(shape(*names, key=key, envelope=envelope, is_whole_row=is_full), is_full=is_full)
    table.begin()
    table.truncate()
    for number in range(3):
        table.insert({"id": str(number), "text": "a" * 20, "doc": '{"after":{"id":1}}'})
    table.update(0, {"id": "7"}, unchanged=("text",))
    table.update(1, {"doc": "[]"})
    table.update(1, {"doc": "null"})
    table.delete(2)
    table.cut()
    return table


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize("is_full", [False, True])
def test_every_truncation_of_a_body_is_refused(envelope: Envelope, *, is_full: bool) -> None:
    table = _table(envelope, is_full=is_full)
    [body] = table.bodies
    ends = {0, *(place + 1 for place, byte in enumerate(body.lines) if byte == ord("\n"))}

    for size in range(len(body.lines)):
        if size not in ends:
            with pytest.raises(DecodeError, match="line at byte"):
                _fold(body.lines[:size], table.shape)


@pytest.mark.parametrize("envelope", ENVELOPES)
@pytest.mark.parametrize("is_full", [False, True])
def test_every_line_that_lost_its_begin_is_refused(envelope: Envelope, *, is_full: bool) -> None:
    table = _table(envelope, is_full=is_full)
    for line in table.bodies[0].lines.splitlines(keepends=True):
        for begin in range(1, len(line)):
            with pytest.raises(DecodeError, match="line at byte 0"):
                _fold(line[begin:], table.shape)


@given(seed=st.integers(0, 2**32), envelope=st.sampled_from(ENVELOPES), is_full=st.booleans())
@settings(max_examples=150, deadline=None)
def test_broken_lines_are_refused_or_read_and_nothing_else_is(
    *, seed: int, envelope: Envelope, is_full: bool
) -> None:
    source = random.Random(seed)
    table = _table(envelope, is_full=is_full)
    names = [True]
    for _ in range(20):
        broken = _broken(table.bodies[0].lines, source)
        for is_at_end in (False, True):
            with _at_the_edge(broken, is_at_end=is_at_end) as lines:
                try:
                    _fold(lines, table.shape)
                except (DecodeError, StateUnknown) as error:
                    names.append("public.orders" in str(error))
    assert all(names)


def _broken(lines: bytes, source: random.Random) -> bytes:
    made = bytearray(lines)
    one, other = sorted(source.randrange(len(made)) for _ in range(2))
    kind = source.randrange(4)
    if kind == 0:
        for _ in range(source.choice((1, 1, 3))):
            made[source.randrange(len(made))] = source.choice(b'{}[]",:\\\n0a-e\x00\xffu')
    elif kind == 1:
        del made[one : min(other, one + source.randrange(60))]
    elif kind == 2:
        made[one:one] = made[other : other + source.randrange(60)]
    else:
        del made[other:]
    return bytes(made)


@contextmanager
def _at_the_edge(content: bytes, *, is_at_end: bool) -> Iterator[memoryview]:
    """The content in memory of its own, right before or behind a page that may not be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    page = mmap.PAGESIZE
    room = -(-max(len(content), 1) // page) * page
    with mmap.mmap(-1, room + 2 * page) as memory:
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        first = page + (room - len(content) if is_at_end else 0)
        memory[first : first + len(content)] = content
        for guard in (start, start + page + room):
            assert libc.mprotect(guard, page, 0) == 0
        view = memoryview(memory)
        lines = view[first : first + len(content)]
        try:
            yield lines
        finally:
            lines.release()
            view.release()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"op":"c"', b'"op":"x"', "it has no known op"),
        (b'"metadata":{', b'"metadate":{', "its metadata is not the writer's"),
        (b'"version":1,', b'"version":2,', "it is of another version than its object"),
        (b'"version":1,', b'"version":11,', "it is of another version than its object"),
        (b'"position":"0001.', b'"position":"000A.', "it has no position"),
        (b'"position":"0001.', b'"position":"0001:', "it has no position"),
        (b'"position":"0001.', b'"position":"001.', "it has no position"),
        (b'"source_ts_ms":', b'"source_ts_ms":x', "its metadata is not the writer's"),
        (b'"xid":7', b'"xid":{}', "its metadata is not the writer's"),
        (b'"xid":7', b'"xid":7,"json_null":["nobody"]', "what it says of its columns"),
        (b'"xid":7', b'"xid":7,"json_null":["text","id"]', "what it says of its columns"),
        (b'"xid":7', b'"xid":7,"unchanged":["text"]', "what it says of its columns"),
        (b'"before":null', b'"before":{"id":1}', "its `before` is not"),
        (b'{"before":null', b'{"old":null', "its `before` is not"),
        (b'"after":{', b'"after":[', "its `after` is not"),
        (b'"after":{"id"', b'"after":{"ident"', "its `after` is not"),
        (b'"after":{"id":', b'"after":{"id":x', "its `after` is not"),
        (b"}}\n", b"}}}\n", "what it says of its columns"),
        (b"}}\n", b"}} \n", "it does not end as one"),
        (b"}}\n", b"}}\n\n", "it does not end as one"),
        (b'"key":["id"]', b'"key":"id"', "its metadata is not the writer's"),
    ],
)
def test_a_line_that_is_not_the_writers_is_refused_by_name(
    old: bytes, new: bytes, reason: str
) -> None:
    table = Table(shape("id", "text", key=("id",)))
    table.begin()
    table.insert({"id": "1", "text": "x"})
    table.cut()
    lines = table.bodies[0].lines
    assert old in lines

    with pytest.raises(DecodeError, match=r"public\.orders, version 1: the line at byte") as caught:
        _fold(lines.replace(old, new), table.shape)

    assert reason in str(caught.value)


def test_more_behind_debeziums_source_is_refused() -> None:
    table = Table(shape("id", "text", key=("id",), envelope="debezium"))
    table.begin()
    table.insert({"id": "1", "text": "x"})
    table.cut()
    lines = table.bodies[0].lines.replace(b'},"op":"c"', b',"more":1},"op":"c"')
    assert lines != table.bodies[0].lines

    with pytest.raises(DecodeError, match="what it says of its columns"):
        _fold(lines, table.shape)


def test_a_line_is_named_by_the_byte_where_it_begins() -> None:
    table = _table()
    lines = table.bodies[0].lines.splitlines(keepends=True)
    begin = sum(map(len, lines[:2]))
    lines[2] = lines[2].replace(b'"op":"c"', b'"op":"x"')

    with pytest.raises(DecodeError, match=f"the line at byte {begin} of its object"):
        _fold(b"".join(lines), table.shape)


def test_a_column_of_another_name_is_refused_where_it_is_looked_at() -> None:
    table = _table()

    with pytest.raises(DecodeError, match="is not what its op and its version have"):
        _fold(
            table.bodies[0].lines,
            replace(table.shape, columns=("ident", "text", "doc"), key=("ident",)),
        )


def test_a_row_that_left_out_what_is_there_is_refused() -> None:
    table = _table(is_full=True)
    lines = table.bodies[0].lines.replace(b'"unchanged":["text"]', b'"unchanged":["doc"]')

    with pytest.raises(DecodeError, match="`after`"):
        _fold(lines, table.shape)


def test_lines_in_another_order_are_refused() -> None:
    table = _table()
    truncate, first, second, *others = table.bodies[0].lines.splitlines(keepends=True)

    with pytest.raises(DecodeError, match="it is not before the records that came later"):
        _fold(b"".join((truncate, second, first, *others)), table.shape)


def test_a_line_that_is_there_twice_is_refused() -> None:
    table = _table()
    lines = table.bodies[0].lines.splitlines(keepends=True)

    with pytest.raises(DecodeError, match="it is not before the records that came later"):
        _fold(b"".join((*lines, lines[-1])), table.shape)


def test_what_is_behind_a_truncate_record_is_not_looked_at() -> None:
    table = _table()

    _fold(b"anything\n" + table.bodies[0].lines, table.shape)


def test_numbers_of_a_transaction_may_be_negative_or_null() -> None:
    table = Table(shape("id", "text", key=("id",), envelope="debezium"))
    table.begin()
    table.insert({"id": "1", "text": "x"})
    table.cut()
    lines = table.bodies[0].lines
    early = lines.replace(b'"ts_ms":1000', b'"ts_ms":-1000').replace(b'"txId":7', b'"txId":null')
    assert early != lines

    _fold(early, table.shape)
