"""The commands with which a user reads the bucket, run as a user runs them. All calls block.

    tailrace read public.orders --current -c tailrace.toml --output orders.ndjson
    tailrace views duckdb -c tailrace.toml > views.sql

Strategy: each is a process under the servers' watchdog, as the engine is. So none outlives the
demonstration, and none learns anything but what its configuration file says.
"""

import signal
import sys
from pathlib import Path
from typing import Final

from engine.demo.engine_process import environment_of
from engine.demo.workspace import Workspace
from engine.model.errors import TailraceError
from engine.servers.server_process import ServerCommand, ServerProcess, log_tail

_SECONDS_MAX: Final = 3600.0
# A command's stdout is written to a file, as a shell does it.
_TO_FILE: Final = ("/bin/sh", "-c", 'file="$1"; shift; exec "$@" > "$file"', "sh")


class CommandFailed(TailraceError):
    """A command did not end with 0. The message has what it said."""

    exit_code = 1


def read_current(workspace: Workspace, table: str, file: Path) -> None:
    """Write the rows that a table has, as lines of JSON, to a file. Raises CommandFailed."""
    _run(workspace, "read", table, "--current", "--output", str(file))


def print_views(workspace: Workspace, file: Path) -> None:
    """Write the views' SQL for DuckDB to a file. Raises CommandFailed."""
    _run(workspace, "views", "duckdb", output=file)


def _run(workspace: Workspace, *words: str, output: Path | None = None) -> None:
    configuration = str(workspace.configuration_file)
    command = (sys.executable, "-P", "-m", "engine", *words, "-c", configuration)
    process = ServerProcess(
        ServerCommand(
            arguments=command if output is None else (*_TO_FILE, str(output), *command),
            directory=Path.cwd(),
            environment=environment_of(workspace),
            log=workspace.commands_log,
            end_signal=signal.SIGKILL,
        )
    )
    if not process.wait(_SECONDS_MAX):
        process.end((signal.SIGKILL,))
    if process.exit_code:
        raise CommandFailed(
            f"tailrace {words[0]} ended with exit code {process.exit_code}"
            f"{log_tail(workspace.commands_log)}",
            hint=f"what it said is in {workspace.commands_log}",
        )
