"""A real PostgreSQL server on loopback: from the wheel, or from a folder of programs.

Strategy: initdb once, then the bare `postgres` program under a watchdog, its settings written anew
at each start. The server is ready when it answers *and* says that it serves our data directory. A
port that was free may have been taken by another server meanwhile, and nobody must write into that
one.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg.conninfo import make_conninfo

from engine.servers.postgres_binaries import (
    Account,
    debian_bin_directory,
    is_reachable,
    server_account,
    wheel_bin_directory,
)
from engine.servers.server_process import (
    LOOPBACK,
    ServerCommand,
    ServerError,
    ServerProcess,
    free_ports,
    log_tail,
)

SUPERUSER = "postgres"
_SETTINGS_FILE = "tailrace.conf"
_START_SECONDS_MAX = 60.0
_START_ATTEMPTS_MAX = 5
_DEFAULT_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
}
# A test's server never has to survive a power cut. Without fsync it still survives kill -9, because
# the kernel has what was written.
FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off"}


class StopMode(Enum):
    """How PostgreSQL stops, in pg_ctl's words; the value is the signal that asks for it."""

    SMART = signal.SIGTERM
    FAST = signal.SIGINT
    IMMEDIATE = signal.SIGQUIT


class EmbeddedPostgres:
    """A PostgreSQL server of ours, with `wal_level = logical`, no passwords, and loopback only.

    `start` and `stop` may alternate: port and data stay the same. `close` also removes the data,
    unless the caller gave the directory; leaving the `with` block closes. `settings` are
    postgresql.conf's and may be changed while the server is down.

    All calls block; async callers use `asyncio.to_thread`.
    """

    def __init__(
        self,
        *,
        bin_directory: Path | None = None,
        data_directory: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a server. Without `bin_directory`, the wheel's programs."""
        self.bin_directory = bin_directory or wheel_bin_directory()
        self.settings = {**_DEFAULT_SETTINGS, **(settings or {})}
        self._account = server_account()
        # Short, since the path of a UNIX socket has at most 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="tailrace-pg-"))
        self._give_to_account(self._folder)
        self.data_directory = data_directory or self._folder / "data"
        self.log = self._folder / "postgres.log"
        self._process: ServerProcess | None = None
        self._port: int | None = None

    @classmethod
    def debian(cls, major: int = 15, *, settings: Mapping[str, str] | None = None) -> Self:
        """Prepare a server of Debian's package. Raises ServerError if that is not installed."""
        return cls(bin_directory=debian_bin_directory(major), settings=settings)

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1, the same at every start."""
        assert self._port is not None, "not started"
        return self._port

    @property
    def dsn(self) -> str:
        """A connection string, in libpq's words, to the database `postgres` as superuser."""
        return self.dsn_of("postgres")

    @property
    def socket_directory(self) -> Path:
        """The folder of the server's UNIX socket: a `host` for libpq."""
        return self._folder

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    @property
    def process_id(self) -> int:
        """The server's process, for measuring what it uses."""
        assert self._process is not None, "not started"
        return self._process.pid

    def dsn_of(self, database: str, *, user: str = SUPERUSER, by_socket: bool = False) -> str:
        """Return libpq's connection string to a database, over TCP or the UNIX socket."""
        host = str(self.socket_directory) if by_socket else LOOPBACK
        return make_conninfo(host=host, port=self.port, user=user, dbname=database)

    def program(self, name: str) -> Path:
        """Return the path of `psql`, `pgbench`, `pg_recvlogical`, … of the server's own version."""
        path = self.bin_directory / name
        if not path.exists():
            raise ServerError(f"{path} does not exist")
        return path

    def start(self) -> None:
        """Start, and wait until connections are accepted; the first time, make the data directory.

        Raises ServerError with the end of the server's log.
        """
        assert not self.is_running, "already started"
        if not (self.data_directory / "PG_VERSION").exists():
            self._initialize()
        if self._port is not None:
            self._start_on(self._port)
            return
        for attempt in range(1, _START_ATTEMPTS_MAX + 1):
            (port,) = free_ports(1)
            try:
                self._start_on(port)
            except ServerError:
                # Perhaps somebody was quicker to take the port. Any other reason fails in the same
                # way next time.
                if attempt == _START_ATTEMPTS_MAX or "in use" not in log_tail(self.log):
                    raise
            else:
                self._port = port
                return

    def stop(self, mode: StopMode = StopMode.FAST, *, seconds_max: float = 10.0) -> None:
        """Stop and keep the data. After `seconds_max` the stop becomes an immediate one.

        A fast stop first sends the rest of the WAL to every walsender's client and waits until that
        has confirmed it: a client that does not read uses all of `seconds_max`.
        """
        if self._process is not None:
            self._process.end((mode.value, signal.SIGQUIT, signal.SIGKILL), seconds_max)
            self._process = None

    def kill(self) -> None:
        """End all of the server's processes by SIGKILL: a crash."""
        if self._process is not None:
            children = _children(self._process.pid)
            self._process.end((signal.SIGKILL,))
            self._process = None
            # Orphaned backends would end by themselves, but hold the shared memory until then.
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

    def close(self) -> None:
        """Stop at once and remove what this object made."""
        self.stop(StopMode.IMMEDIATE)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _initialize(self) -> None:
        """Make the data directory: UTF-8, locale C, trusting every connection from this machine."""
        self.data_directory.mkdir(parents=True, exist_ok=True)
        self._give_to_account(self.data_directory)
        _refuse_unreachable((self.data_directory, self.bin_directory), self._account)
        arguments = [
            str(self.program("initdb")),
            f"--pgdata={self.data_directory}",
            f"--username={SUPERUSER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]
        done = subprocess.run(  # noqa: S603 - the arguments are our own.
            arguments,
            cwd=self._folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            # The terminal's Ctrl-C must not reach initdb: if it ends halfway, it leaves half a
            # folder.
            start_new_session=True,
            user=None if self._account is None else self._account.user,
            group=None if self._account is None else self._account.group,
            extra_groups=None if self._account is None else (),
        )
        if done.returncode != 0:
            raise ServerError(f"initdb failed: {done.stderr.strip()}")
        with (self.data_directory / "postgresql.conf").open("a") as configuration:
            configuration.write(f"include_if_exists = '{_SETTINGS_FILE}'\n")

    def _start_on(self, port: int) -> None:
        self._write_settings(port)
        process = ServerProcess(
            ServerCommand(
                arguments=(str(self.program("postgres")), "-D", str(self.data_directory)),
                directory=self._folder,
                environment=self._environment(),
                log=self.log,
                end_signal=signal.SIGQUIT,
                temporary_paths=(self._folder,),
                user=None if self._account is None else self._account.user,
                group=None if self._account is None else self._account.group,
            )
        )
        dsn = make_conninfo(
            host=LOOPBACK, port=port, user=SUPERUSER, dbname="postgres", connect_timeout=2
        )
        process.wait_ready(lambda: self._answers(dsn), _START_SECONDS_MAX)
        self._process = process

    def _answers(self, dsn: str) -> bool:
        """Tell whether our server accepts connections. Raises ServerError if another one does."""
        try:
            with psycopg.connect(dsn) as connection:
                row = connection.execute("SHOW data_directory").fetchone()
        except psycopg.OperationalError:
            return False
        # Another server on the port: ours is about to end because of that, and its log says so.
        return row is not None and Path(row[0]).resolve() == self.data_directory.resolve()

    def _write_settings(self, port: int) -> None:
        settings = {
            **self.settings,
            "port": str(port),
            "unix_socket_directories": str(self.socket_directory),
        }
        path = self.data_directory / _SETTINGS_FILE
        path.write_text("".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items()))
        self._give_to_account(path)

    def _give_to_account(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.user, self._account.group)

    def _environment(self) -> dict[str, str]:
        """Nothing of the caller's: PGDATA, PGPORT, LANG and others would change the server."""
        return {"PATH": os.defpath, "HOME": str(self._folder), "LC_ALL": "C"}


def _quoted(value: str) -> str:
    """Quote a value for postgresql.conf."""
    return "'" + value.replace("'", "''") + "'"


def _refuse_unreachable(paths: tuple[Path, ...], account: Account | None) -> None:
    """Raise ServerError where the server's account could not pass through a folder's parents."""
    for path in paths:
        if account is not None and not is_reachable(path.resolve(), account):
            raise ServerError(
                f"PostgreSQL cannot run as root, and {account.name} cannot enter {path}",
                hint="choose a directory under /var/tmp, or run as an ordinary user",
            )


def _children(process_id: int) -> tuple[int, ...]:
    """Return a process's children; none where the kernel does not list them."""
    path = Path(f"/proc/{process_id}/task/{process_id}/children")
    return tuple(int(word) for word in path.read_text().split()) if path.exists() else ()
