"""A small bucket made by the engine's own parts (row codec, chunks, keys, journal), to be verified.

Entry by entry: 0 the first writer opens; 1 and 2 plan orders and an oddly named table; 3 brings
orders' version 2; 4 the second writer opens; 5 plans an object that 6 states again under another
codec; 7 makes all of it durable; 8 plans two more objects, of which one is there. A state file
folds the journal up to 3.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec
import zstandard

from engine.flow.chunk import ChunkBuilder, crc32_text
from engine.journal.entry import (
    Accepting,
    Durable,
    Entry,
    Planned,
    Writer,
    decode_entry,
    encode_entry,
    encode_state,
)
from engine.journal.journal import Journal
from engine.journal.publisher import object_metadata
from engine.model.batch import Batch, Operations, operations_named
from engine.model.layout import TableLayout, hour_of, journal_key, state_key
from engine.model.position import LogPosition, Position
from engine.model.record import Compression, Envelope, Layout, RecordConfiguration, SnapshotMode
from engine.model.schema import Column, Relation, TableName, TableVersion
from engine.model.schema_document import previous_version, schema_document
from engine.sources.postgres.types import KIND_INTEGER, KIND_TEXT
from log_points import durable, identity
from memory_store import MemoryStore, StoredObject
from row_codec import RowCodec

PREFIX = "pipes/shop"
DATABASE = "shop"
START_US = 1_795_341_114_056_779
HOUR_US = 3_600_000_000
ORDERS = TableName("public", "orders")
ODD = TableName("Odd.Schema", "100% täble")
SOURCE = identity("postgres", "7412", database=DATABASE)


class SilentObserver:
    """Nobody counts here."""

    def journal_entry(self, kind: str) -> None:
        pass

    def publish_error(self, code: str, *, retryable: bool) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Piece:
    """A plan and the body that belongs to it."""

    planned: Planned
    body: bytes


class SmallBucket:
    """A bucket under construction. `plans` are the pieces in the order of their making."""

    def __init__(
        self,
        store: MemoryStore | None = None,
        *,
        prefix: str = PREFIX,
        envelope: Envelope = "standard",
        compression: Compression = "gzip",
        layout: Layout = "hive",
        flat_prefix: str = "_",
        snapshot: SnapshotMode = "never",
    ) -> None:
        self.store = store or MemoryStore()
        self.prefix = prefix
        self.pieces: list[Piece] = []
        self.configuration = RecordConfiguration(
            through="tailrace",
            tables=("*.*",),
            envelope=envelope,
            compression=compression,
            layout=layout,
            flat_prefix=flat_prefix,
            snapshot=snapshot,
        )
        self.layout = TableLayout(prefix, DATABASE, layout)
        self.journal = self._journal("writer-1")
        self.commit = 0x1000
        self._tails: dict[TableName, Planned] = {}
        self._versions: dict[TableName, tuple[TableVersion, ...]] = {}

    def _journal(self, writer: str) -> Journal:
        return Journal(self.store, self.prefix, Writer(writer, "test", "0.1.0"), SilentObserver())

    async def take_over(
        self, writer: str, accepting: Accepting | None = None, fork: LogPosition | None = None
    ) -> None:
        self.journal = self._journal(writer)
        await self.journal.load()
        first = durable(0x1000, "2026-11-22T09:51:54.056779Z", seq=-1)
        await self.journal.open(SOURCE, self.configuration, first, accepting=accepting, fork=fork)

    def version(self, table: TableName, *more: Column) -> TableVersion:
        """The table's next version; it begins at the next row."""
        columns = (
            Column("id", "integer", "integer", key=True, json="number", type_id=23),
            Column("note", "text", "text", key=False, type_id=25),
            *more,
        )
        known = self._versions.get(table, ())
        relation = Relation(table, "16384", columns, ("id",))
        record = self.configuration.record_digest(table)
        prefix = self.configuration.flat_prefix_of(table, columns)
        version = TableVersion(len(known) + 1, self.next_position(), record, relation, prefix)
        self._versions[table] = (*known, version)
        return version

    def next_position(self) -> Position:
        commit = self.commit + 0x100
        return Position(f"0001.{commit:016X}.{commit - 0x80:016X}.000000")

    def codec(self, version: TableVersion) -> RowCodec:
        """A codec that writes rows of `version`, which are those of relation 7."""
        table = version.relation.table
        codec = RowCodec(1)
        codec.bind(
            7,
            database=DATABASE,
            schema=table.schema,
            table=table.table,
            version=version.number,
            columns=[
                (c.name, KIND_INTEGER if c.name == "id" else KIND_TEXT, c.key, True)
                for c in version.relation.columns
            ],
            key=version.relation.key,
            envelope=self.configuration.envelope,
            numeric="string",
            json="embed",
            flat_prefix=version.flat_prefix,
        )
        return codec

    def batches(self, table: TableName, ops: str) -> Iterable[Batch]:
        """A transaction a row, as the source would give them."""
        version = self._versions[table][-1]
        codec = self.codec(version)
        for op in ops:
            self.commit += 0x100
            codec.begin(self.commit, self.time_us(), 700 + self.commit)
            if op == "t":
                codec.truncate(7, self.commit - 0x80)
            else:
                codec.encode(_frame(op, self.commit - 0x80, len(version.relation.columns)))
            rows = codec.take(7)
            assert rows is not None
            yield Batch(
                table,
                version.number,
                rows.lines,
                rows.row_count,
                Operations(*rows.operations),
                Position(rows.first_position),
                Position(rows.last_position),
                self.time_us(),
                self.time_us(),
            )

    def time_us(self) -> int:
        return START_US + (self.commit >> 11) * HOUR_US

    def piece(self, table: TableName, ops: str) -> Piece:
        """The table's next object, with a row for each letter of `ops`."""
        compression = self.configuration.compression
        first, *rest = self.batches(table, ops)
        builder = ChunkBuilder(first, compression, 0.0)
        for batch in rest:
            builder.add(batch)
        chunk = builder.seal("size")
        tail = self._tails.get(table)
        hour = max(hour_of(chunk.first_commit_us), tail.hour if tail else "")
        planned = Planned(
            table=str(table),
            key=self.layout.object_key(table, chunk.version, hour, chunk.first, compression),
            previous=tail.last if tail else Position(""),
            first=chunk.first,
            last=chunk.last,
            rows=chunk.row_count,
            ops=operations_named(chunk.operations),
            version=chunk.version,
            codec=1,
            raw_bytes=chunk.raw_bytes,
            raw_crc32=crc32_text(chunk.raw_crc32),
            hour=hour,
        )
        self._tails[table] = planned
        self.pieces.append(Piece(planned, chunk.body.whole()))
        return self.pieces[-1]

    async def publish(self, piece: Piece) -> None:
        """The version's schema.json, then the object."""
        planned = piece.planned
        table, versions = planned.table_name, self._versions[planned.table_name]
        version = versions[planned.version - 1]
        schema = schema_document(version, previous_version(versions, version), DATABASE)
        await self.store.create(
            self.layout.schema_key(table, planned.version),
            schema,
            content_type="application/json",
            metadata={},
        )
        await self.store.create(
            planned.key,
            piece.body,
            content_type="application/x-ndjson",
            metadata=object_metadata(planned, self.journal.writer.id, len(piece.body)),
        )

    def durable(self, seq: int | None = None) -> Durable:
        """Everything up to the last commit that was made."""
        up_to = self.journal.state.seq if seq is None else seq
        return durable(self.commit + 0x10, "2026-11-22T09:51:55.000000Z", seq=up_to)


async def make_bucket(
    store: MemoryStore | None = None,
    *,
    prefix: str = PREFIX,
    envelope: Envelope = "standard",
    compression: Compression = "gzip",
    layout: Layout = "hive",
    flat_prefix: str = "_",
) -> SmallBucket:
    """The bucket that the module's first lines describe."""
    bucket = SmallBucket(
        store,
        prefix=prefix,
        envelope=envelope,
        compression=compression,
        layout=layout,
        flat_prefix=flat_prefix,
    )
    await bucket.take_over("writer-1")
    journal = bucket.journal
    versions = (bucket.version(ORDERS), bucket.version(ODD))
    one, odd = bucket.piece(ORDERS, "cccu"), bucket.piece(ODD, "c")
    await journal.append(schemas=versions, planned=(one.planned, odd.planned))
    await bucket.publish(one)
    await bucket.publish(odd)
    durable = bucket.durable()
    two = bucket.piece(ORDERS, "dcut")
    await journal.append(planned=(two.planned,), durable=durable)
    await bucket.publish(two)
    durable = bucket.durable()
    version = bucket.version(ORDERS, Column("total", "text", "text", key=False, type_id=25))
    three = bucket.piece(ORDERS, "cc")
    await journal.append(schemas=(version,), planned=(three.planned,), durable=durable)
    await bucket.store.create(
        state_key(prefix, journal.state.seq),
        encode_state(journal.state),
        content_type="application/gzip",
        metadata={},
    )
    await bucket.publish(three)
    await bucket.take_over("writer-2")
    journal = bucket.journal
    four = bucket.piece(ORDERS, "ccc")
    await journal.append(planned=(four.planned,))
    again = restated(bucket, four)
    await journal.append(planned=(again.planned,))
    await bucket.publish(again)
    await journal.append(durable=bucket.durable())
    five, six = bucket.piece(ORDERS, "c"), bucket.piece(ORDERS, "c")
    await journal.append(planned=(five.planned, six.planned))
    await bucket.publish(five)
    return bucket


def restated(bucket: SmallBucket, piece: Piece) -> Piece:
    """The same rows as another codec would write them, under the same key."""
    lines = decompressed(piece.body, piece.planned.key).replace(b'{"', b'{ "')
    planned = msgspec.structs.replace(
        piece.planned, codec=2, raw_bytes=len(lines), raw_crc32=crc32_text(zlib.crc32(lines))
    )
    return Piece(planned, compressed(lines, piece.planned.key))


def rewrite_journal(
    store: MemoryStore, edit: Callable[[Entry], Entry], prefix: str = PREFIX
) -> None:
    """Edit every entry and hash them anew: a journal that is whole and says something else."""
    digest, seq = "", 0
    while (stored := store.objects.get(journal_key(prefix, seq))) is not None:
        entry = edit(decode_entry(stored.body, ""))
        stored.body = encode_entry(msgspec.structs.replace(entry, previous_sha256=digest))
        digest = hashlib.sha256(stored.body).hexdigest()
        seq += 1


def rewrite_plan(bucket: SmallBucket, index: int, **changes: object) -> None:
    """Plan the object with that number otherwise; its metadata says the same."""
    known = bucket.pieces[index].planned

    def edit(entry: Entry) -> Entry:
        planned = tuple(
            msgspec.structs.replace(p, **changes) if p.key == known.key else p
            for p in entry.planned
        )
        return msgspec.structs.replace(entry, planned=planned)

    rewrite_journal(bucket.store, edit, bucket.prefix)
    stored = bucket.store.objects.get(known.key)
    if stored is not None:
        before = object_metadata(known, "", 0)
        after = object_metadata(msgspec.structs.replace(known, **changes), "", 0)
        stored.metadata.update({k: v for k, v in after.items() if before.get(k) != v})


def stored(bucket: SmallBucket, index: int) -> StoredObject:
    """The object with that number, to be damaged."""
    return bucket.store.objects[bucket.pieces[index].planned.key]


def decompressed(body: bytes, key: str) -> bytes:
    if key.endswith(".zst"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return gzip.decompress(body)


def compressed(lines: bytes, key: str) -> bytes:
    if key.endswith(".zst"):
        return zstandard.ZstdCompressor().compress(lines)
    return gzip.compress(lines)


def _frame(op: str, change_lsn: int, column_count: int) -> bytes:
    """An Insert, Update or Delete as pgoutput sends it."""
    head = b"w" + change_lsn.to_bytes(8, "big") * 2 + bytes(8)
    row = (column_count).to_bytes(2, "big") + b"".join(
        b"t" + len(value).to_bytes(4, "big") + value
        for value in (b"7", b'd\xc3\xa9j\xc3\xa0 "vu"\n', b"12.50")[:column_count]
    )
    old = (column_count).to_bytes(2, "big") + b"t\0\0\0\x017" + b"n" * (column_count - 1)
    relation = (7).to_bytes(4, "big")
    match op:
        case "c":
            return head + b"I" + relation + b"N" + row
        case "u":
            return head + b"U" + relation + b"N" + row
        case "d":
            return head + b"D" + relation + b"K" + old
        case _:
            raise ValueError(op)
