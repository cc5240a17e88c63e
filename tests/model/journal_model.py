# mypy: ignore-errors
"""Randomised model check of the protocol in sections 3 and 5 to 8 of the design.

A world of one source with one slot, one bucket and up to three engines is driven by a seeded scheduler.
Engines are killed, frozen, resumed, drained; connections drop; the server crashes and its slot goes
back; any request is applied late (also after its sender's death), fails, or loses its answer. After
every event the monitor compares what the journal claims with what is visible and with the source.

usage: journal_model.py RUNS [--steps N] [--seed N] [--jobs N] [--without RULE,...] [--mutants]
  --without   take rules away (see RULES); the run must then find a violation
  --mutants   take every rule of RULES away in turn and report after how many runs it was missed

Modelled: positions (commit, change, n); keepalives; silent skipping by START_REPLICATION; slot moved or
remade by hand; relation changes in mid-transaction; record configurations (columns, tables) and codec
versions that differ between writers; standby, open, takeover, redo in passes, restating, reconnect with
data left in a dead socket, group commit, serial publishing, durable, acknowledge, idle, probe, drain and
release; schemas and schema.json; snapshots with staged uploads, NoSuchUpload, restart, a table that
leaves and joins the configuration again.
Not modelled: state files, `--accept-gap` with generations, `snapshot_order = "before"`, DBLog chunks,
logical messages, `pause`, streamed objects as multipart, a restored disk, clocks and hours, a store that lies.
"""
import argparse
import collections
import multiprocessing
import random
import time

TABLES = ("a", "b", "c", "d")      # d is captured by some configurations only
NOWHERE = (-1, 0, 0)
MEMORY_ROWS, MEMORY_OBJECTS = 25, 2

# Rules that can be taken away. A star marks a rule that was not in the first draft: the model found it.
RULES = {
    "create_only": "5   journal entries are created, never overwritten",
    "own_412": "5.2 412 on the journal: read the winner, ours or not",
    "unclear": "5.2 an answer that never came is not success",
    "plan_first": "5.1 an object is put only after its plan is in the journal",
    "object_create_only": "5.1 objects are put create-only",
    "serial": "5.1 one object of a table at a time",
    "any_statement": "5.2 * 412 on an object: it may equal any statement of its plan",
    "look_again": "5.2 * an object that equals no statement we know: read the next entry before the named error",
    "read_counts": "5.3 a change counts from the moment it leaves the socket",
    "ordered_keepalive": "5.3 keepalives take the rows' path",
    "durable_first": "5.4 append durable, then acknowledge",
    "acknowledge_journal": "5.4 acknowledge what the journal holds, not what was received",
    "idle": "5.4 a keepalive's position becomes durable",
    "probe": "5.5 look at the next entry when idle",
    "exclusive_e": "5   commit_lsn < E, not <=",
    "commit_order": "3   positions sort by commit first",
    "slot_first": "6   first the slot, then open",
    "absorb": "6   open absorbs the predecessor's late entries before it decides what is missing",
    "redo": "6   missing planned objects are made again",
    "redo_configuration": "6   redo under the record configuration of the plan's epoch",
    "first_epoch": "6   * the epoch of the plan's first statement, not of its restatement",
    "redo_no_durable": "6   * a redo pass moves no E",
    "redo_not_received": "6   * what a redo pass reads beyond a frontier is not received",
    "restate": "6   another codec version restates the plan first",
    "received": "6   reconnect drops up to each table's received position",
    "forget_nothing": "6   reconnect forgets nothing",
    "compare": "6   every connect compares confirmed_flush_lsn with E",
    "compare_held": "6   * compare while holding the slot",
    "compare_opened": "6   * a start compares after its open",
    "compare_tail": "6   compare only while the journal's tail is ours",
    "quiet_until_compared": "6   * no status update before the comparison (servers that let the slot go back)",
    "version_at": "8   * newest version at or before the row, not newest of all",
    "version_number": "8   * newest is the highest number, not the last position",
    "schema_json": "8   schema.json before the first object",
    "snapshot_version": "8   * a snapshot's version has no first position",
    "snapshot_frontier": "7   * snapshot objects do not move the frontier",
    "keep_stream": "7   no streamed change is dropped because of a snapshot",
    "snapshot_position": "7   snapshot rows sort just before C",
    "new_c": "7   a crash before `whole` starts again under a new C",
    "whole_first": "7   complete only after the `whole` entry",
    "whole_unfinished": "7   * a table is unfinished until its objects are visible",
    "c_before_e": "7   * a table is unfinished while its C is past E",
    "captured_unfinished": "7   * a captured table without a snapshot is unfinished",
    "open_unfinished": "5   * an open that captures a table more makes it unfinished",
    "durable_unfinished": "5.4 * a changed list of unfinished tables is appended although E stays",
    "look_after": "7   NoSuchUpload first, then look whether the object is there",
    "void": "7   NoSuchUpload and absent starts again",
    "marker": "7   * a snapshot begins with a truncate record",
    "every_marker": "7   * every snapshot, not only the first one after a gap (its marker may be void)",
}

Change = collections.namedtuple("Change", "table position key op value shape")
Transaction = collections.namedtuple("Transaction", "commit_lsn end_lsn changes")
Configuration = collections.namedtuple("Configuration", "columns tables")
Plan = collections.namedtuple("Plan", "table key previous first last rows version codec crc epoch seq")
Version = collections.namedtuple("Version", "table number first relation")
Snapshot = collections.namedtuple("Snapshot", "table c state uploads version writer seq")
Body = collections.namedtuple("Body", "table version changes crc")


class Violation(Exception):
    """An invariant does not hold, or an engine stopped without cause."""


def fold(changes):
    """The rows that a consumer holds after applying changes by position: key -> value."""
    rows = {}
    for change in sorted(changes, key=lambda c: c.position):
        if change.op == "t":
            rows.clear()
        elif change.op == "d":
            rows.pop(change.key, None)
        else:
            rows[change.key] = change.value
    return rows


class Source:
    """PostgreSQL: a log of transactions, a catalog, one slot. LSNs are even, so C - 1 names no record."""

    def __init__(self, rnd, backward, by_change_lsn):
        self.rnd, self.backward, self.by_change_lsn = rnd, backward, by_change_lsn
        self.wal, self.transactions, self.shape = 10, [], dict.fromkeys(TABLES, 0)
        self.ddl = [(0, dict(self.shape))]
        self.live = {table: {} for table in TABLES}
        self.slot = False
        self.confirmed = self.persisted = 0
        self.connection = None
        self.tables = TABLES + ("d",) * rnd.choice((0, 0, 6))

    def commit(self):
        rnd = self.rnd
        count = rnd.choice((0, 1, 1, 2, 3, 8))
        commit_lsn = self.wal + 2 * rnd.choice((0, 0, 1, 3, 12))
        change_lsn = commit_lsn - 2 * count - 2 * rnd.randint(1, 9)
        numbers, changes = collections.Counter(), []
        for _ in range(count):
            change_lsn += rnd.choice((0, 2))
            table = rnd.choice(self.tables)
            if rnd.random() < .07:
                self.shape[table] += 1
            n = numbers[table, change_lsn] = numbers[table, change_lsn] + 1
            position = (change_lsn, commit_lsn, n) if self.by_change_lsn else (commit_lsn, change_lsn, n)
            key, live = rnd.randint(1, 4), self.live[table]
            op = rnd.choice("ud") if key in live else "c"
            if rnd.random() < .03:
                op = "t"
            change = Change(table, position, key, op, position, self.shape[table])
            changes.append(change)
            self.live[table] = fold_one(live, change)
        if rnd.random() < .05:                                  # DDL that no row shows
            self.shape[rnd.choice(TABLES)] += 1
        self.wal = commit_lsn + 2 * rnd.randint(1, 3)
        self.transactions.append(Transaction(commit_lsn, self.wal, tuple(changes)))
        self.ddl.append((commit_lsn, dict(self.shape)))

    def rows_at(self, table, lsn):
        """What a snapshot with consistent point `lsn` reads: key -> value."""
        rows = {}
        for transaction in self.transactions:
            if transaction.commit_lsn < lsn:
                for change in transaction.changes:
                    if change.table == table:
                        rows = fold_one(rows, change)
        return rows

    def shape_at(self, table, lsn):
        return [shape for commit_lsn, shape in self.ddl if commit_lsn < lsn][-1][table]

    def consistent_point(self):
        """A temporary slot logs a record, so its consistent point is always a new one."""
        self.wal += 2
        return self.wal

    def start(self, engine, lsn, configuration):
        """START_REPLICATION: None when the slot is held, else a connection that may silently start later."""
        if self.connection is not None and self.connection.engine is not engine:
            return None
        self.close(self.connection)
        self.connection = Connection(self, engine, max(lsn, self.confirmed), configuration)
        return self.connection

    def close(self, connection):
        if connection is not None and self.connection is connection:
            connection.sent = self.rnd.randint(connection.index, max(connection.index, len(self.transactions)))
            self.connection = None


def fold_one(rows, change):
    rows = {} if change.op == "t" else dict(rows)
    if change.op == "d":
        rows.pop(change.key, None)
    elif change.op != "t":
        rows[change.key] = change.value
    return rows


class Connection:
    """A replication stream. After it is closed its socket may still hold messages."""

    def __init__(self, source, engine, start, configuration):
        self.source, self.engine, self.start, self.configuration = source, engine, start, configuration
        self.index = self.offset = 0
        self.sent = None                                        # transactions sent before it was closed

    @property
    def open(self):
        return self.sent is None

    def receive(self):
        """The next message: (kind, Change or LSN); None when the socket says that it is closed."""
        transactions, rnd = self.source.transactions, self.source.rnd
        if not self.open and rnd.random() < .4:
            return None
        limit = len(transactions) if self.open else self.sent
        while self.index < limit and transactions[self.index].commit_lsn < self.start:
            self.index += 1
        if self.index >= limit:
            return ("keepalive", self.source.wal) if self.open else None
        transaction = transactions[self.index]
        if rnd.random() < .08:                                  # never past a commit that is not yet sent
            return "keepalive", transaction.commit_lsn
        while self.offset < len(transaction.changes):
            change = transaction.changes[self.offset]
            self.offset += 1
            if change.table in self.configuration.tables:
                return "change", change
        self.index, self.offset = self.index + 1, 0
        return "commit", transaction.end_lsn


class Request:
    """One S3 request under way. result: ok, exists (412), gone (NoSuchUpload), unclear."""

    def __init__(self, key, body, create=True, upload=None):
        self.key, self.body, self.create, self.upload = key, body, create, upload
        self.state, self.result, self.outcome, self.ghost = "sent", None, None, False


class Journal:
    """The journal folded up to an entry."""

    def __init__(self, world):
        self.world = world
        self.seq = self.epoch = 0
        self.writer = self.durable = None
        self.durable_seq, self.unfinished = -1, ()
        self.frontier = dict.fromkeys(TABLES, NOWHERE)
        self.plans, self.configurations, self.versions = {}, {}, {table: [] for table in TABLES}
        self.snapshots, self.broken = {}, set()

    def absorb(self, entry):
        if "open" in entry:
            known = {t for c in self.configurations.values() for t in c.tables}
            self.epoch, self.writer = entry["epoch"], entry["writer"]
            self.configurations[self.epoch] = entry["open"]
            for table in known - set(entry["open"].tables):     # its changes are lost to us from here on
                self.broken.add(table)
                self.snapshots.pop(table, None)
            if not self.world.without("open_unfinished"):
                added = set(entry["open"].tables) - set(self.snapshots)
                self.unfinished = tuple(sorted(added | set(self.unfinished)))
        for version in entry.get("schemas", ()):
            self.versions[version.table].append(version)
        for plan in entry.get("planned", ()):
            self.plans.setdefault(plan.key, []).append(plan)
            self.frontier[plan.table] = max(self.frontier[plan.table], plan.last)
        for snapshot in entry.get("snapshots", ()):
            self.snapshots[snapshot.table] = snapshot
            if snapshot.state == "whole":
                self.broken.discard(snapshot.table)
                if self.world.without("snapshot_frontier"):
                    self.frontier[snapshot.table] = max(self.frontier[snapshot.table], (snapshot.c - 1, 0, 0))
        if "durable" in entry:
            self.durable, self.durable_seq, self.unfinished = entry["durable"]
        self.seq += 1

    def version_at(self, table, position, more=()):
        """The version of a streamed row: the newest whose first position is at or before it."""
        known = [v for v in (*self.versions[table], *more) if v.first is not None and v.first <= position]
        if self.world.without("version_number"):
            return max(known, key=lambda v: (v.first, v.number), default=None)
        return max(known, key=lambda v: v.number, default=None)


class Item:
    """An object that this engine has to publish: missing, planning, ready, sent."""

    def __init__(self, plan, state, body=None):
        self.plan, self.state, self.body = plan, state, body
        self.request, self.changes = None, []


class Engine:
    """One writer: standby -> opening -> looking -> redo -> streaming (-> drain)."""

    def __init__(self, world, name, configuration, codec):
        self.world, self.name, self.configuration, self.codec = world, name, configuration, codec
        self.source, self.store, self.rnd, self.without = world.source, world.store, world.rnd, world.without
        self.alive, self.frozen, self.draining, self.held = True, False, False, False
        self.phase, self.journal, self.connection = "standby", Journal(world), None
        self.appending, self.nonce, self.compared, self.seen_confirmed = None, 0, False, 0
        self.buffer = {table: [] for table in TABLES}           # (change, version number), not planned
        self.queue = {table: [] for table in TABLES}            # Items in order, not visible
        self.provisional = {table: [] for table in TABLES}      # versions that the journal lacks
        self.received, self.boundaries, self.redoing = None, [], None
        self.schema_json, self.staged, self.completing, self.finished = {}, {}, {}, set()
        self.missing = []

    # --- the journal

    def follow(self):
        """Absorb what is in the journal. True when there was something."""
        found = False
        while ("journal", self.journal.seq) in self.store.objects:
            self.journal.absorb(self.store.objects["journal", self.journal.seq])
            found = True
        return found

    def tail_moved(self):
        return ("journal", self.journal.seq) in self.store.objects

    def append(self, entry, then):
        self.nonce += 1
        epoch = self.journal.epoch + ("open" in entry)
        entry.update(epoch=epoch, writer=self.name, nonce=self.nonce)
        if "planned" in entry:
            entry["planned"] = [p._replace(epoch=epoch, seq=self.journal.seq) for p in entry["planned"]]
        if "snapshots" in entry:
            entry["snapshots"] = [s._replace(writer=self.name, seq=self.journal.seq) for s in entry["snapshots"]]
        self.appending = entry, then, self.put_entry(entry)

    def put_entry(self, entry):
        return self.store.put(("journal", self.journal.seq), entry, not self.without("create_only"))

    def poll_append(self):
        entry, then, request = self.appending
        if request.result is None:
            return
        if request.result == "unclear" and not self.without("unclear"):
            self.appending = entry, then, self.put_entry(entry)         # the same bytes, the same key
            return
        self.appending = None
        winner = self.store.objects.get(("journal", self.journal.seq), entry)
        ours = winner["writer"] == self.name and winner["nonce"] == entry["nonce"]
        if request.result != "exists" or ours or self.without("own_412"):
            self.journal.absorb(entry)
            then(entry)
        elif "open" in entry and winner["epoch"] < entry["epoch"]:
            if self.without("absorb"):
                self.journal.seq += 1
            else:
                self.journal.absorb(winner)                             # and open again one entry later
        else:
            self.stop("superseded")

    # --- life

    def step(self):
        if self.appending is not None:
            self.poll_append()
        if self.alive and (self.appending is None or self.phase in ("streaming", "drain", "redo")):
            getattr(self, self.phase)()

    def stop(self, reason):
        self.world.kill(self, reason)

    def connect(self, configuration):
        """Start at E and compare. True when the stream may be read."""
        if self.connection is None:
            if self.appending is not None:                              # resolve the append in flight first
                return False
            if not self.source.slot:
                self.stop("slot missing")
                return False
            self.connection = self.source.start(self, self.journal.durable or 0, configuration)
            self.compared = False
            if self.connection is None:
                if self.tail_moved() and not self.without("probe"):
                    self.stop("superseded")
                return False
            self.held = True
            if self.without("quiet_until_compared"):
                self.acknowledge()
        if not self.compared:
            self.compare()
        return self.alive

    def compare(self, opened=True):
        """Does the slot hold more than E? Then changes are lost to us, unless another writer took them."""
        self.compared = True
        confirmed = self.seen_confirmed if self.without("compare_held") else self.source.confirmed
        if self.without("compare") or confirmed <= self.journal.durable:
            return
        if opened and self.tail_moved() and not self.without("compare_tail"):
            self.stop("superseded")
        else:
            self.stop("slot moved")

    def acknowledge(self, lsn=None):
        if self.connection is not None and self.connection.open and self.journal.durable is not None:
            self.world.acknowledge(self.journal.durable if lsn is None else lsn)

    def standby(self):
        if self.rnd.random() < .6:
            self.follow()
            self.seen_confirmed = self.source.confirmed
        if not self.source.slot and self.journal.seq == 0:
            self.source.slot = True
            self.source.confirmed = self.source.persisted = self.source.consistent_point()
        if not self.source.slot:
            self.stop("slot missing")
            return
        if not self.without("slot_first"):
            self.connection = self.source.start(self, self.journal.durable or 0, self.configuration)
            if self.connection is None:
                return
            self.held = True
            if self.without("quiet_until_compared"):
                self.acknowledge()
            if self.without("compare_opened") and self.journal.durable is not None:
                self.compare(opened=False)
        self.phase = "opening"

    def opening(self):
        entry = {"open": self.configuration}
        if self.journal.seq == 0:
            entry["durable"] = (self.source.confirmed, -1, self.configuration.tables)
        self.append(entry, self.opened)

    def opened(self, _):
        """The journal is ours: compare, then look which planned objects are missing."""
        if not self.without("compare_opened"):
            self.compare()
            if not self.alive:
                return
        self.store.abort_older(self.journal)
        self.missing = [s for s in self.journal.plans.values() if s[0].seq > self.journal.durable_seq]
        self.received = dict(self.journal.frontier)
        for table, snapshot in self.journal.snapshots.items():
            if snapshot.state == "whole" and snapshot.seq <= self.journal.durable_seq:
                self.finished.add(table)
        self.phase = "looking"

    def looking(self):
        """Every planned object after durable's entry is looked up, one a step."""
        if self.missing:
            statements = self.missing.pop(0)
            if statements[0].key in self.store.objects:
                self.equals_plan(statements)
            elif not self.without("redo"):
                self.queue[statements[0].table].append(Item(statements[0], "missing"))
            return
        missing = any(self.queue.values())
        if missing:
            self.source.close(self.connection)
            self.connection = None
        self.phase = "redo" if missing else "streaming"

    # --- redo

    def plan_epoch(self, plan):
        return self.journal.plans[plan.key][-1 if self.without("first_epoch") else 0].epoch

    def redo(self):
        """One pass: the oldest missing objects of one record configuration, as many as memory holds."""
        items = sorted((i for q in self.queue.values() for i in q), key=lambda i: (i.plan.seq, i.plan.key))
        if self.redoing is None:
            self.source.close(self.connection)                          # START anew for this pass, or to stream
            self.connection = None
            if not items:
                self.phase = "streaming"
                return
            configurations = self.journal.configurations
            configuration = configurations[self.plan_epoch(items[0].plan)]
            same = [i for i in items if configurations[self.plan_epoch(i.plan)] == configuration]
            if self.without("redo_configuration"):
                configuration = self.configuration
            self.redoing = (same[:MEMORY_OBJECTS], configuration)
            return
        selected, configuration = self.redoing
        if any(i.state == "missing" for i in selected):
            if self.connection is None:
                for item in selected:
                    item.changes = []
            if self.connect(configuration):
                self.read_for_redo(selected)
        elif self.appending is None and any(i.state == "rebuilt" for i in selected):
            self.write_entry()
        elif all(i not in items for i in selected):                     # visible: the pass is over
            self.redoing = None
        if self.alive:
            if self.without("redo_no_durable") and self.appending is None:
                self.write_entry()
            self.acknowledge()
            self.publish()

    def read_for_redo(self, selected):
        message = self.connection.receive()
        if message is None:
            self.connection, self.seen_confirmed = None, self.source.confirmed
            return
        kind, what = message
        high = max(i.plan.last for i in selected)
        if kind == "change":
            for item in selected:
                if item.plan.table == what.table and item.plan.first <= what.position <= item.plan.last:
                    item.changes.append(what)
            if self.without("redo_not_received"):
                self.received[what.table] = max(self.received[what.table], what.position)
            return
        if self.without("redo_no_durable"):
            self.boundaries.append(what)
        if what > (high[1] if self.source.by_change_lsn else high[0]):
            for item in selected:
                self.rebuilt(item)

    def rebuilt(self, item):
        statements = self.journal.plans[item.plan.key]
        configuration = self.redoing[1]
        if len(item.changes) != item.plan.rows:
            self.stop("another row count")
            return
        known = any(s.codec == self.codec for s in statements) or self.without("restate")
        item.body = make_body(item.plan.table, item.plan.version, item.changes, self.codec, configuration)
        item.state = "ready" if known else "rebuilt"

    # --- streaming

    def streaming(self):
        action = self.rnd.random()
        if self.draining:
            self.phase = "drain"
        elif action < .5:
            if sum(map(len, self.buffer.values())) < MEMORY_ROWS and self.connect(self.configuration):
                self.read()
        elif action < .75 and self.appending is None:
            self.write_entry()
        elif action < .85:
            self.acknowledge(self.boundaries[-1] if self.without("acknowledge_journal") and self.boundaries else None)
        if self.alive:
            self.publish()
            self.complete()

    def read(self):
        message = self.connection.receive()
        if message is None:
            self.connection, self.seen_confirmed = None, self.source.confirmed
            if self.without("forget_nothing"):
                self.buffer = {table: [] for table in TABLES}
            if self.without("received"):
                self.received = dict(self.journal.frontier)
        elif message[0] == "change":
            self.take(message[1])
        elif message[0] == "commit" or not self.without("idle"):
            self.boundaries.append(message[1])
            if self.without("ordered_keepalive") and self.connection.open:
                self.boundaries.append(self.source.wal)

    def take(self, change):
        table, position = change.table, change.position
        commit_lsn = position[1] if self.source.by_change_lsn else position[0]
        durable = self.journal.durable
        if position <= self.received[table] or commit_lsn < durable:
            return
        if self.without("exclusive_e") and commit_lsn == durable:
            return
        snapshot = self.journal.snapshots.get(table)
        if self.without("keep_stream") and snapshot and commit_lsn < snapshot.c:
            return
        self.received[table] = position
        self.buffer[table].append((change, self.decide_version(change)))

    def decide_version(self, change):
        table, relation = change.table, (change.shape, self.configuration.columns)
        if self.without("version_at"):
            known = [v for v in (*self.journal.versions[table], *self.provisional[table]) if v.first is not None]
            version = max(known, key=lambda v: v.number, default=None)
        else:
            version = self.journal.version_at(table, change.position, self.provisional[table])
        if version is None or version.relation != relation:
            version = self.new_version(table, change.position, relation)
        return version.number

    def new_version(self, table, first, relation):
        number = 1 + len(self.journal.versions[table]) + len(self.provisional[table])
        self.provisional[table].append(Version(table, number, first, relation))
        return self.provisional[table][-1]

    def cut(self, table):
        """A chunk from the front of the buffer: one version, any length."""
        rows = self.buffer[table]
        count = self.rnd.randint(1, len(rows)) if self.rnd.random() < .5 and not self.draining else len(rows)
        version = rows[0][1]
        changes = [change for change, number in rows[:count] if number == version]
        changes = changes[:next((i for i, (_, n) in enumerate(rows[:count]) if n != version), count)]
        del rows[:len(changes)]
        previous = self.journal.frontier[table]
        body = make_body(table, version, changes, self.codec, self.configuration)
        plan = Plan(table, ("data", table, version, changes[0].position), previous, changes[0].position,
                    changes[-1].position, len(changes), version, self.codec, body.crc, None, self.journal.seq)
        item = Item(plan, "planning", body)
        self.queue[table].append(item)
        return item

    def write_entry(self):
        """One append for all that is due; without anything to say, look at the next entry."""
        entry, items, versions = {}, [], []
        for item in (i for q in self.queue.values() for i in q if i.state == "rebuilt"):
            items.append(item)
        planned = [i.plan._replace(codec=self.codec, crc=i.body.crc) for i in items]
        if self.phase != "redo":
            for table in TABLES:
                if self.buffer[table] and (self.rnd.random() < .5 or self.draining):
                    items.append(self.cut(table))
                    planned.append(items[-1].plan)
                    if self.without("plan_first"):
                        items[-1].state = "ready"
            snapshots = [] if self.draining else self.snapshots_due()
            if snapshots:
                entry["snapshots"] = snapshots
            due = {plan.table for plan in planned} | {s.table for s in snapshots}
            if self.rnd.random() < .2:
                due = set(TABLES)                                       # journalled before their rows are planned
            versions = [v for table in TABLES if table in due for v in self.provisional[table]]
        if planned:
            entry["planned"] = planned
        if versions:
            entry["schemas"] = versions
        durable = self.durable()
        if durable is not None and (self.phase != "redo" or self.without("redo_no_durable")):
            entry["durable"] = durable
            if self.without("durable_first"):
                self.acknowledge(durable[0])
        idle = self.draining and not any(self.queue.values()) and not any(self.buffer.values())
        if idle and not entry:
            entry["release"] = True
        if entry:
            self.append(entry, lambda _: self.appended(items, versions, "release" in entry))
        elif self.tail_moved() and not self.without("probe"):
            self.stop("superseded")

    def appended(self, items, versions, released):
        for item in items:
            item.state = "ready" if item.state in ("planning", "rebuilt") else item.state
        for version in versions:
            self.provisional[version.table].remove(version)
        if released:
            self.acknowledge()
            self.stop("released")

    def durable(self):
        """(E, the entry up to which every planned object exists, unfinished tables), or None."""
        items = [i for q in self.queue.values() for i in q]
        component = 1 if self.source.by_change_lsn else 0
        pending = [i.plan.first[component] for i in items]
        if not self.without("read_counts"):
            pending += [rows[0][0].position[component] for rows in self.buffer.values() if rows]
        low = min(pending, default=self.source.wal)
        journal = self.journal
        e = max([b for b in self.boundaries if b <= low], default=journal.durable)
        e = max(e, journal.durable)
        self.boundaries = [b for b in self.boundaries if b > e]
        incomplete = [s for t, s in journal.snapshots.items() if s.state == "whole" and t not in self.finished]
        seq = min([i.plan.seq for i in items] + [s.seq for s in incomplete] + [journal.seq]) - 1
        if self.without("whole_unfinished"):
            incomplete = []
        unfinished = tuple(t for t in self.configuration.tables if self.unfinished(t, e, incomplete))
        grown = set(unfinished) != set(journal.unfinished) and not self.without("durable_unfinished")
        return (e, seq, unfinished) if e > journal.durable or grown else None

    def unfinished(self, table, e, incomplete):
        snapshot = self.journal.snapshots.get(table)
        if snapshot is None:
            return not self.without("captured_unfinished")
        if snapshot.state != "whole" or snapshot in incomplete:
            return True
        return snapshot.c > e and not self.without("c_before_e")

    # --- objects

    def has_schema(self, table, number):
        """schema.json is written from the journal, also by a successor; True when it is known to exist."""
        if self.without("schema_json"):
            return True
        request = self.schema_json.get((table, number))
        if request is None or request.result == "unclear":
            relation = next(v.relation for v in self.journal.versions[table] if v.number == number)
            self.schema_json[table, number] = self.store.put(("schema", table, number), relation)
            return False
        return request.result is not None

    def publish(self):
        for table in TABLES:
            queue = self.queue[table]
            heads = queue[:1] if not self.without("serial") else list(queue)
            for item in heads:
                if self.alive and item in queue:
                    self.publish_one(queue, item)

    def publish_one(self, queue, item):
        plan = item.plan
        if item.state == "ready" and (self.without("plan_first") or self.has_schema(plan.table, plan.version)):
            item.request, item.state = self.put_object(item), "sent"
        if item.state != "sent" or item.request.result is None:
            return
        if item.request.result == "unclear":
            item.request = self.put_object(item)                        # the same bytes, the same key
            return
        if item.request.result != "exists" or self.equals_plan(self.journal.plans.get(plan.key, [plan])):
            queue.remove(item)

    def equals_plan(self, statements):
        """True when the object is one that its plan states. Else a successor restated it, or a stranger wrote it."""
        if self.without("any_statement"):
            statements = statements[-1:]
        if any(s.crc == self.store.objects[statements[0].key].crc for s in statements):
            return True
        superseded = self.tail_moved() and not self.without("look_again")
        self.stop("superseded" if superseded else "another object under a planned key")
        return False

    def put_object(self, item):
        return self.store.put(item.plan.key, item.body, not self.without("object_create_only"))

    # --- snapshots

    def snapshots_due(self):
        """Statements about snapshots for the next entry: started, whole, or void (which starts again)."""
        due = []
        for table in self.configuration.tables:
            snapshot = self.journal.snapshots.get(table)
            staged = self.staged.get(table)
            resumable = snapshot and self.without("new_c")
            if snapshot is None or snapshot.state == "void" or (
                    snapshot.state == "started" and snapshot.writer != self.name and not resumable):
                if self.rnd.random() < .5:
                    due.append(Snapshot(table, self.source.consistent_point(), "started", (), 0, None, 0))
            elif snapshot.state == "started" and (staged is None or staged.c != snapshot.c):
                self.staged[table] = self.stage(snapshot)
                if self.without("whole_first"):
                    for upload in self.staged[table].uploads:
                        self.store.complete(upload)
            elif snapshot.state == "started" and self.rnd.random() < .5:
                due.append(staged)
        return due

    def stage(self, snapshot):
        """Read the table as of C into staged uploads. Reads nothing else: rows are not replayable."""
        table, c = snapshot.table, snapshot.c
        relation = (self.source.shape_at(table, c), self.configuration.columns)
        base = (c - 1) if not self.without("snapshot_position") else c + 40
        version = self.snapshot_version(table, (base, 0, 0), relation)
        rows = [Change(table, (base, 1 + k % 2, k), k, "r", value, relation[0])
                for k, value in sorted(self.source.rows_at(table, c).items())]
        if self.without("new_c") and snapshot.writer != self.name:      # what C saw is gone with its exporter
            now = self.source.rows_at(table, self.source.wal)
            rows = [r._replace(value=now[r.key]) for r in rows if r.key in now]
        marker = [Change(table, (base, 0, 0), None, "t", None, relation[0])] if self.marked(table) else []
        uploads = []
        for part in (marker + [r for r in rows if r.position[1] == 1], [r for r in rows if r.position[1] == 2]):
            if part:
                body = make_body(table, version, part, self.codec, self.configuration)
                uploads.append(self.store.create_upload(("data", table, version, part[0].position), body))
        return snapshot._replace(state="whole", uploads=tuple(uploads), version=version)

    def marked(self, table):
        """A truncate record opens every snapshot: it ends rows whose deletion fell into a gap."""
        if self.without("every_marker"):
            return table in self.journal.broken
        return not self.without("marker")

    def snapshot_version(self, table, position, relation):
        """The table's newest version of this shape, else one that no streamed row can take."""
        known = [*self.journal.versions[table], *self.provisional[table]]
        if self.without("snapshot_version"):
            version = self.journal.version_at(table, position, self.provisional[table])
            if version is None or version.relation != relation:
                version = self.new_version(table, position, relation)
            return version.number
        same = [v.number for v in known if v.relation == relation]
        return max(same) if same else self.new_version(table, None, relation).number

    def complete(self):
        """Complete the uploads that a `whole` entry names; NoSuchUpload: present is done, absent is void."""
        for table, snapshot in list(self.journal.snapshots.items()):
            if snapshot.state != "whole" or table in self.finished or not self.has_schema(table, snapshot.version):
                continue
            done = [self.complete_one(upload) for upload in snapshot.uploads]
            if "absent" in done and self.appending is None and not self.without("void"):
                absent = tuple(u for u, d in zip(snapshot.uploads, done) if d == "absent")
                self.append({"snapshots": [snapshot._replace(state="void", uploads=absent)]}, lambda _: None)
            elif all(d == "done" for d in done) or (self.without("void") and None not in done):
                self.finished.add(table)

    def complete_one(self, upload):
        request, present = self.completing.get(upload, (None, False))
        if request is None or request.result == "unclear":
            present = upload.key in self.store.objects
            self.completing[upload] = self.store.complete(upload), present
            return None
        if request.result == "gone":
            present = present if self.without("look_after") else upload.key in self.store.objects
            return "done" if present else "absent"
        return request.result and "done"

    def drain(self):
        """SIGTERM: read no more, plan and publish what is held, durable, release, acknowledge."""
        if self.appending is None:
            self.write_entry()
        if self.alive:
            self.publish()


def make_body(table, version, changes, codec, configuration):
    """An object's content. `crc` stands for the lines: they follow from codec, configuration and changes."""
    crc = (codec, configuration.columns, tuple(c.position for c in changes))
    return Body(table, version, tuple(changes), crc)


class Store:
    """S3: create-only PUT, multipart uploads, requests that take their time."""

    def __init__(self, world):
        self.world, self.objects, self.requests = world, {}, []
        self.uploads, self.clock = {}, 0

    def put(self, key, body, create=True):
        self.requests.append(Request(key, body, create))
        return self.requests[-1]

    def create_upload(self, key, body):
        self.clock += 1
        upload = Upload(self.clock, key)
        self.uploads[upload] = body
        return upload

    def complete(self, upload):
        self.requests.append(Request(upload.key, None, True, upload))
        return self.requests[-1]

    def abort_older(self, journal):
        """After its open: uploads that no entry names. Here all in one moment, so all are older."""
        named = {u for s in journal.snapshots.values() for u in s.uploads}
        for upload in [u for u in self.uploads if u not in named]:
            del self.uploads[upload]

    def advance(self, quiet):
        """One random request makes one step."""
        rnd, request = self.world.rnd, self.world.rnd.choice(self.requests)
        trouble = not quiet and rnd.random() < .08
        if request.state == "sent" and trouble:
            request.state, request.result = "done", "unclear"           # failed, or applied later
            if rnd.random() < .5:
                ghost = Request(request.key, request.body, request.create, request.upload)
                ghost.ghost = True
                self.requests.append(ghost)
        elif request.state == "sent":
            request.outcome, request.state = self.apply(request), "applied"
        else:
            request.state, request.result = "done", "unclear" if trouble else request.outcome
        if request.state == "done" or (request.ghost and request.state == "applied"):
            self.requests.remove(request)

    def apply(self, request):
        body = request.body
        if request.upload is not None:
            if request.upload not in self.uploads:
                return "gone"
            body = self.uploads.pop(request.upload)
        if request.key in self.objects:
            self.world.count["412"] += 1
            if request.create:
                return "exists"
            raise Violation(f"overwritten {request.key[0]}")
        self.objects[request.key] = body
        self.world.created(request.key, body)
        return "ok"


Upload = collections.namedtuple("Upload", "number key")


class World:
    """The scheduler and the monitor."""

    def __init__(self, seed, mutations=()):
        self.rnd, self.mutations, self.count = random.Random(seed), frozenset(mutations), collections.Counter()
        rnd = self.rnd
        self.source = Source(rnd, rnd.random() < .5, self.without("commit_order"))
        self.store, self.journal, self.engines = Store(self), Journal(self), []
        self.uniform, self.hand_allowed = rnd.random() < .3, rnd.random() < .2
        self.toggling = not self.uniform and rnd.random() < .4          # d leaves and joins with every other writer
        self.hand = self.named = False
        self.commit_rate, self.fault_rate = rnd.choice((.03, .05, .1)), rnd.choice((.01, .03, .08))
        self.visible, self.last = {}, dict.fromkeys(TABLES, NOWHERE)    # (table, position) -> key; newest per table
        self.changes = {table: [] for table in TABLES}                  # visible, snapshots included
        self.uploads_named, self.captured, self.newest_planned = set(), (), dict.fromkeys(TABLES, 0)

    def without(self, rule):
        return rule in self.mutations

    def commit_lsn(self, position):
        return position[1 if self.source.by_change_lsn else 0]

    # --- the monitor

    def created(self, key, body):
        if key[0] == "journal":
            self.entry_created(key[1], body)
        elif key[0] == "data":
            self.object_created(key, body)

    def object_created(self, key, body):
        table = body.table
        statements = self.journal.plans.get(key)
        if statements is None and key not in self.uploads_named:
            raise Violation("visible, not named by the journal")
        if ("schema", table, body.version) not in self.store.objects:
            raise Violation("object before schema.json")
        self.changes[table] += body.changes
        if statements is None:
            return
        if body.crc not in [s.crc for s in statements]:
            raise Violation("rows match no statement of the plan")
        if statements[0].first <= self.last[table]:
            raise Violation("visible out of order")
        self.last[table] = statements[0].last
        columns = self.journal.configurations[statements[0].epoch].columns
        for change in body.changes:
            if (table, change.position) in self.visible:
                raise Violation("change visible twice")
            self.visible[table, change.position] = key
            self.check_version(body, change, columns)

    def check_version(self, body, change, columns):
        version = self.journal.version_at(body.table, change.position)
        if version.number != body.version:
            raise Violation("two answers for a row's version")
        if version.relation != (change.shape, columns):
            raise Violation("row under another relation's version")

    def entry_created(self, seq, entry):
        if seq != self.journal.seq:
            raise Violation("a hole in the journal")
        frontier, before = dict(self.journal.frontier), self.journal.durable
        if "open" in entry:
            self.check_open(entry)
        self.journal.absorb(entry)
        for plan in entry.get("planned", ()):
            if len(self.journal.plans[plan.key]) == 1:
                if plan.previous != frontier[plan.table] or plan.first <= plan.previous:
                    raise Violation("a plan that does not follow the frontier")
                if plan.version < self.newest_planned[plan.table]:
                    raise Violation("a table's version goes back")
                self.newest_planned[plan.table] = plan.version
        for snapshot in entry.get("snapshots", ()):
            self.uploads_named |= {u.key for u in snapshot.uploads}
            if snapshot.state == "void" and any(u.key in self.store.objects for u in snapshot.uploads):
                raise Violation("void, but visible")
        if "open" in entry:
            self.captured = entry["open"].tables
        if "durable" in entry:
            self.check_durable(before, *entry["durable"])
        if "durable" in entry or "open" in entry:
            self.check_cut(self.journal.durable, self.journal.unfinished)

    def check_open(self, entry):
        opener = next(e for e in self.engines if e.name == entry["writer"])
        holder = self.source.connection and self.source.connection.engine
        if not opener.held and holder not in (None, opener) and not holder.frozen:
            raise Violation("a healthy writer deposed")

    def check_durable(self, before, e, seq, _):
        if before is not None and e < before:
            raise Violation("durable went back")
        for transaction in self.source.transactions:
            if before is not None and before <= transaction.commit_lsn < e:
                for change in transaction.changes:
                    if change.table in self.captured and (change.table, change.position) not in self.visible:
                        raise Violation("durable, but not visible")
        named = [s[0].key for s in self.journal.plans.values() if s[0].seq <= seq]
        named += [u.key for s in self.journal.snapshots.values() if s.state == "whole" and s.seq <= seq
                  for u in s.uploads]
        if not self.without("void") and any(key not in self.store.objects for key in named):
            raise Violation("an object up to durable's entry is missing")

    def check_cut(self, e, unfinished):
        for table in set(self.captured) - set(unfinished):
            seen = fold(c for c in self.changes[table] if self.commit_lsn(c.position) < e)
            if seen != self.source.rows_at(table, e):
                raise Violation("the cut is not complete")

    def acknowledge(self, lsn):
        if lsn > (self.journal.durable or 0):
            raise Violation("acknowledged past the journal")
        if lsn > self.source.confirmed or self.source.backward:
            self.source.confirmed = lsn

    # --- the scheduler

    def kill(self, engine, reason="killed"):
        engine.alive = False
        self.count[reason] += 1
        self.source.close(engine.connection)
        if reason in ("slot moved", "slot missing") and self.hand:
            self.named = True
        elif reason not in ("killed", "superseded", "released"):
            raise Violation(f"stopped without cause: {reason}")

    def spawn(self):
        rnd = self.rnd
        joined = self.uniform or (len(self.engines) % 2 == 0 if self.toggling else rnd.random() < .7)
        tables = TABLES if joined else TABLES[:3]
        columns, codec = (0, 1) if self.uniform else (rnd.randint(0, 1), rnd.randint(1, 2))
        self.engines.append(Engine(self, len(self.engines), Configuration(columns, tables), codec))
        self.count["engines"] += 1

    def fault(self, living):
        """One rare event of the outside world."""
        rnd, source = self.rnd, self.source
        what = rnd.choice(("kill", "freeze", "freeze", "resume", "resume", "resume", "spawn", "spawn", "crash", "persist",
                           "drop", "drop", "sigterm", "abort", "wal", "hand"))
        self.count[what] += 1
        engine = rnd.choice(living) if living else None
        if what == "spawn" and len(living) < 3:
            self.spawn()
        elif what == "crash":
            source.confirmed = source.persisted
            source.close(source.connection)
        elif what == "persist":
            source.persisted = source.confirmed
        elif what == "drop":
            source.close(source.connection)
        elif what == "wal":
            source.wal += 2 * rnd.randint(1, 3)
        elif what == "abort" and self.store.uploads and rnd.random() < .3:
            del self.store.uploads[rnd.choice(list(self.store.uploads))]
        elif what == "hand" and self.hand_allowed and source.connection is None and source.slot:
            self.hand = True
            source.slot = rnd.random() < .8
            source.confirmed = source.persisted = source.wal
        elif engine is not None and what == "kill":
            self.kill(engine)
        elif engine is not None and what == "freeze":
            engine.frozen = True
        elif engine is not None and what == "resume":
            engine.frozen = False
        elif engine is not None and what == "sigterm":
            if engine.phase == "streaming":
                engine.draining = True
            else:
                self.kill(engine)

    def run(self, steps):
        """Faults for `steps` steps, then none until everything has settled."""
        for _ in range(4):
            self.source.commit()
        self.spawn()
        for _ in range(steps):
            living = [e for e in self.engines if e.alive]
            able = [e for e in living if not e.frozen]
            dice = self.rnd.random()
            if dice < self.commit_rate:
                self.source.commit()
            elif dice < self.commit_rate + self.fault_rate:
                self.fault(living)
            elif dice < .5 and self.store.requests:
                self.store.advance(quiet=False)
            elif able:
                self.rnd.choice(able).step()
        for engine in self.engines:
            engine.frozen = False
        self.settle(12 * steps)
        if not self.named:
            self.check_end()

    def settle(self, steps):
        for _ in range(steps):
            living = [e for e in self.engines if e.alive]
            if self.named and not living:
                return
            if not living:
                self.spawn()
            elif self.store.requests and self.rnd.random() < .5:
                self.store.advance(quiet=True)
            else:
                self.rnd.choice(living).step()
            if self.settled():
                self.named = False
                return
        raise Violation("nothing settles")

    def settled(self):
        journal, source = self.journal, self.source
        if self.store.requests or journal.durable != source.wal or source.confirmed != source.wal:
            return False
        if set(journal.unfinished) & set(self.captured):
            return False
        living = [e for e in self.engines if e.alive]
        writers = [e for e in living if e.phase != "standby"]
        return len(writers) == 1 and writers[0].name == journal.writer and writers[0].appending is None

    def check_end(self):
        for table in self.captured:
            if fold(self.changes[table]) != self.source.rows_at(table, self.source.wal + 1):
                raise Violation("the bucket folds to other rows than the source's")
            shapes = 1 + self.source.shape[table]
            if self.uniform and sum(v.first is not None for v in self.journal.versions[table]) > shapes:
                raise Violation("more versions than relations")
        for key, statements in self.journal.plans.items():
            body = self.store.objects.get(key)
            if body is None:
                raise Violation("planned, never visible")
            columns = self.journal.configurations[statements[0].epoch].columns
            for change in body.changes:
                self.check_version(body, change, columns)


def check(task):
    """Run one seed. Returns (seed, violation or None, counts)."""
    seed, steps, mutations = task
    world = World(seed, mutations)
    violation = None
    try:
        world.run(steps)
    except Violation as error:
        violation = str(error)
    except (KeyError, AttributeError, ValueError) as error:     # a mutant's journal makes no sense any more
        if not mutations:
            raise
        violation = f"broken: {error!r}"
    world.count["entries"] += world.journal.seq
    world.count["changes"] += len(world.visible)
    world.count["restated"] += sum(len(s) - 1 for s in world.journal.plans.values())
    world.count["by hand"] += world.hand
    world.count["named stop"] += world.named
    return seed, violation, world.count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--without", default="")
    parser.add_argument("--mutants", action="store_true")
    options = parser.parse_args()
    with multiprocessing.Pool(options.jobs) as pool:
        for rules in RULES if options.mutants else (options.without,):
            report(pool, options, tuple(r for r in rules.split(",") if r))


def report(pool, options, mutations):
    assert set(mutations) <= set(RULES), mutations
    began, violations, first, total, done = time.time(), collections.Counter(), None, collections.Counter(), 0
    tasks = ((seed, options.steps, mutations) for seed in range(options.seed, options.seed + options.runs))
    for seed, violation, count in pool.imap(check, tasks, chunksize=20):
        done += 1
        total += count
        if violation:
            violations[violation] += 1
            first = first or (seed, violation)
    name = ",".join(mutations) or "all rules"
    if options.mutants:
        print(f"{name:22} {sum(violations.values()):5} of {done}  first {first}  {RULES[name][:5]}", flush=True)
    else:
        print(f"{name}: {done} runs, {sum(violations.values())} violations {dict(violations)}, first {first}, "
              f"{time.time() - began:.0f} s\n{dict(sorted(total.items()))}")


if __name__ == "__main__":
    main()
