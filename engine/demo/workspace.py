"""Where a demonstration lives: its folder, its servers, the engine's configuration file.

    {folder}/tailrace.toml      what the engine runs with, and what the user may run it with
             credentials        for the bucket, in AWS's form; open to the user alone
             engine.log
             views.sql          what `tailrace views duckdb` printed
             commands.log       what it and `tailrace read` said
             postgres/  s3/     the servers' data

Strategy: the folder outlives the servers. A demonstration on an old folder starts them again on
the same data, on other ports, and the engine carries on from the bucket.

Invariant: one demonstration at a time has the folder; the lock goes with its process.
"""

import fcntl
import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import psycopg

from engine.demo import shop
from engine.model.errors import ConfigurationError
from engine.servers.s3_server import REGION
from engine.servers.server_process import LOOPBACK, free_ports
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3

BUCKET: Final = "tailrace-demo"
PREFIX: Final = "demo"

# Measured: a change takes 220 bytes of WAL, as much again in tables, and 30 in the bucket.
# While the proof reads, a row of `orders` takes 220 more, as a line of `tailrace read`.
_BYTES_A_CHANGE: Final = 850
_BYTES_AT_LEAST: Final = 400 * 1024 * 1024

_CONFIGURATION: Final = """\
# Made by `tailrace demo` for the servers that it runs. Ports change at each start.

[source]
dsn = {dsn}
tables = [{tables}]
snapshot_workers = "local:1"    # the database and its writers need a CPU too

[destination]
bucket = {bucket}
prefix = {prefix}
region = {region}
endpoint_url = {endpoint_url}

[chunk]
max_age = "3s"          # the longest that a change waits: short, so that objects appear soon

[http]
listen = {listen}

[log]
format = "text"
"""


class Workspace:
    """The folder, and inside `with` the servers that run on it. Its calls block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration_file = folder / "tailrace.toml"
        self.credentials_file = folder / "credentials"
        self.engine_log = folder / "engine.log"
        self.commands_log = folder / "commands.log"
        self.views_file = folder / "views.sql"
        self._stack = ExitStack()
        self._servers: tuple[EmbeddedPostgres, EmbeddedS3] | None = None
        self._http_port = 0

    @classmethod
    def prepare(cls, directory: Path | None, change_count: float) -> Self:
        """Make the folder, or take one that a demonstration made before.

        Raises ConfigurationError where it cannot be used, or the disk has no room for so many
        changes.
        """
        try:
            folder = _made(directory)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise ConfigurationError(
                f"{directory or tempfile.gettempdir()} cannot be used: {error.strerror}",
                hint="choose another folder: tailrace demo --directory FOLDER",
            ) from error
        workspace = cls(folder)
        if any(folder.iterdir()) and not workspace.configuration_file.exists():
            raise ConfigurationError(
                f"{folder} is not empty, and no demonstration made it",
                hint="choose an empty folder, or one that does not exist yet",
            )
        needed = _BYTES_AT_LEAST + change_count * _BYTES_A_CHANGE
        if free < needed:
            raise ConfigurationError(
                f"{folder} has {free >> 20:,} MiB free, about {int(needed) >> 20:,} are needed",
                hint="choose a --directory on another disk, fewer --seconds or a smaller --rate",
            )
        return workspace

    @property
    def postgres(self) -> EmbeddedPostgres:
        assert self._servers is not None, "not started"
        return self._servers[0]

    @property
    def s3(self) -> EmbeddedS3:
        assert self._servers is not None, "not started"
        return self._servers[1]

    @property
    def dsn(self) -> str:
        """The shop's database."""
        return self.postgres.dsn_of(shop.DATABASE)

    @property
    def engine_url(self) -> str:
        """Where the engine serves its status."""
        return f"http://{LOOPBACK}:{self._http_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What leads AWS's default chain to the bucket's credentials and to nothing else."""
        return {
            "AWS_SHARED_CREDENTIALS_FILE": str(self.credentials_file),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> Self:
        """Start the servers on the folder, and write the files.

        Raises ServerError, and ConfigurationError while another demonstration has the folder.
        """
        with ExitStack() as stack:
            self._lock(stack.enter_context((self.folder / "lock").open("w")))
            postgres = stack.enter_context(
                EmbeddedPostgres(
                    data_directory=self.folder / "postgres", settings=dict(FAST_SETTINGS)
                )
            )
            # Leaving its `with` block is a crash. Data that stay are better stopped in order.
            stack.callback(postgres.stop)
            s3 = stack.enter_context(EmbeddedS3(data_directory=self.folder / "s3"))
            s3.create_bucket(BUCKET)
            _create_database(postgres)
            self._servers = postgres, s3
            self._write_files()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def remove(self) -> None:
        """Delete the folder. The servers have ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def size_bytes(self) -> int:
        """What the folder takes on the disk."""
        files = (path.lstat() for path in self.folder.rglob("*"))
        return sum(found.st_blocks * 512 for found in files)

    def _lock(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another demonstration runs in {self.folder}",
                hint="end it, or choose another --directory",
            ) from error

    def _write_files(self) -> None:
        [self._http_port] = free_ports(1)
        self.configuration_file.write_text(
            _CONFIGURATION.format(
                dsn=_toml(self.dsn),
                tables=_toml(shop.CAPTURED),
                bucket=_toml(BUCKET),
                prefix=_toml(PREFIX),
                region=_toml(REGION),
                endpoint_url=_toml(self.s3.endpoint_url),
                listen=_toml(f"{LOOPBACK}:{self._http_port}"),
            )
        )
        self.credentials_file.touch(mode=0o600)
        self.credentials_file.write_text(
            "[default]\n"
            f"aws_access_key_id = {self.s3.access_key_id}\n"
            f"aws_secret_access_key = {self.s3.secret_access_key}\n"
        )


def _made(directory: Path | None) -> Path:
    """The folder, existing; a fresh temporary one where none is named."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        return directory.resolve()
    folder = Path(tempfile.mkdtemp(prefix="tailrace-demo-"))
    # For root, PostgreSQL runs as another account, which has to pass through this folder.
    folder.chmod(0o755)
    return folder.resolve()


def _create_database(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        query = "SELECT FROM pg_database WHERE datname = %s"
        if connection.execute(query, [shop.DATABASE]).fetchone() is None:
            connection.execute(f"CREATE DATABASE {shop.DATABASE}".encode())


def _toml(text: str) -> str:
    """A string as TOML writes it; for these, as JSON does."""
    return json.dumps(text)
