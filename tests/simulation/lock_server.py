"""The other kind of database: no slot, a named lock, and two servers of one history.

Strategy: nothing is confirmed to this database. It keeps the log from one place on, and the reader
has to know where it was. A reader holds a lock on the server that it reads. So after a switch to
the other server, two may read at once. That server may lag behind. Orders are the transactions'
ordinals, which begin anew with each generation: only both together sort. A resume text means the
same on both servers.

Invariant: both servers give the same changes the same positions.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.model.errors import SourceUnavailable
from engine.model.history import Landmark
from engine.model.log_point import LogPoint
from engine.model.position import LogPosition
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from simulation.source import Connection, Server
from simulation.virtual_loop import Process


@dataclass
class LockServer(Server):
    """Two servers, of which one is read by whoever connects now."""

    reading: int = 0
    applied: list[int] = field(default_factory=lambda: [0x100, 0x100])
    restarts: list[int] = field(default_factory=list)
    others: list[Connection] = field(default_factory=list)
    # By the text of a log point, its position.
    positions: dict[str, LogPosition] = field(default_factory=dict)

    # --- log points

    def order(self, address: int) -> tuple[int, int]:
        count = bisect.bisect_left(self.transactions, address, key=lambda t: t.commit_lsn)
        # A place keeps its order: the next generation begins behind the last commit before it.
        return self._order(count, [begin for begin in self.restarts if begin < count])

    def commit_order(self, address: int) -> tuple[int, int]:
        del address
        return self._order(len(self.transactions), self.restarts)

    @staticmethod
    def _order(count: int, begun: list[int]) -> tuple[int, int]:
        return 1 + len(begun), 1 + count - (begun[-1] if begun else 0)

    @property
    def generation(self) -> int:
        return 1 + len(self.restarts)

    @property
    def is_confirming(self) -> bool:
        return False

    def told(self, place: LogPosition, generation: int) -> LogPosition:
        """Its log says itself which generation a place is in."""
        del generation
        return place

    def _begin_generation(self) -> None:
        """Ordinals go on where the restored log ends."""

    def renumber(self) -> None:
        """Ordinals begin anew, in the next generation."""
        if not self.restarts or self.restarts[-1] < len(self.transactions):
            self.restarts.append(len(self.transactions))
            self.counts["generation begun"] += 1

    # --- the log

    def point(self, address: int, commit_us: int = 0) -> LogPoint:
        found = super().point(address, commit_us)
        self.positions[found.resume] = found.position
        return found

    def commit(self, *, truncated: TableName | None = None) -> None:
        super().commit(truncated=truncated)
        self._replicate()

    def move(self, table: TableName) -> None:
        super().move(table)
        self._replicate()

    def send(self, contents: Sequence[bytes]) -> None:
        super().send(contents)
        self._replicate()

    def write_something_else(self) -> None:
        super().write_something_else()
        self._replicate()

    def alter_publication(self) -> None:
        """It has none."""

    def make_slot(self) -> None:
        super().make_slot()
        self._replicate()

    def _replicate(self) -> None:
        self.applied[0] = self.wal
        self.loop.later(self.rnd.uniform(0.01, 1.5), self._apply, self.wal)
        self.notify()

    def _apply(self, address: int) -> None:
        self.applied[1] = min(max(self.applied[1], address), self.wal)
        self.notify()

    def end_of_log(self) -> int:
        return self.applied[self.reading]

    def _consistent_address(self) -> int:
        return self.end_of_log()

    def limit_of(self, connection: Connection) -> int:
        return self.applied[connection.member]

    def _forget_after(self, fork: int) -> None:
        super()._forget_after(fork)
        self.restarts = [begin for begin in self.restarts if begin <= len(self.transactions)]
        # A resume text stands for the commits before it, not for an address. Where the new history
        # has all of them, it goes on behind them.
        end = self.place(self.wal)
        for resume, position in self.positions.items():
            if position <= end:
                self._addresses[resume] = min(self._addresses[resume], self.wal)
        self.applied = [self.wal, self.wal]

    # --- connections

    def start(
        self,
        process: Process,
        begin: LogPoint | None,
        configuration: RecordConfiguration,
        landmark: Landmark | None,
        *,
        generation: int,
    ) -> Connection:
        wanted = max(self.address_to_resume(begin), self.confirmed)
        if self.end_of_log() < wanted <= self.wal:
            raise SourceUnavailable("the server lags behind")
        connection = super().start(process, begin, configuration, landmark, generation=generation)
        connection.member = self.reading
        return connection

    def switch(self) -> None:
        """Whoever connects from now on reads the other server; who reads now may go on."""
        before, self.connection = self.connection, None
        self.reading = 1 - self.reading
        self.counts["switched"] += 1
        if before is not None:
            self.others.append(before)
            self.loop.later(self.rnd.choice((0.0, 0.3, 6.0)), self.drop_connection, before)

    def connections(self) -> list[Connection]:
        return [*super().connections(), *self.others]

    def forget_connection(self, connection: Connection) -> None:
        if connection in self.others:
            self.others.remove(connection)
        super().forget_connection(connection)

    def drop_connection(self, connection: Connection | None) -> None:
        if connection in self.others:
            self.others.remove(connection)
            connection.close_at_server()
        super().drop_connection(connection)

    def status_update(self, connection: Connection, lsn: int) -> None:
        """It does not listen."""
