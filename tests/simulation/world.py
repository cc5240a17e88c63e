"""The world: one schedule of one seed, from the first engine to the last settled row.

Strategy: transactions and faults come at random times for a while. Then faults cease, and
everything has to settle. Faults are what an operating system, a network, a database server, a
bucket and an operator can do. An engine may also be killed at the very moment when one of its
requests is applied.

Invariant: everything random is drawn from the seed, so a schedule can be replayed.
"""

import asyncio
import bisect
import contextlib
import dataclasses
import functools
import gc
import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from engine.journal.entry import decode_entry
from engine.model.batch import Intake
from engine.model.errors import (
    JournalError,
    PositionLost,
    SnapshotsRefused,
    SourceUnavailable,
    StopLimit,
    Superseded,
)
from engine.model.layout import journal_key, state_key
from engine.model.position import LOG_BEGIN, LogPosition, Position, commit_of
from engine.model.schema import TableName
from simulation.engines import EngineProcess, draw_profile
from simulation.expiry import ASLEEP_SECONDS, HORIZON_SECONDS, IDLE_SECONDS, Expiry, Seen
from simulation.lock_server import LockServer
from simulation.monitor import Monitor
from simulation.reader import BucketReader
from simulation.requests import Operator
from simulation.signals import Asker
from simulation.source import TABLES, Change, Server
from simulation.store import Bucket, Request, StoredObject, Upload, kind_of, said_by
from simulation.violation import Violation
from simulation.virtual_loop import DeadlockError, Process, VirtualLoop

EPOCH_US = 1_795_341_480_000_000  # 2026-11-22T09:58:00Z: most schedules cross an hour.
CLOCK_SKEW_US = 3_000_000
SETTLE_SECONDS = 1_200
READ_SECONDS = 4
LATE_PLANS = 0.15  # In a world with failovers.
LATE_OBJECTS = 0.015
WORLDS_WITH_SIGNALS = 0.2
LOST_SIGNALLED = 0.7  # In a world with failovers, behind an answer.
KILLED_SIGNALLED = 0.1  # Where an engine is given signals, or says what became of some.
LISTS_DAMAGED = 0.4
WORLDS_WITH_DROPS = 0.5
OWED_DROPPED = 0.35
COMPLETIONS_REFUSED = 0.4
KILLED_ACCEPTING = 0.7
FAILED_OVER_ACCEPTING = 0.15  # Where who may accept is told of the loss.
LOST_PLANNED = 0.3  # Where somebody may move the slot by hand, and a loss may be accepted.
SNAPSHOTS = (("never", "initial", "mixed"), (60, 34, 6))
"""Which engines take snapshots: none, all, or every other one; and how often."""
_NOT_OWED = ("cancelled", "gone")
CLOCK_SETTINGS_US = (0, -30_000_000, 5_000_000, 1_800_000_000, 7_200_000_000)


@dataclass
class Outcome:
    """What a schedule came to."""

    seed: int
    violation: str | None
    counts: Counter[str] = field(default_factory=Counter)


class World:
    """One schedule."""

    def __init__(
        self, seed: int, *, is_verbose: bool = False, is_store_lying: bool = False
    ) -> None:
        self.rnd = rnd = random.Random(seed)
        self.seed = seed
        self.is_verbose = is_verbose
        self.loop = VirtualLoop()
        self.loop.set_exception_handler(self._on_error)
        self.violation: BaseException | None = None
        self.counts: Counter[str] = Counter()
        self.engines: list[EngineProcess] = []
        self.is_calm = False
        self.is_stopping = False
        self.is_moved_by_hand = False
        self.is_named = False
        self.is_list_altered = False
        self._is_over = False
        # By engine, the tables of which the source refused it a snapshot.
        self._tables_refused: defaultdict[str, set[TableName]] = defaultdict(set)
        # What the operator says to the engines that start from now on; it is never taken back.
        self.accept_gap = LOG_BEGIN
        self._start_us = EPOCH_US + rnd.randint(0, 150_000_000)
        self._draw_character()
        self.monitor = Monitor(lambda: self.now_us() + CLOCK_SKEW_US, self.trace)
        self.bucket = Bucket(
            self.loop,
            rnd,
            self.now_us,
            self,
            part_bytes=rnd.choice((1, 400, 1 << 30)),
            is_create_only=not is_store_lying,
        )
        self.server = (LockServer if rnd.random() < 0.2 else Server)(
            self.loop,
            rnd,
            self.now_us,
            self,
            is_backward=rnd.random() < 0.5,
            weights=TABLES + (TABLES[-1],) * rnd.choice((0, 0, 6)),
            alter_rate=rnd.choice((0.02, 0.05, 0.25)),
        )
        self.monitor.watch(self.bucket, self.server)
        accepting = random.Random(f"accepted losses {seed}")
        is_slot = not isinstance(self.server, LockServer)
        self.is_accepting = is_slot and not self.is_hiding and accepting.random() < 0.7
        self._accept_chances = accepting
        # Apart from the seed's other chances, which say what the engines meet.
        self._rules = random.Random(seed)
        self._snapshot_chances = random.Random(f"faults of snapshots {seed}")
        self._list_chances = random.Random(f"lists {seed}")
        self._refusals = random.Random(f"refused completions {seed}")
        self._drop_chances = random.Random(f"dropped tables {seed}")
        is_dropping = self._drop_chances.random() < WORLDS_WITH_DROPS
        self.is_dropping = is_dropping and is_slot and not self.is_hiding
        if self.is_hiding:
            self.server.hide_tables(seed)
        self._signal_chances = random.Random(f"messages {seed}")
        self.asker = Asker(seed) if self._signal_chances.random() < WORLDS_WITH_SIGNALS else None
        self.server.asking = self.asker
        self._begin_foreign_uploads()
        self._world_faults: dict[str, Callable[[], None]] = {
            "crash": self.server.crash,
            "persist": self._persist,
            "drop": self._drop_connection,
            "log": self.server.write_something_else,
            "abort": self._abort_uploads,
            "clock": self._move_clock,
            "outage": self._begin_outage,
            "hand": self._move_slot,
            "failover": self._fail_over,
            "switch": self._switch,
            "publication": self.server.alter_publication,
            "failing": self.server.break_change,
        }

    def _draw_character(self) -> None:
        """What this world is like."""
        rnd = self.rnd
        self.is_uniform = rnd.random() < 0.3
        # Table d leaves and joins with every other engine.
        self.is_toggling = not self.is_uniform and rnd.random() < 0.4
        self.is_hand_allowed = rnd.random() < 0.2
        self.is_failover_allowed = rnd.random() < 0.25
        # Tables have names that no engine captures. In a failover names would have to go back.
        self.is_hiding = not self.is_failover_allowed and self.seed % 5 == 0
        self.commit_seconds = rnd.choice((0.5, 1.5, 4))
        self.fault_seconds = rnd.choice((0.7, 2, 5))
        self.horizon = rnd.choice((10, 20, 40))
        # Apart from the seed's other chances.
        chance = random.Random(f"snapshots {self.seed}")
        self.snapshots = chance.choices(*SNAPSHOTS)[0]
        if self.snapshots != "never" and not self.is_uniform:
            self.is_toggling = chance.random() < 0.5
        self.trouble = rnd.choice((0.0, 0.02, 0.08, 0.2))
        self.snipe = rnd.choice((0.0, 0.01, 0.05))
        self._fork_chances = random.Random(f"failovers while accepting {self.seed}")
        self.expiry = Expiry(self.seed)
        self._asleep: set[EngineProcess] = set()
        self._free_since: dict[EngineProcess, float] = {}
        if self.expiry.is_on:
            self.horizon = HORIZON_SECONDS

    def now_us(self) -> int:
        """The wall clock."""
        return self._start_us + int(self.loop.time() * 1_000_000)

    def trace(self, text: str) -> None:
        """Say what happens, when asked to."""
        if self.is_verbose:
            sys.stdout.write(f"{self.loop.time():10.3f}  {text}\n")

    # --- one run

    def run(self) -> Outcome:
        """Play the schedule."""
        main = self.loop.create_task(self._play(), context=self.loop.world)
        main.add_done_callback(lambda _: self.loop.stop(), context=self.loop.world)
        is_collecting = gc.isenabled()
        gc.disable()  # Collecting an abandoned coroutine would run its cleanup in mid-schedule.
        random.seed(self.seed)  # The engine's jitter.
        try:
            self.loop.run_forever()
            if main.done() and self.violation is None:
                self.violation = main.exception()
        except DeadlockError as error:
            self.violation = error
        finally:
            self._is_over = True
            for engine in self.engines:
                engine.process.is_alive = False
            self.loop.dispose()
            if is_collecting:
                gc.enable()
        self.counts.update(self.monitor.counts + self.bucket.counts + self.server.counts)
        self.counts["virtual seconds"] += int(self.loop.time())
        text = None if self.violation is None else describe(self.violation)
        return Outcome(self.seed, text, self.counts)

    def fail(self, violation: BaseException) -> None:
        """Remember the first violation and end the schedule.

        What is collected afterwards, in another world's time perhaps, is not judged.
        """
        if self._is_over:
            return
        if self.violation is None:
            self.violation = violation
            self.trace(f"VIOLATION {describe(violation)}")
        self.loop.stop()

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        self.fail(error if isinstance(error, BaseException) else Violation(str(context)))

    async def _play(self) -> None:
        for _ in range(4):
            self.server.commit()
        for _ in range(self.rnd.choice((1, 1, 2))):
            self.spawn()
        self._set_weather(self.trouble)
        if self.expiry.is_on:
            self._expire()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.horizon), asyncio.TaskGroup() as group:
                group.create_task(self._commit_for_ever())
                group.create_task(self._hurt_for_ever())
                group.create_task(self._revive_for_ever())
                group.create_task(self._ask_for_ever())
                if self.asker is not None:
                    group.create_task(self._signal_for_ever(self.asker))
                if self.is_read:
                    group.create_task(self._read_for_ever())
        if self.expiry.is_on:
            await self._stand_still()
        await self._settle()

    def _set_weather(self, trouble: float) -> None:
        self.bucket.weather.trouble = trouble
        # Where objects live for a minute, no request takes as long.
        self.bucket.weather.stall = 0 if self.expiry.is_on else trouble / 20
        # A late plan meets a failover more often where requests are slow.
        self.bucket.weather.slow = 0.3 if self.is_failover_allowed and trouble else 0.05
        self.bucket.weather.is_out = False
        self.server.trouble = trouble / 2

    async def _commit_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.rnd.expovariate(1 / self.commit_seconds))
            for _ in range(self.rnd.choice((1, 1, 1, 1, 5))):
                self.server.commit(truncated=self._left_out())

    def _left_out(self) -> TableName | None:
        """A table that loses its rows while no engine captures it: only a snapshot can tell."""
        journal, table = self.monitor.journal, TABLES[-1]
        if self.snapshots == "never" or not journal.epoch:
            return None
        is_left_out = not journal.configuration.captures(table)
        return table if is_left_out and self._snapshot_chances.random() < 0.5 else None

    async def _hurt_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.rnd.expovariate(1 / self.fault_seconds))
            self._hurt()

    async def _revive_for_ever(self) -> None:
        """A supervisor: there is always an engine, soon."""
        while True:
            await asyncio.sleep(self.rnd.uniform(0.1, 3))
            if all(engine in self._asleep for engine in self._living()):
                self._rule()
                self.spawn()

    async def _ask_for_ever(self) -> None:
        """Somebody asks whoever runs for something."""
        operator = Operator(self.bucket, self.now_us, self.seed)
        while True:
            await asyncio.sleep(operator.rnd.expovariate(1 / 4))
            operator.ask()

    async def _signal_for_ever(self, asker: Asker) -> None:
        """Somebody asks by way of the log alone."""
        while True:
            await asyncio.sleep(asker.rnd.expovariate(1 / 3))
            self.server.send(asker.alone())

    async def _read_for_ever(self) -> None:
        """Somebody reads a table's changes from the bucket, from cursor to cursor."""
        while True:
            await asyncio.sleep(self.reader.rnd.expovariate(1 / READ_SECONDS))
            if self.monitor.journal.durable is not None:
                self._judge(self.reader.read)

    def _expire(self) -> None:
        """Every second: the bucket's rules take what is old."""
        self.loop.later(1.0, self._expire)
        living, now = self._living(), self.loop.time()
        for engine in living:
            is_free = not (engine.process.is_frozen or self.bucket.weather.is_out)
            if not is_free:
                self._free_since[engine] = now
            # One that was woken finds out first that it slept.
            free_seconds = now - self._free_since.get(engine, 0.0)
            is_owner = self.monitor.is_writer(engine.process) and engine.is_owner
            if free_seconds > FREE_SECONDS and is_owner and engine.phase in AT_WORK:
                self._judge(
                    functools.partial(
                        self.expiry.at_work, engine.process, self.bucket, now, free_seconds
                    )
                )
        # A rule waits for days: no request and no reading of the journal takes as long.
        if not self.bucket.requests and all(e.phase not in READING for e in living):
            self._judge(lambda: self.expiry.take(self.bucket, now))

    def _put_to_sleep(self, entry: StoredObject) -> None:
        """The machine of one writer that plans something sleeps for longer than entries live."""
        engine, expiry = self._engine_of(entry.creator), self.expiry
        if not expiry.is_on or self.loop.time() < expiry.sleep_at or self.is_calm:
            return
        if engine is not None and engine.is_alive and b'"planned":' in entry.body:
            expiry.sleep_at = math.inf
            self.loop.later(0.0, self.freeze, engine)
            self._asleep.add(engine)
            self.loop.later(ASLEEP_SECONDS, self._wake, engine)

    def _wake(self, engine: EngineProcess) -> None:
        self._asleep.discard(engine)
        if engine.is_alive:
            self.counts["woken after long"] += 1
        self.resume(engine)

    async def _stand_still(self) -> None:
        """All engines die, and nobody starts one for a while."""
        if not self.expiry.standing_seconds:
            return
        self.trace("the pipeline stands still")
        for engine in self._living():
            self.kill(engine)
        await asyncio.sleep(self.expiry.standing_seconds)

    async def _idle(self) -> None:
        """Nothing is committed for longer than objects live; then another engine starts."""
        self.trace("nothing is committed any more")
        await asyncio.sleep(IDLE_SECONDS)
        for engine in self._living():
            self.kill(engine)
        self.counts["idle for long"] += 1
        await self._become_settled()

    async def _settle(self) -> None:
        """No more faults: everything has to become quiet, and right."""
        self.is_calm = True
        self.trace("no more faults")
        self._set_weather(0)
        self.server.mend(self.server.broken)
        for table in TABLES:
            # A failover may have undone that one was put back.
            self.server.publish(table)
        for engine in self.engines:
            self.resume(engine)
        if not await self._become_settled():
            return
        self.monitor.check_end(is_uniform=self.is_uniform)
        if self.is_read:
            self._judge(self.reader.finish)
        is_folded = self.bucket.is_create_only and (self.reader.is_on or self.expiry.is_on)
        if is_folded:
            self._judge(self.reader.fold)
        if self.expiry.is_on:
            await self._idle()
            # The oldest objects are gone by now.
            if is_folded:
                self._judge(self.reader.fold)
        if self.rnd.random() < 0.9 or self._is_bare:
            await self._drain()
        else:
            await self._restore_disk()

    async def _become_settled(self) -> bool:
        """Whether everything came right; else an engine said by name what cannot."""
        end = self.loop.time() + SETTLE_SECONDS
        while not self.is_settled():
            if self.loop.time() > end:
                raise Violation(f"nothing settles: {self._unsettled()}")
            if not self._living():
                if (self.is_named or self.expiry.is_refused) and not self._may_accept:
                    return False  # The slot was moved by hand, or the journal has expired.
                self.spawn()
            await asyncio.sleep(1)
        return True

    @functools.cached_property
    def reader(self) -> BucketReader:
        """Who reads a table from cursor to cursor."""
        return BucketReader(
            self.bucket, self.monitor, self.server, self.seed, is_expiring=self.expiry.is_on
        )

    @property
    def is_read(self) -> bool:
        """Whether somebody reads. Where objects expire, a reader may be refused at any time."""
        return self.reader.is_on and self.bucket.is_create_only and not self.expiry.is_on

    @property
    def _is_bare(self) -> bool:
        """Whether no commit is behind an accepted loss, by which another log could be told.

        Keepalives may have moved E on since: they say nothing of the log before them.
        """
        accepted_at, transactions = self.monitor.accepted_at, self.server.transactions
        is_known = (t.place >= accepted_at and not t.is_bare for t in transactions)
        return bool(accepted_at) and not any(is_known)

    @property
    def _may_accept(self) -> bool:
        if self.expiry.is_refused:
            return False
        return self.is_accepting and not (self.monitor.is_doomed or self.is_list_altered)

    async def _restore_disk(self) -> None:
        """The server comes back as it was before: no engine may go on as if it had not."""
        is_grown = self.rnd.random() < 0.5
        self.counts["restored disk that grew past E" if is_grown else "restored disk"] += 1
        self.is_named = False
        self.is_moved_by_hand = self.monitor.is_restored = self.monitor.is_lost = True
        self.server.restore(is_grown=is_grown)
        for _ in range(60):
            if self.is_named or self.expiry.is_refused:
                break
            if not self._living():
                self.spawn()
            await asyncio.sleep(1)
        else:
            raise Violation("a restored disk was not noticed")
        if self._may_accept:
            await self._go_on()

    async def _go_on(self) -> None:
        """The operator accepts the loss: everything has to become right again."""
        self.counts["restored disk accepted"] += 1
        if self._accept_chances.random() < 0.7:
            self.is_calm = False  # Engines may be killed on the way.
            await asyncio.sleep(5)
            self.is_calm = True
        end = self.loop.time() + SETTLE_SECONDS
        while not self.is_settled():
            if self.loop.time() > end:
                raise Violation(f"nothing settles after a loss: {self._unsettled()}")
            if not self._living():
                self.spawn()
            self.server.commit() if self._accept_chances.random() < 0.05 else None
            await asyncio.sleep(1)
        self.monitor.check_end(is_uniform=self.is_uniform)

    async def _drain(self) -> None:
        """Stop all engines, as a deploy does: the last one releases and leaves nothing behind."""
        self.is_stopping = not any(engine.is_draining for engine in self._living())
        for engine in self._living():
            engine.ask_to_stop()
        for _ in range(60):
            if not self._living():
                return
            await asyncio.sleep(1)
        raise Violation("an engine does not stop")

    # --- what is still open

    def _living(self) -> list[EngineProcess]:
        return [engine for engine in self.engines if engine.is_alive]

    def is_settled(self) -> bool:
        """Whether everything is visible, durable and acknowledged, and one engine writes."""
        return not self._unsettled()

    def _unsettled(self) -> str:
        journal, server = self.monitor.journal, self.server
        if self.monitor.is_doomed:
            return "the journal goes past a fork"
        waiting = self.monitor.requests.waiting(self.bucket)
        if waiting:
            return f"requests without an answer: {waiting}"
        if journal.durable != server.place(server.wal):
            return f"durable {journal.durable} of {server.place(server.wal)}"
        if server.is_confirming and server.confirmed != server.wal:
            return f"acknowledged {server.confirmed} of {server.wal}"
        # At any moment one may be under way that asks for nothing new: it is the last to be told.
        under_way = "requests under way" if self.bucket.requests else ""
        return self._unsettled_snapshots() or self._unsettled_engines() or under_way

    def _unsettled_snapshots(self) -> str:
        journal = self.monitor.journal
        unfinished = journal.snapshots.unfinished(journal.durable or "")
        is_owed = bool(journal.snapshots.owed(journal.durable or ""))
        if is_owed or list(journal.unfinished) != unfinished:
            return f"unfinished are {unfinished}"
        unfilled = self.monitor.unfilled()
        return f"snapshots are to fill {unfilled}" if unfilled else ""

    def _unsettled_engines(self) -> str:
        """One engine streams, and it is the journal's writer; the others stand by."""
        phases = sorted(engine.phase for engine in self._living())
        if phases != ["standby"] * (len(phases) - 1) + ["streaming"]:
            return f"engines are {phases}"
        streaming = next(e for e in self._living() if e.phase == "streaming")
        return "" if self.monitor.is_writer(streaming.process) else "the writer is another engine"

    # --- what the world is told

    def _judge(self, check: Callable[[], None]) -> None:
        try:
            check()
        except Violation as violation:
            self.fail(violation)
            raise

    def created(self, stored: StoredObject) -> None:
        self._judge(lambda: self.monitor.created(stored))
        if self.monitor.is_given_up:
            self.loop.stop()
        engine = self._engine_of(stored.creator)
        if engine is not None and kind_of(stored.key) == "journal" and says_something(stored.body):
            self._judge(lambda: engine.check_interval(self.loop.time()))
        if kind_of(stored.key) == "journal":
            self.expiry.appended()
            if engine is not None and said_by(stored.body) == "open":
                engine.opened()
        if kind_of(stored.key) == "journal" and not self.is_calm:
            self._hurt_named(stored)
            self._damage_list(stored)
            self._drop_owed(stored)
            self._lose_planned(stored)
            if engine is not None and b'"signals":[' in stored.body:
                self._hurt_answered(engine)
            self._put_to_sleep(stored)
        if kind_of(stored.key) == "journal":
            self._hurt_accepting(stored)
        is_sniped = not self.is_calm and self.rnd.random() < self.snipe
        if is_sniped and engine is not None and engine.is_alive:
            self.counts["sniped"] += 1
            self.loop.later(self.rnd.choice((0.0, 0.0, 0.1)), self.kill, engine)

    def _hurt_named(self, entry: StoredObject) -> None:
        """Now and then, what an entry names as whole is lost to its engine, or its engine is."""
        chance, engine = self._snapshot_chances, self._engine_of(entry.creator)
        if b'"state":"whole"' not in entry.body:
            return
        self._refuse_completion(entry)
        if chance.random() >= 0.5:
            return
        snapshots = orjson.loads(entry.body)["snapshots"]
        objects = [o for s in snapshots for o in self._objects_of(s)]
        if not objects:
            return  # A segment without rows.
        staged = chance.choice(objects)
        faults: tuple[str, ...] = ("abort", "refuse", "mute", "kill", "kill", "kill")
        if self.is_failover_allowed and chance.random() < 0.7:
            faults = ("failover",)
        match chance.choice(faults):
            case "failover":
                self.counts["failover behind a named snapshot"] += 1
                self.server.fail_over(is_record_lost=True)
            case "mute":
                self.bucket.muted.add(staged["upload_id"])
            case "abort":
                self.counts["a rule aborts a named upload"] += 1
                self.bucket.uploads.pop(int(staged["upload_id"]), None)
            case "refuse":
                self.bucket.cursed.add(staged["upload_id"])
            case _:
                assert engine is not None
                self.loop.later(chance.choice((0.0, 0.05, 0.2)), self.kill, engine)

    def _refuse_completion(self, entry: StoredObject) -> None:
        """Now and then the bucket completes one of the uploads never, whoever asks."""
        if self._refusals.random() >= COMPLETIONS_REFUSED:
            return
        snapshots = orjson.loads(entry.body)["snapshots"]
        objects = [o for s in snapshots for o in self._objects_of(s)]
        if objects:
            self.counts["completions refused for good"] += 1
            self.bucket.cursed.add(self._refusals.choice(objects)["upload_id"])

    def _hurt_accepting(self, entry: StoredObject) -> None:
        """Most engines that accept a loss die on the way: the next one has to go on."""
        chance, engine = self._accept_chances, self._engine_of(entry.creator)
        if (
            b'"accepting":' not in entry.body
            or engine is None
            or chance.random() >= KILLED_ACCEPTING
        ):
            return
        self.loop.later(chance.choice((0.0, 0.0, 0.1, 0.5, 1.5)), self.kill, engine)

    def _lose_planned(self, entry: StoredObject) -> None:
        """Now and then an engine dies behind a plan, and what keeps the log is lost with it."""
        chance, engine = self._accept_chances, self._engine_of(entry.creator)
        if not (self.is_accepting and self.is_hand_allowed) or b'"planned":' not in entry.body:
            return
        if engine is not None and engine.is_alive and chance.random() < LOST_PLANNED:
            self.counts["lost behind a plan"] += 1
            self.loop.later(0, self.kill, engine)
            self.loop.later(0, self._lose_slot, orjson.loads(entry.body)["planned"])

    def _objects_of(self, snapshot: dict[str, Any]) -> list[dict[str, Any]]:
        listed = snapshot.get("listed")
        if listed is None:
            return list(snapshot.get("objects", ()))
        return list(orjson.loads(self.bucket.objects[listed["key"]].body)["objects"])

    def _damage_list(self, entry: StoredObject) -> None:
        """Rarely, somebody alters a list that an entry names: an engine has to say so by name."""
        if b'"listed"' not in entry.body or self._list_chances.random() >= LISTS_DAMAGED:
            return
        (listed, *_) = [s["listed"] for s in orjson.loads(entry.body)["snapshots"] if "listed" in s]
        altered = orjson.loads(self.bucket.objects[listed["key"]].body)
        altered["objects"][-1] = altered["objects"][0]
        self.counts["a list altered"] += 1
        self.is_list_altered = True
        self.bucket.damage(listed["key"], orjson.dumps(altered))

    def _drop_owed(self, entry: StoredObject) -> None:
        """Now and then somebody drops a table whose snapshot is owed; another one may come."""
        chance = self._drop_chances
        if not self.is_dropping or b'"snapshots":' not in entry.body:
            return
        for snapshot in orjson.loads(entry.body)["snapshots"]:
            is_owed = snapshot["state"] in {"wanted", "started"}
            if is_owed and chance.random() < OWED_DROPPED:
                self.loop.later(chance.choice((0.0, 0.1, 1.0)), self._drop, snapshot["table"])

    def _drop(self, name: str) -> None:
        table, chance = TableName.parse(name), self._drop_chances
        if self.is_calm or not self.server.drop(table):
            return
        self.trace(f"{name} dropped")
        if chance.random() < 0.7:
            seconds, is_published = chance.uniform(0.1, 15), chance.random() < 0.5
            made = functools.partial(self.server.make_anew, table, is_published=is_published)
            self.loop.later(seconds, made)

    def taken(self, kind: str, old: StoredObject, body: bytes, sender: Process) -> None:
        self._judge(lambda: self.monitor.taken(kind, old, body, sender))

    def overwritten(self, old: StoredObject, stored: StoredObject) -> None:
        self._judge(lambda: self.monitor.overwritten(old, stored))

    def sent(self, request: Request) -> None:
        if self.expiry.is_on:
            self._judge(lambda: self.expiry.sent(request, self.now_us()))

    def shown(self, request: Request) -> Seen | None:
        return self.expiry.shown(request, self.bucket) if self.expiry.is_on else None

    def answered(self, request: Request) -> None:
        engine = self._engine_of(request.sender)
        if isinstance(request.shown, Seen) and engine is not None:
            now_us = self.now_us() + engine.profile.clock_skew_us
            self.expiry.told(request, request.shown, now_us)

    def begins(self, key: str, metadata: Mapping[str, str]) -> None:
        self._judge(lambda: self.monitor.begins(key, metadata))

    def aborts(self, sender: Process, key: str, upload_id: str) -> None:
        self._judge(lambda: self.monitor.aborts(sender, key, upload_id))

    def is_late(self, kind: str, sender: Process) -> bool:
        """Whether that plan or object is on its way while its writer dies.

        The server fails over at the same time, where it was a plan.
        """
        engine = self._engine_of(sender)
        is_plan = kind == "journal"
        if self.is_calm or engine is None or (is_plan and not self.is_failover_allowed):
            return False
        if self.rnd.random() >= (LATE_PLANS if is_plan else LATE_OBJECTS):
            return False
        self.loop.later(0, self.kill, engine)
        if is_plan:
            self.loop.later(0, self._fail_over)
        self.counts[f"late at its sender's death: {kind}"] += 1
        return True

    def told(self, process: Process, confirmed: int) -> None:
        self.monitor.told[process] = confirmed

    def held(self, process: Process) -> None:
        self.monitor.held(process)
        self.trace(f"{process.name} holds the slot")
        engine = self._engine_of(process)
        if engine is not None:
            engine.redo_bytes = 0

    def acknowledged(self, process: Process, position: LogPosition) -> None:
        self._judge(lambda: self.monitor.acknowledged(process, position))

    def failed_over(self, fork: LogPosition) -> None:
        self.trace(f"failed over to timeline {self.server.timeline} at {fork}")
        self.monitor.failed_over()

    def publishes(self, process: Process, table: TableName) -> None:
        self._judge(lambda: self.monitor.publishes(process, table))

    def received(self, process: Process, intake: Intake) -> None:
        self._judge(lambda: self.monitor.received(process, intake))
        engine = self._engine_of(process)
        if engine is not None and intake.signals and engine.is_heeding_now:
            now, durable = self.loop.time(), self.monitor.journal.durable or ""
            self.monitor.signals.received(process, intake, durable, now)
            self._hurt_signalled(engine, (0.0, 0.0, 0.1, 0.5))
        if engine is not None:
            engine.received(intake)
            self._judge(lambda: engine.check_memory(intake, self.monitor.largest_planned))

    def _hurt_signalled(self, engine: EngineProcess, delays: tuple[float, ...]) -> None:
        """Now and then an engine is killed on either side of the entry that answers a signal."""
        chance = self._signal_chances
        if not self.is_calm and chance.random() < KILLED_SIGNALLED:
            self.loop.later(chance.choice(delays), self.kill, engine)

    def _hurt_answered(self, engine: EngineProcess) -> None:
        """Or the server fails over, and may lose what was answered."""
        self._hurt_signalled(engine, (0.0, 0.1))
        if self.is_failover_allowed and self._signal_chances.random() < LOST_SIGNALLED:
            self.loop.later(0, self._lose_answered)

    def _lose_answered(self) -> None:
        """The server fails over and lacks the newest answered signal, and nothing else of ours."""
        journal, transactions = self.monitor.journal, self.server.transactions
        commit = commit_of(Position(journal.signals.through))
        kept = bisect.bisect_left(transactions, commit, key=lambda t: t.place)
        planned = max((last for last, _ in journal.frontier.values()), default="")
        if 0 < kept < len(transactions):
            end = self.server.place(transactions[kept - 1].end_lsn)
            if planned < end and (journal.durable or "") <= end:
                self.counts["an answered signal lost"] += 1
                self.server.fail_over(lost=len(transactions) - kept)

    def failed(self, process: Process, change: Change) -> None:
        engine = self._engine_of(process)
        assert engine is not None
        self.trace(f"{process.name} hears that {change.position} cannot be sent")
        self._judge(lambda: engine.check_pause(change, self.loop.time()))
        self.counts["failed at a change"] += 1
        self.loop.later(0.001, self._has_failed, engine, change)

    def _has_failed(self, engine: EngineProcess, change: Change) -> None:
        if engine.phase == "failing":
            self.counts["failing"] += 1
        self._judge(lambda: engine.check_failing(change))

    def ended(self, engine: EngineProcess, error: BaseException | None) -> None:
        """An engine ended by itself."""
        self.trace(f"{engine.process.name} ended: {error!r}")
        self.monitor.deaf.add(engine.process)
        self.loop.kill(engine.process)
        self.counts[f"ended: {type(error).__name__}"] += 1
        skew_us = engine.profile.clock_skew_us
        if self.expiry.is_cause(error, engine.process, self.now_us(), skew_us):
            self.counts["refused over an expired journal"] += isinstance(error, JournalError)
            return
        self._judge(lambda: self._check_end_of(engine, error))

    def _check_end_of(self, engine: EngineProcess, error: BaseException | None) -> None:
        match error:
            case None | SnapshotsRefused():
                self._check_caught_up(engine)
                self._check_refused(engine, error)
            case Superseded():
                if self.monitor.is_writer(engine.process) and not self.monitor.is_doomed:
                    raise Violation("superseded by nobody")
            case PositionLost():
                if not self.is_moved_by_hand and not self.monitor.is_doomed:
                    raise Violation(f"stopped without cause: {describe(error)}")
                self.is_named = True
                self._accept()
            case JournalError() if self.is_list_altered and "another list" in str(error):
                self.is_named = True
            case StopLimit():
                if not engine.is_draining or self.is_stopping:
                    raise Violation("a drain limit without cause")
            case SourceUnavailable() if engine.process not in self.monitor.has_held:
                self.counts["unreachable at the start"] += 1
            case _:
                raise Violation(f"stopped without cause: {describe(error)}") from error

    def _accept(self) -> None:
        """An operator accepts what is lost: the next engines are told so."""
        if self.is_accepting and not self.monitor.is_doomed:
            self.accept_gap = LogPosition(self.monitor.journal.durable or "")
            self.monitor.named.add(self.accept_gap)

    def missed(self, process: Process) -> None:
        """The source told an engine that its slot is gone: where it accepts that, it goes on.

        Now and then another server takes over before the journal says so.
        """
        engine, chance = self._engine_of(process), self._fork_chances
        named = engine.profile.accept_gap if engine is not None else ""
        if not named or named != self.monitor.journal.durable:
            return
        assert engine is not None
        if chance.random() < FAILED_OVER_ACCEPTING:
            seconds = chance.uniform(0.1, 2)
            self.loop.later(seconds, self._fail_over_named, engine, chance.choice((0, 1, 2)))

    def refused(self, engine: str, table: TableName) -> None:
        """The source refused that engine a snapshot of the table."""
        self._tables_refused[engine].add(table)

    def _check_refused(self, engine: EngineProcess, error: SnapshotsRefused | None) -> None:
        """It caught up but for tables that were refused to it and that are still to be read."""
        if error is None:
            return
        if not engine.profile.is_until_caught_up:
            raise Violation("stopped for a refused snapshot without being asked to catch up")
        named = {table for table in TABLES if f"{table} (" in str(error)}
        if not named or not named <= self._tables_refused[engine.process.name]:
            raise Violation("a snapshot called refused that was not")
        journal = self.monitor.journal
        owed = journal.snapshots.owed(journal.durable or "")
        for table in map(str, named):
            # Somebody may have cancelled it, or dropped the table, while the engine drained.
            if table not in owed and journal.snapshots.stated[table].state not in _NOT_OWED:
                raise Violation("a snapshot called refused that nobody waits for")
        self.counts["caught up but for refused snapshots"] += 1

    def _check_caught_up(self, engine: EngineProcess) -> None:
        if engine.is_draining:
            return
        if not engine.profile.is_until_caught_up:
            raise Violation("an engine stopped without being asked")
        self.counts["caught up"] += 1
        wanted = min([engine.end_at_start, *self.server.forks])
        is_short = (self.monitor.journal.durable or "") < wanted
        # A doomed journal is read no further: the next engine has to refuse it.
        if is_short and not self.monitor.is_doomed:
            raise Violation("ended before it was caught up")

    def _engine_of(self, process: Process) -> EngineProcess | None:
        return next((e for e in self.engines if e.process is process), None)

    # --- faults

    def spawn(self) -> None:
        """Start an engine."""
        rnd = self.rnd
        count = len(self.engines)
        is_joined = (
            self.is_uniform
            or self.is_hiding
            or (count % 2 == 0 if self.is_toggling else rnd.random() < 0.7)
        )
        is_taking = self.snapshots == "initial" or (self.snapshots == "mixed" and count % 2 == 0)
        profile = draw_profile(
            rnd,
            is_uniform=self.is_uniform,
            is_joined=is_joined,
            snapshot="initial" if is_taking else "never",
        )
        profile = dataclasses.replace(profile, is_expiring=self.expiry.is_on)
        if self.is_calm:
            profile = dataclasses.replace(profile, is_until_caught_up=False)
        # Some start without it, also where a loss is half accepted.
        if self.accept_gap and self._accept_chances.random() < 0.8:
            profile = dataclasses.replace(profile, accept_gap=self.accept_gap)
        if self.asker is not None:
            is_heeding = self._signal_chances.random() < 0.8
            profile = dataclasses.replace(profile, is_heeding=is_heeding)
        engine = EngineProcess(f"engine-{count}", self, profile)
        self.engines.append(engine)
        self.trace(f"{engine.process.name} starts: {profile}")
        engine.start()

    def _fail_over_named(self, engine: EngineProcess, more: int) -> None:
        """The standby lacks what is behind E, and so many transactions before it."""
        e, transactions = self.monitor.journal.durable or "", self.server.transactions
        behind = sum(self.server.place(t.end_lsn) > e for t in transactions)
        is_of_one_log = not (self.monitor.is_doomed or self.server.begun)
        if engine.is_alive and engine.phase in READING and is_of_one_log:
            self.counts["failover while a loss is accepted"] += 1
            self.server.fail_over(lost=behind + more)
            for table in TABLES if self.is_calm else ():
                self.server.publish(table)

    def kill(self, engine: EngineProcess) -> None:
        """`kill -9`."""
        if not engine.is_alive or engine in self._asleep:
            return
        self.trace(f"{engine.process.name} killed")
        self._note_window(engine)
        self.loop.kill(engine.process)
        self.monitor.deaf.add(engine.process)
        connection = self.server.connection_of(engine.process)
        if connection is not None:
            self.loop.later(self.rnd.choice((0.006, 0.5)), self.server.drop_connection, connection)

    def _note_window(self, engine: EngineProcess) -> None:
        """Where the engine was hit."""
        connection, counts = self.server.connection_of(engine.process), self.counts
        counts["killed"] += 1
        if connection is not None:
            counts["killed inside a transaction"] += connection.is_inside_transaction
        if not self.monitor.is_writer(engine.process):
            counts["killed before its open"] += engine.process not in self.monitor.openers
            return
        for window in self.monitor.windows(engine.process):
            counts[f"killed {window}"] += 1

    def freeze(self, engine: EngineProcess) -> None:
        """SIGSTOP."""
        if engine.process.is_frozen:
            return
        self.trace(f"{engine.process.name} frozen")
        self.loop.freeze(engine.process)
        self.monitor.deaf.add(engine.process)
        self.loop.later(self.server.sender_timeout, self.server.watch_frozen, engine.process)

    def resume(self, engine: EngineProcess) -> None:
        """SIGCONT."""
        if not engine.is_alive or not engine.process.is_frozen or engine in self._asleep:
            return
        self.trace(f"{engine.process.name} resumed")
        epoch = self.monitor.openers.get(engine.process)
        if epoch is not None and epoch < self.monitor.journal.epoch:
            self.counts["resumed after a takeover"] += 1
        self.loop.resume(engine.process)
        self.monitor.deaf.discard(engine.process)

    def _hurt(self) -> None:
        """One fault."""
        name = self.rnd.choice(FAULTS)
        if name not in {"hand", "failover"}:
            self.counts[f"fault: {name}"] += 1
        living = self._living()
        engine = self.rnd.choice(living) if living else None
        if name in ENGINE_FAULTS:
            if engine is not None:
                self._hurt_engine(name, engine)
        else:
            self._hurt_world(name, len(living))

    def _hurt_engine(self, name: str, engine: EngineProcess) -> None:
        match name:
            case "kill":
                self.kill(engine)
            case "freeze":
                self.freeze(engine)
            case "resume":
                self.resume(engine)
            case _:
                engine.ask_to_stop()

    def _hurt_world(self, name: str, living_count: int) -> None:
        self.trace(f"fault: {name}")
        if name != "spawn":
            self._world_faults[name]()
        elif living_count < 3:
            self.spawn()

    def _persist(self) -> None:
        """The server writes its slots to disk."""
        self.server.persisted = self.server.confirmed

    def _drop_connection(self) -> None:
        self.server.drop_connection(self.server.connection)

    def _abort_uploads(self) -> None:
        """A lifecycle rule, or another tool, aborts what it finds."""
        for number, upload in list(self.bucket.uploads.items()):
            if upload.begun_us and self.rnd.random() < 0.3:
                del self.bucket.uploads[number]

    def _begin_foreign_uploads(self) -> None:
        """Somebody else's, of a prefix that begins like ours, and of a tool below ours."""
        table = "database=shop/schema=public/table=a/version=0001/schema.json"
        for key in (f"lake-photos/{table}", "lake/scratch/cat.jpg"):
            self.bucket.uploads[self.bucket.next_number()] = Upload(key, 0)

    def _rule(self) -> None:
        """While no engine lives: the newest state file is damaged, and covered entries expire.

        Nothing of a request is under way: a rule waits for days.
        """
        if self.bucket.requests or self.expiry.is_on:
            return
        entries, states = self.bucket.seqs("journal"), self.bucket.seqs("state")
        good = [s for s in states if self.bucket.objects[state_key("lake", s)].body != b"damaged"]
        covered_before = good[-2] + 1 if len(good) > 1 else 0
        if good and entries and entries[0] <= covered_before and self._rules.random() < 0.5:
            self.counts["state file damaged"] += 1
            self.bucket.damage(state_key("lake", good.pop()))
        if good and self._rules.random() < 0.7:
            self.counts["entries expired"] += 1
            # By age: the newest entry is there as long as any.
            for seq in entries[:-1]:
                if seq <= good[-1]:
                    self.bucket.expire(journal_key("lake", seq))

    def _move_clock(self) -> None:
        """The server's clock is set."""
        self.server.skew_us = self.rnd.choice(CLOCK_SETTINGS_US)

    def _fail_over(self) -> None:
        if self.is_failover_allowed:
            self.server.fail_over()

    def _switch(self) -> None:
        """Of two servers of one history the other one is read, or orders begin anew."""
        if isinstance(self.server, LockServer):
            self.rnd.choice((self.server.switch, self.server.switch, self.server.renumber))()

    def _begin_outage(self) -> None:
        self.bucket.weather.is_out = True
        self.loop.later(self.rnd.uniform(1, 15), self._end_outage)

    def _end_outage(self) -> None:
        self.bucket.weather.is_out = False

    def _move_slot(self) -> None:
        """Somebody moves or drops the slot while nobody holds it, or takes it from its holder."""
        server = self.server
        if not self.is_hand_allowed or not server.has_slot:
            return
        if server.connection is not None:
            if self.rnd.random() < 0.5:
                return
            # What is committed last has not been read by anybody.
            server.commit()
            self._drop_connection()
        self.counts["fault: hand"] += 1
        self.is_moved_by_hand = self.monitor.is_lost = True
        server.has_slot = self.rnd.random() < 0.8
        server.confirmed = server.persisted = server.wal
        self.trace(f"slot moved by hand: {server.has_slot}, {server.confirmed:X}")

    def _lose_slot(self, plans: list[dict[str, Any]]) -> None:
        """Somebody drops the slot, or moves it over some of what is planned."""
        server, chance = self.server, self._accept_chances
        if not server.has_slot:
            return
        self._drop_connection()
        self.is_moved_by_hand = self.monitor.is_lost = True
        server.has_slot = chance.random() < 0.5
        behind = [t for t in server.transactions if t.end_lsn > server.confirmed]
        inside = [t for t in behind if any(p["first"] < f"{t.place}~" < p["last"] for p in plans)]
        ends = [t.end_lsn for t in inside or behind]
        server.confirmed = server.persisted = chance.choice(ends or [server.wal])
        self.trace(f"slot lost: {server.has_slot}, {server.confirmed:X}")


FREE_SECONDS = 10
AT_WORK = frozenset({"redo", "streaming", "snapshot", "reconnecting", "failing", "draining"})
READING = frozenset({"starting", "opening"})

ENGINE_FAULTS = ("kill", "freeze", "resume", "stop")
FAULTS = (
    *("kill", "kill", "freeze", "resume", "resume", "stop", "spawn", "spawn", "spawn", "crash"),
    *("persist", "drop", "drop", "log", "abort", "clock", "outage"),
    *("failover", "failover", "failover", "hand", "hand", "hand"),
    *("publication", "publication", "failing", "failing", "switch", "switch"),
)


def says_something(entry: bytes) -> bool:
    """Whether a journal entry has a part; an entry without any only makes a state file possible."""
    return bool(decode_entry(entry, "").kinds)


def describe(error: BaseException) -> str:
    """An error's text without what differs between seeds: violations are grouped by it."""
    if isinstance(error, Violation):
        return str(error)
    return f"{type(error).__name__}: {error}"
