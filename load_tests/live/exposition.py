"""What is read of `/metrics`. Pure."""

import math
from collections.abc import Iterator


def total(text: str, name: str) -> float:
    """The sum of a metric over all its labels."""
    return sum(value for _, value in _samples(text, name))


def by_label(text: str, name: str, label: str) -> dict[str, float]:
    """The sums of a metric by one of its labels."""
    sums: dict[str, float] = {}
    for labels, value in _samples(text, name):
        sums[labels[label]] = sums.get(labels[label], 0.0) + value
    return sums


def buckets(text: str, name: str) -> tuple[tuple[float, float], ...]:
    """A histogram without labels of its own: upper bounds and cumulative counts."""
    found = ((labels["le"], count) for labels, count in _samples(text, f"{name}_bucket"))
    return tuple((math.inf if bound == "+Inf" else float(bound), count) for bound, count in found)


def _samples(text: str, name: str) -> Iterator[tuple[dict[str, str], float]]:
    for line in text.splitlines():
        if line.startswith((f"{name} ", f"{name}{{")):
            head, _, value = line.rpartition(" ")
            yield _labels(head.removeprefix(name)), float(value)


def _labels(text: str) -> dict[str, str]:
    """Of values without commas or escapes, as ours are."""
    pairs = (pair.partition("=") for pair in text.strip("{}").split(",") if pair)
    return {name: value.strip('"') for name, _, value in pairs}
