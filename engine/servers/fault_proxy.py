"""Proxies on loopback that do to a connection what networks and servers do on a bad day.

`HttpFaultProxy` stands before a real S3 server and understands requests. Faults are chosen by
method, key, count or chance. Its line to the server may be given a latency and a rate.
`TcpFaultProxy` knows only bytes and connections (PostgreSQL).

Strategy: bytes pass as they came, header for header, so signatures stay valid (`Host` is the
proxy's, for sender and server alike). Only `Expect: 100-continue` is answered here. A fault is a
value. A rule says when it strikes, and counts how often it did. Where a fault concerns an answer,
the proxy first awaits the server's whole answer. So "applied, but the sender never heard of it" is
certain, and not a race. Nothing here sleeps to make something likely: holds are gates.

Clients reach a proxy at `host`: loopback, where nobody says otherwise. The server behind it is on
loopback. With `tls` clients speak TLS to the proxy, and the server behind it does not.

Both run in the event loop of whoever measures or tests. Clients in other processes reach them like
any server. Code that blocks that loop blocks the proxy.
"""

import asyncio
import math
import random
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Self, assert_never
from urllib.parse import parse_qs, unquote, urlsplit

LOOPBACK = "127.0.0.1"
_READ_BYTES = 64 * 1024
_HEAD_BYTES_MAX = 256 * 1024


# Requests


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived. `path` and `key` are decoded; `number` counts all requests, from 1.

    Bucket and key are those of path-style addressing.
    """

    number: int
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]

    @property
    def bucket(self) -> str:
        return self.path.lstrip("/").partition("/")[0]

    @property
    def key(self) -> str:
        return self.path.lstrip("/").partition("/")[2]

    @property
    def parameters(self) -> dict[str, list[str]]:
        """The query's parameters; those without a value have an empty one."""
        return parse_qs(self.query, keep_blank_values=True)

    def header(self, name: str) -> str:
        """The first header of that name, in any case; empty without."""
        lower = name.lower()
        return next((value for key, value in self.headers if key.lower() == lower), "")


When = Callable[[Request], bool]


def requests_to(method: str | None = None, key_contains: str = "") -> When:
    """Match requests by method (None: any) and by a part of the key."""
    return lambda request: method in {None, request.method} and key_contains in request.key


def any_request(_request: Request) -> bool:
    return True


# Faults


@dataclass(frozen=True, slots=True)
class Answer:
    """The proxy answers by itself, with an S3 error document unless `body` is given.

    `applied` says whether the request went to the server before (and its own answer was dropped).
    """

    status: int
    code: str = ""
    message: str = "injected"
    applied: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None

    def document(self) -> bytes:
        if self.body is not None:
            return self.body
        if not self.code:
            return b""
        text = f"<Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>"
        return f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset: before the server heard of the request, or after it answered."""

    applied: bool = False


@dataclass(frozen=True, slots=True)
class Stall:
    """Silence for that long, then all goes on; before the server heard of it, or after."""

    seconds: float
    applied: bool = False


@dataclass(frozen=True, slots=True)
class SlowAnswer:
    """The server's answer arrives at this rate."""

    bytes_per_second: int


@dataclass(frozen=True, slots=True)
class CutAnswer:
    """The connection is reset in the middle of the answer's body, after so many bytes of it."""

    body_bytes: int


Fault = Answer | Reset | Stall | SlowAnswer | CutAnswer


@dataclass(frozen=True, slots=True)
class Line:
    """How far away the server is: what every request waits, and what a connection carries.

    The rate holds for requests' bodies and for answers, each way by itself.
    """

    latency_seconds: float = 0.0
    bytes_per_second: float = math.inf


NEAR = Line()
SLOW_DOWN = Answer(503, "SlowDown")
INTERNAL_ERROR = Answer(500, "InternalError")
CONFLICT = Answer(409, "ConditionalRequestConflict")
LOST_ANSWER = Reset(applied=True)


@dataclass(slots=True)
class Rule:
    """When `fault` strikes: among the matching requests the `nth` ones (from 1), at most `times`.

    Otherwise by chance. `matches` and `hits` count what happened so far.
    """

    fault: Fault
    when: When
    nth: frozenset[int] | None = None
    times: int | None = None
    probability: float = 1.0
    seed: int = 0
    matches: int = 0
    hits: int = 0
    _chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def strikes(self, request: Request, *, is_struck: bool = False) -> bool:
        """Count `request`, and tell whether this rule strikes it. Never what another struck."""
        if not self.when(request):
            return False
        self.matches += 1
        if is_struck:
            return False
        is_due = self.times is None or self.hits < self.times
        is_nth = self.nth is None or self.matches in self.nth
        is_chance = self.probability >= 1 or self._chance.random() < self.probability
        if is_due and is_nth and is_chance:
            self.hits += 1
            return True
        return False


class Hold:
    """One request that waits at a gate, whole and in the proxy's hands.

    Until `release` its sender hears nothing. The sender may die meanwhile, and the request still
    goes to the server on release: it is the late packet of a dead client.
    """

    def __init__(self, when: When, *, applied: bool) -> None:
        self.when = when
        self.applied = applied
        self.request: Request | None = None
        self._reached = asyncio.Event()
        self._released = asyncio.Event()

    @property
    def is_reached(self) -> bool:
        return self._reached.is_set()

    async def wait_reached(self, seconds: float = 60.0) -> Request:
        """The held request, once there is one. Raises TimeoutError.

        Cancellation changes nothing.
        """
        async with asyncio.timeout(seconds):
            await self._reached.wait()
        assert self.request is not None
        return self.request

    def release(self) -> None:
        """Let it go on. Never waits."""
        self._released.set()

    def catch(self, request: Request) -> None:
        self.request = request

    async def pass_gate(self) -> None:
        """Wait at the gate, in the proxy's name. Cancellation leaves the gate as it is."""
        self._reached.set()
        await self._released.wait()


@dataclass(frozen=True, slots=True)
class HttpStatistics:
    """What passed so far. `faults` counts by the fault's value, `requests` by method."""

    requests: Counter[str]
    faults: Counter[Fault]


# Servers


class _LoopbackProxy:
    """A listening socket, its connections, and the switch that stops every byte of them."""

    def __init__(
        self,
        upstream_port: int,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self._upstream_port = upstream_port
        self._wanted_port = port
        self._tls = tls
        self._port = 0
        self._exit_stack = AsyncExitStack()
        self._tasks: asyncio.TaskGroup
        self._connections: set[asyncio.Task[None]] = set()
        self._open_writers: set[asyncio.StreamWriter] = set()
        self._light = asyncio.Event()
        self._light.set()

    @property
    def port(self) -> int:
        assert self._port, "not started"
        return self._port

    def go_dark(self) -> None:
        """From now on no byte passes; connections stay open, new ones are accepted and ignored."""
        self._light.clear()

    def go_light(self) -> None:
        """Everything that waited goes on."""
        self._light.set()

    @contextmanager
    def blackout(self) -> Iterator[None]:
        """Darkness for the length of the block."""
        self.go_dark()
        try:
            yield
        finally:
            self.go_light()

    def reset_connections(self) -> int:
        """Reset every open connection, clients' and server's; how many sockets."""
        writers = tuple(self._open_writers)
        for writer in writers:
            _reset(writer)
        return len(writers)

    async def __aenter__(self) -> Self:
        self._tasks = await self._exit_stack.enter_async_context(asyncio.TaskGroup())
        server = await asyncio.start_server(
            self._accept, self.host, self._wanted_port, limit=_HEAD_BYTES_MAX, ssl=self._tls
        )
        self._port = server.sockets[0].getsockname()[1]
        self._exit_stack.callback(self._end, server)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all connections at once."""
        await self._exit_stack.aclose()
        # A transport's end becomes known in the loop's next turn.
        await asyncio.sleep(0)

    def _end(self, server: asyncio.Server) -> None:
        server.close()
        for task in tuple(self._connections):
            task.cancel()
        for writer in tuple(self._open_writers):
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._tasks.create_task(self._run(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open_writers.add(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            # One of the two sides is gone: so is this connection, as without a proxy.
            _reset(writer)
        finally:
            self._open_writers.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def wait_light(self) -> None:
        """Wait out the dark."""
        await self._light.wait()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server, which ends with the proxy."""
        reader, writer = await asyncio.open_connection(
            LOOPBACK, self._upstream_port, limit=_HEAD_BYTES_MAX
        )
        self._open_writers.add(writer)
        return reader, writer

    def disconnect(self, writer: asyncio.StreamWriter) -> None:
        """Give up a connection to the server."""
        self._open_writers.discard(writer)
        writer.close()

    async def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Send once there is light, and wait until the peer took most of it."""
        await self._light.wait()
        writer.write(data)
        await writer.drain()


class HttpFaultProxy(_LoopbackProxy):
    """An HTTP/1.1 proxy before the server on `upstream_port` of loopback. Use as `async with`.

    The first rule that strikes a request decides; holds come before rules.
    """

    def __init__(
        self,
        upstream_port: int,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(upstream_port, host=host, port=port, tls=tls)
        self._rules: list[Rule] = []
        self._holds: list[Hold] = []
        self._numbers = count(1)
        self._request_counts: Counter[str] = Counter()
        self._fault_counts: Counter[Fault] = Counter()
        self._at_gate_count = 0
        self.requests: list[Request] = []
        self.line = NEAR
        """May be changed at any time: it holds for requests that arrive from then on."""

    @property
    def endpoint_url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    def inject(
        self,
        fault: Fault,
        when: When = any_request,
        *,
        nth: int | tuple[int, ...] | None = None,
        times: int | None = None,
        probability: float = 1.0,
        seed: int = 0,
    ) -> Rule:
        """Add a rule, after those there are; it counts from now on."""
        numbers = (nth,) if isinstance(nth, int) else nth
        rule = Rule(
            fault,
            when,
            nth=None if numbers is None else frozenset(numbers),
            times=times,
            probability=probability,
            seed=seed,
        )
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget all rules; what they struck already stays struck."""
        self._rules.clear()

    def hold_next(self, when: When = any_request, *, applied: bool = False) -> Hold:
        """Hold the next matching request, before the server hears of it; or (applied) its answer.

        One hold catches one request.
        """
        hold = Hold(when, applied=applied)
        self._holds.append(hold)
        return hold

    @property
    def passing_count(self) -> int:
        """Connections of clients that have no request at a gate.

        What a client sent before it died is still read and passed on. Once there is none of these,
        nothing of it is left but what is held.
        """
        return len(self._connections) - self._at_gate_count

    @contextmanager
    def at_gate(self) -> Iterator[None]:
        """A connection's request waits at a gate for the length of the block."""
        self._at_gate_count += 1
        try:
            yield
        finally:
            self._at_gate_count -= 1

    def statistics(self) -> HttpStatistics:
        return HttpStatistics(Counter(self._request_counts), Counter(self._fault_counts))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = _Exchange(self, reader, writer)
        try:
            while await exchange.next_request():
                pass
        finally:
            exchange.close()

    def take(self, method: str, target: str, headers: tuple[tuple[str, str], ...]) -> Request:
        """Note a request that arrived."""
        parts = urlsplit(f"//proxy{target}" if target.startswith("/") else target)
        path = unquote(parts.path)
        request = Request(next(self._numbers), method, path, parts.query, headers)
        self._request_counts[method] += 1
        self.requests.append(request)
        return request

    def hold_of(self, request: Request) -> Hold | None:
        """The hold that catches `request`, if one does; it catches no other then."""
        for hold in self._holds:
            if hold.when(request):
                self._holds.remove(hold)
                hold.catch(request)
                return hold
        return None

    def fault_of(self, request: Request) -> Fault | None:
        """What strikes `request`. Every rule sees it, so that `nth` counts all that match."""
        fault: Fault | None = None
        for rule in self._rules:
            if rule.strikes(request, is_struck=fault is not None):
                fault = rule.fault
        if fault is not None:
            self._fault_counts[fault] += 1
        return fault


class _Exchange:
    """A client's connection and, once needed, its own connection to the server."""

    def __init__(
        self, proxy: HttpFaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def close(self) -> None:
        if self._upstream is not None:
            self._proxy.disconnect(self._upstream[1])
            self._upstream = None

    async def next_request(self) -> bool:
        """Serve one request; whether another may follow on this connection."""
        head = await _read_head(self._reader)
        if head is None:
            return False
        await self._proxy.wait_light()
        method, target, _version = head.first_line.split(" ", 2)
        request = self._proxy.take(method, target, head.headers)
        if head.header("expect").lower() == "100-continue":
            await self._proxy.send(self._writer, b"HTTP/1.1 100 Continue\r\n\r\n")
            head = head.without("expect")
        hold = self._proxy.hold_of(request)
        fault = None if hold else self._proxy.fault_of(request)
        if hold is not None:
            return await self._serve_held(hold, request, head)
        if fault is None:
            return await self._pass_on(request, head)
        return await self._strike(fault, request, head)

    async def _strike(self, fault: Fault, request: Request, head: "_Head") -> bool:
        match fault:
            case Answer():
                if fault.applied:
                    await self._apply(request, head)
                else:
                    await _drain(head.body(self._reader))
                await self._proxy.send(self._writer, _answer_bytes(fault, request.method))
                return True
            case Reset():
                if fault.applied:
                    await self._apply(request, head)
                _reset(self._writer)
                return False
            case Stall():
                if fault.applied:
                    answer = await self._apply(request, head)
                    await asyncio.sleep(fault.seconds)
                    await self._proxy.send(self._writer, answer)
                    return True
                await asyncio.sleep(fault.seconds)
                return await self._pass_on(request, head)
            case SlowAnswer():
                answer = await self._apply(request, head)
                await self._send_slowly(answer, fault.bytes_per_second)
                return True
            case CutAnswer():
                answer = await self._apply(request, head)
                end = answer.index(b"\r\n\r\n") + 4 + fault.body_bytes
                await self._proxy.send(self._writer, answer[:end])
                # A reset would overtake what the client has not read yet. So only the sending side
                # is closed.
                self._writer.close()
                return False
            case _:
                assert_never(fault)

    async def _serve_held(self, hold: Hold, request: Request, head: "_Head") -> bool:
        body = await _drain(head.body(self._reader))
        answer = await self._ask_upstream(request, head, body) if hold.applied else b""
        with self._proxy.at_gate():
            await hold.pass_gate()
        if not hold.applied:
            answer = await self._ask_upstream(request, head, body)
        await self._proxy.send(self._writer, answer)
        return True

    async def _apply(self, request: Request, head: "_Head") -> bytes:
        """Let the server do it; its whole answer."""
        return await self._ask_upstream(request, head, await _drain(head.body(self._reader)))

    async def _ask_upstream(self, request: Request, head: "_Head", body: bytes) -> bytes:
        reader, writer = await self._server()
        await self._proxy.send(writer, head.to_bytes() + body)
        answer = await _read_answer_head(reader)
        pieces = [answer.to_bytes()]
        pieces += [piece async for piece in answer.answer_body(reader, request.method)]
        if answer.ends_connection(request.method):
            self.close()
        return b"".join(pieces)

    async def _pass_on(self, request: Request, head: "_Head") -> bool:
        """Stream request and answer; whether the connection lives on."""
        line = self._proxy.line
        if line.latency_seconds:
            await asyncio.sleep(line.latency_seconds)
        reader, writer = await self._server()
        is_body_sent = False

        async def send_body() -> None:
            nonlocal is_body_sent
            await self._proxy.send(writer, head.to_bytes())
            async for piece in _paced(head.body(self._reader), line.bytes_per_second):
                await self._proxy.send(writer, piece)
            is_body_sent = True

        async def send_answer() -> _Head:
            answer = await _read_answer_head(reader)
            await self._proxy.send(self._writer, answer.to_bytes())
            pieces = answer.answer_body(reader, request.method)
            async for piece in _paced(pieces, line.bytes_per_second):
                await self._proxy.send(self._writer, piece)
            # A server may answer before it has read the whole body. What is left of the body then
            # has no meaning.
            body_task.cancel()
            return answer

        try:
            async with asyncio.TaskGroup() as tasks:
                body_task = tasks.create_task(send_body())
                answer_task = tasks.create_task(send_answer())
        except ExceptionGroup as group:
            raise _lost_connection(group) from group
        ends = head.closes or answer_task.result().ends_connection(request.method)
        return is_body_sent and not ends

    async def _send_slowly(self, answer: bytes, bytes_per_second: int) -> None:
        step = max(1, bytes_per_second // 20)
        for start in range(0, len(answer), step):
            await self._proxy.send(self._writer, answer[start : start + step])
            await asyncio.sleep(step / bytes_per_second)

    async def _server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._upstream is not None and self._upstream[0].at_eof():
            self.close()  # The server ended it while nobody asked anything.
        if self._upstream is None:
            self._upstream = await self._proxy.connect()
        return self._upstream


# HTTP/1.1 as RFC 9112 frames it


@dataclass(frozen=True, slots=True)
class _Head:
    """A request's or an answer's head."""

    first_line: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def without(self, name: str) -> "_Head":
        headers = tuple(pair for pair in self.headers if pair[0].lower() != name)
        return _Head(self.first_line, headers)

    @property
    def closes(self) -> bool:
        return self.header("connection").lower() == "close" or "HTTP/1.0" in self.first_line

    def ends_connection(self, method: str) -> bool:
        """Whether the connection has no use after this answer to `method`."""
        has_length = self.header("content-length") or self.header("transfer-encoding")
        return self.closes or not (has_length or self.is_bodyless(method))

    def is_bodyless(self, method: str) -> bool:
        return method == "HEAD" or self.first_line.split(" ")[1] in {"204", "304"}

    def to_bytes(self) -> bytes:
        lines = [self.first_line, *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def body(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """The body's pieces as they are on the wire, chunk framing included."""
        if "chunked" in self.header("transfer-encoding").lower():
            return _read_chunked(reader)
        return _read_exactly(reader, int(self.header("content-length") or 0))

    def answer_body(self, reader: asyncio.StreamReader, method: str) -> AsyncIterator[bytes]:
        if self.is_bodyless(method):
            return _read_exactly(reader, 0)
        if self.header("content-length") or self.header("transfer-encoding"):
            return self.body(reader)
        return _read_to_end(reader)


async def _read_head(reader: asyncio.StreamReader) -> _Head | None:
    """The next head; None where the connection ends before one."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first_line, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return _Head(first_line, tuple((name, value.strip()) for name, _, value in pairs))


async def _read_answer_head(reader: asyncio.StreamReader) -> _Head:
    """The head of the final answer; interim ones (1xx) are swallowed."""
    while True:
        head = await _read_head(reader)
        if head is None:
            raise ConnectionResetError("the server closed the connection without an answer")
        if not head.first_line.split(" ")[1].startswith("1"):
            return head


async def _read_exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size > 0:
        piece = await reader.read(min(size, _READ_BYTES))
        if not piece:
            raise ConnectionResetError("the connection ended in a body")
        size -= len(piece)
        yield piece


async def _read_chunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        line = await reader.readuntil(b"\r\n")
        yield line
        size = int(line.split(b";")[0], 16)
        if size == 0:
            break
        async for piece in _read_exactly(reader, size + 2):
            yield piece
    while True:
        trailer = await reader.readuntil(b"\r\n")
        yield trailer
        if trailer == b"\r\n":
            return


async def _read_to_end(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(_READ_BYTES):
        yield piece


async def _paced(pieces: AsyncIterator[bytes], bytes_per_second: float) -> AsyncIterator[bytes]:
    """The pieces, each once the line has carried it. A line that idled has not saved anything."""
    clock = asyncio.get_running_loop().time
    carried_at = 0.0
    async for piece in pieces:
        carried_at = max(carried_at, clock()) + len(piece) / bytes_per_second
        if carried_at > clock():
            await asyncio.sleep(carried_at - clock())
        yield piece


async def _drain(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def _answer_bytes(answer: Answer, method: str) -> bytes:
    body = b"" if method == "HEAD" else answer.document()
    headers = (*answer.headers, ("Content-Type", "application/xml"))
    if answer.status != 204:
        headers += (("Content-Length", str(len(body))),)
    return _Head(f"HTTP/1.1 {answer.status} Injected", headers).to_bytes() + body


def _lost_connection(group: ExceptionGroup) -> ConnectionResetError:
    """What two pumps that failed amount to. Raises whatever is no lost connection: a bug."""
    _, rest = group.split((OSError, asyncio.IncompleteReadError))
    if rest is not None:
        raise rest
    return ConnectionResetError("one side is gone")


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a TCP reset instead of an orderly end."""
    raw = writer.get_extra_info("socket")
    if raw is not None and not writer.transport.is_closing():
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# Bytes


@dataclass(frozen=True, slots=True)
class TcpStatistics:
    """What passed so far. Bytes count what was sent on."""

    connection_count: int
    refused_count: int
    to_server_bytes: int
    to_client_bytes: int


class TcpFaultProxy(_LoopbackProxy):
    """A proxy of bytes before the server on `upstream_port` of loopback. Use as `async with`.

    `go_dark` and `blackout` stall all connections, `reset_connections` breaks them.
    """

    def __init__(
        self,
        upstream_port: int,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(upstream_port, host=host, port=port, tls=tls)
        self.is_refusing = False
        self._client_bytes_left: int | None = None
        self._connection_count = 0
        self._refused_count = 0
        self._to_server_bytes = 0
        self._to_client_bytes = 0

    def refuse(self) -> None:
        """From now on new connections are reset as soon as they are made."""
        self.is_refusing = True

    def accept(self) -> None:
        """Undo `refuse`."""
        self.is_refusing = False

    def reset_after(self, to_client_bytes: int) -> None:
        """Reset the connection that carries the server's next bytes to a client, after so many.

        Once: the connections after that live.
        """
        self._client_bytes_left = to_client_bytes

    def statistics(self) -> TcpStatistics:
        return TcpStatistics(
            self._connection_count,
            self._refused_count,
            self._to_server_bytes,
            self._to_client_bytes,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_refusing:
            self._refused_count += 1
            _reset(writer)
            return
        self._connection_count += 1
        server_reader, server_writer = await self.connect()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump_to_server(reader, server_writer))
                tasks.create_task(self._pump_to_client(server_reader, writer))
        except ExceptionGroup as group:
            # What happens to one side has to happen to the other side too.
            _reset(server_writer)
            raise _lost_connection(group) from group
        finally:
            self.disconnect(server_writer)

    async def _pump_to_server(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(_READ_BYTES):
            await self.send(writer, data)
            self._to_server_bytes += len(data)
        if writer.can_write_eof():
            writer.write_eof()

    async def _pump_to_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(_READ_BYTES):
            if self._client_bytes_left is not None:
                if len(data) > self._client_bytes_left:
                    await self.send(writer, data[: self._client_bytes_left])
                    self._to_client_bytes += self._client_bytes_left
                    self._client_bytes_left = None
                    _reset(writer)
                    raise ConnectionResetError("cut as asked")
                self._client_bytes_left -= len(data)
            await self.send(writer, data)
            self._to_client_bytes += len(data)
        if writer.can_write_eof():
            writer.write_eof()
