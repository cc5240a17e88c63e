"""The result file and the display, kept up to date as runs end.

Invariant: after every run the file on disk is whole and holds all runs so far.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from load_tests.display import Display
from load_tests.machine import machine
from load_tests.plan import Plan
from load_tests.result import Group, Outcome, Result, Run, Verification


class Recorder:
    """Where a scenario hands what it measured."""

    def __init__(self, path: Path, plan: Plan, began: datetime, display: Display) -> None:
        self._path = path
        self._display = display
        self.result = Result(
            began=began.isoformat(),
            arguments=tuple(sys.argv[1:]),
            plan=plan,
            machine=machine(),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        display.begin(self.result)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show what goes on, until it is done."""
        with self._display.step(text):
            yield

    def begin(self, server: str, *, frame_bytes_mean: float) -> None:
        """From now on, runs are against this server."""
        self.result.groups.append(Group(server=server, frame_bytes_mean=frame_bytes_mean))
        self._display.group(self.result.groups[-1])

    def add(self, run: Run) -> None:
        """Keep and show one run."""
        self.result.groups[-1].add(run)
        self._write()
        self._display.run(run)

    def verified(self, verification: Verification) -> None:
        """Keep what the bucket proved about the newest server's runs."""
        self.result.groups[-1].verification = verification
        self._write()

    def end(self, *, outcome: Outcome, error: str = "", hint: str = "") -> None:
        """Close the result, also where it is not whole, and show it."""
        self.result.outcome = outcome
        self.result.error = error
        self.result.ended = datetime.now(UTC).isoformat()
        self._write()
        self._display.end(self.result, self._path, hint)

    def _write(self) -> None:
        text = msgspec.json.format(msgspec.json.encode(self.result), indent=2)
        # An interrupt between two writes leaves the older one whole.
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_bytes(text + b"\n")
        os.replace(partial, self._path)  # noqa: PTH105 - the pair reads as one step
