"""The codes of `tailrace check`: one for each thing that it looks at.

Strategy: a code is what scripts, tickets and pages hold on to. It never changes its meaning, and
the code of a step that is gone is not given again. Its page is a section of docs/checks.md, whose
heading is the code alone.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CheckCode:
    """`name`: what is looked at, in a word or two. `title`: what has to be so, as a sentence."""

    id: str
    name: str
    title: str

    @property
    def page(self) -> str:
        """Where it is explained."""
        return f"docs/checks.md#{self.id.lower()}"


# --- TR-CF: the configuration

CONFIGURATION: Final = CheckCode("TR-CF-001", "configuration", "The configuration can be read.")
DSN: Final = CheckCode("TR-CF-002", "dsn", "The connection string says where the database is.")
ROWS: Final = CheckCode("TR-CF-003", "rows", "Rows up to this size are captured.")

# --- TR-EN: this process and its machine

PORT: Final = CheckCode("TR-EN-001", "port", "The port of metrics and health is free.")

# --- TR-PG: PostgreSQL

SOURCE: Final = CheckCode("TR-PG-001", "source", "The database answers.")
COMMITS: Final = CheckCode("TR-PG-002", "commits", "No commit on the server waits for the engine.")
TABLES: Final = CheckCode("TR-PG-003", "tables", "Tables, publication and slot are there.")
NAMES: Final = CheckCode("TR-PG-004", "names", "No column is called as a field of the envelope.")
STATEMENTS: Final = CheckCode("TR-PG-005", "statements", "DDL statements are recorded.")

# --- TR-S3: the bucket

BUCKET: Final = CheckCode("TR-S3-001", "bucket", "The bucket answers, and the prefix is listed.")
WRITES: Final = CheckCode(
    "TR-S3-002", "conditional writes", "Objects are created, and none is overwritten."
)
BUCKET_RULES: Final = CheckCode(
    "TR-S3-003", "bucket rules", "No rule of the bucket takes away what the pipeline needs."
)

# --- TR-JN: the journal, and what stands against the pipeline's tables

JOURNAL: Final = CheckCode("TR-JN-001", "journal", "The journal is whole, and this pipeline's.")
PREFIX: Final = CheckCode("TR-JN-002", "prefix", "The prefix is this pipeline's alone.")
WATCH: Final = CheckCode("TR-JN-003", "catalog watch", "Nothing stands against a table.")
STREAM_PAUSED: Final = CheckCode("TR-JN-004", "stream-paused", "The stream is not paused.")
TABLE_PAUSED: Final = CheckCode("TR-JN-005", "table-paused", "No table is paused.")
NOT_CAPTURED: Final = CheckCode(
    "TR-JN-006", "not-captured", "Every captured table's changes arrive whole."
)
GAP: Final = CheckCode("TR-JN-007", "gap", "No changes are missing from the bucket.")
ROWS_LEFT_OUT: Final = CheckCode("TR-JN-008", "rows-left-out", "No row was left out.")
WRITES_REFUSED: Final = CheckCode(
    "TR-JN-009", "writes-refused", "The publication makes no statement of the application fail."
)

CODES: Final = tuple(value for value in dict(globals()).values() if isinstance(value, CheckCode))
"""Every code, in the order of this page."""
