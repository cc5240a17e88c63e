"""What the engine serves over HTTP: metrics, health, status, and a page for a human.

Strategy: everything is read from a `StatusProvider` and a registry, and nothing can be changed
through the port. The exposition of very many tables takes 10 to 20 ms, so it is made in a thread.
That thread pauses after every few samples. Otherwise the loop, which wants the interpreter's lock
back after each of its system calls, would wait for up to 5 ms each time.

With a token (`engine.operate.access`) only who knows it may read. Health is for everybody, because
a platform's health check sends none; to those without it, `/readyz` gives its reason without names.

Invariant: no answer waits for the source or the bucket, so a health check never hangs with them.
Whatever is asked, the engine goes on: connections have limits (`engine.operate.listener`),
expositions are made one at a time, and what strangers can cause is logged at most once a minute.
"""

import asyncio
import base64
import errno
import functools
import importlib.resources
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Self

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Sample

from engine.config import Address
from engine.model.errors import ConfigurationError
from engine.model.printable import printable_json
from engine.operate.access import Access, challenge
from engine.operate.listener import ConnectionLimits, Listener, Noise, listening_sockets
from engine.operate.status import (
    PHASE_REASONS,
    FoundTables,
    Status,
    StatusProvider,
    TableFinder,
)

SHUTDOWN_SECONDS = 1.0
"""How long an answer in progress may take when the server stops.

The drain must not wait for a scrape.
"""

# With these limits, 64 connections hold at most 17 MiB of bytes that are not a whole request yet.
_HEADERS_MAX: Final = 32

# What a version in an Accept header may be. The library fails at "1.x" and at "\"1.0.0\"".
_VERSION: Final = re.compile(r"(\d{1,3}(\.\d{1,3}){0,2})?")

_FOR_EVERYBODY: Final = frozenset({"/livez", "/readyz"})

_log = structlog.get_logger(__name__)

_Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Guard = Callable[[web.Request, _Answer], Awaitable[web.StreamResponse]]

_SAMPLES_A_SLICE = 50
"""Samples between two pauses: they are written in about a third of a millisecond. In the meantime a
busy loop turned 220 times a millisecond with pauses, and 95 times without (two cores that others
used too, medians of three)."""

_PAUSE_SECONDS = 0.0005

_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""The page's own script and style, and its own engine. `require-trusted-types-for` makes a mistake
that would write what it was told as markup an error."""


class HttpServer:
    """The server's life: listening inside `async with`, closed after it.

    `listen` None serves nothing. Entering raises ConfigurationError where the address cannot be
    had. Cancellation while entering or leaving leaves nothing listening.
    """

    def __init__(
        self,
        listen: Address | None,
        status_provider: StatusProvider,
        registry: CollectorRegistry,
        limits: ConnectionLimits | None = None,
        *,
        access: Access | None = None,
        find_tables: TableFinder | None = None,
    ) -> None:
        self._listen = listen
        self._access = access or Access()
        self._limits = limits or ConnectionLimits()
        self._listener: Listener | None = None
        self._exit_stack = AsyncExitStack()
        self._failed = Noise(self._limits.noise_interval, _tell_failed)
        self._refused = Noise(self._limits.noise_interval, _tell_refused)
        self._runner = web.AppRunner(
            make_application(
                _Answers(status_provider, registry, self._access, find_tables or _find_nothing),
                self._guarded,
            ),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=SHUTDOWN_SECONDS,
            logger=_RequestLogger(Noise(self._limits.noise_interval, _tell_malformed)),
            # The listener has a clock for each connection.
            keepalive_timeout=0x7FFFFFFF,
            max_headers=_HEADERS_MAX,
            # No request's body is read. What follows a refused request is not waited for and not
            # unpacked.
            lingering_time=0.0,
            auto_decompress=False,
        )

    @property
    def address(self) -> Address | None:
        """Where it listens, with the real port; None while it does not."""
        return self._listener.address if self._listener is not None else None

    async def __aenter__(self) -> Self:
        if self._listen is None:
            return self
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._runner.cleanup)
            await self._runner.setup()
            server = self._runner.server
            if server is None:
                raise RuntimeError("a runner that was set up has no server")
            self._listener = Listener(self._listen, server, self._limits)
            try:
                await stack.enter_async_context(self._listener)
            except OSError as error:
                raise _refused(self._listen, error) from error
            self._exit_stack = stack.pop_all()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._exit_stack.aclose()

    async def _guarded(self, request: web.Request, answer: _Answer) -> web.StreamResponse:
        """Every answer passes here: its connection's clock, and errors that nobody foresaw."""
        if self._listener is None:
            return await self._answered(request, answer)
        with self._listener.answering(request.protocol):
            return await self._answered(request, answer)

    async def _answered(self, request: web.Request, answer: _Answer) -> web.StreamResponse:
        try:
            if not (_is_for_everybody(request) or await _is_granted(self._access, request)):
                return self._refusal(request)
            return await answer(request)
        except web.HTTPException as response:
            # The error's text may repeat what was asked for, so it is not logged.
            return _json({"error": response.reason}, code=response.status, headers=_allow(response))
        except Exception:  # noqa: BLE001 - a bug of one answer is not the engine's end
            self._failed.add()
            return _json({"error": "internal error"}, code=500)

    def _refusal(self, request: web.Request) -> web.Response:
        if "Authorization" in request.headers:
            # Without one it is a browser that asks its user next.
            self._refused.add()
        return _json(
            {
                "error": "the port wants the token of http.token",
                "hint": "send it as Authorization: Bearer …, or in a browser as the password",
            },
            code=401,
            headers={"WWW-Authenticate": challenge(request.headers.get("Accept", ""))},
        )


async def try_listening(listen: Address) -> None:
    """Listen where `HttpServer` would, answer nobody, and stop at once.

    Raises ConfigurationError where the address cannot be had. Cancellation leaves nothing
    listening.
    """
    try:
        sockets = await listening_sockets(listen)
    except OSError as error:
        raise _refused(listen, error) from error
    for each in sockets:
        each.close()


async def _is_granted(access: Access, request: web.Request) -> bool:
    return await access.is_granted(request.headers.get("Authorization", ""))


def _is_for_everybody(request: web.Request) -> bool:
    # By the route that was found, not by the path that was asked for: it is that which answers.
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical in _FOR_EVERYBODY


class _RequestLogger(logging.Logger):
    """What aiohttp logs of malformed requests. It would be an ERROR for each, without end."""

    def __init__(self, malformed: Noise) -> None:
        super().__init__("engine.http.requests", logging.WARNING)
        self._malformed = malformed

    def handle(self, record: logging.LogRecord) -> None:
        """Count it: who sent it and what it was is a stranger's text."""
        del record
        self._malformed.add()


def _tell_malformed(count: int) -> None:
    _log.warning("http requests that are none", count=count)


def _tell_refused(count: int) -> None:
    _log.warning("http requests with a wrong token", count=count)


def _tell_failed(count: int) -> None:
    _log.error(
        "http answers failed",
        count=count,
        hint="the engine goes on; this is a fault in it: report it with this line",
        exc_info=True,
    )


def make_application(answers: "_Answers", guarded: _Guard) -> web.Application:
    """The routes, without a server. Every request passes `guarded`."""

    @web.middleware
    async def guard(request: web.Request, handler: _Answer) -> web.StreamResponse:
        return await guarded(request, handler)

    application = web.Application(middlewares=[guard])
    application.router.add_get("/", answers.page)
    application.router.add_get("/livez", answers.livez)
    application.router.add_get("/readyz", answers.readyz)
    application.router.add_get("/status", answers.status)
    application.router.add_get("/tables", answers.tables)
    application.router.add_get("/metrics", answers.metrics)
    return application


class _Answers:
    """One coroutine a route. None of them waits for anything outside this process."""

    def __init__(
        self,
        status_provider: StatusProvider,
        registry: CollectorRegistry,
        access: Access,
        find_tables: TableFinder,
    ) -> None:
        self._status_provider = status_provider
        self._find_tables = find_tables
        self._access = access
        self._exposition = _Exposition(registry)

    async def livez(self, request: web.Request) -> web.Response:
        """An answer at all says that the event loop turns."""
        del request
        return _json({"live": True})

    async def readyz(self, request: web.Request) -> web.Response:
        status = self._status_provider()
        answer = {"ready": status.is_ready, "phase": status.phase}
        if status.is_ready:
            return _json(answer)
        is_granted = await _is_granted(self._access, request)
        reason = _reason(status) if is_granted else _phase_text(status)
        return _json(answer | {"reason": reason}, code=503)

    async def status(self, request: web.Request) -> web.Response:
        del request
        status = self._status_provider()
        judged = {
            "ready": status.is_ready,
            "health": status.health,
            "health_reason": status.health_reason,
        }
        return _json(judged | msgspec.to_builtins(status))

    async def tables(self, request: web.Request) -> web.Response:
        """`?name=`: the captured tables whose name contains it, where `/status` cannot list all."""
        return _json(self._find_tables(request.query.get("name", "")))

    async def metrics(self, request: web.Request) -> web.Response:
        """OpenMetrics, or the older text format for whoever does not ask for OpenMetrics."""
        body, content_type = await self._exposition.made(request.headers.getall("Accept", []))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def page(self, request: web.Request) -> web.Response:
        del request
        page = _page()
        return web.Response(
            body=page.body,
            content_type="text/html",
            charset="utf-8",
            headers={
                "Cache-Control": "no-store",
                "Content-Security-Policy": page.policy,
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
            },
        )


class _Exposition:
    """The metrics as text, made one at a time.

    Whoever asks while one is being made gets the next one, and shares it with all who wait for it.
    So many who ask at once cost two expositions and one thread. The pool's other threads are left
    to the engine.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._newest: tuple[str, float, bytes] = ("", float("-inf"), b"")

    async def made(self, accepted: Sequence[str]) -> tuple[bytes, str]:
        """Text that was begun after this call, and its content type."""
        encoder, content_type = choose_encoder(_readable(accepted))
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        self._waiting += 1
        try:
            async with self._turn:
                made_type, begun_at, body = self._newest
                if made_type != content_type or begun_at < asked_at:
                    begun_at = loop.time()
                    body = await asyncio.to_thread(encoder, PacedRegistry(self._registry))
                    self._newest = (content_type, begun_at, body)
                return body, content_type
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._newest = ("", float("-inf"), b"")


def _readable(accepted: Sequence[str]) -> str:
    """The media types of an Accept header whose versions the library can read."""
    types = [part.replace('"', "") for line in accepted for part in line.split(",")]
    return ",".join(filter(_has_version, types))


def _has_version(media_type: str) -> bool:
    parameters = (parameter.strip().partition("=") for parameter in media_type.split(";"))
    return all(_VERSION.fullmatch(value) for name, _, value in parameters if name == "version")


class PacedRegistry:
    """A registry as an encoder reads it, for a thread that must not hold up the loop."""

    def __init__(
        self, registry: CollectorRegistry, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._registry = registry
        self._pause = pause

    def collect(self) -> Iterator[Metric]:
        """The registry's metrics; a pause after every few samples."""
        for metric in self._registry.collect():
            # Made for this very call. An encoder only iterates.
            samples: Any = self._paced(metric.samples)
            metric.samples = samples
            yield metric

    def _paced(self, samples: Sequence[Sample]) -> Iterator[Sample]:
        for start in range(0, len(samples), _SAMPLES_A_SLICE):
            yield from samples[start : start + _SAMPLES_A_SLICE]
            self._pause(_PAUSE_SECONDS)


def _find_nothing(text: str) -> FoundTables:
    del text
    return FoundTables(total=0, tables=())


@dataclass(frozen=True, slots=True)
class _Page:
    body: bytes
    policy: str


@functools.cache
def _page() -> _Page:
    """Read when somebody looks: importing what reads a package's files takes some milliseconds."""
    page = importlib.resources.files("engine.operate").joinpath("status_page.html")
    body = page.read_bytes()
    policy = _PAGE_POLICY.format(script=_hash(body, b"script"), style=_hash(body, b"style"))
    return _Page(body, policy)


def _hash(page: bytes, element: bytes) -> str:
    """What Content-Security-Policy calls the text of the page's only element of that name."""
    _, _, rest = page.partition(b"<" + element + b">")
    text, _, _ = rest.partition(b"</" + element + b">")
    return base64.b64encode(sha256(text).digest()).decode()


def _phase_text(status: Status) -> str:
    return PHASE_REASONS.get(status.phase, status.phase)


def _reason(status: Status) -> str:
    """Why it is not ready: the phase, and what went wrong."""
    text = _phase_text(status)
    detail = status.last_error
    if not detail and status.phase == "starting" and status.alarms:
        # What holds up a start, such as transactions that are open on the server.
        detail = status.alarms[-1].text
    return f"{text}: {detail}" if detail else text


def _allow(response: web.HTTPException) -> Mapping[str, str]:
    return {"Allow": response.headers["Allow"]} if "Allow" in response.headers else {}


def _json(
    answer: object, *, code: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        status=code,
        headers={
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            **(headers or {}),
        },
        # Somebody reads it in a terminal.
        body=printable_json(msgspec.json.encode(answer).decode()).encode(),
        content_type="application/json",
    )


def _refused(listen: Address, error: OSError) -> ConfigurationError:
    hint = 'set http.listen to another address, or to "off"'
    if isinstance(error, socket.gaierror):
        text = "the host is not known"
    elif error.errno == errno.EADDRINUSE:
        text = "the port is in use"
        hint = f"another engine may run here: {hint}"
    elif error.errno == errno.EADDRNOTAVAIL:
        text = "this machine has no such address"
    elif error.errno == errno.EACCES:
        text = "ports below 1024 need a right that this process has not"
    else:
        text = error.strerror or type(error).__name__
    return ConfigurationError(f"cannot listen on http.listen = {listen}: {text}", hint=hint)
