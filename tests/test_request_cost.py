"""What requests to the bucket come to: the arithmetic, against numbers worked out by hand."""

from dataclasses import replace

import pytest

from engine.model.request_cost import MONTH_SECONDS, Pace, Requests, cost_text, saving

PACE = Pace(append=1, age=30, idle=30, probe=10, look=10, entries_a_state=500)


def test_an_append_a_second_is_two_and_a_half_million_a_month() -> None:
    assert MONTH_SECONDS == 2_592_000
    assert PACE.entries() == 2_592_000


def test_an_idle_engine_appends_each_half_minute_and_looks_each_ten_seconds() -> None:
    # 86,400 entries, a state file for each 500 of them, and 259,200 listings.
    assert PACE.idle_requests() == Requests(puts=86_400 + 172 + 259_200, gets=259_200)


def test_a_busy_engine_appends_once_an_interval_and_need_not_look_who_appended() -> None:
    assert PACE.busy_requests() == Requests(puts=2_592_000 + 5_184 + 259_200)


def test_an_interval_longer_than_a_look_looks_in_between() -> None:
    assert replace(PACE, append=20, age=60).busy_requests().gets == 259_200


@pytest.mark.parametrize(
    ("append", "age", "seconds"), [(1, 30, 29), (10, 30, 20), (10, 10, 10), (30, 30, 30)]
)
def test_a_tables_chunk_is_cut_an_interval_before_its_age(
    append: float, age: float, seconds: float
) -> None:
    requests = replace(PACE, append=append, age=age).table_requests()

    assert requests.puts == round(MONTH_SECONDS / seconds)


def test_puts_and_gets_have_prices_of_their_own() -> None:
    assert Requests(puts=1_000_000).dollars == pytest.approx(5.0)
    assert Requests(puts=0, gets=1_000_000).dollars == pytest.approx(0.4)


def test_a_longer_interval_saves_what_the_entries_cost() -> None:
    # 2,592,000 entries and 5,184 state files, against 259,200 and 518: at $5 a million.
    expected = (2_592_000 + 5_184 - 259_200 - 518) * 5 / 1e6

    assert saving(PACE, replace(PACE, append=10)) == pytest.approx(expected)


def test_the_text_names_idle_and_busy_and_what_would_save() -> None:
    text = cost_text(PACE)

    assert "$1.83 idle" in text
    assert "up to $14.28 busy (2.6 million PUTs, engine.append_interval = 1s)" in text
    assert 'engine.append_interval = "10s" would save up to $11.69' in text
    assert "us-east-1, November 2026" in text


@pytest.mark.parametrize(("append", "age"), [(10, 30), (1, 5)])
def test_nothing_is_said_of_an_interval_that_cannot_be_or_would_not_save(
    append: float, age: float
) -> None:
    assert "would save" not in cost_text(replace(PACE, append=append, age=age))
