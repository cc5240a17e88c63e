"""The planner: what it refuses to write into a journal that nobody can take it out of again."""

import msgspec
import pytest

from engine.flow.chunk import Body, SealedChunk
from engine.flow.ledger import Ledger
from engine.flow.reception import Reception
from engine.journal.entry import Frontier, JournalState
from engine.journal.planner import Planner
from engine.model.batch import Operations
from engine.model.errors import InvariantBroken
from engine.model.layout import TableLayout, hour_of
from engine.model.position import Position, make_position
from engine.model.record import RecordConfiguration
from engine.model.schema import Column, Relation, TableName

ORDERS = TableName("public", "orders")
HOUR_US = 3_600_000_000


def at(commit: int) -> Position:
    return make_position(1, commit, commit - 8, 0)


def relation(number: int) -> Relation:
    return Relation(ORDERS, str(number), (Column("id", "integer", "integer", key=True),), ("id",))


def chunk(
    version: int, first: Position, last: Position | None = None, *, commit_us: int = 0
) -> SealedChunk:
    return SealedChunk(
        ORDERS,
        version,
        Body([b"{}\n"]),
        1,
        Operations(c=1),
        first,
        last or first,
        commit_us,
        commit_us,
        3,
        0,
        "age",
    )


def planner(state: JournalState, *, now_us: int = 0) -> tuple[Planner, Reception]:
    configuration = RecordConfiguration(through="tailrace", tables=("*.*",))
    ledger = Ledger({})
    reception = Reception(
        journalled=state.versions,
        durable=lambda: state.durable_position,
        ledger=ledger,
        configuration=configuration,
    )
    planning = Planner(
        state=state,
        ledger=ledger,
        reception=reception,
        configuration=configuration,
        layout=TableLayout("lake", "shop", configuration.layout),
        codec_version=1,
        clock=lambda: now_us,
    )
    return planning, reception


def test_a_version_that_falls_is_refused_before_the_append() -> None:
    planning, reception = planner(JournalState())
    reception.decide(relation(1), at(100))
    reception.decide(relation(2), at(200))
    draft = planning.draft()
    draft.add([chunk(1, at(100)), chunk(2, at(200))])

    with pytest.raises(InvariantBroken, match="version 1, their position has version 2") as caught:
        draft.add([chunk(1, at(300))])

    assert caught.value.hint


def test_a_version_that_nobody_decided_is_refused_before_the_append() -> None:
    draft = planner(JournalState())[0].draft()

    with pytest.raises(InvariantBroken, match="their position has version none"):
        draft.add([chunk(1, at(100))])


def test_rows_behind_the_frontier_are_refused_before_the_append() -> None:
    state = JournalState(frontiers={str(ORDERS): Frontier(at(200), "")})
    planning, reception = planner(state)
    reception.decide(relation(1), at(200))

    with pytest.raises(InvariantBroken, match="does not follow the table"):
        planning.draft().add([chunk(1, at(200))])


def test_a_source_whose_clock_is_ahead_does_not_file_into_the_future() -> None:
    now_us = 1_795_341_114_056_779
    planning, reception = planner(JournalState(), now_us=now_us)
    reception.decide(relation(1), at(100))
    draft = planning.draft()

    draft.add([chunk(1, at(100), commit_us=now_us + 5 * HOUR_US)])

    assert [planned.hour for planned in draft.plan().planned] == [hour_of(now_us)]


def test_a_planner_whose_clock_went_back_keeps_the_last_hour() -> None:
    now_us = 1_795_341_114_056_779
    last_hour = hour_of(now_us + 5 * HOUR_US)
    state = JournalState(frontiers={str(ORDERS): Frontier(at(50), last_hour)})
    planning, reception = planner(state, now_us=now_us)
    reception.decide(relation(1), at(100))
    draft = planning.draft()

    draft.add([chunk(1, at(100), commit_us=now_us)])

    assert [planned.hour for planned in draft.plan().planned] == [last_hour]


def test_a_long_plan_is_split_and_each_entry_holds_the_versions_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.journal.planner.ENTRY_BYTES_MAX", 1_500)
    state = JournalState()
    planning, reception = planner(state)
    for oid, commit in ((1, 100), (2, 400)):
        reception.decide(relation(oid), at(commit))
    chunks = [chunk(1 + (commit >= 400), at(commit)) for commit in range(100, 900, 100)]

    entries = []
    while chunks:
        draft = planning.draft()
        for one in chunks:
            draft.add([one])
            if draft.is_full:
                break
        plan = draft.plan()
        entries.append(plan)
        planning.journalled(plan)
        state.frontiers[str(ORDERS)] = Frontier(plan.planned[-1].last, plan.planned[-1].hour)
        table = str(ORDERS)
        state.versions[table] = (*state.versions.get(table, ()), *plan.schemas)
        chunks = chunks[len(plan.chunks) :]

    planned = [one for plan in entries for one in plan.planned]
    assert len(entries) > 2
    assert [one.first for one in planned] == [at(commit) for commit in range(100, 900, 100)]
    assert [one.previous for one in planned[1:]] == [one.last for one in planned[:-1]]
    known: set[int] = set()
    for plan in entries:
        known |= {version.number for version in plan.schemas}
        assert {one.version for one in plan.planned} <= known
    assert [version.number for plan in entries for version in plan.schemas] == [1, 2]


def test_the_digests_of_tables_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.flow.reception.DIGESTS_MAX", 10)
    asked: list[TableName] = []
    digest = RecordConfiguration.record_digest

    def counted(configuration: RecordConfiguration, table: TableName) -> str:
        asked.append(table)
        return digest(configuration, table)

    monkeypatch.setattr(RecordConfiguration, "record_digest", counted)
    _, reception = planner(JournalState())
    tables = [TableName("public", f"t{number}") for number in range(11)]

    found = [
        reception.decide(msgspec.structs.replace(relation(1), table=table), at(100 * turn))
        for turn, table in enumerate([*tables, tables[-1], tables[0]], 1)
    ]

    # The one that was used last is kept, the oldest is computed anew, and nothing changes by that.
    assert asked == [*tables, tables[0]]
    assert [version.number for version in found if version is not None] == [1] * 13
