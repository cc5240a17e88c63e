"""The same failure at the same place: when it stands, and when it is over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from configured import make_settings
from engine.flow.chunk import ChunkLimits
from engine.journal import recurrence
from engine.journal.entry import Writer
from engine.journal.recurrence import PAUSE_SECONDS_MAX, Recurrence
from engine.model.batch import Intake
from engine.model.errors import LeaseHeld, SourceFailed, SourceUnavailable
from engine.model.interfaces import ChangeStream, Standing
from engine.model.record import RecordConfiguration
from engine.operate.metrics import Metrics
from engine.operate.status import Phase, Status
from engine.pipeline import streaming
from engine.pipeline.pipeline import Pipeline
from engine.pipeline.stop import StopSignal
from load_tests.engine_process import until
from log_points import boundary, place, point
from memory_store import MemoryStore
from still_source import StillSource, StillStream

BAD_VALUE = SourceFailed("a value cannot be sent", code="22P05", hint="mend the value")
CANCELLED = SourceFailed("somebody cancelled", code="57014")
LOST = SourceUnavailable("the connection was lost")

# ------------------------------------------------------------------------------ the rule


def test_a_failure_stands_when_it_comes_a_second_time_at_the_same_position() -> None:
    found = Recurrence()

    found.failed(BAD_VALUE, place(10))
    once = found.is_standing, found.pause_seconds
    found.failed(BAD_VALUE, place(10))

    assert once == (False, 0.0)
    assert found.is_standing


def test_pauses_double_up_to_a_limit() -> None:
    found = Recurrence()
    found.failed(BAD_VALUE, place(10))
    pauses = []

    for _ in range(2000):
        found.failed(BAD_VALUE, place(10))
        pauses.append(found.pause_seconds)

    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == PAUSE_SECONDS_MAX


@pytest.mark.parametrize(
    "failures",
    [
        [(BAD_VALUE, 10), (BAD_VALUE, 12), (BAD_VALUE, 14)],
        [(BAD_VALUE, 10), (CANCELLED, 10)],
        [(LOST, 10), (LOST, 10), (LOST, 10)],
        [(BAD_VALUE, 10), (LOST, 10)],
    ],
)
def test_progress_another_error_and_lost_connections_do_not_stand(
    failures: list[tuple[SourceUnavailable, int]],
) -> None:
    found = Recurrence()

    for error, position in failures:
        found.failed(error, place(position))

    assert not found.is_standing


def test_what_stands_goes_on_through_other_errors_until_something_new_is_read() -> None:
    found = Recurrence()
    for error in (BAD_VALUE, BAD_VALUE, LOST, CANCELLED):
        found.failed(error, place(10))
    found.reached(place(10))
    stood = found.is_standing

    found.reached(place(11))

    assert stood
    assert not found.is_standing


# ------------------------------------------------------------------------ a whole pipeline


class Stream(StillStream):
    """Gives what its source has."""

    def __init__(self, source: "Source") -> None:
        super().__init__()
        self._source = source

    async def receive(self) -> Intake:
        source = self._source
        if source.error is not None:
            raise source.error
        if source.written > source.given:
            source.given = source.written
            return Intake((), boundary(source.written))
        await source.changed.wait()
        source.changed.clear()
        return Intake((), None)

    async def standing(self) -> Standing:
        return Standing(confirmed=point(100), end=point(self._source.written))


class Source(StillSource):
    """Fails with `error`, when asked for a stream too where `is_refusing`."""

    def __init__(self) -> None:
        super().__init__()
        self.error: SourceUnavailable | LeaseHeld | None = None
        self.is_refusing = False
        self.written, self.given = 200, 0
        self.changed = asyncio.Event()

    @property
    def attempt_count(self) -> int:
        return len(self.starts)

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[ChangeStream]:
        if self.error is not None and self.is_refusing:
            raise self.error
        yield Stream(self)


class Rig:
    def __init__(self) -> None:
        self.source = Source()
        self.stop = StopSignal()
        self.pipeline = Pipeline(
            source=self.source,
            store=MemoryStore(),
            clock=lambda: 86_400_000_000,
            settings=make_settings(
                codec_version=1,
                limits=ChunkLimits(1 << 20, 1_000, 30.0),
                queue_bytes_max=1 << 20,
                memory_bytes_max=1 << 20,
                standby_interval=0.01,
            ),
            configuration=RecordConfiguration(through="tailrace", tables=("public.*",)),
            writer=Writer("a", "only", "test"),
            metrics=Metrics(CollectorRegistry()),
            stop=self.stop,
        )

    async def reaches(self, phase: Phase) -> Status:
        async def look() -> bool:
            return self.pipeline.status().phase == phase

        await until(look, phase)
        return self.pipeline.status()

    async def tries_again(self, times: int) -> None:
        wanted = self.source.attempt_count + times

        async def look() -> bool:
            return self.source.attempt_count >= wanted

        await until(look, "another attempt")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.pipeline.run())
            yield
            self.stop.request("the test's end")


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(recurrence, "PAUSE_SECONDS_FIRST", 0.01)
    return Rig()


@pytest.mark.parametrize("is_refusing", [True, False])
async def test_a_source_that_fails_at_one_place_is_failing_until_it_is_passed(
    rig: Rig, *, is_refusing: bool
) -> None:
    rig.source.is_refusing = is_refusing
    rig.source.error = BAD_VALUE
    async with rig.running():
        failing = await rig.reaches("failing")
        await rig.tries_again(3)
        still = rig.pipeline.status()
        rig.source.error = None
        rig.source.written = 300
        mended = await rig.reaches("streaming")

    assert not failing.is_ready
    [alarm] = failing.alarms
    assert alarm.code == "source-failing"
    assert "a value cannot be sent" in alarm.text
    # A first start that is refused knows no place yet.
    where = "" if is_refusing else f" at {point(100).resume} (position {place(100)})"
    assert alarm.text.startswith(f"the source fails{where} again and again: ")
    assert alarm.hint == "mend the value"
    assert "a value cannot be sent" in failing.last_error
    assert still.phase == "failing"
    assert mended.alarms == ()
    assert mended.last_error == ""


async def test_a_failure_that_passes_with_nothing_left_to_read_is_over(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_STANDING_FIRST_SECONDS", 0.05)
    monkeypatch.setattr(streaming, "_STANDING_INTERVAL", 0.05)
    async with rig.running():
        await rig.reaches("streaming")
        rig.source.error = CANCELLED
        rig.source.changed.set()
        await rig.reaches("failing")

        rig.source.error = None
        idle = await rig.reaches("streaming")

    assert idle.alarms == ()


async def test_lost_connections_are_reconnecting_and_never_failing(rig: Rig) -> None:
    async with rig.running():
        await rig.reaches("streaming")
        rig.source.error = LOST
        rig.source.changed.set()
        await rig.reaches("reconnecting")
        rig.source.is_refusing = True
        await rig.tries_again(3)
        lost = rig.pipeline.status()

    assert lost.phase == "reconnecting"
    assert lost.alarms == ()


async def test_a_standby_that_cannot_reach_the_source_is_not_a_healthy_one(rig: Rig) -> None:
    rig.source.is_refusing = True
    rig.source.error = LeaseHeld("another engine holds it")
    async with rig.running():
        standby = await rig.reaches("standby")
        rig.source.error = LOST
        lost = await rig.reaches("reconnecting")

    assert standby.is_ready
    assert not lost.is_ready
    assert "connection was lost" in lost.last_error
