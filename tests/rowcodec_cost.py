"""What the row codec costs, in instructions, as a ratio to a routine that never changes.

Strategy: this module, run as a script under callgrind, encodes fixed rows of many kinds, copies the
same frames with the reference routine, and calls a routine that does nothing; callgrind writes down
the instructions of each such run alone, so neither Python's start nor the machine's mood is in
them. Less what a call costs, codec divided by reference is the cost.

    python tests/rowcodec_cost.py

measures and writes `rowcodec_cost.json` anew: after a change that is meant to change the cost.

Invariant: a frame is a pure function of this text. Who changes a row records anew.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import rowcodec_reference
from engine.sources.postgres.types import (
    KIND_ARRAY,
    KIND_BOOLEAN,
    KIND_BYTEA,
    KIND_DATE,
    KIND_FLOAT,
    KIND_INTEGER,
    KIND_JSON,
    KIND_NUMERIC,
    KIND_TEXT,
    KIND_TIMESTAMP,
    KIND_TIMESTAMPTZ,
)
from row_codec import RowCodec
from rowcodec_twin import Absent, Value, frame_bytes, tuple_bytes

RECORD = Path(__file__).with_suffix(".json")
# By name in `rowcodec_reference.c`.
_COUNTED = "tailrace_counted"
_RELATION = 16_400
_CHANGE_LSN = 0x134EBC00
# Instructions are the same every time, so a few rows will do. The uncounted rows grow the buffer
# (under 128 KiB), and it is kept for the counted ones. So no growth is counted.
_ROWS = 8
RATIO_MAX = 1.3
# A codec this much cheaper would be free to lose what it gained: the record is to be renewed.
RATIO_MIN = 0.6
_HINT = "; if that is meant: python tests/rowcodec_cost.py records anew"
# Of a vector: by the codec, by the reference, by nothing.
_RUNS = 3

# A column: its kind, and its value.
Cells = tuple[tuple[int, Value], ...]


@dataclass(frozen=True, slots=True)
class Vector:
    """A row of one kind; the first column is its key."""

    name: str
    cells: Cells
    old: tuple[Value, ...] = ()
    """With it, the row is an update of a table with REPLICA IDENTITY FULL."""
    envelope: Literal["standard", "debezium", "flat"] = "standard"

    @property
    def frame(self) -> bytes:
        new = tuple_bytes("N", [value for _, value in self.cells])
        if not self.old:
            return frame_bytes(_CHANGE_LSN, "I", _RELATION, new)
        return frame_bytes(_CHANGE_LSN, "U", _RELATION, tuple_bytes("O", self.old), new)

    def codec(self) -> RowCodec:
        codec = RowCodec(1)
        codec.bind(
            _RELATION,
            database="shop",
            schema="public",
            table="changes",
            version=1,
            columns=[
                (f"column_{number}", kind, number == 0 or bool(self.old), True)
                for number, (kind, _) in enumerate(self.cells)
            ],
            key=["column_0"],
            envelope=self.envelope,
            numeric="string",
            json="embed",
        )
        codec.begin(0x134EBCB0, 1_795_341_114_065_123, 1743)
        return codec


# As a row of the load tests' backlog.
_MIXED: Cells = (
    (KIND_INTEGER, b"123456"),
    (KIND_INTEGER, b"456"),
    (KIND_TEXT, b"customer name 123456"),
    (KIND_NUMERIC, b"234.56"),
    (KIND_TIMESTAMPTZ, b"2026-11-21 10:31:54.065123+00"),
    (KIND_BOOLEAN, b"t"),
    (KIND_FLOAT, b"185184"),
    (KIND_TEXT, b"8c1d6f0e-6c5e-4a1f-9f34-0f5f5d3f0b11"),
    (KIND_JSON, b'{"k": 123456, "v": "a few words that are the same"}'),
    (KIND_DATE, b"2026-11-21"),
    (KIND_TEXT, b"status 6"),
    (KIND_INTEGER, b"56"),
)
_BEFORE = tuple(Absent.NULL if kind == KIND_JSON else value for kind, value in _MIXED)
_HUNDRED: Cells = tuple(
    (kind, Absent.NULL if number % 10 == 9 else value)
    for number, (kind, value) in enumerate((_MIXED * 9)[:100])
)
# The commonest row of pgbench, an update of its accounts as an index on them sends it.
_ACCOUNT: Cells = (
    (KIND_INTEGER, b"4711"),
    (KIND_INTEGER, b"1"),
    (KIND_INTEGER, b"-2342"),
    (KIND_TEXT, b" " * 84),
)
_ESCAPED = 'He said: "C:\\new\\file"\tand left.\nÜbergröße, naïveté, 数据库, 🚂 — '.encode()
_TEXT: Cells = (
    (KIND_INTEGER, b"1"),
    (KIND_TEXT, _ESCAPED * 20),
    (KIND_TEXT, b"Plain words, of which there are many in a row. " * 60),
)
_DOCUMENT = (
    b'{"id": %d, "tags": ["a", "b", "c"], "size": {"width": 12.5, "height": -3e2}, "is_on": true, '
    b'"note": "quote \\" and backslash \\\\ and \\u00fc", "none": null, "nested": [[1, 2], [3]]}'
)
_JSON: Cells = (
    (KIND_INTEGER, b"1"),
    *((KIND_JSON, _DOCUMENT % number) for number in range(4)),
    (KIND_JSON, b"[" + b", ".join(b"%d" % (number * 7919) for number in range(100)) + b"]"),
)
_NUMBERS: Cells = (
    (KIND_INTEGER, b"9007199254740993"),
    *((KIND_TIMESTAMP, b"2026-11-21 10:31:54.%06d" % (number * 1234)) for number in range(8)),
    *((KIND_TIMESTAMPTZ, b"1999-12-31 23:59:5%d+00" % number) for number in range(8)),
    *((KIND_NUMERIC, b"-%d.%08d" % (number * 987_654_321, number)) for number in range(8)),
    *((KIND_FLOAT, b"%d.25e-07" % number) for number in range(1, 9)),
)
_ARRAYS: Cells = (
    (KIND_INTEGER, b"1"),
    (KIND_ARRAY | KIND_INTEGER, b"{" + b",".join(b"%d" % number for number in range(50)) + b"}"),
    (KIND_ARRAY | KIND_TEXT, b'{plain,"with space","a \\"quote\\"",NULL}'),
    (KIND_BYTEA, b"\\x" + bytes(range(256)).hex().encode()),
)
VECTORS = (
    Vector("12 columns", _MIXED),
    Vector("12 columns, debezium", _MIXED, envelope="debezium"),
    Vector("12 columns, flat", _MIXED, envelope="flat"),
    Vector("12 columns, update with the full old row", _MIXED, old=_BEFORE),
    Vector("100 columns", _HUNDRED),
    Vector("4 columns, pgbench", _ACCOUNT),
    Vector("long text, partly escaped", _TEXT),
    Vector("jsonb", _JSON),
    Vector("timestamps and numbers", _NUMBERS),
    Vector("arrays and bytea", _ARRAYS),
)


class NotMeasured(Exception):
    """There is no callgrind, or it failed; the message says what to do."""


def measure() -> dict[str, float]:
    """The cost of each vector. Raises NotMeasured."""
    program = shutil.which("valgrind")
    if program is None:
        raise NotMeasured("there is no valgrind: make setup-test")
    with tempfile.TemporaryDirectory(prefix="tailrace-callgrind-") as folder:
        output = Path(folder, "counts")
        done = subprocess.run(
            [
                program,
                "--tool=callgrind",
                f"--callgrind-out-file={output}",
                "--combine-dumps=yes",
                f"--zero-before={_COUNTED}",
                f"--dump-after={_COUNTED}",
                sys.executable,
                __file__,
                "--encode",
            ],
            # Whatever the caller's environment makes of Python does not count.
            env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise NotMeasured(f"valgrind ended with code {done.returncode}:\n{done.stderr}")
        return _ratios(output.read_text())


def _ratios(dumps: str) -> dict[str, float]:
    """Each counted run is a part of the file with a `summary`; the last part is what came after."""
    sums = [int(found) for found in re.findall(r"^summary: (\d+)$", dumps, re.MULTILINE)][:-1]
    if len(sums) != len(VECTORS) * _RUNS:
        raise NotMeasured(f"callgrind counted {len(sums)} runs of {len(VECTORS) * _RUNS}")
    runs = zip(*[iter(sums)] * _RUNS, strict=True)
    return {
        vector.name: round((codec - call) / (reference - call), 3)
        for vector, (codec, reference, call) in zip(VECTORS, runs, strict=True)
    }


def encode() -> None:
    """What callgrind looks at: for each vector the runs in their order, each after a rehearsal."""
    for vector in VECTORS:
        codec, frame = vector.codec(), vector.frame
        for function in (codec.tuples.encode, rowcodec_reference.copy, rowcodec_reference.nothing):
            for _ in range(_ROWS):
                function(frame)
            codec.take(_RELATION)
            rowcodec_reference.counted(function, frame, _ROWS)


def departures(costs: Mapping[str, float], recorded: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence for each vector whose cost is not what was recorded, within the bounds."""
    if costs.keys() != recorded.keys():
        return ("the record is of other vectors" + _HINT,)
    ratios = {name: cost / recorded[name] for name, cost in costs.items()}
    return tuple(
        f"{name}: {costs[name]} times the reference, recorded {recorded[name]}: "
        f"{ratio:.2f} times of that, "
        + (f"allowed {RATIO_MAX}" if ratio > RATIO_MAX else f"expected {RATIO_MIN} at least")
        + _HINT
        for name, ratio in ratios.items()
        if not RATIO_MIN <= ratio <= RATIO_MAX
    )


def recorded_costs() -> dict[str, float]:
    costs: dict[str, float] = json.loads(RECORD.read_bytes())
    return costs


def record(costs: Mapping[str, float]) -> None:
    RECORD.write_text(json.dumps(costs, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--encode"]:
        encode()
    else:
        record(measure())
