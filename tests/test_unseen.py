"""Tables that are made and go between two looks: what the stream, and the journal, know of them."""

import pytest
from msgspec.structs import replace

from engine.journal.entry import Frontier
from engine.journal.unseen import unseen_of
from engine.model.interfaces import PUBLISHED_LATE
from engine.model.position import make_position
from engine.model.schema import Relation, TableVersion
from engine.sources.postgres.log_messages import MESSAGES, messages_relation
from log_points import place
from test_watch import CONFIGURATION, LINES, ORDERS, Rig, look, table

BORN = table("8", fresh=[PUBLISHED_LATE])
DROPPED = ("public.orders", "table-dropped", "20", "41")


@pytest.fixture
def rig() -> Rig:
    """A look has agreed on another table."""
    rig = Rig()
    rig.judge(look(0x20, {LINES: table("7")}))
    return rig


def test_a_table_that_comes_and_goes_between_two_looks_is_a_gap(rig: Rig) -> None:
    rig.shows((0x30, "8", "public.orders"))

    assert rig.judge(look(0x40, {LINES: table("7")})) == [DROPPED]
    # It is told once, also where the log is read again.
    rig.shows((0x30, "8", "public.orders"))
    assert rig.judge(look(0x50, {LINES: table("7")})) == [DROPPED]


def test_a_table_that_a_look_shows_goes_by_that_look(rig: Rig) -> None:
    rig.has_rows = {ORDERS}
    rig.shows((0x30, "8", "public.orders"))

    stays = rig.judge(look(0x40, {LINES: table("7"), ORDERS: BORN}))
    goes = rig.judge(look(0x50, {LINES: table("7")}))

    assert (stays, goes) == ([], [("public.orders", "table-dropped", "40", "51")])


def test_a_look_that_may_be_older_than_the_rows_proves_nothing(rig: Rig) -> None:
    rig.shows((0x30, "8", "public.orders"))

    early = rig.judge(look(0x40, {LINES: table("7")}, since=0x30))

    assert early == []
    assert rig.judge(look(0x50, {LINES: table("7"), ORDERS: BORN})) == []


def test_a_table_that_went_away_under_another_name_is_a_gap_until_it_is_back(rig: Rig) -> None:
    rig.shows((0x30, "8", "public.orders"))

    away = rig.judge(look(0x40, {LINES: table("7")}, others=["8"]))
    back = rig.judge(look(0x50, {LINES: table("7"), ORDERS: BORN}))

    assert away == [("public.orders", "renamed-away", "20", "41")]
    assert back == [("public.orders", "renamed-away", "20", "51")]


def test_a_part_of_another_table_has_not_gone(rig: Rig) -> None:
    rig.shows((0x30, "8", "public.orders"))

    part = look(0x40, {LINES: table("7")}, parts=["8"])

    assert rig.judge(part) == []


@pytest.mark.parametrize("is_shown", [False, True])
def test_a_successor_that_the_stream_shows_says_itself_that_it_is_another_table(
    rig: Rig,
    is_shown: bool,  # noqa: FBT001
) -> None:
    rig.identities = {(ORDERS, "9")} if is_shown else set()
    rig.shows((0x30, "8", "public.orders"))

    found = rig.judge(look(0x40, {LINES: table("7"), ORDERS: table("9", fresh=[PUBLISHED_LATE])}))

    assert found == ([] if is_shown else [("public.orders", "table-remade", "20", "41")])


def test_a_successor_of_an_engine_knows_by_the_journal_of_rows_that_no_look_followed(
    rig: Rig,
) -> None:
    rig.append()
    rig.state.versions[str(ORDERS)] = (version(1, 0x18, "6"), version(2, 0x30, "8"))
    rig.state.frontiers[str(ORDERS)] = Frontier(make_position(1, 0x30, 5, 0), "")

    rig.start()
    found = rig.judge(look(0x40, {LINES: table("7")}))
    rig.append()
    rig.start()
    again = rig.judge(look(0x50, {LINES: table("7")}))

    assert found == again == [DROPPED]


def test_what_a_look_has_agreed_on_is_not_unseen(rig: Rig) -> None:
    rig.append()
    rig.state.versions[str(LINES)] = (version(1, 0x18, "7"),)
    rig.state.versions[str(ORDERS)] = (version(1, 0x18, "8"),)
    for table_name in (LINES, ORDERS):
        rig.state.frontiers[str(table_name)] = Frontier(make_position(1, 0x30, 5, 0), "")

    assert unseen_of(rig.state) == {"8": (str(ORDERS), place(0x30))}


def test_the_table_of_messages_has_not_gone_because_no_look_shows_it(rig: Rig) -> None:
    published = replace(CONFIGURATION, messages=str(MESSAGES))
    # Also where they are published no more, and the settings' patterns match its name.
    matching = replace(CONFIGURATION, tables=("*.*",))
    rig.append()
    first = make_position(1, 0x18, 1, 0)
    messages = TableVersion(1, first, "", messages_relation(published))
    rig.state.versions[str(MESSAGES)] = (messages,)
    rig.state.frontiers[str(MESSAGES)] = Frontier(make_position(1, 0x30, 5, 0), "")

    for number, configuration in enumerate((published, matching)):
        rig.start(configuration)
        assert rig.judge(look(0x40 + number, {LINES: table("7")})) == []
        rig.append()


def version(number: int, commit: int, identity: str) -> TableVersion:
    relation = Relation(ORDERS, identity, (), ())
    return TableVersion(number, make_position(1, commit, 1, 0), "", relation)
