"""Requests are repeated until they are answered, and what fails meanwhile is known and said."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from engine.journal.retry import Failure, Patience
from engine.model.errors import DestinationRefused, DestinationUnavailable
from simulation.virtual_loop import VirtualLoop

DRAIN_SECONDS = 25.0


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.dispose()


def failing_until(second: float) -> Callable[[], Awaitable[str]]:
    """A request without an answer before that second."""

    async def attempt() -> str:
        if asyncio.get_running_loop().time() < second:
            raise DestinationUnavailable("no answer", code="SlowDown")
        return "done"

    return attempt


def test_a_request_is_made_again_until_it_is_answered(loop: VirtualLoop) -> None:
    failures: list[Failure] = []
    patience = Patience(failures.append)

    assert loop.run_until_complete(patience.answered(failing_until(7.0))) == "done"
    assert len(failures) > 5
    assert patience.failure is None


def test_with_a_limit_the_last_failure_passes_and_is_logged_by_nobody(loop: VirtualLoop) -> None:
    failures: list[Failure] = []
    patience = Patience(failures.append, attempts_max=3)

    with capture_logs() as lines, pytest.raises(DestinationUnavailable) as caught:
        loop.run_until_complete(patience.answered(failing_until(600.0)))

    assert len(failures) == 3
    assert caught.value is failures[-1]
    assert patience.failure is None
    assert not [line for line in lines if line["event"] == "destination unavailable"]


def test_a_drain_has_time_for_many_attempts(loop: VirtualLoop) -> None:
    times: list[float] = []
    patience = Patience(lambda _: times.append(loop.time()))

    loop.run_until_complete(patience.answered(failing_until(DRAIN_SECONDS)))

    assert len(times) >= 14, "three refusals of ten would fail a drain by chance"
    assert max(later - earlier for earlier, later in pairwise(times)) < 2.01
    assert times[4] - times[0] >= 1.0, "a store that wants peace is asked less and less often"


def test_what_fails_now_is_known_until_it_is_answered(loop: VirtualLoop) -> None:
    patience = Patience(lambda _: None)

    async def main() -> tuple[Failure | None, Failure | None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(patience.answered(failing_until(5.0)))
            group.create_task(patience.answered(failing_until(0.0)))
            await asyncio.sleep(3.0)
            meanwhile = patience.failure
        return meanwhile, patience.failure

    meanwhile, afterwards = loop.run_until_complete(main())

    assert str(meanwhile) == "no answer"
    assert afterwards is None


def test_a_cancelled_request_fails_no_more(loop: VirtualLoop) -> None:
    patience = Patience(lambda _: None)

    async def main() -> Failure | None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await patience.answered(failing_until(5.0))
        return patience.failure

    assert loop.run_until_complete(main()) is None


def test_the_newest_failure_is_known_later_without_what_was_sent(loop: VirtualLoop) -> None:
    async def attempt() -> str:
        raise DestinationUnavailable("no answer", code="SlowDown", hint="wait")

    patience = Patience(lambda _: None, attempts_max=2)
    with pytest.raises(DestinationUnavailable):
        loop.run_until_complete(patience.answered(attempt))

    latest = patience.latest
    assert latest is not None
    assert (str(latest), latest.code, latest.hint) == ("no answer", "SlowDown", "wait")
    # Its frames would keep the request's body.
    assert (latest.__traceback__, latest.__context__) == (None, None)


def test_a_refusal_passes_at_once(loop: VirtualLoop) -> None:
    failures: list[Failure] = []
    patience = Patience(failures.append)

    async def refused() -> str:
        raise DestinationRefused("no right", code="AccessDenied")

    with pytest.raises(DestinationRefused):
        loop.run_until_complete(patience.answered(refused))
    assert [failure.code for failure in failures] == ["AccessDenied"]
    assert patience.failure is None


def test_a_long_outage_says_how_long_it_lasts_and_less_and_less_often(loop: VirtualLoop) -> None:
    patience = Patience(lambda _: None)

    with capture_logs() as lines:
        loop.run_until_complete(patience.answered(failing_until(600.0)))

    ours = [line for line in lines if line["event"] == "destination unavailable"]
    seconds = [line["seconds"] for line in ours]
    assert seconds[0] == 0
    assert 5 <= seconds[1] < 8
    assert all(later - earlier >= 5 for earlier, later in pairwise(seconds))
    assert 55 <= seconds[-1] - seconds[-2] <= 63
    assert len(ours) < 20
    attempts = [line["attempt"] for line in ours]
    assert attempts[0] == 1
    assert attempts == sorted(set(attempts))
