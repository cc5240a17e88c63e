"""The configuration: typed (`model`), read and checked at the edge (`load`)."""

from engine.config.memory import resolve_memory_limit
from engine.config.model import (
    Address,
    ChunkConfiguration,
    Configuration,
    DestinationConfiguration,
    EngineConfiguration,
    HttpConfiguration,
    LogConfiguration,
    QueueConfiguration,
    Secret,
    SourceConfiguration,
)

__all__ = [
    "Address",
    "ChunkConfiguration",
    "Configuration",
    "DestinationConfiguration",
    "EngineConfiguration",
    "HttpConfiguration",
    "LogConfiguration",
    "QueueConfiguration",
    "Secret",
    "SourceConfiguration",
    "resolve_memory_limit",
]
