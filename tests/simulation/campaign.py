"""Many schedules: on several processes, summed up, with the windows that have to be hit.

Invariant: a window that no schedule hit is a failure, as a violation is: what was not tried was
not proved.
"""

import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from simulation.engines import prepare_process
from simulation.world import Outcome, World

WINDOWS = (
    "killed before a plan",
    "killed between plan and publish",
    "killed between publish and durable",
    "killed between durable and acknowledge",
    "killed inside a transaction",
    "killed in a redo",
    "killed while staging",
    "killed between whole and completion",
    "killed between two completions",
    "killed between completion and durable",
    "cuts checked",
    "cuts checked with a snapshot's rows",
    "snapshots visible",
    "snapshots given up",
    "snapshots held",
    "held snapshots lost",
    "snapshots held side by side",
    "tables rewritten behind a snapshot",
    "tables left out",
    "comparisons without an answer",
    "workers lost",
    "workers let go",
    "no workers to be had",
    "ranges staged anew",
    "ranges stale",
    "snapshots asked for again",
    "snapshot cancelled",
    "snapshot gone",
    "snapshot wanted of a table that was gone",
    "held without a table that was dropped",
    "attempts overtaken",
    "gaps mended",
    "published by an engine",
    "request done",
    "request refused",
    "signal done",
    "signal refused",
    "signals dropped",
    "signals ignored",
    "signals read again",
    "killed between a signal and its entry",
    "killed between a signal's entry and durable",
    "snapshot void",
    "given up after refusals",
    "a rule aborts a named upload",
    "cuts checked of segments",
    "attempts after a moved key",
    "lists of objects",
    "a list altered",
    "a duplicate's result thrown away",
    "ranges given to another worker",
    "part of no upload",
    "completed again: GONE",
    "killed before its open",
    "takeover",
    "takeover with objects missing",
    "redo of a restated plan",
    "redo under another configuration",
    "restated",
    "absorbed while opening",
    "resumed after a takeover",
    "walsender timeout",
    "412 own",
    "412 on another's object",
    "answer lost: journal",
    "answer lost: object",
    "answer lost: completion",
    "applied late: journal",
    "applied late: object",
    "applied late: completion",
    "applied after its sender's death: journal",
    "applied after its sender's death: object",
    "no such upload",
    "uploads aborted",
    "stalled",
    "state files",
    "state file damaged",
    "entries expired",
    "idle for long",
    "woken after long",
    "refused over an expired journal",
    "ended: JournalUnseen",
    "made again after it expired",
    "expired: journal",
    "expired: state",
    "expired: object",
    "expired: schema",
    "ended: Superseded",
    "ended: PositionLost",
    "ended: NoneType",
    "fault: crash",
    "fault: drop",
    "fault: outage",
    "fault: clock",
    "fault: hand",
    "fault: failing",
    "failing",
    "failover",
    "late at its sender's death: journal",
    "late at its sender's death: object",
    "late at its sender's death: completion",
    "failover that lost nothing of ours",
    "restored disk",
    "restored disk accepted",
    "open: accepting",
    "open: goes on accepting",
    "accepted: keeper",
    "accepted: moved",
    "accepted: history",
    "void objects",
    "switched",
    "generation begun",
    "caught up",
)


@dataclass
class Summary:
    """What a campaign came to."""

    schedules: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    violations: dict[str, list[int]] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Count one schedule in."""
        self.schedules += 1
        self.counts.update(outcome.counts)
        if outcome.violation is not None:
            self.violations.setdefault(outcome.violation, []).append(outcome.seed)

    @property
    def windows_missed(self) -> list[str]:
        """Windows that no schedule hit."""
        return [window for window in WINDOWS if not self.counts[window]]

    @property
    def is_clean(self) -> bool:
        """Whether nothing was violated."""
        return not self.violations


def play(seed: int) -> Outcome:
    """Play one schedule."""
    return World(seed).run()


def outcomes(seeds: Iterable[int], processes: int) -> Iterator[Outcome]:
    """The outcomes of all seeds, in their order."""
    prepare_process()
    if processes == 1:
        yield from map(play, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=prepare_process) as pool:
        yield from pool.imap(play, seeds, chunksize=10)
