"""A terminal of 80 columns for commands that run in the test's own process, and a real one."""

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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


class Seat:
    """Somebody at a real terminal of 80 columns, in front of a command in a process of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]", terminal: int) -> None:
        self.process = process
        self.content = b""
        self._seen = 0
        self._terminal = terminal

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace").replace("\r\n", "\n")

    def sees(self, text: str) -> None:
        """Wait for a text that comes after what was seen before."""
        while text not in self.text[self._seen :]:
            assert self._reads(), self.text
        self._seen = self.text.index(text, self._seen) + len(text)

    def types(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def interrupts(self) -> None:
        """Ctrl-C, once the process waits for an answer.

        One that comes between the question and the waiting is seen with the next key only: so it is
        with any program that Python's `input` asks for.
        """
        asleep = 0
        while asleep < 5:
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.01)
        self.types("\x03")

    def leaves(self) -> int:
        """Wait for the end: the exit code."""
        while self._reads():
            pass
        return self.process.wait(60)

    def _reads(self) -> bool:
        try:
            taken = os.read(self._terminal, 65536)
        except OSError:
            # Nobody holds its other end any more.
            return False
        self.content += taken
        return bool(taken)


@contextlib.contextmanager
def seated(
    *words: str, environment: Mapping[str, str], folder: Path | None = None
) -> Iterator[Seat]:
    """A command on a real terminal; it is killed after the block where it still runs."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    # The terminal is the process's own, so that Ctrl-C comes to it as a signal.
    code = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    run = "import runpy; runpy.run_module('engine', run_name='__main__', alter_sys=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; {run}", *words],
        stdin=its,
        stdout=its,
        stderr=its,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
    ) as process:
        os.close(its)
        try:
            yield Seat(process, ours)
        finally:
            process.kill()
            os.close(ours)


def on_a_real_terminal(*words: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """A command that asks nothing: its exit code, and what it left on the screen."""
    with seated(*words, environment=environment) as seat:
        return seat.leaves(), seat.text
