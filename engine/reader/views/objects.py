"""Names of the fields of a record, as the envelopes have them, for engines that read structs."""

from dataclasses import dataclass
from typing import Final

from engine.model.record import Envelope


@dataclass(frozen=True, slots=True)
class Fields:
    """Where a record has its op, its position, its commit's time in milliseconds, and its lists.

    `holder` is the struct that has all of these; `is_op_inside` says whether the op is in it too.
    """

    holder: str
    time: str
    is_op_inside: bool

    @property
    def op(self) -> str:
        """Where the op is."""
        return f"{self.holder}.op" if self.is_op_inside else "op"


FIELDS: Final[dict[Envelope, Fields]] = {
    "standard": Fields("metadata", "source_ts_ms", is_op_inside=True),
    "debezium": Fields("source", "ts_ms", is_op_inside=False),
}
