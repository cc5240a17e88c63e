"""PostgreSQL as a source: who answers, what it needs before it streams, and its streams."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import psycopg

from engine.model.check_code import SOURCE
from engine.model.errors import PositionLost, TailraceError
from engine.model.hash_key import NO_HASH_KEY, HashKey
from engine.model.history import Landmark
from engine.model.interfaces import (
    ChangeStream,
    Look,
    SourceIdentity,
    SourceMeasures,
    Standing,
)
from engine.model.log_point import LogPoint
from engine.model.position import LogPosition, log_position
from engine.model.record import RecordConfiguration
from engine.model.schema import Decide
from engine.model.trial import Judgement, judgement
from engine.operate.alarms import Alarms
from engine.sources.postgres.assembler import ROWS_MAX
from engine.sources.postgres.check_codes import CONDITIONS, CONNECTIONS, STATEMENTS, VERSION
from engine.sources.postgres.connections import NO_SNAPSHOTS, Demand, try_connections
from engine.sources.postgres.ddl_trigger import judge_ddl
from engine.sources.postgres.dsn import Dsn, place_of
from engine.sources.postgres.judges import judgements_of, version_refusal
from engine.sources.postgres.keeper import LOOK_SECONDS
from engine.sources.postgres.look import Horizon, look
from engine.sources.postgres.lsn import Lsn, log_point, lsn_of, parse_lsn
from engine.sources.postgres.preparation import Making, prepare, renew, try_conditions
from engine.sources.postgres.session import Session, connect, is_without_room, translated
from engine.sources.postgres.silence import SILENCE_SECONDS
from engine.sources.postgres.situation import read_server, read_situation
from engine.sources.postgres.slot import GAP_HINT, read_slot
from engine.sources.postgres.stream import (
    SLOT_RETAINED,
    SLOT_SAFE,
    WAL_SENDER_TIMEOUT_SECONDS,
    open_stream,
)
from engine.sources.postgres.surroundings import read_surroundings, surrounding_judgements


class PostgresSource:
    """Implements `engine.model.interfaces.Source`.

    `configuration` says what `prepare` makes a publication of and which publication `identify`
    names; a stream may run with another. No batch of its streams has more than `batch_rows_max`
    rows. `generation` begins its positions until `adopt` says another one. The
    catalog is looked at every `look_seconds` while a stream is open; what stands against it is an
    alarm. `hash_key` is the one whose hashes lines hold. With `signals` its streams show logical
    messages. `are_added_later`: tables that are not in the publication are added once that is
    possible, so that `prepare` waits for nobody who has one locked. `demand` is what the run takes
    beside its stream.
    """

    def __init__(
        self,
        *,
        dsn: Dsn,
        slot: str,
        configuration: RecordConfiguration,
        generation: int = 1,
        wal_sender_timeout: float = WAL_SENDER_TIMEOUT_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
        alarms: Alarms | None = None,
        batch_rows_max: int = ROWS_MAX,
        hash_key: HashKey = NO_HASH_KEY,
        signals: bool = False,
        are_added_later: bool = False,
        demand: Demand = NO_SNAPSHOTS,
    ) -> None:
        self._demand = demand
        self._signals = signals
        self._silence_seconds = silence_seconds
        # Without anybody to tell (a command that ends soon), alarms are only logged.
        self._alarms = alarms or Alarms(_wall_clock)
        self._making = Making(self._alarms, are_added_later)
        self._dsn = dsn
        self._batch_rows_max = batch_rows_max
        self._hash_key = hash_key
        self._slot = slot
        self._configuration = configuration
        self._generation = generation
        self._wal_sender_timeout = wal_sender_timeout
        self._look_seconds = look_seconds

    async def identify(self) -> SourceIdentity:
        """See Source. Cancellation leaves nothing behind."""
        system_identifier, timeline, database = await self._identify_system()
        return SourceIdentity(
            type="postgres",
            database=database,
            lease=self._slot,
            facts={"system_identifier": system_identifier},
            branch=str(timeline),
            through=self._configuration.through,
            generation=self._generation,
        )

    async def prepare(self, *, is_first: bool) -> None:
        """See Source. Cancellation may leave the publication made and the slot not."""
        async with Session(self._dsn) as session:
            await prepare(session, self._slot, self._configuration, self._making, is_first=is_first)

    def adopt(self, generation: int) -> None:
        """See Source."""
        self._generation = generation

    async def renew(self) -> None:
        """See Source."""
        async with Session(self._dsn) as session:
            await renew(session, self._slot, self._configuration, self._making)

    async def trials(self, *, is_first: bool) -> AsyncIterator[Judgement]:
        """See Source. Cancellation changes nothing."""
        async with Session(self._dsn) as session:
            try:
                server = await read_server(session)
                if fault := version_refusal(server):
                    yield Judgement(VERSION, fault)
                    return
                found = await read_situation(
                    session, self._slot, self._configuration, server, is_first=is_first
                )
                around = await read_surroundings(session)
            except TailraceError as error:
                yield Judgement(CONNECTIONS if is_without_room(error) else SOURCE, error)
                return
            yield await judgement(
                CONNECTIONS, lambda: try_connections(session, found, self._demand)
            )
            for judged in (*judgements_of(found), *surrounding_judgements(around, found)):
                yield judged
            if any(rule.where for rule in self._configuration.rules):
                yield await judgement(CONDITIONS, lambda: try_conditions(session, found))
            if self._configuration.messages:
                yield await judgement(STATEMENTS, lambda: judge_ddl(session))

    async def seen(self) -> Standing | None:
        """See Source."""
        async with Session(self._dsn) as session:
            slot = await read_slot(session, self._slot)
            if slot.own_fault() or slot.confirmed is None or slot.active_pid is not None:
                return None
            end = await _end_of(session)
        confirmed = parse_lsn(slot.confirmed)
        return Standing(log_point(self._generation, confirmed), log_point(self._generation, end))

    async def look(self) -> Look:
        """See Source."""
        async with Session(self._dsn) as session:
            return await look(session, Horizon(), self._configuration, self._generation)

    def describe(self, identity: SourceIdentity) -> str:
        """See Source."""
        return (
            f"database {identity.database} on system {identity.facts['system_identifier']}, "
            f"timeline {identity.branch}"
        )

    @property
    def keeper(self) -> str:
        """See Source."""
        return f"the replication slot {self._slot!r}"

    @property
    def measures(self) -> SourceMeasures:
        """See Source."""
        return MEASURES

    def distance(self, begin: LogPoint, end: LogPoint) -> int:
        """See Source."""
        return max(0, lsn_of(end) - lsn_of(begin))

    async def end(self) -> LogPoint:
        """See Source. Cancellation leaves nothing behind."""
        async with Session(self._dsn) as session:
            await _until_flushed(session)
            return log_point(self._generation, await _end_of(session))

    async def fork(self, branch: str) -> LogPosition:
        """See Source: a branch is a timeline. Cancellation leaves nothing behind."""
        timeline = int(branch)
        _, newest, _ = await self._identify_system()
        if timeline < newest:
            history = await self._replication_row(
                f"TIMELINE_HISTORY {newest}", "reading the timeline's history"
            )
            for number, lsn in _forks(history[1]):
                if number == timeline:
                    return log_position(self._generation, lsn)
        raise PositionLost(
            f"the server's timeline {newest} does not come from timeline {timeline}", hint=GAP_HINT
        )

    def stream(
        self,
        start: LogPoint | None,
        configuration: RecordConfiguration,
        decide: Decide,
        *,
        landmark: Landmark | None = None,
        single_rows: bool = False,
    ) -> AbstractAsyncContextManager[ChangeStream]:
        """See Source."""
        return open_stream(
            dsn=self._dsn,
            slot=self._slot,
            generation=self._generation,
            start=start,
            configuration=configuration,
            decide=decide,
            landmark=landmark,
            single_rows=single_rows,
            batch_rows_max=self._batch_rows_max,
            hash_key=self._hash_key,
            wal_sender_timeout=self._wal_sender_timeout,
            look_seconds=self._look_seconds,
            alarms=self._alarms,
            silence_seconds=self._silence_seconds,
            signals=self._signals,
        )

    async def _identify_system(self) -> tuple[str, int, str]:
        row = await self._replication_row("IDENTIFY_SYSTEM", "identifying the server")
        return row[0].decode(), int(row[1]), row[3].decode()

    async def _replication_row(self, command: str, doing: str) -> list[bytes]:
        # Raw values: the type that the server gives for a history's bytes has changed between
        # releases.
        async with await connect(self._dsn, replication=True) as connection:
            try:
                cursor = await connection.execute(command.encode())
            except psycopg.Error as error:
                raise translated(error, doing, place_of(self._dsn)) from error
            result = cursor.pgresult
            assert result is not None
            return [result.get_value(0, column) or b"" for column in range(result.nfields)]


MEASURES = SourceMeasures(
    lag_unit="bytes",
    gauges={
        SLOT_RETAINED: "Source log that the slot keeps from being removed",
        SLOT_SAFE: "Source log that may still be written before the slot is lost (+Inf: no limit)",
    },
    retained=SLOT_RETAINED,
    left=SLOT_SAFE,
)
"""How PostgreSQL measures its log."""

_FLUSHED = """
SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
             ELSE pg_catalog.pg_current_wal_flush_lsn() END)::pg_catalog.text
"""


_INSERTED = """
SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL
             ELSE pg_catalog.pg_current_wal_insert_lsn() END)::pg_catalog.text,
       pg_catalog.current_setting('wal_block_size')::pg_catalog.int8,
       (SELECT s.setting::pg_catalog.int8 FROM pg_catalog.pg_settings s
        WHERE s.name OPERATOR(pg_catalog.=) 'wal_writer_delay')
"""

_PAGE_HEADER_BYTES = 40
"""The longest one, of a segment's first page. Where a record fills a page, the next one is inserted
behind this header, and the log is flushed up to before it."""

_WRITER_ROUNDS = 3
"""After so many of `wal_writer_delay` a commit is flushed ("Asynchronous Commit" in PostgreSQL's
manual)."""

_FLUSH_LOOK_SECONDS = 0.05


async def _until_flushed(session: Session) -> None:
    """Wait until every transaction that is committed now is in the flushed log.

    Under `synchronous_commit = off` a commit is told before that, and the stream shows flushed log
    alone. A transaction that is still open may leave its last records unflushed for longer, so the
    wait has a limit: the one that the server has for commits.
    """
    loop = asyncio.get_running_loop()
    [row] = await session.rows(_INSERTED, doing="reading the end of the log")
    inserted, page_bytes, delay_ms = row
    if inserted is None:
        return
    wanted = parse_lsn(inserted)
    in_page = wanted % page_bytes
    if in_page <= _PAGE_HEADER_BYTES:
        wanted = Lsn(wanted - in_page)
    deadline = loop.time() + _WRITER_ROUNDS * delay_ms / 1000
    while await _end_of(session) < wanted:
        if loop.time() > deadline:
            return
        await asyncio.sleep(_FLUSH_LOOK_SECONDS)


async def _end_of(session: Session) -> Lsn:
    [(flushed,)] = await session.rows(_FLUSHED, doing="reading the end of the log")
    return parse_lsn(flushed)


def _wall_clock() -> int:
    return time.time_ns() // 1000


def _forks(history: bytes) -> list[tuple[int, Lsn]]:
    """(timeline, where it was left) for each line of a timeline history file."""
    lines = [line.split("\t") for line in history.decode(errors="replace").splitlines()]
    return [
        (int(fields[0]), parse_lsn(fields[1]))
        for fields in lines
        if len(fields) >= 2 and fields[0].strip().isdigit()
    ]
