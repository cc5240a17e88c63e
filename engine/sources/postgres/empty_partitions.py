"""Partitions that were attached and never had a row: nothing came with them.

Strategy: only VACUUM, TRUNCATE and a rewrite make a table's file shorter. A table still has its
first file if the file's number is the table's OID: TRUNCATE and a rewrite give it another number.
It was never vacuumed or analyzed if `reltuples` is -1. If both hold and the file has no bytes, the
table never had a row that anybody else could see. The catalog alone does not tell the file's
length, so it is asked for, once for each attachment, and for the newest tables only.

Asking opens the table, which takes an ACCESS SHARE lock for a moment. Tables that somebody has
locked, or waits to lock, are left out. A time limit is there for a lock that somebody takes in
between.

Invariant: what cannot be told at once counts as not empty.
"""

from collections.abc import Iterable
from typing import Final

from engine.model.errors import SourceFailed
from engine.sources.postgres.session import Session

ASKED_MAX: Final = 100
"""Tables that one look asks about. If more are attached at once, the others are gaps."""

_LOCK_TIMEOUT: Final = "50ms"

_EMPTY: Final = """
WITH pinned AS MATERIALIZED (
  SELECT pg_catalog.set_config('lock_timeout', %s, true) AS lock_timeout
), found AS MATERIALIZED (
  SELECT c.oid FROM pg_catalog.pg_class c
  WHERE c.oid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
    AND c.relkind OPERATOR(pg_catalog.=) 'r' AND c.relpersistence OPERATOR(pg_catalog.=) 'p'
    AND c.relfilenode OPERATOR(pg_catalog.=) c.oid
    AND c.reltuples OPERATOR(pg_catalog.=) '-1'::pg_catalog.float4
    AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_locks l
      JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) l.database
        AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
      WHERE l.relation OPERATOR(pg_catalog.=) c.oid
        AND l.mode OPERATOR(pg_catalog.=) 'AccessExclusiveLock')
)
SELECT found.oid::pg_catalog.int8 FROM pinned CROSS JOIN found
WHERE pinned.lock_timeout IS NOT NULL
  AND pg_catalog.pg_relation_size(found.oid::pg_catalog.regclass)
      OPERATOR(pg_catalog.=) 0::pg_catalog.int8
"""

Attachment = tuple[int, str]
"""A partition's OID, and the transaction that attached it."""


class EmptyPartitions:
    """What was found out of the attachments that stand. One for each stream."""

    def __init__(self) -> None:
        self._known: dict[Attachment, bool] = {}

    async def among(self, session: Session, attached: Iterable[Attachment]) -> frozenset[int]:
        """Which of these partitions never had a row when they were first asked about.

        Raises SourceError. Cancellation leaves nothing behind.
        """
        standing = set(attached)
        new = sorted(standing - self._known.keys(), reverse=True)[:ASKED_MAX]
        empty = await _empty(session, [oid for oid, _ in new])
        before = self._known
        self._known = {one: before.get(one, one[0] in empty) for one in standing}
        return frozenset(oid for (oid, _), is_empty in self._known.items() if is_empty)


async def _empty(session: Session, oids: list[int]) -> frozenset[int]:
    if not oids:
        return frozenset()
    try:
        found = await session.rows(_EMPTY, _LOCK_TIMEOUT, oids, doing="measuring new partitions")
    except SourceFailed:
        # Locked since, or dropped.
        return frozenset()
    return frozenset(oid for (oid,) in found)
