"""Log lines that nobody reads cost lines, not the engine."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from engine.operate.log_writer import LogWriter

ROOT = Path(__file__).parent.parent


def told(count: int) -> str:
    return f"dropped {count}\n"


def test_lines_are_written_in_their_order() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(writing, told)

    for number in range(100):
        writer.write(f"{number}\n")
    writer.drain()

    assert os.read(reading, 4096).decode().split() == [str(number) for number in range(100)]
    assert writer.dropped_total == 0
    os.close(reading)


def test_a_full_pipe_drops_lines_and_says_how_many() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(writing, told, size_max=10_000)

    for number in range(10_000):
        writer.write(f"{number:09d}\n")
    writer.drain(0.01)
    dropped = writer.dropped_total
    found = b""
    lines: list[str] = []
    counts: list[int] = []

    def is_all() -> bool:
        return sum(counts) == dropped and len(lines) == 10_000 - dropped + len(counts)

    while not is_all() and select.select([reading], [], [], 60)[0]:
        found += os.read(reading, 65536)
        lines = found.decode().rpartition("\n")[0].splitlines()
        counts = [int(line.split()[1]) for line in lines if line.startswith("dropped")]

    assert dropped > 1000
    assert sum(counts) == dropped
    assert len(lines) == 10_000 - dropped + len(counts)
    os.close(reading)


def test_a_reader_that_is_gone_holds_up_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LogWriter(writing, told)

    writer.write("gone\n")
    writer.drain(10)

    assert writer.dropped_total == 0


def test_a_descriptor_that_does_not_block_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    writer = LogWriter(writing, told)

    for number in range(20_000):
        writer.write(f"{number:09d}\n")
    writer.drain(0.2)
    found = b""
    while len(found) < 20_000 * 10 and select.select([reading], [], [], 60)[0]:
        found += os.read(reading, 65536)

    assert writer.dropped_total == 0
    assert found.split() == [b"%09d" % number for number in range(20_000)]
    os.close(reading)


ENGINE = """
import asyncio, sys
from pathlib import Path
import structlog
from engine.operate import logs
from engine.cli import application, process
from engine.config import load
from engine.model.errors import PositionLost

async def life(*_, **__):
    log = structlog.get_logger("engine.example")
    for _ in range(20_000):
        log.warning("connection lost", error="x" * 100)
    assert logs.dropped_total() > 0
    print("went on", flush=True)
    raise PositionLost("gone", hint="resync")

def command(*_):
    loaded = load(None, {
        "TAILRACE_SOURCE__DSN": "dbname=shop", "TAILRACE_SOURCE__SNAPSHOT": "never",
        "TAILRACE_DESTINATION__BUCKET": "my-bucket", "TAILRACE_DESTINATION__PREFIX": "shop",
        "TAILRACE_HTTP__LISTEN": "off",
    })
    return process.run_engine(loaded.configuration, until_caught_up=False, engine=life)

application.make_application = lambda asked: command
import engine.__main__
engine.__main__.main()
"""


@pytest.mark.timeout(240)
def test_an_engine_whose_stderr_nobody_reads_goes_on_and_ends_with_its_code(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            code = process.wait(40)
        finally:
            process.kill()

    assert (line, code) == ("went on\n", 70)
