"""Connections: how many sessions a run holds at once, and whether the server gives as many.

Strategy: how many sessions a part holds stands beside the code that opens them; here they are
added up. What a start cannot do without is tried: so many sessions are opened at once, as the start
opens them. What snapshots and new tables take later is counted against three limits: the server's,
the role's and the database's.

Only plain sessions count against these. A walsender's has a place of its own (`max_wal_senders`),
and counts against none of the three (tried on PostgreSQL 15 and 18).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.model.plural import counted
from engine.model.trial import Finding
from engine.sources.postgres import publishing, stream
from engine.sources.postgres.exported import HELD_SESSIONS
from engine.sources.postgres.session import Session, quoted
from engine.sources.postgres.situation import Situation

_LIMITS: Final = """
SELECT r.rolname, r.rolsuper, r.rolconnlimit, d.datname, d.datconnlimit,
       pg_catalog.current_setting('max_connections')::pg_catalog.int8,
       pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int8,
       CASE WHEN pg_catalog.pg_has_role(
              session_user,
              pg_catalog.to_regrole('pg_use_reserved_connections')::pg_catalog.oid, 'USAGE')
            THEN 0
            ELSE coalesce(pg_catalog.current_setting('reserved_connections', true), '0')
                 ::pg_catalog.int8 END
FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
WHERE r.rolname OPERATOR(pg_catalog.=) session_user
  AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
"""

# What kind of session another role's is, is shown to members of pg_read_all_stats alone. Nobody
# hides the walsenders; what else has a role and a database counts.
_USED: Final = """
SELECT pg_catalog.count(*),
       pg_catalog.count(*) FILTER (WHERE a.usename OPERATOR(pg_catalog.=) session_user),
       pg_catalog.count(*) FILTER (
         WHERE a.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
FROM pg_catalog.pg_stat_activity a
WHERE a.datid IS NOT NULL AND a.usesysid IS NOT NULL
  AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
  AND coalesce(a.backend_type, 'client backend') OPERATOR(pg_catalog.=) 'client backend'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_replication s
                  WHERE s.pid OPERATOR(pg_catalog.=) a.pid)
"""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run takes beside its stream: nothing, where nobody reads tables.

    `held_max` snapshots are held at once, read by `worker_count` workers; None: those of a cluster,
    and nobody knows how many. `is_adding`: new tables are added to the publication.
    """

    held_max: int = 0
    worker_count: int | None = 0
    is_adding: bool = False

    @property
    def session_count(self) -> int:
        """The most plain sessions at once, without a cluster's workers."""
        adding = publishing.SESSIONS if self.is_adding else 0
        held = self.held_max * HELD_SESSIONS
        return stream.SESSIONS + adding + held + (self.worker_count or 0)

    @property
    def text(self) -> str:
        """What they are for."""
        parts = [f"{stream.SESSIONS} beside the stream"]
        if self.is_adding:
            parts.append(f"{publishing.SESSIONS} while tables are added to the publication")
        if self.held_max:
            parts.append(f"{self.held_max * HELD_SESSIONS} that hold snapshots")
            if self.worker_count is None:
                parts.append("and one for each thread of the cluster's workers")
            else:
                parts.append(f"{counted(self.worker_count, 'worker')} of theirs")
        return ", ".join(parts)


NO_SNAPSHOTS: Final = Demand()


@dataclass(frozen=True, slots=True)
class Limit:
    """So many sessions of ours there may be; so many others there are.

    `sql` raises it to a number, which has to be larger by `reserved`: those are for others.
    """

    name: str
    count_max: int
    used: int
    sql: str
    reserved: int = 0

    @property
    def left(self) -> int:
        """Sessions that are left, our own among them."""
        return max(0, self.count_max - self.used)


async def read_limits(session: Session) -> list[Limit]:
    """The limits that hold for our role, the tightest first. Raises SourceError.

    Cancellation changes nothing.
    """
    doing = "counting the connections that are left"
    [
        (role, is_super, of_role, database, of_database, count_max, for_superusers, reserved)
    ] = await session.rows(_LIMITS, doing=doing)
    [(used, used_by_role, used_in_database)] = await session.rows(_USED, doing=doing)
    kept = 0 if is_super else for_superusers + reserved
    after = f"max_connections{f' without the {kept} reserved' if kept else ''}"
    restarted = "ALTER SYSTEM SET max_connections = {}, and restart the server"
    limits = [Limit(after, count_max - kept, used, restarted, kept)]
    if of_role >= 0 and not is_super:
        statement = f"ALTER ROLE {quoted(role)} CONNECTION LIMIT {{}}"
        limits.append(Limit(f"CONNECTION LIMIT of role {role!r}", of_role, used_by_role, statement))
    if of_database >= 0 and not is_super:
        statement = f"ALTER DATABASE {quoted(database)} CONNECTION LIMIT {{}}"
        name = f"CONNECTION LIMIT of database {database!r}"
        limits.append(Limit(name, of_database, used_in_database, statement))
    return sorted(limits, key=lambda limit: limit.left)


async def try_connections(session: Session, found: Situation, demand: Demand) -> Finding:
    """Open what a start holds at once, and count what is left for the rest.

    Raises SourceError as that start would. Cancellation closes what was opened.
    """
    limits = await read_limits(session)
    if found.is_first and found.publication is None:
        # It is made by a transaction of its own.
        async with await session.connected():
            pass
    return connections_finding(limits, demand, is_running=found.slot.active_pid is not None)


def connections_finding(limits: Sequence[Limit], demand: Demand, *, is_running: bool) -> Finding:
    """What there is to say of these limits, the tightest first. Pure.

    `is_running`: an engine holds its sessions already, and they are among those that are used.
    """
    tightest, need = limits[0], demand.session_count
    text = f"{tightest.used} of {tightest.count_max} used ({tightest.name})"
    if is_running:
        return Finding(f"{text}; an engine runs, and has its own already")
    text = f"{text}; a run takes up to {need} at once: {demand.text}"
    tight = [limit for limit in limits if limit.left < need]
    if not tight:
        return Finding(text)
    late = "snapshots and new tables wait" if demand.held_max else "a reconnect waits"
    fewer = (
        '; or fewer workers: source.snapshot_workers = "local:1"'
        if (demand.worker_count or 0) > 1
        else ""
    )
    raised = "; ".join(
        limit.sql.replace("{}", str(limit.used + need + limit.reserved)) for limit in tight
    )
    return Finding(
        f"{text}. There are {tightest.left}: {late} until others end theirs", f"{raised}{fewer}"
    )
