"""Who has tables locked, so that a message can name them.

Strategy: `pg_locks` shows every lock without taking one. A process is shown with its role, what it
does and for how long; a prepared transaction has no process and is shown as one.

Invariant: of a statement's text only its first word is read: the rest may hold values.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from engine.model.schema import TableName
from engine.sources.postgres.held_session import HeldSession
from engine.sources.postgres.session import Questions, Session

STOPS_READING: Final = ("AccessExclusiveLock",)
"""What keeps a function that opens a table waiting."""

STOPS_PUBLISHING: Final = (
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
"""What keeps CREATE PUBLICATION waiting."""

_LISTED_MAX: Final = 3

# Whoever waits for a lock keeps later ones waiting too.
_LOCKED: Final = """
SELECT DISTINCT l.relation::pg_catalog.int8 FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) l.database
WHERE l.locktype OPERATOR(pg_catalog.=) 'relation'
  AND l.mode OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.text[])
  AND l.relation OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
  AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
"""

_LOCKED_NAMES: Final = """
SELECT DISTINCT n.nspname, c.relname FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) l.database
  AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) l.relation
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE l.locktype OPERATOR(pg_catalog.=) 'relation'
  AND l.mode OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.text[])
"""

_HOLDERS: Final = """
SELECT n.nspname, c.relname, l.pid, coalesce(a.usename, ''), coalesce(a.state, ''),
       coalesce(pg_catalog.date_part('epoch',
         pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) a.xact_start), 0)::pg_catalog.int8
FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) l.database
  AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) l.relation
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
WHERE l.granted AND l.mode OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.text[])
ORDER BY a.xact_start NULLS FIRST, n.nspname, c.relname
"""

# `pg_blocking_pids` stops all locking for a moment. So only those who wait are asked about. What
# `pg_stat_activity` shows stays the same for a whole transaction, unless it is forgotten.
_WAITERS: Final = """
SELECT pg_catalog.pg_stat_clear_snapshot();
SELECT n.nspname, c.relname, l.pid, l.mode, coalesce(a.usename, ''),
       coalesce(pg_catalog.upper(pg_catalog.substring(a.query, '^\\s*([A-Za-z]+)')), ''),
       coalesce(pg_catalog.date_part('epoch',
         pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) l.waitstart), 0)::pg_catalog.float8
FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) l.relation
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) l.pid
WHERE NOT l.granted AND l.locktype OPERATOR(pg_catalog.=) 'relation'
  AND l.database OPERATOR(pg_catalog.=) (
    SELECT d.oid FROM pg_catalog.pg_database d
    WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
  AND pg_catalog.pg_blocking_pids(l.pid) OPERATOR(pg_catalog.&&) {pids}::pg_catalog.int4[]
ORDER BY l.waitstart
"""


async def locked_oids(session: Questions, oids: Iterable[int], modes: Sequence[str]) -> set[int]:
    """Which of these tables somebody has locked so, or waits to lock. Waits for nobody.

    Raises SourceError. Cancellation leaves nothing behind.
    """
    found = await session.rows(_LOCKED, list(modes), list(oids), doing="looking for locked tables")
    return {oid for (oid,) in found}


async def locked_names(session: Questions, modes: Sequence[str]) -> set[TableName]:
    """Which tables somebody has locked so, or waits to lock: see `locked_oids`.

    Raises SourceError. Cancellation leaves nothing behind.
    """
    found = await session.rows(_LOCKED_NAMES, list(modes), doing="looking for locked tables")
    return {TableName(*row) for row in found}


@dataclass(frozen=True, slots=True)
class Waiter:
    """A session that waits for a lock behind one of ours. `statement` is as `ALTER`."""

    table: TableName
    pid: int
    mode: str
    role: str
    statement: str
    seconds: float

    def __str__(self) -> str:
        statement = f"{self.statement} of " if self.statement else ""
        return (
            f"{statement}process {self.pid} (role {self.role or '?'}) waits for {self.mode} on"
            f" {self.table}, for {self.seconds:.1f} s"
        )


async def waiters(session: HeldSession, pids: Sequence[int]) -> list[Waiter]:
    """Who waits for a lock on a table behind one of these processes, the longest first.

    Raises SourceError. Cancellation leaves the session to be closed.
    """
    query = _WAITERS.format(pids=f"'{{{','.join(map(str, pids))}}}'")
    found = await session.glance(query, doing="looking who waits for our locks")
    return [Waiter(TableName(schema, table), *rest) for schema, table, *rest in found]


@dataclass(frozen=True, slots=True)
class Holder:
    """One lock that somebody holds on a table."""

    table: TableName
    pid: int | None
    role: str
    state: str
    seconds: int

    def __str__(self) -> str:
        if self.pid is None:
            return f"{self.table} by a prepared transaction (pg_prepared_xacts names it)"
        return (
            f"{self.table} by process {self.pid} (role {self.role or '?'}, {self.state or '?'},"
            f" its transaction {self.seconds} s old)"
        )


async def holders(
    session: Session, tables: Iterable[TableName], modes: Sequence[str]
) -> list[Holder]:
    """Who holds locks of these modes on these tables, the oldest transaction first.

    Raises SourceError. Cancellation leaves nothing behind.
    """
    wanted = set(tables)
    found = await session.rows(_HOLDERS, list(modes), doing="looking for locked tables")
    every = [Holder(TableName(schema, table), *rest) for schema, table, *rest in found]
    return [holder for holder in every if holder.table in wanted]


def listed(found: Sequence[Holder]) -> str:
    """The first few, as a message says them."""
    more = len(found) - _LISTED_MAX
    text = "; ".join(str(holder) for holder in found[:_LISTED_MAX])
    return f"{text}; and {more} more" if more > 0 else text
