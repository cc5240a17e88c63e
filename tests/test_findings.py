"""What `check` says stands: what is lost now and what was lost, and nothing that was mended."""

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import pytest

from engine.journal.causes import (
    GAP,
    NOT_CAPTURED,
    ROWS_LEFT_OUT,
    STREAM_PAUSED,
    TABLE_PAUSED,
    WRITES_REFUSED,
    gap_causes,
)
from engine.journal.entry import Gap, JournalState, Pause, Snapshot, StatedSnapshot
from engine.journal.findings import findings
from engine.journal.gaps import LEFT_OUT
from engine.journal.watch import RENAMED_AWAY, TABLE_DROPPED
from engine.model.interfaces import NOT_PUBLISHED, Look, Reason
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from test_watch import CONFIGURATION, LINES, ORDERS, Rig, look, table

INITIAL = msgspec.structs.replace(CONFIGURATION, snapshot="initial")
NARROWED: dict[str, tuple[str, ...]] = {"operations": ("insert",)}


@pytest.fixture
def rig() -> Rig:
    """Two tables are agreed, whole."""
    rig = Rig()
    rig.judge(look(0x20, {ORDERS: table("1"), LINES: table("2")}))
    rig.append()
    return rig


def found(
    state: JournalState,
    now: Look | None,
    *,
    configuration: RecordConfiguration = CONFIGURATION,
    refused: Mapping[TableName, Reason] | None = None,
) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.code, one.tables) for one in findings(state, configuration, now, refused)]


def ended(number: int = 1, reason: str = "partitions", **other: object) -> Gap:
    gap = Gap(number, str(ORDERS), "0001.A", "0001.B", reason, "it was touched")
    return msgspec.structs.replace(gap, **other)


def test_what_a_look_shows_stands_with_the_statement_that_mends_it(rig: Rig) -> None:
    narrowed = look(0x30, {ORDERS: table("1", NARROWED), LINES: table("2")})

    [one] = findings(rig.state, CONFIGURATION, narrowed, None)

    assert (one.code, one.tables) == (NOT_CAPTURED, (str(ORDERS),))
    assert (one.cause.text, one.cause.hint) == ("operations is short", "MEND IT")


def test_tables_of_which_the_same_is_to_be_said_share_a_finding(rig: Rig) -> None:
    narrowed = look(0x30, {ORDERS: table("1", NARROWED), LINES: table("2", NARROWED)})

    assert found(rig.state, narrowed) == [(NOT_CAPTURED, (str(LINES), str(ORDERS)))]


def test_everything_that_a_table_lacks_is_told_at_once(rig: Rig) -> None:
    lacking = look(0x30, {ORDERS: table("1", {NOT_PUBLISHED: (), **NARROWED}), LINES: table("2")})

    [one] = findings(rig.state, CONFIGURATION, lacking, None)

    assert one.cause.text == "not-published is short; operations is short"
    assert one.cause.hint == "MEND IT"


def test_a_gap_stands_until_it_is_mended(rig: Rig) -> None:
    rig.state.gaps[1] = ended()
    calm = look(0x30, {ORDERS: table("1"), LINES: table("2")})

    assert found(rig.state, calm) == [(GAP, (str(ORDERS),))]
    # Also where the source does not say what it publishes.
    assert found(rig.state, None) == [(GAP, (str(ORDERS),))]
    rig.state.gaps[1] = ended(mended="attempt 2 of its snapshot")
    assert found(rig.state, calm) == []


def test_an_open_gap_that_the_look_does_not_show_stands_until_an_engine_ends_it(rig: Rig) -> None:
    rig.state.gaps[1] = ended(reason="operations", until="")
    calm = look(0x30, {ORDERS: table("1"), LINES: table("2")})
    narrowed = look(0x30, {ORDERS: table("1", NARROWED), LINES: table("2")})

    assert found(rig.state, calm) == [(GAP, (str(ORDERS),))]
    assert found(rig.state, narrowed) == [(NOT_CAPTURED, (str(ORDERS),))]


def test_rows_left_out_and_writes_that_are_refused_stand(rig: Rig) -> None:
    rig.state.gaps[1] = ended(reason=LEFT_OUT, position="0001.A")
    keyless = replace(table("2"), refused=Reason("no identity", "GIVE IT ONE"))
    now = look(0x30, {ORDERS: table("1"), LINES: keyless})

    assert found(rig.state, now) == [
        (ROWS_LEFT_OUT, (str(ORDERS),)),
        (WRITES_REFUSED, (str(LINES),)),
    ]


def test_a_newcomer_that_a_running_engine_lets_in_stands_against_nobody(rig: Rig) -> None:
    items = TableName("public", "items")
    newcomer = table("3", {NOT_PUBLISHED: ()})
    new = look(0x30, {ORDERS: table("1"), LINES: table("2"), items: newcomer})
    why = {items: Reason("it has no replica identity", "GIVE IT ONE")}

    assert found(rig.state, new) == [(NOT_CAPTURED, (str(items),))]
    assert found(rig.state, new, refused={}) == []
    [one] = findings(rig.state, CONFIGURATION, new, why)
    assert one.cause.hint == "GIVE IT ONE"


def test_through_another_publication_nothing_is_agreed(rig: Rig) -> None:
    other = msgspec.structs.replace(CONFIGURATION, through="other")
    narrowed = look(0x30, {ORDERS: table("1", NARROWED), LINES: table("2", {NOT_PUBLISHED: ()})})

    assert found(rig.state, narrowed, configuration=other) == [(NOT_CAPTURED, (str(LINES),))]


def test_a_table_that_is_not_captured_any_more_stands_against_nobody(rig: Rig) -> None:
    rig.state.gaps[1] = ended(reason=TABLE_DROPPED)
    without = msgspec.structs.replace(CONFIGURATION, exclude=(str(ORDERS),))

    assert found(rig.state, None, configuration=without) == []


@pytest.mark.parametrize(("state", "is_filled"), [("wanted", True), ("cancelled", False)])
def test_a_gap_that_a_snapshot_fills_says_so(rig: Rig, state: str, is_filled: bool) -> None:  # noqa: FBT001
    rig.state.gaps[1] = ended()
    snapshot = msgspec.convert({"table": str(ORDERS), "state": state}, Snapshot)
    rig.state.snapshots[str(ORDERS)] = StatedSnapshot(snapshot, 1, 1)

    [one] = findings(rig.state, INITIAL, None, None)

    assert one.cause.text.endswith("; a snapshot of the table is being taken") == is_filled
    assert ("`tailrace resync`" in one.cause.hint) != is_filled


def test_what_is_still_being_lost_is_to_be_mended_before_what_was_lost(rig: Rig) -> None:
    rig.state.gaps |= {1: ended(), 2: ended(2, reason="operations", until="")}
    narrowed = look(0x30, {ORDERS: table("1", NARROWED), LINES: table("2")})

    lost, was_lost = findings(rig.state, INITIAL, narrowed, None)

    assert (lost.code, was_lost.code) == (NOT_CAPTURED, GAP)
    assert was_lost.cause.hint.startswith("Mend first what the alarm not-captured")


HINTS = [
    ("partitions", True, "`tailrace resync` of the table"),
    ("partitions", False, 'source.snapshot = "initial"'),
    (TABLE_DROPPED, True, "made again under this name"),
    (TABLE_DROPPED, False, "source.exclude"),
    (RENAMED_AWAY, True, "ALTER TABLE … RENAME TO"),
    (RENAMED_AWAY, False, 'source.snapshot = "initial"'),
]


@pytest.mark.parametrize(("reason", "is_on", "words"), HINTS)
def test_a_gap_says_how_it_is_mended(reason: str, is_on: bool, words: str) -> None:  # noqa: FBT001
    causes = gap_causes([ended(reason=reason)], is_snapshot_on=is_on, is_filled=lambda _: False)

    assert words in causes[str(ORDERS)].hint


def test_what_is_paused_stands_with_the_command_that_resumes_it(rig: Rig) -> None:
    rig.state.pauses = {
        name: Pause(name, "paused", "", "somebody asked for it") for name in ("", str(ORDERS))
    }
    rig.state.gaps[1] = ended(reason="paused", until="")

    stream, table_paused = findings(rig.state, INITIAL, None, None)

    assert (stream.code, stream.tables) == (STREAM_PAUSED, ("the stream",))
    assert (table_paused.code, table_paused.tables) == (TABLE_PAUSED, (str(ORDERS),))
    assert "tailrace resume" in stream.cause.hint
    assert f"tailrace resume {ORDERS}" in table_paused.cause.hint
