"""The decoder against what PostgreSQL 18.6 sent: whole, cut short everywhere, corrupted everywhere.

The frames are those of `golden_frames`.
"""

import pytest

from engine.model.errors import DecodeError
from engine.sources.postgres.lsn import Lsn
from engine.sources.postgres.pgoutput import (
    HEADER_SIZE,
    Begin,
    Commit,
    Delete,
    Frame,
    Insert,
    Keepalive,
    LogicalMessage,
    Message,
    OldTuple,
    Origin,
    RelationColumn,
    RelationMessage,
    Truncate,
    TypeMessage,
    Unchanged,
    Update,
    XLogData,
    decode_frame,
    decode_message,
    encode_status,
)
from golden_frames import FRAMES

ORDERS = 16427
WHOLE = 16435
COMMIT_LSN = Lsn(0x17DDCE0)
COMMIT_US = 1_795_386_758_309_873
NOTHING = (None, None, None, None)

MESSAGES: dict[str, Message] = {
    "begin": Begin(COMMIT_LSN, COMMIT_US, 788),
    "origin": Origin(Lsn(0), "elsewhere"),
    "type": TypeMessage(16422, "gold", "mood"),
    "relation": RelationMessage(
        ORDERS,
        "gold",
        "orders",
        "d",
        (
            RelationColumn("id", 23, -1, is_key=True),
            RelationColumn("note", 25, -1, is_key=False),
            RelationColumn("mood", 16422, -1, is_key=False),
            RelationColumn("amount", 1700, 524294, is_key=False),
            RelationColumn("big", 25, -1, is_key=False),
        ),
    ),
    "insert": Insert(ORDERS, (b"8", *NOTHING)),
    "update": Update(ORDERS, OldTuple.ABSENT, (), (b"7", b"b", b"ok", b"12.50", Unchanged.TOKEN)),
    "update_of_key": Update(ORDERS, OldTuple.KEY, (b"8", *NOTHING), (b"9", *NOTHING)),
    "delete_by_key": Delete(ORDERS, OldTuple.KEY, (b"9", *NOTHING)),
    "insert_whole": Insert(WHOLE, (b"1", b"a")),
    "update_whole": Update(WHOLE, OldTuple.WHOLE, (b"1", b"a"), (b"1", b"b")),
    "delete_whole": Delete(WHOLE, OldTuple.WHOLE, (b"1", b"b")),
    "message": LogicalMessage(
        is_transactional=True, message_lsn=Lsn(25019560), prefix="tailrace", content=b"hello"
    ),
    "truncate": Truncate((ORDERS, WHOLE), is_cascade=False, is_identity_restart=True),
    "commit": Commit(COMMIT_LSN, Lsn(25026352), COMMIT_US),
}

KEEPALIVES: dict[str, Frame] = {
    "keepalive": Keepalive(Lsn(25014464), 1_795_386_758_336_248, is_reply_wanted=False),
    "flagged_keepalive": Keepalive(Lsn(25026408), 1_795_386_788_362_995, is_reply_wanted=True),
}


def decoded(frame: bytes) -> Message | Keepalive:
    match decode_frame(frame):
        case XLogData(message=message):
            return decode_message(message)
        case Keepalive() as keepalive:
            return keepalive


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_decodes_to_what_the_server_wrote(name: str) -> None:
    expected = {**MESSAGES, **KEEPALIVES}[name]

    assert decoded(FRAMES[name]) == expected


def test_the_header_tells_where_and_when_a_change_was_written() -> None:
    frame = decode_frame(FRAMES["update"])

    assert isinstance(frame, XLogData)
    assert frame.start_lsn == frame.end_lsn == 0x17DC230
    assert frame.sent_us > COMMIT_US
    assert frame.message == FRAMES["update"][HEADER_SIZE:]


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_cut_short_anywhere_is_refused(name: str) -> None:
    frame = FRAMES[name]

    for size in range(len(frame)):
        with pytest.raises(DecodeError):
            decoded(frame[:size])


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_with_a_byte_too_many_is_refused(name: str) -> None:
    with pytest.raises(DecodeError):
        decoded(FRAMES[name] + b"\0")


@pytest.mark.parametrize("name", FRAMES)
def test_a_corrupt_byte_gives_another_message_or_a_decode_error(name: str) -> None:
    frame = FRAMES[name]
    refused = 0

    for place in range(len(frame)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            corrupt = bytearray(frame)
            corrupt[place] ^= mask
            try:
                changed = decoded(bytes(corrupt))
            except DecodeError:
                refused += 1
            else:
                # The header of an XLogData frame is not part of its message.
                assert changed != decoded(frame) or place < HEADER_SIZE

    assert refused


def test_a_count_larger_than_the_message_reserves_no_memory() -> None:
    truncate = b"T" + (0x7FFFFFFF).to_bytes(4, "big") + b"\0" + bytes(8)

    with pytest.raises(DecodeError):
        decode_message(truncate)


def test_an_empty_namespace_is_pg_catalog() -> None:
    message = decode_message(b"Y" + (23).to_bytes(4, "big") + b"\0int4\0")

    assert message == TypeMessage(23, "pg_catalog", "int4")


def test_a_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(DecodeError, match="UTF-8"):
        decode_message(b"Y" + (23).to_bytes(4, "big") + b"\xff\0int4\0")


def test_a_status_update_repeats_flush_as_apply() -> None:
    status = encode_status(
        write_lsn=Lsn(0x1_00000002), flush_lsn=Lsn(3), sent_us=946_684_800_000_007
    )

    assert status == bytes.fromhex(
        "72"  # r
        "0000000100000002"  # write
        "0000000000000003"  # flush
        "0000000000000003"  # apply
        "0000000000000007"  # microseconds since 2000
        "00"  # no reply wanted
    )


def test_a_status_update_can_ask_for_a_keepalive() -> None:
    status = encode_status(write_lsn=Lsn(0), flush_lsn=Lsn(0), sent_us=0, is_reply_wanted=True)

    assert status[-1] == 1
