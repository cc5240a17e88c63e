"""The ledger: what may become durable, from everything that left the socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.flow.ledger import Ledger
from engine.model.batch import Batch, Boundary, Intake, Operations
from engine.model.errors import InvariantBroken
from engine.model.position import NOWHERE, Position, commit_of, make_position
from engine.model.schema import TableName
from engine.sources.postgres.lsn import lsn_of
from log_points import boundary as boundary_at
from log_points import place

A, B = TableName("public", "a"), TableName("public", "b")


def at(commit: int, n: int = 0) -> Position:
    return make_position(1, commit, commit - 8, n)


def held_count(ledger: Ledger) -> int:
    """Spans and boundaries in memory."""
    return len(ledger._boundaries) + sum(map(len, ledger._spans.values()))


def batch(table: TableName, first: Position, last: Position | None = None) -> Batch:
    return Batch(table, 1, b"{}\n", 1, Operations(c=1), first, last or first, 0, 0)


def intake(*batches: Batch, boundary: int | None = None) -> Intake:
    return Intake(batches, boundary_at(boundary, 7) if boundary is not None else None)


def keepalive(lsn: int) -> Boundary:
    return boundary_at(lsn, is_keepalive=True)


def lsns(boundaries: list[Boundary | None]) -> list[int]:
    return [lsn_of(boundary.point) for boundary in boundaries if boundary is not None]


def durable(ledger: Ledger) -> int | None:
    boundary = ledger.durable_boundary()
    return lsn_of(boundary.point) if boundary is not None else None


def test_nothing_read_means_nothing_durable() -> None:
    ledger = Ledger({})

    assert durable(ledger) is None
    assert ledger.is_empty
    assert ledger.newest_boundary is None


def test_a_boundary_with_nothing_pending_may_become_durable() -> None:
    ledger = Ledger({})

    ledger.read(intake(boundary=100))

    assert durable(ledger) == 100


def test_a_boundary_waits_for_the_rows_before_it() -> None:
    ledger = Ledger({})

    ledger.read(intake(batch(A, at(90)), boundary=100))

    assert durable(ledger) is None
    ledger.visible(A, at(90))
    assert durable(ledger) == 100


def test_a_boundary_at_a_pending_commit_itself_may_become_durable() -> None:
    # Every commit *before* E is durable: the pending one commits at E.
    ledger = Ledger({})

    ledger.read(intake(batch(A, at(90)), boundary=90))

    assert durable(ledger) == 90


def test_every_table_holds_it_back() -> None:
    ledger = Ledger({})
    ledger.read(intake(batch(A, at(90)), batch(B, at(95)), boundary=100))

    ledger.visible(B, at(95))
    before = durable(ledger)
    ledger.visible(A, at(90))

    assert before is None
    assert durable(ledger) == 100


def test_rows_still_in_a_queue_hold_it_back_as_much_as_a_chunk() -> None:
    # A change counts from the moment it leaves the socket.
    ledger = Ledger({})
    ledger.read(intake(batch(A, at(90)), boundary=100))
    ledger.read(intake(batch(A, at(110)), boundary=120))

    ledger.visible(A, at(90))

    assert durable(ledger) == 100


def test_an_object_that_ends_inside_a_batch_leaves_it_pending() -> None:
    ledger = Ledger({})
    ledger.read(intake(batch(A, at(90), at(95)), boundary=100))

    ledger.visible(A, at(90))

    assert durable(ledger) is None


def test_half_a_transaction_holds_back_its_own_commit() -> None:
    ledger = Ledger({})
    ledger.read(intake(batch(A, at(200, 0)), boundary=150))
    ledger.visible(A, at(200, 0))
    ledger.read(intake(batch(A, at(200, 1))))

    assert durable(ledger) == 150
    ledger.visible(A, at(200, 1))
    assert durable(ledger) == 150


def test_the_newest_reached_boundary_wins_over_older_ones() -> None:
    ledger = Ledger({})
    for commit in (90, 190, 290):
        ledger.read(intake(batch(A, at(commit)), boundary=commit + 10))

    ledger.visible(A, at(190))

    assert durable(ledger) == 200


def test_boundaries_seen_again_after_a_reconnect_do_not_go_back() -> None:
    ledger = Ledger({})
    ledger.read(intake(boundary=100))

    ledger.read(intake(boundary=50))

    assert durable(ledger) == 100
    assert ledger.newest_boundary == boundary_at(100, 7)


def test_keepalives_of_an_idle_source_take_each_others_place() -> None:
    ledger = Ledger({})
    ledger.read(intake(batch(A, at(90)), boundary=100))

    for lsn in range(101, 5000):
        ledger.read(intake(boundary=lsn))

    assert len(ledger._boundaries) <= 2


def test_a_boundary_before_pending_rows_survives_keepalives_after_them() -> None:
    ledger = Ledger({})
    ledger.read(intake(boundary=80))
    ledger.read(intake(batch(A, at(90)), boundary=100))
    ledger.read(intake(boundary=110))

    assert durable(ledger) == 80


def test_a_keepalives_position_counts_only_as_far_as_was_looked() -> None:
    ledger = Ledger({})
    ledger.read(Intake((), boundary_at(80)))
    ledger.read(Intake((), keepalive(100)))
    ledger.read(Intake((), keepalive(120)))

    found = [ledger.durable_boundary(place(looked)) for looked in (0, 119, 120)]

    assert lsns(found) == [80, 80, 120]


def test_a_keepalive_that_was_looked_at_counts_whatever_came_after_it() -> None:
    ledger = Ledger({})
    ledger.read(Intake((), boundary_at(80)))
    for lsn in range(100, 5_000):
        ledger.read(Intake((), keepalive(lsn)))

    ledger.looked(keepalive(200))

    found = [ledger.durable_boundary(place(lsn)) for lsn in (199, 200, 4_998, 4_999)]
    assert lsns(found) == [
        80,
        200,
        200,
        4_999,
    ]
    assert held_count(ledger) <= 2


def test_a_keepalive_that_was_looked_at_waits_for_the_rows_before_it() -> None:
    ledger = Ledger({})
    ledger.read(intake(boundary=80))
    ledger.read(intake(batch(A, at(90)), boundary=95))
    ledger.read(Intake((), keepalive(100)))
    looked = ledger.newest_boundary
    assert looked is not None

    ledger.looked(looked)

    assert durable(ledger) == 80
    ledger.visible(A, at(90))
    assert durable(ledger) == 100


def test_a_keepalive_that_no_look_was_taken_behind_does_not_count_yet() -> None:
    # A look tells that it holds up to 150, where only 100 was read when it was taken.
    ledger = Ledger({})
    ledger.read(Intake((), keepalive(100)))
    looked = ledger.newest_boundary
    assert looked is not None
    ledger.read(Intake((), keepalive(160)))

    ledger.looked(looked)

    counting = [ledger.counting_boundary(at) for at in (place(150), place(160), None)]
    assert lsns(counting) == [
        100,
        160,
        160,
    ]


def test_received_is_the_last_position_read_and_begins_at_the_frontier() -> None:
    ledger = Ledger({A: at(50)})

    ledger.read(intake(batch(A, at(90), at(95))))

    assert ledger.received(A) == at(95)
    assert ledger.received(B) == NOWHERE


def test_reading_a_row_twice_is_refused() -> None:
    ledger = Ledger({A: at(50)})

    with pytest.raises(InvariantBroken):
        ledger.read(intake(batch(A, at(50))))


def test_visibility_of_a_table_never_read_changes_nothing() -> None:
    ledger = Ledger({})

    ledger.visible(A, at(90))

    assert ledger.is_empty


steps = st.lists(
    st.tuples(st.sampled_from(["row a", "row b", "see a", "see b", "end", "keepalive"])),
    max_size=60,
)


@given(steps)
def test_durable_is_never_past_a_pending_row_and_never_goes_back(steps: list[tuple[str]]) -> None:
    ledger = Ledger({})
    lsn, newest = 100, 0
    pending: dict[TableName, list[Position]] = {A: [], B: []}
    for (step,) in steps:
        lsn += 10
        table = A if step.endswith("a") else B
        match step.split()[0]:
            case "row":
                # It commits at the next end; keepalives never pass a commit not yet sent.
                ledger.read(intake(batch(table, at(lsn))))
                pending[table].append(at(lsn))
            case "see":
                if pending[table]:
                    ledger.visible(table, pending[table].pop(0))
            case _:
                ledger.read(intake(boundary=lsn))

        found = durable(ledger) or 0

        oldest = min((commit_of(rows[0]) for rows in pending.values() if rows), default=None)
        assert oldest is None or place(found) <= oldest
        assert found >= newest
        newest = found
    for table in (A, B):
        if pending[table]:
            ledger.visible(table, pending[table][-1])
    assert ledger.is_empty
    if ledger.newest_boundary is not None:
        assert durable(ledger) == lsn_of(ledger.newest_boundary.point)


def test_what_is_pending_stays_small_through_a_stall() -> None:
    # Nothing becomes visible for hours while small transactions come, thousands a second.
    ledger = Ledger({})

    for commit in range(100, 400_000, 4):
        ledger.read(intake(batch(A, at(commit)), boundary=commit + 1))

    assert held_count(ledger) < 5_000
    ledger.visible(A, at(399_996))
    assert ledger.is_empty
    assert durable(ledger) == 399_997


def test_an_object_in_the_midst_of_what_is_pending_moves_durable_to_its_end() -> None:
    ledger = Ledger({})
    for commit in range(100, 10_100, 10):
        ledger.read(intake(batch(A, at(commit)), boundary=commit + 1))

    ledger.visible(A, at(5_000))

    reached = durable(ledger)
    assert reached is not None
    # Never past the oldest row that is pending, and not far behind the newest that is visible.
    assert 4_900 < reached <= 5_010


def test_what_was_received_of_thousands_of_tables_is_forgotten_once_it_is_durable() -> None:
    tables = [TableName("public", f"t{number}") for number in range(2000)]
    ledger = Ledger(dict.fromkeys(tables, at(50)))
    ledger.read(intake(batch(A, at(90)), batch(B, at(120))))
    ledger.visible(B, at(120))

    ledger.forget(place(100))

    assert {ledger.received(table) for table in tables} == {NOWHERE}
    # One is pending, the other commits after what is durable.
    assert (ledger.received(A), ledger.received(B)) == (at(90), at(120))


def test_what_commits_at_the_durable_position_itself_is_not_forgotten() -> None:
    # E is exclusive: a replay from E on shows that commit again, and only this drops its rows.
    tables = [TableName("public", f"t{number}") for number in range(2000)]
    ledger = Ledger(dict.fromkeys(tables, at(50)))
    ledger.read(intake(batch(A, at(100))))
    ledger.visible(A, at(100))

    ledger.forget(place(100))

    assert ledger.received(A) == at(100)


def test_what_was_received_of_a_few_tables_is_kept() -> None:
    ledger = Ledger({A: at(50)})

    ledger.forget(place(100))

    assert ledger.received(A) == at(50)


def test_nothing_behind_a_row_that_is_held_becomes_durable() -> None:
    ledger = Ledger({})
    ledger.hold(at(300))
    ledger.hold(at(200))
    ledger.hold(at(250))

    ledger.read(intake(boundary=200))
    ledger.read(intake(boundary=350))

    assert durable(ledger) == 200
    assert ledger.is_empty


def test_what_was_read_behind_a_held_row_counts_once_it_is_read_again() -> None:
    ledger = Ledger({})
    ledger.read(intake(boundary=150))
    ledger.hold(at(200))
    ledger.read(intake(batch(A, at(250)), boundary=350))
    ledger.visible(A, at(250))

    ledger.read_again()
    before = durable(ledger)
    # The held row comes with this intake, and the boundary once more.
    ledger.read(intake(batch(B, at(200)), boundary=350))
    pending = durable(ledger)
    ledger.visible(B, at(200))

    assert (before, pending) == (150, 150)
    assert durable(ledger) == 350
