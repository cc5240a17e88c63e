"""Records and rows as pyarrow's batches, Parquet and CSV: every kind of value."""

import base64
import csv
import io
import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.errors import ReadRefused
from engine.model.position import Position
from engine.model.record import Envelope
from engine.model.schema import Column, Relation, TableVersion
from engine.reader.formats import csv_text
from engine.reader.formats.arrow import Batches
from engine.reader.formats.columns import ColumnKind, columns_of
from engine.reader.formats.parquet_file import ParquetFile
from engine.reader.formats.records import change, row
from engine.reader.formats.values import converter
from engine.reader.table.lines import between, last_of, position_of, whole_lines
from small_bucket import ODD, ORDERS, make_bucket
from table_reader import asked

PLACE = "0001.0000000000001100.0000000000001080.000000"
EPOCH_DAYS = date(1970, 1, 1)


def kind(name: str, *digits: int) -> ColumnKind:
    return ColumnKind("c", name, (digits[0], digits[1]) if digits else None)


def batch_of(column: ColumnKind, *values: str) -> Any:
    """The values as a column, made in both ways."""
    lines = [b'{"c":%b}' % value.encode() for value in values]
    by_value = Batches([column], is_changes=False).of_rows(map(row, lines))
    quickly = Batches([column], is_changes=False).of_row_lines(b"\n".join(lines) + b"\n")
    assert repr(quickly.to_pylist()) == repr(by_value.to_pylist())
    assert quickly.schema == by_value.schema
    return quickly


@pytest.mark.parametrize(
    ("column", "type_", "values", "wanted"),
    [
        (kind("boolean"), pa.bool_(), ["true", "false", "null"], [True, False, None]),
        (kind("integer"), pa.int64(), ["-9223372036854775808", "7"], [-(2**63), 7]),
        (kind("float"), pa.float64(), ["1.5", "1e300", '"Infinity"'], [1.5, 1e300, float("inf")]),
        (kind("numeric", 12, 2), pa.decimal128(12, 2), ['"-1.50"', "2"], ["-1.50", "2.00"]),
        (kind("numeric"), pa.string(), ['"1.500"', '"NaN"', "1.500"], ["1.500", "NaN", "1.500"]),
        (
            kind("timestamptz"),
            pa.timestamp("us", tz="UTC"),
            ['"2026-11-22T09:51:54.056779Z"', '"1969-12-31T23:59:59.9Z"', '"0001-01-01T00:00:00Z"'],
            [
                datetime(2026, 11, 22, 9, 51, 54, 56779, UTC),
                datetime(1969, 12, 31, 23, 59, 59, 900000, UTC),
                datetime(1, 1, 1, tzinfo=UTC),
            ],
        ),
        (
            kind("timestamp"),
            pa.timestamp("us"),
            ['"2024-02-29T12:00:00"', '"9999-12-31T23:59:59.999999"'],
            [
                datetime.fromisoformat("2024-02-29T12:00:00"),
                datetime.fromisoformat("9999-12-31T23:59:59.999999"),
            ],
        ),
        (kind("date"), pa.date32(), ['"2024-02-29"', "null"], [date(2024, 2, 29), None]),
        (kind("time"), pa.time64("us"), ['"23:59:59.5"'], [time(23, 59, 59, 500000)]),
        (kind("timetz"), pa.string(), ['"10:00:00+02"'], ["10:00:00+02"]),
        (kind("interval"), pa.string(), ['"P1DT2H"'], ["P1DT2H"]),
        (kind("money"), pa.string(), ['"$1.50"'], ["$1.50"]),
        (kind("bytea"), pa.binary(), ['"aGVsbG8="', '""'], [b"hello", b""]),
        (
            kind("json"),
            pa.string(),
            ['{"a": [1, 1e400]}', '"text"', "12345678901234567890.5"],
            ['{"a": [1, 1e400]}', "text", "12345678901234567890.5"],
        ),
        (kind("text"), pa.string(), [r'"d\u00e9j\"à\n"', '""'], ['déj"à\n', ""]),
        (kind("new-kind"), pa.string(), ['"x"'], ["x"]),
        (kind("integer[]"), pa.list_(pa.int64()), ["[1,null,3]", "[]"], [[1, None, 3], []]),
        (kind("text[]"), pa.list_(pa.string()), ['["a",null,"null"]'], [["a", None, "null"]]),
        (
            kind("date[]"),
            pa.list_(pa.date32()),
            ['["2024-02-29",null]', "null"],
            [[date(2024, 2, 29), None], None],
        ),
        (kind("bytea[]"), pa.list_(pa.binary()), ['["aGVsbG8="]'], [[b"hello"]]),
        (kind("numeric[]", 5, 1), pa.list_(pa.decimal128(5, 1)), ['["1.5"]'], [[Decimal("1.5")]]),
    ],
)
def test_every_kind_has_one_type_and_keeps_its_values(
    column: ColumnKind, type_: Any, values: list[str], wanted: list[object]
) -> None:
    batch = batch_of(column, *values)

    found = batch.column(0).to_pylist()
    if column.name == "c" and column.kind == "numeric" and column.digits:
        found = [str(value) for value in found]
    assert batch.schema.field("c").type == type_
    assert found == wanted


def test_nan_stays_nan() -> None:
    [found] = batch_of(kind("float"), '"NaN"').column(0).to_pylist()

    assert found != found  # noqa: PLR0124 - only NaN is not itself


@pytest.mark.parametrize(
    ("name", "text", "days"),
    [
        ("date", "0001-12-31 BC", -719_163),
        ("date", "0044-03-15 BC", -735_160),
        ("date", "4713-01-01 BC", -2_440_550),
        ("date", "10000-01-01", 2_932_897),
        ("date", "5874897-12-31", 2_145_042_905),
    ],
)
def test_times_beyond_pythons_range_are_exact(name: str, text: str, days: int) -> None:
    # The days are the database's own: SELECT text::date - '1970-01-01'::date.
    assert converter(kind(name))(json.dumps(text).encode()) == days
    for written in (
        f"{text.removesuffix(' BC')}T00:00:01Z",
        f"{text.removesuffix(' BC')}T00:00:01",
    ):
        if not text.endswith("BC"):
            moment = converter(kind("timestamptz"))(json.dumps(written).encode())
            assert moment == days * 86_400_000_000 + 1_000_000


def test_a_time_before_christ_keeps_its_own_form() -> None:
    convert = converter(kind("timestamptz"))

    assert convert(b'"0044-03-15T10:00:00+00 BC"') == (-735_160 * 86_400 + 36_000) * 1_000_000


@given(st.dates())
def test_days_are_those_of_the_calendar(day: date) -> None:
    assert converter(kind("date"))(b'"%b"' % day.isoformat().encode()) == (day - EPOCH_DAYS).days


@given(st.datetimes())
def test_moments_are_those_of_the_calendar(moment: datetime) -> None:
    text = moment.isoformat().encode()

    found = batch_of(kind("timestamp"), f'"{text.decode()}"').column(0).to_pylist()

    assert found == [moment]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (kind("timestamptz"), '"infinity"'),
        (kind("timestamp"), '"-infinity"'),
        (kind("date"), '"infinity"'),
        (kind("time"), '"24:00:00"'),
        (kind("numeric", 12, 2), '"NaN"'),
        (kind("numeric", 12, 2), '"Infinity"'),
        (kind("numeric", 4, 2), '"1.234"'),
        (kind("numeric", 4, 2), '"123.4"'),
        (kind("integer[]"), "[[1],[2]]"),
        (kind("integer[]"), '"[0:1]={1,2}"'),
        (kind("boolean"), '"maybe"'),
        (kind("integer"), '"many"'),
        (kind("bytea"), '"!"'),
    ],
)
def test_a_value_that_the_type_has_no_room_for_is_refused_and_can_be_read_as_text(
    column: ColumnKind, value: str
) -> None:
    lines = b'{"c":null}\n{"c":%b}\n' % value.encode()
    with pytest.raises(ReadRefused) as caught:
        Batches([column], is_changes=False).of_row_lines(lines)

    assert caught.value.code == "value-unrepresentable"
    assert "'c'" in str(caught.value)
    assert "--text c" in caught.value.hint
    assert value.strip('"[]') not in str(caught.value)
    text = json.loads(value) if value.startswith('"') else value
    assert batch_of(kind("text"), value).column(0).to_pylist() == [text]


TEXT = st.characters(codec="utf-8")
ROWS = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "f": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.just("NaN"),
        "n": st.none() | st.decimals(-9999, 9999, places=2).map(str),
        "t": st.none() | st.text(TEXT),
        "d": st.none() | st.dates().map(date.isoformat),
        "m": st.none() | st.datetimes().map(datetime.isoformat),
        "b": st.none() | st.booleans(),
        "j": st.none() | st.recursive(st.integers(), st.lists, max_leaves=3),
        'odd "': st.none() | st.lists(st.none() | st.integers(0, 9), max_size=3),
        "y": st.none() | st.binary().map(lambda raw: base64.b64encode(raw).decode()),
    }
)
ROW_KINDS = {
    "i": "integer",
    "f": "float",
    "n": "numeric",
    "t": "text",
    "d": "date",
    "m": "timestamp",
    "b": "boolean",
    "j": "json",
    'odd "': "integer[]",
    "y": "bytea",
}


@given(st.lists(ROWS, min_size=1, max_size=3), st.permutations(range(10)))
def test_both_ways_to_make_a_batch_give_the_same(
    rows: list[dict[str, Any]], order: list[int]
) -> None:
    columns = [
        ColumnKind(name, kind, (6, 2) if kind == "numeric" else None)
        for name, kind in ROW_KINDS.items()
    ]
    # The order of a line's members is not the columns'.
    lines = [json.dumps(dict([*r.items()][n] for n in order)).encode() for r in rows]

    by_value = Batches(columns, is_changes=False).of_rows(map(row, lines))
    quickly = Batches(columns, is_changes=False).of_row_lines(b"\n".join(lines) + b"\n")

    assert repr(quickly.to_pylist()) == repr(by_value.to_pylist())
    assert quickly.schema == by_value.schema


def test_what_pyarrows_reader_refuses_is_not_tried_for_ever() -> None:
    batches = Batches([kind("float")], is_changes=False)

    made = [batches.of_row_lines(b'{"c":"NaN"}\n') for _ in range(9)]

    assert [batch.num_rows for batch in made] == [1] * 9


# --- columns


def version(number: int, *columns: Column) -> TableVersion:
    return TableVersion(number, Position(""), "r", Relation(ORDERS, "1", columns, ("id",)))


def plain(name: str, type_: str, type_kind: str, **facts: Any) -> Column:
    return Column(name, type_, type_kind, key=False, **facts)


def test_columns_are_the_newest_versions_first_and_text_where_they_disagree() -> None:
    one = version(1, plain("a", "integer", "integer"), plain("gone", "date", "date"))
    two = version(2, plain("b", "numeric(10,2)", "numeric"), plain("a", "text", "text"))

    found = columns_of([one, two], two)

    assert found == (
        ColumnKind("b", "numeric", (10, 2)),
        ColumnKind("a", "text"),
        ColumnKind("gone", "date"),
    )
    assert columns_of([], two) == found[:2]


@pytest.mark.parametrize(
    ("type_", "digits"),
    [
        ("numeric(10,2)", (10, 2)),
        ("numeric(3,5)", (5, 5)),
        ("numeric", None),
        ("numeric(39,2)", None),
        ("numeric(5,-2)", None),
    ],
)
def test_a_decimal_has_its_digits_where_they_are_known(
    type_: str, digits: tuple[int, int] | None
) -> None:
    [found] = columns_of([], version(1, plain("n", type_, "numeric")))

    assert found.digits == digits


@pytest.mark.parametrize(
    ("types", "digits"),
    [
        (("numeric(10,2)", "numeric(12,4)"), (12, 4)),
        (("numeric(12,2)", "numeric(8,4)"), (14, 4)),
        (("numeric(30,2)", "numeric(30,20)"), None),
        (("numeric(10,2)", "numeric"), None),
    ],
)
def test_a_decimal_has_room_for_the_digits_of_all_versions(
    types: tuple[str, str], digits: tuple[int, int] | None
) -> None:
    versions = [version(n, plain("n", type_, "numeric")) for n, type_ in enumerate(types, 1)]

    for newest in versions:
        [found] = columns_of(versions, newest)
        assert (found.kind, found.digits) == ("numeric" if digits else "text", digits)


def test_hashes_are_text_and_so_is_what_somebody_wants_as_text() -> None:
    hashed = version(1, plain("a", "integer", "integer", hashed=True), plain("b", "date", "date"))

    assert [column.kind for column in columns_of([], hashed, ["b"])] == ["text", "text"]
    with pytest.raises(ReadRefused, match="no column 'x'"):
        columns_of([], hashed, ["x"])


# --- changes


STANDARD = (
    b'{"before":{"id":1},"after":{"id":2,"j":null,"n":null},"metadata":{"op":"u","connector":"p",'
    b'"db":"d","schema":"s","table":"t","key":["id"],"version":3,"source_ts_ms":1795341114065,'
    b'"position":"%b","lsn":"0/1","commit_lsn":"0/2","xid":1,"unchanged":["b"],"json_null":["j"]}}'
) % PLACE.encode()
DEBEZIUM = (
    b'{"before":{"id":1},"after":{"id":2,"j":null,"n":null},"source":{"connector":"p","name":"d",'
    b'"ts_ms":1795341114065,"db":"d","schema":"s","table":"t","position":"%b","unchanged":["b"],'
    b'"json_null":["j"]},"op":"u","ts_ms":1795341114065,"transaction":null}'
) % PLACE.encode()
FLAT = (
    b'{"id":2,"j":null,"n":null,"_op":"u","_position":"%b","_commit_ts":"2026-11-22T09:51:54.065Z",'
    b'"_version":3,"_unchanged":["b"],"_json_null":["j"]}'
) % PLACE.encode()
COLUMNS = (
    ColumnKind("id", "integer"),
    ColumnKind("j", "json"),
    ColumnKind("n", "text"),
    ColumnKind("b", "text"),
)


@pytest.mark.parametrize(
    ("envelope", "line"), [("standard", STANDARD), ("debezium", DEBEZIUM), ("flat", FLAT)]
)
def test_a_change_is_the_same_in_every_envelope(envelope: Envelope, line: bytes) -> None:
    taken = change(line, envelope, 3, "_")

    [found] = Batches(COLUMNS, is_changes=True).of_changes([taken]).to_pylist()

    assert found == {
        "op": "u",
        "position": PLACE,
        "version": 3,
        "source_ts": datetime(2026, 11, 22, 9, 51, 54, 65000, UTC),
        "unchanged": ["b"],
        "json_null": ["j"],
        "before": {"id": 1, "j": None, "n": None, "b": None} if envelope != "flat" else None,
        "after": {"id": 2, "j": "null", "n": None, "b": None},
    }


@pytest.mark.parametrize("line", [b"{}", b"x", b'{"before":null}', STANDARD[:-1], b"[]"])
@pytest.mark.parametrize("envelope", ["standard", "debezium", "flat"])
def test_a_line_that_is_no_record_is_refused(envelope: Envelope, line: bytes) -> None:
    with pytest.raises(ReadRefused, match="no record"):
        change(line, envelope, 1, "_")


def test_a_change_in_csv_has_what_it_was_and_what_it_is() -> None:
    taken = change(STANDARD, "standard", 3, "")
    names = [column.name for column in COLUMNS]
    text = csv_text.header(names, is_changes=True) + "".join(csv_text.change_lines([taken], names))

    [found] = csv.DictReader(io.StringIO(text, newline=""))

    assert found == {
        "_op": "u",
        "_position": PLACE,
        "_version": "3",
        "_source_ts_ms": "1795341114065",
        "_unchanged": '["b"]',
        "_before": '{"id":1}',
        "id": "2",
        "j": "null",
        "n": "",
        "b": "",
    }


@given(st.lists(st.none() | st.text(), min_size=2, max_size=4))
def test_any_text_comes_back_from_csv_and_null_is_not_empty(texts: list[str | None]) -> None:
    names = [str(number) for number in range(len(texts))]
    line = json.dumps(dict(zip(names, texts, strict=True)), ensure_ascii=False)
    try:
        encoded = line.encode()
    except UnicodeEncodeError:
        return  # Half a surrogate pair is no text of a database.

    [written] = csv_text.row_lines([row(encoded)], names)
    [fields] = csv.reader(io.StringIO(written, newline=""))

    assert fields == [text or "" for text in texts]
    assert written.count('""') >= sum(text == "" for text in texts)


def test_a_parquet_file_has_all_batches_and_their_schema() -> None:
    written: list[bytes] = []
    batches = Batches([kind("integer")], is_changes=False)
    file = ParquetFile(written.append, batches.schema)
    for begin in range(3):
        file.add(batches.of_rows([row(b'{"c":%d}' % (begin * 10 + n)) for n in range(10)]))
    file.finish()

    table = pyarrow.parquet.read_table(io.BytesIO(b"".join(written)))

    assert table.schema == batches.schema
    assert table.column("c").to_pylist() == [*range(30)]


def test_a_parquet_file_without_rows_has_its_schema() -> None:
    written: list[bytes] = []
    schema = Batches(COLUMNS, is_changes=True).schema
    ParquetFile(written.append, schema).finish()

    assert pyarrow.parquet.read_table(io.BytesIO(b"".join(written))).schema == schema


# --- lines


@pytest.mark.parametrize("line", [STANDARD, DEBEZIUM, FLAT])
def test_a_position_is_the_records_own_whatever_its_values_say(line: bytes) -> None:
    other = b'{"position":"0009.0000000000001100.0000000000001080.000000"}'
    hostile = line.replace(b'"id":2', b'"id":%b,"x":"%b"' % (other, other.replace(b'"', b'\\"')))

    assert position_of(hostile + b"\n") == PLACE
    assert position_of(hostile.replace(b'"b"', b'"' + b"long" * 1000 + b'"')) == PLACE


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 6000),
)
def test_lines_between_two_places_are_found(
    steps: list[int], low: int, high: int, padding: int
) -> None:
    numbers = [sum(steps[: n + 1]) for n in range(len(steps))]
    lines = [
        b'{"x":"%b","position":"0001.%016X.%016X.%06X"}\n' % (b"p" * padding, number, 0, n)
        for n, number in enumerate(numbers)
    ]
    places = [f"0001.{place:016X}" for place in (low, high)]

    found = between(memoryview(b"".join(lines)), places[0], places[1])

    wanted = [line for line, number in zip(lines, numbers, strict=True) if low <= number < high]
    assert bytes(found) == b"".join(wanted)
    assert not wanted or last_of(found) == position_of(wanted[-1])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 100))
def test_pieces_are_whole_lines_and_one_at_least(sizes: list[int], size: int) -> None:
    lines = [b"x" * one + b"\n" for one in sizes]

    found = whole_lines(memoryview(b"".join(lines)), size)

    ends = [sum(map(len, lines[: n + 1])) for n in range(len(lines))]
    assert found in ends
    assert found <= max(size, ends[0])


async def test_what_is_read_of_a_bucket_is_what_its_records_say() -> None:
    bucket = await make_bucket()
    answer = await asked(bucket.store, table=str(ODD))

    assert [record["after"]["id"] for record in answer.records] == [7]
