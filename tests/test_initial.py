"""When a stream that waits for the initial snapshot starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from engine.journal.entry import JournalState, StreamStart
from engine.journal.initial import StreamWait

if TYPE_CHECKING:
    from engine.journal.snapshots import SnapshotRegister
    from engine.journal.watcher import Watcher


@dataclass
class Looked:
    """A watcher that has judged so many looks."""

    judged_count: int = 1
    is_admitting: bool = False


@dataclass
class Registered:
    holds_stream_back: bool = False
    unfinished_names: frozenset[str] = frozenset()


def waiting(
    *, waits: bool = True, looked: Looked | None = None, holds_back: bool = False
) -> StreamWait:
    return StreamWait(
        JournalState(stream_waits=waits),
        cast("SnapshotRegister", Registered(holds_back)),
        cast("Watcher", looked or Looked()),
    )


def test_it_starts_once_nothing_holds_it_back() -> None:
    assert waiting().due == StreamStart(waits=False)
    assert waiting(holds_back=True).due is None


def test_nothing_is_said_where_it_does_not_wait() -> None:
    assert waiting(waits=False).due is None


def test_no_stream_starts_before_a_look_of_this_life_or_while_a_table_is_let_in() -> None:
    assert waiting(looked=Looked(judged_count=0)).due is None
    assert waiting(looked=Looked(is_admitting=True)).due is None


def test_it_starts_once_and_a_life_does_not_change_its_mind() -> None:
    one = waiting()
    start = one.due

    one.journalled(start)

    assert one.due is None
    assert one.started.is_set()
    assert one.is_waited_for
