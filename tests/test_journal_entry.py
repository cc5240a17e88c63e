"""Entries and the folded journal: golden bytes, what follows what, and damage."""

import gzip
import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.journal.entry import (
    FORMAT,
    MENDED_KEPT,
    Entry,
    Frontier,
    Gap,
    JournalState,
    Open,
    Planned,
    Snapshot,
    Writer,
    decode_entry,
    decode_state,
    encode_entry,
    encode_state,
    time_text,
    time_us_of,
)
from engine.journal.gaps import GapRegister
from engine.model.batch import Operations, operations_named
from engine.model.errors import JournalError
from engine.model.position import LOG_BEGIN, NOWHERE, Position
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableName, TableVersion
from log_points import durable, identity, place, point

WRITER = Writer("9f", "ecs/7", "0.1.0")
ORDERS = TableName("public", "orders")
SOURCE = identity("postgres", "7412")
OPEN = Open(SOURCE, RecordConfiguration("tailrace", ("public.*",)))
PLANNED = Planned(
    table="public.orders",
    key="shop/database=shop/a.ndjson.gz",
    previous=Position("0001.A"),
    first=Position("0001.B"),
    last=Position("0001.C"),
    rows=812,
    ops={"c": 800, "u": 12},
    version=1,
    codec=1,
    raw_bytes=324871,
    raw_crc32="9a0b1c2d",
    hour="2026-11-22T09",
)
DURABLE = durable(0x134EBCB0, "2026-11-22T09:51:54.056779Z", seq=40)
VERSION = TableVersion(1, Position("0001.A"), "r", Relation(ORDERS, "16384", (), ()))

GOLDEN = (
    b'{"format":1,"seq":42,"epoch":3,"nonce":"5c",'
    b'"writer":{"id":"9f","task":"ecs/7","release":"0.1.0"},"previous_sha256":"e3",'
    b'"planned":[{"table":"public.orders","key":"shop/database=shop/a.ndjson.gz",'
    b'"previous":"0001.A","first":"0001.B","last":"0001.C","rows":812,"ops":{"c":800,"u":12},'
    b'"version":1,"codec":1,"raw_bytes":324871,"raw_crc32":"9a0b1c2d","hour":"2026-11-22T09"}],'
    b'"durable":{"position":"0001.00000000134EBCB0","resume":"0/134EBCB0","commit_time":"2026-11-22T09:51:54.056779Z","seq":40,'
    b'"unfinished":[],"watched":"","landmark":null}}'
)


def entry(state: JournalState, **parts: object) -> Entry:
    known: dict[str, object] = {
        "format": FORMAT,
        "seq": state.next_seq,
        "epoch": state.epoch,
        "nonce": "n",
        "writer": WRITER,
        "previous_sha256": state.sha256,
    }
    return msgspec.convert({**known, **parts}, Entry, from_attributes=True)


def absorb(state: JournalState, **parts: object) -> None:
    made = entry(state, **parts)
    state.absorb(made, encode_entry(made))


def opened() -> JournalState:
    state = JournalState()
    absorb(state, epoch=1, open=OPEN, durable=msgspec.structs.replace(DURABLE, seq=-1))
    return state


def plan(name: str, first: str, last: str, **changes: object) -> Planned:
    known: dict[str, object] = {"key": name, "first": first, "last": last, **changes}
    return msgspec.structs.replace(PLANNED, **known)


# --- bytes


def test_an_entry_has_these_very_bytes_and_leaves_absent_parts_out() -> None:
    made = Entry(
        format=1,
        seq=42,
        epoch=3,
        nonce="5c",
        writer=WRITER,
        previous_sha256="e3",
        planned=(PLANNED,),
        durable=DURABLE,
    )

    assert encode_entry(made) == GOLDEN
    assert decode_entry(GOLDEN, "k") == made


def test_an_entry_of_an_older_release_may_lack_parts_and_one_of_this_format_may_have_more() -> None:
    more = GOLDEN[:-1] + b',"remark":{"x":1}}'

    assert decode_entry(more, "k") == decode_entry(GOLDEN, "k")


def test_every_kind_of_part_is_named() -> None:
    state = JournalState()
    gap = Gap(1, "public.orders", "0001.A", "", "not-published", "it is not published")

    made = entry(
        state,
        open=OPEN,
        schemas=(VERSION,),
        planned=(PLANNED,),
        durable=DURABLE,
        gaps=(gap,),
        release=True,
    )

    assert made.kinds == ("open", "schemas", "planned", "durable", "gaps", "release")
    assert entry(state).kinds == ()
    assert decode_entry(encode_entry(made), "k") == made


@pytest.mark.parametrize("format_number", [2, 99])
def test_a_newer_format_is_refused_by_name(format_number: int) -> None:
    content = GOLDEN.replace(b'"format":1', b'"format":%d' % format_number)

    with pytest.raises(JournalError, match=f"format {format_number}") as caught:
        decode_entry(content, "k")
    assert "newer release" in caught.value.hint


@pytest.mark.parametrize("length", range(len(GOLDEN)))
def test_a_cut_off_entry_is_refused(length: int) -> None:
    with pytest.raises(JournalError):
        decode_entry(GOLDEN[:length], "k")


@given(st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_a_corrupted_byte_gives_an_entry_or_a_journal_error_and_nothing_else(
    index: int, mask: int
) -> None:
    content = bytearray(GOLDEN)
    content[index] ^= mask
    try:
        decode_entry(bytes(content), "k")
    except JournalError:
        return


# --- folding


def test_an_empty_journal_expects_entry_zero() -> None:
    state = JournalState()

    assert state.next_seq == 0
    assert state.durable_position == LOG_BEGIN
    assert state.durable_point is None
    assert state.durable_seq == -1
    assert state.frontier(ORDERS) == Frontier(NOWHERE, "")
    assert state.versions_of(ORDERS) == ()


def test_two_empty_journals_share_nothing() -> None:
    one, two = JournalState(), JournalState()

    absorb(one, planned=(PLANNED,))

    assert two.plans == {}
    assert two.frontiers == {}


def test_open_sets_epoch_writer_source_and_configuration() -> None:
    state = opened()

    assert (state.epoch, state.writer, state.source) == (1, WRITER, SOURCE)
    assert state.configurations == {1: OPEN.configuration}
    assert state.durable_position == place(0x134EBCB0)
    assert state.durable_point == point(0x134EBCB0, time_us_of(DURABLE.commit_time))
    assert not state.released


def test_the_hash_is_that_of_the_bytes_as_stored() -> None:
    state = JournalState()
    made = entry(state, epoch=1, open=OPEN)
    content = encode_entry(made) + b" "

    state.absorb(made, content)

    assert state.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("wrong", [{"seq": 0}, {"seq": 2}, {"previous_sha256": "00"}])
def test_an_entry_that_does_not_follow_is_refused_and_changes_nothing(
    wrong: dict[str, object],
) -> None:
    state = opened()
    before = encode_state(state)

    with pytest.raises(JournalError, match="does not follow"):
        absorb(state, planned=(PLANNED,), **wrong)

    assert encode_state(state) == before


def test_a_plan_moves_its_tables_frontier_and_waits_for_durable() -> None:
    state = opened()

    absorb(state, planned=(plan("a", "1", "2"), plan("b", "3", "4", hour="2026-11-22T10")))

    assert state.frontier(ORDERS) == Frontier(Position("4"), "2026-11-22T10")
    assert list(state.plans) == ["a", "b"]
    assert [statement.seq for statement in state.plans["a"]] == [1]


def test_another_statement_of_a_plan_does_not_move_the_frontier() -> None:
    state = opened()
    absorb(state, planned=(plan("a", "1", "2"), plan("b", "3", "4")))

    absorb(state, planned=(plan("a", "1", "2", codec=2),))

    assert state.frontier(ORDERS).last == "4"
    assert [s.planned.codec for s in state.plans["a"]] == [1, 2]


def test_durable_forgets_plans_by_their_first_statement() -> None:
    state = opened()
    absorb(state, planned=(plan("a", "1", "2"),))
    absorb(state, planned=(plan("b", "3", "4"),))
    absorb(state, planned=(plan("a", "1", "2", codec=2),))

    absorb(state, durable=msgspec.structs.replace(DURABLE, seq=1))

    assert list(state.plans) == ["b"]


def test_a_configuration_is_kept_while_a_plan_first_stated_under_it_is_missing() -> None:
    state = opened()
    absorb(state, planned=(plan("a", "1", "2"),))
    absorb(state, epoch=2, open=OPEN)
    absorb(state, planned=(plan("a", "1", "2", codec=2),), durable=DURABLE)

    absorb(state, durable=msgspec.structs.replace(DURABLE, seq=0))
    kept = set(state.configurations)
    absorb(state, durable=msgspec.structs.replace(DURABLE, seq=3))

    assert state.plans == {}
    assert kept == {2}
    assert set(state.configurations) == {2}


def test_versions_are_kept_in_the_order_of_the_journal() -> None:
    state = opened()
    second = msgspec.structs.replace(VERSION, number=2)

    absorb(state, schemas=(VERSION,))
    absorb(state, schemas=(second,))

    assert state.versions_of(ORDERS) == (VERSION, second)


def test_released_holds_until_somebody_writes_again() -> None:
    state = opened()

    absorb(state, release=True)
    released = state.released
    absorb(state, epoch=2, open=OPEN)

    assert released
    assert not state.released


# --- gaps


def test_a_later_statement_of_a_gap_takes_the_place_of_the_earlier() -> None:
    state = opened()
    first = Gap(1, "public.orders", "0001.A", "", "not-published", "it is not published")
    second = Gap(2, "public.lines", "0001.B", "0001.C", "operations", "updates were left out")
    absorb(state, gaps=(first, second))

    ended = msgspec.structs.replace(first, until="0001.D", mended="snapshot 3")
    absorb(state, gaps=(ended,))

    assert state.gaps == {1: ended, 2: second}


def test_a_gap_has_these_very_bytes_and_leaves_absent_parts_out() -> None:
    gap = Gap(1, "public.orders", "0001.A", "", "not-published", "it is not published")

    made = msgspec.json.encode(gap)

    assert made == (
        b'{"number":1,"table":"public.orders","after":"0001.A","until":"",'
        b'"reason":"not-published","text":"it is not published"}'
    )
    assert gap.is_open


# --- state files


def full_state() -> JournalState:
    state = opened()
    absorb(state, schemas=(VERSION,), planned=(plan("a", "1", "2"), plan("b", "3", "4")))
    absorb(state, planned=(plan("a", "1", "2", codec=2),))
    absorb(state, gaps=(Gap(1, "public.orders", "0001.A", "", "operations", "some"),))
    return state


def test_a_state_file_holds_the_whole_fold() -> None:
    state = full_state()

    assert decode_state(encode_state(state), "k") == state


def test_a_state_files_bytes_follow_from_the_state() -> None:
    first, second = encode_state(full_state()), encode_state(full_state())

    assert first == second
    assert first == encode_state(decode_state(first, "k"))


def test_a_start_from_a_state_file_goes_on_as_one_from_the_first_entry() -> None:
    whole, resumed = full_state(), decode_state(encode_state(full_state()), "k")

    for state in (whole, resumed):
        absorb(state, epoch=2, open=OPEN)
        absorb(
            state, planned=(plan("c", "5", "6"),), durable=msgspec.structs.replace(DURABLE, seq=1)
        )

    assert resumed == whole
    assert encode_state(resumed) == encode_state(whole)


def test_a_state_file_of_a_newer_format_is_refused_by_name() -> None:
    text = json.dumps({"format": 2}).encode()

    with pytest.raises(JournalError, match="format 2"):
        decode_state(gzip.compress(text), "k")


@pytest.mark.parametrize("length", [0, 1, 9, 10, 50, -9, -1])
def test_a_cut_off_state_file_is_refused(length: int) -> None:
    with pytest.raises(JournalError):
        decode_state(encode_state(full_state())[:length], "k")


STATE_BYTES = encode_state(full_state())


@given(st.integers(0, len(STATE_BYTES) - 1), st.integers(1, 255))
def test_a_corrupted_state_file_is_refused_or_says_the_same(index: int, mask: int) -> None:
    content = bytearray(STATE_BYTES)
    content[index] ^= mask
    try:
        state = decode_state(bytes(content), "k")
    except JournalError:
        return
    # gzip's header has bytes that say nothing (time, system), and a checksum for all the others.
    assert state == full_state()


# --- small things


def test_operations_that_do_not_occur_are_left_out() -> None:
    assert operations_named(Operations(c=3, t=1)) == {"c": 3, "t": 1}
    assert operations_named(Operations()) == {}


@given(st.integers(0, 253_402_300_799_999_999))
def test_a_time_comes_back_from_its_text(time_us: int) -> None:
    assert time_us_of(time_text(time_us)) == time_us


@given(st.integers(0, 10**16), st.integers(0, 10**16))
def test_times_sort_as_their_texts(one: int, two: int) -> None:
    assert (time_text(one) < time_text(two)) == (one < two)


def test_a_time_has_this_very_text() -> None:
    assert time_text(1_795_341_114_056_779) == "2026-11-22T09:51:54.056779Z"


def test_a_durable_is_a_log_point_by_which_the_source_is_read_again() -> None:
    assert DURABLE.point == point(0x134EBCB0, time_us_of(DURABLE.commit_time))


# --- snapshots

TAKING = msgspec.structs.replace(
    OPEN, configuration=msgspec.structs.replace(OPEN.configuration, snapshot="initial")
)
LEAVING_OUT = msgspec.structs.replace(
    TAKING, configuration=msgspec.structs.replace(TAKING.configuration, exclude=("public.orders",))
)


def finished(state: JournalState) -> None:
    started = Snapshot("public.orders", "started", 1, place(5), 1, "2026-11-22T09")
    absorb(state, snapshots=(started,))
    absorb(state, snapshots=(msgspec.structs.replace(started, state="whole"),))
    absorb(state, durable=msgspec.structs.replace(DURABLE, seq=state.seq))


def test_an_open_that_takes_snapshots_wants_one_of_a_table_that_has_none() -> None:
    state = opened()
    absorb(state, planned=(PLANNED,))
    before = state.unfinished(state.durable_position)

    absorb(state, epoch=2, open=TAKING)

    assert before == ()
    assert state.unfinished(state.durable_position) == ("public.orders",)
    assert state.snapshots["public.orders"].snapshot == Snapshot("public.orders", "wanted")


def test_a_table_that_was_left_out_for_a_while_is_unfinished_from_its_open_on() -> None:
    state = opened()
    absorb(state, epoch=2, open=TAKING)
    finished(state)
    absorb(state, epoch=3, open=TAKING)
    stays = state.unfinished(state.durable_position)
    absorb(state, epoch=4, open=LEAVING_OUT)
    left_out = state.unfinished(state.durable_position)

    absorb(state, epoch=5, open=TAKING)

    assert stays == left_out == ()
    assert state.unfinished(state.durable_position) == ("public.orders",)
    assert state.attempts["public.orders"] == 1


def test_of_other_gaps_that_were_mended_the_newest_are_remembered_too() -> None:
    state = opened()
    row = Gap(1, "public.orders", "0001.A", "0001.A", "unrepresentable", "odd", position="0001.A")
    open_gap = Gap(2, "public.orders", "0001.A", "", "operations", "some")
    ended = Gap(3, "public.orders", "0001.A", "0001.B", "renamed", "some")
    others = [msgspec.structs.replace(ended, number=number) for number in range(3, MENDED_KEPT + 6)]

    absorb(state, gaps=(msgspec.structs.replace(row, mended="it is there"), open_gap, *others))
    for gap in others:
        absorb(state, gaps=(msgspec.structs.replace(gap, mended="attempt 1 of its snapshot"),))

    assert sorted(state.gaps) == [1, 2, *range(6, MENDED_KEPT + 6)]


def test_a_gap_goes_on_from_none_that_is_forgotten() -> None:
    state = opened()
    gaps = GapRegister(state, lambda: 7)
    for number in range(MENDED_KEPT + 1):
        stated = gaps.state(
            f"public.t{number}", after="0001.A", until="0001.B", reason="renamed", text=""
        )
        gaps.mend(stated.number, "attempt 1 of its snapshot")
    sent = gaps.pending
    absorb(state, gaps=sent)
    gaps.journalled(sent)

    later = gaps.state("public.t0", after="0001.B", until="0001.C", reason="renamed", text="")

    assert 1 not in state.gaps
    assert later.number == MENDED_KEPT + 2


def test_of_rows_that_were_made_good_the_newest_are_remembered_and_of_others_all() -> None:
    state = opened()
    row = Gap(1, "public.orders", "0001.A", "0001.A", "unrepresentable", "odd", position="0001.A")
    rows = [msgspec.structs.replace(row, number=number) for number in range(1, MENDED_KEPT + 4)]
    other = Gap(
        len(rows) + 1, "public.orders", "0001.A", "0001.B", "partitions", "", mended="it is"
    )
    mended = [msgspec.structs.replace(gap, mended="it is there") for gap in rows[1:]]

    absorb(state, gaps=(*rows, other))
    absorb(state, gaps=tuple(mended))

    # The first one is not made good, and the last one is no row. Between them are too many by two.
    assert sorted(state.gaps) == [1, *range(4, len(rows) + 2)]
