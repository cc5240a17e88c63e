"""The planner: what it refuses to write into a journal that nobody can take it out of again."""

import pytest

from engine.batch import Operations
from engine.chunk import Body, SealedChunk
from engine.envelope import RecordConfiguration
from engine.errors import InvariantBroken
from engine.journal_entry import Frontier, JournalState
from engine.layout import TableLayout
from engine.ledger import Ledger
from engine.planner import Planner
from engine.position import Lsn, Position, make_position
from engine.schema import Column, Relation, TableName

ORDERS = TableName("public", "orders")


def at(commit: int) -> Position:
    return make_position(1, Lsn(commit), Lsn(commit - 8), 0)


def relation(oid: int) -> Relation:
    return Relation(ORDERS, oid, "d", (Column("id", "integer", "integer", key=True),), ("id",))


def chunk(version: int, first: Position, last: Position | None = None) -> SealedChunk:
    return SealedChunk(
        ORDERS,
        version,
        Body([b"{}\n"]),
        1,
        Operations(c=1),
        first,
        last or first,
        0,
        0,
        3,
        0,
        "age",
    )


def planner(state: JournalState) -> Planner:
    configuration = RecordConfiguration(publication="tailrace", tables=("*.*",))
    return Planner(
        state=state,
        ledger=Ledger({}),
        configuration=configuration,
        layout=TableLayout("lake", "shop", configuration.layout),
        codec_version=1,
        clock=lambda: 0,
    )


def test_a_version_that_falls_is_refused_before_the_append() -> None:
    planning = planner(JournalState())
    planning.decide(relation(1), at(100))
    planning.decide(relation(2), at(200))
    draft = planning.draft()
    draft.add([chunk(1, at(100)), chunk(2, at(200))])

    with pytest.raises(InvariantBroken, match="version 1, their position has version 2") as caught:
        draft.add([chunk(1, at(300))])

    assert caught.value.hint


def test_a_version_that_nobody_decided_is_refused_before_the_append() -> None:
    draft = planner(JournalState()).draft()

    with pytest.raises(InvariantBroken, match="their position has version none"):
        draft.add([chunk(1, at(100))])


def test_rows_behind_the_frontier_are_refused_before_the_append() -> None:
    state = JournalState(frontiers={str(ORDERS): Frontier(at(200), "")})
    planning = planner(state)
    planning.decide(relation(1), at(200))

    with pytest.raises(InvariantBroken, match="does not follow the table"):
        planning.draft().add([chunk(1, at(200))])
