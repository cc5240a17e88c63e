"""The decoder against what PostgreSQL 18.6 sent: whole, cut short everywhere, corrupted everywhere.

The frames are one transaction's, with messages on: an insert into `gold.orders`, updates with and
without a change of the key, a delete, the same on a table with replica identity FULL, a logical
message and a TRUNCATE of both tables.
"""

import pytest

from engine.errors import DecodeError
from engine.position import Lsn
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
    begin_of_frame,
    commit_of_frame,
    decode_frame,
    decode_message,
    encode_status,
)

FRAMES = {
    "keepalive": bytes.fromhex("6b00000000017db0c0000303e3d2bf2ef800"),
    "begin": bytes.fromhex(
        "7700000000000000000000000000000000000303e3d2bf30c84200000000017ddce0000303e3d2be"
        "c7f100000314"
    ),
    "origin": bytes.fromhex(
        "7700000000017dc07000000000017dc070000303e3d2bf30e94f0000000000000000656c7365776865726500"
    ),
    "type": bytes.fromhex(
        "7700000000000000000000000000000000000303e3d2bf31165900004026676f6c64006d6f6f6400"
    ),
    "relation": bytes.fromhex(
        "7700000000000000000000000000000000000303e3d2bf313e520000402b676f6c64006f72646572"
        "73006400050169640000000017ffffffff006e6f74650000000019ffffffff006d6f6f6400000040"
        "26ffffffff00616d6f756e7400000006a400080006006269670000000019ffffffff"
    ),
    "insert": bytes.fromhex(
        "7700000000017dc17800000000017dc178000303e3d2bf317c490000402b4e00057400000001386e6e6e6e"
    ),
    "update": bytes.fromhex(
        "7700000000017dc23000000000017dc230000303e3d2bf3182550000402b4e000574000000013774"
        "000000016274000000026f6b740000000531322e353075"
    ),
    "update_of_key": bytes.fromhex(
        "7700000000017dc2a000000000017dc2a0000303e3d2bf3188550000402b4b00057400000001386e"
        "6e6e6e4e00057400000001396e6e6e6e"
    ),
    "delete_by_key": bytes.fromhex(
        "7700000000017dc33800000000017dc338000303e3d2bf318c440000402b4b00057400000001396e6e6e6e"
    ),
    "insert_whole": bytes.fromhex(
        "7700000000017dc38000000000017dc380000303e3d2bf31a949000040334e0002740000000131740000000161"
    ),
    "update_whole": bytes.fromhex(
        "7700000000017dc3c000000000017dc3c0000303e3d2bf31ae55000040334f000274000000013174"
        "00000001614e0002740000000131740000000162"
    ),
    "delete_whole": bytes.fromhex(
        "7700000000017dc41800000000017dc418000303e3d2bf31b244000040334f0002740000000131740000000162"
    ),
    "message": bytes.fromhex(
        "7700000000017dc4a800000000017dc4a8000303e3d2bf31b74d0100000000017dc4a87461696c72"
        "616365000000000568656c6c6f"
    ),
    "truncate": bytes.fromhex(
        "7700000000017ddca800000000017ddca8000303e3d2bf31ed5400000002020000402b00004033"
    ),
    "commit": bytes.fromhex(
        "7700000000017ddf3000000000017ddf30000303e3d2bf31f2430000000000017ddce00000000001"
        "7ddf30000303e3d2bec7f1"
    ),
    "flagged_keepalive": bytes.fromhex("6b00000000017ddf68000303e3d4895af301"),
}

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


def test_the_quick_readers_agree_with_the_decoder() -> None:
    commit = MESSAGES["commit"]
    assert isinstance(commit, Commit)

    assert begin_of_frame(FRAMES["begin"]) == (COMMIT_LSN, COMMIT_US, 788)
    assert commit_of_frame(FRAMES["commit"]) == (commit.end_lsn, commit.commit_us)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_the_quick_readers_refuse_what_the_decoder_refuses(mask: int) -> None:
    for name, reader in (("begin", begin_of_frame), ("commit", commit_of_frame)):
        for size in range(len(FRAMES[name])):
            with pytest.raises(DecodeError):
                reader(FRAMES[name][:size])
        for place in (0, HEADER_SIZE):
            corrupt = bytearray(FRAMES[name])
            corrupt[place] ^= mask
            with pytest.raises(DecodeError):
                reader(corrupt)


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
