"""The router: who has to wait, and what is cut to make room."""

import asyncio
import gc
from collections.abc import Callable

from engine.flow.budget import MemoryBudget
from engine.flow.chunk import ChunkLimits
from engine.flow.router import Router
from engine.flow.writer import TableWriter
from engine.model.batch import Batch, Intake, Operations
from engine.model.position import Position, make_position
from engine.model.schema import TableName

HOT, QUIET = TableName("public", "hot"), TableName("public", "quiet")


def at(commit: int) -> Position:
    return make_position(1, commit, commit - 8, 0)


def batch(table: TableName, commit: int, size: int = 100, rows: int = 1) -> Batch:
    lines = b"x" * (size - 1) + b"\n"
    return Batch(table, 1, lines, rows, Operations(c=rows), at(commit), at(commit), 0, 0)


def router(*, memory: int, rows_max: int, on_waiting: Callable[[], None] = lambda: None) -> Router:
    return Router(
        queue_bytes_max=1_000,
        limits=ChunkLimits(bytes_max=1 << 20, rows_max=rows_max, age_seconds_max=30.0),
        compression="gzip",
        budget=MemoryBudget(memory),
        on_cut=lambda: None,
        on_waiting=on_waiting,
    )


def test_a_full_queue_cuts_no_other_tables_chunks() -> None:
    # The queue is full because two cut chunks of its table wait for S3: cutting others' frees
    # nothing and makes many small objects.
    routing = router(memory=1_000_000, rows_max=10)
    routing.route(Intake((batch(QUIET, 100),), None), 0.0)
    for commit in range(200, 260, 10):
        routing.route(Intake((batch(HOT, commit, size=600, rows=10),), None), 0.0)
    assert not routing.has_room

    routing.cut_largest()

    assert {chunk.table for chunk in routing.take_sealed()} == {HOT}


def test_a_chunk_is_as_old_as_the_time_for_which_its_rows_were_held() -> None:
    routing = router(memory=1_000_000, rows_max=10)

    routing.route(Intake((batch(QUIET, 100),), None, held_seconds=2.0), 10.0)

    assert routing.due(37.9) == []
    assert [writer.table for writer in routing.due(38.0)] == [QUIET]


def test_the_first_chunk_to_grow_old_is_known() -> None:
    routing = router(memory=1_000_000, rows_max=10)
    assert routing.earliest_due is None

    routing.route(Intake((batch(HOT, 200),), None), 7.0)
    routing.route(Intake((batch(QUIET, 100),), None), 5.0)

    assert routing.earliest_due == 35.0


def test_rows_behind_a_chunk_without_a_plan_hurry_it_and_others_do_not() -> None:
    hurry = asyncio.Event()
    routing = router(memory=1_000_000, rows_max=10, on_waiting=hurry.set)
    for commit in (200, 210):
        routing.route(Intake((batch(HOT, commit, rows=10),), None), 0.0)
    assert not hurry.is_set(), "nothing waits behind these two"

    routing.route(Intake((batch(HOT, 220, rows=10),), None), 0.0)
    assert hurry.is_set()

    # Planned, and being published: an entry would help nobody.
    chunks = routing.take_sealed()
    hurry.clear()
    routing.route(Intake((batch(HOT, 230, rows=10),), None), 0.0)
    assert not hurry.is_set()

    # One of them is visible, the next one is cut, and the last rows wait behind it.
    routing.published(HOT, len(chunks[0].body))
    assert hurry.is_set()


def test_a_full_budget_cuts_the_largest_chunks_only() -> None:
    routing = router(memory=10_000, rows_max=1_000)
    routing.route(Intake((batch(QUIET, 100),), None), 0.0)
    routing.route(Intake((batch(HOT, 200, size=9_950),), None), 0.0)
    assert not routing.has_room

    routing.cut_largest()

    assert [chunk.table for chunk in routing.take_sealed()] == [HOT]


def test_a_table_whose_rows_are_all_visible_is_forgotten_and_counted_once() -> None:
    routing = router(memory=1_000_000, rows_max=10)
    for commit in range(100, 1_100, 10):
        table = TableName("come_and_gone", f"t{commit % 500}")
        routing.route(Intake((batch(table, commit, rows=10),), None), 0.0)
        (chunk,) = routing.take_sealed()
        routing.published(table, len(chunk.body))

    kept = [found for found in gc.get_objects() if isinstance(found, TableWriter)]

    assert [writer for writer in kept if writer.table.schema == "come_and_gone"] == []
    assert routing.table_count == 50
