"""An honest consumer in plain Python, as a user would write it in an afternoon.

Strategy: psycopg speaks the protocol, `struct` takes pgoutput apart, orjson writes a line a change,
gzip (level 6, the usual) compresses into files of 16 MiB a table. At a commit every half a minute
all files are closed and the position is confirmed, so that nothing confirmed is lost; after a crash
changes come again. It stands alone: nothing of the engine is imported, on purpose.

Ends with 0 when everything before `--end-lsn` is in closed files.
"""

import argparse
import gzip
import io
import select
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psycopg
from psycopg import sql

FILE_BYTES_MAX = 16 * 1024 * 1024
CONFIRM_SECONDS = 30
STATUS_SECONDS = 10
POSTGRES_EPOCH_SECONDS = 946_684_800

XLOG_DATA = struct.Struct(">cQQq")
KEEPALIVE = struct.Struct(">cQqB")
STATUS = struct.Struct(">cQQQqB")
RELATION_ID = struct.Struct(">I")
BEGIN = struct.Struct(">QqI")
COMMIT = struct.Struct(">BQQq")
COLUMN = struct.Struct(">Ii")
COUNT = struct.Struct(">H")

# By pg_type.oid; every other type is text.
CONVERTERS: dict[int, Callable[[bytes], Any]] = {
    16: lambda text: text == b"t",  # bool
    20: int,  # int8
    21: int,  # int2
    23: int,  # int4
    700: float,  # float4
    701: float,  # float8
    114: orjson.Fragment,  # json
    3802: orjson.Fragment,  # jsonb
}
Columns = list[tuple[str, Callable[[bytes], Any]]]


class TableFile:
    """Lines of one table on their way into one gzip file."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("wb")
        self._gzip = gzip.GzipFile(fileobj=self._raw, mode="wb", compresslevel=6, mtime=0)
        self._lines = io.BufferedWriter(self._gzip, 256 * 1024)
        self.write = self._lines.write

    @property
    def is_full(self) -> bool:
        return self._raw.tell() >= FILE_BYTES_MAX

    def close(self) -> None:
        self._lines.close()
        self._raw.close()


class Folder:
    """The files of all tables; at most one a table is open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: dict[str, TableFile] = {}
        self._file_count = 0

    def write(self, table: str, line: bytes) -> None:
        file = self._open.get(table)
        if file is None:
            self._file_count += 1
            name = f"{table}-{self._file_count:06}.ndjson.gz"
            file = self._open[table] = TableFile(self._path / name)
        file.write(line)
        if file.is_full:
            self._open.pop(table).close()

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()


class Decoder:
    """pgoutput messages (manual, "Logical Replication Message Formats") to lines in a folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._relations: dict[int, tuple[str, Columns]] = {}
        self._commit_lsn = ""
        self._commit_time = 0.0
        self.row_count = 0

    def decode(self, message: bytes) -> int | None:
        """Take one message; the answer is the position behind it when it is a commit."""
        match message[:1]:
            case b"I" | b"U" | b"D":
                self._change(message)
            case b"B":
                commit_lsn, commit_time, _ = BEGIN.unpack_from(message, 1)
                self._commit_lsn = f"{commit_lsn >> 32:X}/{commit_lsn & 0xFFFFFFFF:X}"
                self._commit_time = commit_time / 1e6 + POSTGRES_EPOCH_SECONDS
            case b"C":
                return int(COMMIT.unpack_from(message, 1)[2])
            case b"R":
                self._relation(message)
            case _:
                # Types, origins, truncates: nothing to write.
                pass
        return None

    def _relation(self, message: bytes) -> None:
        [oid] = RELATION_ID.unpack_from(message, 1)
        namespace, name, rest = message[5:].split(b"\0", 2)
        [count] = COUNT.unpack_from(rest, 1)
        columns: Columns = []
        at = 3
        for _ in range(count):
            end = rest.index(b"\0", at + 1)
            type_oid, _ = COLUMN.unpack_from(rest, end + 1)
            columns.append((rest[at + 1 : end].decode(), CONVERTERS.get(type_oid, bytes.decode)))
            at = end + 1 + COLUMN.size
        self._relations[oid] = (f"{namespace.decode()}.{name.decode()}", columns)

    def _change(self, message: bytes) -> None:
        [oid] = RELATION_ID.unpack_from(message, 1)
        table, columns = self._relations[oid]
        record = {
            "op": chr(message[0]),
            "commit_lsn": self._commit_lsn,
            "commit_time": self._commit_time,
        }
        at = 5
        while at < len(message):
            image = "after" if message[at] == ord("N") else "before"
            record[image], at = read_row(message, at + 1, columns)
        self._folder.write(table, orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self.row_count += 1


def read_row(message: bytes, at: int, columns: Columns) -> tuple[dict[str, Any], int]:
    """The row (TupleData) that begins at `at`, and where it ends."""
    row: dict[str, Any] = {}
    at += 2
    for name, convert in columns:
        kind = message[at]
        at += 1
        if kind == ord("t"):
            start = at + 4
            at = start + int.from_bytes(message[at:start], "big")
            row[name] = convert(message[start:at])
        elif kind == ord("n"):
            row[name] = None
        # What is left is "u": a long value that did not change and was not sent.
    return row, at


class Stream:
    """One replication connection."""

    def __init__(self, dsn: str, slot: str, publication: str) -> None:
        connection = psycopg.connect(dsn, replication="database", autocommit=True)
        command = "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {})"
        connection.execute(
            sql.SQL(command).format(sql.Identifier(slot), sql.Literal(f'"{publication}"'))
        )
        self._connection = connection
        self._server = connection.pgconn
        self.received = 0
        self.confirmed = 0
        self._status_at = time.monotonic()

    def read(self) -> bytes | None:
        """The next frame, or None at the stream's end; meanwhile the server hears of us."""
        while True:
            size, frame = self._server.get_copy_data(1)
            if size > 0:
                return bytes(frame)
            if size < 0:
                return None
            if time.monotonic() - self._status_at > STATUS_SECONDS:
                self.send_status()
            select.select([self._server.socket], [], [], STATUS_SECONDS)
            self._server.consume_input()

    def send_status(self) -> None:
        now = int((time.time() - POSTGRES_EPOCH_SECONDS) * 1e6)
        confirmed = self.confirmed
        self._server.put_copy_data(STATUS.pack(b"r", self.received, confirmed, confirmed, now, 0))
        self._server.flush()
        self._status_at = time.monotonic()

    def close(self) -> None:
        """Leave as the protocol has it: the slot is free when this returns."""
        self.send_status()
        self._server.put_copy_end()
        self._server.flush()
        while self.read() is not None:
            pass
        while self._server.get_result() is not None:
            pass
        self._connection.close()


def consume(stream: Stream, folder: Folder, end_lsn: int) -> int:
    """Read to `end_lsn`; the answer is the number of changes."""
    decoder = Decoder(folder)
    confirmed_at = time.monotonic()
    while stream.received < end_lsn:
        frame = stream.read()
        if frame is None:
            raise ConnectionError("the server ended the stream")
        if frame[:1] == b"w":
            commit_end = decoder.decode(frame[XLOG_DATA.size :])
            if commit_end is not None:
                stream.received = commit_end
                if time.monotonic() - confirmed_at > CONFIRM_SECONDS:
                    folder.close()
                    stream.confirmed = commit_end
                    stream.send_status()
                    confirmed_at = time.monotonic()
        elif frame[:1] == b"k":
            _, sent_lsn, _, is_reply_wanted = KEEPALIVE.unpack(frame)
            stream.received = max(stream.received, sent_lsn)
            if is_reply_wanted:
                stream.send_status()
    folder.close()
    stream.confirmed = stream.received
    return decoder.row_count


def parse_lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--slot", required=True)
    parser.add_argument("--publication", required=True)
    parser.add_argument("--end-lsn", required=True, type=parse_lsn)
    parser.add_argument("--folder", required=True, type=Path)
    options = parser.parse_args()
    stream = Stream(options.dsn, options.slot, options.publication)
    row_count = consume(stream, Folder(options.folder), options.end_lsn)
    stream.close()
    print(f"{row_count} changes")


if __name__ == "__main__":
    main()
