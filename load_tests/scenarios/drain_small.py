"""`drain-small`: what a row costs where it has next to nothing in it, by pgbench's own work."""

import subprocess

from engine.model.errors import TailraceError
from load_tests.backlog_scenario import BacklogScenario
from load_tests.engine_reader import plain_environment
from load_tests.servers import Database
from load_tests.workload import Connection, Workload

_SCALE = 10
_CLIENTS = 2
# Three updates and one insert into the history.
_CHANGES_A_TRANSACTION = 4


class PgbenchFailed(TailraceError):
    """The message has what it said."""

    exit_code = 1


def _pgbench(database: Database, *arguments: str) -> None:
    command = (str(database.programs / "pgbench"), *arguments, database.schema_dsn)
    done = subprocess.run(
        command,
        env={**plain_environment(), **database.environment},
        capture_output=True,
        text=True,
        check=False,
        # Ctrl-C is for the harness; the server's end is pgbench's.
        start_new_session=True,
    )
    if done.returncode != 0:
        raise PgbenchFailed(f"pgbench failed: {done.stderr.strip()}")


def _make_tables(database: Database, _: Connection) -> None:
    _pgbench(database, "--initialize", f"--scale={_SCALE}", "--quiet")


def _write(database: Database, _: Connection, row_count: int) -> int:
    each = max(1, row_count // (_CHANGES_A_TRANSACTION * _CLIENTS))
    _pgbench(
        database,
        f"--client={_CLIENTS}",
        f"--jobs={_CLIENTS}",
        f"--transactions={each}",
        "--no-vacuum",
        "--protocol=prepared",
        "--random-seed=1",
    )
    return each * _CLIENTS * _CHANGES_A_TRANSACTION


DRAIN_SMALL = BacklogScenario(
    name="drain-small",
    title="Small rows, pgbench's",
    text="pgbench's four tables and its TPC-B-like transactions: three updates and one insert "
    "each, of few and short columns. What the stream costs where the rows hardly do: about a "
    "hundred bytes a change, and two control messages for every four.",
    rows=400_000,
    rows_least=100_000,
    workloads=(Workload(make_tables=_make_tables, write=_write),),
    write_us=50.0,
)
