"""The native row codec against golden vectors, against its twin, and against broken input."""

import ctypes
import gc
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.lines.writer import CODEC_VERSION, Lines
from engine.model.errors import DecodeError, UnrepresentableRow
from engine.sources.postgres.types import (
    KIND_ARRAY,
    KIND_BOOLEAN,
    KIND_BYTEA,
    KIND_DATE,
    KIND_FLOAT,
    KIND_INTEGER,
    KIND_INTERVAL,
    KIND_JSON,
    KIND_MONEY,
    KIND_NUMERIC,
    KIND_TEXT,
    KIND_TIME,
    KIND_TIMESTAMP,
    KIND_TIMESTAMPTZ,
    KIND_TIMETZ,
    builtin_kind,
)
from row_codec import RowCodec
from rowcodec_golden import (
    ENVELOPES,
    GENERATION,
    VECTORS,
    bind_all,
    captured,
    copy_rows,
    feed,
    frames,
    golden_lines,
    lines_of,
    relation_ids,
    row_frames,
)
from rowcodec_twin import HASHED, Absent, TwinCodec, Value, copy_bytes, frame_bytes, tuple_bytes

RELATION = 16_400
COMMIT_LSN = 0x134EBCB0
CHANGE_LSN = 0x134EBC00
TIME_US = 1_795_341_114_065_123
XID = 1743
MODES = [
    (envelope, numeric, json_mode)
    for envelope in ENVELOPES
    for numeric in ("string", "number")
    for json_mode in ("embed", "string")
]
PAGE = 4096


def bind(codec: Any, columns: Any, **changed: Any) -> None:
    arguments = {
        "database": "shop",
        "schema": "public",
        "table": "orders",
        "version": 1,
        "columns": columns,
        "key": ["id"],
        "envelope": "standard",
        "numeric": "string",
        "json": "embed",
    }
    codec.bind(RELATION, **(arguments | changed))


def new_codec(columns: Any = (("id", KIND_INTEGER, True, True),), **changed: Any) -> RowCodec:
    codec = RowCodec(GENERATION)
    bind(codec, columns, **changed)
    codec.begin(COMMIT_LSN, TIME_US, XID)
    return codec


def insert(*values: Value, change_lsn: int = CHANGE_LSN) -> bytes:
    return frame_bytes(change_lsn, "I", RELATION, tuple_bytes("N", values))


def line_for(kind: int, value: bytes, **changed: Any) -> dict[str, Any]:
    codec = new_codec([("v", kind, False, True)], **changed)
    codec.encode(insert(value))
    line: dict[str, Any] = json.loads(take(codec).lines)
    return line


def value_for(kind: int, value: bytes, **changed: Any) -> Any:
    return line_for(kind, value, **changed)["after"]["v"]


def take(codec: RowCodec) -> Lines:
    rows = codec.take(RELATION)
    assert rows is not None
    return rows


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def return_free_memory() -> None:
    """What is free must be free for the kernel: glibc keeps up to 64 MiB of it otherwise."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def read_lines(rows: Any) -> list[Any]:
    """Parse what was taken; every line must be whole."""
    if rows is None:
        return []
    assert rows.lines.endswith(b"\n")
    lines = rows.lines.decode().removesuffix("\n").split("\n")
    assert len(lines) == rows.row_count
    return [json.loads(line) for line in lines]


# ------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("envelope", ENVELOPES)
def test_golden_frames_give_the_golden_lines(envelope: str) -> None:
    expected = (VECTORS / f"{envelope}.ndjson").read_bytes()

    lines = golden_lines(envelope)

    # Other lines for the same frames need another CODEC_VERSION.
    assert CODEC_VERSION == 1
    assert lines == expected


@pytest.mark.parametrize(("envelope", "numeric", "json_mode"), MODES)
def test_twin_makes_the_same_of_the_golden_frames(
    envelope: str, numeric: str, json_mode: str
) -> None:
    codec, twin = RowCodec(GENERATION), TwinCodec(GENERATION)
    bind_all(codec, envelope, numeric, json_mode)
    bind_all(twin, envelope, numeric, json_mode)

    lines = lines_of(codec, envelope)

    assert lines == lines_of(twin, envelope)
    assert all(json.loads(line) for line in lines.decode().removesuffix("\n").split("\n"))


def test_rows_of_one_wal_record_are_counted() -> None:
    sharing = Counter(frame[1:9] for frame in row_frames())
    streamed = [json.loads(line)["metadata"] for line in golden_lines("standard").splitlines()]
    streamed = [one for one in streamed if one["xid"] is not None]

    positions = [one["position"] for one in streamed]
    changes = {(one["table"], one["position"]) for one in streamed}

    assert max(sharing.values()) == 4
    assert positions == sorted(positions)
    assert len(changes) == len(streamed)


# ------------------------------------------------------------------------------------ positions


def test_position_counts_the_changes_that_share_a_change_lsn() -> None:
    codec = new_codec()

    for _ in range(3):
        codec.encode(insert(b"1"))
    codec.encode(insert(b"1", change_lsn=CHANGE_LSN + 8))
    rows = take(codec)

    assert rows.first_position == f"0001.{COMMIT_LSN:016X}.{CHANGE_LSN:016X}.000000"
    assert rows.last_position == f"0001.{COMMIT_LSN:016X}.{CHANGE_LSN + 8:016X}.000000"
    positions = [line["metadata"]["position"] for line in read_lines(rows)]
    assert [position[-6:] for position in positions] == ["000000", "000001", "000002", "000000"]


def test_position_counter_outlives_bind_unbind_and_take() -> None:
    codec = new_codec()
    codec.encode(insert(b"1"))
    codec.take(RELATION)

    codec.unbind(RELATION)
    unbound = codec.encode(insert(b"1"))
    bind(codec, [("id", KIND_INTEGER, True, True)])
    codec.encode(insert(b"2"))

    assert unbound == -1
    assert take(codec).first_position.endswith(".000001")


def test_a_skipped_change_is_counted_without_a_line() -> None:
    codec = RowCodec(GENERATION)
    codec.begin(COMMIT_LSN, TIME_US, XID)

    codec.skip(RELATION, CHANGE_LSN)
    codec.skip(RELATION, CHANGE_LSN)
    bind(codec, [("id", KIND_INTEGER, True, True)])
    codec.encode(insert(b"1"))

    rows = take(codec)
    assert rows.row_count == 1
    assert rows.first_position.endswith(".000002")
    with pytest.raises(DecodeError, match="earlier change"):
        codec.skip(RELATION, CHANGE_LSN - 1)


def test_next_position_foretells_without_counting() -> None:
    codec = new_codec()
    codec.encode(insert(b"1"))

    foretold = [codec.next_position(RELATION, CHANGE_LSN) for _ in range(2)]
    elsewhere = codec.next_position(RELATION + 1, CHANGE_LSN)
    codec.encode(insert(b"1"))

    assert foretold == [take(codec).last_position] * 2
    assert elsewhere.endswith(f"{CHANGE_LSN:016X}.000000")


def test_a_transaction_sent_again_gets_the_positions_it_had() -> None:
    codec = new_codec()
    codec.encode(insert(b"1"))
    codec.encode(insert(b"2"))
    before = take(codec)

    codec.begin(COMMIT_LSN, TIME_US, XID)
    codec.encode(insert(b"1"))
    codec.encode(insert(b"2"))

    assert take(codec).lines == before.lines


def test_a_change_lsn_that_goes_back_is_refused() -> None:
    codec = new_codec()
    codec.encode(insert(b"1", change_lsn=8))

    with pytest.raises(DecodeError, match="earlier change"):
        codec.encode(insert(b"1", change_lsn=7))
    with pytest.raises(DecodeError, match="earlier change"):
        codec.truncate(RELATION, 7)
    codec.begin(COMMIT_LSN + 1, TIME_US, XID)
    codec.encode(insert(b"1", change_lsn=7))

    assert take(codec).row_count == 2


def test_relations_count_apart() -> None:
    codec = new_codec()
    other = RELATION + 64
    codec.bind(
        other,
        database="shop",
        schema="public",
        table="other",
        version=1,
        columns=[],
        key=[],
        envelope="standard",
        numeric="string",
        json="embed",
    )

    codec.encode(insert(b"1"))
    codec.truncate(other, CHANGE_LSN)

    other_rows = codec.take(other)
    assert other_rows is not None
    assert take(codec).last_position == other_rows.last_position


def test_a_change_outside_a_transaction_is_refused() -> None:
    codec = RowCodec(GENERATION)
    bind(codec, [("id", KIND_INTEGER, True, True)])

    with pytest.raises(DecodeError, match="outside a transaction"):
        codec.encode(insert(b"1"))
    with pytest.raises(DecodeError, match="outside a transaction"):
        codec.truncate(RELATION, CHANGE_LSN)
    with pytest.raises(DecodeError, match="outside a transaction"):
        codec.encode_copy(RELATION, b"1\n", 1, 0)


def test_a_copy_row_number_past_the_position_is_refused() -> None:
    codec = new_codec()

    with pytest.raises(DecodeError, match=r"2\*\*24"):
        codec.encode_copy(RELATION, b"1\n", 1, 1 << 24)


@pytest.mark.parametrize("generation", [-1, 10_000])
def test_a_generation_that_would_not_sort_is_refused(generation: int) -> None:
    with pytest.raises(ValueError, match="generation"):
        RowCodec(generation)


@pytest.mark.parametrize(
    ("time_us", "text"),
    [
        (-(2**63), "290309-12-21T19:59:05.224192Z BC"),
        (-62_167_219_200_000_001, "0002-12-31T23:59:59.999999Z BC"),
        (-62_135_596_800_000_001, "0001-12-31T23:59:59.999999Z BC"),
        (-62_135_596_800_000_000, "0001-01-01T00:00:00.000000Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (253_402_300_800_000_000, "10000-01-01T00:00:00.000000Z"),
        (2**63 - 1, "294247-01-10T04:00:54.775807Z"),
    ],
)
def test_a_commit_time_outside_the_calendar_is_written_as_it_is(time_us: int, text: str) -> None:
    codec = new_codec(envelope="flat")

    codec.begin(COMMIT_LSN, time_us, XID)
    codec.encode(insert(b"1"))

    assert json.loads(take(codec).lines)["_commit_ts"] == text


# ------------------------------------------------------------------------------ buffers, binding


def test_take_gives_what_was_buffered_once() -> None:
    codec = new_codec()

    sizes = [codec.encode(insert(b"1")), codec.truncate(RELATION, CHANGE_LSN)]
    buffered = codec.buffered
    rows = take(codec)

    assert buffered == sizes[1] == len(rows.lines)
    assert sizes[0] < sizes[1]
    assert rows.row_count == 2
    assert rows.operations == (1, 0, 0, 0, 1)
    assert codec.buffered == 0
    assert codec.take(RELATION) is None
    assert codec.take(1) is None


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_frames_may_be_any_contiguous_bytes(wrap: Callable[[bytes], Any]) -> None:
    codec = new_codec()

    codec.encode(wrap(insert(b"42")))

    assert read_lines(take(codec))[0]["after"] == {"id": 42}


def test_a_frame_that_is_not_contiguous_is_refused() -> None:
    codec = new_codec()

    with pytest.raises(BufferError):
        codec.encode(memoryview(bytes(2) * 100)[::2])


def test_binding_again_needs_the_lines_to_be_taken() -> None:
    codec = new_codec()
    codec.encode(insert(b"1"))

    with pytest.raises(ValueError, match="not taken"):
        bind(codec, [("other", KIND_TEXT, True, True)])
    codec.encode(insert(b"2"))
    lines = read_lines(take(codec))
    bind(codec, [("other", KIND_TEXT, True, True)])
    codec.encode(insert(b"3"))

    assert [line["after"] for line in lines] == [{"id": 1}, {"id": 2}]
    assert read_lines(take(codec))[0]["after"] == {"other": "3"}


def test_unbinding_leaves_lines_to_be_taken() -> None:
    codec = new_codec()
    codec.encode(insert(b"1"))

    codec.unbind(RELATION)
    codec.unbind(RELATION + 1)

    assert take(codec).row_count == 1
    assert codec.encode(insert(b"1")) == -1
    assert codec.truncate(RELATION, 1) == -1
    assert codec.encode_copy(RELATION, b"1\n", 1, 0) == -1


@pytest.mark.parametrize(
    "changed",
    [
        {"envelope": "other"},
        {"columns": [("_version", KIND_TEXT, True, True)], "envelope": "flat"},
    ],
)
def test_a_binding_that_cannot_be_is_refused_and_the_earlier_one_stays(changed: Any) -> None:
    codec = new_codec()

    with pytest.raises(ValueError, match=r"unknown|flat envelope"):
        bind(codec, **({"columns": []} | changed))
    codec.encode(insert(b"1"))

    assert read_lines(take(codec))[0]["after"] == {"id": 1}


def test_columns_not_included_show_nowhere() -> None:
    codec = new_codec([("id", KIND_INTEGER, True, True), ("secret", KIND_JSON, True, False)])

    codec.encode(insert(b"1", b"not json"))
    codec.encode(
        frame_bytes(
            CHANGE_LSN,
            "U",
            RELATION,
            tuple_bytes("K", [b"1", b"s3cret"]),
            tuple_bytes("N", [b"2", Absent.UNCHANGED]),
        )
    )
    codec.encode(frame_bytes(CHANGE_LSN, "D", RELATION, tuple_bytes("O", [b"1", b"null"])))

    assert b"secret" not in take(codec).lines


def test_many_relations_are_found_again() -> None:
    codec = RowCodec(GENERATION)
    codec.begin(COMMIT_LSN, TIME_US, XID)
    ids = [*range(16_384, 19_384, 3), 0, 2**32 - 1]
    for relation_id in ids:
        codec.bind(
            relation_id,
            database="d",
            schema="s",
            table=f"t{relation_id}",
            version=1,
            columns=[],
            key=[],
            envelope="standard",
            numeric="string",
            json="embed",
        )

    for relation_id in ids:
        codec.truncate(relation_id, 1)

    tables = [read_lines(codec.take(relation_id))[0]["metadata"]["table"] for relation_id in ids]
    assert tables == [f"t{relation_id}" for relation_id in ids]


# --------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("kind", [KIND_TEXT, KIND_JSON, KIND_BYTEA, KIND_ARRAY | KIND_TEXT])
def test_a_huge_row_passes_and_its_memory_is_given_back(kind: int) -> None:
    codec = new_codec([("v", kind, False, True)])
    megabytes = 32 << 20
    value = {
        KIND_TEXT: b"\x01text\\" * (megabytes // 6),
        KIND_JSON: b"[" + b'"\\n", ' * (megabytes // 6) + b"1]",
        KIND_BYTEA: b"\\x" + b"ab" * (megabytes // 2),
        KIND_ARRAY | KIND_TEXT: b"{" + b'"\\\\",' * (megabytes // 6) + b"x}",
    }[kind]
    frame = insert(value)
    del value
    return_free_memory()
    before = resident_bytes()

    codec.encode(frame)
    rows = take(codec)
    size = len(rows.lines)
    del rows
    return_free_memory()

    assert size > megabytes // 2
    assert resident_bytes() - before < 8 << 20


def test_a_huge_value_is_exact() -> None:
    text = 'ä"\\\n\x01' * 1_000_000

    assert value_for(KIND_TEXT, text.encode()) == text


def test_memory_kept_for_reuse_does_not_grow_with_the_tables() -> None:
    codec = RowCodec(GENERATION)
    codec.begin(COMMIT_LSN, TIME_US, XID)
    value = b"x" * 60_000
    before = resident_bytes()

    for relation_id in range(1000):
        codec.bind(
            relation_id,
            database="d",
            schema="s",
            table="t",
            version=1,
            columns=[("v", KIND_TEXT, False, True)],
            key=[],
            envelope="standard",
            numeric="string",
            json="embed",
        )
        codec.encode(frame_bytes(1, "I", relation_id, tuple_bytes("N", [value])))
        codec.take(relation_id)

    assert resident_bytes() - before < 24 << 20


# --------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (KIND_TEXT, b"", ""),
        (KIND_TEXT, bytes(range(128)), bytes(range(128)).decode()),
        (KIND_TEXT, "\u2028 \u00e9 \U0001f600 \ud7ff \ue000".encode(), "\u2028 é 😀 \ud7ff \ue000"),
        (KIND_BOOLEAN, b"t", True),
        (KIND_INTEGER, b"-9223372036854775808", -(2**63)),
        (KIND_FLOAT, b"-0", 0),
        (KIND_FLOAT, b"1e-05", 1e-5),
        (KIND_FLOAT, b"Infinity", "Infinity"),
        (KIND_NUMERIC, b"12.50", "12.50"),
        (KIND_NUMERIC, b"NaN", "NaN"),
        (KIND_TIMESTAMPTZ, b"2026-11-22 09:51:54+00", "2026-11-22T09:51:54Z"),
        (KIND_TIMESTAMPTZ, b"12026-01-01 00:00:00+00", "12026-01-01T00:00:00Z"),
        (KIND_TIMESTAMPTZ, b"0044-03-15 12:00:00+00 BC", "0044-03-15T12:00:00+00 BC"),
        (KIND_TIMESTAMP, b"0044-03-15 12:00:00.5 BC", "0044-03-15T12:00:00.5 BC"),
        (KIND_TIMESTAMP, b"-infinity", "-infinity"),
        (KIND_DATE, b"0044-03-15 BC", "0044-03-15 BC"),
        (KIND_TIME, b"24:00:00", "24:00:00"),
        (KIND_TIMETZ, b"09:51:54+05:30", "09:51:54+05:30"),
        (KIND_INTERVAL, b"P1DT2H", "P1DT2H"),
        (KIND_MONEY, b"-$1,234.50", "-$1,234.50"),
        (KIND_BYTEA, rb"\x", ""),
        (KIND_BYTEA, rb"\xff", "/w=="),
        (KIND_BYTEA, rb"\xfffE", "//4="),
        (KIND_BYTEA, rb"\xFFFEFD", "//79"),
        (KIND_JSON, b'\n{ "a" :\t[ 1 , {} , [ ] ] }\r\n', {"a": [1, {}, []]}),
        (KIND_JSON, b'"a \\u0000 b"', "a \0 b"),
        (KIND_JSON, b"[" * 500 + b"]" * 500, json.loads("[" * 500 + "]" * 500)),
        (KIND_ARRAY | KIND_TEXT, b"{}", []),
        (KIND_ARRAY | KIND_TEXT, b'{a,"b\\"c","d\\\\",NULL,null,"NULL",""}', None),
        (KIND_ARRAY | KIND_INTEGER, b"{{1,2},{NULL,4}}", [[1, 2], [None, 4]]),
        (KIND_ARRAY | KIND_INTEGER, b"[0:1]={1,2}", "[0:1]={1,2}"),
        (KIND_ARRAY | KIND_BYTEA, b'{"\\\\xff",NULL}', ["/w==", None]),
        (KIND_ARRAY | KIND_JSON, b'{"{\\"a\\": [1, null]}",NULL}', [{"a": [1, None]}, None]),
        (KIND_ARRAY | KIND_JSON, b'{1,"null"}', '{1,"null"}'),
    ],
)
def test_values_are_written_by_their_kind(kind: int, value: bytes, expected: Any) -> None:
    if expected is None:
        expected = ["a", 'b"c', "d\\", None, None, "NULL", ""]

    written = value_for(kind, value)

    assert written == expected
    assert type(written) is type(expected)


def test_numeric_as_a_number_keeps_the_literal() -> None:
    codec = new_codec([("v", KIND_NUMERIC, False, True)], numeric="number")

    codec.encode(insert(b"12345678901234567890.120"))
    codec.encode(insert(b"NaN"))

    lines = take(codec).lines
    assert b'"v":12345678901234567890.120}' in lines
    assert b'"v":"NaN"}' in lines


def test_json_as_a_string_is_untouched() -> None:
    text = b'{ "a" :\n1 }'

    assert value_for(KIND_JSON, text, json="string") == text.decode()
    assert value_for(KIND_JSON, b"null", json="string") == "null"


def test_json_null_is_told_from_sql_null() -> None:
    columns = [("a", KIND_JSON, True, True), ("b", KIND_JSON, True, True)]
    codec = new_codec(columns)

    codec.encode(insert(b" null\n", Absent.NULL))
    codec.encode(frame_bytes(CHANGE_LSN, "D", RELATION, tuple_bytes("O", [Absent.NULL, b"null"])))
    old = tuple_bytes("O", [b"null", b"null"])
    codec.encode(frame_bytes(CHANGE_LSN, "U", RELATION, old, tuple_bytes("N", [b"1", b"null"])))

    lists = [line["metadata"]["json_null"] for line in read_lines(take(codec))]
    assert lists == [["a"], ["b"], ["b"]]


def test_unchanged_values_are_absent_and_listed() -> None:
    codec = new_codec([("a", KIND_TEXT, True, True), ("b", KIND_TEXT, False, True)])
    new = tuple_bytes("N", [b"1", Absent.UNCHANGED])

    codec.encode(
        frame_bytes(CHANGE_LSN, "U", RELATION, tuple_bytes("O", [b"0", Absent.UNCHANGED]), new)
    )

    line = read_lines(take(codec))[0]
    assert line["before"] == {"a": "0"}
    assert line["after"] == {"a": "1"}
    assert line["metadata"]["unchanged"] == ["b"]


def test_an_insert_without_a_large_value_is_no_row_that_a_record_can_hold() -> None:
    codec = new_codec(
        [
            ("a", KIND_TEXT, True, True),
            ("x", KIND_TEXT, False, False),
            ("b", KIND_TEXT, False, True),
        ]
    )

    # Nobody misses what is excluded.
    codec.encode(insert(b"1", Absent.UNCHANGED, b"2"))
    with pytest.raises(UnrepresentableRow, match="column 'b': the row came into"):
        codec.encode(insert(b"2", b"x", Absent.UNCHANGED))

    assert len(read_lines(take(codec))) == 1


def test_snapshot_lines_have_no_transaction() -> None:
    codec = new_codec([("id", KIND_INTEGER, True, True), ("v", KIND_TEXT, False, True)])
    codec.begin(COMMIT_LSN, TIME_US, 0)

    codec.encode_copy(RELATION, b"1\ta\\tb\\\\\\n\xc3\xa9\n", 3, 5)
    codec.encode_copy(RELATION, b"2\t\\N\n", 3, 6)

    rows = take(codec)
    first, second = read_lines(rows)
    assert first["after"] == {"id": 1, "v": "a\tb\\\né"}
    assert second["after"] == {"id": 2, "v": None}
    assert first["metadata"]["op"] == "r"
    assert first["metadata"]["xid"] is None
    assert first["metadata"]["lsn"] == first["metadata"]["commit_lsn"] == "0/134EBCB0"
    assert rows.operations == (0, 0, 0, 2, 0)
    assert rows.last_position == f"0001.{COMMIT_LSN:016X}.{3:016X}.000006"


# ------------------------------------------------------------------------------- malformed input


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (KIND_TEXT, b"\xff"),
        (KIND_TEXT, b"12345678\xc3"),
        (KIND_TEXT, b"\xed\xa0\x80"),
        (KIND_TEXT, b"\xc0\x80"),
        (KIND_TEXT, b"\xe0\x80\x80"),
        (KIND_TEXT, b"\xf4\x90\x80\x80"),
        (KIND_TEXT, b"\xf0\x80\x80\x80"),
        (KIND_TEXT, b"ab\x80"),
        (KIND_BOOLEAN, b"true"),
        (KIND_BOOLEAN, b""),
        *[(KIND_INTEGER, one) for one in (b"", b"-", b"+1", b"01", b"1.0", b"1 ", b"0x1", b"NaN")],
        *[(KIND_FLOAT, one) for one in (b"", b"nan", b".5", b"5.", b"1e", b"1e+", b"--1", b"1,")],
        (KIND_TIMESTAMP, b"2026-11-22 09:51:54+00"),
        (KIND_TIMESTAMP, b"11/22/2026 09:51:54"),
        (KIND_TIMESTAMP, b"2026-11-22 09:51:54."),
        (KIND_TIMESTAMP, b"2026-11-22 09:51:54.1234567"),
        (KIND_TIMESTAMP, b"2026-11-22T09:51:54"),
        (KIND_TIMESTAMPTZ, b"2026-11-22 09:51:54+01"),
        (KIND_TIMESTAMPTZ, b"2026-11-22 09:51:54+00:30"),
        (KIND_TIMESTAMPTZ, b"2026-11-22 09:51:54"),
        (KIND_TIMESTAMPTZ, b"2026-11-22 09:51:54+00 AD"),
        (KIND_BYTEA, b"abc"),
        (KIND_BYTEA, b""),
        (KIND_BYTEA, rb"\xabc"),
        (KIND_BYTEA, rb"\xzz"),
        (KIND_BYTEA, rb"\000"),
        *[
            (KIND_JSON, one)
            for one in (
                b"",
                b" ",
                b"{",
                b"[1,]",
                b'{"a"}',
                b'{"a":1,}',
                b"{1:2}",
                b"[1}",
                b'"\n"',
                b'"\\x"',
                b'"\\u12"',
                b"01",
                b"nul",
                b"1 2",
                b"[]]",
                b'"a',
                b"NaN",
                b"{,}",
                b'["\xff"]',
                b"[1 2]",
            )
        ],
        *[
            (KIND_ARRAY | KIND_TEXT, one)
            for one in (
                b"",
                b"a",
                b"{",
                b"}",
                b"{a",
                b"{a,}",
                b"{,a}",
                b"{a}b",
                b'{"a}',
                b'{"a"b}',
                b'{a"b"}',
                b"{a\\b}",
                b'{"a\\',
                b"{{a}",
                b"{a{b}}",
                b"{}}",
                b"{{{{{{{a}}}}}}}",
                b"{a}}",
                b"{\xff}",
            )
        ],
        (KIND_ARRAY | KIND_INTEGER, b"{1,x}"),
        (KIND_ARRAY | KIND_JSON, b"{[}"),
        (KIND_ARRAY | KIND_JSON, b'{"null",x}'),
    ],
)
def test_a_malformed_value_names_its_column_and_leaves_the_buffer(kind: int, value: bytes) -> None:
    codec = new_codec([("id", KIND_INTEGER, True, True), ("the value", kind, False, True)])
    codec.encode(insert(b"1", Absent.NULL))
    before = codec.buffered

    with pytest.raises(DecodeError, match=r"^public\.orders, column 'the value': ") as caught:
        codec.encode(insert(b"2", value))
    after = codec.buffered
    codec.encode(insert(b"3", Absent.NULL))

    assert after == before
    assert len(value) < 4 or repr(value)[2:-1] not in str(caught.value)
    rows = take(codec)
    assert [line["after"]["id"] for line in read_lines(rows)] == [1, 3]
    assert rows.last_position.endswith(".000001")


def test_text_that_is_not_utf8_comes_with_a_hint() -> None:
    codec = new_codec([("v", KIND_TEXT, False, True)])

    with pytest.raises(DecodeError) as caught:
        codec.encode(insert(b"\xe9t\xe9"))

    assert "SQL_ASCII" in caught.value.hint


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "XLogData"),
        (b"k" + bytes(60), "XLogData"),
        (frame_bytes(1, "I", RELATION)[:-1], "XLogData"),
        (frame_bytes(1, "T", RELATION), "Insert, Update or Delete"),
        (frame_bytes(1, "I", RELATION), "ends inside"),
        (frame_bytes(1, "I", RELATION, tuple_bytes("O", [b"1"])), "kind of tuple"),
        (frame_bytes(1, "I", RELATION, tuple_bytes("X", [b"1"])), "kind of tuple"),
        (frame_bytes(1, "D", RELATION, tuple_bytes("N", [b"1"])), "kind of tuple"),
        (frame_bytes(1, "U", RELATION, tuple_bytes("K", [b"1"])), "ends inside"),
        (frame_bytes(1, "U", RELATION, *[tuple_bytes("K", [b"1"])] * 2), "kind of tuple"),
        (frame_bytes(1, "I", RELATION, tuple_bytes("N", [])), "number of columns"),
        (frame_bytes(1, "I", RELATION, tuple_bytes("N", [b"1", b"2"])), "number of columns"),
        (insert(b"1") + b"\0", "after the end"),
        (insert(b"1").replace(b"t\0\0\0\x01", b"b\0\0\0\x01"), "binary"),
        (insert(b"1").replace(b"t\0\0\0\x01", b"x\0\0\0\x01"), "kind of column value"),
        (insert(b"1").replace(b"t\0\0\0\x01", b"t\xff\xff\xff\xff"), "ends inside"),
    ],
)
def test_a_malformed_message_is_named(frame: bytes, message: str) -> None:
    codec = new_codec()

    with pytest.raises(DecodeError, match=message):
        codec.encode(frame)

    assert codec.buffered == 0


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"1\t2",
        b"1\n",
        b"1\t2\t3\n",
        b"1\t2\n\n",
        b"1\n2\n",
        b"1\t\\\n",
        b"1\t\\x41\n",
        b"1\t\\Na\n",
        b"1\ta\\",
        b"1\ta\\N\n",
        b"x\t2\n",
    ],
)
def test_a_malformed_copy_row_is_refused(row: bytes) -> None:
    codec = new_codec([("id", KIND_INTEGER, True, True), ("v", KIND_TEXT, False, True)])

    with pytest.raises(DecodeError):
        codec.encode_copy(RELATION, row, 1, 0)

    assert codec.buffered == 0


def golden_codecs(envelope: str) -> tuple[RowCodec, TwinCodec]:
    codec, twin = RowCodec(GENERATION), TwinCodec(GENERATION)
    for one in (codec, twin):
        bind_all(one, envelope)
        one.begin(COMMIT_LSN, TIME_US, XID)
    return codec, twin


def outcome(encode: Callable[..., int], *arguments: Any) -> int | None:
    """What the call returned; None where it raised DecodeError."""
    try:
        return encode(*arguments)
    except DecodeError:
        return None


def test_every_truncation_of_the_golden_frames_is_refused() -> None:
    codec, _ = golden_codecs("standard")
    for frame in row_frames():
        assert feed(codec, frame)

        for size in range(len(frame)):
            with pytest.raises(DecodeError):
                codec.encode(frame[:size])

        assert codec.buffered == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("envelope", ENVELOPES)
def test_a_corrupted_byte_gives_an_error_or_whole_lines(envelope: str) -> None:
    # Long runs of the same letter say nothing new: every byte of short frames, some of long ones.
    codec, twin = golden_codecs(envelope)
    chosen = random.Random(envelope)
    for frame in row_frames():
        step = 1 if len(frame) < 1500 else 17
        for at in range(0, len(frame), step):
            flip = chosen.choice((1, 4, 0x20, 0x40, 0x80, 0xFF))
            broken = frame[:at] + bytes([frame[at] ^ flip]) + frame[at + 1 :]
            relation_id = int.from_bytes(broken[26:30], "big")

            result = outcome(codec.encode, broken)

            expected = outcome(twin.encode, broken)
            ours, theirs = codec.take(relation_id), twin.take(relation_id)
            assert result == expected
            assert (ours.lines if ours else None) == (theirs.lines if theirs else None)
            read_lines(ours)


@pytest.mark.parametrize("letter", [b"\t", b"\n", b"\\", b'"', b"\xff", b"N", b"{"])
def test_a_corrupted_copy_row_gives_an_error_or_whole_lines(letter: bytes) -> None:
    codec, twin = golden_codecs("standard")
    for relation_id in relation_ids():
        for row in copy_rows(relation_id):
            for at in range(len(row)):
                broken = row[:at] + letter + row[at + 1 :]

                result = outcome(codec.encode_copy, relation_id, broken, 1, 2)

                assert result == outcome(twin.encode_copy, relation_id, broken, 1, 2)
                ours, theirs = codec.take(relation_id), twin.take(relation_id)
                assert (ours.lines if ours else None) == (theirs.lines if theirs else None)
                read_lines(ours)


# ---------------------------------------------------------------------------- against the twin

ALPHABET = st.one_of(
    st.sampled_from('"\\,{}[]:;NULnul \t\n\r\b\f\x01\x1f\x7f0123456789-+.eE/é漢😀\u2028'),
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
)
TEXT = st.text(ALPHABET, max_size=40)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
JSON_TEXT = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent),
    JSON_VALUES,
    st.booleans(),
    st.sampled_from([None, 0, "\t", "  "]),
)
DIGITS = st.integers(0, 10**20).map(str)
NUMBERS = st.one_of(
    st.sampled_from(["NaN", "Infinity", "-Infinity", "0", "-0", "1e+20", "1e-05", "0.00"]),
    st.integers().map(str),
    st.floats().map(repr),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
)
STAMPS = st.builds(
    lambda stamp, year, fraction, zone, era: f"{year}{stamp:-%m-%d %H:%M:%S}{fraction}{zone}{era}",
    st.datetimes(),
    st.integers(1, 300_000).map(lambda year: f"{year:04d}"),
    st.sampled_from(["", ".5", ".123456", ".1234567", "."]),
    st.sampled_from(["", "+00", "+00", "+01"]),
    st.sampled_from(["", "", " BC", " AD"]),
) | st.sampled_from(["infinity", "-infinity"])
BY_KIND: dict[int, st.SearchStrategy[str]] = {
    KIND_BOOLEAN: st.sampled_from("tf"),
    KIND_INTEGER: st.integers(-(2**70), 2**70).map(str),
    KIND_FLOAT: NUMBERS,
    KIND_NUMERIC: NUMBERS,
    KIND_TIMESTAMP: STAMPS,
    KIND_TIMESTAMPTZ: STAMPS,
    KIND_BYTEA: st.binary(max_size=20).map(lambda value: "\\x" + value.hex()),
    KIND_JSON: JSON_TEXT,
    HASHED: TEXT | st.text(ALPHABET, min_size=50, max_size=70),
}
TEXT_KINDS = (KIND_TEXT, KIND_DATE, KIND_TIME, KIND_TIMETZ, KIND_INTERVAL, KIND_MONEY)
SCALAR_KINDS = (*(kind for kind in BY_KIND if kind != HASHED), *TEXT_KINDS)


def quoted_element(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def array_text(element: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Arrays as array_out prints them, and some that it would print otherwise."""
    item = element.map(quoted_element) | element | st.just("NULL")
    nested = st.recursive(
        st.lists(item, max_size=4).map(lambda items: "{" + ",".join(items) + "}"),
        lambda inner: st.lists(inner, min_size=1, max_size=3).map(
            lambda items: "{" + ",".join(items) + "}"
        ),
        max_leaves=4,
    )
    return nested | nested.map(lambda text: "[0:2]=" + text)


def values_of(kind: int) -> st.SearchStrategy[Value]:
    text = BY_KIND.get(kind & ~KIND_ARRAY, TEXT)
    if kind & KIND_ARRAY:
        text = array_text(text)
    proper = text.map(str.encode)
    broken = st.one_of(
        TEXT.map(str.encode),
        st.binary(max_size=12),
        st.builds(lambda value, at: value[:at], proper, st.integers(0, 20)),
        st.builds(lambda value, tail: value + tail, proper, st.binary(max_size=2)),
    )
    absent = st.sampled_from([Absent.NULL, Absent.UNCHANGED])
    # Mostly values that the kind has: with many columns one broken value spoils the whole row.
    return st.integers(0, 19).flatmap(
        lambda pick: broken if pick == 0 else absent if pick < 4 else proper
    )


KINDS = st.sampled_from((*SCALAR_KINDS, HASHED)) | st.sampled_from(SCALAR_KINDS).map(
    lambda kind: kind | KIND_ARRAY
)


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[str, int, bool, bool]]:
    names = draw(st.lists(TEXT.map(lambda name: "c" + name), max_size=5, unique=True))
    return [
        (name, draw(KINDS), draw(st.booleans()), draw(st.sampled_from([True, True, True, False])))
        for name in names
    ]


@st.composite
def changes(draw: st.DrawFn, columns: list[tuple[str, int, bool, bool]]) -> tuple[str, bytes, int]:
    """An operation's name, its frame or row, and its change LSN."""

    def row() -> list[Value]:
        return [draw(values_of(kind)) for _, kind, _, _ in columns]

    change_lsn = draw(st.sampled_from([0xABCDEF, 0xABCDEF, 0xABCDEF, 2**64 - 1]))
    operation = draw(st.sampled_from("IUDTR"))
    old = tuple_bytes(draw(st.sampled_from("KO")), row())
    new = tuple_bytes("N", row())
    match operation:
        case "I":
            return ("encode", frame_bytes(change_lsn, "I", RELATION, new), 0)
        case "U":
            tuples = [old, new] if draw(st.booleans()) else [new]
            return ("encode", frame_bytes(change_lsn, "U", RELATION, *tuples), 0)
        case "D":
            return ("encode", frame_bytes(change_lsn, "D", RELATION, old), 0)
        case "T":
            return ("truncate", b"", change_lsn)
        case _:
            included = [value for value, column in zip(row(), columns, strict=True) if column[3]]
            return ("copy", copy_bytes(included), draw(st.integers(0, 2**24 - 1)))


def apply(codec: Any, change: tuple[str, bytes, int]) -> int | None:
    operation, data, number = change
    match operation:
        case "encode":
            return outcome(codec.encode, data)
        case "truncate":
            return outcome(codec.truncate, RELATION, number)
        case _:
            return outcome(codec.encode_copy, RELATION, data, 7, number)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.timeout(300)
@given(
    data=st.data(),
    columns=tables(),
    mode=st.sampled_from(MODES),
    table=TEXT,
    transaction=st.tuples(
        st.integers(0, 2**64 - 1),
        st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999),
        st.sampled_from([0, 1, 2**32 - 1]),
    ),
)
def test_codec_and_twin_agree(
    data: st.DataObject,
    columns: list[tuple[str, int, bool, bool]],
    mode: tuple[str, str, str],
    table: str,
    transaction: tuple[int, int, int],
) -> None:
    envelope, numeric, json_mode = mode
    codec, twin = RowCodec(12), TwinCodec(12)
    for one in (codec, twin):
        bind(
            one,
            columns,
            table=table,
            key=[column[0] for column in columns[:2]],
            envelope=envelope,
            numeric=numeric,
            json=json_mode,
        )
        one.begin(*transaction)
    operations = data.draw(st.lists(changes(columns), min_size=1, max_size=4))

    results = [apply(codec, operation) for operation in operations]

    assert results == [apply(twin, operation) for operation in operations]
    ours, theirs = codec.take(RELATION), twin.take(RELATION)
    read_lines(ours)
    if ours is None or theirs is None:
        assert not ours
        assert not theirs
        return
    assert ours.lines == theirs.lines
    assert ours.row_count == theirs.row_count
    assert ours.first_position == theirs.first_position
    assert ours.last_position == theirs.last_position
    assert ours.operations == theirs.operations


@settings(max_examples=300, deadline=None)
@given(kind=KINDS, data=st.data(), mode=st.sampled_from(MODES))
def test_single_values_agree_with_the_twin(
    kind: int, data: st.DataObject, mode: tuple[str, str, str]
) -> None:
    envelope, numeric, json_mode = mode
    value = data.draw(values_of(kind))
    codec, twin = RowCodec(1), TwinCodec(1)
    for one in (codec, twin):
        bind(one, [("v", kind, True, True)], envelope=envelope, numeric=numeric, json=json_mode)
        one.begin(1, 1, 1)

    result = apply(codec, ("encode", insert(value), 0))

    assert result == apply(twin, ("encode", insert(value), 0))
    ours, theirs = codec.take(RELATION), twin.take(RELATION)
    assert (ours.lines if ours else None) == (theirs.lines if theirs else None)


# ---------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("type_oid", "kind"),
    [
        (16, KIND_BOOLEAN),
        (20, KIND_INTEGER),
        (26, KIND_INTEGER),
        (701, KIND_FLOAT),
        (1700, KIND_NUMERIC),
        (1184, KIND_TIMESTAMPTZ),
        (1114, KIND_TIMESTAMP),
        (17, KIND_BYTEA),
        (3802, KIND_JSON),
        (1007, KIND_ARRAY | KIND_INTEGER),
        (3807, KIND_ARRAY | KIND_JSON),
        (1009, KIND_ARRAY | KIND_TEXT),
        (25, KIND_TEXT),
        (28, KIND_TEXT),
        (22, KIND_TEXT),
        (1020, KIND_TEXT),
        (99_999, KIND_TEXT),
    ],
)
def test_kinds_of_built_in_types(type_oid: int, kind: int) -> None:
    assert builtin_kind(type_oid) == kind


def test_golden_frames_hold_every_kind() -> None:
    kinds = {
        builtin_kind(type_oid)
        for relation in captured()["relations"].values()
        for _, type_oid, _ in relation["columns"]
    }

    assert kinds >= set(SCALAR_KINDS)
    assert len(frames()) > len(row_frames())


def test_a_large_copy_row_of_escapes_has_room_for_its_line() -> None:
    """A vertical tab is two bytes in COPY's text and six in JSON."""
    codec = RowCodec(1)
    codec.bind(
        1,
        database="d",
        schema="s",
        table="t",
        version=1,
        columns=[("a", KIND_TEXT, True, True)],
        key=["a"],
        envelope="standard",
        numeric="string",
        json="embed",
    )
    codec.begin(1, 1, 0)

    codec.encode_copy(1, b"\\v" * 1_000_000 + b"\n", 1, 1)

    rows = codec.take(1)
    assert rows is not None
    assert json.loads(rows.lines)["after"] == {"a": "\v" * 1_000_000}
