"""The row codec's instructions, counted by callgrind: see `rowcodec_cost.py`.

No time is measured, so another test on the same core changes nothing.
"""

import pytest

from rowcodec_cost import departures, measure, recorded_costs

_RECORDED = {"narrow": 1.0, "wide": 2.0}


@pytest.mark.timeout(300)
def test_no_row_costs_more_instructions_than_recorded() -> None:
    costs = measure()

    found = departures(costs, recorded_costs())
    assert not found, "\n".join(found)


def test_a_cost_within_the_bounds_is_no_departure() -> None:
    assert departures({"narrow": 1.29, "wide": 1.21}, _RECORDED) == ()


def test_a_cost_that_grew_is_named_with_its_growth_and_the_way_to_record_it() -> None:
    [said] = departures({"narrow": 1.0, "wide": 2.7}, _RECORDED)

    assert said.startswith("wide: 2.7 times the reference, recorded 2.0: 1.35 times of that")
    assert said.endswith("python tests/rowcodec_cost.py records anew")


def test_a_cost_that_fell_far_is_to_be_recorded() -> None:
    [said] = departures({"narrow": 0.5, "wide": 2.0}, _RECORDED)

    assert "expected 0.6 at least" in said


def test_a_record_of_other_vectors_is_a_departure() -> None:
    [said] = departures({"narrow": 1.0}, _RECORDED)

    assert "other vectors" in said
