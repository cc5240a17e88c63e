"""Requests in the simulated bucket: somebody asks, and what must hold of the answers.

Strategy: an operator creates request objects at random, also such as are none. The monitor compares
each answer with the object and with the statements of the same entry.

Invariant: every request is answered once. What was asked of a table stands in the answer's entry.
"""

import random
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import orjson

from engine.model.record import RecordConfiguration
from engine.model.request import Request, encode_request, request_key, request_name
from engine.model.schema import TableName
from simulation.snapshot_monitor import SnapshotReading
from simulation.source import TABLES
from simulation.store import Bucket
from simulation.violation import Violation
from simulation.virtual_loop import Process

Json = dict[str, Any]
_FOLDER = "lake/_tailrace/requests/"
BAD = (
    b"{",
    b"[]",
    b'{"format":1}',
    b'{"format":2,"kind":"resync"}',
    b'{"format":1,"kind":"resync","tables":[7]}',
    b'{"format":1,"kind":"resync","tables":["public.nobody"]}',
    b'{"format":1,"kind":"dance","tables":["public.nobody"]}',
    b" " * 70_000,
)
_STRANGE_KEYS = ("readme.txt", "", "20261301T000000.000000Z-0000000000000000.json")


class Clock(Protocol):
    """Now, in Unix microseconds."""

    def __call__(self) -> int: ...


class Operator:
    """Creates requests."""

    def __init__(self, bucket: Bucket, clock: Clock, seed: int) -> None:
        self.rnd = random.Random(f"requests {seed}")
        self._bucket = bucket
        self._clock = clock
        self._process = Process("operator")

    def ask(self) -> None:
        """Create one request, or what looks like one."""
        rnd = self.rnd
        name = request_name(self._clock(), f"{rnd.getrandbits(64):016x}")
        tables = tuple(str(table) for table in rnd.sample(TABLES, rnd.choice((1, 1, 2))))
        kind = rnd.choice(("resync", "resync", "cancel"))
        body, key = encode_request(Request(1, kind, tables)), request_key("lake", name)
        if rnd.random() < 0.1:
            body = rnd.choice(BAD)
        if rnd.random() < 0.05:
            key = _FOLDER + rnd.choice(_STRANGE_KEYS)
        self._bucket.put(self._process, "requests", key, body, {})


class RequestMonitor:
    """Judges answers. `counts` are the monitor's."""

    def __init__(self, counts: Counter[str]) -> None:
        self.answered: set[str] = set()
        # Which entry spoke of a table first.
        self._first: dict[str, int] = {}
        self._counts = counts

    def check(
        self,
        entry: Json,
        bucket: Bucket,
        reading: SnapshotReading,
        known: RecordConfiguration,
        signalled: Mapping[str, str],
    ) -> None:
        """Judge the answers of an entry; `reading` has taken in what it says of snapshots.

        `signalled` says by table what was done because of signals.
        """
        asked: dict[str, str] = {}
        self._first = dict.fromkeys(reading.attempts, int(entry["seq"])) | self._first
        for answer in entry.get("answers", ()):
            name = answer["name"]
            if name in self.answered:
                raise Violation("a request is answered twice")
            self.answered.add(name)
            stored = bucket.objects.get(request_key("lake", name))
            if stored is None:
                raise Violation("an answer to what nobody asked")
            self._counts[f"request {answer['outcome']}"] += 1
            if answer["outcome"] == "refused":
                self.check_refused(stored.body, entry["seq"], known)
                continue
            asked |= self.done(answer, stored.body)
        said = {s["table"]: s["state"] for s in entry.get("snapshots", ())}
        for table in asked.keys() | signalled.keys():
            kinds = {found[table] for found in (asked, signalled) if table in found}
            self._check_table(table, kinds, entry["seq"], said.get(table, ""), reading)

    @staticmethod
    def done(answer: Json, body: bytes) -> dict[str, str]:
        """By table, what an answer says was done, where that is what was asked."""
        request = orjson.loads(body)
        if (request["kind"], request["tables"]) != (answer["kind"], answer["tables"]):
            raise Violation("an answer to another request")
        # Tables that the text names were left as they were: objects of an attempt that is whole
        # may be named by a later entry than this one.
        kept = answer.get("text", "")
        return {name: request["kind"] for name in request["tables"] if name not in kept}

    def check_refused(self, body: bytes, seq: int, known: RecordConfiguration) -> None:
        """Judge that entry `seq` refuses what this asks."""
        if not body or body in BAD or known.snapshot == "never":
            return
        request = orjson.loads(body)
        names = request["tables"]
        # It was judged before this entry was made, and maybe before the answer to the one before.
        is_possible = all(
            self._first.get(name, seq) < seq - 1 and known.captures(TableName.parse(name))
            for name in names
        )
        if request["kind"] == "resync" and is_possible:
            raise Violation("a request refused that could be done")

    def _check_table(
        self, table: str, kinds: Collection[str], seq: int, said: str, reading: SnapshotReading
    ) -> None:
        """Judge that the last thing asked of a table was done; of two kinds nobody knows which.

        `said`: what this entry says last of the table's snapshot, empty where it is nothing.
        """
        stated = reading.stated.get(table)
        state = stated.state if stated is not None else "none"
        # A look may show meanwhile that the table is gone. One with a visible snapshot is as before
        # then, so the statement is looked at, and not what the table has after it.
        if "resync" in kinds and (said in {"wanted", "started", "gone"} or state == "wanted"):
            return
        if "cancel" not in kinds:
            raise Violation("a request done without its statement in the same entry")
        # The engine may want a snapshot again by itself.
        is_again = state == "wanted" and stated is not None and stated.seq == seq
        if state in {"wanted", "started", "void"} and not is_again:
            raise Violation("a snapshot cancelled, and an attempt is to be made")

    def waiting(self, bucket: Bucket) -> list[str]:
        """The requests that nobody has answered."""
        names = (
            key.removeprefix(_FOLDER).removesuffix(".json")
            for key in bucket.objects
            if key.startswith(_FOLDER) and key.removeprefix(_FOLDER) not in _STRANGE_KEYS
        )
        return sorted(name for name in names if name not in self.answered)
