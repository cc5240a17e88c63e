"""Gaps between the moment they are stated and the entry that holds them."""

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from configured import make_settings
from engine.flow.chunk import ChunkLimits
from engine.journal.committer import GAPS_BYTES_MAX
from engine.journal.entry import (
    Entry,
    Frontier,
    Gap,
    JournalState,
    Writer,
    decode_entry,
    encode_entry,
)
from engine.journal.gaps import GAPS_APART_MAX, LEFT_OUT_ROWS_MAX, PUBLISHED_AFTER_ALL, GapRegister
from engine.model.batch import LeftOut
from engine.model.errors import UnrepresentableRow
from engine.model.position import Position
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.operate.metrics import Metrics
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from engine.sources.synthetic import SyntheticSource
from memory_store import MemoryStore
from simulation.virtual_loop import VirtualLoop


def stated(gaps: GapRegister, table: str = "public.orders", until: str = "") -> Gap:
    return gaps.state(table, after="0001.A", until=until, reason="operations", text="some")


def test_gaps_are_numbered_on_from_those_of_the_journal() -> None:
    state = JournalState(gaps={7: Gap(7, "public.orders", "0001.A", "", "operations", "some")})
    gaps = GapRegister(state, lambda: 7)

    numbers = [stated(gaps).number, stated(gaps).number]

    assert numbers == [8, 9]
    assert [gap.number for gap in gaps.standing] == [7, 8, 9]


def test_a_gap_waits_until_the_journal_holds_its_newest_statement() -> None:
    gaps = GapRegister(JournalState(), lambda: 7)
    stated(gaps)
    sent = gaps.pending
    gaps.end(1, "0001.B")

    gaps.journalled(sent)

    (waiting,) = gaps.pending
    assert (waiting.number, waiting.until) == (1, "0001.B")
    gaps.journalled(gaps.pending)
    assert gaps.pending == ()


def test_a_gap_that_is_stated_up_to_another_point_moves_its_end_forward_only() -> None:
    gaps = GapRegister(JournalState(), lambda: 7)

    for until in ("0001.B", "0001.D", "0001.C"):
        gaps.state_up_to("public.a", after="0001.A", until=until, reason="renamed-in", text=until)
    gaps.state_up_to("public.a", after="0001.E", until="0001.F", reason="renamed-in", text="")

    assert [(gap.number, gap.until) for gap in gaps.standing] == [(1, "0001.D"), (2, "0001.F")]


def test_a_gap_of_the_journal_can_be_mended() -> None:
    state = JournalState(gaps={7: Gap(7, "public.orders", "0001.A", "", "operations", "some")})
    gaps = GapRegister(state, lambda: 7)

    gaps.mend(7, "snapshot 3")

    (waiting,) = gaps.pending
    assert (waiting.number, waiting.mended, waiting.reason) == (7, "snapshot 3", "operations")


def touched(gaps: GapRegister, after: int, until: int, reason: str = "partitions") -> int:
    """A gap between two looks; its number."""
    begin, end = f"0001.{after:04d}", f"0001.{until:04d}"
    return gaps.state("public.orders", after=begin, until=end, reason=reason, text="some").number


def bounds(gaps: GapRegister) -> list[tuple[int, str, str]]:
    return [(gap.number, gap.after, gap.until) for gap in gaps.standing]


@pytest.mark.parametrize("is_restart", [False, True])
def test_a_gap_that_adjoins_another_of_its_table_and_reason_is_the_same_one(
    is_restart: bool,  # noqa: FBT001
) -> None:
    state = JournalState()
    gaps = GapRegister(state, lambda: 7)
    touched(gaps, 10, 21)
    if is_restart:
        state.gaps = {gap.number: gap for gap in gaps.pending}
        gaps = GapRegister(state, lambda: 7)

    numbers = [touched(gaps, 20, 31), touched(gaps, 20, 31, "other"), touched(gaps, 40, 51)]

    assert numbers == [1, 2, 3]
    assert bounds(gaps) == [
        (1, "0001.0010", "0001.0031"),
        (2, "0001.0020", "0001.0031"),
        (3, "0001.0040", "0001.0051"),
    ]


def test_a_gap_that_adjoins_one_that_ended_goes_on_until_it_ends() -> None:
    gaps = GapRegister(JournalState(), lambda: 7)
    touched(gaps, 10, 21)

    again = gaps.state(
        "public.orders", after="0001.0020", until="", reason="partitions", text="more"
    )
    gaps.end(again.number, "0001.0061")

    assert bounds(gaps) == [(1, "0001.0010", "0001.0061")]
    assert gaps.pending[0].text == "more"


def test_very_many_gaps_of_a_table_and_a_reason_are_one_that_goes_on() -> None:
    gaps = GapRegister(JournalState(), lambda: 7)

    for number in range(1, 200):
        touched(gaps, number * 20, number * 20 + 5)

    found = bounds(gaps)
    assert len(found) == GAPS_APART_MAX
    assert found[-2] == (15, "0001.0300", "0001.0305")
    # Nothing that was lost is left out.
    assert found[-1] == (16, "0001.0320", "0001.3985")


def left_out(number: int) -> LeftOut:
    return LeftOut(
        TableName("public", "orders"), Position(f"0001.{number:04d}"), "odd", '{"id": "1"}'
    )


def test_a_row_that_is_left_out_is_one_gap_however_often_it_is_read() -> None:
    state = JournalState()
    gaps = GapRegister(state, lambda: 7)

    counts = [gaps.leave_out(left_out(number)) for number in (1, 2, 1)]
    state.gaps = {gap.number: gap for gap in gaps.pending}
    successor = GapRegister(state, lambda: 7)
    counts += [successor.leave_out(left_out(number)) for number in (2, 3)]

    assert counts == [1, 2, 2, 2, 3]
    assert [gap.position for gap in gaps.pending] == ["0001.0001", "0001.0002"]
    (newest,) = successor.pending
    assert (newest.after, newest.until, newest.position) == ("0001.0003",) * 3
    assert (newest.reason, newest.text, newest.key) == ("unrepresentable", "odd", '{"id": "1"}')


def test_too_many_rows_of_a_table_are_not_left_out() -> None:
    gaps = GapRegister(JournalState(), lambda: 7)
    for number in range(LEFT_OUT_ROWS_MAX):
        gaps.leave_out(left_out(number))

    with pytest.raises(UnrepresentableRow, match=r"10000 rows of public\.orders") as caught:
        gaps.leave_out(left_out(LEFT_OUT_ROWS_MAX))

    assert caught.value.hint
    assert gaps.leave_out(left_out(7)) == LEFT_OUT_ROWS_MAX


def register_of_an_earlier_engine(frontier: int) -> GapRegister:
    """Rows 4 and 6 were left out; planned is everything up to `frontier`."""
    state = JournalState()
    gaps = GapRegister(state, lambda: 7)
    for number in (4, 6):
        gaps.leave_out(left_out(number))
    state.gaps = {gap.number: gap for gap in gaps.pending}
    state.frontiers["public.orders"] = Frontier(position(frontier), "")
    return GapRegister(state, lambda: 7)


def position(number: int) -> Position:
    return left_out(number).position


def test_a_row_that_is_planned_after_all_mends_its_gap() -> None:
    gaps = register_of_an_earlier_engine(frontier=3)

    gaps.leave_out(left_out(6))
    gaps.planned("public.lines", position(1), position(9))
    gaps.planned("public.orders", position(5), position(9))
    before = gaps.pending
    gaps.planned("public.orders", position(4), position(9))

    assert before == ()
    assert [(gap.number, gap.mended) for gap in gaps.pending] == [(1, PUBLISHED_AFTER_ALL)]
    assert gaps.leave_out(left_out(7)) == 2


def test_a_row_whose_neighbours_were_planned_without_it_stays_a_gap() -> None:
    gaps = register_of_an_earlier_engine(frontier=6)

    gaps.planned("public.orders", position(3), position(9))

    assert gaps.pending == ()


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.dispose()


async def entries_with_a_gap_at(seconds: float, gap_count: int = 1) -> list[Entry]:
    """The journal of a pipeline that reads a few rows, and is told of a gap then."""
    store, stop = MemoryStore(), StopSignal()
    pipeline = Pipeline(
        source=SyntheticSource(row_count=1_000),
        store=store,
        clock=lambda: 1_800_000_000_000_000,
        settings=make_settings(
            codec_version=1,
            limits=ChunkLimits(1 << 30, 1 << 30, 30.0),
            queue_bytes_max=1 << 20,
            memory_bytes_max=1 << 30,
            append_interval=1.0,
        ),
        configuration=RecordConfiguration(through="", tables=("*.*",)),
        writer=Writer("a", "first", "test"),
        metrics=Metrics(CollectorRegistry()),
        stop=stop,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(pipeline.run())
        await asyncio.sleep(seconds)
        assert pipeline._streaming is not None
        for _ in range(gap_count):
            stated(pipeline._streaming.gaps)
        await asyncio.sleep(2.5)
        stop.request("test")
    journal = sorted(key for key in store.objects if "/journal/" in key)
    return [decode_entry(store.objects[key].body, key) for key in journal]


@pytest.mark.parametrize("seconds", [0.5, 10.0])
def test_a_gap_is_in_the_next_entry_and_before_whatever_passes_it(
    loop: VirtualLoop, seconds: float
) -> None:
    entries = loop.run_until_complete(entries_with_a_gap_at(seconds))

    (with_gap,) = [entry for entry in entries if entry.gaps]
    assert [gap.number for gap in with_gap.gaps] == [1]
    # Rows grow old after 30 s: nothing else was due when the gap was stated.
    assert with_gap.seq < max(entry.seq for entry in entries if entry.planned)


def test_very_many_gaps_are_spread_over_entries_before_anything_passes_them(
    loop: VirtualLoop,
) -> None:
    entries = loop.run_until_complete(entries_with_a_gap_at(0.5, 20_000))

    with_gaps = [entry for entry in entries if entry.gaps]
    assert len(with_gaps) > 2
    assert max(len(encode_entry(entry)) for entry in entries) < 1.5 * GAPS_BYTES_MAX
    numbers = [gap.number for entry in with_gaps for gap in entry.gaps]
    assert numbers == list(range(1, 20_001))
    assert with_gaps[-1].seq <= min(entry.seq for entry in entries if entry.planned)
