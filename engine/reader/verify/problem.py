"""What can be wrong with a bucket: a code that stays, the key it is about, and a sentence.

Codes are a contract: scripts compare them. `docs/verify.md` lists each with its meaning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Code(StrEnum):
    """One word for each way in which a bucket can contradict its journal, or the journal itself."""

    NO_JOURNAL = "no_journal"
    NEWER_FORMAT = "newer_format"
    ENTRY_MISSING = "entry_missing"
    ENTRY_UNREADABLE = "entry_unreadable"
    ENTRY_MISPLACED = "entry_misplaced"
    HASH_MISMATCH = "hash_mismatch"
    EPOCH_WRONG = "epoch_wrong"
    NONCE_REPEATED = "nonce_repeated"
    SOURCE_CHANGED = "source_changed"
    STATE_DIFFERS = "state_differs"
    DURABLE_BACK = "durable_back"
    DURABLE_AHEAD = "durable_ahead"
    PLAN_BEFORE_DURABLE = "plan_before_durable"
    PLAN_COUNTS = "plan_counts"
    PLAN_ORDER = "plan_order"
    CHAIN_BROKEN = "chain_broken"
    VERSION_NUMBER = "version_number"
    VERSION_UNKNOWN = "version_unknown"
    VERSION_BACK = "version_back"
    VERSION_WRONG = "version_wrong"
    HOUR_BACK = "hour_back"
    KEY_WRONG = "key_wrong"
    RESTATEMENT_DIFFERS = "restatement_differs"
    RESTATED_LATE = "restated_late"
    GAP_WRONG = "gap_wrong"
    REQUEST_WRONG = "request_wrong"
    PAUSE_WRONG = "pause_wrong"
    ACCEPTED_WRONG = "accepted_wrong"
    SNAPSHOT_ORDER = "snapshot_order"
    SNAPSHOT_ATTEMPT = "snapshot_attempt"
    SNAPSHOT_DIFFERS = "snapshot_differs"
    SNAPSHOT_UNCAPTURED = "snapshot_uncaptured"
    SNAPSHOT_UNASKED = "snapshot_unasked"
    STREAM_EARLY = "stream_early"
    LANE_BROKEN = "lane_broken"
    TRUNCATE_WRONG = "truncate_wrong"
    NAMED_TWICE = "named_twice"
    LIST_MISSING = "list_missing"
    LIST_DIFFERS = "list_differs"
    UNFINISHED_WRONG = "unfinished_wrong"
    OBJECT_MISSING = "object_missing"
    OBJECT_EMPTY = "object_empty"
    OBJECT_ARCHIVED = "object_archived"
    SIZE_DIFFERS = "size_differs"
    METADATA_DIFFERS = "metadata_differs"
    UNNAMED_OBJECT = "unnamed_object"
    SCHEMA_MISSING = "schema_missing"
    SCHEMA_DIFFERS = "schema_differs"
    BODY_UNREADABLE = "body_unreadable"
    CONTENT_DIFFERS = "content_differs"
    ROWS_DIFFER = "rows_differ"
    OPS_DIFFER = "ops_differ"
    LINE_MALFORMED = "line_malformed"
    RECORD_MISPLACED = "record_misplaced"
    POSITION_ORDER = "position_order"
    POSITIONS_DIFFER = "positions_differ"
    JOURNAL_EXPIRED = "journal_expired"
    OBJECTS_EXPIRED = "objects_expired"
    PREFIX_NESTED = "prefix_nested"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `key` is the whole key of the object that it is about."""

    code: Code
    key: str
    text: str

    @property
    def remedy(self) -> str:
        """What an operator does about it."""
        return REMEDIES[self.code]


_RESTORE_ENTRY: Final = (
    "Journal entries are written once: restore this one from the bucket's versions or a backup, "
    "then take the right to overwrite and delete under the prefix away from whoever did it."
)
_RESTORE_LIST: Final = (
    "A list belongs to its journal entry and is written once: restore it from the bucket's "
    "versions or a backup, then take the right to overwrite and delete under the prefix away from "
    "whoever did it."
)
_RESTORE_OBJECT: Final = (
    "Objects are written once: restore this one from the bucket's versions or a backup, then take "
    "the right to overwrite and delete under the prefix away from whoever did it."
)
_REPORT: Final = (
    "The journal contradicts itself though its hashes hold: an engine wrote it so. Keep the bucket "
    "as it is and report it with the journal's entries around this one."
)

REMEDIES: Final[Mapping[Code, str]] = {
    Code.NO_JOURNAL: "Check destination.bucket and destination.prefix, or run the pipeline first.",
    Code.NEWER_FORMAT: "A newer release has written here: verify with that release or a newer one.",
    **dict.fromkeys(
        (
            Code.ENTRY_MISSING,
            Code.ENTRY_UNREADABLE,
            Code.ENTRY_MISPLACED,
            Code.HASH_MISMATCH,
        ),
        _RESTORE_ENTRY,
    ),
    **dict.fromkeys((Code.LIST_MISSING, Code.LIST_DIFFERS), _RESTORE_LIST),
    Code.STATE_DIFFERS: (
        "A state file only shortens a start: restore it from the bucket's versions, or remove it."
    ),
    **dict.fromkeys(
        (
            Code.EPOCH_WRONG,
            Code.NONCE_REPEATED,
            Code.SOURCE_CHANGED,
            Code.DURABLE_BACK,
            Code.DURABLE_AHEAD,
            Code.PLAN_BEFORE_DURABLE,
            Code.PLAN_COUNTS,
            Code.PLAN_ORDER,
            Code.CHAIN_BROKEN,
            Code.VERSION_NUMBER,
            Code.VERSION_UNKNOWN,
            Code.VERSION_BACK,
            Code.VERSION_WRONG,
            Code.HOUR_BACK,
            Code.KEY_WRONG,
            Code.RESTATEMENT_DIFFERS,
            Code.RESTATED_LATE,
            Code.GAP_WRONG,
            Code.REQUEST_WRONG,
            Code.PAUSE_WRONG,
            Code.ACCEPTED_WRONG,
            Code.SNAPSHOT_ORDER,
            Code.SNAPSHOT_ATTEMPT,
            Code.SNAPSHOT_DIFFERS,
            Code.SNAPSHOT_UNCAPTURED,
            Code.SNAPSHOT_UNASKED,
            Code.STREAM_EARLY,
            Code.LANE_BROKEN,
            Code.TRUNCATE_WRONG,
            Code.NAMED_TWICE,
            Code.UNFINISHED_WRONG,
        ),
        _REPORT,
    ),
    **dict.fromkeys(
        (
            Code.OBJECT_MISSING,
            Code.OBJECT_EMPTY,
            Code.SIZE_DIFFERS,
            Code.METADATA_DIFFERS,
            Code.BODY_UNREADABLE,
            Code.CONTENT_DIFFERS,
            Code.ROWS_DIFFER,
            Code.OPS_DIFFER,
            Code.LINE_MALFORMED,
            Code.RECORD_MISPLACED,
            Code.POSITION_ORDER,
            Code.POSITIONS_DIFFER,
            Code.SCHEMA_MISSING,
            Code.SCHEMA_DIFFERS,
        ),
        _RESTORE_OBJECT,
    ),
    Code.OBJECT_ARCHIVED: (
        "Restore the object from its archive class for as long as verify --depth full takes."
    ),
    Code.JOURNAL_EXPIRED: (
        "A lifecycle rule takes the journal's old entries: the pipeline goes on without them. Keep "
        "them where all is to be proved; docs/retention.md says what may expire."
    ),
    Code.OBJECTS_EXPIRED: (
        "A lifecycle rule takes old objects, or somebody removed the first ones. Keep them where "
        "all is to be proved; docs/retention.md says what may expire."
    ),
    Code.PREFIX_NESTED: (
        "Give every pipeline a prefix of its own, neither inside another one's nor around it."
    ),
    Code.UNNAMED_OBJECT: (
        "Somebody else writes under this prefix, or journal entries are gone: move the object "
        "away, and give every pipeline a prefix of its own."
    ),
}
