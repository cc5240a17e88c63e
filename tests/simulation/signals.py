"""Signals in the simulated log: somebody asks in the order of commits, and what must hold of that.

Strategy: signals stand among the rows of transactions, outside them, and in transactions of their
own, also such as are none and more at once than an engine takes. Some engines do not ask their
source for signals. The monitor notes which ones an engine is given after its `open`, by what they
are and not by their place alone: a failover may put another one at the place of one that it lost.

Invariant: every signal that a writer is given is answered once, before E passes it, unless it came
too soon after others. None is answered that was over.
"""

import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from engine.journal import signals
from engine.model.batch import Intake, Signal
from engine.model.record import RecordConfiguration
from simulation.requests import BAD, RequestMonitor
from simulation.source import TABLES
from simulation.violation import Violation
from simulation.virtual_loop import Process

Json = dict[str, Any]

INSIDE = 0.06
OUTSIDE = 0.03


class Asker:
    """Sends signals."""

    def __init__(self, seed: int) -> None:
        self.rnd = random.Random(f"signals {seed}")
        self._count = 0

    def inside(self) -> bytes | None:
        """What is sent at some place of a transaction, if anything."""
        return self._content() if self.rnd.random() < INSIDE else None

    def outside(self) -> bytes | None:
        """What is sent outside of any transaction at some moment, if anything."""
        return self._content() if self.rnd.random() < OUTSIDE else None

    def alone(self) -> tuple[bytes, ...]:
        """What a transaction sends that does nothing else."""
        return tuple(self._content() for _ in range(self.rnd.choice((1, 1, 1, 2, 8))))

    def _content(self) -> bytes:
        rnd = self.rnd
        if rnd.random() < 0.1:
            return rnd.choice(BAD)
        tables = [str(table) for table in rnd.sample(TABLES, rnd.choice((1, 1, 2)))]
        kind = rnd.choice(("resync", "resync", "cancel"))
        self._count += 1
        # The number is nobody's business: it tells this signal from all others.
        return orjson.dumps({"format": 1, "kind": kind, "tables": tables, "number": self._count})


@dataclass(slots=True)
class SignalReading:
    """The journal's answers to signals, read by a stranger: those of the source's present log."""

    answered: list[str] = field(default_factory=list)
    through: str = ""
    forgotten_count: int = 0

    def read(self, entry: Json, accepting: Json | None) -> None:
        """Take in the next entry. `accepting`: the loss that is being accepted, or is by it."""
        if "fork" in entry.get("open", {}):
            self._forget(entry["open"]["fork"])
        self.answered += [answer["name"] for answer in entry.get("signals", ())]
        self.through = max([self.through, *self.answered])
        if entry.get("accepted") and accepting is not None and accepting["loss"] != "moved":
            self._forget(entry["durable"]["position"])

    def _forget(self, behind: str) -> None:
        """The source's log is another one behind that place."""
        kept = [at for at in self.answered if at < behind]
        self.forgotten_count += len(self.answered) - len(kept)
        self.answered = kept
        self.through = min(self.through, behind)


@dataclass(slots=True)
class _Life:
    """What one engine was given since it opened the journal, which had answers up to there."""

    through: str
    given: set[Signal] = field(default_factory=set)
    owed: dict[str, Signal] = field(default_factory=dict)
    taken_at: deque[float] = field(default_factory=lambda: deque(maxlen=signals.SIGNALS_MAX))

    @property
    def is_full_since(self) -> float:
        """Since when it has taken as many as it may."""
        is_full = len(self.taken_at) == signals.SIGNALS_MAX
        return self.taken_at[0] if is_full else float("-inf")


class SignalMonitor:
    """Judges signals. `counts` are the monitor's."""

    def __init__(self, counts: Counter[str], requests: RequestMonitor) -> None:
        self._counts = counts
        self._requests = requests
        self._lives: dict[Process, _Life] = {}
        self._answered: set[Signal] = set()
        self._dropped: set[Signal] = set()
        self._newest_answered = ""

    def opened(self, process: Process, reading: SignalReading) -> None:
        """A process opened the journal, which has these answers."""
        self._lives[process] = _Life(reading.through)
        self._counts["answered signals forgotten"] = reading.forgotten_count

    def received(self, process: Process, intake: Intake, durable: str, now: float) -> None:
        """A process that streams is given an intake."""
        life = self._lives.get(process)
        for signal in intake.signals if life is not None else ():
            assert life is not None
            if not signal.position:
                self._counts["signals ignored"] += 1
            elif not self._is_over(life, signal, durable):
                self._take(life, signal, now)

    def _is_over(self, life: _Life, signal: Signal, durable: str) -> bool:
        if signal in self._answered:
            self._counts["signals read again"] += 1
            return True
        # An earlier engine dropped it, and took one behind it.
        is_passed = signal in self._dropped and signal.position <= life.through
        return signal in life.given or is_passed or signal.position < durable

    def _take(self, life: _Life, signal: Signal, now: float) -> None:
        life.given.add(signal)
        if now - life.is_full_since < signals.LIMIT_SECONDS:
            self._counts["signals dropped"] += 1
            self._dropped.add(signal)
            return
        life.taken_at.append(now)
        life.owed[signal.position] = signal

    def check(self, entry: Json, creator: Process, known: RecordConfiguration) -> Mapping[str, str]:
        """Judge the answers of an entry: what they say was done of each table, the last of it."""
        life = self._lives.get(creator, _Life(""))
        asked: dict[str, str] = {}
        for answer in entry.get("signals", ()):
            signal = life.owed.pop(answer["name"], None)
            if signal is None:
                raise Violation("a signal is done again, or one that was not to be done")
            self._answered.add(signal)
            self._newest_answered = signal.position
            self._counts[f"signal {answer['outcome']}"] += 1
            if answer["outcome"] == "refused":
                self._requests.check_refused(signal.content, entry["seq"], known)
            else:
                asked |= self._requests.done(answer, signal.content)
        if "durable" in entry and any(at < entry["durable"]["position"] for at in life.owed):
            raise Violation("durable past a signal without an answer")
        return asked

    def windows(self, process: Process, durable: str) -> dict[str, bool]:
        """Where the writer is between a signal and what is made of it."""
        life = self._lives.get(process)
        return {
            "between a signal and its entry": life is not None and bool(life.owed),
            "between a signal's entry and durable": self._newest_answered >= durable > "",
        }
