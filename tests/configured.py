"""What the engine is told in tests: the defaults of the table of keys, and what a test changes."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec

from engine import app, kinds
from engine.config import Configuration, DestinationConfiguration, load
from engine.destinations.s3_settings import S3Settings
from engine.journal.settings import Settings

# A file that is empty, so that no file of the working directory is read.
_NO_FILE: Final = Path(os.devnull)
_REQUIRED: Final = {
    "TAILRACE_SOURCE__DSN": "host=db",
    "TAILRACE_SOURCE__SNAPSHOT": "never",
    "TAILRACE_DESTINATION__BUCKET": "bucket",
    "TAILRACE_DESTINATION__PREFIX": "lake",
}


def make_configuration() -> Configuration:
    """One with nothing but the keys that have to be given; the prefix is `lake`."""
    return load(_NO_FILE, _REQUIRED).configuration


def make_destination(**changes: Any) -> DestinationConfiguration:
    """`[destination]`; `changes` are its fields."""
    return msgspec.structs.replace(make_configuration().destination, **changes)


def destination_file(target: DestinationConfiguration, folder: Path, before: str = "") -> str:
    """The path of a configuration that has nothing but a destination, and `before`."""
    path = folder / "tailrace.toml"
    path.write_text(
        f"""{before}
        [destination]
        bucket = "{target.bucket}"
        prefix = "{target.prefix}"
        region = "us-east-1"
        endpoint_url = "{target.endpoint_url}"
        """
    )
    return str(path)


def make_s3_settings(**changes: Any) -> S3Settings:
    """What the S3 client is told; `changes` are its fields."""
    return replace(kinds.s3_settings(make_destination()), **changes)


def make_settings(**changes: Any) -> Settings:
    """What the pipeline is told; `changes` are its fields."""
    return replace(app.pipeline_settings(make_configuration()), **changes)
