"""Percentiles of weighted values, and how steeply a figure grows. Pure."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise


def percentiles(
    weighted: Iterable[tuple[float, int]], fractions: Sequence[float]
) -> tuple[float, ...]:
    """By nearest rank: the least value below or at which that fraction of the weight lies.

    `weighted` are values with their weights. Raises ValueError where there is none.
    """
    ordered = sorted((value, weight) for value, weight in weighted if weight)
    if not ordered:
        raise ValueError("no values, no percentiles")
    total = sum(weight for _, weight in ordered)
    return tuple(_at(ordered, max(1, math.ceil(fraction * total))) for fraction in fractions)


def _at(ordered: Sequence[tuple[float, int]], rank: int) -> float:
    for value, weight in ordered:
        rank -= weight
        if rank <= 0:
            return value
    return ordered[-1][0]


def histogram_percentile(buckets: Sequence[tuple[float, float]], fraction: float) -> float:
    """What a histogram says: linear inside a bucket, as Prometheus's `histogram_quantile`.

    `buckets` are upper bounds and cumulative counts, the last bound infinite. NaN where it is
    empty; the last finite bound where the rank lies beyond.
    """
    total = buckets[-1][1] if buckets else 0
    if not total:
        return math.nan
    rank = fraction * total
    for (below, before), (bound, count) in pairwise(((0.0, 0.0), *buckets)):
        if count >= rank:
            if math.isinf(bound):
                return below
            return below + (bound - below) * (rank - before) / ((count - before) or 1)
    return math.nan


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The least-squares line's growth per unit of time; 0 where the times do not differ."""
    if len(times) < 2:
        return 0.0
    time_mean, value_mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((time - time_mean) ** 2 for time in times)
    if not spread:
        return 0.0
    pairs = zip(times, values, strict=True)
    return sum((time - time_mean) * (value - value_mean) for time, value in pairs) / spread
