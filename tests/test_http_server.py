"""What is served over HTTP: to Prometheus, to a load balancer, to a human."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from engine.cli.running_engine import ask_engine
from engine.config import Address, HttpConfiguration, Secret
from engine.model.errors import ConfigurationError
from engine.operate.access import Access
from engine.operate.http_server import HttpServer, PacedRegistry
from engine.operate.metrics import Metrics
from engine.operate.status import FoundTables, Phase, Status, TableStatus

LOOPBACK = Address("127.0.0.1", 0)
TOKEN = "0123456789abcdef"


@dataclass
class Engine:
    """An engine as far as HTTP sees it."""

    status: Status
    client: aiohttp.ClientSession


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    registry = CollectorRegistry()
    Metrics(registry, release="0.1.0")
    engine: Engine

    async with (
        HttpServer(LOOPBACK, lambda: engine.status, registry) as server,
        aiohttp.ClientSession(f"http://{server.address}") as client,
    ):
        engine = Engine(Status(phase="starting", since_us=1), client)
        yield engine


async def test_metrics_are_openmetrics_for_who_asks_for_it(engine: Engine) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0"}

    async with engine.client.get("/metrics", headers=accept) as answer:
        text = await answer.text()

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    names = {family.name for family in text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    assert "tailrace_durable_lag_seconds" in names


async def test_metrics_are_plain_text_for_who_does_not(engine: Engine) -> None:
    async with engine.client.get("/metrics") as answer:
        text = await answer.text()

    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "tailrace_connected 0.0" in text


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=1.0.0", "text/plain"])
def test_a_long_exposition_lets_the_loop_go_on_and_says_the_same(accept: str) -> None:
    registry = CollectorRegistry()
    rows = Counter("rows", "Rows", ("table",), registry=registry)
    for number in range(460):
        rows.labels(f"public.t{number}").inc()
    encoder, _ = choose_encoder(accept)
    pauses: list[float] = []

    text = encoder(PacedRegistry(registry, pauses.append))

    assert text == encoder(registry)
    assert text.count(b"public.t") >= 460
    assert len(pauses) >= 460 // 50


async def test_livez_answers_in_every_phase(engine: Engine) -> None:
    for phase in phases():
        engine.status = Status(phase=phase, since_us=1)
        async with engine.client.get("/livez") as answer:
            assert answer.status == 200


def phases() -> Iterator[Phase]:
    yield from (
        "starting",
        "standby",
        "opening",
        "redo",
        "snapshot",
        "streaming",
        "reconnecting",
        "draining",
        "stopped",
    )


async def test_readyz_is_200_only_while_streaming_or_standing_by(engine: Engine) -> None:
    codes: dict[Phase, int] = {}
    for phase in phases():
        engine.status = Status(phase=phase, since_us=1)
        async with engine.client.get("/readyz") as answer:
            codes[phase] = answer.status
            document = await answer.json()
            assert document["phase"] == phase
            assert document["ready"] is (answer.status == 200)
            assert bool(document.get("reason")) is (answer.status == 503)

    ready = {phase for phase, code in codes.items() if code == 200}
    assert ready == {"standby", "snapshot", "streaming"}
    assert set(codes.values()) == {200, 503}


async def test_readyz_says_why_not(engine: Engine) -> None:
    engine.status = Status(phase="reconnecting", since_us=1, last_error="server closed")

    async with engine.client.get("/readyz") as answer:
        document = await answer.json()

    assert document["reason"] == "the connection to the source was lost: server closed"


async def test_status_is_the_providers_in_json(engine: Engine) -> None:
    engine.status = Status(phase="streaming", since_us=7, epoch=3, durable_resume="0/16", tables=2)

    async with engine.client.get("/status") as answer:
        document = await answer.json()

    assert document["ready"] is True
    assert document["phase"] == "streaming"
    assert (document["epoch"], document["durable_resume"], document["tables"]) == (3, "0/16", 2)
    assert document["lag_seconds"] is None
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("phase", "alarms_total", "health"),
    [
        ("streaming", 0, "good"),
        ("standby", 0, "good"),
        ("streaming", 1, "bad"),
        ("standby", 1, "bad"),
        ("reconnecting", 0, "wait"),
        ("stopped", 0, "bad"),
    ],
)
async def test_an_engine_with_alarms_does_not_look_well(
    engine: Engine, phase: Phase, alarms_total: int, health: str
) -> None:
    engine.status = Status(phase=phase, since_us=7, alarms_total=alarms_total)

    async with engine.client.get("/status") as answer:
        document = await answer.json()

    assert document["health"] == health


async def test_the_page_needs_nothing_from_elsewhere(engine: Engine) -> None:
    async with engine.client.get("/") as answer:
        text = await answer.text()

    assert answer.status == 200
    assert answer.content_type == "text/html"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    # The name of SVG's elements is no address.
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


async def test_tables_are_found_by_a_part_of_their_name() -> None:
    asked: list[str] = []

    def find(text: str) -> FoundTables:
        asked.append(text)
        return FoundTables(total=7, tables=(TableStatus(table="public.orders"),))

    async with (
        HttpServer(LOOPBACK, absent_status, CollectorRegistry(), find_tables=find) as server,
        aiohttp.ClientSession(f"http://{server.address}") as client,
        client.get("/tables", params={"name": "Ord&ers"}) as answer,
        client.get("/tables") as unnamed,
    ):
        document = await answer.json()
        assert unnamed.status == 200

    assert asked == ["Ord&ers", ""]
    assert document["total"] == 7
    assert [each["table"] for each in document["tables"]] == ["public.orders"]


async def test_nothing_else_is_served_and_nothing_can_be_changed(engine: Engine) -> None:
    async with engine.client.get("/etc") as absent, engine.client.post("/status") as changing:
        assert (absent.status, changing.status) == (404, 405)


async def test_a_port_in_use_is_a_configuration_error_with_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = HttpServer(Address("127.0.0.1", port), absent_status, CollectorRegistry())

        with pytest.raises(ConfigurationError, match="the port is in use") as raised:
            await server.__aenter__()

    assert f"127.0.0.1:{port}" in str(raised.value)
    assert "http.listen" in raised.value.hint


@pytest.mark.parametrize(
    ("host", "text"),
    [("192.0.2.1", "no such address"), ("host.invalid", "the host is not known")],
)
async def test_an_address_that_cannot_be_had_is_a_configuration_error(host: str, text: str) -> None:
    server = HttpServer(Address(host, 0), absent_status, CollectorRegistry())

    with pytest.raises(ConfigurationError, match=text):
        await server.__aenter__()


@pytest.mark.parametrize("host", ["0.0.0.0", "::1"])
async def test_all_interfaces_and_ipv6_answer_too(host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    async with HttpServer(Address(host, 0), absent_status, CollectorRegistry()) as server:
        assert server.address is not None
        url = f"http://{server.address}/livez".replace("0.0.0.0", "127.0.0.1")
        async with aiohttp.ClientSession() as client, client.get(url) as answer:
            assert answer.status == 200


async def test_no_address_means_no_server() -> None:
    async with HttpServer(None, absent_status, CollectorRegistry()) as server:
        assert server.address is None


async def test_the_port_is_free_again_afterwards() -> None:
    async with HttpServer(LOOPBACK, absent_status, CollectorRegistry()) as first:
        address = first.address
    assert address is not None

    async with HttpServer(address, absent_status, CollectorRegistry()) as second:
        assert second.address == address


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
async def test_an_engine_on_this_machine_is_asked_for_its_status(host: str) -> None:
    own = Status(phase="streaming", since_us=7, writer_id="one")
    async with HttpServer(Address(host, 0), lambda: own, CollectorRegistry()) as server:
        port = port_at(server.address)

        asked = await asyncio.to_thread(ask_engine, port, "one")
        other = await asyncio.to_thread(ask_engine, port, "another")

    assert asked == own
    assert other is None
    assert ask_engine(port, "one") is None  # Nobody answers any more.
    assert ask_engine(port_at(None), "one") is None


async def test_an_engine_with_a_token_is_asked_with_it() -> None:
    own = Status(phase="streaming", since_us=7, writer_id="one")
    access = Access(Secret(TOKEN))
    async with HttpServer(LOOPBACK, lambda: own, CollectorRegistry(), access=access) as server:
        with_it = port_at(server.address, token=Secret(TOKEN))

        assert await asyncio.to_thread(ask_engine, with_it, "one") == own
        assert await asyncio.to_thread(ask_engine, port_at(server.address), "one") is None


async def test_what_is_no_status_is_no_engine() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        place = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        assert await asyncio.to_thread(ask_engine, port_at(place), "one") is None


def port_at(listen: Address | None, *, token: Secret | None = None) -> HttpConfiguration:
    return HttpConfiguration(listen=listen, token=token, token_file=None)


def absent_status() -> Status:
    return Status(phase="starting", since_us=0)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
