"""What a job asks of the table that it writes to. It is the only place that holds the cursor.

Strategy: a commit of the table's own format makes rows and cursor visible together, or neither. It
succeeds only while the cursor is still the one that was read at the start. So whoever is outrun by
another job, or dies, leaves rows that nobody sees, and begins again from the cursor that is there.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from engine.model.errors import TailraceError

Format = Literal["delta", "iceberg", "parquet"]


class Outrun(TailraceError):
    """Another job committed first. Nothing of this commit is visible: begin again."""

    exit_code = 75
    retryable = True


class MaterializeRefused(TailraceError):
    """The table cannot take these changes. `code` is a stable word."""

    exit_code = 1

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


def foreign(location: str, held: str | None) -> MaterializeRefused:
    """What is at `location` holds something else (None: nothing of ours)."""
    what = f"the changes of {held}" if held is not None else "something that is not Tailrace's"
    return MaterializeRefused(
        "table-foreign",
        f"{location} holds {what}",
        hint="Each table needs a place of its own.",
    )


@dataclass(frozen=True, slots=True)
class Settled:
    """A commit that is about to be made: the cursor behind its rows, and how many they are."""

    cursor: str
    until: str
    row_count: int


class LakeTable(Protocol):
    """A log of one table's changes, in a format of its own.

    The calls come in this order: `load` and `prepare`; then, as long as there are rows, `write`
    some times, `settle` and `commit`. After `Outrun` or another error, `load` begins anew and
    forgets what was written. Any: pyarrow has no types.
    """

    def load(self) -> str:
        """The cursor that the table holds now; empty where it has none, or is not there yet."""
        ...

    def prepare(self, schema: Any, source: str) -> None:
        """Make the table, or add the columns that it lacks. Everything else stays as it is.

        `source` is the name of the table whose changes it holds. Raises MaterializeRefused where
        it holds those of another one, or where a column has another type now, and Outrun.
        """
        ...

    def write(self, batch: Any) -> None:
        """Take a batch. Nobody sees its rows yet."""
        ...

    def settle(self, settled: Settled) -> None:
        """Write everything down that the commit will make visible."""
        ...

    def commit(self) -> None:
        """Make rows and cursor visible, both at once.

        Raises Outrun where the cursor is not the one any more that `load`, or the commit before,
        left. After any other error it is not known whether the commit was made. `load` knows.
        """
        ...

    def close(self) -> None:
        """Let go of connections. What was not committed stays invisible."""
        ...
