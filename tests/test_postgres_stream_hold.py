"""How long a stream says that its rows were held, on a clock of the test's."""

from dataclasses import dataclass, field

from engine.lines.holding import HELD_BATCHES_MIN, HELD_BYTES_MAX, Holding
from engine.model.batch import Batch, Intake, Operations
from engine.model.position import make_position
from engine.model.schema import TableName
from engine.sources.postgres.stream import PostgresStream

AT = make_position(1, 100, 90, 0)
ROW = Batch(TableName("public", "a"), 1, b"{}\n", 1, Operations(c=1), AT, AT, 0, 0)


@dataclass
class Clock:
    now: float = 100.0

    def time(self) -> float:
        return self.now


@dataclass
class StandInAssembler:
    """What was drained so far: batches in the codec, and full ones beside it."""

    in_codec: int = 0
    full: list[Batch] = field(default_factory=list)
    is_handing_over: bool = False

    @property
    def buffered_bytes(self) -> int:
        return min(self.in_codec, HELD_BYTES_MAX - 1)

    @property
    def has_full_batches(self) -> bool:
        return bool(self.full)

    @property
    def has_intake(self) -> bool:
        return bool(self.full or self.in_codec)

    def full_batches(self, held_seconds: float) -> Intake:
        batches, self.full = tuple(self.full), []
        return Intake(batches, None, held_seconds)

    def intake(self, held_seconds: float) -> Intake:
        batches = (*self.full, *[ROW] * self.in_codec)
        self.in_codec, self.full = 0, []
        return Intake(batches, None, held_seconds)


class Drained:
    """A stream of which only the hold is at work."""

    def __init__(self) -> None:
        self.clock, self.assembler = Clock(), StandInAssembler()
        self._stream = PostgresStream.__new__(PostgresStream)
        self._stream._is_look_wanted = False
        vars(self._stream).update(_assembler=self.assembler, _loop=self.clock, _holding=Holding())

    def at(self, seconds: float, batches: int, full: int = 0) -> Intake | None:
        """A drain that ends so many seconds later with so many batches more."""
        self.clock.now += seconds
        self.assembler.in_codec += batches
        self.assembler.full += [ROW] * full
        return self._stream._intake()


MANY = HELD_BATCHES_MIN + 1


def held(intake: Intake | None) -> float:
    assert intake is not None
    return round(intake.held_seconds, 6)


def test_few_tables_are_handed_over_at_once() -> None:
    drained = Drained()

    assert [held(drained.at(0.01, 3)) for _ in range(3)] == [0, 0, 0]


def test_rows_are_as_old_as_the_first_that_was_held() -> None:
    drained = Drained()
    assert held(drained.at(0, MANY)) == 0

    assert drained.at(0.3, MANY) is None
    assert drained.at(0.3, MANY) is None

    assert held(drained.at(0.5, MANY)) == 0.8


def test_a_table_that_is_full_leaves_and_says_how_old_it_may_be() -> None:
    drained = Drained()
    drained.at(0, MANY)
    drained.at(0.2, MANY)

    assert held(drained.at(0.7, 1, full=1)) == 0.7


def test_a_pause_in_reading_makes_nothing_older() -> None:
    drained = Drained()
    drained.at(0, MANY)

    # Nothing is read for 40 s: what comes then left the socket just now.
    assert held(drained.at(40, MANY)) == 0


def test_what_needs_no_hold_is_not_held() -> None:
    drained = Drained()
    drained.at(0, MANY)

    assert held(drained.at(0.01, 0, full=2)) == 0
