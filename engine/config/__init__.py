"""The configuration: typed (`model`), read and checked at the edge (`load`)."""

from engine.config.load import Loaded, Setting, default_log, load, load_destination
from engine.config.memory import resolve_memory_limit, resolve_row_limit
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
from engine.config.problems import ConfigurationProblems, Origin, Problem

__all__ = [
    "Address",
    "ChunkConfiguration",
    "Configuration",
    "ConfigurationProblems",
    "DestinationConfiguration",
    "EngineConfiguration",
    "HttpConfiguration",
    "Loaded",
    "LogConfiguration",
    "Origin",
    "Problem",
    "QueueConfiguration",
    "Secret",
    "Setting",
    "SourceConfiguration",
    "default_log",
    "load",
    "load_destination",
    "resolve_memory_limit",
    "resolve_row_limit",
]
