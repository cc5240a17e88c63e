"""What the engine serves over HTTP: metrics, health, status, and a page for a human.

Strategy: everything is read from a `StatusProvider` and a registry; nothing can be changed
through it. The exposition of a thousand tables takes 60 to 110 ms, so it is made in a thread, and
that lets the loop go on after every few samples: whoever waits for the interpreter's lock waits for
up to 5 ms at each of the loop's system calls.

Invariant: no answer waits for the source or the bucket, so a health check never hangs with them.
"""

import asyncio
import errno
import functools
import importlib.resources
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Sample

from engine.config import Address
from engine.errors import ConfigurationError
from engine.status import Phase, Status, StatusProvider

SHUTDOWN_SECONDS = 1.0
"""How long an answer in progress may take when the server stops.

The drain must not wait for a scrape.
"""

_SAMPLES_A_SLICE = 50
"""Written in about a third of a millisecond. Turns of a busy loop a millisecond meanwhile: 220 with
pauses, 95 without (two cores that others used too, medians of three)."""

_PAUSE_SECONDS = 0.0005

_REASONS: dict[Phase, str] = {
    "starting": "nothing is connected yet",
    "opening": "the journal is being opened",
    "redo": "objects that the last writer planned are made again first",
    "reconnecting": "the connection to the source was lost",
    "failing": "the source gives the same error at the same position again and again",
    "draining": "the engine is stopping",
    "stopped": "the engine has stopped",
}

# The page's own script and style are inline, everything else is refused.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


class HttpServer:
    """The server's life: listening inside `async with`, closed after it.

    `listen` None serves nothing. Entering raises ConfigurationError where the address cannot be
    had. Cancellation while entering or leaving leaves nothing listening.
    """

    def __init__(
        self, listen: Address | None, status_provider: StatusProvider, registry: CollectorRegistry
    ) -> None:
        self._listen = listen
        self._runner = web.AppRunner(
            make_application(status_provider, registry),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )

    @property
    def address(self) -> Address | None:
        """Where it listens, with the real port; None while it does not."""
        if not self._runner.addresses:
            return None
        host, port = self._runner.addresses[0][:2]
        return Address(host, port)

    async def __aenter__(self) -> Self:
        if self._listen is None:
            return self
        try:
            await self._runner.setup()
            await web.TCPSite(self._runner, self._listen.host, self._listen.port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise _refused(self._listen, error) from error
        except BaseException:
            await self._runner.cleanup()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._runner.cleanup()


def make_application(
    status_provider: StatusProvider, registry: CollectorRegistry
) -> web.Application:
    """The routes, without a server."""
    answers = _Answers(status_provider, registry)
    application = web.Application()
    application.router.add_get("/", answers.page)
    application.router.add_get("/livez", answers.livez)
    application.router.add_get("/readyz", answers.readyz)
    application.router.add_get("/status", answers.status)
    application.router.add_get("/metrics", answers.metrics)
    return application


class _Answers:
    """One coroutine a route. None of them waits for anything outside this process."""

    def __init__(self, status_provider: StatusProvider, registry: CollectorRegistry) -> None:
        self._status_provider = status_provider
        self._registry = registry

    async def livez(self, request: web.Request) -> web.Response:
        """That this runs at all says that the loop turns."""
        del request
        return _json({"live": True})

    async def readyz(self, request: web.Request) -> web.Response:
        del request
        status = self._status_provider()
        answer = {"ready": status.is_ready, "phase": status.phase}
        if status.is_ready:
            return _json(answer)
        return _json(answer | {"reason": _reason(status)}, code=503)

    async def status(self, request: web.Request) -> web.Response:
        del request
        status = self._status_provider()
        return _json({"ready": status.is_ready} | msgspec.to_builtins(status))

    async def metrics(self, request: web.Request) -> web.Response:
        """OpenMetrics, or the older text format for who does not ask for OpenMetrics."""
        encoder, content_type = choose_encoder(",".join(request.headers.getall("Accept", [])))
        body = await asyncio.to_thread(encoder, PacedRegistry(self._registry))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def page(self, request: web.Request) -> web.Response:
        del request
        return web.Response(
            body=_page(), content_type="text/html", charset="utf-8", headers=_PAGE_HEADERS
        )


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


@functools.cache
def _page() -> bytes:
    """Read when somebody looks: importing what reads a package's files takes some milliseconds."""
    return importlib.resources.files("engine").joinpath("status_page.html").read_bytes()


def _reason(status: Status) -> str:
    text = _REASONS.get(status.phase, status.phase)
    return f"{text}: {status.last_error}" if status.last_error else text


def _json(answer: object, *, code: int = 200) -> web.Response:
    return web.Response(
        status=code,
        body=msgspec.json.encode(answer),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
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
