"""What the simulation reports."""


class Violation(Exception):
    """A promise does not hold, or an engine stopped without cause."""
