"""The embedded servers, for the demonstration, the tests and the load tests."""

from engine.demo.postgres_server import FAST_SETTINGS, EmbeddedPostgres, StopMode
from engine.demo.s3_server import EmbeddedS3
from engine.demo.server_process import ServerError

__all__ = ["FAST_SETTINGS", "EmbeddedPostgres", "EmbeddedS3", "ServerError", "StopMode"]
