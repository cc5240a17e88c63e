"""What must hold of snapshots: their statements, their objects, and the cut at what is durable.

Strategy: a fold of the journal's statements of its own, and beside it what the server's tables held
at each attempt's point. What becomes visible of a table is kept by position, from its stream and
its snapshots alike: folded up to E it has to be the server's rows at E, wherever the journal does
not call the table unfinished.

Invariant: it judges promises. Which range has which rows is the workers' business.
"""

import bisect
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from engine.journal import completer
from engine.model.position import LogPosition, Position, snapshot_position
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from simulation.source import TABLES, Change, Server, TableRead, fold_one, record_writer
from simulation.store import Bucket, StoredObject
from simulation.violation import Violation

Json = dict[str, Any]
Visible = tuple[str, str, int, str]
"""A change that is visible: position, op, key, value."""


@dataclass(frozen=True, slots=True)
class Stated:
    """The newest statement about a table's snapshot. `is_visible`: `durable` vouches for it."""

    snapshot: Json
    epoch: int
    seq: int
    is_visible: bool = False
    # The snapshot that the table has where nothing becomes of this one, or the segment before.
    before: "Stated | None" = None
    # The entries that named the attempt's segments before this one.
    earlier: tuple[int, ...] = ()
    # How many objects the attempt has that are vouched for.
    count: int = 0

    @property
    def is_complete(self) -> bool:
        return self.is_visible and not self.rest

    @property
    def visible(self) -> "Stated | None":
        if self.is_complete:
            return self
        return self.before if self.before is not None and self.before.is_complete else None

    def past(self, e: str) -> "Stated | None":
        """It, unless rows may yet be shown that moved past its segments."""
        return None if self.segment and self.point > e else self

    @property
    def segment_before(self) -> "Stated | None":
        """The last visible segment of an attempt of which more is to be read."""
        if self.is_visible:
            return self if self.rest else None
        return self.before if self.before is not None and self.before.rest else None

    @property
    def segment(self) -> int:
        return int(self.snapshot.get("segment", 0))

    @property
    def began(self) -> str:
        """The point of the attempt's first segment."""
        return str(self.snapshot.get("began", self.point))

    @property
    def rest(self) -> str:
        return str(self.snapshot.get("rest", ""))

    @property
    def state(self) -> str:
        return str(self.snapshot["state"])

    @property
    def point(self) -> str:
        return str(self.snapshot.get("point", ""))

    @property
    def attempt(self) -> int:
        return int(self.snapshot.get("attempt", 0))

    @property
    def objects(self) -> list[Json]:
        return list(self.snapshot.get("objects", ()))

    def summary(self) -> list[object]:
        """What a state file has to say of it."""
        listed = self.snapshot.get("listed")
        names = [staged["nonce"] for staged in self.objects] if listed is None else listed["key"]
        what = [self.state, self.attempt, self.point, self.snapshot.get("version", 0)]
        what += [self.segment, self.rest]
        before = self.before.summary() if self.before is not None else None
        return [
            *what,
            self.epoch,
            self.seq,
            self.is_visible,
            [] if self.is_visible else names,
            before,
            list(self.earlier),
            self.count,
        ]

    @classmethod
    def read(cls, stated: Json) -> "Stated":
        """What a state file says."""
        before, earlier = stated.pop("before"), tuple(stated.pop("earlier"))
        known, count = cls.read(before) if before is not None else None, stated.pop("object_count")
        return cls(**stated, before=known, earlier=earlier, count=count)


@dataclass
class SnapshotReading:
    """The journal's statements about snapshots, read by a stranger."""

    stated: dict[str, Stated] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    # The furthest point of which rows may be visible.
    furthest: str = ""

    def opened(
        self,
        configuration: RecordConfiguration,
        planned: Iterable[str],
        epoch: int,
        seq: int,
        e: str,
    ) -> None:
        """A writer opened the journal. `planned` are the tables that have planned objects.

        `e` is durable before it.
        """
        is_on = configuration.snapshot != "never"
        kept = {
            table: stated if is_on else stated.visible and stated.visible.past(e)
            for table, stated in self.stated.items()
            if configuration.captures(TableName.parse(table))
        }
        self.stated = {table: stated for table, stated in kept.items() if stated is not None}
        for table in {*planned, *self.attempts} if is_on else ():
            if table not in self.stated and configuration.captures(TableName.parse(table)):
                self.stated[table] = Stated({"table": table, "state": "wanted"}, epoch, seq)
                self.attempts.setdefault(table, 0)

    def accepted(self, wanted: Iterable[str], epoch: int, seq: int) -> None:
        """A loss was accepted: each of these tables is wanted, and no earlier snapshot counts."""
        self.stated = {}
        for table in wanted:
            self.stated[table] = Stated({"table": table, "state": "wanted"}, epoch, seq)
            self.attempts.setdefault(table, 0)

    def read(self, snapshot: Json, epoch: int, seq: int, e: str) -> None:
        """Take in the next statement; `e` is durable before it."""
        table = snapshot["table"]
        known = self.stated.get(table)
        visible = known.visible if known is not None else None
        if visible is not None and snapshot.get("undivided"):
            # A row moved past its segments.
            visible = visible.past(e)
        stated = Stated(snapshot, epoch, seq)
        if stated.state in {"started", "whole"} and stated.segment and known is not None:
            visible = known.segment_before
            assert visible is not None
            earlier = (*visible.earlier, visible.seq)
            stated = replace(stated, earlier=earlier, count=visible.count)
        if stated.state in {"wanted", "started"}:
            stated = replace(stated, before=visible)
        is_as_before = stated.state in {"cancelled", "gone"} and visible is not None
        self.stated[table] = visible if is_as_before and visible is not None else stated
        self.attempts[table] = max(stated.attempt, self.attempts.get(table, 0))
        if stated.state == "whole":
            self.furthest = max(self.furthest, stated.point)

    def vouch(self, durable_seq: int) -> list[Stated]:
        """Everything up to that entry is visible; those that were not known to be."""
        found = []
        for table, stated in self.stated.items():
            if stated.state == "whole" and not stated.is_visible and stated.seq <= durable_seq:
                found.append(stated)
                count = stated.count + len(stated.objects)
                self.stated[table] = replace(stated, is_visible=True, before=None, count=count)
        return found

    def unfinished(self, e: str) -> list[str]:
        """The tables that everything before E is not known of, from the statements alone."""
        return sorted(
            t
            for t, s in self.stated.items()
            if not (s.is_complete or s.state == "gone") or s.point > e
        )

    def owed(self, e: str) -> list[str]:
        """Those of them of which a snapshot has to be taken: not those that are cancelled."""
        return [t for t in self.unfinished(e) if self.stated[t].state != "cancelled"]


@dataclass(eq=False, slots=True)
class Named:
    """One object of a snapshot that an entry names, and what the server's table held."""

    staged: Json
    snapshot: Json
    read: TableRead
    records: RecordConfiguration
    is_visible: bool = False
    rows: tuple[str, ...] = ()


class SnapshotMonitor:
    """Judges snapshots. `counts` are the monitor's."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._bucket: Bucket
        self._server: Server
        # Of the newest writer: no snapshot of its own is of another one.
        self._timeline = 1
        self._named: defaultdict[str, list[Named]] = defaultdict(list)
        self._attempts: defaultdict[tuple[str, int], list[Named]] = defaultdict(list)
        self._uploads: dict[str, Named] = {}
        # Where each segment that is whole ended, by table, attempt and number.
        self._ends: dict[tuple[str, int, int], str] = {}
        self._visible: defaultdict[str, list[Visible]] = defaultdict(list)
        self._with_rows: set[str] = set()

    def watch(self, bucket: Bucket, server: Server) -> None:
        """What to compare the journal with."""
        self._bucket = bucket
        self._server = server

    # --- statements

    def opened(self, timeline: int) -> None:
        """A writer opened the journal that reads this timeline of the server."""
        self._timeline = timeline

    def check_statement(
        self,
        snapshot: Json,
        before: Stated | None,
        attempts: int,
        epoch: int,
        configuration: RecordConfiguration,
    ) -> None:
        """Judge a statement that follows `before`, after so many attempts."""
        now = Stated(snapshot, epoch, 0)
        self._counts[f"snapshot {now.state}"] += 1
        if before is not None and (now.state, before.state) == ("wanted", "gone"):
            self._counts["snapshot wanted of a table that was gone"] += 1
        match now.state:
            case "wanted" | "cancelled" | "gone":
                is_next = not now.attempt
            case "started":
                is_next = self._is_start(now, before, attempts)
                self._counts["attempts after a moved key"] += bool(now.snapshot.get("undivided"))
            case "whole":
                is_own = before is not None and (before.state, before.epoch) == ("started", epoch)
                is_next = is_own and self._is_same(now, before)
            case _:
                is_next = before is not None and before.state == "whole"
                is_next = is_next and self._is_same(now, before)
                if is_next and not self._missing(now) and not self._has_expired(now):
                    raise Violation("void, and every object of it is there")
        if not is_next:
            self._counts[f"snapshot {now.state} after {before.state if before else None}"] += 1
            raise Violation(f"a snapshot is {now.state} that cannot be")
        if now.state == "whole":
            self._name(now, configuration)

    def check_mended(self, gap: Json, newest: Stated | None) -> None:
        """A gap is made good by a snapshot that is there, and that was taken behind its end.

        Another one may have been asked for since, and cancelled in this very entry. Of a snapshot
        in segments the first point counts.
        """
        there = newest if newest is None or newest.state == "whole" else newest.visible
        if there is None or not self.is_visible(there):
            raise Violation("a gap is mended and its snapshot is not visible")
        if not gap["until"] or gap["until"] > there.began:
            raise Violation("a gap is mended by a snapshot that was taken before its end")
        self._counts["gaps mended"] += 1

    @staticmethod
    def _is_start(now: Stated, before: Stated | None, attempts: int) -> bool:
        follows = before.segment_before if before is not None else None
        if now.segment:
            expected = (follows.attempt, follows.segment + 1) if follows is not None else None
            is_later = follows is not None and follows.point <= now.point
            is_later = is_later and follows is not None and follows.began == now.began
            return is_later and (now.attempt, now.segment) == expected
        is_void = before is None or before.state != "whole" or follows is not None
        return is_void and now.attempt == attempts + 1 and bool(now.point)

    @staticmethod
    def _is_same(now: Stated, before: Stated | None) -> bool:
        names = ("attempt", "point", "version", "hour", "segment")
        return before is not None and all(
            now.snapshot.get(name) == before.snapshot.get(name) for name in names
        )

    def _name(self, whole: Stated, configuration: RecordConfiguration) -> None:
        table, read = TableName.parse(whole.snapshot["table"]), self.read_at(whole.snapshot)
        self._ends[str(table), whole.attempt, whole.segment] = whole.rest
        self._counts["segments"] += bool(whole.segment or whole.rest)
        if not whole.objects and self._keys_of(whole.snapshot, read):
            raise Violation("a segment without objects has rows")
        for staged in whole.objects:
            named = Named(staged, whole.snapshot, read, configuration)
            self._named[staged["key"]].append(named)
            self._attempts[str(table), whole.attempt].append(named)
            if staged["upload_id"] in self._uploads:
                raise Violation("an upload is named twice")
            self._uploads[staged["upload_id"]] = named

    def _keys_of(self, snapshot: Json, read: TableRead) -> list[int]:
        """The keys of the rows that a segment has to have: from where the one before ended."""
        now = Stated(snapshot, 0, 0)
        low = self._ends.get((snapshot["table"], now.attempt, now.segment - 1), "")
        return sorted(
            key
            for key, _ in read.rows
            if (not low or key >= int(low)) and (not now.rest or key < int(now.rest))
        )

    def read_at(self, snapshot: Json) -> TableRead:
        """The table as the snapshot saw that was taken at the statement's point."""
        seen = self._server.seen.get((self._timeline, snapshot["point"]))
        if seen is None:
            raise Violation("a snapshot of another branch of the server's history")
        return seen[TableName.parse(snapshot["table"])]

    def _missing(self, stated: Stated) -> list[Named]:
        named = self._attempts[stated.snapshot["table"], stated.attempt]
        return [one for one in named if not one.is_visible]

    def _has_expired(self, stated: Stated) -> bool:
        """Whether a rule of the bucket took one of its objects, before anybody vouched for it."""
        named = self._attempts[stated.snapshot["table"], stated.attempt]
        return any(one.staged["key"] in self._bucket.expired for one in named)

    def is_visible(self, stated: Stated) -> bool:
        """Whether all objects that a whole statement names are there."""
        return not self._missing(stated)

    def phase(self, stated: Stated) -> str:
        """Where between its entry and `durable` a table's snapshot is."""
        if stated.state != "whole":
            return {"started": "while staging"}.get(stated.state, "")
        named = self._attempts[stated.snapshot["table"], stated.attempt]
        missing = len(self._missing(stated))
        if missing == len(named):
            return "between whole and completion"
        return "between two completions" if missing else "between completion and durable"

    # --- objects

    def created(self, stored: StoredObject) -> Named:
        """An object became visible that is no stream's."""
        nonce = stored.metadata["nonce"]
        named = next((one for one in self._named[stored.key] if one.staged["nonce"] == nonce), None)
        if named is None:
            raise Violation("visible, not named by the journal")
        self._check_metadata(stored, named)
        self._check_order(named)
        named.is_visible = True
        return named

    @staticmethod
    def _check_metadata(stored: StoredObject, named: Named) -> None:
        staged, snapshot = named.staged, named.snapshot
        expected = {
            "first-position": staged["first"],
            "version": str(snapshot["version"]),
            "codec": str(staged["codec"]),
            "attempt": str(snapshot["attempt"]),
            "nonce": staged["nonce"],
        }
        if any(stored.metadata.get(name) != value for name, value in expected.items()):
            raise Violation("a staged object whose metadata is not the journal's")
        is_same = len(stored.body) == staged["size_bytes"]
        if not is_same or f"{zlib.crc32(stored.body):08x}" != staged["crc32"]:
            raise Violation("a staged object of another length or checksum than the journal's")
        if f"/version={snapshot['version']:04d}/" not in stored.key and (
            f"/{snapshot['version']:04d}/" not in stored.key
        ):
            raise Violation("a staged object under another version's folder")

    def _check_order(self, named: Named) -> None:
        """Objects of a lane follow each other, and the marker comes behind all rows."""
        snapshot, staged = named.snapshot, named.staged
        for other in self._attempts[snapshot["table"], snapshot["attempt"]]:
            if other.is_visible:
                continue
            number = other.staged["range_number"]
            if number == staged["range_number"] and other.staged["first"] < staged["first"]:
                raise Violation("a snapshot's lane is visible out of order")
            if not staged["range_number"] and number:
                raise Violation("a marker before the rows that it makes place for")

    def check_content(self, named: Named, lines: bytes) -> None:
        """The object's lines are rows of the table at C, one after the other in its range."""
        snapshot, staged, read = named.snapshot, named.staged, named.read
        records = record_writer(named.records)
        rows = dict(read.rows)
        table, changes = TableName.parse(snapshot["table"]), []
        number = staged["range_number"]
        row = int(staged["previous"][-6:], 16) + 1 if staged["previous"] else 0
        for line in lines.splitlines(keepends=True):
            found = orjson.loads(line)
            position = snapshot_position(snapshot["point"], snapshot["attempt"], number, row)
            key = found["key"]
            is_marker = found["op"] == "t"
            if is_marker != (number == row == 0) or (not is_marker and key not in rows):
                raise Violation("a snapshot's row that the table did not have")
            what = None if is_marker else (key, rows[key])
            version, codec = snapshot["version"], staged["codec"]
            if line != records.snapshot_line(read, position, what, version, codec):
                raise Violation("a snapshot's row is not the table's")
            changes.append((str(position), found["op"], key or 0, found["value"]))
            row += 1
        if not changes or (changes[0][0], changes[-1][0]) != (staged["first"], staged["last"]):
            raise Violation("a staged object has other rows than the journal says")
        if len(changes) != staged["rows"]:
            raise Violation("a staged object has another row count than the journal says")
        named.rows = tuple(str(change[2]) for change in changes if change[1] == "r")
        self._keep(str(table), changes)
        self._with_rows.add(str(table))
        self._check_whole(snapshot, read)

    def _check_whole(self, snapshot: Json, read: TableRead) -> None:
        """All objects of a segment together have every row of it, once."""
        segment = snapshot.get("segment", 0)
        named = [
            one
            for one in self._attempts[snapshot["table"], snapshot["attempt"]]
            if one.snapshot.get("segment", 0) == segment
        ]
        if any(not one.is_visible for one in named):
            return
        keys = sorted(int(key) for one in named for key in one.rows)
        if keys != self._keys_of(snapshot, read):
            raise Violation("a snapshot has not every row of its table once")
        self._counts["snapshots visible"] += 1

    def streamed(self, table: TableName, changes: Iterable[Change]) -> None:
        """Changes of a table's stream became visible."""
        self._keep(str(table), [(c.position, c.op, c.key, c.position) for c in changes])

    def _keep(self, table: str, changes: Iterable[Visible]) -> None:
        visible = self._visible[table]
        for change in changes:
            bisect.insort(visible, change)

    # --- uploads

    def aborts(self, upload_id: str, stated: dict[str, Stated]) -> None:
        """An engine aborts that upload."""
        named = self._uploads.get(upload_id)
        if named is None:
            return
        now = stated.get(named.snapshot["table"])
        is_live = now is not None and now.state == "whole" and not now.is_visible
        if not is_live or now is None or now.attempt != named.snapshot["attempt"]:
            return
        if self._bucket.refusals[upload_id] >= completer.REFUSALS_MAX:
            self._counts["given up after refusals"] += 1
        elif all(self._is_possible(one) for one in self._missing(now)):
            raise Violation("an upload aborted that the journal names")

    def _is_possible(self, named: Named) -> bool:
        """Whether an object that is missing may still be made of its upload."""
        return int(named.staged["upload_id"]) in self._bucket.uploads

    # --- the cut

    def check_cut(
        self,
        e: LogPosition,
        unfinished: Iterable[str],
        reading: SnapshotReading,
        configuration: RecordConfiguration,
        planned: Iterable[str],
    ) -> None:
        """What is visible before E folds to the server's rows at E, of each table that is whole."""
        names = {*planned, *reading.attempts}
        for table in TABLES:
            name = str(table)
            stated = reading.stated.get(name)
            is_claimed = stated is not None or (configuration.snapshot != "never" and name in names)
            if not is_claimed or name in unfinished or not configuration.captures(table):
                continue
            # Of a table that is gone nothing was read.
            is_read = stated is not None and stated.state != "gone"
            point = stated.began if stated is not None and is_read else ""
            if self.lost_behind(table, point, e):
                self._counts["cuts not checked for a gap"] += 1
                continue
            self._counts["cuts checked"] += 1
            if stated is not None and stated.segment:
                self._check_moved(table, stated)
            if self._folded(name, e) != self._server.rows_before(table, e):
                raise Violation("the cut is not complete")

    def _check_moved(self, table: TableName, stated: Stated) -> None:
        """No row moved past the segments of an attempt that counts: a part of it is nowhere."""
        self._counts["cuts checked of segments"] += 1
        for transaction in self._server.transactions:
            for change in transaction.changes:
                is_between = stated.began <= change.position < stated.point
                if change.table == table and is_between and change.is_moved:
                    raise Violation("a row moved to another key between two segments")

    def lost_behind(self, table: TableName, point: str, e: str) -> list[Change]:
        """What the server did not send of the table between a snapshot's point and E."""
        return [
            change
            for change in self._server.lost
            if change.table == table and point <= change.position < e
        ]

    def has_rows_before(self, table: TableName, position: str) -> bool:
        """Whether anything of the table is visible before that position."""
        visible = self._visible[str(table)]
        return bool(visible) and visible[0][0] < position

    def _folded(self, table: str, e: LogPosition) -> dict[int, Position]:
        rows: dict[int, Position] = {}
        is_snapshot = False
        for position, op, key, value in self._visible[table]:
            if position >= e:
                break
            is_snapshot |= op == "r"
            fold_one(rows, op, key, Position(value))
        self._counts["cuts checked with a snapshot's rows"] += is_snapshot
        return rows
