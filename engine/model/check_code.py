"""The codes of `tailrace check`: one for each thing that it looks at.

Strategy: a code is what scripts, tickets and pages hold on to. It never changes its meaning, and
the code of a step that is gone is not given again. Its page is a section of docs/checks.md, whose
heading is the code alone. A source's own codes are in its room.
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
COST: Final = CheckCode("TR-CF-004", "cost", "What the requests to the bucket cost a month.")

# --- TR-EN: this process and its machine

PORT: Final = CheckCode("TR-EN-001", "port", "The port of metrics and health is free.")
DESCRIPTORS: Final = CheckCode(
    "TR-EN-002", "file descriptors", "The process may open as many files as it needs."
)
MEMORY: Final = CheckCode("TR-EN-003", "memory", "There is memory for what may be buffered.")

# --- the source: its other codes are in its own room

SOURCE: Final = CheckCode("TR-PG-001", "source", "The database answers.")

# --- TR-S3: the bucket

BUCKET: Final = CheckCode("TR-S3-001", "bucket", "The bucket answers, and the prefix is listed.")
WRITES: Final = CheckCode(
    "TR-S3-002", "conditional writes", "Objects are created, and none is overwritten."
)
BUCKET_RULES: Final = CheckCode(
    "TR-S3-003", "bucket rules", "No rule of the bucket takes away what the pipeline needs."
)

READS: Final = CheckCode("TR-S3-004", "reads", "Objects are read.")
AWS_IDENTITY: Final = CheckCode("TR-S3-005", "aws identity", "AWS knows who this process is.")
LOCATION: Final = CheckCode("TR-S3-006", "location", "The bucket's region is known.")
ATTRIBUTES: Final = CheckCode(
    "TR-S3-007", "attributes", "Objects may have the configured encryption, ACL and tags."
)
UPLOADS_LISTED: Final = CheckCode(
    "TR-S3-008", "uploads listed", "Uploads that a killed engine left are found."
)
UPLOADS_ABORTED: Final = CheckCode(
    "TR-S3-009", "uploads aborted", "Uploads that a killed engine left are thrown away."
)
PARTS: Final = CheckCode("TR-S3-010", "parts", "Large objects go up in parts.")
OBJECT_LOCK: Final = CheckCode("TR-S3-011", "object lock", "What keeps objects from deletion.")
DELETING: Final = CheckCode("TR-S3-012", "deleting", "Nothing is ever deleted.")

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
    "TR-JN-009", "writes-refused", "No statement of the application fails because of the pipeline."
)
POSITION: Final = CheckCode(
    "TR-JN-010", "position", "The source still has every change that is not durable yet."
)

CODES: Final = tuple(value for value in dict(globals()).values() if isinstance(value, CheckCode))
"""Every code of this page, in its order."""
