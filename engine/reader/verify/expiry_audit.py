"""Objects that are gone: expired by a rule of the bucket, or missing.

Strategy: a rule takes objects by their age, and those of a lane (a table's stream, or a range of a
snapshot) are made in order. So what is gone before the oldest object of its lane that is there has
expired. What is gone behind it, or is younger than any rule lets objects become, is missing.
Objects are looked up beside each other: what they gave is put back into the journal's order first.

Invariant: memory is bounded by what is looked up out of order, the tables, and one number a lane.
Pure.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal

from engine.model.layout import hour_of
from engine.model.plural import counted
from engine.model.staged_object import StagedObject
from engine.reader.verify.key_set import KeySet
from engine.reader.verify.object_audit import NamedObject
from engine.reader.verify.problem import Code, Problem

Presence = Literal["there", "gone", "given up"]
"""Whether a durable object was found; *given up*: it may be absent, and is."""

_DAY_US: Final = 86_400_000_000


class ExpiryAudit:
    """The durable objects in the journal's order, judged at `now_us` (Unix microseconds)."""

    def __init__(self, now_us: int) -> None:
        # Lifecycle rules count days: an object filed under a later hour is less than a day old.
        self._oldest_young = hour_of(now_us - _DAY_US)
        self._waiting: dict[int, tuple[NamedObject, Presence]] = {}
        self._next = 0
        self._begun = KeySet()
        self._newest = ""
        self._schemas: set[str] = set()
        self.counts: Counter[str] = Counter()

    def found(
        self, number: int, named: NamedObject, presence: Presence
    ) -> Iterator[tuple[NamedObject, Problem]]:
        """Take in what the look-up of object `number` gave; yields what is missing.

        Objects are numbered from 0 in the journal's order.
        """
        self._waiting[number] = (named, presence)
        while (known := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            problem = self._judge(*known)
            if problem is not None:
                yield known[0], problem

    def _judge(self, named: NamedObject, presence: Presence) -> Problem | None:
        lane = _lane(named)
        if presence == "there":
            self._begun.add(lane)
        if presence != "gone":
            return None
        if lane in self._begun or hour_of_key(named.key) > self._oldest_young:
            text = f"named by entry {named.seq} and durable, and not there"
            return Problem(Code.OBJECT_MISSING, named.key, text)
        self.counts[str(named.table)] += 1
        self._newest = named.key
        if named.schema_key is not None:
            self._schemas.add(named.schema_key)
        return None

    def has_expired(self, schema_key: str) -> bool:
        """Whether a schema.json may have expired: it is older than its version's objects."""
        return schema_key in self._schemas

    @property
    def warning(self) -> Problem | None:
        """What has expired, in one line."""
        if not self.counts:
            return None
        text = (
            f"gone before the oldest that is there: {counted(self.counts.total(), 'object')} of"
            f" {counted(len(self.counts), 'table')}; a rule of the bucket took them, and this was"
            " the last one"
        )
        return Problem(Code.OBJECTS_EXPIRED, self._newest, text)


def _lane(named: NamedObject) -> str:
    first = named.plan.first
    # A position of a snapshot begins with what its range has for itself.
    is_staged = isinstance(named.plan, StagedObject)
    return f"{named.table} {first.rpartition('.')[0]}" if is_staged else str(named.table)


def hour_of_key(key: str) -> str:
    """The hour that the object is filed under, as `hour_of` gives it."""
    *_, year, month, day, hour, _ = (part.rpartition("=")[2] for part in key.split("/"))
    return f"{year}-{month}-{day}T{hour}"
