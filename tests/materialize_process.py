"""`tailrace materialize` in a process of its own, which stops where a test wants it to.

Processes are forked by a server that has imported everything, so they begin at once.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyiceberg.catalog
import pyiceberg.utils.config

from engine.materialize import opening

STEPS: Final = ("load", "prepare", "write", "settle", "commit")
SECONDS: Final = 60

_context = multiprocessing.get_context("forkserver")
# A name that cannot be imported there is passed over in silence, and each process takes longer.
_context.set_forkserver_preload(
    [
        "engine.cli.application",
        "engine.cli.materialize",
        "engine.destinations.s3_connection",
        "engine.library",
        "engine.materialize.delta",
        "engine.materialize.folder",
        "engine.materialize.iceberg",
        "engine.materialize.job",
        "engine.materialize.parquet",
        "engine.operate.logs",
        "engine.reader.formats.arrow",
        "pyiceberg.catalog.sql",
        "pyiceberg.io.pyarrow",
    ]
)


class Stopping:
    """A `LakeTable` that tells before and after each step, and waits at one of them."""

    def __init__(self, lake: Any, connection: Connection, stop: str) -> None:
        self._lake = lake
        self._connection = connection
        self._stop = stop
        self._counts = dict.fromkeys(STEPS, 0)

    def __getattr__(self, name: str) -> Any:
        step = getattr(self._lake, name)
        if name not in STEPS:
            return step

        def stepped(*words: Any) -> Any:
            self._counts[name] += 1
            self._reached(f"before {name} {self._counts[name]}")
            answer = step(*words)
            self._reached(f"after {name} {self._counts[name]}")
            return answer

        return stepped

    def _reached(self, place: str) -> None:
        if place == self._stop:
            self._connection.send(place)
            self._connection.recv()


def _main(
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    connection: Connection,
    stop: str,
) -> None:
    os.environ.update(environment)
    # It was read when the module was imported.
    pyiceberg.catalog._ENV_CONFIG = pyiceberg.utils.config.Config()
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    open_lake = opening.open_lake
    opening.open_lake = lambda *place: Stopping(open_lake(*place), connection, stop)
    from engine.cli.application import main  # noqa: PLC0415 - stdout is another one now

    code = main(list(words))
    sys.stdout.flush()
    os._exit(code)


class MaterializeProcess:
    """One run. `stop` is a place such as `after settle 1`, where it waits."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], folder: Path, stop: str = ""
    ) -> None:
        self.log = folder / f"materialize-{len(list(folder.glob('materialize-*')))}.log"
        self.log.touch()
        self._ours, theirs = multiprocessing.Pipe()
        self._stop = stop
        arguments = (words, dict(environment), self.log, theirs, stop)
        self._process = _context.Process(target=_main, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def reached(self) -> None:
        """Wait until it stands where it was to stop."""
        assert self._ours.poll(SECONDS), self.said
        assert self._ours.recv() == self._stop

    def go_on(self) -> None:
        self._ours.send("on")

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()
        self._ours.close()

    def ended(self) -> int:
        """Its exit code."""
        self._process.join(SECONDS)
        assert self._process.exitcode is not None, self.said
        return self._process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text()
