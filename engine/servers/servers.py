"""The embedded servers, for the demonstration, the tests and the load tests."""

from engine.servers.postgres_server import FAST_SETTINGS, EmbeddedPostgres, StopMode
from engine.servers.s3_server import EmbeddedS3
from engine.servers.server_process import ServerError

__all__ = ["FAST_SETTINGS", "EmbeddedPostgres", "EmbeddedS3", "ServerError", "StopMode"]
