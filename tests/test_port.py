"""The port under those who mean it badly: a real engine, and the server alone."""

import asyncio
import contextlib
import io
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Counter, Metric

from databases import Database
from engine.config import Address, default_log
from engine.operate import logs
from engine.operate.http_server import HttpServer
from engine.operate.listener import ConnectionLimits
from engine.operate.status import Status, StatusProvider
from engine.servers.server_process import free_ports
from engine.servers.servers import EmbeddedS3

NOFILE = 256


@pytest.fixture
def port() -> int:
    (found,) = free_ports(1)
    return found


@pytest.fixture
def file(database: Database, s3: EmbeddedS3, bucket: str, tmp_path: Path, port: int) -> Path:
    database.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    file = tmp_path / "tailrace.toml"
    file.write_text(
        f"""
[source]
dsn = "{database.dsn}"
slot = "{database.name}"
snapshot = "never"
[destination]
bucket = "{bucket}"
prefix = "shop"
endpoint_url = "{s3.endpoint_url}"
[chunk]
max_age = "1s"
[http]
listen = "127.0.0.1:{port}"
"""
    )
    return file


@contextlib.contextmanager
def engine(file: Path, s3: EmbeddedS3, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    limited = f'ulimit -n {NOFILE}; exec "$0" -m engine run -c "$1"'
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            ["/bin/sh", "-c", limited, sys.executable, str(file)],
            env={**os.environ, **s3.environment, "AWS_EC2_METADATA_DISABLED": "true"},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def status_of(port: int) -> dict[str, object]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            found: dict[str, object] = json.load(answer)
            return found
    except OSError:
        return {}


def waited(look: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.timeout(300)
def test_four_hundred_idle_connections_do_not_starve_the_engine(
    file: Path, port: int, database: Database, s3: EmbeddedS3, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def shows(key: str, value: object = None) -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        found = status_of(port).get(key)
        return found == value if value is not None else bool(found)

    with engine(file, s3, log) as process, contextlib.ExitStack() as idle:
        waited(lambda: shows("phase", "streaming"), "streaming")
        for _ in range(400):
            idle.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        # A new walsender and new requests need descriptors of their own.
        database.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            " WHERE active AND slot_name = %s",
            database.name,
        )
        database.execute("INSERT INTO orders SELECT generate_series(1, 100)")

        waited(lambda: shows("objects_total"), "the rows' object")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()[-3000:]
    assert "open files" not in log.read_text()
    assert log.read_text().count("http connections at their limit") == 1


# --- the server alone

QUICK = ConnectionLimits(
    connections_max=8, request_seconds=0.4, idle_seconds=0.6, sweep_interval=0.05
)

PATIENT = ConnectionLimits()
"""For who is to get an answer, however busy the machine."""


def streaming() -> Status:
    return Status(phase="streaming", since_us=1)


@contextlib.asynccontextmanager
async def served(
    limits: ConnectionLimits = QUICK, provider: StatusProvider = streaming
) -> AsyncIterator[tuple[str, int]]:
    registry = CollectorRegistry()
    Counter("rows", "Rows", registry=registry)
    async with HttpServer(Address("127.0.0.1", 0), provider, registry, limits) as server:
        assert server.address is not None
        yield server.address.host, server.address.port


async def answered(place: tuple[str, int], request: bytes, seconds: float = 60) -> bytes:
    """Everything that comes back until the server closes."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(*place)
        found = b""
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            while piece := await reader.read(65536):
                found += piece
        writer.close()
        return found


def get(path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


both_loops = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@both_loops
def test_a_health_check_is_answered_however_many_sit_idle(new_loop: NewLoop) -> None:
    async def checked() -> None:
        async with served(ConnectionLimits(connections_max=8)) as place:
            before = descriptors()
            opened = [await asyncio.open_connection(*place) for _ in range(100)]

            for _ in range(20):
                assert (await answered(place, get("/livez"))).startswith(b"HTTP/1.1 200")

            # A hundred ends are this test's.
            assert descriptors() <= before + 100 + 9
            for _, writer in opened:
                writer.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(checked())


@both_loops
@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "an answer and then nothing"],
)
def test_who_does_not_go_on_is_cut_off(new_loop: NewLoop, begun: bytes) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        while begun:
            await asyncio.sleep(0.1)
            writer.write(b"x")

    async def cut_off() -> None:
        async with served() as place:
            reader, writer = await asyncio.open_connection(*place)
            writer.write(begun)
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                dripping = group.create_task(drip(writer))
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                dripping.cancel()
            writer.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(cut_off())


async def test_who_does_not_read_the_answer_is_cut_off() -> None:
    loop = asyncio.get_running_loop()
    # More than the kernel holds for both ends.
    long = Status(phase="streaming", since_us=1, last_error="x" * 32_000_000)
    found = 0

    async with served(provider=lambda: long) as place:
        with socket.create_connection(place) as client:
            client.setblocking(False)
            await loop.sock_sendall(client, get("/status").replace(b"close", b"keep-alive"))
            await asyncio.sleep(3 * QUICK.idle_seconds)
            async with asyncio.timeout(60):
                with contextlib.suppress(ConnectionError):
                    while piece := await loop.sock_recv(client, 1 << 20):
                        found += len(piece)

    assert found < len(long.last_error)


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=",
        "application/openmetrics-text;version=1.x",
        "application/openmetrics-text;version=2.x.0",
        "application/openmetrics-text;version=1.0.0.evil",
        'application/openmetrics-text;version="1.0.0"',
        "text/plain;version=x",
        "text/plain;version=" + "9" * 5000,
        "application/openmetrics-text;version=\u0661.0.0",
        "application/openmetrics-text;version=\udcff",
        "application/openmetrics-text;escaping=evil;version=1.0.0",
        ",".join(["application/openmetrics-text;version=a"] * 200),
        ";;;,,,===",
        "version=version=version=",
    ],
)
async def test_an_accept_header_of_any_kind_gets_metrics(accept: str) -> None:
    async with served(PATIENT) as place:
        text = await answered(place, get("/metrics", f"Accept: {accept}"))

    head, _, body = text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), text[:300]
    assert b"evil" not in head
    assert b"# TYPE rows" in body


CLOSE = b"Host: x\r\nConnection: close\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
MALFORMED = (
    b"",
    b"\r\n\r\n",
    b"\0" * 100,
    b"GET /\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    bytes.fromhex("16030100a5010000a10303") + b"\x01" * 160,
    b"GET " + b"/a" * 20_000 + b" HTTP/1.1\r\n" + CLOSE + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 5_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\nzz\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"Content-Length: 3\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
    b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    b"G\xc3\x84T / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://elsewhere/livez HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n",
    b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\n" + CLOSE + b"\r\n",
    b"GET //livez HTTP/1.1\r\n" + CLOSE + b"\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + CLOSE + b"\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n" + CLOSE + b"\r\n",
    b"TRACE /status HTTP/1.1\r\nAuthorization: x\r\n" + CLOSE + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"z" * 99,
    b"DELETE /status HTTP/1.1\r\n" + CLOSE + b"\r\n",
    b"POST /status HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    b"POST /status HTTP/1.1\r\nHost: x\r\nExpect: evil\r\nContent-Length: 9\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n"
    + CLOSE
    + b"\r\nzzzzzzzzz",
    b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 500 + b"GARBAGE\r\n\r\n",
)
CODES = {b"100", b"200", b"400", b"404", b"405", b"417"}


@pytest.fixture
def json_log() -> Iterator[Callable[[], list[dict[str, object]]]]:
    """What was logged so far.

    A test's loop is in debug mode, and an engine's is not: what that mode says of a busy machine
    ("Executing … took 0.1 seconds") is left out.
    """
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure(replace(default_log(), format="json"), stream=stream)

    def rows() -> list[dict[str, object]]:
        found = [json.loads(line) for line in stream.getvalue().splitlines()]
        return [row for row in found if not str(row.get("text")).startswith("Executing <")]

    yield rows
    root.handlers[:] = before[0]
    root.setLevel(before[1])


async def test_requests_of_every_wrong_kind_change_nothing(
    json_log: Callable[[], list[dict[str, object]]],
) -> None:
    async with served() as place:
        for request in MALFORMED:
            answer = await answered(place, request)
            codes = {line[9:12] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.")}
            assert codes <= CODES, (request[:200], answer[:500])
            assert b"Traceback" not in answer
            assert (await answered(place, get("/livez"))).startswith(b"HTTP/1.1 200")

    rows = json_log()
    assert [row["event"] for row in rows] == ["http requests that are none"]
    assert rows[0]["level"] == "warning"


async def test_requests_of_random_bytes_change_nothing(seed: int) -> None:
    chance = random.Random(seed)
    good = get("/status", "Accept: */*")

    async with served() as place:
        for _ in range(60):
            request = bytearray(good)
            for _ in range(chance.randint(1, 6)):
                request[chance.randrange(len(request))] = chance.randrange(256)
            answer = await answered(place, bytes(request))
            assert not answer.startswith(b"HTTP/1.1 5"), (seed, bytes(request), answer)


async def test_an_answer_that_fails_is_told_once_and_shows_nothing(
    json_log: Callable[[], list[dict[str, object]]],
) -> None:
    def broken() -> Status:
        raise KeyError("geheim")

    async with served(PATIENT, provider=broken) as place:
        answers = [await answered(place, get("/status")) for _ in range(5)]

    rows = json_log()
    assert all(answer.startswith(b"HTTP/1.1 500") for answer in answers)
    assert [(row["event"], row["error_type"]) for row in rows] == [
        ("http answers failed", "KeyError")
    ]
    assert "geheim" not in repr(rows) + repr(answers)


async def test_many_scrapes_at_once_cost_few_expositions() -> None:
    registry = CollectorRegistry()
    collected: list[int] = []

    class Counting:
        def collect(self) -> list[Metric]:
            collected.append(1)
            time.sleep(0.05)
            return []

    registry.register(Counting())
    collected.clear()
    server = HttpServer(Address("127.0.0.1", 0), streaming, registry, ConnectionLimits())
    async with server, asyncio.TaskGroup() as group:
        assert server.address is not None
        place = server.address.host, server.address.port
        answers = [group.create_task(answered(place, get("/metrics"))) for _ in range(30)]

    assert all(answer.result().startswith(b"HTTP/1.1 200") for answer in answers)
    assert len(collected) < 10
