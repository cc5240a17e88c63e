"""The configuration as types: what every other module reads.

Strategy: parsed once at the edge, then trusted. Sizes are bytes, durations float seconds,
patterns and rules tuples.

Invariants: frozen, and no secret shows in a `repr`. No field has a default: what a key has that
nobody gave stands in `engine.config.keys`.
"""

from pathlib import Path
from typing import Literal, TextIO

import msgspec

from engine.config.scalars import Address, Secret, WorkersAddress
from engine.config.sources import OwnConfiguration
from engine.model.record import (
    Compression,
    Envelope,
    JsonMode,
    Layout,
    NumericMode,
    OnSchemaChange,
    OnUnrepresentable,
    SnapshotMode,
    TableRule,
)

Encryption = Literal["s3", "kms"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]


NewTables = Literal["capture", "report"]
SnapshotOrder = Literal["beside", "before"]


class SourceConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """Where changes come from.

    `own` is what only this kind of source has: its class says which kind it is. `rules` are the
    `[[source.table]]` tables in their order. `max_row_bytes`: None is `"auto"`, see
    `resolve_row_limit`. `hash_key` is the secret of columns that are written as hashes, whatever it
    was read from.
    """

    own: OwnConfiguration
    tables: tuple[str, ...]
    exclude: tuple[str, ...]
    rules: tuple[TableRule, ...]
    snapshot: SnapshotMode
    snapshot_order: SnapshotOrder
    snapshot_workers: WorkersAddress
    snapshot_tables: int
    snapshot_rows_per_second: int
    snapshot_segment_bytes: int
    new_tables: NewTables
    on_unrepresentable: OnUnrepresentable
    on_schema_change: OnSchemaChange
    max_row_bytes: int | None
    hash_key: Secret | None
    signals: bool
    messages: bool


class DestinationConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """Where objects go, and how they look. None: not given, the service's own default holds."""

    bucket: str
    prefix: str
    region: str | None
    endpoint_url: str | None
    role_arn: str | None
    external_id: Secret | None
    expected_bucket_owner: str | None
    sse: Encryption | None
    kms_key_id: str | None
    acl: str | None
    storage_class: str | None
    tags: tuple[tuple[str, str], ...]
    layout: Layout
    envelope: Envelope
    flat_prefix: str
    numeric: NumericMode
    json: JsonMode
    concurrency: int


class ChunkConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """When a chunk is cut (`max_bytes` counts compressed bytes), and how it is compressed."""

    max_bytes: int
    max_age_seconds: float
    max_rows: int
    compression: Compression


class QueueConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """One table's queue."""

    max_bytes: int


class EngineConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """The process. `memory_limit` bounds buffered bytes; None is `"auto"`.

    See `resolve_memory_limit`.
    """

    name: str
    memory_limit: int | None
    drain_seconds: float
    append_interval_seconds: float


class HttpConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """The server for metrics, health and status.

    `listen`: None, there is none. `token` is what its readers have to send, whatever it was read
    from (None: nothing). `token_file` is the file that it was read from, if it was one: it is read
    again while the engine runs.
    """

    listen: Address | None
    token: Secret | None
    token_file: Path | None


class LogConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """What is written to stderr."""

    level: LogLevel
    format: LogFormat

    def is_json(self, stream: TextIO) -> bool:
        """Whether what is written to `stream` is JSON."""
        return self.format == "json" or (self.format == "auto" and not stream.isatty())


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline."""

    source: SourceConfiguration
    destination: DestinationConfiguration
    chunk: ChunkConfiguration
    queue: QueueConfiguration
    engine: EngineConfiguration
    http: HttpConfiguration
    log: LogConfiguration
