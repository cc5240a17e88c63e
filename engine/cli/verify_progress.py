"""How far a verification is, on stderr: a moving line in a terminal, now and then one in a log."""

import sys
import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.status import Status

LINE_SECONDS: Final = 10.0


class SilentProgress:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def reached(self, phase: str, done: int, total: int | None) -> None:
        """Nothing."""


class LineProgress(SilentProgress):
    """A line when a verification takes long: at most one in ten seconds."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def reached(self, phase: str, done: int, total: int | None) -> None:
        """Say it, unless something was said just now."""
        now = time.monotonic()
        if now - self._said_at >= LINE_SECONDS:
            self._said_at = now
            sys.stderr.write(_text(phase, done, total) + "\n")


class TerminalProgress(SilentProgress):
    """One line that changes in place and goes when all is done."""

    def __init__(self) -> None:
        self._status = Status("reading the journal", console=Console(stderr=True))

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._status.stop()

    def reached(self, phase: str, done: int, total: int | None) -> None:
        """Change the line."""
        self._status.update(_text(phase, done, total))


def _text(phase: str, done: int, total: int | None) -> str:
    return f"{phase}: {done}" if total is None else f"{phase}: {done} of {total}"
