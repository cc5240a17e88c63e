"""The record configuration: everything that shapes a line, a key, or which changes are read.

It is written into the journal when a writer opens it, so that a successor with another
configuration can make a planned object again exactly as its planner would have. Secrets are in it
by key id only.
"""

import fnmatch
import hashlib
from collections.abc import Iterable
from typing import Literal

import msgspec

from engine.model.schema import Column, TableName

Envelope = Literal["standard", "debezium", "flat"]
NumericMode = Literal["string", "number"]
JsonMode = Literal["embed", "string"]
Layout = Literal["hive", "plain"]
Compression = Literal["gzip", "zstd"]
OnUnrepresentable = Literal["stop", "gap"]
SnapshotMode = Literal["initial", "never"]
OnSchemaChange = Literal["continue", "pause", "gap"]

FLAT_PREFIX = "_"
FLAT_FIELDS = ("op", "position", "commit_ts", "version", "unchanged", "json_null")
"""What the flat envelope adds to a row's columns, each name behind a prefix."""

ROW_BYTES_MAX = 1024 * 1024 * 1024
"""No source sends a larger one."""


class TableRule(msgspec.Struct, frozen=True):
    """Columns of the tables that `match` (as in `tables`): `include`, or all but `exclude`.

    Of those, the columns in `hash` are written as hashes. `where` is a condition in the source's
    language that the rows meet which are read; empty: all are. It shapes no line. Nor does
    `on_schema_change`: what a changed shape does, None: what it does to other tables.
    """

    match: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    hash: tuple[str, ...] = ()
    where: str = ""
    on_schema_change: OnSchemaChange | None = None

    def is_included(self, column: str) -> bool:
        """Whether `column` is written, be it as a hash."""
        return column in self.include if self.include else column not in self.exclude


class RecordConfiguration(msgspec.Struct, frozen=True):
    """What a line, a key and the choice of changes follow from, besides the source's log.

    `through` names what the log is read through, in the source. `tables` and `exclude` are patterns
    `schema.table` with `*` and `?`, matched against raw names; a table is captured when one of
    `tables` matches and none of `exclude`. `stream` holds the source's protocol options and session
    settings that shape values, as (name, value) pairs. A row that is larger than `row_bytes_max` as
    text or as a line, or that no record can hold, stops the stream or is left out, as
    `on_unrepresentable` says: a replay leaves out the same. `snapshot` says whether the rows that
    a table has already are read too. `hash_key_id` is the id of the secret that hashes are made
    under (`HashKey.id`), empty where no rule has any. `on_schema_change` is what a row of a changed
    shape does: its version begins, the stream pauses before it, or the table is passed over.
    `messages` is the name under which messages of the source's log are published as if they were a
    table's rows, empty where they are not.

    The defaults are the journal's format: what a field means that an entry leaves out. They decide
    nothing for an operator: `engine.app` sets every field from the configuration.
    """

    through: str
    tables: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    rules: tuple[TableRule, ...] = ()
    envelope: Envelope = "standard"
    numeric: NumericMode = "string"
    json: JsonMode = "embed"
    layout: Layout = "hive"
    compression: Compression = "gzip"
    stream: tuple[tuple[str, str], ...] = ()
    flat_prefix: str = FLAT_PREFIX
    row_bytes_max: int = ROW_BYTES_MAX
    on_unrepresentable: OnUnrepresentable = "stop"
    snapshot: SnapshotMode = "never"
    hash_key_id: str = ""
    on_schema_change: OnSchemaChange = "continue"
    messages: str = ""

    @property
    def shown_through(self) -> str:
        """Names what decides which commits the log shows: through another one, others may show."""
        return f"{self.through} with messages" if self.messages else self.through

    def takes_snapshot(self, table: TableName) -> bool:
        """Whether rows that `table` has already are read: it is captured, and a table."""
        is_table = str(table) != self.messages
        return self.snapshot != "never" and is_table and self.captures(table)

    def captures(self, table: TableName) -> bool:
        """Whether changes of `table` are wanted."""
        if self.messages and str(table) == self.messages:
            return True
        return any(matches(pattern, table) for pattern in self.tables) and not any(
            matches(pattern, table) for pattern in self.exclude
        )

    def rule_of(self, table: TableName) -> TableRule | None:
        """The rule that decides about the table: the first one that matches it."""
        return next((rule for rule in self.rules if matches(rule.match, table)), None)

    def where_of(self, table: TableName) -> str:
        """The condition that the table's rows meet which are wanted; empty: all are."""
        rule = self.rule_of(table)
        return rule.where if rule is not None else ""

    def on_schema_change_of(self, table: TableName) -> OnSchemaChange:
        """What a row of a changed shape of the table does."""
        rule = self.rule_of(table)
        own = rule.on_schema_change if rule is not None else None
        return own or self.on_schema_change

    def is_included(self, table: TableName, column: str) -> bool:
        """Whether `column` is written, be it as a hash."""
        rule = self.rule_of(table)
        return rule is None or rule.is_included(column)

    def is_hashed(self, table: TableName, column: str) -> bool:
        """Whether the column's values are written as hashes. A column that is left out is not."""
        rule = self.rule_of(table)
        return rule is not None and column in rule.hash and rule.is_included(column)

    def flat_prefix_of(self, table: TableName, columns: Iterable[Column]) -> str:
        """What the flat envelope's own names begin with, for a table that has these columns.

        Empty with another envelope. Where a column that is written has one of those names, the
        prefix is repeated until none has. It follows from the columns alone: a replay gives the
        same.
        """
        if self.envelope != "flat":
            return ""
        taken = {column.name for column in columns if self.is_included(table, column.name)}
        prefix = self.flat_prefix
        while any(prefix + field in taken for field in FLAT_FIELDS):
            prefix += self.flat_prefix
        return prefix

    def record_digest(self, table: TableName) -> str:
        """Names what shapes this table's lines: the same digest, the same lines."""
        rule = self.rule_of(table) or TableRule("")
        columns: tuple[object, ...] = (rule.include, rule.exclude)
        if rule.hash:
            columns += (rule.hash, self.hash_key_id)
        prefix = self.flat_prefix if self.envelope == "flat" else ""
        shaping = (self.envelope, prefix, self.numeric, self.json, self.stream, columns)
        return hashlib.sha256(msgspec.json.encode(shaping)).hexdigest()[:16]


def matches(pattern: str, table: TableName) -> bool:
    """Whether `pattern` (`schema.table`, with `*` and `?`) names `table`; case matters."""
    schema, dot, name = pattern.partition(".")
    if not dot:
        schema, name = "public", pattern
    return _is_like(table.schema, schema) and _is_like(table.table, name)


def _is_like(name: str, pattern: str) -> bool:
    # A bracket is a character of the name here, not the begin of a set.
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))
