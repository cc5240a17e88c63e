"""The catalog watch, pure: what each look states as a gap, and what it leaves alone."""

from collections.abc import Iterable
from dataclasses import replace

import msgspec
import pytest

from engine.journal.entry import Gap, JournalState
from engine.journal.gaps import GapRegister
from engine.journal.watch import CatalogWatch, Shown
from engine.model.batch import Named
from engine.model.interfaces import (
    NOT_PUBLISHED,
    PARTITIONS,
    PUBLISHED_LATE,
    REWRITTEN,
    Look,
    Reason,
    TableLook,
)
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from log_points import durable, identity, place

ORDERS = TableName("public", "orders")
LINES = TableName("public", "lines")
CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))
ASPECTS = (NOT_PUBLISHED, "operations")
TEXTS = {
    aspect: f"{aspect} was touched"
    for aspect in ("publication", "membership", "pieces", PARTITIONS, REWRITTEN, PUBLISHED_LATE)
} | {"table-dropped": "it went", "table-remade": "it is another one"}


def table(
    identity: str = "7",
    keeps: dict[str, tuple[str, ...]] | None = None,
    marks: dict[str, str] | None = None,
    fresh: Iterable[str] = (),
    shape: str = "",
) -> TableLook:
    reasons = {aspect: Reason(f"{aspect} is short", "MEND IT") for aspect in ASPECTS}
    return TableLook(identity, keeps or {}, marks or {}, frozenset(fresh), reasons, shape=shape)


def look(
    at: int,
    tables: dict[TableName, TableLook],
    *,
    marks: dict[str, str] | None = None,
    since: int | None = None,
    others: Iterable[str] = (),
    parts: Iterable[str] = (),
) -> Look:
    begin = place(at if since is None else since)
    shared = marks or {"publication": "1"}
    away, inner = frozenset(others), frozenset(parts)
    return Look(begin, place(at), place(at + 1), shared, tables, TEXTS, away, inner)


class Rig:
    """A journal that is durable up to 0x10, and the watch over it."""

    def __init__(self) -> None:
        self.has_rows: set[TableName] = set()
        self.identities: set[tuple[TableName, str]] = set()
        self.truncated: set[TableName] = set()
        self.state = JournalState(
            seq=0,
            source=identity(),
            durable=durable(0x10, seq=0),
        )
        self.start()

    def start(self, configuration: RecordConfiguration = CONFIGURATION) -> None:
        """Another engine goes on from the journal."""
        self.gaps = GapRegister(self.state, lambda: 7)
        shown = Shown(
            has_rows=lambda table: table in self.has_rows,
            has_identity=lambda table, identity: (table, identity) in self.identities,
            was_truncated=lambda table: table in self.truncated,
        )
        self.watch = CatalogWatch(self.state, self.gaps, configuration, shown)

    def append(self) -> None:
        """The journal's next entry."""
        gaps, watch = self.gaps.pending, self.watch.pending
        for gap in gaps:
            self.state.gaps[gap.number] = gap
        if watch is not None:
            self.state.watch = watch.folded(self.state.watch)
        watched = self.watch.watched
        self.state.durable = durable(int(shorter(watched), 16), seq=0, watched=watched)
        self.gaps.journalled(gaps)
        self.watch.journalled(watch)

    def judge(self, *looks: Look) -> list[tuple[str, str, str, str]]:
        """What the looks state: table, reason, begin and end without the generation."""
        for one in looks:
            self.watch.judge(one)
        return [brief(gap) for gap in self.gaps.standing]

    def shows(self, *names: tuple[int, str, str]) -> list[tuple[str, str, str, str]]:
        """What the stream's names state: where rows of an identity came under a name."""
        for lsn, known, name in names:
            table = TableName.parse(name)
            is_captured = CONFIGURATION.captures(table)
            self.watch.named(Named(known, table, is_captured, place(lsn)))
        return [brief(gap) for gap in self.gaps.standing]


def brief(gap: Gap) -> tuple[str, str, str, str]:
    return (gap.table, gap.reason, shorter(gap.after), shorter(gap.until))


def shorter(point: str) -> str:
    return point.removeprefix("0001.").lstrip("0")


def test_what_stays_as_it_is_states_nothing_and_is_journalled_once() -> None:
    rig = Rig()

    found = rig.judge(look(0x20, {ORDERS: table()}))
    statement = rig.watch.pending
    rig.append()
    again = rig.judge(look(0x30, {ORDERS: table()}))

    assert found == again == []
    assert statement is not None
    assert list(statement.tables) == ["public.orders"]
    assert rig.watch.pending is None
    assert shorter(rig.watch.watched) == "30"


def test_a_table_that_is_not_published_is_a_gap_from_the_journals_beginning() -> None:
    rig = Rig()

    found = rig.judge(look(0x20, {ORDERS: table(keeps={NOT_PUBLISHED: ()})}))

    assert found == [("public.orders", NOT_PUBLISHED, "10", "")]


def test_a_loss_that_stands_is_one_gap_which_ends_behind_the_look_that_no_longer_shows_it() -> None:
    rig = Rig()
    less = {ORDERS: table(keeps={"operations": ("insert",)}, marks={"membership": "2"})}
    whole = {ORDERS: table(marks={"membership": "3"})}

    found = rig.judge(
        look(0x20, {ORDERS: table(marks={"membership": "1"})}),
        look(0x30, less),
        look(0x40, less),
        look(0x50, whole),
        look(0x60, whole),
    )

    assert found == [("public.orders", "operations", "20", "51")]


@pytest.mark.parametrize("is_restart", [False, True])
def test_what_was_touched_and_is_as_before_is_a_gap_that_ended(is_restart: bool) -> None:  # noqa: FBT001
    rig = Rig()
    rig.judge(look(0x20, {ORDERS: table(marks={"membership": "1"}), LINES: table("8")}))
    rig.append()
    if is_restart:
        rig.start()

    found = rig.judge(
        look(0x30, {ORDERS: table(marks={"membership": "2"}), LINES: table("8")}),
        look(0x40, {ORDERS: table(marks={"membership": "2"}), LINES: table("8")}),
    )

    assert found == [("public.orders", "membership", "20", "31")]


def test_what_all_tables_share_is_a_gap_of_each() -> None:
    rig = Rig()
    tables = {ORDERS: table(), LINES: table("8")}

    found = rig.judge(look(0x20, tables), look(0x30, tables, marks={"publication": "2"}))

    assert found == [
        ("public.orders", "publication", "20", "31"),
        ("public.lines", "publication", "20", "31"),
    ]


def test_more_than_was_agreed_is_agreed_from_then_on() -> None:
    rig = Rig()
    less = {ORDERS: table(keeps={"operations": ("insert",)})}

    assert rig.judge(look(0x20, less), look(0x30, {ORDERS: table()})) == []
    assert rig.judge(look(0x40, less)) == [("public.orders", "operations", "30", "")]


def test_what_two_parts_lack_is_one_gap_that_ends_with_the_last_of_them() -> None:
    rig = Rig()
    both: dict[str, tuple[str, ...]] = {"operations:1": (), "operations:2": ()}
    one: dict[str, tuple[str, ...]] = {"operations:2": ()}
    reasons = {aspect: Reason(f"{aspect} is short", f"MEND {aspect}") for aspect in both}

    def seen(at: int, keeps: dict[str, tuple[str, ...]]) -> Look:
        return look(at, {ORDERS: replace(table(keeps=keeps), reasons=reasons)})

    rig.judge(look(0x20, {ORDERS: table()}))
    told = rig.watch.standing(seen(0x30, both))[str(ORDERS)]
    begun = rig.judge(seen(0x30, both))
    on = rig.judge(seen(0x40, one))
    over = rig.judge(seen(0x50, {}))

    assert told.text == "operations:1 is short; operations:2 is short"
    assert told.hint == "MEND operations:1 MEND operations:2"
    assert begun == on == [("public.orders", "operations", "20", "")]
    assert over == [("public.orders", "operations", "20", "51")]


def test_a_gap_begins_where_a_look_surely_shows_everything() -> None:
    # A transaction was under way at the second look; what it did is seen by the third only.
    rig = Rig()
    rig.judge(look(0x20, {ORDERS: table()}), look(0x30, {ORDERS: table()}, since=0x20))

    found = rig.judge(look(0x40, {ORDERS: table(keeps={NOT_PUBLISHED: ()})}))

    assert found == [("public.orders", NOT_PUBLISHED, "20", "")]


ITEMS = TableName("public", "items")


def test_rows_of_a_table_that_gets_another_name_are_not_under_it() -> None:
    rig = Rig()
    rig.identities = {(ORDERS, "7")}

    swapped = rig.judge(
        look(0x20, {ORDERS: table("7"), LINES: table("8")}),
        look(0x30, {ORDERS: table("8"), LINES: table("7")}),
    )
    rig.identities = {(LINES, "7")}
    renamed = rig.judge(look(0x40, {ORDERS: table("8"), ITEMS: table("7")}))

    # The one with the identity 8 had no rows.
    assert swapped == [("public.lines", "renamed", "20", "31")]
    assert renamed == [*swapped, ("public.items", "renamed", "30", "41")]


def test_no_look_ends_the_gap_of_a_table_that_is_passed_over() -> None:
    rig = Rig()
    rig.has_rows = {ORDERS}
    rig.judge(look(0x20, {ORDERS: table()}))
    rig.gaps.state("public.orders", after=place(0x20), until="", reason="paused", text="asked")
    rig.append()

    rig.start()
    same = rig.judge(look(0x30, {ORDERS: table()}))
    other = rig.judge(look(0x40, {ORDERS: table(marks={"publication": "9"})}))
    gone = rig.judge(look(0x50, {}))

    for found in (same, other, gone):
        assert found[0] == ("public.orders", "paused", "20", "")


def test_values_that_changed_without_a_record_are_a_gap_where_there_were_rows() -> None:
    before, now = '["1",[[1,"id","23","7"]]]', '["2",[[1,"id","20","8"]]]'
    rig = Rig()
    looks = [
        look(0x20, {ORDERS: table(shape=before), LINES: table("8", shape=before)}),
        look(0x30, {ORDERS: table(shape=now), LINES: table("8", shape=now)}),
    ]
    rig.has_rows = {ORDERS}

    found = rig.judge(*looks)
    again = rig.judge(look(0x40, {ORDERS: table(shape=now), LINES: table("8", shape=now)}))

    assert found == again == [("public.orders", "rows-rewritten", "20", "31")]


def test_a_table_that_goes_is_a_gap_where_it_had_rows() -> None:
    rig = Rig()
    rig.has_rows = {ORDERS}

    found = rig.judge(look(0x20, {ORDERS: table("7"), LINES: table("8")}), look(0x30, {}))

    assert found == [("public.orders", "table-dropped", "20", "31")]


@pytest.mark.parametrize("is_shown", [False, True])
def test_a_table_made_anew_is_a_gap_until_the_stream_shows_it(is_shown: bool) -> None:  # noqa: FBT001
    rig = Rig()
    rig.has_rows = {ORDERS}
    if is_shown:
        rig.identities = {(ORDERS, "9")}
    remade = table("9", fresh=[PUBLISHED_LATE])

    found = rig.judge(look(0x20, {ORDERS: table("7")}), look(0x30, {ORDERS: remade}))

    expected = [] if is_shown else [("public.orders", "table-remade", "20", "31")]
    assert found == expected


def test_a_table_published_late_is_a_gap_and_one_that_is_whole_since_it_exists_is_none() -> None:
    rig = Rig()

    found = rig.judge(
        look(0x20, {}),
        look(0x30, {ORDERS: table("7"), LINES: table("8", fresh=[PUBLISHED_LATE])}),
    )

    assert found == [("public.orders", PUBLISHED_LATE, "20", "31")]


def test_a_table_made_anew_and_published_late_is_a_gap_though_the_stream_showed_a_row() -> None:
    rig = Rig()
    rig.has_rows = {ORDERS}
    rig.identities = {(ORDERS, "8")}

    found = rig.judge(look(0x20, {ORDERS: table("7")}), look(0x30, {ORDERS: table("8")}))

    assert found == [("public.orders", PUBLISHED_LATE, "20", "31")]


def test_a_truncation_that_the_stream_shows_explains_its_partitions() -> None:
    rig = Rig()
    before, after = table(marks={f"{REWRITTEN}:1": "a"}), table(marks={f"{REWRITTEN}:1": "b"})
    rig.judge(look(0x20, {ORDERS: before, LINES: before}))
    rig.truncated = {ORDERS}

    assert rig.judge(look(0x30, {ORDERS: after})) == []


def test_a_piece_may_appear_only_where_it_is_whole_since_it_exists() -> None:
    rig = Rig()
    marks = {"pieces:1": "a", "pieces:2": "a"}

    found = rig.judge(
        look(0x20, {ORDERS: table()}),
        look(0x30, {ORDERS: table(marks={"pieces:1": "a"}, fresh=["pieces:1"])}),
        look(0x40, {ORDERS: table(marks=marks, fresh=["pieces:1"])}),
    )

    assert found == [("public.orders", "pieces", "30", "41")]


def test_under_another_selection_tables_come_and_go_without_a_loss() -> None:
    rig = Rig()
    rig.has_rows = {ORDERS, LINES}
    rig.judge(look(0x20, {ORDERS: table(marks={"membership": "1"})}))
    rig.append()
    rig.start(msgspec.structs.replace(CONFIGURATION, tables=("public.l*", "public.o*")))

    touched = {ORDERS: table(marks={"membership": "2"}), LINES: table("8")}

    # What was known before is compared all the same.
    assert rig.judge(look(0x30, touched)) == [("public.orders", "membership", "20", "31")]


def test_a_table_that_goes_while_the_selection_changes_is_a_gap_if_it_is_still_captured() -> None:
    rig = Rig()
    rig.has_rows = {ORDERS, LINES}
    rig.judge(look(0x20, {ORDERS: table("7"), LINES: table("8")}))
    rig.append()
    rig.start(msgspec.structs.replace(CONFIGURATION, tables=("public.o*",)))

    assert rig.judge(look(0x30, {})) == [("public.orders", "table-dropped", "20", "31")]


def test_what_was_judged_is_known_though_no_durable_said_so() -> None:
    rig = Rig()
    rig.judge(look(0x20, {ORDERS: table(marks={"membership": "1"})}))
    rig.append()
    rig.state.durable = durable(0x80, seq=0)
    rig.start()

    found = rig.judge(look(0x90, {ORDERS: table(marks={"membership": "2"})}))

    assert found == [("public.orders", "membership", "20", "91")]


def test_of_another_publication_nothing_is_known() -> None:
    rig = Rig()
    rig.judge(look(0x20, {ORDERS: table()}))
    rig.append()
    rig.start(msgspec.structs.replace(CONFIGURATION, through="other"))

    assert rig.judge(look(0x30, {ORDERS: table()}, marks={"publication": "9"})) == []


def test_what_is_agreed_of_very_many_tables_is_stated_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.journal.watch.WATCH_BYTES_MAX", 1_000)
    rig = Rig()
    marks = {f"membership:{number}": "1" for number in range(10)}
    tables = {TableName("public", f"t{n}"): table(str(n), marks=marks) for n in range(50)}
    rig.judge(look(0x20, tables))

    sizes = []
    while rig.watch.is_much:
        part = rig.watch.pending
        assert part is not None
        sizes.append(len(msgspec.json.encode(part)))
        assert part.through == ""
        rig.append()
    last = rig.watch.pending
    rig.append()

    assert len(sizes) > 5
    assert max(sizes) < 1_500
    assert last is not None
    assert last.through == "tailrace"
    assert rig.watch.pending is None
    rig.start()
    assert rig.judge(look(0x30, tables)) == []
    touched = tables | {TableName("public", "t7"): table("7", marks=marks | {"membership:3": "2"})}
    assert rig.judge(look(0x40, touched)) == [("public.t7", "membership", "30", "41")]


def test_an_engine_that_ends_between_the_parts_hides_no_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig()
    tables = {
        TableName("public", f"t{n}"): table(str(n), marks={"membership": "1"}) for n in (1, 2)
    }
    touched = {name: table(one.identity, marks={"membership": "2"}) for name, one in tables.items()}
    rig.judge(look(0x20, tables))
    rig.append()
    monkeypatch.setattr("engine.journal.watch.WATCH_BYTES_MAX", 10)
    rig.judge(look(0x30, touched))
    rig.append()
    assert rig.watch.is_much is False
    assert rig.watch.pending is not None
    rig.start()

    again = {name: table(one.identity, marks={"membership": "3"}) for name, one in tables.items()}
    found = rig.judge(look(0x40, again))

    # Each is from the last look that showed it whole, however often it was stated.
    for name in ("public.t1", "public.t2"):
        spans = [(after, until) for gap, _, after, until in found if gap == name]
        assert spans == [("20", "41")]


def test_what_stands_is_told_with_what_mends_it_before_it_is_judged() -> None:
    rig = Rig()

    found = rig.watch.standing(look(0x20, {ORDERS: table(keeps={NOT_PUBLISHED: ()})}))

    assert found == {"public.orders": Reason(f"{NOT_PUBLISHED} is short", "MEND IT")}
    assert rig.gaps.pending == ()


# --- names that are not captured

AWAY = "archive.orders"
BACK = "public.orders"


@pytest.mark.parametrize("is_restart", [False, True])
def test_rows_under_another_name_are_a_gap_once_the_table_is_back(is_restart: bool) -> None:  # noqa: FBT001
    rig = Rig()
    rig.judge(look(0x20, {ORDERS: table()}))
    rig.append()

    assert rig.shows((0x28, "7", BACK), (0x30, "7", AWAY), (0x38, "7", AWAY)) == []
    rig.append()
    if is_restart:
        rig.start()

    assert rig.shows((0x40, "7", BACK)) == [("public.orders", "renamed-away", "30", "41")]
    rig.append()
    assert rig.state.watch is not None
    assert rig.state.watch.away == {}


def test_what_is_read_again_states_the_same_gap_and_ends_no_absence() -> None:
    rig = Rig()
    rig.judge(look(0x20, {ORDERS: table()}))
    read = ((0x28, "7", BACK), (0x30, "7", AWAY), (0x40, "7", BACK), (0x50, "7", AWAY))
    first = rig.shows(*read)

    # After a reconnect.
    again = rig.shows(*read)
    rig.shows((0x60, "7", BACK))

    gap = ("public.orders", "renamed-away", "30", "41")
    assert first == again == [gap]
    assert [brief(g) for g in rig.gaps.standing] == [
        gap,
        ("public.orders", "renamed-away", "50", "61"),
    ]


def test_a_table_that_a_look_sees_leave_is_one_gap_which_ends_when_it_is_back() -> None:
    rig = Rig()
    rig.has_rows = {ORDERS}
    rig.judge(look(0x20, {ORDERS: table()}))

    gone = rig.judge(look(0x30, {}, others=["7"]), look(0x40, {}, others=["7"]))
    # Rows that were read before it left come again after a reconnect.
    rig.shows((0x28, "7", BACK))
    back = rig.judge(look(0x50, {ORDERS: table()}), look(0x60, {ORDERS: table()}))

    assert gone == [("public.orders", "renamed-away", "20", "31")]
    assert back == [("public.orders", "renamed-away", "20", "51")]


def test_a_look_from_before_a_table_left_again_does_not_end_its_absence() -> None:
    rig = Rig()
    rig.judge(look(0x20, {ORDERS: table()}))
    rig.shows((0x28, "7", AWAY), (0x38, "7", AWAY))

    # The look shows it back between both; the stream was read further before it is judged.
    rig.judge(look(0x30, {ORDERS: table()}))
    found = rig.shows((0x50, "7", BACK))

    assert found == [("public.orders", "renamed-away", "28", "51")]


def test_a_table_that_the_settings_name_anew_was_not_renamed() -> None:
    rig = Rig()
    rig.judge(look(0x20, {ORDERS: table()}))
    rig.shows((0x28, "7", AWAY))
    rig.append()
    rig.start(msgspec.structs.replace(CONFIGURATION, tables=("public.*", "archive.*")))

    rig.watch.named(Named("7", TableName.parse(AWAY), is_captured=True, commit=place(0x30)))
    found = rig.judge(look(0x40, {TableName.parse(AWAY): table()}))

    assert found == []


def test_a_table_that_the_settings_name_no_more_has_not_gone() -> None:
    rig = Rig()
    rig.has_rows = {ORDERS, LINES}
    rig.judge(look(0x20, {ORDERS: table(), LINES: table("8")}))
    rig.append()
    rig.start(msgspec.structs.replace(CONFIGURATION, tables=("public.orders",)))
    rig.judge(look(0x30, {ORDERS: table()}, others=["8"]))
    rig.append()
    rig.start()

    assert rig.judge(look(0x40, {ORDERS: table(), LINES: table("8")})) == []


def test_a_table_that_took_a_captured_name_is_a_gap_by_the_stream_or_by_a_look() -> None:
    new = {LINES: table("8", fresh=[PUBLISHED_LATE]), ORDERS: table("9", fresh=[PUBLISHED_LATE])}
    rig = Rig()
    rig.judge(look(0x20, {}, others=["8"]))

    streamed = rig.shows((0x28, "9", AWAY), (0x2C, "9", BACK))
    looked = rig.judge(look(0x30, new), look(0x40, new))

    assert streamed == [("public.orders", "renamed-in", "28", "2D")]
    assert looked == [*streamed, ("public.lines", "renamed-in", "20", "31")]


def test_a_first_look_takes_a_new_table_that_was_renamed_for_one_with_another_name() -> None:
    rig = Rig()
    rig.judge(look(0x20, {}))
    rig.append()
    rig.start()
    made = table("8", fresh=[PUBLISHED_LATE])
    renamed = replace(table("9", fresh=[PUBLISHED_LATE]), is_as_made=False)

    found = rig.judge(look(0x30, {LINES: made, ORDERS: renamed}))

    assert found == [("public.orders", "renamed-in", "20", "31")]
