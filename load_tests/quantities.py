"""The quantities of a run that are compared, shown and held against targets, by name.

Strategy: one table. A name that is not in it is looked up in the run's own figures, so a scenario
compares its own figures as it compares a rate. A quantity is None where a run does not have it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from load_tests.run import Run

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is computed from a run, and how it is written: value / `divisor`, in `unit`."""

    text: str
    unit: str
    of: Callable[[Run], float | None]
    digits: int = 2
    divisor: float = 1.0

    def shown(self, value: float | None) -> str:
        """Without the unit; a dash for what was not measured."""
        return "–" if value is None else f"{value / self.divisor:,.{self.digits}f}"


def _rate(run: Run) -> float | None:
    return run.rows / run.usage.wall_seconds or None


def _started_rate(run: Run) -> float | None:
    """Without the start-up, but until all is durable; with everything where no log tells it."""
    start = run.phases.start_seconds if run.phases is not None else 0.0
    return run.rows / (run.usage.wall_seconds - start) or None


def _streaming_rate(run: Run) -> float | None:
    """Without start-up and drain; with everything where no log tells those."""
    return run.rows / run.phases.streaming_seconds or None if run.phases else _rate(run)


def _a_row(seconds: float | None, run: Run) -> float | None:
    """Microseconds; None also where the kernel's clock, which ticks every 10 ms, saw nothing."""
    return seconds * 1e6 / run.rows if seconds and run.rows else None


def _streaming_cpu(run: Run) -> float | None:
    return _a_row(run.phases.streaming_cpu_seconds, run) if run.phases is not None else None


QUANTITIES: dict[str, Quantity] = {
    "rate": Quantity("rows/s, whole process", "rows/s", _rate, 0),
    "started_rate": Quantity("rows/s, without start-up", "rows/s", _started_rate, 0),
    "streaming_rate": Quantity("rows/s, streaming alone", "rows/s", _streaming_rate, 0),
    "own_cpu": Quantity("own CPU", "µs a row", lambda run: _a_row(run.usage.own_cpu_seconds, run)),
    "streaming_cpu": Quantity("own CPU while streaming", "µs a row", _streaming_cpu),
    "walsender_cpu": Quantity(
        "walsender's CPU", "µs a row", lambda run: _a_row(run.usage.walsender_cpu_seconds, run)
    ),
    "s3_cpu": Quantity(
        "S3 server's CPU", "µs a row", lambda run: _a_row(run.usage.s3_cpu_seconds, run)
    ),
    "peak_rss": Quantity(
        "peak RSS", "MiB", lambda run: float(run.usage.peak_rss_bytes) or None, 0, _MIB
    ),
    "other_cpu": Quantity("others' CPU", "s", lambda run: run.usage.other_cpu_seconds),
    "wall": Quantity("wall time", "s", lambda run: run.usage.wall_seconds),
}

# What is compared with every peer; a run's own figures are compared besides.
COMPARED = ("rate", "started_rate", "streaming_rate", "own_cpu", "walsender_cpu", "peak_rss")


def quantity(name: str) -> Quantity:
    """The quantity of a name; a run's own figure under any other name."""
    found = QUANTITIES.get(name)
    if found is not None:
        return found
    if name.endswith("_per_cpu_second"):
        text, _, unit = name.removesuffix("_per_cpu_second").rpartition("_")
        unit = f"{unit}/CPU-s"
    elif name.endswith("_per_second"):
        text, _, unit = name.removesuffix("_per_second").rpartition("_")
        unit = f"{unit}/s"
    else:
        text, _, unit = name.rpartition("_")
    divisor = {"bytes": _MIB}.get(unit, 1.0)
    shown_unit = {"seconds": "s", "bytes": "MiB", "ratio": "×", "us": "µs"}.get(unit, unit)
    digits = 0 if unit in ("rows/s", "rows/CPU-s") else 3
    return Quantity(
        text.replace("_", " "), shown_unit, lambda run: run.figures.get(name), digits, divisor
    )
