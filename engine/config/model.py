"""The configuration as types: what every other module reads.

Strategy: parsed once at the edge, then trusted. Sizes are bytes, durations float seconds,
patterns and rules tuples.

Invariants: frozen, and no secret shows in a `repr`. No field has a default: what a key has that
nobody gave stands in `engine.config.keys`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from engine.model.record import (
    Compression,
    Envelope,
    JsonMode,
    Layout,
    NumericMode,
    OnUnrepresentable,
    TableRule,
)

Encryption = Literal["s3", "kms"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Secret:
    """Text that shows itself only when asked by name."""

    text: str

    def reveal(self) -> str:
        """The text itself: for the call that needs it, never for a message."""
        return self.text

    def __repr__(self) -> str:
        return "Secret(…)" if self.text else "Secret('')"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens. `host` has no brackets; port 0 means a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class SourceConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """Where changes come from.

    `dsn` is a libpq string or URI, whatever it was read from (`dsn_file`, if it was one, which is
    read again at each connect); empty: libpq's own environment
    (PGHOST, …) says it all. `rules` are the `[[source.table]]` tables in their order.
    `max_row_bytes`: None is `"auto"`, see `resolve_row_limit`.
    """

    type: Literal["postgres"]
    dsn: Secret
    dsn_file: Path | None
    slot: str
    publication: str
    tables: tuple[str, ...]
    exclude: tuple[str, ...]
    rules: tuple[TableRule, ...]
    snapshot: Literal["never"]
    on_unrepresentable: OnUnrepresentable
    max_row_bytes: int | None


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
    """The server for metrics, health and status. None: there is none."""

    listen: Address | None


class LogConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """What is written to stderr."""

    level: LogLevel
    format: LogFormat


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline."""

    source: SourceConfiguration
    destination: DestinationConfiguration
    chunk: ChunkConfiguration
    queue: QueueConfiguration
    engine: EngineConfiguration
    http: HttpConfiguration
    log: LogConfiguration
