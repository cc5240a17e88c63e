"""The compiled frame reader against the decoder: on what a server sent, and on every corruption."""

import pytest

from engine.errors import DecodeError
from engine.rowcodec import RowCodec
from engine.sources.postgres.frames import (
    BUDGET,
    CONTROL,
    EMPTY,
    END,
    FULL,
    HOUR,
    UNBOUND,
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
from golden_frames import FRAMES

PLENTY = 1 << 20
TABLE = int.from_bytes(FRAMES["insert"][26:30], "big")
HOUR_US = 3_600_000_000


def decoded(frame: bytes) -> Message | Keepalive:
    match decode_frame(frame):
        case XLogData(message=message):
            return decode_message(message)
        case Keepalive() as keepalive:
            return keepalive


def bound_codec() -> RowCodec:
    codec = RowCodec(1)
    codec.bind(
        TABLE,
        database="shop",
        schema="gold",
        table="orders",
        version=1,
        columns=[(name, 0, True, True) for name in ("id", "note", "mood", "amount", "big")],
        key=("id",),
        envelope="standard",
        numeric="string",
        json="embed",
    )
    return codec


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
    reader = FrameReader(codec, PLENTY)
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
    reader = FrameReader(bound_codec(), PLENTY)

    reasons = [reader.read(frames, 1), reader.read(frames, 1), reader.read(frames, 1)]

    assert reasons == [BUDGET, BUDGET, END]


def test_a_full_table_is_named_once_its_row_is_in() -> None:
    codec = bound_codec()
    reader = FrameReader(codec, 1)

    reason = reader.read(ListedFrames([FRAMES["begin"], FRAMES["insert"]]), PLENTY)

    assert (reason, reader.relation_id) == (FULL, TABLE)
    rows = codec.take(TABLE)
    assert rows is not None
    assert rows.row_count == 1


def test_another_hour_waits_until_the_earlier_rows_are_taken() -> None:
    codec = bound_codec()
    reader = FrameReader(codec, PLENTY)
    next_hour = begin_at(1_795_386_758_309_873 + HOUR_US)
    frames = ListedFrames([FRAMES["begin"], FRAMES["insert"], next_hour, FRAMES["insert"]])

    assert reader.read(frames, PLENTY) == HOUR
    assert [rows.row_count for _, rows in codec.take_all()] == [1]
    assert reader.read(frames, PLENTY) == EMPTY

    [(_, rows)] = codec.take_all()
    assert rows.first_commit_us == 1_795_386_758_309_873 + HOUR_US


@pytest.mark.parametrize("name", ["relation", "type", "origin", "message", "truncate"])
def test_other_messages_are_handed_out_whole(name: str) -> None:
    reader = FrameReader(bound_codec(), PLENTY)

    assert reader.read(ListedFrames([FRAMES[name]]), PLENTY) == CONTROL
    assert reader.frame == FRAMES[name]


def test_a_row_of_an_unbound_relation_is_handed_out() -> None:
    reader = FrameReader(RowCodec(1), PLENTY)

    assert reader.read(ListedFrames([FRAMES["begin"], FRAMES["insert"]]), PLENTY) == UNBOUND
    assert reader.frame == FRAMES["insert"]


@pytest.mark.parametrize("years", [-5000, 9000])
def test_a_transaction_of_an_impossible_time_is_refused(years: int) -> None:
    reader = FrameReader(bound_codec(), PLENTY)

    with pytest.raises(DecodeError, match="Begin with an impossible time"):
        reader.read(ListedFrames([begin_at(years * 366 * 24 * HOUR_US)]), PLENTY)


@pytest.mark.parametrize("name", ["begin", "commit", "keepalive", "flagged_keepalive"])
def test_every_corruption_reads_as_the_decoder_reads_it(name: str) -> None:
    outcomes = {judged(frame) for frame in corruptions(FRAMES[name])}

    assert {"agreed", "refused"} <= outcomes


def judged(frame: bytes) -> str:
    """What reading one frame came to; fails where reader and decoder differ."""
    codec = bound_codec()
    reader = FrameReader(codec, PLENTY)
    try:
        expected: object = decoded(frame)
    except DecodeError:
        expected = None
    try:
        reason = reader.read(ListedFrames([frame]), PLENTY)
    except DecodeError:
        # The decoder lets any time pass, and tuples that the codec can tell are malformed.
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
            assert reader.boundary == (end_lsn, commit_us, False)
        case Keepalive(end_lsn=end_lsn, sent_us=sent_us, is_reply_wanted=is_reply_wanted):
            assert reader.boundary == (end_lsn, sent_us, True)
            assert reader.is_reply_wanted == is_reply_wanted
        case _:
            pytest.fail(f"the decoder reads {expected}")


def test_a_row_after_one_that_failed_is_handed_over_with_all() -> None:
    codec = bound_codec()
    reader = FrameReader(codec, PLENTY)
    row, flawed = FRAMES["insert"], FRAMES["insert"][:-1]
    # So many that its buffer is its own, and stays its own when the lines are taken.
    reader.read(ListedFrames([FRAMES["begin"], *[row] * 500]), PLENTY)
    codec.take_all()
    with pytest.raises(DecodeError):
        codec.encode(flawed)
    assert codec.take_all() == []

    reader.read(ListedFrames([row]), PLENTY)

    assert [rows.row_count for _, rows in codec.take_all()] == [1]
