"""A run of the load tests that a signal ends: never inside a call, and cleaned up after."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from load_tests.live import interruptible

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[object]]:
    """What the signals did before, and do again afterwards."""
    found = [signal.getsignal(number) for number in _SIGNALS]
    yield [*found]
    for number, handler in zip(_SIGNALS, found, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", _SIGNALS)
def test_a_signal_cancels_between_two_turns_and_others_are_ignored(number: signal.Signals) -> None:
    told: list[str] = []

    async def main() -> None:
        try:
            os.kill(os.getpid(), number)
            # A handler that raises would do so before this line.
            told.append("the call is over")
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            told.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        interruptible.run(main())
    os.kill(os.getpid(), number)

    assert told == ["the call is over", "cleaned up"]


def test_without_a_signal_its_result_is_there_and_the_handlers_are_as_before(
    handlers: list[object],
) -> None:
    async def main() -> int:
        await asyncio.sleep(0)
        return 7

    assert interruptible.run(main()) == 7
    assert [signal.getsignal(number) for number in _SIGNALS] == handlers
