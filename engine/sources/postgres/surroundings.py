"""The surroundings of a start: what stops none, and what an operator should know before it.

Strategy: settings of the server, our connection and open transactions are read once, and judged in
pure functions, one a code. Only `check` asks.

Invariant: no judge here raises: what stops a start is judged in `judges`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final, TypeAlias

from engine.model.amount import size_text, time_text
from engine.model.check_code import CheckCode
from engine.model.plural import counted
from engine.model.schema import TableName
from engine.model.trial import Finding, Judgement
from engine.sources.postgres import check_codes as codes
from engine.sources.postgres.locks import STOPS_PUBLISHING, locked_names
from engine.sources.postgres.session import WAL_SENDERS_HINT, Session
from engine.sources.postgres.situation import Situation
from engine.sources.postgres.statements import names_text
from engine.sources.postgres.synchronous import names_warning

_KEEP_MIB_PLENTY: Final = 1024
"""A slot that may keep less is lost soon after the engine stops on a busy server."""

_IDLE_SECONDS_PLENTY: Final = 24 * 3600

_OPEN_SECONDS_SOME: Final = 60
"""An application's own transactions end within it."""

_SHOWN_MAX: Final = 3

_SURROUNDINGS: Final = """
SELECT pg_catalog.current_setting('max_wal_senders')::int,
       (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication),
       (SELECT setting::pg_catalog.int8 FROM pg_catalog.pg_settings
        WHERE name OPERATOR(pg_catalog.=) 'max_slot_wal_keep_size'),
       (SELECT setting::pg_catalog.int8 FROM pg_catalog.pg_settings
        WHERE name OPERATOR(pg_catalog.=) 'idle_replication_slot_timeout'),
       (SELECT setting::pg_catalog.int8 FROM pg_catalog.pg_settings
        WHERE name OPERATOR(pg_catalog.=) 'old_snapshot_threshold'),
       pg_catalog.current_setting('server_encoding'),
       (SELECT version FROM pg_catalog.pg_stat_ssl
        WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND ssl),
       pg_catalog.host(pg_catalog.inet_client_addr()),
       pg_catalog.current_setting('synchronous_standby_names'),
       pg_catalog.current_setting('application_name')
"""

# Every transaction that has a number holds a lock on it, which every role sees. Ages are shown to
# members of pg_read_all_stats, and of one's own sessions.
_TRANSACTIONS: Final = """
SELECT DISTINCT coalesce(l.pid, 0), coalesce(a.usename, x.owner, '')::pg_catalog.text,
       coalesce(a.datname, x.database, '')::pg_catalog.text, coalesce(x.gid, ''),
       extract(epoch FROM pg_catalog.now() OPERATOR(pg_catalog.-)
               coalesce(x.prepared, a.xact_start))::pg_catalog.int8
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid OPERATOR(pg_catalog.=) l.pid
LEFT JOIN pg_catalog.pg_prepared_xacts AS x
  ON l.pid IS NULL AND x.transaction OPERATOR(pg_catalog.=) l.transactionid
WHERE l.locktype OPERATOR(pg_catalog.=) 'transactionid' AND l.granted
  AND l.mode OPERATOR(pg_catalog.=) 'ExclusiveLock'
  AND coalesce(l.pid, 0) OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()
ORDER BY 5 DESC NULLS LAST
LIMIT 100
"""


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A transaction that has written, or may: `gid` where it is prepared, else `pid`.

    `seconds`: since when it is open; None where that is not shown to us.
    """

    pid: int
    owner: str
    database: str
    gid: str
    seconds: int | None

    @property
    def is_long(self) -> bool:
        """Whether nobody knows when it ends. Somebody may have forgotten one that is prepared."""
        return bool(self.gid) or (self.seconds or 0) > _OPEN_SECONDS_SOME


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What stops no start, and what an operator should know before it.

    Of settings that the server does not have, None. `keep_mib`: what a slot may keep of the log;
    -1: no limit. `tls`: the protocol of our connection, None without TLS; `client_address` is None
    for a UNIX socket. `is_verified`: libpq compared the server's certificate with an authority's.
    `locked` are tables that CREATE PUBLICATION would wait for.
    """

    walsender_count_max: int
    walsender_count: int
    keep_mib: int | None
    idle_slot_seconds: int | None
    old_snapshot_minutes: int | None
    encoding: str
    tls: str | None
    client_address: str | None
    synchronous_names: str
    application_name: str
    is_verified: bool = False
    transactions: tuple[OpenTransaction, ...] = ()
    locked: frozenset[TableName] = frozenset()


async def read_surroundings(session: Session) -> Surroundings:
    """What is looked at. Raises SourceError. Cancellation changes nothing."""
    [row] = await session.rows(_SURROUNDINGS, doing="reading the server's settings")
    found = await session.rows(_TRANSACTIONS, doing="looking for open transactions")
    transactions = tuple(OpenTransaction(*each) for each in found)
    locked = await locked_names(session, STOPS_PUBLISHING)
    settings = Surroundings(*row)
    return replace(
        settings,
        is_verified=session.is_certificate_verified,
        transactions=transactions,
        locked=frozenset(locked),
    )


def surrounding_judgements(around: Surroundings, situation: Situation) -> list[Judgement]:
    """What every judge of the surroundings says of a start in that situation."""
    found = [(code, judge(around, situation)) for code, judge in _JUDGES]
    return [Judgement(code, finding) for code, finding in found if finding is not None]


def _walsenders(around: Surroundings, situation: Situation) -> Finding:
    count, count_max = around.walsender_count, around.walsender_count_max
    text = f"{count} of {count_max} used (max_wal_senders)"
    if situation.slot.active_pid is not None:
        return Finding(text)
    if count >= count_max:
        return Finding(
            f"{text}: there is none left for this run",
            WAL_SENDERS_HINT,
        )
    if situation.configuration.snapshot == "never":
        return Finding(f"{text}; a run takes one more")
    if count + 1 >= count_max:
        return Finding(
            f"{text}; a run takes the last one: a snapshot takes another for a moment, and waits",
            WAL_SENDERS_HINT,
        )
    return Finding(f"{text}; a run takes one more, and a snapshot another for a moment")


def _kept(around: Surroundings, situation: Situation) -> Finding:
    """How long the slot lasts while nobody reads it."""
    del situation
    texts, hints = [], []
    keep, idle = around.keep_mib, around.idle_slot_seconds
    if keep is None or keep < 0:
        texts.append(
            "the slot may keep as much log as the disk holds (max_slot_wal_keep_size = -1)"
        )
    else:
        texts.append(
            f"the slot is lost once it would keep more than {size_text(keep << 20)} of log"
            " (max_slot_wal_keep_size)"
        )
        if keep < _KEEP_MIB_PLENTY:
            hints.append(
                "give it room for the longest stop of the engine: ALTER SYSTEM SET"
                " max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf()"
            )
    if idle:
        texts.append(
            f"and once nobody has read it for {time_text(idle)} (idle_replication_slot_timeout)"
        )
        if idle < _IDLE_SECONDS_PLENTY:
            hints.append(
                "a stop of the engine must not lose it: ALTER SYSTEM SET"
                " idle_replication_slot_timeout = '7d', or 0; SELECT pg_reload_conf()"
            )
    return Finding(", ".join(texts), "; ".join(hints))


def _transactions(around: Surroundings, situation: Situation) -> Finding | None:
    """A slot is made when every transaction has ended that was open before."""
    if situation.slot.exists:
        return None
    long = [each for each in around.transactions if each.is_long]
    if long:
        shown = ", ".join(map(_transaction_text, long[:_SHOWN_MAX]))
        more = f" and {len(long) - _SHOWN_MAX} more" if len(long) > _SHOWN_MAX else ""
        return Finding(
            f"the first run waits for the end of {counted(len(long), 'long transaction')}:"
            f" {shown}{more}",
            "; ".join(map(_end_statement, long[:_SHOWN_MAX])),
        )
    if count := len(around.transactions):
        hidden = sum(each.seconds is None for each in around.transactions)
        unseen = (
            f"; since when {hidden} of them are open is not shown to this role" if hidden else ""
        )
        return Finding(f"the first run waits for {counted(count, 'open transaction')}{unseen}")
    return Finding("none is open that the making of the slot would wait for")


def _transaction_text(each: OpenTransaction) -> str:
    since = "" if each.seconds is None else f", for {time_text(each.seconds)}"
    what = f"prepared {each.gid!r}" if each.gid else f"process {each.pid}"
    return f"{what} of {each.owner!r} in database {each.database!r}{since}"


def _end_statement(each: OpenTransaction) -> str:
    if each.gid:
        name = each.gid.replace("'", "''")
        return f"in its database: COMMIT PREPARED '{name}' or ROLLBACK PREPARED '{name}'"
    return f"end it, or SELECT pg_terminate_backend({each.pid})"


def _locks(around: Surroundings, situation: Situation) -> Finding | None:
    if situation.publication is not None or not situation.is_first:
        return None
    if locked := sorted(around.locked & set(situation.keyed)):
        return Finding(
            f"somebody has locked {names_text(locked)}: the making of the publication waits, or"
            " leaves them for later",
            "end the transactions that hold these locks: pg_locks lists them",
        )
    return Finding("nobody has a captured table locked")


def _tls(around: Surroundings, situation: Situation) -> Finding:
    del situation
    if around.tls is not None:
        return Finding(f"the connection is encrypted ({around.tls})")
    address = around.client_address
    if _is_local(address):
        return Finding("not used, and not needed: the database is on this machine")
    return Finding(
        f"not used: rows cross the network from {address} in the clear",
        "sslmode=verify-full and sslrootcert=… in source.dsn, and ssl = on at the server",
    )


def _certificate(around: Surroundings, situation: Situation) -> Finding | None:
    """Who stands between could answer with a certificate of his own, and is given the password."""
    del situation
    if around.tls is None or _is_local(around.client_address):
        return None
    if around.is_verified:
        return Finding("the server's certificate is compared with an authority's")
    return Finding(
        "nobody compares the server's certificate: whoever stands between could pass for it",
        "sslmode=verify-full and sslrootcert=FILE in source.dsn (RDS: its certificate bundle), or"
        " sslrootcert=system for a public authority's",
    )


def _is_local(address: str | None) -> bool:
    return address is None or ip_address(address).is_loopback


def _encoding(around: Surroundings, situation: Situation) -> Finding:
    if around.encoding != "SQL_ASCII":
        return Finding(f"the database's encoding is {around.encoding}")
    ends = situation.configuration.on_unrepresentable != "gap"
    comes = "stops the engine" if ends else "is left out as a gap"
    return Finding(
        f"the database knows no encoding (SQL_ASCII): a row with text that is not UTF-8 {comes}",
        'find and repair such rows, or set source.on_unrepresentable = "gap"',
    )


def _old_snapshots(around: Surroundings, situation: Situation) -> Finding | None:
    minutes = around.old_snapshot_minutes
    if minutes is None or situation.configuration.snapshot == "never":
        return None
    if minutes < 0:
        return Finding("the server ends no snapshot for its age (old_snapshot_threshold = -1)")
    return Finding(
        f"old_snapshot_threshold = {minutes} min: what a table's snapshot cannot read within that"
        " time is read anew, again and again",
        "ALTER SYSTEM SET old_snapshot_threshold = -1, then restart the server",
    )


def _commits(around: Surroundings, situation: Situation) -> Finding:
    del situation
    warning = names_warning(around.synchronous_names, around.application_name)
    return Finding("do not wait for this engine") if warning is None else Finding(*warning)


_Judge: TypeAlias = Callable[[Surroundings, Situation], Finding | None]

_JUDGES: Final[tuple[tuple[CheckCode, _Judge], ...]] = (
    (codes.TLS, _tls),
    (codes.CERTIFICATE, _certificate),
    (codes.WALSENDERS, _walsenders),
    (codes.KEPT, _kept),
    (codes.TRANSACTIONS, _transactions),
    (codes.LOCKS, _locks),
    (codes.ENCODING, _encoding),
    (codes.OLD_SNAPSHOTS, _old_snapshots),
    (codes.COMMITS, _commits),
)
