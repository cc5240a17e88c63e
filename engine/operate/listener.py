"""The port's connections: how many there may be, and for how long.

Strategy: connections are accepted one at a time. At the limit, the connection goes that has waited
longest without a request being answered. So a health check is answered, however many others sit
idle. Each connection has one clock, which starts when the connection is accepted, and again with
each request. It cuts off whoever has not sent a whole request by then, or has not read the answer.

Invariant: the port never holds more than `connections_max` descriptors and one. The rest of the
process's limit belongs to the engine, and nobody who can reach the port can take it.
"""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self

import structlog
from aiohttp.web import Server

from engine.config import Address

_BACKLOG: Final = 128

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections, and for how long. Times are seconds.

    `request_seconds`: from the accept to the end of the first request's headers. `idle_seconds`:
    from the beginning of one request to the beginning of the next; the answer has to be read within
    it.
    """

    connections_max: int = 64
    request_seconds: float = 10.0
    idle_seconds: float = 75.0
    sweep_interval: float = 1.0
    accept_pause: float = 1.0
    noise_interval: float = 60.0


class Noise:
    """What somebody outside can cause as often as they like, told at most once in an interval."""

    def __init__(self, interval: float, tell: Callable[[int], None]) -> None:
        self._interval = interval
        self._tell = tell
        self._count = 0
        self._told_at = float("-inf")

    def add(self) -> None:
        """Count one more, and tell how many there were since the last time if it is due."""
        self._count += 1
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= self._interval:
            self._told_at = now
            count, self._count = self._count, 0
            self._tell(count)


@dataclass(slots=True)
class _Connection:
    since: float
    transport: asyncio.Transport | None = None
    has_asked: bool = False
    is_answered: bool = False


class Listener:
    """Listens inside `async with`. Leaving closes the port, not the connections: the server does.

    Entering raises OSError where the address cannot be had. Cancellation while entering or leaving
    leaves nothing listening.
    """

    def __init__(self, address: Address, server: Server, limits: ConnectionLimits) -> None:
        self._address = address
        self._server = server
        self._limits = limits
        self._sockets: list[socket.socket] = []
        # Keyed by aiohttp's protocol, as requests name their connection.
        self._connections: dict[object, _Connection] = {}
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._displaced = Noise(limits.noise_interval, _tell_displaced)
        self._unaccepted = Noise(limits.noise_interval, _tell_unaccepted)

    @property
    def address(self) -> Address | None:
        """The first address with its real port; None while nothing listens."""
        if not self._sockets:
            return None
        host, port = self._sockets[0].getsockname()[:2]
        return Address(host, port)

    async def __aenter__(self) -> Self:
        self._sockets = await listening_sockets(self._address)
        await self._group.__aenter__()
        self._tasks = [self._group.create_task(self._accept(each)) for each in self._sockets]
        self._tasks.append(self._group.create_task(self._sweep()))
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            # The tasks end first, because uvloop goes on watching a socket that was closed before.
            await self._group.__aexit__(None, None, None)
        finally:
            self._close()

    def _close(self) -> None:
        for each in self._sockets:
            each.close()
        self._sockets.clear()

    @contextlib.contextmanager
    def answering(self, protocol: object) -> Iterator[None]:
        """While a request of that connection is answered. Its clock starts again."""
        connection = self._connections.get(protocol)
        if connection is None:
            yield
            return
        connection.since = asyncio.get_running_loop().time()
        connection.has_asked = connection.is_answered = True
        try:
            yield
        finally:
            connection.is_answered = False

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    # There is no descriptor or no memory. Whoever wants something waits in the
                    # backlog.
                    self._unaccepted.add()
                    await asyncio.sleep(self._limits.accept_pause)
                continue
            try:
                await self._admit(accepted)
            except OSError:
                # The client had gone before the connection was accepted.
                accepted.close()

    async def _admit(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._forget_closed()
        if len(self._connections) >= self._limits.connections_max:
            self._displaced.add()
            if not self._displace():
                accepted.close()
                return
            # The descriptor of the displaced connection is closed in the loop's next turn.
            await asyncio.sleep(0)
        protocol = self._server()
        connection = self._connections[protocol] = _Connection(loop.time())
        try:
            connection.transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted)
        except OSError:
            del self._connections[protocol]
            raise

    def _displace(self) -> bool:
        """Close the connection that waits longest; False where all are being answered."""
        waiting = (
            (connection.has_asked, connection.since, id(protocol), protocol)
            for protocol, connection in self._connections.items()
            if not connection.is_answered
        )
        longest = min(waiting, default=None)
        if longest is None:
            return False
        _abort(self._connections.pop(longest[-1]))
        return True

    def _forget_closed(self) -> None:
        opened = set(self._server.connections)
        for protocol in self._connections.keys() - opened:
            if self._connections[protocol].transport is not None:
                del self._connections[protocol]

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        limits = self._limits
        while True:
            await asyncio.sleep(limits.sweep_interval)
            self._forget_closed()
            now = loop.time()
            for protocol, connection in list(self._connections.items()):
                seconds = limits.idle_seconds if connection.has_asked else limits.request_seconds
                if now - connection.since > seconds:
                    _abort(self._connections.pop(protocol))


def _abort(connection: _Connection) -> None:
    if connection.transport is not None:
        # `close` would wait until the peer has read everything.
        connection.transport.abort()


async def listening_sockets(address: Address) -> list[socket.socket]:
    """Sockets that listen on each address that its host has; the caller closes them.

    Raises OSError where one of them cannot be had. Then, and after a cancellation, nothing listens.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, *_, place in dict.fromkeys(found):
            sockets.append(_listening(family, place))
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def _listening(family: int, address: tuple[object, ...]) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.setblocking(False)
        found.bind(address)
        found.listen(_BACKLOG)
    except OSError:
        found.close()
        raise
    return found


def _tell_displaced(count: int) -> None:
    _log.warning("http connections at their limit", count=count)


def _tell_unaccepted(count: int) -> None:
    _log.warning("http connections cannot be accepted", count=count)
