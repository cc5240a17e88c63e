"""Both halves of the row codec as one: the line writer, and PostgreSQL's readers that call it."""

from collections.abc import Sequence

from engine.lines.writer import VALUE_HASH, Lines, LineWriter
from engine.model.record import Envelope, JsonMode, NumericMode
from engine.sources.postgres.copy_rows import CopyReader
from engine.sources.postgres.tuples import TupleReader
from engine.sources.postgres.types import form_of
from rowcodec_twin import HASHED, SECRET

Columns = Sequence[tuple[str, int, bool, bool]]


def forms_of(columns: Columns, numeric: NumericMode, json: JsonMode) -> Columns:
    """Columns with forms, of those with kinds."""
    return [
        (name, VALUE_HASH if kind == HASHED else form_of(kind, numeric, json), is_key, is_included)
        for name, kind, is_key, is_included in columns
    ]


class RowCodec:
    """What `TwinCodec` is the twin of."""

    def __init__(
        self, generation: int, row_bytes_max: int = 1 << 30, rows_max: int = 1 << 62
    ) -> None:
        self.lines = LineWriter(
            generation,
            connector="postgresql",
            row_bytes_max=row_bytes_max,
            rows_max=rows_max,
            hash_key=SECRET,
        )
        self.tuples = TupleReader(self.lines)
        self.copy_rows = CopyReader(self.lines)
        self.encode = self.tuples.encode
        self.truncate = self.tuples.truncate
        self.unbind = self.lines.unbind
        self.skip = self.lines.skip
        self.next_position = self.lines.next_position
        self.take_all = self.lines.take_all

    @property
    def buffered(self) -> int:
        return self.lines.buffered

    def bind(
        self,
        relation_id: int,
        *,
        database: str,
        schema: str,
        table: str,
        version: int,
        columns: Columns,
        key: Sequence[str],
        envelope: Envelope,
        numeric: NumericMode,
        json: JsonMode,
        flat_prefix: str = "_",
    ) -> None:
        self.lines.bind(
            relation_id,
            database=database,
            schema=schema,
            table=table,
            version=version,
            columns=forms_of(tuple(columns), numeric, json),
            key=key,
            envelope=envelope,
            flat_prefix=flat_prefix,
        )

    def begin(self, commit_lsn: int, commit_time_us: int, xid: int) -> None:
        self.copy_rows.begin(commit_lsn, commit_time_us)
        self.tuples.begin(commit_lsn, commit_time_us, xid)

    def encode_copy(self, relation_id: int, row: bytes, range_number: int, row_number: int) -> int:
        return self.copy_rows.encode(relation_id, row, range_number, row_number)

    def take(self, relation_id: int) -> Lines | None:
        return self.lines.take(relation_id)
