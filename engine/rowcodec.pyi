"""The native row codec: one pgoutput row message or COPY row in, one NDJSON line out.

See `rowcodec.pyx` for the strategy. A line is a pure function of the frame, the binding, `begin`'s
arguments and the number of earlier changes of the relation at the same `change_lsn`: no clock, no
locale, no order of `bind` calls shows in it. `CODEC_VERSION` grows whenever the same input gives
other lines.
"""

from collections.abc import Sequence
from typing import Final, Literal, final

CODEC_VERSION: Final[int]

KIND_TEXT: Final[int]
KIND_BOOLEAN: Final[int]
KIND_INTEGER: Final[int]
KIND_FLOAT: Final[int]
KIND_NUMERIC: Final[int]
KIND_TIMESTAMP: Final[int]
KIND_TIMESTAMPTZ: Final[int]
KIND_DATE: Final[int]
KIND_TIME: Final[int]
KIND_TIMETZ: Final[int]
KIND_INTERVAL: Final[int]
KIND_BYTEA: Final[int]
KIND_JSON: Final[int]
KIND_MONEY: Final[int]
# A flag: `KIND_ARRAY | KIND_INTEGER` is an array of integers.
KIND_ARRAY: Final[int]

def builtin_kind(type_oid: int) -> int:
    """The kind of a built-in type or of an array of one; KIND_TEXT for every other OID.

    A domain is the caller's to resolve: pass its base type's OID.
    """

@final
class Rows:
    """What `RowCodec.take` hands over: whole lines of one relation, in commit order.

    `operations` counts the lines by op, in the order c, u, d, r, t.
    """

    def __init__(
        self,
        lines: bytes,
        row_count: int,
        first_position: str,
        last_position: str,
        operations: tuple[int, int, int, int, int],
    ) -> None: ...
    @property
    def lines(self) -> bytes: ...
    @property
    def row_count(self) -> int: ...
    @property
    def first_position(self) -> str: ...
    @property
    def last_position(self) -> str: ...
    @property
    def first_commit_us(self) -> int: ...
    @property
    def last_commit_us(self) -> int: ...
    @property
    def operations(self) -> tuple[int, int, int, int, int]: ...

@final
class RowCodec:
    """Encodes the rows of one stream. Not safe for use from two threads at once."""

    def __init__(self, generation: int, row_bytes_max: int = ..., rows_max: int = ...) -> None:
        """`generation` begins every position: 0 to 9999, else ValueError.

        A row whose message or line is larger than `row_bytes_max` (1 GiB) cannot be encoded. A
        relation with `rows_max` lines is full: `encode` and its like then answer a size beyond all.
        """

    @property
    def buffered(self) -> int:
        """Bytes of lines not yet taken, over all relations."""

    def bind(
        self,
        relation_id: int,
        *,
        database: str,
        schema: str,
        table: str,
        version: int,
        columns: Sequence[tuple[str, int, bool, bool]],
        key: Sequence[str],
        envelope: Literal["standard", "debezium", "flat"],
        numeric: Literal["string", "number"],
        json: Literal["embed", "string"],
        flat_prefix: str = "_",
    ) -> None:
        """Say what the relation's tuples hold; replaces an earlier binding.

        A column is (name, kind, in the replica identity, included); one that is not included is
        left out of `before` and `after`. Raises ValueError where the relation has lines not
        taken, for an unknown kind or mode, and, with the flat envelope, for an included column
        that has the name of one of its own (`flat_prefix` and one of `envelope.FLAT_FIELDS`). Then
        the earlier binding stays.
        """

    def unbind(self, relation_id: int) -> None:
        """Forget the binding. Lines not taken can still be taken; the position counter is kept."""

    def begin(self, commit_lsn: int, commit_time_us: int, xid: int) -> None:
        """Start a transaction: what follows is all of its changes, from the first one.

        `commit_time_us` is Unix time in microseconds, UTC. Every relation counts positions from 0
        again, so a transaction that is sent again after a reconnect gets the positions it had.
        `xid` 0 is PostgreSQL's invalid transaction: a snapshot. Then the lines say `xid` null and
        their `lsn` is `commit_lsn`.
        """

    def encode(self, frame: bytes | bytearray | memoryview) -> int:
        """Add the line of an Insert, Update or Delete.

        `frame` is the whole payload of one XLogData CopyData message: `w`, data start, WAL end,
        send time, then the pgoutput message (PostgreSQL manual 54.4 and 54.9, proto_version 1,
        text). Returns the bytes now buffered for its relation, or -1 where that is not bound
        (nothing is consumed or counted). Raises UnrepresentableRow for a value that no JSON can
        hold or a row beyond the limit, DecodeError for malformed input, and where
        `change_lsn` is before that of the relation's earlier change in the transaction; the
        buffer and the counters are then as they were.
        """

    def encode_copy(
        self,
        relation_id: int,
        row: bytes | bytearray | memoryview,
        range_number: int,
        row_number: int,
    ) -> int:
        """Add the line (op `r`) of one row of `COPY ... TO STDOUT`: text format, with newline.

        The row holds the binding's included columns in their order. The position is made of
        `begin`'s `commit_lsn`, `range_number` and `row_number` (below 2**24). Returns and raises as
        `encode` does.
        """

    def truncate(self, relation_id: int, change_lsn: int) -> int:
        """Add a line with op `t`. Returns as `encode` does."""

    def skip(self, relation_id: int, change_lsn: int) -> None:
        """Count a change that is not wanted, without a line; the relation need not be bound.

        A later row at the same `change_lsn` then gets the position it would have had. Raises
        DecodeError as `encode` does for a change outside a transaction or out of order.
        """

    def next_position(self, relation_id: int, change_lsn: int) -> str:
        """The position of the next change at `change_lsn` in this transaction; changes nothing."""

    def take(self, relation_id: int) -> Rows | None:
        """Hand over what is buffered for the relation and forget it; None where nothing is."""

    def take_all(self) -> list[tuple[int, Rows]]:
        """Hand over everything that is buffered, by relation id, in the order of first lines."""
