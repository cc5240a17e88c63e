"""The configuration as types: what every other module reads.

Strategy: parsed once at the edge, then trusted. Sizes are bytes, durations float seconds,
patterns and rules tuples. Invariant: frozen, and no secret shows in a `repr`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from engine.envelope import (
    FLAT_PREFIX,
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

    type: Literal["postgres"] = "postgres"
    dsn: Secret = Secret("")
    dsn_file: Path | None = None
    slot: str = "tailrace"
    publication: str = "tailrace"
    tables: tuple[str, ...] = ("public.*",)
    exclude: tuple[str, ...] = ()
    rules: tuple[TableRule, ...] = ()
    snapshot: Literal["never"] = "never"
    on_unrepresentable: OnUnrepresentable = "stop"
    max_row_bytes: int | None = None


class DestinationConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """Where objects go, and how they look. None: not given, the service's own default holds."""

    bucket: str
    prefix: str
    region: str | None = None
    endpoint_url: str | None = None
    role_arn: str | None = None
    external_id: Secret | None = None
    expected_bucket_owner: str | None = None
    sse: Encryption | None = None
    kms_key_id: str | None = None
    acl: str | None = None
    storage_class: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    layout: Layout = "hive"
    envelope: Envelope = "standard"
    flat_prefix: str = FLAT_PREFIX
    numeric: NumericMode = "string"
    json: JsonMode = "embed"
    concurrency: int = 16


class ChunkConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """When a chunk is cut (`max_bytes` counts compressed bytes), and how it is compressed."""

    max_bytes: int = 16 * MIB
    max_age_seconds: float = 30.0
    max_rows: int = 1_000_000
    compression: Compression = "gzip"


class QueueConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """One table's queue."""

    max_bytes: int = 8 * MIB


class EngineConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """The process. `memory_limit` bounds buffered bytes; None is `"auto"`.

    See `resolve_memory_limit`.
    """

    name: str = "tailrace"
    memory_limit: int | None = None
    drain_seconds: float = 25.0
    append_interval_seconds: float = 1.0


class HttpConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """The server for metrics, health and status. None: there is none."""

    # All interfaces: Prometheus and the load balancer come from elsewhere.
    listen: Address | None = Address("0.0.0.0", 9464)  # noqa: S104


class LogConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """What is written to stderr."""

    level: LogLevel = "info"
    format: LogFormat = "auto"


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline."""

    source: SourceConfiguration
    destination: DestinationConfiguration
    chunk: ChunkConfiguration = ChunkConfiguration()
    queue: QueueConfiguration = QueueConfiguration()
    engine: EngineConfiguration = EngineConfiguration()
    http: HttpConfiguration = HttpConfiguration()
    log: LogConfiguration = LogConfiguration()
