"""What an SQLSTATE means to us: try again, refuse, or ask the slot.

Strategy: one table. A code that is listed decides, else its class (its first two characters). What
is not listed is tried again, because it may pass. A failure that does not pass is alarmed where it
repeats. docs/errors.md shows the same table.

Invariant: no SQLSTATE says that changes are lost. Some say that the slot has to be looked at. Then
its own words (`wal_status`, `invalidation_reason`, `conflicting`) or a comparison of positions
decide. The texts here are ours, so they hold no values of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Meaning(Enum):
    """What follows from an SQLSTATE; the value is the word that docs/errors.md uses."""

    RETRY = "retry"
    """It may pass by itself: try again."""
    REFUSE = "refuse"
    """Somebody has to change something first: end by name."""
    ASK_SLOT = "ask the slot"
    """Lost where the slot says so; else tried again."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a code means: in our words, with what to do about it."""

    meaning: Meaning
    text: str
    hint: str


def _retry(
    text: str, hint: str = "it is tried again; the server's log has the details"
) -> Judgement:
    return Judgement(Meaning.RETRY, text, hint)


def _refuse(text: str, hint: str = "the server's log has the details") -> Judgement:
    return Judgement(Meaning.REFUSE, text, hint)


def _ask_slot(text: str, hint: str) -> Judgement:
    return Judgement(Meaning.ASK_SLOT, text, hint)


_POOLER: Final = "connect to the server itself, not through a pooler such as pgbouncer"
_RIGHTS: Final = "grant the right that the server's message names to the role in source.dsn"
_DATA: Final = (
    "what is in the log already cannot be mended: change such values in the table, keep new ones"
    " out by a CHECK (convert the database to UTF-8 at the best), then start anew with another slot"
    " and prefix; the server's log names the value"
)

CLASSES: Final[Mapping[str, Judgement]] = {
    "00": _refuse("the server reports success where an error is due"),
    "01": _refuse("the server reports a warning where an error is due"),
    "02": _refuse("the server has no such data"),
    "03": _refuse("the statement is not complete"),
    "08": _retry("the connection was lost"),
    "09": _refuse("a trigger of the server failed"),
    "0A": _refuse(
        "the server does not support this", "connect to a primary, PostgreSQL 14 or newer"
    ),
    "0B": _refuse("a transaction could not begin"),
    "0F": _refuse("a large object's locator is not valid"),
    "0L": _refuse("the role may not grant this", _RIGHTS),
    "0P": _refuse("the role is not valid", "check user in source.dsn"),
    "0Z": _refuse("the server's diagnostics failed"),
    "10": _refuse("an XML query failed"),
    "20": _refuse("a CASE found no branch"),
    "21": _refuse("a question had more than one answer"),
    "22": _refuse("a value cannot be represented", _DATA),
    "23": _refuse("a constraint of the database refuses this"),
    "24": _refuse("a cursor is in the wrong state", _POOLER),
    "25": _refuse("the transaction's state does not allow this", _POOLER),
    "26": _refuse("a prepared statement is not there", _POOLER),
    "27": _refuse("a trigger changed the data meanwhile"),
    "28": _refuse("the role was not let in", "check user, password and pg_hba.conf"),
    "2B": _refuse("others depend on what was to be dropped"),
    "2D": _refuse("the transaction cannot end here", _POOLER),
    "2F": _refuse("a function of the server failed"),
    "34": _refuse("a cursor is not there", _POOLER),
    "38": _refuse("a function of an extension failed"),
    "39": _refuse("a function of an extension gave no usable answer"),
    "3B": _refuse("a savepoint is not there", _POOLER),
    "3D": _refuse("the database is not there", "check dbname in source.dsn"),
    "3F": _refuse("the schema is not there"),
    "40": _retry("the server rolled the transaction back"),
    "42": _refuse("the server does not know what was asked for, or the role may not use it"),
    "44": _refuse("a view's check refuses this"),
    "53": _retry("the server is short of a resource (memory, disk, connections)"),
    "54": _refuse("a limit of the server's program was exceeded"),
    "55": _ask_slot(
        "an object of the server is not in the state that this needs",
        "it is tried again; the server's log has the details",
    ),
    "57": _retry("somebody, or a timeout, stopped it on the server"),
    "58": _ask_slot(
        "the server failed to read or write a file",
        "it is tried again; see the server's log and its disk",
    ),
    "72": _retry("the server's snapshot is too old"),
    "F0": _retry("the server's configuration file has an error", "mend it on the server"),
    "HV": _refuse("a foreign table failed"),
    "P0": _refuse(
        "code in the database raised an error",
        "look for event triggers and for functions that shadow the server's own",
    ),
    "XX": _retry(
        "the server met an error in itself",
        "it is tried again; the server's log has the details, report it to its vendor",
    ),
}
"""Two characters: what a class means where the code itself is not in `CODES`."""

CODES: Final[Mapping[str, Judgement]] = {
    "22021": _refuse("the bytes of a value are no text in the database's encoding", _DATA),
    "22P05": _refuse("a value holds a character that UTF-8 does not have", _DATA),
    "25006": _refuse(
        "the server, the database or the role is read-only",
        "connect to the primary; on it, look at default_transaction_read_only of role and database",
    ),
    "25P03": _retry("a timeout of the server ended an idle transaction"),
    "25P04": _retry("a timeout of the server ended a transaction"),
    "42501": _refuse("the role lacks a right", _RIGHTS),
    "42704": _refuse("the server has no such object"),
    "53100": _retry("the server's disk is full", "make room on the server's disk"),
    "53200": _retry(
        "the server is out of memory, or its lock table is full",
        "where its message says shared memory, raise max_locks_per_transaction and restart the"
        " server, or lower source.snapshot_tables: a snapshot locks each partition twice; else the"
        " server's log has the details",
    ),
    "53300": _retry(
        "the server has no connection to spare",
        "raise max_connections or max_wal_senders, or end connections that nobody needs",
    ),
    "53400": _refuse(
        "a configured limit of the server is reached",
        "raise max_replication_slots, or drop a slot that nobody needs",
    ),
    "55006": _retry("somebody else uses it"),
    "55P02": _refuse("a setting cannot be changed in this session"),
    "55P03": _retry("a lock was not to be had in time"),
    "55P04": _refuse("a new value of an enum is not usable yet"),
    "57014": _retry("somebody, or a timeout, cancelled it on the server"),
    "57P01": _retry("an administrator ended the connection, or the server stops"),
    "57P02": _retry("the server crashed"),
    "57P03": _retry("the server is starting or stopping"),
    "57P04": _retry("the database was dropped"),
    "57P05": _retry("a timeout of the server ended an idle session"),
    "58030": _ask_slot(
        "the server failed to read or write a file",
        "it is tried again; see the server's log and its disk",
    ),
    "58P01": _ask_slot(
        "the server lacks a file, such as a piece of its log",
        "it is tried again; see the server's log and its disk",
    ),
    "XX001": _retry(
        "the server found damaged data",
        "restore the server from a backup; Tailrace names what cannot be read again",
    ),
    "XX002": _retry("the server found a damaged index", "REINDEX what the server's log names"),
}
"""Five characters: codes that mean something else than their class, or can be said better."""

UNKNOWN: Final = _retry("the server, or a program before it, gave an error of its own")
"""The judgement of a code whose class PostgreSQL does not have."""

_ENDED_CONNECTIONS: Final = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03"})


def judged(sqlstate: str) -> Judgement:
    """What `sqlstate` (five characters) means."""
    return CODES.get(sqlstate) or CLASSES.get(sqlstate[:2]) or UNKNOWN


def ends_connection(sqlstate: str) -> bool:
    """Whether it tells of a connection that ended, rather than of what was asked for.

    So does its absence: the server said nothing.
    """
    return not sqlstate or sqlstate.startswith("08") or sqlstate in _ENDED_CONNECTIONS
