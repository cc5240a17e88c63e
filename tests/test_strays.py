"""Tables whose rows came under another captured name between two looks."""

import pytest

from databases import Database
from engine.journal.entry import Frontier
from engine.model.position import make_position
from engine.model.schema import TableName
from memory_store import MemoryStore
from test_catalog_watch import SLOW, here, running
from test_unseen import version
from test_watch import LINES, ORDERS, Rig, look, table

AS_BEFORE = {ORDERS: table("7"), LINES: table("8")}


@pytest.fixture
def rig() -> Rig:
    """A look has agreed on two tables."""
    rig = Rig()
    rig.judge(look(0x20, AS_BEFORE))
    return rig


def journalled(rig: Rig, first: int, last: int) -> None:
    """Rows of `public.orders` are planned as those of `public.passing`."""
    rig.state.versions["public.passing"] = (version(1, first, "7"),)
    rig.state.frontiers["public.passing"] = Frontier(make_position(1, last, 5, 0), "")


def test_rows_under_a_name_that_the_table_does_not_keep_are_missing_under_its_own(rig: Rig) -> None:
    rig.shows((0x30, "7", "public.passing"), (0x32, "7", "public.orders"))

    assert rig.judge(look(0x40, AS_BEFORE)) == [("public.orders", "renamed", "20", "41")]
    # It is told once.
    assert rig.judge(look(0x50, AS_BEFORE)) == [("public.orders", "renamed", "20", "41")]


def test_a_name_that_was_another_tables_for_a_while_has_rows_of_both(rig: Rig) -> None:
    rig.shows((0x30, "7", "public.lines"))

    assert sorted(rig.judge(look(0x40, AS_BEFORE))) == [
        ("public.lines", "renamed", "20", "41"),
        ("public.orders", "renamed", "20", "41"),
    ]


def test_a_name_that_the_table_keeps_is_no_stray(rig: Rig) -> None:
    rig.shows((0x30, "7", "public.passing"))
    kept = {TableName("public", "passing"): table("7"), LINES: table("8")}

    assert rig.judge(look(0x40, kept)) == []


def test_a_look_that_may_be_older_than_the_rows_leaves_them_to_the_next_one(rig: Rig) -> None:
    rig.shows((0x30, "7", "public.passing"))

    early = rig.judge(look(0x40, AS_BEFORE, since=0x30))

    assert early == []
    assert rig.judge(look(0x50, AS_BEFORE)) == [("public.orders", "renamed", "30", "51")]


def test_rows_that_are_read_again_are_no_strays(rig: Rig) -> None:
    rig.shows((0x18, "7", "public.passing"))

    assert rig.judge(look(0x40, AS_BEFORE)) == []


def test_a_table_that_is_gone_leaves_no_live_rows_under_the_name(rig: Rig) -> None:
    rig.shows((0x30, "7", "public.passing"))

    assert ("public.passing", "table-dropped", "20", "41") in rig.judge(
        look(0x40, {LINES: table("8")})
    )


@pytest.mark.parametrize("first", [0x30, 0x12])
def test_the_next_engine_knows_of_rows_behind_the_last_look(rig: Rig, first: int) -> None:
    rig.append()
    journalled(rig, first, 0x34)
    rig.start()

    assert rig.judge(look(0x40, AS_BEFORE)) == [("public.orders", "renamed", "20", "41")]


def test_the_next_engine_leaves_rows_to_the_look_that_judged_them(rig: Rig) -> None:
    rig.append()
    journalled(rig, 0x12, 0x18)
    rig.start()

    assert rig.judge(look(0x40, AS_BEFORE)) == []


async def test_a_table_that_is_renamed_and_back_between_two_looks_is_a_gap(
    database15: Database,
) -> None:
    database15.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    store = MemoryStore()
    async with running(database15, store, settings=SLOW) as engine:
        database15.execute("INSERT INTO orders VALUES (1)")
        begin = here(database15)
        database15.execute("ALTER TABLE orders RENAME TO passing")
        database15.execute("INSERT INTO passing VALUES (2)")
        database15.execute("ALTER TABLE passing RENAME TO orders")
        end = here(database15)

    async with running(database15, store) as engine:
        gap = await engine.gap("public.orders", "renamed")

        assert (gap.after <= begin, gap.until >= end) == (True, True)
