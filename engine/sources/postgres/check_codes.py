"""The codes of what `tailrace check` looks at on a server (see `engine.model.check_code`)."""

from typing import Final

from engine.model.check_code import CheckCode

VERSION: Final = CheckCode("TR-PG-002", "version", "The server's version can be streamed from.")
WAL_LEVEL: Final = CheckCode("TR-PG-003", "wal_level", "The server writes changes into its log.")
REPLICATION: Final = CheckCode("TR-PG-004", "replication", "The role may stream changes.")
SLOT: Final = CheckCode("TR-PG-005", "slot", "The slot is ours and whole, or can be made.")
SLOTS: Final = CheckCode("TR-PG-006", "slots left", "The server has room for the slot.")
WALSENDERS: Final = CheckCode("TR-PG-007", "walsenders left", "The server has room for the stream.")
TABLES: Final = CheckCode("TR-PG-008", "tables", "There are tables to capture.")
IDENTITY: Final = CheckCode(
    "TR-PG-009", "replica identity", "Every captured table has a replica identity."
)
PUBLICATION: Final = CheckCode(
    "TR-PG-010", "publication", "The publication is there, or the role may make it."
)
PUBLISHED: Final = CheckCode(
    "TR-PG-011", "published", "The publication has every captured table, and every operation."
)
READING: Final = CheckCode("TR-PG-012", "read rights", "The role may read the tables' rows.")
UNLOGGED: Final = CheckCode("TR-PG-013", "unlogged", "The server's log has every captured table.")
FILTERS: Final = CheckCode(
    "TR-PG-014", "row filters", "The publication filters rows as the configuration says."
)
RULE_COLUMNS: Final = CheckCode("TR-PG-015", "rule columns", "Columns that rules name are there.")
KEPT: Final = CheckCode("TR-PG-016", "log kept", "The slot outlives a stop of the engine.")
TRANSACTIONS: Final = CheckCode(
    "TR-PG-017", "open transactions", "Nothing delays the making of the slot."
)
LOCKS: Final = CheckCode("TR-PG-018", "locks", "Nothing delays the making of the publication.")
TLS: Final = CheckCode("TR-PG-019", "tls", "Rows do not cross a network in the clear.")
ENCODING: Final = CheckCode("TR-PG-020", "encoding", "The database's text has a known encoding.")
COMMITS: Final = CheckCode("TR-PG-021", "commits", "No commit on the server waits for the engine.")
OLD_SNAPSHOTS: Final = CheckCode(
    "TR-PG-022", "old snapshots", "The server does not end snapshots for their age."
)
NAMES: Final = CheckCode("TR-PG-023", "names", "No column is called as a field of the envelope.")
CONDITIONS: Final = CheckCode("TR-PG-024", "conditions", "The server takes every `where`.")
STATEMENTS: Final = CheckCode("TR-PG-025", "statements", "DDL statements are recorded.")
CERTIFICATE: Final = CheckCode("TR-PG-026", "certificate", "Nobody else can pass for the server.")
CONNECTIONS: Final = CheckCode(
    "TR-PG-027", "connections left", "The server has room for the run's other sessions."
)

CODES: Final = tuple(value for value in dict(globals()).values() if isinstance(value, CheckCode))
"""Every code of this page, in its order."""
