"""What the simulation calls a broken promise, and what it does not."""

from collections import Counter
from typing import Any, cast

import orjson
import pytest

from engine.journal.entry import Entry, Gap, JournalState, Writer, encode_entry, encode_state
from engine.model.position import log_position
from engine.model.record import RecordConfiguration
from engine.model.request import Request, encode_request, request_key
from simulation.engines import prepared_process
from simulation.monitor import Reading, summary_of_state
from simulation.requests import RequestMonitor
from simulation.snapshot_monitor import SnapshotMonitor, SnapshotReading, Stated
from simulation.source import Transaction
from simulation.store import Bucket, StoredObject
from simulation.violation import Violation
from simulation.virtual_loop import Process
from simulation.world import World

NAME = "20261122T095918.343660Z-88b85eba820b26d9"
CONFIGURATION = RecordConfiguration("tailrace", ("public.*",), snapshot="initial")


class _Bucket:
    """Holds one request: to take the snapshot of `public.a` again."""

    def __init__(self) -> None:
        body = encode_request(Request(1, "resync", ("public.a",)))
        key = request_key("lake", NAME)
        self.objects = {key: StoredObject(key, body, {}, 0, Process("operator"))}


def check_answer(*said: str) -> None:
    """Judge an entry that answers the request and says this of a table that had a snapshot."""
    seen = Stated({"table": "public.a", "state": "whole", "attempt": 1}, 1, 3, is_visible=True)
    reading = SnapshotReading({"public.a": seen}, {"public.a": 1})
    statements = [{"table": "public.a", "state": state} for state in said]
    for statement in statements:
        reading.read(statement, epoch=1, seq=7, e="")
    answer = {"name": NAME, "kind": "resync", "outcome": "done", "tables": ["public.a"]}
    entry: dict[str, Any] = {"seq": 7, "answers": [answer], "snapshots": statements}
    bucket = cast("Bucket", _Bucket())
    RequestMonitor(Counter()).check(entry, bucket, reading, CONFIGURATION, {})


@pytest.mark.parametrize("state", ["wanted", "gone"])
def test_a_request_is_done_where_its_entry_says_what_it_came_to(state: str) -> None:
    """A table that is gone meanwhile is as before: the snapshot that it had is there."""
    check_answer(state)


@pytest.mark.parametrize("said", [(), ("cancelled",)])
def test_a_request_is_not_done_where_its_entry_says_nothing_of_it(said: tuple[str, ...]) -> None:
    with pytest.raises(Violation, match="without its statement"):
        check_answer(*said)


def test_a_state_file_has_to_forget_the_gaps_that_the_fold_forgets() -> None:
    state, reading = JournalState(), Reading()
    gaps = [
        Gap(number, "public.a", "1", "2", "some", "", "it is there", position="1" * (number % 2))
        for number in range(1, 2_010)
    ]
    standing = Gap(2_010, "public.a", "1", "2", "some", "")
    made = Entry(
        format=1,
        seq=0,
        epoch=0,
        nonce="n",
        writer=Writer("a", "a", "test"),
        previous_sha256="",
        gaps=(*gaps, standing),
    )
    body = encode_entry(made)

    state.absorb(made, body)
    reading.read(orjson.loads(body), body)

    found = summary_of_state(encode_state(state))["gaps"]
    assert found == reading.summary()["gaps"]
    assert sorted(found) == list(range(10, 2_011))


def visible(**more: str) -> Stated:
    snapshot = {"table": "public.a", "state": "whole", "attempt": 1, "point": "5", **more}
    return Stated(snapshot, 1, 3, is_visible=True)


@pytest.mark.parametrize("state", ["started", "wanted"])
def test_a_gap_is_mended_by_the_snapshot_that_is_there_whatever_is_wanted_since(state: str) -> None:
    later = Stated({"table": "public.a", "state": state}, 1, 4, before=visible())

    SnapshotMonitor(Counter()).check_mended({"until": "5"}, later)


@pytest.mark.parametrize(
    ("newest", "text"),
    [
        (Stated({"table": "public.a", "state": "wanted"}, 1, 4), "not visible"),
        (visible(), "before its end"),
        (visible(point="7", began="5"), "before its end"),
    ],
)
def test_a_gap_is_mended_by_no_snapshot_that_is_not_there_or_did_not_see_its_end(
    newest: Stated, text: str
) -> None:
    with pytest.raises(Violation, match=text):
        SnapshotMonitor(Counter()).check_mended({"until": "6"}, newest)


@pytest.mark.parametrize(
    ("accepted_at", "is_bare"),
    [("", False), (log_position(1, 90), False), (log_position(1, 91), True)],
)
def test_a_log_is_told_by_a_commit_behind_what_was_accepted_and_by_no_keepalive(
    accepted_at: str, *, is_bare: bool
) -> None:
    with prepared_process():
        world = World(0)
        world.server.transactions = [Transaction(log_position(1, 90), 80, 82, 0, ())]
        world.monitor.accepted_at = accepted_at

        assert world._is_bare is is_bare
        world.loop.dispose()


def test_nobody_is_in_the_way_once_everything_has_to_settle() -> None:
    """A look that comes after 1,000 s may be the first to try it again."""
    with prepared_process():
        world = World(0)
        before = {world.server.is_refused() for _ in range(100)}
        world.is_calm = True
        after = {world.server.is_refused() for _ in range(100)}

        assert before == {False, True}
        assert after == {False}
        world.loop.dispose()
