"""Which of a folder's records count, as a condition of SQL."""

from typing import Final

from engine.model.position import ATTEMPT_AT, RANGE_AT, attempt_digits
from engine.reader.views.dialect import Dialect
from engine.reader.views.shape import TableShape

_NO_ATTEMPT: Final = 0


def counted_condition(shape: TableShape, dialect: Dialect, op: str, position: str) -> str:
    """The stream's records, and those of the one attempt whose rows count.

    A row of a snapshot is told by its op. The truncate record that begins an attempt has range 0,
    where no change of a stream has it.
    """
    attempt = f"SUBSTR({position}, {ATTEMPT_AT[0]}, {ATTEMPT_AT[1]})"
    in_range = f"SUBSTR({position}, {RANGE_AT[0]}, {RANGE_AT[1]})"
    counted = dialect.literal(attempt_digits(shape.attempt))
    stream = dialect.literal(attempt_digits(_NO_ATTEMPT))
    first = dialect.literal("0" * RANGE_AT[1])
    is_stream = (
        f"{op} <> 'r' AND NOT ({op} = 't' AND {in_range} = {first} AND {attempt} <> {stream})"
    )
    if shape.attempt == _NO_ATTEMPT:
        return f"({is_stream})"
    return f"(({is_stream}) OR ({op} IN ('r', 't') AND {attempt} = {counted}))"
