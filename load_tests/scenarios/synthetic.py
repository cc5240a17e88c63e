"""`synthetic`: the engine's own ceiling, without a database."""

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from load_tests.engine_reader import EngineReader, phases
from load_tests.measurement import Watched, measure
from load_tests.plan import Plan
from load_tests.recorder import Recorder
from load_tests.result import ENGINE, Target
from load_tests.run import Run
from load_tests.servers import NAME, open_bucket

_ROWS = 3_000_000
_ROWS_LEAST = 500_000
_TABLE_COUNTS = (1, 100, 1_000)
# For the estimate alone, on two quiet cores.
_ROW_US = 1.5
_RUN_SECONDS = 2.0
_VERIFY_ROW_US = 4.0


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Everything from the line writer on, on a log that is computed. See `Scenario`."""

    name: str = "synthetic"
    title: str = "Without a database"
    text: str = (
        "A computed log of rows like those of drain, evenly over 1, 100 and 1,000 tables: row "
        "line writer, batches, chunks, compression, journal and objects, at the speed at which one "
        "processor does them. What a database, its network and libpq add is the difference to "
        "drain."
    )
    targets: tuple[Target, ...] = ()

    def estimate_seconds(self, plan: Plan) -> float:
        """See `Scenario`."""
        rows = plan.rows or _ROWS
        run = _RUN_SECONDS + rows * _ROW_US / 1e6
        return len(_TABLE_COUNTS) * (run * (plan.rounds + 1) + rows * _VERIFY_ROW_US / 1e6)

    def smaller(self, plan: Plan, seconds: float) -> Plan | None:
        """See `Scenario`."""
        if plan.rows is not None:
            return None
        rows = int(_ROWS * seconds / self.estimate_seconds(plan) * 0.9)
        return msgspec.structs.replace(plan, rows=rows) if rows >= _ROWS_LEAST else None

    def measure(self, plan: Plan, recorder: Recorder) -> None:
        """See `Scenario`."""
        for table_count in _TABLE_COUNTS:
            with ExitStack() as stack:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tailrace-load-"))
                bucket = stack.enter_context(open_bucket(plan))
                plural = "s" if table_count > 1 else ""
                recorder.begin("no database", variant=f"{table_count:,} table{plural}")
                engine = EngineReader(None, bucket, Path(folder))
                _measure_group(engine, plan, recorder, table_count)


def _measure_group(engine: EngineReader, plan: Plan, recorder: Recorder, table_count: int) -> None:
    rows = plan.rows or _ROWS
    if rows < _ROWS:
        recorder.note(f"{rows:,} rows instead of {_ROWS:,}")
    for number in range(plan.rounds + 1):
        name = f"{NAME}_{number}"
        command = (
            *(sys.executable, "-m", "load_tests.synthetic_engine"),
            *(str(engine.configure(name)), str(rows), str(table_count)),
        )
        log = engine.folder / f"{name}.log"
        with recorder.step(f"round {number} of {plan.rounds}" if number else "warm-up"):
            measured = measure(
                command, environment=engine.environment, log=log, watched=Watched(engine.bucket)
            )
        run = Run(
            reader=ENGINE,
            round=number,
            rows=rows,
            command=command,
            usage=measured.usage,
            phases=phases(log, measured.usage),
            series={"memory": measured.memory},
        )
        recorder.add(run)
    with recorder.step("verifying what was published (full)"):
        found = engine.verify(f"{NAME}_{plan.rounds}", row_count=rows, depth="full")
    recorder.verified(found)


SYNTHETIC = Synthetic()
