"""What a pipeline's requests to the bucket come to in a month, and what they cost.

Strategy: arithmetic of the intervals alone. What is idle is known: the engine looks for requests to
itself, looks whether another writer came, and says now and then how far the source is. What is busy
is bounded: one journal entry in an append interval, and one object of a table each time that its
chunk grows old. Larger load makes fuller chunks, and then objects by their size.

Invariant: pure. The prices are those of one class, place and month, and are told with that.
"""

from dataclasses import dataclass
from typing import Final

MONTH_SECONDS: Final = 30 * 24 * 3600

DOLLARS_A_THOUSAND_PUTS: Final = 0.005
DOLLARS_A_THOUSAND_GETS: Final = 0.0004
PRICES: Final = "prices of S3 Standard in us-east-1, November 2026"
"""https://aws.amazon.com/s3/pricing/, S3 Standard, US East (N. Virginia)."""

LONGER_SECONDS: Final = 10.0
"""The interval that is told as the one that saves."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of a month. `puts` are all that cost as much as a PUT: LIST does."""

    puts: int
    gets: int = 0

    @property
    def dollars(self) -> float:
        """What they cost."""
        puts, gets = self.puts / 1000, self.gets / 1000
        return puts * DOLLARS_A_THOUSAND_PUTS + gets * DOLLARS_A_THOUSAND_GETS


@dataclass(frozen=True, slots=True)
class Pace:
    """How often an engine asks the bucket for something, in seconds.

    `append`: at most one journal entry in it. `age`: when a chunk is published at the latest.
    `idle`: how often an idle source's position is stated. `probe`: how often it looks whether
    another writer came, unless it appends. `look`: how often it looks for requests to itself.
    `entries_a_state`: a state file for so many journal entries.
    """

    append: float
    age: float
    idle: float
    probe: float
    look: float
    entries_a_state: int

    def idle_requests(self) -> Requests:
        """Where no table has a change, and the server's log moves all the same."""
        return Requests(self._journal(self.idle) + _times(self.look), _times(self.probe))

    def busy_requests(self) -> Requests:
        """Where each append interval has something to state. The tables' objects come on top."""
        is_probing = self.append > self.probe
        return Requests(
            self._journal(self.append) + _times(self.look), _times(self.probe) * is_probing
        )

    def table_requests(self) -> Requests:
        """The objects of one table that always has rows, and never fills a chunk before its age."""
        # A chunk is cut one append interval before its age.
        return Requests(_times(max(self.append, self.age - self.append)))

    def entries(self) -> int:
        """Journal entries of a busy month."""
        return _times(self.append)

    def _journal(self, seconds: float) -> int:
        entries = _times(seconds)
        return entries + entries // self.entries_a_state


def _times(seconds: float) -> int:
    return round(MONTH_SECONDS / seconds)


def saving(pace: Pace, longer: Pace) -> float:
    """The dollars that a busy month costs less at the longer interval."""
    return pace.busy_requests().dollars - longer.busy_requests().dollars


def cost_text(pace: Pace) -> str:
    """What it comes to, in words for an operator."""
    idle, busy, table = pace.idle_requests(), pace.busy_requests(), pace.table_requests()
    text = (
        f"requests to the bucket, a month: ${idle.dollars:,.2f} idle, up to ${busy.dollars:,.2f}"
        f" busy ({_number(pace.entries())} PUTs, engine.append_interval = {pace.append:g}s),"
        f" ${table.dollars:,.2f} more for each table that always has rows"
        f" ({_number(table.puts)} PUTs, chunk.max_age = {pace.age:g}s)"
    )
    if pace.append < LONGER_SECONDS <= pace.age:
        longer = Pace(
            LONGER_SECONDS, pace.age, pace.idle, pace.probe, pace.look, pace.entries_a_state
        )
        text += (
            f'; engine.append_interval = "{LONGER_SECONDS:g}s" would save up to'
            f" ${saving(pace, longer):,.2f}"
        )
    return f"{text}; {PRICES}"


def _number(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1_000_000 else f"{count:,}"
