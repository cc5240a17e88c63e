"""Keys: where everything lies under the prefix.

Strategy: one `Layout` per prefix and database makes every key, and nothing else joins strings
into one. Names are percent-encoded outside `A-Z a-z 0-9 - _`, dots too, so no name can leave its
folder and two names never share one. A key stays within S3's 1,024 bytes: beyond that, long names
end in `~` and a hash, a mark that no encoded name contains.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from engine.envelope import Compression
from engine.envelope import Layout as LayoutStyle
from engine.position import Position
from engine.schema import TableName

KEY_BYTES_MAX = 1024
PREFIX_BYTES_MAX = 400
_NAME_BYTES_MAX = 120
_SUFFIX = {"gzip": "ndjson.gz", "zstd": "ndjson.zst"}
_HOUR_FORMAT = "%Y-%m-%dT%H"
_HOUR_US = 3_600_000_000


def hour_of(time_us: int) -> str:
    """The UTC hour of a time in Unix microseconds, as text that sorts: `2026-11-22T09`."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime(_HOUR_FORMAT)


def next_hour_us(time_us: int) -> int:
    """When the UTC hour after that of `time_us` begins. Both in Unix microseconds."""
    return (time_us // _HOUR_US + 1) * _HOUR_US


def key_hour(chunk_us: int, now_us: int, previous: str) -> str:
    """The hour under which an object is filed.

    That of its first commit, but never later than the planner's clock and never earlier than the
    table's previous object: a loader that remembers the last (version, hour, name) never skips
    one.
    """
    return max(min(hour_of(chunk_us), hour_of(now_us)), previous)


def encoded(name: str) -> str:
    """`name` as one segment of a key."""
    return quote(name, safe="-_").replace(".", "%2E").replace("~", "%7E")


def journal_key(prefix: str, seq: int) -> str:
    """The key of a journal entry."""
    return f"{journal_folder(prefix)}{seq:012d}.json"


def journal_folder(prefix: str) -> str:
    """What the keys of all journal entries begin with."""
    return f"{own_folder(prefix)}journal/"


def state_key(prefix: str, seq: int) -> str:
    """The key of the journal folded up to and including entry `seq`."""
    return f"{state_folder(prefix)}{seq:012d}.json.gz"


def state_folder(prefix: str) -> str:
    """What the keys of all state files begin with."""
    return f"{own_folder(prefix)}state/"


def own_folder(prefix: str) -> str:
    """What everything but tables' objects begins with; readers skip it for its underscore."""
    return f"{prefix}/_tailrace/" if prefix else "_tailrace/"


def seq_of(key: str) -> int:
    """The number in a journal entry's or state file's key. Raises ValueError for another key."""
    return int(key.rsplit("/", 1)[-1].split(".", 1)[0])


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Where one database's tables lie under one prefix."""

    prefix: str
    database: str
    style: LayoutStyle

    def schema_key(self, table: TableName, version: int) -> str:
        """The key of a version's schema.json."""
        return self._folder(table, version) + "schema.json"

    def object_key(
        self,
        table: TableName,
        version: int,
        hour: str,
        first: Position,
        compression: Compression,
    ) -> str:
        """The key of the object whose first record is at `first`, filed under `hour`."""
        day, _, hour_number_text = hour.partition("T")
        year, month, day = day.split("-")
        names = ("year=", "month=", "day=", "hour=") if self.style == "hive" else ("",) * 4
        parts = zip(names, (year, month, day, hour_number_text), strict=True)
        date = "/".join(name + value for name, value in parts)
        return f"{self._folder(table, version)}{date}/{first}.{_SUFFIX[compression]}"

    def _folder(self, table: TableName, version: int) -> str:
        names = ("database=", "schema=", "table=", "version=")
        if self.style == "plain":
            names = ("",) * 4
        values = [encoded(name) for name in (self.database, table.schema, table.table)]
        # Room for the date, the position and the suffix behind the folder.
        if sum(map(len, values)) + len(self.prefix.encode()) + 200 > KEY_BYTES_MAX:
            raw = (self.database, table.schema, table.table)
            values = [_shortened(value, name) for value, name in zip(values, raw, strict=True)]
        values.append(f"{version:04d}")
        folder = "/".join(name + value for name, value in zip(names, values, strict=True))
        return f"{self.prefix}/{folder}/" if self.prefix else f"{folder}/"


def _shortened(value: str, name: str) -> str:
    if len(value) <= _NAME_BYTES_MAX:
        return value
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{value[: _NAME_BYTES_MAX - 17].rstrip('%')}~{digest}"
