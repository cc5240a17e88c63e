"""`fold`: a table's changes, folded to its current state.

Strategy: objects are made in a folder, as the engine would publish them. The fold and DuckDB read
them by turns, each in a process of its own. What the fold gives must be as many rows as the table
has.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from load_tests.engine_reader import plain_environment
from load_tests.fold_objects import Made, make_objects
from load_tests.fold_reader import Found
from load_tests.measurement import RunFailed, Watched, measure
from load_tests.peers.duckdb import DUCKDB
from load_tests.peers.peer import Task
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.result import ENGINE, Target, Verification
from load_tests.run import Run
from load_tests.servers import Bucket

A_CPU_SECOND: Final = "folded_rows_per_cpu_second"
"""The figure: changes for each CPU-second of the whole process."""

_CHANGES: Final = 10_000_000
_CHANGES_LEAST: Final = 500_000
_MIB: Final = 1024 * 1024
# For the estimate alone, on two quiet cores.
_MAKE_US: Final = 2.5
_FOLD_US: Final = 0.8
_START_SECONDS: Final = 0.2

VARIANTS: Final = {"10 changes a key": 10, "1 change a key": 1}


@dataclass(frozen=True, slots=True)
class FoldScenario:
    """See `Scenario`."""

    name: str = "fold"
    title: str = "The current state of a table"
    text: str = (
        "Changes of 12 columns over keys at random, in objects of 16 MiB, folded to the rows that "
        "the table has now: inserts, updates, and one delete in twenty. Once over a tenth as many "
        "keys as there are changes, and once over as many. Reading the objects from a local folder "
        "and decompressing them is part of it; the rows are counted and let go. Against DuckDB's "
        "`read_json` on the same objects."
    )
    targets: tuple[Target, ...] = (
        Target(
            text="changes a CPU-second, whole process",
            quantity=A_CPU_SECOND,
            bound=1_000_000.0,
            direction="at least",
        ),
        Target(text="peak RSS", quantity="peak_rss", bound=512.0 * _MIB, direction="at most"),
    )

    def estimate_seconds(self, plan: Plan) -> float:
        """See `Scenario`."""
        each = _FOLD_US + (0.0 if DUCKDB.absence() else DUCKDB.row_us)
        changes = plan.rows or _CHANGES
        once = changes * _MAKE_US / 1e6
        run = 2 * _START_SECONDS + changes * each / 1e6
        return len(VARIANTS) * (once + run * (plan.rounds + 1))

    def smaller(self, plan: Plan, seconds: float) -> Plan | None:
        """See `Scenario`."""
        if plan.rows is not None:
            return None
        changes = int(_CHANGES * seconds / self.estimate_seconds(plan) * 0.9)
        if changes < _CHANGES_LEAST:
            return None
        return msgspec.structs.replace(plan, rows=changes)

    def measure(self, plan: Plan, recorder: Recorder) -> None:
        """See `Scenario`."""
        is_absent = DUCKDB.absence()
        if is_absent:
            recorder.absent(DUCKDB.name, is_absent)
        else:
            recorder.peer(DUCKDB)
        changes = plan.rows or _CHANGES
        for variant, changes_a_key in VARIANTS.items():
            recorder.begin("no database", variant=variant)
            if changes < _CHANGES:
                recorder.note(f"{changes:,} changes instead of {_CHANGES:,}")
            with tempfile.TemporaryDirectory(prefix="tailrace-load-") as place:
                folder = Path(place)
                _measure_group(folder, changes, changes_a_key, plan.rounds, recorder)


FOLD: Final = FoldScenario()


def _measure_group(
    folder: Path, changes: int, changes_a_key: int, rounds: int, recorder: Recorder
) -> None:
    objects = folder / "objects"
    objects.mkdir()
    keys = max(changes // changes_a_key, 1)
    with recorder.step(f"making {changes:,} changes of {keys:,} keys"):
        made = make_objects(objects, changes, keys)
    recorder.fact("changes", changes)
    recorder.fact("keys", keys)
    recorder.fact("line_mean_bytes", made.raw_bytes / changes)
    recorder.fact("compressed_bytes", made.compressed_bytes)
    commands = _commands(objects)
    for number in range(rounds + 1):
        # By turns, so that neither always comes first.
        for reader in sorted(commands, reverse=bool(number % 2)):
            title = f"round {number} of {rounds}" if number else "warm-up"
            with recorder.step(f"{title}: {reader}"):
                run, found = _run(reader, commands[reader], folder, number, changes)
            if reader == ENGINE:
                recorder.verified(_verification(run.command, found, made))
            elif found.rows != made.row_count:
                recorder.note(f"{reader} found {found.rows:,} rows of {made.row_count:,}")
            recorder.add(run)


def _commands(objects: Path) -> Mapping[str, tuple[str, ...]]:
    commands: dict[str, tuple[str, ...]] = {
        ENGINE: (sys.executable, "-m", "load_tests.fold_reader", str(objects))
    }
    if not DUCKDB.absence():
        task = Task(
            dsn="",
            slot="",
            publication="",
            end_lsn="",
            row_count=0,
            folder=objects,
            programs=objects,
        )
        commands[DUCKDB.name] = DUCKDB.command(task)
    return commands


def _run(
    reader: str, command: tuple[str, ...], folder: Path, number: int, changes: int
) -> tuple[Run, Found]:
    log = folder / f"{reader}_{number}.log"
    nowhere = Bucket(
        name="", region="", endpoint_url="", prefix="", environment={}, process_id=None
    )
    measured = measure(command, environment=plain_environment(), log=log, watched=Watched(nowhere))
    try:
        found = msgspec.json.decode(log.read_bytes().splitlines()[-1], type=Found)
    except (IndexError, msgspec.MsgspecError) as error:
        raise RunFailed(f"{reader} did not say what it found: {log.read_text()}") from error
    usage = measured.usage
    run = Run(
        reader=reader,
        round=number,
        rows=changes,
        command=command,
        usage=usage,
        series={"memory": measured.memory},
        figures={
            A_CPU_SECOND: changes / max(usage.own_cpu_seconds, 0.01),
            **({"memory_a_key_B": found.key_bytes} if found.key_bytes else {}),
            "fold_passes": float(found.passes),
        },
    )
    return run, found


def _verification(command: tuple[str, ...], found: Found, made: Made) -> Verification:
    return Verification(
        command=command,
        depth="full",
        is_right=found.rows == made.row_count,
        rows=found.rows,
        rows_due=made.row_count,
        objects=made.object_count,
        text="",
    )
