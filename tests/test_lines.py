"""The line writer without a source: values in, lines out, as a source's reader writes them."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine.lines
from engine.lines.writer import (
    OP_CREATE,
    OP_DELETE,
    OP_READ,
    OP_TRUNCATE,
    OP_UPDATE,
    VALUE_BOOLEAN,
    VALUE_BYTES,
    VALUE_JSON,
    VALUE_NUMBER,
    VALUE_TEXT,
    Lines,
    LineWriter,
)
from engine.model import position
from engine.model.errors import DecodeError, UnrepresentableRow
from engine.model.record import Envelope
from engine.sources.postgres.types import (
    KIND_BOOLEAN,
    KIND_BYTEA,
    KIND_FLOAT,
    KIND_JSON,
    KIND_TEXT,
)
from row_codec import RowCodec
from rowcodec_twin import frame_bytes, tuple_bytes

TABLE = 7
ORDER = 0x134EBCB0
CHANGE = 0x134EBC00
TIME_US = 1_795_341_114_065_123
HOUR_US = 3_600_000_000
# A column: its name, its form, the kind that PostgreSQL has for it.
COLUMNS = (
    ("id", VALUE_NUMBER, KIND_FLOAT),
    ('na"me', VALUE_TEXT, KIND_TEXT),
    ("is_on", VALUE_BOOLEAN, KIND_BOOLEAN),
    ("blob", VALUE_BYTES, KIND_BYTEA),
    ("document", VALUE_JSON, KIND_JSON),
)
ROW = (b"-12.5e3", 'say "ü"\n'.encode(), b"true", b"\x00\xffab", b'{"a": [1, null]}')
NULLS = (b"1", None, b"false", None, b"null")
Row = tuple[bytes | None, ...]


def bind(lines: LineWriter, envelope: Envelope = "standard", **changed: Any) -> None:
    arguments: dict[str, Any] = {
        "database": "shop",
        "schema": "public",
        "table": "orders",
        "version": 2,
        "columns": [(name, form, name == "id", True) for name, form, _ in COLUMNS],
        "key": ["id"],
    }
    lines.bind(TABLE, envelope=envelope, **(arguments | changed))


def new_lines(envelope: Envelope = "standard", **options: Any) -> LineWriter:
    lines = LineWriter(1, connector="postgresql", **options)
    bind(lines, envelope)
    lines.begin(ORDER, TIME_US)
    return lines


def of_one_column(form: int, envelope: Envelope = "standard") -> LineWriter:
    lines = LineWriter(1, connector="test")
    bind(lines, envelope, columns=[("v", form, True, True)], key=["v"])
    lines.begin(ORDER, TIME_US)
    return lines


def taken(lines: LineWriter) -> Lines:
    found = lines.take(TABLE)
    assert found is not None
    return found


def write(lines: LineWriter, *values: bytes | None) -> int:
    return lines.write(TABLE, CHANGE, OP_CREATE, None, values)


def written(form: int, value: bytes | None) -> Any:
    lines = of_one_column(form)
    write(lines, value)
    return json.loads(taken(lines).lines)["after"]["v"]


# ---------------------------------------------------------------- as a reader of its own writes


def as_postgres_prints(row: Row) -> list[Any]:
    """The same values in PostgreSQL's own text."""
    number, name, is_on, blob, document = row
    assert is_on is not None
    return [
        number,
        name,
        is_on[:1],
        blob if blob is None else b"\\x" + blob.hex().encode(),
        document,
    ]


def tuple_of(letter: str, row: Row) -> bytes:
    parts = [
        b"n" if value is None else b"t" + len(value).to_bytes(4, "big") + value
        for value in as_postgres_prints(row)
    ]
    return tuple_bytes(letter, [])[:1] + len(parts).to_bytes(2, "big") + b"".join(parts)


def read_by_postgres(envelope: Envelope, message: str, *tuples: bytes) -> bytes:
    codec = RowCodec(1)
    codec.bind(
        TABLE,
        database="shop",
        schema="public",
        table="orders",
        version=2,
        columns=[(name, kind, True, True) for name, _, kind in COLUMNS],
        key=["id"],
        envelope=envelope,
        numeric="string",
        json="embed",
    )
    codec.begin(ORDER, TIME_US, 1743)
    codec.encode(frame_bytes(CHANGE, message, TABLE, *tuples))
    lines = codec.take(TABLE)
    assert lines is not None
    return lines.lines


def without_own_members(line: bytes) -> bytes:
    """What PostgreSQL alone says of a change."""
    line = re.sub(rb',"lsn":"[^"]*","commit_lsn":"[^"]*","xid":\d+', b"", line)
    return re.sub(rb',"txId":\d+,"lsn":\d+,"xmin":null', b"", line)


@pytest.mark.parametrize("envelope", ["standard", "debezium", "flat"])
@pytest.mark.parametrize("row", [ROW, NULLS])
def test_values_become_the_lines_that_a_reader_of_rows_writes(envelope: Envelope, row: Row) -> None:
    lines = new_lines(envelope)

    made = []
    for op, before, after in (
        (OP_CREATE, None, row),
        (OP_UPDATE, ROW, row),
        (OP_DELETE, row, None),
    ):
        lines.begin(ORDER, TIME_US)
        lines.write(TABLE, CHANGE, op, before, after)
        made.append(taken(lines).lines)

    assert made == [
        without_own_members(read_by_postgres(envelope, "I", tuple_of("N", row))),
        without_own_members(
            read_by_postgres(envelope, "U", tuple_of("O", ROW), tuple_of("N", row))
        ),
        without_own_members(read_by_postgres(envelope, "D", tuple_of("O", row))),
    ]


@pytest.mark.parametrize("envelope", ["standard", "debezium", "flat"])
def test_own_members_of_a_source_stand_in_the_envelope(envelope: Envelope) -> None:
    lines = LineWriter(1, connector="test")
    bind(lines, envelope)

    lines.begin(ORDER, TIME_US, fields=b',"xid":5,"gtid":"a:1"')
    write(lines, *ROW)

    line = json.loads(taken(lines).lines)
    own = {"standard": line.get("metadata"), "debezium": line.get("source"), "flat": line}[envelope]
    assert own is not None
    assert [own.get("xid"), own.get("gtid")] == ([None, None] if envelope == "flat" else [5, "a:1"])
    assert envelope == "flat" or own["connector"] == "test"


def test_truncations_and_rows_of_a_snapshot_have_their_op() -> None:
    lines = LineWriter(1, connector="test")
    bind(lines, "debezium")

    lines.begin(ORDER, TIME_US, is_snapshot=True)
    lines.write(TABLE, CHANGE, OP_READ, None, ROW)
    lines.begin(ORDER + 1, TIME_US)
    lines.write(TABLE, CHANGE, OP_TRUNCATE, None, None)
    rows = taken(lines)

    read, truncated = [json.loads(line) for line in rows.lines.splitlines()]
    assert (read["op"], read["source"]["snapshot"]) == ("r", "true")
    assert (truncated["op"], truncated["before"], truncated["after"]) == ("t", None, None)
    assert truncated["source"]["snapshot"] == "false"
    assert rows.operations == (0, 0, 0, 1, 1)


# ------------------------------------------------------------------------------------- values


@given(st.binary(max_size=40))
def test_bytes_are_written_as_base64(value: bytes) -> None:
    assert base64.b64decode(written(VALUE_BYTES, value), validate=True) == value


@given(st.text(max_size=40))
def test_text_is_written_as_it_is(value: str) -> None:
    assert written(VALUE_TEXT, value.encode()) == value


@pytest.mark.parametrize(
    ("form", "value", "error"),
    [
        (VALUE_NUMBER, b"01", DecodeError),
        (VALUE_NUMBER, b"", DecodeError),
        (VALUE_NUMBER, b"NaN", DecodeError),
        (VALUE_BOOLEAN, b"t", DecodeError),
        (VALUE_BOOLEAN, b"TRUE", DecodeError),
        (VALUE_TEXT, b"\xff", UnrepresentableRow),
        (VALUE_JSON, b"{", UnrepresentableRow),
        (VALUE_JSON, b'"\xff"', UnrepresentableRow),
    ],
)
def test_a_value_that_is_not_of_its_form_is_refused_and_nothing_is_counted(
    form: int, value: bytes, error: type[DecodeError]
) -> None:
    lines = of_one_column(form)

    with pytest.raises(DecodeError, match="column 'v'") as caught:
        write(lines, value)

    assert type(caught.value) is error
    assert lines.take_all() == []
    assert lines.next_position(TABLE, CHANGE).endswith(".000000")


@pytest.mark.parametrize("values", [(), (b"1", b"2"), ("1",), (1,)])
def test_values_that_do_not_fit_the_table_are_refused(values: Any) -> None:
    lines = of_one_column(VALUE_NUMBER)

    with pytest.raises(DecodeError, match="another number of values"):
        write(lines, *values)

    assert lines.buffered == 0


def test_a_refused_row_names_its_key() -> None:
    lines = new_lines()

    with pytest.raises(UnrepresentableRow, match=r"public\.orders, column 'na\"me'") as caught:
        write(lines, b"7", b"\xff", None, None, None)

    assert (caught.value.table_number, caught.value.change) == (TABLE, CHANGE)
    assert caught.value.key == '{"id": "7"}'


def test_a_row_beyond_the_limit_is_refused() -> None:
    lines = new_lines(row_bytes_max=500)
    write(lines, *ROW)

    with pytest.raises(UnrepresentableRow, match="max_row_bytes"):
        write(lines, b"1", b"x" * 500, None, None, None)

    assert taken(lines).row_count == 1


def test_a_column_that_is_not_included_is_not_looked_at() -> None:
    lines = LineWriter(1, connector="test")
    columns = [("id", VALUE_NUMBER, True, True), ("secret", VALUE_JSON, False, False)]
    bind(lines, columns=columns)
    lines.begin(ORDER, TIME_US)

    write(lines, b"1", b"no json")

    assert json.loads(taken(lines).lines)["after"] == {"id": 1}


@pytest.mark.parametrize("form", [-1, 256])
def test_a_form_beyond_a_byte_is_refused(form: int) -> None:
    with pytest.raises(ValueError, match="unknown form"):
        of_one_column(form)


def test_an_operation_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown operation"):
        new_lines().write(TABLE, CHANGE, 5, None, ROW)


def test_more_bytes_of_own_members_than_there_is_room_for_are_refused() -> None:
    lines = new_lines()

    lines.begin(ORDER, TIME_US, fields=b" " * 256)
    with pytest.raises(ValueError, match="257 bytes"):
        lines.begin(ORDER, TIME_US, fields=b" " * 257)


# ------------------------------------------------------------------------ positions and hours


@given(
    st.integers(0, 9999),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 3),
)
def test_positions_are_those_of_their_module(
    generation: int, order: int, change: int, count: int
) -> None:
    lines = LineWriter(generation, connector="test")
    lines.begin(order, TIME_US)

    for _ in range(count):
        lines.skip(TABLE, change)

    expected = position.make_position(generation, order, change, count)
    assert lines.next_position(TABLE, change) == expected
    bind(lines)
    write_at = lines.write(TABLE, change, OP_CREATE, None, ROW)
    assert write_at > 0
    rows = taken(lines)
    assert json.loads(rows.lines)["metadata"]["position"] == expected
    assert (rows.first_position, rows.last_position) == (expected, expected)


@pytest.mark.parametrize("generation", [-1, 10_000])
def test_a_generation_beyond_four_digits_is_refused(generation: int) -> None:
    with pytest.raises(ValueError, match="generation"):
        LineWriter(generation, connector="test")


@pytest.mark.parametrize("began_us", [0, -HOUR_US, 497_500 * HOUR_US])
def test_lines_of_one_hour_are_not_mixed_with_those_of_another(began_us: int) -> None:
    lines = LineWriter(1, connector="test")
    bind(lines)
    lines.begin(ORDER, began_us + 5)
    empty = lines.holds_another_hour(began_us + HOUR_US)
    write(lines, *ROW)

    found = [
        lines.holds_another_hour(began_us + offset)
        for offset in (-1, 0, HOUR_US - 1, HOUR_US, 7 * HOUR_US)
    ]

    assert not empty
    assert found == [True, False, False, True, True]


# -------------------------------------------------------------------------------------- words


def test_the_lines_room_knows_no_source() -> None:
    words = re.compile(
        r"postgres|pgoutput|replica.identity|walsender|xlog|lsn|\boids?\b|publication|slot|\bxid",
        re.IGNORECASE,
    )
    room = Path(engine.lines.__file__).parent

    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(room.iterdir())
        if path.suffix in {".py", ".pyx", ".pxd", ".pyi"}
        for line in path.read_text().splitlines()
        if words.search(line)
    ]

    assert found == []
