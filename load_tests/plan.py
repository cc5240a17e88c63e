"""What a scenario is asked to measure."""

import msgspec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one invocation, as they are kept in its result."""

    scenario: str
    rows: int
    rounds: int
    postgres_majors: tuple[int, ...]
