"""Rules of the bucket that take old objects away, while engines are at work and while none is.

Strategy: in some worlds objects of the journal, state files and tables' objects have a short life.
An engine's own times are as much shorter there, in the same proportion. A rule counts days, a
request takes seconds: so nothing is taken while a request is under way or an engine is reading the
journal at its start. One writer sleeps for longer than entries live. In between the pipeline may
stand still for as long. Then the journal is gone, and every later start has to say so.

The newest object of a table stays, and what a start needs where there is none: of a bucket without
any object nobody can tell that it had some.

A rule takes what is due in any order. In every other world each object has a time of its own, so
that an entry may outlive later ones.

What an engine may say of the journal's end is judged by what it saw: by the requests of which it
has the answers, each as of the moment when the bucket applied it. Another engine may write before
the error is told.

Invariant: what is taken has reached its age. Where an engine was at work all the while, the journal
is never gone: the newest state file and the entries behind it are younger. At work is who owns the
journal, sees its end, and could write for a while.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from engine.model.bucket_rule import BucketRule, RuleAction
from engine.model.errors import JournalError, JournalUnseen
from engine.model.layout import journal_folder, journal_key, state_folder, state_key
from simulation.store import kind_of
from simulation.violation import Violation

if TYPE_CHECKING:
    from simulation.store import Bucket, Request, StoredObject
    from simulation.virtual_loop import Process

WORLDS: Final = 0.1
HORIZON_SECONDS: Final = 150
KEPT_SECONDS: Final = 60.0
STATE_SECONDS: Final = 15.0
UNSEEN_SECONDS_MAX: Final = 30.0
SCHEMA_SECONDS: Final = 15.0
IDLE_SECONDS: Final = 130.0
ASLEEP_SECONDS: Final = 95.0
_AT_WORK_SECONDS: Final = 30.0
"""An engine that was at work so short a time ago has kept its state file young."""
_NOTICED_SECONDS: Final = 30.0
"""Twice as long as a state file is left alone: whoever could write for so long has looked."""
NOTICED_US: Final = int(_NOTICED_SECONDS * 1e6)
_LAG_SECONDS: Final = 20.0
_TOO_OLD: Final = "there may have been later ones"
_INCOMPLETE: Final = ("are gone:", "missing", "is gone:", "no journal that names them")


async def rules() -> tuple[BucketRule, ...]:
    """What an engine reads of them: a day has `KEPT_SECONDS` here."""
    return (BucketRule("short lives", "lake/_tailrace/", (RuleAction(days=1),)),)


def is_complete(bucket: "Bucket") -> bool:
    """Whether a start finds an end of the journal, and all before it that no state file covers."""
    entries, states = bucket.seqs("journal"), bucket.seqs("state")
    if not bucket.was_made(journal_key("lake", 0)):
        return True
    covered, last = max(states, default=-1), max(entries, default=-1)
    if last < max(covered, 0):
        return False
    return {*range(covered + 1, last + 1)} <= {*entries}


@dataclass(slots=True)
class Sight:
    """What one process was told of the journal since it began to read it. Times: microseconds.

    `seen_us`: when it asked for the newest answer that told it the journal's true end, or an entry
    that it followed. `newest_us`:
    when the newest entry was made that was there then. `asked` has requests without an answer, by
    kind and key, and when each was sent first. `appended` is the newest entry of its own: to send
    that again, as a proof, tells nothing. `is_too_old`: where the journal ended when it was read, a
    rule may have taken later entries.
    """

    seen_us: int
    newest_us: int = 0
    is_incomplete: bool = False
    is_beginning: bool = True
    is_loading: bool = True
    is_too_old: bool = False
    appended: str = ""
    asked: dict[tuple[str, str], int] = field(default_factory=dict)

    def is_lost(self, now_us: int) -> bool:
        """Whether a rule may have taken entries that the process did not see."""
        return now_us - self.seen_us > UNSEEN_SECONDS_MAX * 1e6


@dataclass(frozen=True, slots=True)
class Seen:
    """What a request showed when it was applied.

    `is_end`: that the journal ends there. `is_entry`: an entry, behind which there may be more.
    """

    newest_us: int
    is_complete: bool
    is_end: bool
    is_entry: bool


class Expiry:
    """The rules of one world's bucket. `is_on`: there are some."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"short lives {seed}")
        self.is_on = self._chance.random() < WORLDS
        self._keeps_states = self._chance.random() < 0.4
        self._takes_tables = self._chance.random() < 0.6
        self.standing_seconds = self._chance.choice((0, 0, 25, 100))
        self.sleep_at = self._chance.uniform(5, 50)
        # Somebody was refused, and nothing was appended since.
        self.is_refused = False
        self._at_work: float | None = None
        self._sights: dict[Process, Sight] = {}
        self._lags = None if seed % 2 else random.Random(f"lags {seed}")
        self._lag_of: dict[str, float] = {}

    # --- what engines see

    def sent(self, request: "Request", now_us: int) -> None:
        """A process asks the bucket for something."""
        sight = self._sights.get(request.sender)
        is_listing = (request.kind, request.key) == ("list", state_folder("lake"))
        if is_listing and (sight is None or not sight.is_beginning):
            sight = self._sights[request.sender] = Sight(now_us)
        if sight is None:
            return
        if sight.is_too_old:
            raise Violation("a start goes on from an end that may not be the end")
        if "/_tailrace/" not in request.key:
            return
        sight.is_beginning &= is_listing
        if not sight.is_lost(now_us):
            sight.asked.setdefault((request.kind, request.key), now_us)

    @staticmethod
    def shown(request: "Request", bucket: "Bucket") -> Seen | None:
        """What that request shows of the journal; it is being applied, and answered so."""
        if not request.key.startswith((journal_folder("lake"), state_folder("lake"))):
            return None
        entries = bucket.seqs("journal")
        made_us = [bucket.objects[journal_key("lake", seq)].created_us for seq in entries[-1:]]
        is_own = False
        if request.kind == "journal":
            # A key that is taken is its own where an earlier request of it was applied.
            is_own = bucket.objects[request.key].creator is request.sender
        is_free = request.kind == "get" and request.key == bucket.next_entry_key
        is_entry = request.kind == "get" and request.key in bucket.objects
        is_entry &= kind_of(request.key) == "journal"
        newest_us = max(made_us, default=0)
        return Seen(newest_us, is_complete(bucket), is_own or is_free, is_entry)

    def told(self, request: "Request", seen: Seen, now_us: int) -> None:
        """The process, whose clock says that, has the answer."""
        sight = self._sights.get(request.sender)
        if sight is None:
            return
        sight.newest_us = seen.newest_us
        sight.is_incomplete |= not seen.is_complete
        asked_us = sight.asked.pop((request.kind, request.key), None)
        if request.kind == "journal":
            is_again, sight.appended = sight.appended == request.key, request.key
            if is_again:
                return
        is_followed = seen.is_entry and not sight.is_loading and request.key != sight.appended
        is_seen = seen.is_end or is_followed
        if is_seen and sight.is_loading:
            sight.is_too_old = now_us - seen.newest_us >= KEPT_SECONDS * 1e6 and seen.newest_us > 0
        if is_seen and asked_us is not None:
            sight.seen_us = max(sight.seen_us, asked_us)
            sight.is_loading = False

    # --- what they may say of it

    def at_work(self, process: "Process", bucket: "Bucket", now: float, free: float) -> None:
        """A process owns the journal, and nothing kept it from writing for so many seconds."""
        sight = self._sights[process]
        if not sight.is_lost(bucket.now_us()):
            self._at_work = now
        elif free > _NOTICED_SECONDS and sight.is_lost(bucket.now_us() - NOTICED_US):
            # An answer that was on its way by then has come.
            raise Violation("an engine goes on that does not see the journal's end")

    def appended(self) -> None:
        """An entry is in the journal."""
        self.is_refused = False

    def is_cause(
        self, error: BaseException | None, process: "Process", now_us: int, skew_us: int
    ) -> bool:
        """Whether a process whose clock is ahead by `skew_us` may end with that error."""
        sight = self._sights.get(process)
        if not self.is_on or sight is None:
            return False
        match error:
            case JournalUnseen():
                return sight.is_lost(now_us)
            case JournalError() if _TOO_OLD in str(error):
                self.is_refused = now_us + skew_us - sight.newest_us >= KEPT_SECONDS * 1e6
                return self.is_refused
            case JournalError() if any(text in str(error) for text in _INCOMPLETE):
                self.is_refused = sight.is_incomplete
                return self.is_refused
            case _:
                return False

    # --- what rules take

    def take(self, bucket: "Bucket", now: float) -> None:
        """Take of what is old enough the most."""
        tables = [s for s in bucket.objects.values() if kind_of(s.key) == "object"]
        newest = max(tables, key=lambda stored: stored.created_us, default=None)
        needed = set(self._needed(bucket))
        for stored in list(bucket.objects.values()):
            if stored is newest or (newest is None and stored.key in needed):
                continue
            if self._is_taken(stored, bucket.now_us()) and self._chance.random() < 0.9:
                self._take(stored, bucket, now, is_needed=stored.key in needed)

    @staticmethod
    def _needed(bucket: "Bucket") -> Iterator[str]:
        """What a start needs: the newest state file, the entries behind it, and the newest one."""
        entries, states = bucket.seqs("journal"), bucket.seqs("state")
        if states:
            yield state_key("lake", states[-1])
        covered = states[-1] if states else -1
        yield from (journal_key("lake", seq) for seq in entries if seq > covered)
        yield from (journal_key("lake", seq) for seq in entries[-1:])

    def _is_taken(self, stored: "StoredObject", now_us: int) -> bool:
        age_seconds = (now_us - stored.created_us) / 1e6 - self._lag(stored.key)
        # Clocks differ by seconds.
        is_old = age_seconds > KEPT_SECONDS + 5
        match kind_of(stored.key):
            case "journal":
                return is_old
            case "state":
                return is_old and not self._keeps_states
            case "object" | "schema":
                return is_old and self._takes_tables
            case _:
                return False

    def _lag(self, key: str) -> float:
        """How much later than others the rule takes that one."""
        if self._lags is None:
            return 0.0
        if key not in self._lag_of:
            self._lag_of[key] = self._lags.choice((0.0, self._lags.uniform(0, _LAG_SECONDS)))
        return self._lag_of[key]

    def _take(
        self, stored: "StoredObject", bucket: "Bucket", now: float, *, is_needed: bool
    ) -> None:
        kind = kind_of(stored.key)
        if is_needed:
            if self._at_work is not None and now - self._at_work < _AT_WORK_SECONDS:
                raise Violation("an engine is at work, and the journal expires")
            bucket.counts["journals expired"] += 1
        bucket.expire(stored.key)
        bucket.counts[f"expired: {kind}"] += 1
