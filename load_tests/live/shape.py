"""How many rows are due when: a rate over time, steady or in bursts. Pure."""

import msgspec


class Step(msgspec.Struct, frozen=True, array_like=True):
    """A rate for a while."""

    seconds: float
    rows_per_second: float


class Shape(msgspec.Struct, frozen=True, array_like=True):
    """Steps that follow each other and begin anew after the last one."""

    steps: tuple[Step, ...]

    @classmethod
    def steady(cls, rows_per_second: float) -> "Shape":
        return cls((Step(1.0, rows_per_second),))

    @property
    def period_seconds(self) -> float:
        return sum(step.seconds for step in self.steps)

    @property
    def rows_per_second_mean(self) -> float:
        return self._rows_a_period / self.period_seconds

    def rows_due(self, seconds: float) -> int:
        """How many rows are due so long after the start."""
        periods, rest = divmod(seconds, self.period_seconds)
        rows = periods * self._rows_a_period
        for step in self.steps:
            part = min(rest, step.seconds)
            rows += part * step.rows_per_second
            rest -= part
        # Whole seconds are sums of fractions that are not exact: half a row is no row.
        return round(rows)

    @property
    def _rows_a_period(self) -> float:
        return sum(step.seconds * step.rows_per_second for step in self.steps)
