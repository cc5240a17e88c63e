"""An engine's process as it is asked and read while it writes, and while it dies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from engine.servers.server_process import LOOPBACK
from load_tests.engine_process import EngineProcess, Pipeline, until

HALF_A_LINE = """
import sys, time
sys.stderr.write('{"event": "a", "n": 1}\\n{"event": "a", "n"')
sys.stderr.flush()
time.sleep(600)
"""
SLEEPING = "import time; time.sleep(600)\n"


@asynccontextmanager
async def answering(port: int, answer: bytes) -> AsyncIterator[None]:
    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(answered, LOOPBACK, port):
        yield


async def test_a_line_that_is_still_being_written_is_no_event_yet(tmp_path: Path) -> None:
    with EngineProcess(Pipeline({}, {}, preamble=HALF_A_LINE), tmp_path, "engine") as engine:

        async def is_written() -> bool:
            return engine.log.endswith('"n"')

        await until(is_written, "half a line")

        assert engine.events("a") == [{"event": "a", "n": 1}]


async def test_half_an_answer_is_none(tmp_path: Path) -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Length: 13\r\n\r\n"
    with EngineProcess(Pipeline({}, {}, preamble=SLEEPING), tmp_path, "engine") as engine:
        async with answering(engine.http_port, head + b'{"live":true}'):
            whole = await engine.status()
        async with answering(engine.http_port, head + b'{"live"'):
            half = await engine.status()

    assert whole == {"live": True}
    assert half is None
