"""A folder on this machine, or a part of a bucket: files that appear whole, and only where free."""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final, Protocol, TypeVar

from engine import app
from engine.config import DestinationConfiguration
from engine.model.errors import DestinationRefused
from engine.reader.patience import answered

_T = TypeVar("_T")
_TYPES: Final = {".json": "application/json", ".parquet": "application/vnd.apache.parquet"}


class Folder(Protocol):
    """Names are relative, with slashes. Every method raises DestinationError."""

    @property
    def location(self) -> str:
        """Where it is, in words for a message."""
        ...

    def names(self, under: str) -> Iterator[str]:
        """The files whose names begin with `under`."""
        ...

    def get(self, name: str) -> bytes | None:
        """A file's content. None: there is none."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write a file whose name nobody else uses. When this returns, it is there for good."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Create a file, whole, where its name is free. False: another one is there.

        After an error it is there, or not. When this returns True, it is there for good.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class LocalFolder:
    """A `Folder` on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def location(self) -> str:
        """See Folder."""
        return str(self._path)

    def names(self, under: str) -> Iterator[str]:
        """See Folder."""
        folder = self._path / under
        with _told(folder):
            try:
                found = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
            except FileNotFoundError:
                found = []
        return (under + name for name in found)

    def get(self, name: str) -> bytes | None:
        """See Folder."""
        path = self._path / name
        with _told(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def put(self, name: str, content: bytes) -> None:
        """See Folder."""
        path = self._path / name
        with _told(path):
            self._make_folder(path.parent)
            with path.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _sync(path.parent)

    def create(self, name: str, content: bytes) -> bool:
        """See Folder."""
        path = self._path / name
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        self.put(str(part.relative_to(self._path)), content)
        with _told(path):
            try:
                # A link, unlike a rename, does not take the place of what is there.
                os.link(part, path)
            except FileExistsError:
                return False
            finally:
                part.unlink()
            _sync(path.parent)
            return True

    def _make_folder(self, path: Path) -> None:
        if not path.is_dir():
            self._make_folder(path.parent)
            path.mkdir(exist_ok=True)
            _sync(path.parent)

    def close(self) -> None:
        """See Folder."""


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise DestinationRefused(
            f"{path}: {reason}",
            code=type(error).__name__,
            hint="The same command goes on from what is committed.",
        ) from error


class BucketFolder:
    """A `Folder` in a bucket. It has a loop of its own, which runs while something is asked."""

    def __init__(self, destination: DestinationConfiguration) -> None:
        self._bucket = destination.bucket
        self._prefix = destination.prefix
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._store = self._runner.run(
            self._stack.enter_async_context(app.open_bucket(destination))
        )

    @property
    def location(self) -> str:
        """See Folder."""
        return f"s3://{self._bucket}/{self._prefix}"

    def names(self, under: str) -> Iterator[str]:
        """See Folder."""
        begin = self._key("")

        async def listed() -> list[str]:
            return [one.key.removeprefix(begin) async for one in self._store.list(begin + under)]

        return iter(self._answer(listed))

    def get(self, name: str) -> bytes | None:
        """See Folder."""
        return self._answer(lambda: self._store.get(self._key(name)))

    def put(self, name: str, content: bytes) -> None:
        """See Folder."""
        # The name is ours alone: where it is taken, an attempt before was applied.
        self._created(name, content, in_one_request=False)

    def create(self, name: str, content: bytes) -> bool:
        """See Folder."""
        # Where it is taken, an attempt before, whose answer was lost, may have been applied.
        return self._created(name, content, in_one_request=True) or self.get(name) == content

    def _created(self, name: str, content: bytes, *, in_one_request: bool) -> bool:
        type_ = _TYPES[name[name.rindex(".") :]]
        return self._answer(
            lambda: self._store.create(
                self._key(name),
                content,
                content_type=type_,
                metadata={},
                in_one_request=in_one_request,
            )
        )

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _answer(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        return self._runner.run(answered(attempt))

    def close(self) -> None:
        """See Folder."""
        try:
            self._runner.run(self._stack.aclose())
        finally:
            self._runner.close()
