"""Log points: places where a source's log can be cut between transactions.

Only a source makes a log point. The core compares the `position`s of two of them and hands
`resume` back to the source that made it; what it says is for that source alone.
"""

import msgspec

from engine.model.position import LogPosition


class LogPoint(msgspec.Struct, frozen=True, gc=False):
    """A place between two transactions of a source's log.

    `position` holds generation and order, as text that compares with every position. `resume` is
    the source's own text: from there it can read its log again. `commit_us` is the time of the
    commit that ends here, or the server's time where none does, in Unix microseconds.
    """

    position: LogPosition
    resume: str
    commit_us: int


def place_text(position: LogPosition, resume: str) -> str:
    """A place as an operator is told it: in the source's own words where they are known."""
    return f"{resume} (position {position})" if resume else f"position {position}"
