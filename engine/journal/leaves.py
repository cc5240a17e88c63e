"""Leaves: partitions whose rows came under their root, and that no look has agreed on yet.

Strategy: the stream says of which partitions rows come, and a snapshot which ones it read. A look
that surely shows everything up to these rows, and not the partition below its root, comes too late:
the partition was attached and went between two looks. Its rows stay in the bucket under the root's
name. Once a look shows the partition below its root, the root's marks hold it: see `TableLook`.
Until then the journal does, because a successor does not read those rows again.

Invariant: pure. A partition is told as gone once. Whatever the journal holds and is not held here
is taken back in the journal.
"""

from collections.abc import Mapping
from itertools import islice

from engine.journal.entry import Watch
from engine.model.batch import Leaf
from engine.model.interfaces import PARTITIONS, Look

STATED_MAX = 20_000
"""Partitions that one entry begins to hold: an entry is one request. One of them takes 50 bytes."""


class Leaves:
    """By root and partition. Points are log points, as a position's prefix."""

    def __init__(self, known: Mapping[str, str]) -> None:
        """`known`: what the journal holds, as in `Watch.leaves`."""
        self._came = dict(known)

    def came(self, leaf: Leaf) -> None:
        """Rows of a partition come that no look has shown below that root."""
        key = f"{leaf.root}/{leaf.identity}"
        self._came[key] = max(leaf.commit, self._came.get(key, ""))

    def judge(self, look: Look) -> frozenset[str]:
        """The identities of the roots from which partitions went; they are told once.

        Partitions that the look shows below their root are forgotten, and so are those of tables
        that are gone.
        """
        if not self._came:
            return frozenset()
        since = look.since or ""
        marks = {now.identity: now.marks for now in look.tables.values()}
        went: set[str] = set()
        for key, at in list(self._came.items()):
            root, _, leaf = key.partition("/")
            is_there = f"{PARTITIONS}:{leaf}" in marks.get(root, ())
            if at >= since and not is_there:
                # It may have come behind what the look surely shows: the next look tells.
                continue
            del self._came[key]
            if root in marks and not is_there:
                went.add(root)
        return frozenset(went)

    def is_much(self, journalled: Watch) -> bool:
        """Whether one entry should not state all that the journal does not hold."""
        if len(self._came) <= STATED_MAX:
            return False
        return len(self._came.keys() - journalled.leaves.keys()) > STATED_MAX

    def beside(self, journalled: Watch) -> tuple[dict[str, str], tuple[str, ...]]:
        """What one entry has to add to what the journal holds, and what it has to take back."""
        if not (self._came or journalled.leaves):
            return {}, ()
        # That rows of it came again is not stated: the first ones tell as much.
        came = ((key, at) for key, at in self._came.items() if key not in journalled.leaves)
        gone = tuple(key for key in journalled.leaves if key not in self._came)
        return dict(islice(came, STATED_MAX)), gone
