"""The fault proxies, before small servers of our own. S3's signatures: test_s3_destination."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from engine.servers.fault_proxy import (
    CONFLICT,
    LOST_ANSWER,
    SLOW_DOWN,
    Answer,
    CutAnswer,
    HttpFaultProxy,
    Line,
    Reset,
    SlowAnswer,
    Stall,
    TcpFaultProxy,
    requests_to,
)


@dataclass
class Shelf:
    """A server that keeps what is put, and says what it holds."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.hosts.append(request.headers["Host"])
        if request.method == "PUT":
            self.bodies[request.path] = await request.read()
            return web.Response(text="kept")
        if request.path not in self.bodies:
            return web.Response(status=404, text="nothing")
        if "chunked" in request.query:
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(self.bodies[request.path])
            return response
        return web.Response(body=self.bodies[request.path])


@dataclass
class Place:
    shelf: Shelf
    proxy: HttpFaultProxy
    client: aiohttp.ClientSession

    async def put(self, path: str, body: bytes = b"body") -> int:
        data = io.BytesIO(body)
        async with self.client.put(f"{self.proxy.endpoint_url}{path}", data=data) as response:
            await response.read()
            return response.status

    async def get(self, path: str) -> bytes:
        async with self.client.get(f"{self.proxy.endpoint_url}{path}") as response:
            return await response.read()


@asynccontextmanager
async def running_shelf(shelf: Shelf) -> AsyncIterator[int]:
    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{tail:.*}", shelf.answer)
    async with TestServer(application) as server:
        assert server.port is not None
        yield server.port


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    shelf = Shelf()
    async with (
        running_shelf(shelf) as port,
        HttpFaultProxy(port) as proxy,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as client,
    ):
        # A client repeats a PUT on a connection that was kept alive: here faults are to be seen.
        client._retry_connection = False
        yield Place(shelf, proxy, client)


async def test_requests_pass_unchanged_when_nothing_is_injected(place: Place) -> None:
    body = bytes(range(256)) * 40_000

    status = await place.put("/bucket/a%20b/c", body)

    assert status == 200
    assert place.shelf.bodies == {"/bucket/a b/c": body}
    assert await place.get("/bucket/a%20b/c") == body
    assert await place.get("/bucket/a%20b/c?chunked") == body
    assert set(place.shelf.hosts) == {f"127.0.0.1:{place.proxy.port}"}
    assert [request.key for request in place.proxy.requests] == ["a b/c"] * 3
    assert place.proxy.statistics().requests == {"PUT": 1, "GET": 2}


async def test_a_long_line_delays_every_request(place: Place) -> None:
    place.proxy.line = Line(latency_seconds=0.1)

    began = perf_counter()
    await place.put("/b/k")
    await place.get("/b/k")

    assert 0.2 <= perf_counter() - began < 10


async def test_a_thin_line_carries_so_many_bytes_a_second_each_way(place: Place) -> None:
    body = bytes(500_000)
    place.proxy.line = Line(bytes_per_second=2_000_000)

    began = perf_counter()
    await place.put("/b/k", body)
    put_seconds = perf_counter() - began
    same = await place.get("/b/k")
    get_seconds = perf_counter() - began - put_seconds

    assert same == body
    assert 0.25 <= put_seconds < 10
    assert 0.25 <= get_seconds < 10


async def test_chunked_requests_pass(place: Place) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            yield str(number).encode() * 100_000

    async with place.client.put(f"{place.proxy.endpoint_url}/b/k", data=pieces()) as response:
        status = response.status

    assert status == 200
    assert place.shelf.bodies["/b/k"] == b"0" * 100_000 + b"1" * 100_000 + b"2" * 100_000


async def test_a_request_that_expects_100_is_told_to_continue(place: Place) -> None:
    async with place.client.put(
        f"{place.proxy.endpoint_url}/b/k", data=b"x" * 100_000, expect100=True
    ) as response:
        status = response.status

    assert status == 200
    assert place.proxy.requests[0].header("expect") == "100-continue"
    assert len(place.shelf.bodies["/b/k"]) == 100_000


async def test_an_answer_of_the_proxy_leaves_the_server_untouched(place: Place) -> None:
    rule = place.proxy.inject(SLOW_DOWN, requests_to("PUT"), times=1)

    first, second = await place.put("/b/k"), await place.put("/b/k2")

    assert (first, second) == (503, 200)
    assert list(place.shelf.bodies) == ["/b/k2"]
    assert rule.hits == 1
    assert place.proxy.statistics().faults == {SLOW_DOWN: 1}


async def test_an_answer_can_replace_that_of_an_applied_request(place: Place) -> None:
    place.proxy.inject(Answer(500, "InternalError", applied=True))

    status = await place.put("/b/k")

    assert status == 500
    assert list(place.shelf.bodies) == ["/b/k"]


async def test_exactly_the_nth_match_is_struck(place: Place) -> None:
    place.proxy.inject(CONFLICT, requests_to("PUT", "journal/"), nth=(2, 4))

    statuses = [await place.put(f"/b/journal/{number}") for number in range(5)]
    other = await place.put("/b/data/1")

    assert statuses == [200, 409, 200, 409, 200]
    assert other == 200


async def test_chance_is_the_same_for_the_same_seed(place: Place) -> None:
    async def hits() -> list[int]:
        place.proxy.clear()
        place.proxy.inject(SLOW_DOWN, probability=0.5, seed=7)
        return [await place.put(f"/b/{number}") for number in range(20)]

    first, second = await hits(), await hits()

    assert first == second
    assert set(first) == {200, 503}


async def test_the_first_rule_decides_and_the_others_still_count(place: Place) -> None:
    place.proxy.inject(SLOW_DOWN, nth=1)
    later = place.proxy.inject(CONFLICT, nth=2)

    statuses = [await place.put("/b/k") for _ in range(3)]

    assert statuses == [503, 409, 200]
    assert (later.matches, later.hits) == (3, 1)


@pytest.mark.parametrize("applied", [False, True])
async def test_a_reset_breaks_the_connection_on_its_side_of_the_server(
    place: Place, *, applied: bool
) -> None:
    place.proxy.inject(Reset(applied=applied), times=1)

    with pytest.raises(aiohttp.ClientConnectionError):
        await place.put("/b/k")

    assert ("/b/k" in place.shelf.bodies) is applied
    assert await place.put("/b/k2") == 200


async def test_a_hold_keeps_a_request_until_it_is_released(place: Place) -> None:
    hold = place.proxy.hold_next(requests_to("PUT", "journal"))

    async with asyncio.TaskGroup() as tasks:
        put = tasks.create_task(place.put("/b/journal/1"))
        request = await hold.wait_reached()
        was_kept = bool(place.shelf.bodies)
        other = await place.put("/b/data")
        hold.release()

    assert request.key == "journal/1"
    assert not was_kept
    assert (other, put.result()) == (200, 200)
    assert "/b/journal/1" in place.shelf.bodies


async def test_a_held_request_outlives_its_sender(place: Place) -> None:
    hold = place.proxy.hold_next()
    sender = asyncio.get_running_loop().create_task(place.put("/b/late"))
    await hold.wait_reached()
    sender.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sender

    hold.release()
    async with asyncio.timeout(60):
        while "/b/late" not in place.shelf.bodies:
            await place.get("/b/other")  # Each turn goes to the server and back.

    assert place.shelf.bodies["/b/late"] == b"body"


async def test_a_held_answer_belongs_to_a_request_that_was_applied(place: Place) -> None:
    hold = place.proxy.hold_next(applied=True)

    async with asyncio.TaskGroup() as tasks:
        put = tasks.create_task(place.put("/b/k"))
        await hold.wait_reached()
        was_kept, was_answered = "/b/k" in place.shelf.bodies, put.done()
        hold.release()

    assert was_kept
    assert not was_answered
    assert put.result() == 200


async def test_nothing_passes_in_the_dark(place: Place) -> None:
    await place.put("/b/before")

    async with asyncio.TaskGroup() as tasks:
        with place.proxy.blackout():
            put = tasks.create_task(place.put("/b/k"))
            await asyncio.wait([put], timeout=0.2)
            was_kept, was_answered = "/b/k" in place.shelf.bodies, put.done()

    assert not was_kept
    assert not was_answered
    assert put.result() == 200


async def test_a_stall_takes_its_time_and_goes_on(place: Place) -> None:
    place.proxy.inject(Stall(0.2), times=1)
    loop = asyncio.get_running_loop()
    start = loop.time()

    status = await place.put("/b/k")

    assert status == 200
    assert loop.time() - start >= 0.19


async def test_a_slow_answer_drips(place: Place) -> None:
    await place.put("/b/k", b"x" * 1000)
    place.proxy.inject(SlowAnswer(bytes_per_second=5000))
    loop = asyncio.get_running_loop()
    start = loop.time()

    body = await place.get("/b/k")

    assert body == b"x" * 1000
    assert loop.time() - start >= 0.19


async def test_a_cut_answer_ends_in_its_body(place: Place) -> None:
    await place.put("/b/k", b"x" * 1000)
    place.proxy.inject(CutAnswer(body_bytes=10))

    with pytest.raises(aiohttp.ClientPayloadError):
        await place.get("/b/k")


async def test_open_connections_can_be_reset(place: Place) -> None:
    hold = place.proxy.hold_next()

    async with asyncio.TaskGroup() as tasks:
        put = tasks.create_task(swallow_connection_error(place.put("/b/k")))
        await hold.wait_reached()
        count = place.proxy.reset_connections()

    assert count >= 1
    assert put.result() is True


async def swallow_connection_error(request: object) -> bool:
    try:
        await request  # type: ignore[misc]  # Any awaitable will do.
    except aiohttp.ClientConnectionError:
        return True
    return False


async def test_a_server_that_is_gone_looks_like_a_broken_connection() -> None:
    async with running_shelf(Shelf()) as port:
        pass

    async with HttpFaultProxy(port) as proxy, aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.get(proxy.endpoint_url)


# Bytes


@asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        server = await asyncio.start_server(
            lambda reader, writer: void(tasks.create_task(echo(reader, writer))), "127.0.0.1", 0
        )
        async with server:
            yield server.sockets[0].getsockname()[1]


def void(_value: object) -> None:
    """Nothing: a callback that returns a task would be awaited by nobody."""


async def test_bytes_pass_both_ways_and_the_end_too() -> None:
    async with echo_server() as port, TcpFaultProxy(port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)

        writer.write(b"hello")
        writer.write_eof()
        answer = await reader.read()
        writer.close()

    assert answer == b"hello"
    assert proxy.statistics().to_server_bytes == 5
    assert proxy.statistics().to_client_bytes == 5


async def test_a_connection_breaks_after_so_many_bytes() -> None:
    async with echo_server() as port, TcpFaultProxy(port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        proxy.reset_after(3)

        writer.write(b"hello")
        with pytest.raises(ConnectionError):
            await reader.readexactly(5)
        writer.close()

        _, second = await asyncio.open_connection("127.0.0.1", proxy.port)
        second.close()

    assert proxy.statistics().to_client_bytes == 3


async def test_new_connections_can_be_refused() -> None:
    async with echo_server() as port, TcpFaultProxy(port) as proxy:
        proxy.refuse()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
        writer.close()

    assert proxy.statistics().refused_count == 1


async def test_bytes_wait_in_the_dark_and_arrive_after_it() -> None:
    async with echo_server() as port, TcpFaultProxy(port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with proxy.blackout():
            writer.write(b"hello")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await reader.readexactly(5)

        async with asyncio.timeout(60):
            answer = await reader.readexactly(5)
        writer.close()

    assert answer == b"hello"


async def test_lost_answers_are_a_named_fault() -> None:
    assert Reset(applied=True) == LOST_ANSWER
