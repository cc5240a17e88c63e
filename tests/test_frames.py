"""The compiled frame reader against the decoder: on what a server sent, and on every corruption."""

import json

import pytest

from engine.model.errors import DecodeError, UnrepresentableRow
from engine.model.record import Envelope
from engine.sources.postgres.frames import (
    BUDGET,
    CONTROL,
    EMPTY,
    END,
    FULL,
    HOUR,
    UNBOUND,
    FrameCounter,
    FrameReader,
    ListedFrames,
)
from engine.sources.postgres.pgoutput import (
    POSTGRES_EPOCH_US,
    Begin,
    Commit,
    Delete,
    Insert,
    Keepalive,
    Message,
    Update,
    XLogData,
    decode_frame,
    decode_message,
)
from engine.sources.postgres.types import (
    KIND_ARRAY,
    KIND_BOOLEAN,
    KIND_BYTEA,
    KIND_JSON,
    KIND_NUMERIC,
    KIND_TEXT,
)
from golden_frames import FRAMES
from row_codec import RowCodec

PLENTY = 1 << 20
BATCH = 64 * 1024
TABLE = int.from_bytes(FRAMES["insert"][26:30], "big")
HOUR_US = 3_600_000_000
TIME_MAX = 2**63 - 1


def decoded(frame: bytes) -> Message | Keepalive:
    match decode_frame(frame):
        case XLogData(message=message):
            return decode_message(message)
        case Keepalive() as keepalive:
            return keepalive


def bind(
    codec: RowCodec, kind: int = KIND_TEXT, *names: str, envelope: Envelope = "standard"
) -> None:
    columns = names or ("id", "note", "mood", "amount", "big")
    codec.bind(
        TABLE,
        database="shop",
        schema="gold",
        table="orders",
        version=1,
        columns=[(name, kind, True, True) for name in columns],
        key=columns[:1],
        envelope=envelope,
        numeric="string",
        json="embed",
    )


def bound_codec() -> RowCodec:
    codec = RowCodec(1)
    bind(codec)
    return codec


def row(*values: bytes) -> bytes:
    """An Insert of texts."""
    return FRAMES["insert"][:30] + b"N" + columns_of(*values)


def columns_of(*values: bytes) -> bytes:
    columns = b"".join(b"t" + len(value).to_bytes(4, "big") + value for value in values)
    return len(values).to_bytes(2, "big") + columns


def lines_of(frames: ListedFrames, kind: int) -> list[bytes]:
    """The lines of rows with one column of `kind` and one of text."""
    codec = RowCodec(1)
    codec.bind(
        TABLE,
        database="shop",
        schema="gold",
        table="orders",
        version=1,
        columns=[("value", kind, True, True), ("note", KIND_TEXT, False, True)],
        key=("value",),
        envelope="standard",
        numeric="string",
        json="embed",
    )
    reader = FrameReader(codec.tuples, BATCH)
    lines: list[bytes] = []
    while (reason := reader.read(frames, PLENTY)) in (FULL, BUDGET):
        lines += [rows.lines for _, rows in codec.take_all()]
    assert reason == EMPTY
    lines += [rows.lines for _, rows in codec.take_all()]
    return b"".join(lines).splitlines(keepends=True)


def begin_at(commit_us: int) -> bytes:
    frame = FRAMES["begin"]
    return frame[:34] + (commit_us - POSTGRES_EPOCH_US).to_bytes(8, "big", signed=True) + frame[42:]


def corruptions(frame: bytes) -> list[bytes]:
    cut = [frame[:size] for size in range(1, len(frame))]
    changed = []
    for place in range(len(frame)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            corrupt = bytearray(frame)
            corrupt[place] ^= mask
            changed.append(bytes(corrupt))
    return [*cut, frame + b"\0", *changed]


def test_a_transaction_is_read_in_one_go() -> None:
    codec = bound_codec()
    reader = FrameReader(codec.tuples, PLENTY)
    frames = [FRAMES[name] for name in ("begin", "insert", "insert", "commit")]

    reason = reader.read(ListedFrames(frames), PLENTY)

    commit = decoded(FRAMES["commit"])
    assert isinstance(commit, Commit)
    assert reason == EMPTY
    assert reader.drained_bytes == sum(map(len, frames))
    assert reader.boundary == (commit.end_lsn, commit.commit_us, False)
    assert reader.received_lsn == commit.end_lsn
    [(table, rows)] = codec.take_all()
    assert (table, rows.row_count) == (TABLE, 2)
    assert (rows.first_commit_us, rows.last_commit_us) == (commit.commit_us, commit.commit_us)
    assert f"0001.{commit.commit_lsn:016X}." in rows.first_position


def test_reading_stops_at_its_budget_and_at_the_end() -> None:
    frames = ListedFrames([FRAMES["begin"], FRAMES["commit"]], is_ended=True)
    reader = FrameReader(bound_codec().tuples, PLENTY)

    reasons = [reader.read(frames, 1), reader.read(frames, 1), reader.read(frames, 1)]

    assert reasons == [BUDGET, BUDGET, END]


def test_a_full_table_is_named_once_its_row_is_in() -> None:
    codec = bound_codec()
    reader = FrameReader(codec.tuples, 1)

    reason = reader.read(ListedFrames([FRAMES["begin"], FRAMES["insert"]]), PLENTY)

    assert (reason, reader.relation_id) == (FULL, TABLE)
    rows = codec.take(TABLE)
    assert rows is not None
    assert rows.row_count == 1


def test_another_hour_waits_until_the_earlier_rows_are_taken() -> None:
    codec = bound_codec()
    reader = FrameReader(codec.tuples, PLENTY)
    next_hour = begin_at(1_795_386_758_309_873 + HOUR_US)
    frames = ListedFrames([FRAMES["begin"], FRAMES["insert"], next_hour, FRAMES["insert"]])

    assert reader.read(frames, PLENTY) == HOUR
    assert [rows.row_count for _, rows in codec.take_all()] == [1]
    assert reader.read(frames, PLENTY) == EMPTY

    [(_, rows)] = codec.take_all()
    assert rows.first_commit_us == 1_795_386_758_309_873 + HOUR_US


@pytest.mark.parametrize("name", ["relation", "type", "origin", "message", "truncate"])
def test_other_messages_are_handed_out_whole(name: str) -> None:
    reader = FrameReader(bound_codec().tuples, PLENTY)

    assert reader.read(ListedFrames([FRAMES[name]]), PLENTY) == CONTROL
    assert reader.frame == FRAMES[name]


def test_a_row_of_an_unbound_relation_waits_for_the_binding() -> None:
    codec = RowCodec(1)
    reader = FrameReader(codec.tuples, PLENTY)
    frames = ListedFrames([FRAMES["begin"], FRAMES["insert"], FRAMES["insert"]])

    reason = reader.read(frames, PLENTY)
    place = (reader.relation_id, reader.change_lsn)
    bind(codec)
    again = reader.read(frames, PLENTY)

    assert (reason, again) == (UNBOUND, EMPTY)
    assert place == (TABLE, int.from_bytes(FRAMES["insert"][1:9], "big"))
    [(_, rows)] = codec.take_all()
    assert rows.row_count == 2


def test_a_row_that_waits_is_passed_over_where_nobody_wants_it() -> None:
    codec = RowCodec(1)
    reader = FrameReader(codec.tuples, PLENTY)
    frames = ListedFrames([FRAMES["begin"], FRAMES["insert"], FRAMES["insert"]])

    reader.read(frames, PLENTY)
    reader.pass_over()
    bind(codec)
    reason = reader.read(frames, PLENTY)

    assert reason == EMPTY
    [(_, rows)] = codec.take_all()
    assert rows.row_count == 1


LARGE = 3_000_000


@pytest.mark.parametrize(
    ("kind", "small", "value"),
    [
        (KIND_TEXT, b"7", b"x" * LARGE),
        (KIND_TEXT, b"7", b"\x01" * LARGE),
        (KIND_TEXT, b"7", 'ü"\\\n€'.encode() * (LARGE // 8)),
        (KIND_TEXT, b"7", b"\x01" * 700 + b"x" * LARGE + b'"' * 1000),
        (KIND_BYTEA, rb"\x01", rb"\x" + b"01fe" * (LARGE // 4)),
        (KIND_JSON, b"7", b'{"long": "' + b"y" * LARGE + b'" , "b":[1, 2 ] }'),
        (KIND_JSON, b"7", b'[1.5 , "a"' + b',\n\t"\xc3\xbc"' * (LARGE // 8) + b"]"),
        (KIND_NUMERIC, b"7", b"1" + b"0" * LARGE),
        (KIND_ARRAY | KIND_TEXT, b"{7}", b"{a" + b",b" * (LARGE // 2) + b"}"),
        (KIND_ARRAY | KIND_BOOLEAN, b"{t}", b"{f" + b",f" * (LARGE // 2) + b"}"),
        (KIND_ARRAY | KIND_JSON, b"{7}", b'{null,"{\\"a\\": 1}"' + b",1" * (LARGE // 2) + b"}"),
    ],
)
@pytest.mark.parametrize("others", [0, 3])
def test_a_large_row_reads_the_same_when_its_frame_is_consumed(
    kind: int, small: bytes, value: bytes, others: int
) -> None:
    frames = [
        FRAMES["begin"],
        *[row(small, b"note")] * others,
        row(value, b"note"),
        row(small, b"x" * LARGE),
        row(small, b"end"),
    ]

    kept = lines_of(ListedFrames(frames), kind)
    consumed = lines_of(ListedFrames(frames, is_consumable=True), kind)

    assert consumed == kept
    assert len(consumed) == others + 3
    assert [json.loads(line)["after"]["note"][:4] for line in consumed[others:]] == [
        "note",
        "xxxx",
        "end",
    ]


def test_a_row_that_cannot_be_is_named_with_its_key_and_without_what_it_holds() -> None:
    codec = RowCodec(1)
    bind(codec, KIND_TEXT, "id", "note")
    reader = FrameReader(codec.tuples, PLENTY)
    for first, large in ((b"7", b"\xff secret"), (b"k" * 300, b"secret \xff" + b"x" * LARGE)):
        bad = row(first, large)
        frames = ListedFrames([FRAMES["begin"], bad], is_consumable=True)

        with pytest.raises(UnrepresentableRow) as caught:
            reader.read(frames, PLENTY)

        error = caught.value
        key = "7" if first == b"7" else "k" * 256 + "…"
        assert json.loads(error.key) == {"id": key}
        assert error.reason == "column 'note': not valid UTF-8"
        assert str(error) == "gold.orders, column 'note': not valid UTF-8"
        assert error.table_number == TABLE
        assert error.change == int.from_bytes(bad[1:9], "big")


@pytest.mark.parametrize(
    ("name", "key"), [("insert", {"id": "8"}), ("update", {"id": "9"}), ("delete", {"id": "7"})]
)
def test_the_key_is_the_one_that_the_row_has_afterwards(name: str, key: dict[str, str]) -> None:
    codec = RowCodec(1)
    bind(codec, KIND_TEXT, "id", "note")
    tuples = {
        "insert": b"N" + columns_of(b"8", b"\xff"),
        "update": b"K" + columns_of(b"7", b"a") + b"N" + columns_of(b"9", b"\xff"),
        "delete": b"O" + columns_of(b"7", b"\xff"),
    }
    head = FRAMES["insert"][:25] + name[0].upper().encode() + FRAMES["insert"][26:30]
    frames = ListedFrames([FRAMES["begin"], head + tuples[name]])

    with pytest.raises(UnrepresentableRow) as caught:
        FrameReader(codec.tuples, PLENTY).read(frames, PLENTY)

    assert json.loads(caught.value.key) == key


def test_a_row_beyond_the_limit_is_refused_as_text_and_as_a_line() -> None:
    codec = RowCodec(1, 4000)
    bind(codec, KIND_TEXT, "id", "note")
    reader = FrameReader(codec.tuples, PLENTY)
    fits, text, line = row(b"1", b"x" * 3000), row(b"2", b"x" * 4000), row(b"3", b"\x01" * 900)

    reader.read(ListedFrames([FRAMES["begin"], fits]), PLENTY)
    for frame in (text, line):
        with pytest.raises(UnrepresentableRow, match="max_row_bytes"):
            reader.read(ListedFrames([frame]), PLENTY)

    [(_, rows)] = codec.take_all()
    assert rows.row_count == 1


def test_a_large_row_that_fails_leaves_the_rows_before_it() -> None:
    codec = RowCodec(1)
    bind(codec, KIND_TEXT, "a", "b")
    reader = FrameReader(codec.tuples, PLENTY)
    bad = row(b"x" * LARGE, b"\xff")
    frames = ListedFrames(
        [FRAMES["begin"], row(b"1", b"2"), bad, row(b"3", b"4")], is_consumable=True
    )

    with pytest.raises(DecodeError, match="column 'b': not valid UTF-8"):
        reader.read(frames, PLENTY)
    reader.read(frames, PLENTY)

    [(_, rows)] = codec.take_all()
    assert [json.loads(line)["after"]["a"] for line in rows.lines.splitlines()] == ["1", "3"]


@pytest.mark.parametrize("time_us", [-(2**63), -(10**18), 10**18, TIME_MAX])
def test_a_transaction_of_any_time_is_read(time_us: int) -> None:
    codec = bound_codec()
    reader = FrameReader(codec.tuples, PLENTY)
    begin = begin_at(time_us + POSTGRES_EPOCH_US)

    assert reader.read(ListedFrames([begin, FRAMES["insert"]]), PLENTY) == EMPTY

    [(_, rows)] = codec.take_all()
    read_us = min(time_us + POSTGRES_EPOCH_US, TIME_MAX)
    assert (rows.first_commit_us, rows.last_commit_us) == (read_us, read_us)
    assert json.loads(rows.lines)["metadata"]["source_ts_ms"] == read_us // 1000


def test_an_hour_ends_at_the_epoch_too() -> None:
    reader = FrameReader(bound_codec().tuples, PLENTY)
    frames = ListedFrames([begin_at(-1), FRAMES["insert"], begin_at(0)])

    assert reader.read(frames, PLENTY) == HOUR


@pytest.mark.parametrize("name", ["begin", "commit", "keepalive", "flagged_keepalive"])
def test_every_corruption_reads_as_the_decoder_reads_it(name: str) -> None:
    outcomes = {judged(frame) for frame in corruptions(FRAMES[name])}

    assert {"agreed", "handed out"} <= outcomes


def judged(frame: bytes) -> str:
    """What reading one frame came to; fails where reader and decoder differ."""
    codec = bound_codec()
    reader = FrameReader(codec.tuples, PLENTY)
    try:
        expected: object = decoded(frame)
    except DecodeError:
        expected = None
    try:
        reason = reader.read(ListedFrames([frame]), PLENTY)
    except DecodeError:
        # The decoder lets tuples pass that the codec can tell are malformed.
        assert expected is None or isinstance(
            expected, Begin | Commit | Keepalive | Insert | Update | Delete
        )
        return "refused"
    if reason == EMPTY:
        agrees(reader, codec, expected)
        return "agreed"
    assert reason in {CONTROL, UNBOUND}
    assert reader.frame == frame
    assert not isinstance(expected, Begin | Commit | Keepalive)
    return "handed out"


def agrees(reader: FrameReader, codec: RowCodec, expected: object) -> None:
    match expected:
        case Begin(commit_lsn=commit_lsn):
            assert reader.boundary is None
            assert codec.next_position(TABLE, 0).startswith(f"0001.{commit_lsn:016X}.")
        case Commit(end_lsn=end_lsn, commit_us=commit_us):
            assert reader.boundary == (end_lsn, min(commit_us, TIME_MAX), False)
        case Keepalive(end_lsn=end_lsn, sent_us=sent_us, is_reply_wanted=is_reply_wanted):
            assert reader.boundary == (end_lsn, min(sent_us, TIME_MAX), True)
            assert reader.is_reply_wanted == is_reply_wanted
        case _:
            pytest.fail(f"the decoder reads {expected}")


def test_a_row_after_one_that_failed_is_handed_over_with_all() -> None:
    codec = bound_codec()
    reader = FrameReader(codec.tuples, PLENTY)
    row, flawed = FRAMES["insert"], FRAMES["insert"][:-1]
    # So many that its buffer is its own, and stays its own when the lines are taken.
    reader.read(ListedFrames([FRAMES["begin"], *[row] * 500]), PLENTY)
    codec.take_all()
    with pytest.raises(DecodeError):
        codec.encode(flawed)
    assert codec.take_all() == []

    reader.read(ListedFrames([row]), PLENTY)

    assert [rows.row_count for _, rows in codec.take_all()] == [1]


class TestFrameCounter:
    def test_it_counts_what_the_frame_reader_reads_without_knowing_a_table(self) -> None:
        row = FRAMES["insert"]
        rows = [row[:25] + kind + row[26:] for kind in (b"I", b"U", b"D")]
        control = [FRAMES[name] for name in ("relation", "truncate", "commit")]
        frames = [FRAMES["begin"], *rows, *control]
        counter = FrameCounter()

        reason = counter.read(ListedFrames(frames), PLENTY)

        commit = decoded(FRAMES["commit"])
        assert isinstance(commit, Commit)
        assert reason == EMPTY
        assert counter.row_count == 3
        assert counter.drained_bytes == sum(map(len, frames))
        assert counter.received_lsn == commit.end_lsn

    def test_it_stops_at_its_budget_and_at_the_end(self) -> None:
        frames = ListedFrames([FRAMES["insert"], FRAMES["insert"]], is_ended=True)
        counter = FrameCounter()

        reasons = [counter.read(frames, 1), counter.read(frames, 1), counter.read(frames, 1)]

        assert reasons == [BUDGET, BUDGET, END]
        assert counter.row_count == 2
        assert counter.drained_bytes == 0

    @pytest.mark.parametrize("name", ["keepalive", "flagged_keepalive"])
    def test_a_keepalive_moves_it_and_may_want_an_answer(self, name: str) -> None:
        counter = FrameCounter()

        counter.read(ListedFrames([FRAMES[name]]), PLENTY)

        keepalive = decoded(FRAMES[name])
        assert isinstance(keepalive, Keepalive)
        assert counter.received_lsn == keepalive.end_lsn
        assert counter.is_reply_wanted == keepalive.is_reply_wanted

    def test_what_it_has_received_never_falls(self) -> None:
        counter = FrameCounter()
        counter.read(ListedFrames([FRAMES["keepalive"], FRAMES["commit"]]), PLENTY)
        received = counter.received_lsn

        for name in ("commit", "keepalive"):
            frame = FRAMES[name]
            place = 35 if name == "commit" else 1
            earlier = frame[:place] + bytes(7) + b"\1" + frame[place + 8 :]
            counter.read(ListedFrames([earlier]), PLENTY)

        assert counter.received_lsn == received

    @pytest.mark.parametrize("name", ["insert", "commit", "keepalive"])
    def test_every_corruption_is_counted_or_refused(self, name: str) -> None:
        refused = 0
        corrupt = corruptions(FRAMES[name])
        for frame in corrupt:
            counter = FrameCounter()
            try:
                assert counter.read(ListedFrames([frame]), PLENTY) == EMPTY
            except DecodeError:
                refused += 1
            assert counter.drained_bytes == len(frame)

        assert 0 < refused < len(corrupt)
