"""Keys: where everything lies under the prefix.

Strategy: one `TableLayout` per prefix and database makes the keys of tables' objects, and nothing
else joins strings into one. Names are percent-encoded outside `A-Z a-z 0-9 - _`, dots too. So no
name can leave its folder, and two names never share one. A key stays within S3's 1,024 bytes.
Beyond that, a long name ends in `~` and a hash, a mark that no encoded name contains.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote

from engine.model.position import Position
from engine.model.record import Compression
from engine.model.record import Layout as LayoutStyle
from engine.model.schema import TableName

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


def key_hour(chunk_us: int, previous: str) -> str:
    """The hour under which an object is filed.

    `chunk_us` is the time of the object's first commit, within reason: never later than the
    planner's clock (`commit_time.within_reason`). The hour is never earlier than `previous`, that
    of the table's previous object: a loader that remembers the last (version, hour, name) never
    skips one.
    """
    return max(hour_of(chunk_us), previous)


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


def check_folder(prefix: str) -> str:
    """What the keys of those objects begin with that only prove the right to create objects."""
    return f"{own_folder(prefix)}check/"


def requests_folder(prefix: str) -> str:
    """What the keys of those objects begin with by which somebody asks an engine for something."""
    return f"{own_folder(prefix)}requests/"


def list_key(prefix: str, table: TableName, attempt: int, nonce: str) -> str:
    """The key of a list of one attempt's staged objects. `nonce`: hexadecimal, as no other has."""
    names = [_shortened(encoded(name), name) for name in (table.schema, table.table)]
    return f"{own_folder(prefix)}snapshots/{'.'.join(names)}/{attempt}-{nonce}.json"


def is_list_key(prefix: str, key: str) -> bool:
    """Whether the pipeline of that prefix gives such a key to a list."""
    rest = key.removeprefix(own_folder(prefix))
    return rest != key and re.fullmatch(_LIST_NAME, rest, re.ASCII) is not None


def below(prefix: str) -> str:
    """What every key under the prefix begins with: never that of `photos-2026` for `photos`."""
    return f"{prefix}/" if prefix else ""


def seq_of(key: str) -> int:
    """The number in a journal entry's or state file's key. Raises ValueError for another key."""
    return int(key.rsplit("/", 1)[-1].split(".", 1)[0])


def entry_seq(prefix: str, key: str) -> int | None:
    """The number of the journal entry that `key` names; None where it names none."""
    return _seq_if(journal_key, prefix, key)


def state_seq(prefix: str, key: str) -> int | None:
    """The number of the entry up to which the state file `key` folds; None for another key."""
    return _seq_if(state_key, prefix, key)


def _seq_if(make: Callable[[str, int], str], prefix: str, key: str) -> int | None:
    try:
        seq = seq_of(key)
    except ValueError:
        return None
    return seq if seq >= 0 and make(prefix, seq) == key else None


_LIST_NAME = r"snapshots/[\w%~-]+\.[\w%~-]+/\d+-[0-9a-f]+\.json"
_OBJECT_NAME = r"\d{4,}\.[0-9A-F]{16}\.[0-9A-F]{16}\.[0-9A-F]{6}\.ndjson\.(?:gz|zst)"
_HIVE_VERSION = r"database=[\w%~-]+/schema=[\w%~-]+/table=[\w%~-]+/version=\d{4,}/"
_HIVE_DATE = r"year=\d{4}/month=\d\d/day=\d\d/hour=\d\d/"
_PLAIN_VERSION = r"[\w%~-]+/[\w%~-]+/[\w%~-]+/\d{4,}/"
_PLAIN_DATE = r"\d{4}/\d\d/\d\d/\d\d/"
_SHAPES = tuple(
    re.compile(f"(?:(?P<prefix>.+)/)?{shape}", re.ASCII | re.DOTALL)
    for shape in (
        r"_tailrace/journal/\d{12,}\.json",
        r"_tailrace/state/\d{12,}\.json\.gz",
        r"_tailrace/(?:check|requests)/[^/]+",
        f"_tailrace/{_LIST_NAME}",
        f"{_HIVE_VERSION}(?:schema\\.json|{_HIVE_DATE}{_OBJECT_NAME})",
        f"{_PLAIN_VERSION}(?:schema\\.json|{_PLAIN_DATE}{_OBJECT_NAME})",
    )
)


class ObjectPlace(NamedTuple):
    """What an object's key says of it, behind the folder of its table."""

    version: int
    hour: str
    first: Position


_PLACE = re.compile(
    r"(?:version=)?(\d{4,})/(?:year=)?(\d{4})/(?:month=)?(\d\d)/(?:day=)?(\d\d)/(?:hour=)?(\d\d)/"
    r"(\d{4}(?:\.[0-9A-F]{16}){2}\.[0-9A-F]{6})\.ndjson\.(?:gz|zst)",
    re.ASCII,
)


def object_place(folder: str, key: str) -> ObjectPlace | None:
    """The place of the object `key` in its table's `folder`; None where the key is none of ours."""
    found = _PLACE.fullmatch(key.removeprefix(folder)) if key.startswith(folder) else None
    if found is None:
        return None
    hour = f"{found[2]}-{found[3]}-{found[4]}T{found[5]}"
    return ObjectPlace(int(found[1]), hour, Position(found[6]))


def prefix_of(key: str) -> str | None:
    """The prefix of the pipeline that names its objects so; None where none does.

    A name says nothing about who made the object.
    """
    for shape in _SHAPES:
        found = shape.fullmatch(key)
        if found is not None:
            return found["prefix"] or ""
    return None


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
        name = f"{first}.{_SUFFIX[compression]}"
        return f"{self.hour_folder(table, version, hour)}{name}"

    def _date(self, hour: str) -> str:
        day, _, hour_number_text = hour.partition("T")
        year, month, day = day.split("-")
        names = ("year=", "month=", "day=", "hour=") if self.style == "hive" else ("",) * 4
        parts = zip(names, (year, month, day, hour_number_text), strict=True)
        return "/".join(name + value for name, value in parts)

    def database_folder(self) -> str:
        """What the keys of all tables' objects begin with, but for names too long for a key."""
        name = "database=" if self.style == "hive" else ""
        return f"{below(self.prefix)}{name}{encoded(self.database)}/"

    def version_folder(self, table: TableName, version: int) -> str:
        """What the keys of all objects of one version of the table begin with."""
        return self._folder(table, version)

    def hour_folder(self, table: TableName, version: int, hour: str) -> str:
        """What the keys of those of its objects begin with that are filed under `hour`."""
        return f"{self._folder(table, version)}{self._date(hour)}/"

    def table_folder(self, table: TableName) -> str:
        """What the keys of all the table's objects begin with."""
        return self._folder(table, 0).removesuffix(
            "version=0000/" if self.style == "hive" else "0000/"
        )

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
        return f"{below(self.prefix)}{folder}/"


def _shortened(value: str, name: str) -> str:
    if len(value) <= _NAME_BYTES_MAX:
        return value
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{value[: _NAME_BYTES_MAX - 17].rstrip('%')}~{digest}"
