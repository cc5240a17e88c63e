"""The configuration: typed (`model`), read and checked at the edge (`load`)."""

from engine.config.keys import HTTP_TOKEN
from engine.config.load import (
    Loaded,
    Setting,
    default_log,
    load,
    load_destination,
    load_destination_and_port,
    load_log,
    load_login,
    load_port,
)
from engine.config.memory import (
    available_memory_bytes,
    resolve_memory_limit,
    resolve_row_limit,
    resolve_workers,
)
from engine.config.model import (
    ChunkConfiguration,
    Configuration,
    DestinationConfiguration,
    EngineConfiguration,
    HttpConfiguration,
    LogConfiguration,
    QueueConfiguration,
    SourceConfiguration,
)
from engine.config.postgres import PostgresConfiguration
from engine.config.problems import ConfigurationProblems, Origin, Problem
from engine.config.scalars import Address, Secret, WorkersAddress
from engine.config.secret_file import read_secret
from engine.config.sources import OwnConfiguration
from engine.config.values import Unfit

__all__ = [
    "HTTP_TOKEN",
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
    "OwnConfiguration",
    "PostgresConfiguration",
    "Problem",
    "QueueConfiguration",
    "Secret",
    "Setting",
    "SourceConfiguration",
    "Unfit",
    "WorkersAddress",
    "available_memory_bytes",
    "default_log",
    "load",
    "load_destination",
    "load_destination_and_port",
    "load_log",
    "load_login",
    "load_port",
    "read_secret",
    "resolve_memory_limit",
    "resolve_row_limit",
    "resolve_workers",
]
