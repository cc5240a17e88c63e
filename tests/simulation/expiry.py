"""Rules of the bucket that take old objects away, while engines are at work and while none is.

Strategy: in some worlds objects of the journal, state files and tables' objects have a short life.
An engine's own times are as much shorter there, in the same proportion. A rule counts days, a
request takes seconds: so nothing is taken while a request is under way or an engine is reading the
journal at its start. One writer sleeps for longer than entries live. In between the pipeline may
stand still for as long. Then the journal is gone, and every later start has to say so.

The newest object of a table stays, and what a start needs where there is none: of a bucket without
any object nobody can tell that it had some.

Invariant: what is taken has reached its age. Where an engine was at work all the while, the journal
is never gone: the newest state file and the entries behind it are younger.
"""

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from engine.model.bucket_rule import BucketRule, RuleAction
from engine.model.errors import JournalError, JournalUnseen
from engine.model.layout import journal_key, state_key
from simulation.store import kind_of
from simulation.violation import Violation

if TYPE_CHECKING:
    from simulation.store import Bucket, StoredObject

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


async def rules() -> tuple[BucketRule, ...]:
    """What an engine reads of them: a day has `KEPT_SECONDS` here."""
    return (BucketRule("short lives", "lake/_tailrace/", (RuleAction(days=1),)),)


def _newest_age(bucket: "Bucket") -> float:
    """How old the newest entry is that is there."""
    made_us = [s.created_us for s in bucket.objects.values() if kind_of(s.key) == "journal"]
    return (bucket.now_us() - max(made_us, default=0)) / 1e6


class Expiry:
    """The rules of one world's bucket. `is_on`: there are some."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"short lives {seed}")
        self.is_on = self._chance.random() < WORLDS
        self._keeps_states = self._chance.random() < 0.4
        self._takes_tables = self._chance.random() < 0.6
        self.standing_seconds = self._chance.choice((0, 0, 25, 100))
        self.sleep_at = self._chance.uniform(5, 50)
        self.is_journal_gone = False
        self._at_work: float | None = None

    def at_work(self, now: float) -> None:
        """An engine owns the journal, and nothing keeps it from writing."""
        self._at_work = now

    def is_cause(self, error: BaseException | None, bucket: "Bucket") -> bool:
        """Whether an engine may end with that error because of what expired, or may have."""
        if isinstance(error, JournalError) and self.is_on:
            self.is_journal_gone |= _newest_age(bucket) > KEPT_SECONDS - 5
            return self.is_journal_gone
        return isinstance(error, JournalUnseen) and self.is_on

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
        age_seconds = (now_us - stored.created_us) / 1e6
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

    def _take(
        self, stored: "StoredObject", bucket: "Bucket", now: float, *, is_needed: bool
    ) -> None:
        kind = kind_of(stored.key)
        if is_needed:
            if self._at_work is not None and now - self._at_work < _AT_WORK_SECONDS:
                raise Violation("an engine is at work, and the journal expires")
            self.is_journal_gone = True
            bucket.counts["journals expired"] += 1
        bucket.expire(stored.key)
        bucket.counts[f"expired: {kind}"] += 1
