"""Where `tailrace read` writes: stdout or a file, and the file that keeps the cursor.

Invariant: a file has its name only when it is whole and the disk has it. So a cursor is never kept
for output that is not there.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from engine.cli.output import ResultUnwritten
from engine.model.errors import ReadRefused


class Target:
    """Stdout, or a file that appears under its name when it is whole."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.{os.getpid()}.part") if path else None
        self._file = sys.stdout.buffer

    def __enter__(self) -> Self:
        if self._part is not None:
            with _told(self._part):
                self._file = self._part.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        if self._part is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def write(self, content: bytes) -> None:
        """Hand it over, or most of it."""
        with _told(self._part):
            self._file.write(content)

    def finish(self) -> None:
        """All is written: with this, the system has it, and a file has its name."""
        with _told(self._part):
            self._file.flush()
            if self._part is not None and self._path is not None:
                os.fsync(self._file.fileno())
                self._part.replace(self._path)
                _sync_folder(self._path)


@contextmanager
def _told(path: Path | None) -> Iterator[None]:
    """Say what the system said. A pipe that nobody reads is no error of ours."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        where = str(path) if path is not None else "stdout"
        raise ResultUnwritten(
            f"{where} could not be written: {reason}",
            hint="Make room, or send it elsewhere, and run the same command again.",
        ) from error


def kept_cursor(path: Path | None) -> str:
    """The cursor in the file; empty where there is no file yet."""
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ResultUnwritten(f"{path} cannot be read: {error.strerror}") from error
    if not text:
        raise ReadRefused(
            "cursor-malformed",
            f"{path} is empty",
            hint="Remove it to begin with what is there, or put the last cursor into it.",
        )
    return text


def keep_cursor(path: Path, cursor: str) -> None:
    """Put the cursor in the place of the one before, all at once."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with _told(path):
        try:
            with part.open("w", encoding="ascii") as file:
                file.write(cursor + "\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path)
        finally:
            part.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
