"""A terminal of 80 columns for commands that run in the test's own process, and a real one."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from engine.cli.application import main
from engine.cli.terminal import cells

COLUMNS = 80


class _Screen(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self) -> None:
        self.taken = io.BytesIO()
        super().__init__(self.taken, encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> str:
        return self.taken.getvalue().decode()


@dataclass(frozen=True, slots=True)
class Shown:
    """What a command left on the screen."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in (self.out + self.err).splitlines()]


def shown(monkeypatch: pytest.MonkeyPatch, *words: str) -> Shown:
    """Run a command as in a terminal of 80 columns."""
    out, err = _Screen(), _Screen()
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(COLUMNS))
        patch.setenv("NO_COLOR", "1")
        patch.setenv("TERM", "dumb")
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code = main([*words])
    return Shown(code, out.shown, err.shown)


def too_wide(lines: list[str]) -> list[str]:
    """Lines that do not fit, and that could have been broken.

    A name, a key or a command stays in one piece, on a line of its own.
    """
    return [line for line in lines if cells(line) > COLUMNS and not _is_one_piece(line)]


def _is_one_piece(line: str) -> bool:
    text = line.strip().removeprefix("next: ").removeprefix("hint: ").strip()
    return " " not in text or text.startswith("tailrace ") or _is_one_command(text)


def _is_one_command(text: str) -> bool:
    return text.startswith("`") and text.find("`", 1) == len(text) - 1


def on_a_real_terminal(*words: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """A command in a process of its own, on a terminal of 80 columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "engine", *words]
    with subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env=dict(environment)
    ) as process:
        os.close(its)
        content = b""
        try:
            while taken := os.read(ours, 65536):
                content += taken
        except OSError:
            # Nobody holds its other end any more.
            pass
        finally:
            os.close(ours)
        code = process.wait(20)
    return code, content.decode()
