"""The load: committed transactions at a given rate, whatever the database does. A process.

Strategy: open loop. The time at which transaction k is due is known before. One that is late is
begun at once, and moves no later one. So a database that stalls gets all that was due meanwhile.
There are a few connections, with a thread each, which take the transactions in turn.

Protocol: an `Order` on standard input, then `Progress` on standard output a few times a second, and
a last one when everything is committed. The end of standard input ends the load early.
"""

import os
import sys
import time
from threading import Event, Lock, Thread
from typing import BinaryIO

import msgspec
import psycopg

from load_tests.live.shape import Shape
from load_tests.live.tables import TableSet

_PROGRESS_SECONDS = 0.25


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to write."""

    dsn: str
    tables: TableSet
    shape: Shape
    seconds: float
    transactions_per_second: float
    connection_count: int = 2
    first_row: int = 1


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What is committed so far. `at` is Unix time, `seconds` since the first was due."""

    at: float
    seconds: float
    row_count: int
    transaction_count: int
    late_max_seconds: float
    """By how much a transaction began later than it was due, at most."""
    is_last: bool = False


class Load:
    """The transactions of an order, on the connections that take them."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lock = Lock()
        self._row_count = 0
        self._transaction_count = 0
        self._late_max = 0.0
        self._began = 0.0
        self._stop = Event()
        self.errors: list[BaseException] = []

    def stop(self) -> None:
        """Begin no other transaction."""
        self._stop.set()

    def run(self, output: BinaryIO) -> None:
        """Write everything that is due; say so meanwhile."""
        order = self._order
        connections = [
            psycopg.connect(order.dsn, autocommit=True) for _ in range(order.connection_count)
        ]
        self._began = time.monotonic()
        threads = [
            Thread(target=self._write_guarded, args=(number, connection), daemon=True)
            for number, connection in enumerate(connections)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            threads_left = [thread for thread in threads if thread.is_alive()]
            threads_left[0].join(_PROGRESS_SECONDS)
            self._say(output)
        for connection in connections:
            connection.close()
        self._say(output, is_last=True)

    def _write_guarded(self, number: int, connection: psycopg.Connection) -> None:
        try:
            self._write(number, connection)
        except BaseException as error:  # noqa: BLE001 - told by who started the thread.
            self.errors.append(error)
            self.stop()

    def _write(self, number: int, connection: psycopg.Connection) -> None:
        order = self._order
        count = round(order.seconds * order.transactions_per_second)
        for transaction in range(number, count, order.connection_count):
            due = transaction / order.transactions_per_second
            begin = order.shape.rows_due(due)
            end = order.shape.rows_due((transaction + 1) / order.transactions_per_second)
            wait = self._began + due - time.monotonic()
            if wait > 0:
                self._stop.wait(wait)
            if self._stop.is_set():
                return
            statement = order.tables.statement(transaction, order.first_row + begin, end - begin)
            connection.execute(statement.encode())
            with self._lock:
                self._row_count += end - begin
                self._transaction_count += 1
                self._late_max = max(self._late_max, -wait)

    def _say(self, output: BinaryIO, *, is_last: bool = False) -> None:
        with self._lock:
            progress = Progress(
                at=time.time(),
                seconds=time.monotonic() - self._began,
                row_count=self._row_count,
                transaction_count=self._transaction_count,
                late_max_seconds=self._late_max,
                is_last=is_last,
            )
        output.write(msgspec.json.encode(progress) + b"\n")
        output.flush()


def main() -> int:
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    load = Load(order)

    def watch_owner() -> None:
        # Not by the buffered reader: at the interpreter's end its lock would be held here.
        os.read(sys.stdin.fileno(), 1)
        load.stop()

    Thread(target=watch_owner, daemon=True).start()
    load.run(sys.stdout.buffer)
    if load.errors:
        raise load.errors[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
