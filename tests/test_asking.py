"""What is asked of the running engine, and how far it is: the pure parts of `resync`, `status`."""

import re

import pytest

from engine.journal.entry import Answer, JournalState, Snapshot, SnapshotState, StatedSnapshot
from engine.model.position import LogPosition
from engine.model.request import RequestRefused, decode_request, request_name, request_time_us
from engine.reader.asking import name_of_next, progress, request_body, tables_meant
from engine.reader.standing import standing
from log_points import durable

E = LogPosition("0001.0000000000001000")
LATER = LogPosition("0001.0000000000002000")
NONCE = "0123456789abcdef"
KNOWN = ("public.orders", "sales.orders", 'public."Odd ""name"', "public.items")


def state(*stated: StatedSnapshot, epoch: int = 3) -> JournalState:
    """A journal that is durable up to `E` and speaks of these snapshots and of `KNOWN`."""
    return JournalState(
        epoch=epoch,
        durable=durable(0x1000, "2026-11-22T09:51:54.056779Z", seq=5),
        attempts=dict.fromkeys(KNOWN, 0),
        snapshots={each.snapshot.table: each for each in stated},
    )


def snapshot(
    how: SnapshotState,
    attempt: int = 0,
    point: LogPosition = E,
    *,
    is_visible: bool = False,
    epoch: int = 3,
    rest: str = "",
    segment: int = 0,
) -> StatedSnapshot:
    stated = Snapshot("public.orders", how, attempt, point, rest=rest, segment=segment)
    return StatedSnapshot(stated, epoch, 4, is_visible)


@pytest.mark.parametrize(
    ("word", "table"),
    [
        ("public.orders", "public.orders"),
        ('"public"."orders"', "public.orders"),
        ("items", "public.items"),
        ('"items"', "public.items"),
        ('"Odd ""name"', 'public."Odd ""name"'),
    ],
)
def test_a_table_is_named_with_its_schema_or_where_it_is_alone_without(
    word: str, table: str
) -> None:
    assert tables_meant((word, word), state()) == (table,)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("orders", "orders may be public.orders or sales.orders"),
        ("public.item", "did you mean public.items"),
        ("itms", "the journal knows no itms; did you mean public.items?"),
        ("nothing_like_it", "it knows public"),
        ("a.b.c", "no table's name"),
        ("", "no table's name"),
    ],
)
def test_a_name_of_no_table_or_of_two_is_refused_with_the_names_that_are_near(
    word: str, reason: str
) -> None:
    with pytest.raises(RequestRefused, match=re.escape(reason)):
        tables_meant((word,), state())


def test_a_request_says_what_is_asked_and_has_no_more_than_an_engine_reads() -> None:
    request = decode_request(request_body("cancel", KNOWN))

    assert (request.kind, request.tables) == ("cancel", KNOWN)
    with pytest.raises(RequestRefused, match="6000 tables are too many"):
        request_body("resync", tuple(f"public.table_{n}" for n in range(6000)))


@pytest.mark.parametrize("late_us", [0, 1, 3_600_000_000])
def test_a_name_is_above_the_mark_whatever_the_clock_says(late_us: int) -> None:
    through = request_name(1_800_000_000_999_999, "f" * 16)
    now_us = request_time_us(through) - late_us

    name = name_of_next(JournalState(answers_through=through), now_us, "0" * 16)

    assert name > through
    assert name_of_next(JournalState(), now_us, NONCE) == request_name(now_us, NONCE)


@pytest.mark.parametrize(
    ("stated", "how"),
    [
        (snapshot("wanted"), "wanted"),
        (snapshot("started", 2), "started"),
        (snapshot("started", 2, epoch=2), "wanted"),
        (snapshot("whole", 2), "whole"),
        (snapshot("whole", 2, LATER, is_visible=True), "visible"),
        (snapshot("whole", 2, is_visible=True), "finished"),
        (snapshot("whole", 2, is_visible=True, rest="more"), "started"),
        (snapshot("started", 2, epoch=2, segment=1), "started"),
        (snapshot("whole", 2, is_visible=True, segment=1), "finished"),
        (snapshot("whole", 1, is_visible=True), "given up"),
        (snapshot("cancelled"), "given up"),
        (snapshot("void", 2), "void"),
    ],
)
def test_a_snapshot_that_was_asked_for_is_one_with_a_later_attempt(
    stated: StatedSnapshot, how: str
) -> None:
    assert progress("public.orders", state(stated), {"public.orders": 1}) == how


def test_a_table_without_a_snapshot_was_left_out() -> None:
    assert progress("public.orders", state(), {"public.orders": 1}) == "given up"


def test_a_pipeline_stands_where_its_journal_says() -> None:
    answers = [Answer(request_name(us, NONCE), "cancel", "done", "") for us in (9, 5)]
    told = state(snapshot("whole", 2, LATER, is_visible=True))
    told.answers = {answer.name: answer for answer in answers}

    found = standing(told, ("later",), request_time_us(request_name(1_795_341_234_056_779, NONCE)))

    assert [table.table for table in found.tables] == sorted(KNOWN)
    assert [(table.table, table.snapshot) for table in found.unfinished] == [
        ("public.orders", "visible")
    ]
    assert {table.snapshot for table in found.tables} == {"none", "visible"}
    assert found.durable_age_seconds == 120
    assert [answer.name for answer in found.answers] == sorted(told.answers)
    assert found.waiting == ("later",)
