"""How long the engine's event loop takes to answer, from outside. A process.

Strategy: GET /livez on one kept connection, every few milliseconds, one at a time. While an answer
is late, no other request is sent. But those that were due meanwhile count too, each with the time
that it would have waited. So a stall of a second counts as a second's worth of latencies, not as
one, and requests do not queue up behind each other as if that were the loop's doing.

The answer needs nothing but a turn of the loop. So a latency is an upper bound of the loop's stall.
It includes the time that the two processes wait for a CPU, and the loop's own work for the request
(about 0.2 ms).

Protocol: an `Order` on standard input, then `Latencies` on standard output about once a second. The
end of standard input ends it.
"""

import gc
import os
import socket
import sys
import time
from contextlib import closing
from threading import Event, Thread

import msgspec

_SAY_SECONDS = 1.0
_ANSWER_SECONDS_MAX = 30.0
_REQUEST = b"GET /livez HTTP/1.1\r\nHost: engine\r\n\r\n"
_HOST = "127.0.0.1"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    port: int
    interval_seconds: float


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """Of requests due from `at` (Unix time) on, in the order of their answers."""

    at: float
    seconds: tuple[float, ...]


def due_meanwhile(seconds: float, interval_seconds: float) -> list[float]:
    """The latency of a request, and of all that were due while it waited."""
    count = int(seconds / interval_seconds)
    return [seconds - number * interval_seconds for number in range(count + 1)]


def _probe(connection: socket.socket) -> None:
    """Ask once. Raises ConnectionError when the engine is gone."""
    connection.sendall(_REQUEST)
    answer = b""
    # The body is a small JSON object, the only braces there are.
    while not answer.endswith(b"}"):
        piece = connection.recv(4096)
        if not piece:
            raise ConnectionResetError("the engine closed the connection")
        answer += piece


def _run(order: Order, is_over: Event) -> None:
    # In Unix time.
    counter_began = time.time() - time.perf_counter()
    with closing(socket.create_connection((_HOST, order.port), _ANSWER_SECONDS_MAX)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        due = first_due = time.perf_counter()
        latencies: list[float] = []
        while not is_over.is_set():
            wait = due - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            sent = time.perf_counter()
            _probe(connection)
            now = time.perf_counter()
            latencies += due_meanwhile(now - sent, order.interval_seconds)
            due = max(due + order.interval_seconds, now)
            if now - first_due > _SAY_SECONDS:
                _say(counter_began + first_due, latencies)
                latencies, first_due = [], due
        if latencies:
            _say(counter_began + first_due, latencies)


def _say(at: float, latencies: list[float]) -> None:
    line = msgspec.json.encode(Latencies(at=at, seconds=tuple(latencies)))
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    is_over = Event()

    def watch_owner() -> None:
        # Not by the buffered reader: at the interpreter's end its lock would be held here.
        os.read(sys.stdin.fileno(), 1)
        is_over.set()

    Thread(target=watch_owner, daemon=True).start()
    gc.disable()
    _run(order, is_over)
    return 0


if __name__ == "__main__":
    sys.exit(main())
