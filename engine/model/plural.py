"""Counts in messages: one place that knows when a noun takes an s."""


def counted(count: int, noun: str, plural: str = "", *, form: str = "") -> str:
    """`1 problem`, `2 problems`; `plural` where an s does not do, `form` as in `format`."""
    return f"{count:{form}} {pluralized(count, noun, plural)}"


def pluralized(count: int, noun: str, plural: str = "") -> str:
    """The noun as it stands beside `count`."""
    return noun if count == 1 else plural or f"{noun}s"
