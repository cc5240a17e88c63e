"""The monitor: what must hold after every creation and every status update.

Strategy: it reads the journal's objects as a stranger would, from their JSON, and folds them with
code of its own. It compares what they claim with what is visible, and with the server's log. It
knows which process created what, and nothing else about the engines.

Invariant: whatever it raises is a broken promise of the design. It does not judge how an engine
works.
"""

import bisect
import gzip
import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
import zstandard

from engine.journal.entry import ANSWERS_KEPT
from engine.journal.gaps import LOST
from engine.model.batch import Intake
from engine.model.layout import TableLayout
from engine.model.position import LogPosition
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from simulation.expiry import SCHEMA_SECONDS
from simulation.requests import RequestMonitor
from simulation.signals import SignalMonitor, SignalReading
from simulation.snapshot_monitor import SnapshotMonitor, SnapshotReading, Stated
from simulation.source import (
    DROPPED,
    HIDDEN,
    HOUR_US,
    TABLES,
    Change,
    RecordWriter,
    Server,
    record_writer,
)
from simulation.store import Bucket, StoredObject, kind_of
from simulation.violation import Violation
from simulation.virtual_loop import Process

MENDED_GAPS_REMEMBERED = 1_000
"""As many that are one row, and as many others: decision 0107."""

_FOLDERS = {
    str(table): (
        TableLayout("lake", "shop", "hive").table_folder(table),
        TableLayout("lake", "shop", "plain").table_folder(table),
    )
    for table in TABLES
}

Json = dict[str, Any]

WOKEN_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Statement:
    """One wording of a plan, as the journal has it."""

    planned: Json
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Version:
    number: int
    first: str | None
    record: str
    columns: tuple[str, ...]
    oid: int


@dataclass
class Reading:
    """The journal, read by a stranger."""

    seq: int = -1
    sha256: str = ""
    epoch: int = 0
    writer: str = ""
    durable: str | None = None
    durable_seq: int = -1
    watched: str = ""
    gaps: dict[int, Json] = field(default_factory=dict)
    # Gaps whose snapshot somebody cancelled.
    declined: set[int] = field(default_factory=set)
    is_released: bool = False
    plans: dict[str, list[Statement]] = field(default_factory=dict)
    pending: dict[str, list[Statement]] = field(default_factory=dict)
    vouched: list[str] = field(default_factory=list)
    frontier: dict[str, tuple[str, str]] = field(default_factory=dict)
    configurations: dict[int, RecordConfiguration] = field(default_factory=dict)
    versions: defaultdict[str, list[Version]] = field(default_factory=lambda: defaultdict(list))
    snapshots: SnapshotReading = field(default_factory=SnapshotReading)
    answers: list[str] = field(default_factory=list)
    signals: SignalReading = field(default_factory=SignalReading)
    unfinished: list[str] = field(default_factory=list)
    vouched_snapshots: list[Stated] = field(default_factory=list)
    accepting: Json | None = None
    looked: set[str] = field(default_factory=set)

    def read(self, entry: Json, body: bytes) -> None:
        """Take in the next entry."""
        if "open" in entry:
            self.writer = entry["writer"]["id"]
            self.epoch = entry["epoch"]
            self.configurations[self.epoch] = msgspec.convert(
                entry["open"]["configuration"], RecordConfiguration
            )
            e = self.durable or ""
            self.snapshots.opened(self.configuration, self.frontier, self.epoch, entry["seq"], e)
        for version in entry.get("schemas", ()):
            self._read_version(version)
        for planned in entry.get("planned", ()):
            statement = Statement(planned, entry["epoch"], entry["seq"])
            plan = self.plans.setdefault(planned["key"], [])
            plan.append(statement)
            self.pending[planned["key"]] = plan
            last, hour = self.frontier.get(planned["table"], ("", ""))
            if planned["last"] > last:
                last, hour = planned["last"], planned["hour"]
            self.frontier[planned["table"]] = (last, hour)
        for snapshot in entry.get("snapshots", ()):
            self.snapshots.read(snapshot, entry["epoch"], entry["seq"], self.durable or "")
        watch = entry.get("watch", {})
        self.looked = self.looked - {*watch.get("gone", ())} | {*watch.get("tables", ())}
        self.accepting = entry.get("accepting", self.accepting)
        self.signals.read(entry, self.accepting)
        if entry.get("accepted"):
            self.accepting = None
            is_on = self.configuration.snapshot != "never"
            self.snapshots.accepted(self.known if is_on else (), self.epoch, entry["seq"])
        for gap in entry.get("gaps", ()):
            self.gaps[gap["number"]] = gap
        cancelled = {s["table"] for s in entry.get("snapshots", ()) if s["state"] == "cancelled"}
        self.declined |= {n for n, gap in self.gaps.items() if gap["table"] in cancelled}
        self.answers += [answer["name"] for answer in entry.get("answers", ())]
        if "durable" in entry:
            self.watched = entry["durable"].get("watched", "")
            self.durable = entry["durable"]["position"]
            self.durable_seq = entry["durable"]["seq"]
            self.vouched = [k for k, p in self.pending.items() if p[0].seq <= self.durable_seq]
            for key in self.vouched:
                del self.pending[key]
            self.vouched_snapshots = self.snapshots.vouch(self.durable_seq)
            self.unfinished = entry["durable"].get("unfinished", [])
        self.is_released = entry.get("release", False)
        self.seq = entry["seq"]
        self.sha256 = hashlib.sha256(body).hexdigest()

    @property
    def configuration(self) -> RecordConfiguration:
        """The newest writer's."""
        return self.configurations[self.epoch]

    @property
    def known(self) -> list[str]:
        """The tables that it speaks of and that the newest writer captures."""
        names = {*self.frontier, *self.snapshots.attempts, *self.looked}
        names |= {table for table, versions in self.versions.items() if versions}
        return sorted(n for n in names if self.configuration.captures(TableName.parse(n)))

    def _read_version(self, version: Json) -> None:
        relation = version["relation"]
        table = TableName(**relation["table"])
        columns, oid = tuple(c["name"] for c in relation["columns"]), int(relation["identity"])
        self.versions[str(table)].append(
            Version(version["number"], version["first"], version["record"], columns, oid)
        )

    def version_at(self, table: str, position: str) -> Version | None:
        """The highest number whose first position is at or before the row."""
        known = [v for v in self.versions[table] if v.first is not None and v.first <= position]
        return max(known, key=lambda v: v.number, default=None)

    def _remembered(self) -> list[int]:
        """The gaps that a state file has: of those that are mended, the newest of each kind."""
        mended = [number for number in sorted(self.gaps) if self.gaps[number].get("mended")]
        forgotten: set[int] = set()
        for is_row in (False, True):
            kind = [n for n in mended if bool(self.gaps[n].get("position")) == is_row]
            forgotten |= {*kind[:-MENDED_GAPS_REMEMBERED]}
        return [number for number in sorted(self.gaps) if number not in forgotten]

    def summary(self) -> Json:
        """What a state file at this entry must say."""
        return {
            "seq": self.seq,
            "sha256": self.sha256,
            "epoch": self.epoch,
            "durable": self.durable,
            "gaps": {number: self.gaps[number]["until"] for number in self._remembered()},
            "frontiers": {table: list(where) for table, where in sorted(self.frontier.items())},
            "plans": {
                key: [s.planned["codec"] for s in plan] for key, plan in self.pending.items()
            },
            "versions": {
                table: [v.number for v in versions]
                for table, versions in sorted(self.versions.items())
                if versions
            },
            "configurations": sorted(self._needed_epochs()),
            "snapshots": {
                table: stated.summary() for table, stated in sorted(self.snapshots.stated.items())
            },
            "attempts": dict(sorted(self.snapshots.attempts.items())),
            "snapshot_position": self.snapshots.furthest,
            "accepting": self.accepting,
            "answers": sorted(self.answers)[-ANSWERS_KEPT:],
            "signals": sorted(self.signals.answered)[-ANSWERS_KEPT:],
            "signals_through": self.signals.through,
        }

    def _needed_epochs(self) -> set[int]:
        staged = {s.epoch for s in self.snapshots.stated.values() if not s.is_visible}
        return {plan[0].epoch for plan in self.pending.values()} | staged | {self.epoch}


def summary_of_state(body: bytes) -> Json:
    """The same, from a state file."""
    state = orjson.loads(gzip.decompress(body))
    durable = state["durable"]
    return {
        "seq": state["seq"],
        "sha256": state["sha256"],
        "epoch": state["epoch"],
        "durable": None if durable is None else durable["position"],
        "gaps": {int(number): gap["until"] for number, gap in sorted(state["gaps"].items())},
        "frontiers": {
            table: [where["last"], where["hour"]]
            for table, where in sorted(state["frontiers"].items())
        },
        "plans": {
            key: [s["planned"]["codec"] for s in statements]
            for key, statements in state["plans"].items()
        },
        "versions": {
            table: [v["number"] for v in versions]
            for table, versions in sorted(state["versions"].items())
        },
        "configurations": sorted(int(epoch) for epoch in state["configurations"]),
        "snapshots": {
            table: Stated.read(stated).summary()
            for table, stated in sorted(state["snapshots"].items())
        },
        "attempts": dict(sorted(state["attempts"].items())),
        "snapshot_position": state["snapshot_position"],
        "accepting": state["accepting"],
        "answers": sorted(state["answers"]),
        "signals": sorted(state["signals"]),
        "signals_through": state["signals_through"],
    }


def decompressed(stored: StoredObject) -> bytes:
    """An object's lines."""
    if stored.key.endswith(".zst"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(stored.body)
    return gzip.decompress(stored.body)


class Monitor:
    """Watches the bucket and the server. `deaf` are the processes that would not answer."""

    def __init__(self, clock_us_max: Callable[[], int], trace: Callable[[str], None]) -> None:
        self.journal = Reading()
        self.counts: Counter[str] = Counter()
        self.last: dict[str, tuple[str, str]] = {}
        self.first_durable: str | None = None
        self.summaries: dict[int, Json] = {}
        self.openers: dict[Process, int] = {}
        self.has_held: set[Process] = set()
        # Where the slot stood when the source was asked last on a process's newest connection.
        self.told: dict[Process, int] = {}
        self.deaf: set[Process] = set()
        self.newest_planned: dict[str, int] = {}
        self.is_doomed = False
        # Somebody goes on with a doomed journal and may: nothing is judged behind that.
        self.is_given_up = False
        self.is_restored = False
        # The source does not have what follows E.
        self.is_lost = False
        self.void: set[str] = set()
        # What an operator said that is accepted.
        self.named: set[str] = set()
        self.accepted_at = ""
        # E in the log before the one that a restored server wrote and that was accepted.
        self._forgotten = ""
        self._timeline = 1
        # What the newest open says that the log's generation is.
        self._generation = 1
        self._durable_past_fork = ""
        self.largest_planned = 0
        self.snapshot_versions: set[tuple[str, int]] = set()
        self.read: dict[Process, dict[str, str]] = {}
        self._snapshots = SnapshotMonitor(self.counts)
        self.requests = RequestMonitor(self.counts)
        self.signals = SignalMonitor(self.counts, self.requests)
        self._clock_us_max = clock_us_max
        self._trace = trace
        self._bucket: Bucket
        self._server: Server
        self._seen: dict[str, int] = {}
        self.always_captured = frozenset(TABLES)
        self._first_looked = 0
        # The settings that the newest look was judged under, and up to where that began.
        self._selection = ""
        self._selected = 0
        # By process and identity, where its rows were passed over; by process, who came back where.
        self._passed: defaultdict[Process, dict[str, str]] = defaultdict(dict)
        self._arrived: defaultdict[Process, list[tuple[int, str, str]]] = defaultdict(list)

    def watch(self, bucket: Bucket, server: Server) -> None:
        """What to compare the journal with."""
        self._bucket = bucket
        self._server = server
        self._snapshots.watch(bucket, server)

    # --- the bucket

    def created(self, stored: StoredObject) -> None:
        """An object became visible."""
        kind = kind_of(stored.key)
        self.counts[f"created: {kind}"] += 1
        self._trace(f"{stored.creator.name} created {stored.key}")
        if kind == "journal":
            self._entry_created(stored)
        elif self.is_doomed:
            return
        elif kind == "object":
            self._object_created(stored)
        elif kind == "schema":
            self._schema_created(stored)
        elif kind == "state":
            self._state_created(stored)

    def taken(self, kind: str, old: StoredObject, body: bytes, sender: Process) -> None:
        """A create met an object under its key."""
        if kind == "journal":
            self._entry_taken(old, body, sender)
        if kind in {"schema", "state"} and old.body != body:
            raise Violation(f"two contents for one key: {kind}")
        if kind == "object" and old.creator is not sender:
            self.counts["412 on another's object"] += 1

    def overwritten(self, old: StoredObject, stored: StoredObject) -> None:
        """A put that is not create-only met an object."""
        # An engine may prove with an entry's own bytes that the store refuses this.
        if old.body != stored.body:
            raise Violation(f"overwritten: {kind_of(stored.key)}")
        self.counts["overwritten with its own bytes"] += 1

    def begins(self, key: str, metadata: Mapping[str, str]) -> None:
        """An upload begins: a snapshot's only after the entry that starts its attempt."""
        if "attempt" not in metadata:
            return
        table = next(table for table, folders in _FOLDERS.items() if key.startswith(folders))
        if int(metadata["attempt"]) > self.journal.snapshots.attempts.get(table, 0):
            raise Violation("something is staged before its attempt is started")

    def aborts(self, sender: Process, key: str, upload_id: str) -> None:
        """An engine's abort of that upload of that key is about to be applied."""
        if not key.startswith("lake/") or "scratch" in key:
            raise Violation("an upload of somebody else aborted")
        if not self.is_doomed:
            self._snapshots.aborts(upload_id, self.journal.snapshots.stated)
        if sender not in self.openers and not self.is_doomed:
            raise Violation("uploads aborted by an engine that did not open")

    def _entry_taken(self, old: StoredObject, body: bytes, sender: Process) -> None:
        if old.creator is sender and old.body == body:
            self.counts["412 own"] += 1
            return
        wanted = orjson.loads(body)
        if "open" in wanted and orjson.loads(old.body)["epoch"] < wanted["epoch"]:
            self.counts["absorbed while opening"] += 1

    # --- entries

    def _entry_created(self, stored: StoredObject) -> None:
        entry = orjson.loads(stored.body)
        self._trace(f"    {stored.body.decode()[:1500]}")
        self._read_lists(entry)
        if self.is_doomed:
            self._read_past_fork(entry)
            return
        self._check_sequence(entry, stored)
        before, frontier = self.journal.durable, dict(self.journal.frontier)
        if not self._is_past_fork():
            self._check_statements(entry)
        accepting = self.journal.accepting
        if accepting is None and (
            entry.get("accepted")
            or any(not planned["rows"] for planned in entry.get("planned", ()))
        ):
            raise Violation("accepted, and nothing was being accepted")
        self.journal.read(entry, stored.body)
        if "watch" in entry and not self._first_looked:
            self._first_looked = self._server.wal
        selection = entry.get("watch", {}).get("selection", self._selection)
        if selection != self._selection:
            self._selection, self._selected = selection, self._server.wal
        if "open" in entry:
            self._check_fork(entry)
            self.signals.opened(stored.creator, self.journal.signals)
            self._timeline = self._timeline_of(entry)
            self._generation = entry["open"]["source"]["generation"]
            self._snapshots.opened(self._timeline)
        self.is_doomed = self._is_past_fork()
        if entry.get("accepted"):
            assert accepting is not None
            self._check_accepted(entry, accepting, before, stored.creator)
        if not self.is_doomed:
            self._check_parts(entry, stored.creator, before, frontier)

    def _read_lists(self, entry: Json) -> None:
        """Put the objects into the statements of which they are listed apart."""
        for snapshot in entry.get("snapshots", ()):
            if "listed" not in snapshot:
                continue
            listed = snapshot["listed"]
            found = self._bucket.objects.get(listed["key"])
            if found is None:
                raise Violation("an entry names a list that is not there")
            if hashlib.sha256(found.body).hexdigest() != listed["sha256"]:
                raise Violation("an entry names another list than the one that is there")
            snapshot["objects"] = orjson.loads(found.body)["objects"]
            self.counts["lists of objects"] += 1

    def _check_sequence(self, entry: Json, stored: StoredObject) -> None:
        """The entry follows the one before, and is its writer's to make."""
        journal = self.journal
        seq = int(stored.key.rsplit("/", 1)[1].split(".")[0])
        if seq != journal.seq + 1 or entry["seq"] != seq:
            raise Violation("a hole in the journal")
        if entry["previous_sha256"] != journal.sha256:
            raise Violation("an entry that does not follow the one before")
        if "open" in entry:
            self._check_open(entry, stored.creator)
        elif entry["epoch"] != journal.epoch or entry["writer"]["id"] != journal.writer:
            raise Violation("an entry of a writer that is not the journal's")
        elif journal.is_released:
            raise Violation("an entry after the release")

    def _check_parts(
        self,
        entry: Json,
        creator: Process,
        before: str | None,
        frontier: dict[str, tuple[str, str]],
    ) -> None:
        for planned in entry.get("planned", ()):
            self._check_plan(planned, frontier)
        for snapshot in entry.get("snapshots", ()):
            self._check_snapshot_version(snapshot)
        configuration, snapshots = self.journal.configuration, self.journal.snapshots
        signalled = self.signals.check(entry, creator, configuration)
        self.requests.check(entry, self._bucket, snapshots, configuration, signalled)
        if "durable" in entry:
            self._check_durable(before)
            self._check_arrived(creator)
            self._check_snapshots_durable()
        if self.journal.durable is not None and ("durable" in entry or "open" in entry):
            self._check_cut(entry)
        self.summaries[self.journal.seq] = self.journal.summary()

    def _check_accepted(
        self, entry: Json, accepting: Json, before: str | None, writer: Process
    ) -> None:
        """The gaps are exactly what may be missing, and it goes on where the source stands.

        That is where the source said that it stands, on the connection that the writer goes on
        with. Somebody may move the slot while the entry is on its way: then that is the next loss.
        """
        journal, server = self.journal, self._server
        if self.is_restored:
            self._forgotten = accepting["lost"]
        self.is_restored = False
        told = self.told.get(writer, 0)
        self.is_lost = not server.has_slot or server.confirmed > told
        self.counts[f"accepted: {accepting['loss']}"] += 1
        self.accepted_at = start = entry["durable"]["position"]
        server.agree(int(start[:4]))
        if accepting["lost"] != before:
            raise Violation("another loss accepted than the one that was named")
        if accepting["loss"] == "history" and start[:4] <= accepting["lost"][:4]:
            raise Violation("another log is read on in the same generation")
        if start != server.place(told):
            raise Violation("it goes on where the source does not stand")
        gaps = {gap["table"]: gap for gap in entry["gaps"]} if "gaps" in entry else {}
        if sorted(gaps) != journal.known:
            raise Violation("accepted without a gap of each table")
        for gap in gaps.values():
            if gap["after"] > accepting["lost"] or gap["until"] < start:
                raise Violation("a gap does not cover what is lost")
        for plan in journal.plans.values():
            planned = plan[0].planned
            is_void = planned["key"] in self.void and planned["first"] >= accepting["lost"]
            gap = gaps.get(planned["table"])
            if is_void and gap is not None and gap["until"] <= planned["last"]:
                raise Violation("a gap does not cover a void object")

    def _check_statements(self, entry: Json) -> None:
        """What an entry says of snapshots follows from what the entries before it said."""
        reading = self.journal.snapshots
        for gap in entry.get("gaps", ()):
            if gap.get("mended"):
                self._snapshots.check_mended(gap, reading.stated.get(gap["table"]))
        for snapshot in entry.get("snapshots", ()):
            table = snapshot["table"]
            self._snapshots.check_statement(
                snapshot,
                reading.stated.get(table),
                reading.attempts.get(table, 0),
                entry["epoch"],
                self.journal.configuration,
            )

    def _check_snapshot_version(self, snapshot: Json) -> None:
        """Its rows' version is that of the table as it was at C."""
        if snapshot["state"] != "started":
            return
        table, read = snapshot["table"], self._snapshots.read_at(snapshot)
        known = self.journal.versions[table]
        version = next((v for v in known if v.number == snapshot["version"]), None)
        if version is None:
            raise Violation("a snapshot under a version that the journal does not know")
        columns = tuple(column.name for column in read.relation.columns)
        if (version.oid, version.columns) != (int(read.relation.identity), columns):
            raise Violation("a snapshot under another relation's version")
        digests = record_writer(self.journal.configuration).digests
        if version.record != digests[read.relation.table]:
            raise Violation("a snapshot under another configuration's version")
        self.snapshot_versions.add((table, version.number))

    def _check_snapshots_durable(self) -> None:
        """The list is what follows from the statements and from what is there."""
        journal = self.journal
        e, reading = journal.durable or "", journal.snapshots
        for stated in journal.vouched_snapshots:
            if not self._snapshots.is_visible(stated):
                raise Violation("a snapshot's object up to durable's entry is missing")
        if journal.unfinished != reading.unfinished(e):
            raise Violation("other tables are called unfinished than the statements say")

    def _check_cut(self, entry: Json) -> None:
        journal = self.journal
        e = LogPosition(journal.durable or "")
        if self.is_restored:
            return  # The server has forgotten what it had at E.
        unfinished = journal.unfinished if "durable" in entry else journal.snapshots.unfinished(e)
        self._snapshots.check_cut(
            e, unfinished, journal.snapshots, journal.configuration, journal.frontier
        )

    @staticmethod
    def _timeline_of(entry: Json) -> int:
        return int(entry["open"]["source"]["branch"])

    def _is_past_fork(self) -> bool:
        """Whether the journal holds what the server has lost: somebody has to say so by name."""
        if self._timeline >= self._server.timeline:
            return False
        fork = self._server.forks[self._timeline - 1]
        planned = max((last for last, _ in self.journal.frontier.values()), default="")
        named = self.journal.snapshots.furthest
        return planned >= fork or max(self.journal.durable or "", named) > fork

    def _read_past_fork(self, entry: Json) -> None:
        """Only who accepts just that goes on, by the E of then: its name may have been told before.

        A smaller loss is not enough: what the new server wrote up to E would be in no gap.
        """
        if "open" in entry and self._timeline_of(entry) == self._server.timeline:
            loss, generation = entry.get("accepting", {}), entry["open"]["source"]["generation"]
            if loss.get("loss") != "history" or generation != self._generation + 1:
                raise Violation("went on past a fork")
            lost, e = loss["lost"], self._durable_past_fork or self.journal.durable
            if lost != e or lost not in self.named:
                raise Violation("a loss accepted that was not named")
            self.counts["accepted past a fork"] += 1
            self.is_given_up = True
        if "open" in entry:
            self._generation = entry["open"]["source"]["generation"]
        if "durable" in entry:
            self._durable_past_fork = entry["durable"]["position"]

    def _check_fork(self, entry: Json) -> None:
        """An open says where the source left the branch that the journal spoke of before."""
        is_left = entry["seq"] > 0 and self._timeline_of(entry) != self._timeline
        if entry.get("accepting", {}).get("loss", "moved") != "moved":
            is_left = False  # Nobody asks where, because the log is kept anew.
        fork = self._server.forks[self._timeline - 1] if is_left else ""
        if entry["open"].get("fork", "") != fork:
            raise Violation("another fork than the server's")

    def failed_over(self) -> None:
        """The server has another history now."""
        self.counts["failover"] += 1
        if self.journal.epoch and self._is_past_fork():
            self.is_doomed = True
        else:
            self.counts["failover that lost nothing of ours"] += 1

    def _check_open(self, entry: Json, opener: Process) -> None:
        journal = self.journal
        if "accepting" in entry:
            if not self.is_lost:
                raise Violation("a loss accepted, and nothing was lost")
            lost = entry["accepting"]["lost"]
            if lost != journal.durable or lost not in self.named:
                raise Violation("a loss accepted that was not named")
        if entry["epoch"] != journal.epoch + 1:
            raise Violation("an epoch that does not follow the one before")
        connection = self._server.connection
        holder = connection.process if connection is not None else None
        is_healthy = holder is not None and holder is not opener and holder not in self.deaf
        if opener not in self.has_held and is_healthy:
            raise Violation("a healthy writer deposed")
        self.openers[opener] = entry["epoch"]
        now = msgspec.convert(entry["open"]["configuration"], RecordConfiguration)
        self.always_captured &= record_writer(now).captured
        self.counts["open"] += 1
        self.counts["open: accepting"] += "accepting" in entry
        self.counts["open: goes on accepting"] += (
            "accepting" not in entry and journal.accepting is not None
        )
        if journal.epoch > 0 and not journal.is_released:
            self.counts["takeover"] += 1
        missing = self._missing()
        self.counts["takeover with objects missing"] += bool(missing)
        self.counts["redo of a restated plan"] += any(len(plan) > 1 for plan in missing)
        if len({plan[0].epoch for plan in missing}) > 1:
            # A successor plans nothing before it has redone everything.
            raise Violation("plans of two epochs missing")
        for plan in missing:
            before = journal.configurations[plan[0].epoch]
            self.counts["redo under another configuration"] += before != now

    def _missing(self) -> list[list[Statement]]:
        """Plans whose objects are not there, of those that durable's entry does not vouch for."""
        return [plan for plan in self.journal.pending.values() if self._is_missing(plan)]

    def _is_missing(self, plan: list[Statement]) -> bool:
        return not self._bucket.was_made(plan[0].planned["key"])

    def _check_plan(self, planned: Json, frontier: dict[str, tuple[str, str]]) -> None:
        table = planned["table"]
        statements = self.journal.plans[planned["key"]]
        if len(statements) > 1:
            self.counts["restated"] += 1
            if planned["rows"]:
                _check_restated(statements[0].planned, planned)
            elif planned["ops"] or planned["raw_bytes"]:
                raise Violation("void, and something is in it")
            return
        self.largest_planned = max(self.largest_planned, planned["raw_bytes"])
        last, hour = frontier.get(table, ("", ""))
        if planned["previous"] != last or planned["first"] <= last:
            raise Violation("a plan that does not follow the frontier")
        if planned["last"] < planned["first"] or planned["rows"] < 1:
            raise Violation("a plan without rows")
        if planned["version"] < self.newest_planned.get(table, 0):
            raise Violation("a table's version goes back")
        self.newest_planned[table] = planned["version"]
        if planned["hour"] < hour:
            raise Violation("a table's hour goes back")
        if planned["hour"] > hour and planned["hour"] > hour_text(self._clock_us_max()):
            raise Violation("an hour later than the planner's clock")
        if not any(v.number == planned["version"] for v in self.journal.versions[table]):
            raise Violation("a plan under a version that the journal does not know")
        frontier[table] = (planned["last"], planned["hour"])

    def _check_durable(self, before: str | None) -> None:
        journal = self.journal
        e = journal.durable
        assert e is not None
        if before is None:
            self.first_durable = e
            return
        if e < before:
            raise Violation("durable went back")
        if e > before and e > self._server.place(self._server.wal):
            raise Violation("durable past the log's end")
        if e > before:
            self._check_lost()
        self._check_hidden(e)
        captured = record_writer(journal.configurations[journal.epoch]).captured
        for change in self._between(before, e):
            last = self.last.get(str(change.table), ("", ""))[0]
            is_missing = change.table in captured and change.position > last
            if is_missing and not self._is_accepted(change):
                raise Violation("durable, but not visible")
        if not all(map(self._bucket.was_made, journal.vouched)):
            raise Violation("an object up to durable's entry is missing")

    def _is_accepted(self, change: Change) -> bool:
        gaps = (g for g in self.journal.gaps.values() if g["reason"] == LOST)
        # A table that the journal did not know has no gap.
        is_known = str(change.table) in self.journal.known
        return any(is_within(change, gap) for gap in gaps) or not is_known

    def _check_lost(self) -> None:
        """What the source did not send has a gap, up to where looks were judged.

        A keepalive's position becomes durable only after a look. What was published before the
        first look is not known, nor of a table that a configuration names anew, nor of one that was
        made anew before a look under other settings: those are not judged here. Nor is what a
        restored server wrote before E of the log that it had forgotten: where the slot is gone,
        nothing tells that it is another log. A gap begins at E, and nothing of it was looked at.
        """
        journal, server = self.journal, self._server
        assert journal.durable is not None
        if journal.watched > journal.durable:
            raise Violation("watched past durable")
        if not server.lost:
            return
        e, watched = server.address_of(journal.durable), server.address_of(journal.watched)
        if journal.watched[:4] != journal.durable[:4]:
            watched = 0
        is_keepalive = all(transaction.end_lsn != e for transaction in server.transactions)
        # Where a loss was accepted, nobody has looked yet.
        is_keepalive = is_keepalive and journal.durable != self.accepted_at
        bound = e if is_keepalive else min(e, watched)
        for change in server.lost:
            is_judged = self._first_looked <= change.commit_lsn < bound
            is_judged &= not self._is_of_forgotten(change)
            if change.op == DROPPED:
                # There is nothing to lose of a table of which nothing was read.
                is_judged &= self._snapshots.has_rows_before(change.table, change.position)
            elif change.commit_lsn < self._selected:
                is_judged &= not server.was_dropped(change.table, change.commit_lsn)
            if is_judged and change.table in self.always_captured:
                self.counts["lost behind the source's back"] += 1
                if not any(is_within(change, gap) for gap in journal.gaps.values()):
                    raise Violation("durable past a loss that no gap covers")

    def _is_of_forgotten(self, change: Change) -> bool:
        """Whether it stands in a restored server's log where the journal has what was before."""
        is_written_since = 0 < self._server.restored <= change.commit_lsn
        return is_written_since and change.position < self._forgotten

    def _check_hidden(self, e: str) -> None:
        """What a captured table got under a name that is not captured has a gap once it is back.

        The gap may be told of another captured name that it has had: that of the moment of a look.
        """
        known: set[int] = set()
        passed: defaultdict[int, list[Change]] = defaultdict(list)
        for change in self._between(self.first_durable or "", e):
            if change.table == HIDDEN:
                passed[change.oid].append(change)
                continue
            changes = passed.pop(change.oid, ())
            if change.oid in known:
                self._check_covered(change, changes)
            known.add(change.oid)

    def _check_covered(self, back: Change, passed: Iterable[Change]) -> None:
        for change in passed:
            if change.commit_lsn >= self._first_looked > 0:
                self.counts["passed over while away"] += 1
                if not self._has_gap(back.oid, change.position, change.position):
                    raise Violation("durable past rows under another name that no gap covers")

    def _check_arrived(self, writer: Process) -> None:
        """A table of which this process first passed rows over has a gap of that time."""
        e = self.journal.durable or ""
        first_looked = self._server.place(self._first_looked)
        for oid, left, came in self._arrived[writer]:
            if self._first_looked and first_looked <= left and came < e:
                self.counts["came from a name that is not captured"] += 1
                if not self._has_gap(oid, f"{came}~", left):
                    raise Violation("durable past a table that came from elsewhere, without a gap")
        self._arrived[writer] = [one for one in self._arrived[writer] if one[2] >= e]

    def _hear_names(self, process: Process, intake: Intake) -> None:
        for named in intake.named:
            if named.commit < (self.journal.durable or ""):
                continue
            passed = self._passed[process]
            if not named.is_captured:
                passed[named.identity] = max(passed.get(named.identity, ""), named.commit)
            elif "" < passed.get(named.identity, "") < named.commit:
                left = passed.pop(named.identity)
                self._arrived[process].append((int(named.identity), left, named.commit))

    def _has_gap(self, oid: int, after: str, until: str) -> bool:
        """Whether a gap of the table begins before the one and ends behind the other."""
        return any(
            gap["table"] in self._server.had[oid]
            and gap["after"] <= after
            and (not gap["until"] or until < gap["until"])
            for gap in self.journal.gaps.values()
        )

    def _changes(self, table: TableName, low: str, high: str) -> list[Change]:
        """The table's changes at positions from `low` up to but without `high`."""
        return [c for c in self._between(low, high) if c.table == table]

    def _between(self, low: str, high: str) -> list[Change]:
        transactions = self._server.transactions
        first = bisect.bisect_left(transactions, low[:21], key=lambda t: t.place)
        found = []
        for transaction in transactions[first:]:
            if transaction.place > high:
                break
            found += [c for c in transaction.changes if low <= c.position < high]
        return found

    # --- objects

    def _object_created(self, stored: StoredObject) -> None:
        statements = self.journal.plans.get(stored.key)
        if "nonce" in stored.metadata:
            self._staged_created(stored)
            return
        if statements is None:
            raise Violation("visible, not named by the journal")
        planned = statements[0].planned
        table = TableName.parse(planned["table"])
        self._check_schema_of(stored)
        is_again = stored.key in self._bucket.expired
        if not is_again:
            self._check_order(planned)
        records = record_writer(self.journal.configurations[statements[0].epoch])
        changes = self._changes(table, planned["first"], planned["last"] + "~")
        if self._is_void(stored, statements):
            return
        self._check_content(stored, statements, changes, records)
        if is_again:
            if stored.key not in self.journal.pending:
                raise Violation("made again though it was durable, and had expired")
            self.counts["made again after it expired"] += 1
            return
        for change in changes:
            self._check_row(change, planned, records)
        self.counts["changes"] += len(changes)
        self._snapshots.streamed(table, changes)

    def _is_void(self, stored: StoredObject, statements: list[Statement]) -> bool:
        """Whether nothing is in it, as a statement says."""
        if decompressed(stored):
            return False
        void = next((s.planned for s in statements if not s.planned["rows"]), None)
        if void is None:
            raise Violation("an object with nothing in it")
        _check_metadata(stored.metadata, void, b"")
        self.void.add(stored.key)
        self.counts["void objects"] += 1
        return True

    def _staged_created(self, stored: StoredObject) -> None:
        named = self._snapshots.created(stored)
        self._check_schema_of(stored)
        self._snapshots.check_content(named, decompressed(stored))

    def _check_schema_of(self, stored: StoredObject) -> None:
        """It is there, unless it expired a moment ago: an engine looks for it now and then.

        One that slept had looked before, and its request was under way.
        """
        key = self._schema_key(stored.key)
        if key in self._bucket.objects:
            return
        expired_us = self._bucket.expired.get(key)
        is_woken = self._bucket.loop.time() - stored.creator.woken_at <= WOKEN_SECONDS
        if expired_us is None or (
            stored.created_us - expired_us > (SCHEMA_SECONDS + 10) * 1e6 and not is_woken
        ):
            raise Violation("object before schema.json")

    @staticmethod
    def _schema_key(key: str) -> str:
        return "/".join(key.split("/")[:-5]) + "/schema.json"

    def _check_order(self, planned: Json) -> None:
        position, key = self.last.get(planned["table"], ("", ""))
        if planned["first"] <= position:
            raise Violation("visible out of order")
        if planned["previous"] != position:
            raise Violation("visible before the one before it")
        name = planned["key"].removesuffix(".zst").removesuffix(".gz")
        if name <= key and _layout(name) == _layout(key):
            raise Violation("an object that sorts before the one before it")
        self.last[planned["table"]] = (planned["last"], name)

    def _check_content(
        self,
        stored: StoredObject,
        statements: list[Statement],
        changes: list[Change],
        records: RecordWriter,
    ) -> None:
        lines = decompressed(stored)
        planned = statements[0].planned
        for statement in statements:
            codec = statement.planned["codec"]
            expected = b"".join(
                records.line(change, planned["version"], codec) for change in changes
            )
            if lines == expected:
                _check_metadata(stored.metadata, statement.planned, lines)
                if len(changes) != planned["rows"]:
                    raise Violation("another row count than its plan's")
                return
        raise Violation("rows match no statement of the plan")

    def _check_row(self, change: Change, planned: Json, records: RecordWriter) -> None:
        table = planned["table"]
        version = self.journal.version_at(table, change.position)
        if version is None or version.number != planned["version"]:
            raise Violation("two answers for a row's version")
        columns = tuple(column.name for column in change.relation.columns)
        if (version.oid, version.columns) != (change.oid, columns):
            raise Violation("row under another table's version")
        if version.record != records.digests[change.table]:
            raise Violation("row under another relation's version")
        first = self._seen.get(planned["key"])
        if first is None:
            self._seen[planned["key"]] = change.commit_us
        elif change.commit_us // HOUR_US > first // HOUR_US:
            raise Violation("an object over the end of its hour")

    def _schema_created(self, stored: StoredObject) -> None:
        described = orjson.loads(stored.body)
        table = str(TableName(described["schema"], described["table"]))
        if not any(v.number == described["version"] for v in self.journal.versions[table]):
            raise Violation("schema.json before the journal's version")

    def _state_created(self, stored: StoredObject) -> None:
        found = summary_of_state(stored.body)
        expected = self.summaries[found["seq"]]
        # It may keep more configurations than are needed, never fewer.
        kept = [e for e in found["configurations"] if e in expected["configurations"]]
        if {**found, "configurations": kept} != expected:
            self._trace(f"state file {found}, the journal folded {expected}")
            raise Violation("a state file that is not the journal folded")
        self.counts["state files"] += 1

    # --- engines

    def is_writer(self, process: Process) -> bool:
        """Whether the journal's newest open is this process's."""
        return process in self.openers and self.openers[process] == self.journal.epoch

    def windows(self, process: Process) -> list[str]:
        """Where in the protocol the writer is."""
        journal = self.journal
        missing = self._missing()
        read = self.read.get(process, {})
        found = {
            "before a plan": any(
                last > journal.frontier.get(table, ("",))[0] for table, last in read.items()
            ),
            "between plan and publish": any(p[-1].epoch == journal.epoch for p in missing),
            "between publish and durable": bool(journal.pending) and not missing,
            "between durable and acknowledge": self._is_unconfirmed,
            "in a redo": any(plan[-1].epoch < journal.epoch for plan in missing),
        }
        for stated in journal.snapshots.stated.values():
            is_started = stated.state == "whole" or stated.epoch == journal.epoch
            if is_started and not stated.is_visible and (at := self._snapshots.phase(stated)):
                found[at] = True
        found |= self.signals.windows(process, journal.durable or "")
        return [window for window, is_hit in found.items() if is_hit]

    @property
    def _is_unconfirmed(self) -> bool:
        server = self._server
        return server.is_confirming and server.place(server.confirmed) < (
            self.journal.durable or ""
        )

    # --- the server

    def held(self, process: Process) -> None:
        """A process has a connection that holds the slot; nothing is told on it yet."""
        self.has_held.add(process)
        self.told.pop(process, None)

    def received(self, process: Process, intake: Intake) -> None:
        """An engine has read something."""
        read = self.read.setdefault(process, {})
        for batch in intake.batches:
            read[str(batch.table)] = batch.last
        self._hear_names(process, intake)

    def acknowledged(self, process: Process, position: str) -> None:
        """A status update leaves an engine."""
        if position > (self.journal.durable or "") and not self.is_doomed:
            raise Violation("acknowledged past the journal")

    def publishes(self, process: Process, table: TableName) -> None:
        """An engine lets changes of a table arrive."""
        self.counts["published by an engine"] += 1
        stated = self.journal.snapshots.stated.get(str(table))
        is_wanted = stated is not None and stated.state != "gone"
        if self.is_writer(process) and not self.is_doomed and not is_wanted:
            raise Violation("published before the journal says that its snapshot is wanted")

    # --- the end

    def check_end(self, *, is_uniform: bool) -> None:
        """Everything has settled: everything is there, once."""
        for plan in self.journal.plans.values():
            if self._is_missing(plan):
                raise Violation("planned, never visible")
        if self.journal.snapshots.owed(self.journal.durable or ""):
            raise Violation("a snapshot is never finished")
        self._check_filled()
        self._check_versions_used()
        if is_uniform and not self.counts["open: accepting"]:
            for table in TABLES:
                self._check_version_count(table)

    def unfilled(self) -> list[str]:
        """The tables that arrive and whose snapshot is still to be wanted: why, by table."""
        journal = self.journal
        if journal.configuration.snapshot == "never":
            return []
        stated = journal.snapshots.stated
        # Of a table whose first snapshot is cancelled nothing is taken until somebody asks.
        gaps = [
            gap["table"]
            for number, gap in journal.gaps.items()
            if not gap.get("mended")
            and number not in journal.declined
            and gap["table"] in stated
            and stated[gap["table"]].state != "cancelled"
        ]
        tables = map(str, self._arriving())
        return [
            table
            for table in tables
            if table not in stated or stated[table].state == "gone" or table in gaps
        ]

    def _arriving(self) -> list[TableName]:
        """The tables that the newest configuration captures and the server publishes."""
        captures, server = self.journal.configuration.captures, self._server
        return [t for t in TABLES if captures(t) and server.membership(t) is not None]

    def _check_filled(self) -> None:
        """Each table that arrives has a snapshot, also one without rows, and lacks nothing."""
        journal = self.journal
        if self.unfilled():
            raise Violation("a table that is published has no snapshot, or a gap")
        declined = {journal.gaps[number]["table"] for number in journal.declined}
        for table in self._arriving() if journal.configuration.snapshot != "never" else ():
            stated = journal.snapshots.stated[str(table)]
            if str(table) in declined or stated.state == "cancelled":
                continue
            if self._snapshots.lost_behind(table, stated.began, journal.durable or ""):
                raise Violation("a loss that no snapshot fills")

    def _check_version_count(self, table: TableName) -> None:
        changes = self._changes(table, self.first_durable or "", "9")
        runs = sum(
            1
            for index, change in enumerate(changes)
            if index == 0 or changes[index - 1].relation.shape != change.relation.shape
        )
        versions = [v for v in self.journal.versions[str(table)] if v.first is not None]
        if len(versions) > runs:
            raise Violation("more versions than relations")

    def _check_versions_used(self) -> None:
        """A version that no object has would change what a replay decides.

        A snapshot's version is journalled with its attempt, and those before it. One that was
        asked for again before that leaves a version that no streamed row takes.
        """
        used = {
            (p[0].planned["table"], p[0].planned["version"]) for p in self.journal.plans.values()
        }
        for table, versions in self.journal.versions.items():
            numbers = (n for name, n in self.snapshot_versions if name == table)
            newest = max(numbers, default=0)
            unused = [v for v in versions if v.first and (table, v.number) not in used]
            if any(version.number > newest for version in unused):
                raise Violation("a version that no object has")


def hour_text(time_us: int) -> str:
    """The hour as the journal writes it."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H")


def is_within(change: Change, gap: Json) -> bool:
    """Whether a gap states that this change may be missing."""
    is_after = gap["table"] == str(change.table) and gap["after"] <= change.position
    return is_after and (not gap["until"] or change.position < gap["until"])


def _layout(key: str) -> bool:
    return "/version=" in key


def _check_restated(first: Json, planned: Json) -> None:
    same = ("table", "key", "previous", "first", "last", "rows", "version", "ops", "hour")
    if any(first[name] != planned[name] for name in same):
        raise Violation("a plan restated with other rows")


def _check_metadata(metadata: Mapping[str, str], planned: Json, lines: bytes) -> None:
    expected = {
        "first-position": planned["first"],
        "last-position": planned["last"],
        "previous-position": planned["previous"],
        "rows": str(planned["rows"]),
        "version": str(planned["version"]),
        "codec": str(planned["codec"]),
        "raw-bytes": str(planned["raw_bytes"]),
        "raw-crc32": planned["raw_crc32"],
    }
    for name, value in expected.items():
        if metadata.get(name, "") != value:
            raise Violation(f"metadata {name} is not its plan's")
    if len(lines) != planned["raw_bytes"] or f"{zlib.crc32(lines):08x}" != planned["raw_crc32"]:
        raise Violation("another length or checksum than its plan's")
