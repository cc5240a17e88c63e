"""How a socket is read: how long it is left alone, in made-up times."""

import pytest

from engine.sources.postgres.gulps import Pacing

ROOM = 1 << 20


def pauses(pacing: Pacing, drained_bytes: int, times: int) -> list[float]:
    """The pauses after so many readings in a row, each begun where the last pause ended."""
    now, found = 100.0, []
    for _ in range(times):
        pacing.drained(drained_bytes)
        pacing.ended(now, ROOM)
        found.append(round(pacing.seconds_left(now), 6))
        now += found[-1]
    return found


def test_the_pause_grows_with_the_load_up_to_its_limit() -> None:
    assert pauses(Pacing(is_used=True), 1000, 6) == [0.001, 0.002, 0.004, 0.008, 0.010, 0.010]


def test_the_pause_shrinks_before_the_socket_is_full() -> None:
    pacing = Pacing(is_used=True)
    pauses(pacing, 1000, 5)

    assert pauses(pacing, ROOM // 2, 4) == [0.005, 0.0025, 0.00125, 0.001]


def test_after_a_quiet_spell_the_pause_is_short_again() -> None:
    pacing = Pacing(is_used=True)
    pauses(pacing, 1000, 5)

    pacing.ended(200.0, ROOM)

    assert pacing.seconds_left(200.0) == pytest.approx(0.001)


def test_a_unix_socket_is_never_left_alone() -> None:
    pacing = Pacing(is_used=False)

    pacing.ended(100.0, ROOM)

    assert pacing.seconds_left(100.0) <= 0
