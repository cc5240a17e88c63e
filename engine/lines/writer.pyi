"""The line writer: one change's values in, one NDJSON line out.

See `writer.pyx` for the strategy. A line is a pure function of the values, the binding, `begin`'s
arguments and the number of earlier changes of the table with the same `change`: no clock, no
locale, no order of `bind` calls shows in it.
"""

from collections.abc import Sequence
from typing import Final, Literal, final

CODEC_VERSION: Final[int]
"""Grows whenever the same change gives another line, whether for the writer or for a reader."""

OP_CREATE: Final[int]
OP_UPDATE: Final[int]
OP_DELETE: Final[int]
OP_READ: Final[int]
OP_TRUNCATE: Final[int]

# How `write` takes the bytes of a value.
VALUE_TEXT: Final[int]
"""Text in UTF-8: a string."""
VALUE_BOOLEAN: Final[int]
"""`true` or `false`."""
VALUE_NUMBER: Final[int]
"""A number as JSON writes it: as it is."""
VALUE_BYTES: Final[int]
"""Any bytes: a string, in base64."""
VALUE_JSON: Final[int]
"""JSON: embedded, on one line."""
VALUE_HASH: Final[int]
"""Any bytes: a string, their keyed hash (`hashing.hash_of`). A source's own reader takes it too."""

@final
class Lines:
    """What `LineWriter.take` hands over: whole lines of one table, in commit order.

    `operations` counts the lines by op, in the order c, u, d, r, t. Commit times are Unix
    microseconds.
    """

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
class LineWriter:
    """Writes the lines of one stream. Not safe for use from two threads at once."""

    def __init__(
        self,
        generation: int,
        *,
        connector: str,
        row_bytes_max: int = ...,
        rows_max: int = ...,
        hash_key: bytes = ...,
    ) -> None:
        """`generation` begins every position: 0 to 9999, else ValueError.

        `connector` is what records call the kind of source. A row that is larger than
        `row_bytes_max` (1 GiB), as its source gives it or as a line, cannot be written. A table
        with `rows_max` lines is full: `write` and the readers then answer a size beyond all.
        `hash_key` is the secret of the columns that are written as hashes; empty: there are none.
        """

    @property
    def buffered(self) -> int:
        """Bytes of lines not yet taken, over all tables."""

    def bind(
        self,
        number: int,
        *,
        database: str,
        schema: str,
        table: str,
        version: int,
        columns: Sequence[tuple[str, int, bool, bool]],
        key: Sequence[str],
        envelope: Literal["standard", "debezium", "flat"],
        flat_prefix: str = "_",
    ) -> None:
        """Say what the table's rows hold; replaces an earlier binding.

        The source numbers its tables itself, below 2**32. A column is (name, form, in the key,
        included). A form is one of `VALUE_`. Where a reader of the source writes the rows, it is
        one of that reader's, below 256, or `VALUE_HASH`. A column that is not included is left out
        of `before` and `after`. Raises ValueError where the table has lines not taken, for a hash
        where there is no key, and, with the flat envelope, for an included column that has the name
        of one of its own (`flat_prefix` and one of `envelope.FLAT_FIELDS`). Then the earlier
        binding stays.
        """

    def unbind(self, number: int) -> None:
        """Forget the binding. Lines not taken can still be taken; the count of changes is kept."""

    def begin(
        self,
        order: int,
        commit_time_us: int,
        *,
        is_snapshot: bool = False,
        fields: bytes = b"",
    ) -> None:
        """Start a transaction: what follows is all of its changes, from the first one.

        `order` is its place in the log, `commit_time_us` Unix time in microseconds, UTC. Every
        table counts positions from 0 again, so a transaction that is sent again after a reconnect
        gets the positions it had. `fields` are the source's own members of the envelope of every
        row that `write` adds, as JSON with a comma before each: at most 256 bytes, else ValueError.
        The flat envelope has none.
        """

    def holds_another_hour(self, commit_time_us: int) -> bool:
        """Whether there are lines of another hour of commit time than this.

        They have to be taken before a transaction of this time: a batch lies within one hour.
        """

    def write(
        self,
        number: int,
        change: int,
        op: int,
        before: tuple[bytes | None, ...] | None,
        after: tuple[bytes | None, ...] | None,
    ) -> int:
        """Add the line of one change: `op` is one of `OP_`.

        `change` is its place within the transaction, which never goes back for a table. `before`
        and `after` hold a value for each column, None for null; in a line of the flat envelope
        `after` is shown, or `before` where there is no `after`.

        Returns the bytes now buffered for its table, or -1 where that is not bound (nothing is
        counted). Raises UnrepresentableRow for a value that no JSON can hold or a row beyond the
        limit, DecodeError for values that are not of their form, and where `change` is before the
        table's earlier change in the transaction; the buffer and the counts are then as they were.
        """

    def skip(self, number: int, change: int) -> None:
        """Count a change that is not wanted, without a line; the table need not be bound.

        A later row with the same `change` then gets the position it would have had. Raises
        DecodeError as `write` does for a change outside a transaction or out of order.
        """

    def next_position(self, number: int, change: int) -> str:
        """The position of the next such change in this transaction; changes nothing."""

    def take(self, number: int) -> Lines | None:
        """Hand over what is buffered for the table and forget it; None where nothing is."""

    def take_all(self) -> list[tuple[int, Lines]]:
        """Hand over everything that is buffered, by table number, in the order of first lines."""

    def take_some(self, table_count: int) -> list[tuple[int, Lines]]:
        """As `take_all`, but of so many tables at most: those whose first lines came first."""
