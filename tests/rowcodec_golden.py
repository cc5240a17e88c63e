"""The golden vectors: what a real PostgreSQL sent, and feeding it to a codec.

`rowcodec_capture.py` makes the files.
"""

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from engine.sources.postgres.types import builtin_kind
from row_codec import RowCodec
from rowcodec_twin import HASHED

VECTORS = Path(__file__).parent / "rowcodec_vectors"
ENVELOPES = ("standard", "debezium", "flat")
GENERATION = 1
# A column of the vectors whose name the flat envelope takes for itself.
RESERVED = "_op"
UNIX_EPOCH_US = 946_684_800_000_000


class Rows(Protocol):
    @property
    def lines(self) -> bytes: ...


class Codec(Protocol):
    """What RowCodec and its twin have in common."""

    def bind(
        self,
        relation_id: int,
        *,
        database: str,
        schema: str,
        table: str,
        version: int,
        columns: Any,
        key: Any,
        envelope: Any,
        numeric: Any,
        json: Any,
    ) -> None: ...
    def begin(self, commit_lsn: int, commit_time_us: int, xid: int) -> None: ...
    def encode(self, frame: bytes) -> int: ...
    def encode_copy(
        self, relation_id: int, row: bytes, range_number: int, row_number: int
    ) -> int: ...
    def truncate(self, relation_id: int, change_lsn: int) -> int: ...
    def take(self, relation_id: int) -> Rows | None: ...


@cache
def captured() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((VECTORS / "frames.json").read_bytes())
    return read


def frames() -> list[bytes]:
    return [bytes.fromhex(frame) for frame in captured()["frames"]]


def row_frames() -> list[bytes]:
    return [frame for frame in frames() if frame[25:26] in (b"I", b"U", b"D")]


def relation_ids() -> list[int]:
    return [int(relation_id) for relation_id in captured()["relations"]]


def copy_rows(relation_id: int) -> list[bytes]:
    rows = captured()["relations"][str(relation_id)]["copy"]
    return [bytes.fromhex(row) for row in rows]


def has_reserved(relation_id: int) -> bool:
    columns = captured()["relations"][str(relation_id)]["columns"]
    return any(name == RESERVED for name, _, _ in columns)


def bind_all(
    codec: Codec,
    envelope: str = "standard",
    numeric: str = "string",
    json_mode: str = "embed",
    *,
    is_hashed: bool = False,
) -> None:
    """With `is_hashed`, every column is written as a hash."""
    for relation_id, relation in captured()["relations"].items():
        codec.bind(
            int(relation_id),
            database='sh"op',
            schema=relation["schema"],
            table=relation["table"],
            version=3,
            columns=[
                (
                    name,
                    HASHED if is_hashed else builtin_kind(oid),
                    key,
                    envelope != "flat" or name != RESERVED,
                )
                for name, oid, key in relation["columns"]
            ],
            key=relation["key"],
            envelope=envelope,
            numeric=numeric,
            json=json_mode,
        )


def feed(codec: Codec, frame: bytes) -> bytes:
    """The line that one frame of the stream makes, if it makes any."""
    message, body = frame[25:26], frame[26:]
    match message:
        case b"B":
            commit_lsn, time_us, xid = struct.unpack(">QqI", body)
            codec.begin(commit_lsn, time_us + UNIX_EPOCH_US, xid)
            return b""
        case b"I" | b"U" | b"D":
            (relation_id,) = struct.unpack_from(">I", body)
            codec.encode(frame)
            return taken(codec, relation_id)
        case b"T":
            (count,) = struct.unpack_from(">I", body)
            (change_lsn,) = struct.unpack_from(">Q", frame, 1)
            lines = b""
            for relation_id in struct.unpack_from(f">{count}I", body, 5):
                codec.truncate(relation_id, change_lsn)
                lines += taken(codec, relation_id)
            return lines
        case _:
            return b""


def taken(codec: Codec, relation_id: int) -> bytes:
    rows = codec.take(relation_id)
    return rows.lines if rows else b""


def lines_of(codec: Codec, envelope: str) -> bytes:
    """The lines of the whole stream, then of a snapshot of the tables as they are at its end.

    COPY's rows hold included columns only, so a table with a reserved name has no flat snapshot.
    """
    lines = b"".join(feed(codec, frame) for frame in frames())
    codec.begin(0x16B374D847, 1_795_341_114_065_123, 0)
    for relation_id in relation_ids():
        codec.truncate(relation_id, 0)
        rows = [] if envelope == "flat" and has_reserved(relation_id) else copy_rows(relation_id)
        for number, row in enumerate(rows):
            codec.encode_copy(relation_id, row, 1, number)
        lines += taken(codec, relation_id)
    return lines


def golden_lines(envelope: str) -> bytes:
    codec = RowCodec(GENERATION)
    bind_all(codec, envelope)
    return lines_of(codec, envelope)
