"""One connection that holds the slot: a socket that is read in gulps, and feedback beside it.

Strategy. *Reading.* libpq speaks the wire. We watch its socket, let libpq read, and hand every
whole frame to the assembler. After the socket was read to its end it is left alone for a pause:
`Gulps`. The first message on a quiet stream is read at once.

*Feedback* has a task of its own. It sends on a timer and soon after `acknowledge`, never from
`receive`, so it keeps flowing while nobody reads. Flush and apply repeat what was acknowledged.
Write says what was received; otherwise the server would ask again at once, thousands of times a
second. Before the first acknowledge a status update names no position. The server takes that as a
sign of life and nothing else.

Invariants: only `acknowledge` moves the slot. The feedback task never waits for the reader, nor the
reader for it. A failure of either is raised by `receive`, as a SourceError.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import psycopg
import structlog
from psycopg import sql
from psycopg.errors import Diagnostic, error_from_result

from engine.lines.holding import Holding
from engine.model.batch import Intake
from engine.model.errors import (
    PositionLost,
    SourceError,
    SourceFailed,
    SourceRefused,
    SourceUnavailable,
)
from engine.model.hash_key import NO_HASH_KEY, HashKey
from engine.model.history import Judge, Landmark
from engine.model.interfaces import Look, Standing
from engine.model.log_point import LogPoint
from engine.model.record import RecordConfiguration
from engine.model.schema import Decide, TableName
from engine.operate.alarms import Alarms
from engine.sources.postgres import silence
from engine.sources.postgres.assembler import ROWS_MAX, Assembler, Drained
from engine.sources.postgres.catalog import Catalog
from engine.sources.postgres.dsn import Dsn
from engine.sources.postgres.gulps import Gulps
from engine.sources.postgres.keeper import LOOK_SECONDS, CatalogKeeper
from engine.sources.postgres.look import Horizon, look
from engine.sources.postgres.lsn import NO_LSN, Lsn, format_lsn, log_point, lsn_of, parse_lsn
from engine.sources.postgres.pgoutput import (
    HEADER_SIZE,
    RelationMessage,
    decode_message,
    encode_status,
)
from engine.sources.postgres.session import (
    Connection,
    Session,
    beside,
    connect,
    cut_off,
    quoted,
    take_bytes_as_they_are,
    translated,
)
from engine.sources.postgres.silence import Doing
from engine.sources.postgres.slot import (
    publication_lost,
    ready_slot,
    start_failure,
    stream_failure,
)
from engine.sources.postgres.synchronous import watch_commits

SLOT_RETAINED: Final = "slot_retained_bytes"
SLOT_SAFE: Final = "slot_safe_bytes"

SESSIONS: Final = 1
"""Plain sessions beside a stream's walsender."""

WAL_SENDER_TIMEOUT_SECONDS: Final = 10.0
"""Set in our own session, so that the time until a dead engine's slot is free is ours to choose."""

_FEEDBACKS_PER_TIMEOUT: Final = 10
"""Status updates in one wal_sender_timeout when nothing is acknowledged: nine may come too late."""

FEEDBACK_GAP_SECONDS: Final = 0.1
"""Status updates are at least so far apart: each one that moves the slot may cost the server a
write.
"""

_SILENCE_LOOKS: Final = 4
"""Looks at the clock in the time after which a silence is asked about."""

LEAVE_SECONDS_MAX: Final = 1.0

_PROBE_SECONDS_MAX: Final = 2.0

_DISCARDED_FRAMES: Final = 1000

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class PostgresStream:
    """Implements `engine.model.interfaces.ChangeStream`. Made by `open_stream`."""

    def __init__(
        self,
        connection: Connection,
        session: Session,
        catalog: Catalog,
        assembler: Assembler,
        slot: str,
        *,
        generation: int,
        keeper: CatalogKeeper,
        configuration: RecordConfiguration,
        wal_sender_timeout: float,
        alarms: Alarms,
        silence_seconds: float,
    ) -> None:
        self._alarms = alarms
        self._keeper = keeper
        self._silence_seconds = silence_seconds
        self._configuration = configuration
        self._pgconn = connection.pgconn
        self._gulps = Gulps(connection.pgconn)
        self._session = session
        self._catalog = catalog
        self._assembler = assembler
        self._slot = slot
        self._generation = generation
        self._feedback_seconds = wal_sender_timeout / _FEEDBACKS_PER_TIMEOUT
        # After so long without a word from the server it is asked for one.
        self._quiet_seconds = wal_sender_timeout / 2
        self._loop = asyncio.get_running_loop()
        self._fd = self._pgconn.socket
        self._may_hold_frames = True
        self._holding = Holding()
        self._reading: asyncio.Future[None] | None = None
        self._heard_at = self._loop.time()
        self._listening_since = self._loop.time()
        self._proved_alive_at = self._loop.time()
        self._failure: SourceError | None = None
        self._idle_looks = 0
        self._is_received = False
        self._discarded_relation: bytes | None = None
        self._acknowledged = NO_LSN
        self._told = NO_LSN
        self._is_keepalive_asked = False
        self._is_reply_wanted = False
        self._feedback_due = asyncio.Event()
        self._horizon = Horizon()
        self._is_look_wanted = False
        connection.add_notice_handler(self._notice)

    @property
    def backend_pid(self) -> int:
        """The walsender's process on the server."""
        return self._pgconn.backend_pid

    # ---------------------------------------------------------------------------- reading

    async def receive(self) -> Intake:
        """See ChangeStream. Cancellation keeps what was read for the next call."""
        self._is_received = True
        while True:
            if not self._assembler.is_handing_over:
                await self._until_worth_reading()
                self._drain()
            intake = self._intake()
            if intake is not None:
                return intake

    def _intake(self) -> Intake | None:
        """What to hand over after a drain: everything, or what is full while the rest is held."""
        if self._is_look_wanted:
            self._is_look_wanted = False
            return Intake((), None, is_look_wanted=True)
        assembler, now = self._assembler, self._loop.time()
        held_seconds = self._holding.seconds(now)
        is_handing_over = assembler.is_handing_over
        if not is_handing_over and self._holding.is_on(now, assembler.buffered_bytes):
            if not assembler.has_full_batches:
                return None
            # Some of what is full may have come just now. An age that is too high is on the safe
            # side.
            return assembler.full_batches(held_seconds)
        if not assembler.has_intake:
            return None
        intake = assembler.intake(held_seconds)
        is_all = not assembler.is_handing_over
        self._holding.handed_over(now, len(intake.batches), is_all=is_all)
        return intake

    async def _until_worth_reading(self) -> None:
        if self._assembler.lookups:
            for message in self._assembler.lookups:
                await self._catalog.read_for(self._session, message)
        elif self._may_hold_frames:
            # The loop gets its turn between two drains of a long backlog.
            await asyncio.sleep(0)
        else:
            await self._gulps.pause()
            await self._readable()
        if self._failure is not None:
            raise self._failure

    async def _readable(self) -> None:
        """Wait until the socket has something, or `_wake`."""
        # During the pause feedback may have failed, or have made libpq read.
        if self._may_hold_frames or self._failure is not None:
            return
        self._reading = reading = self._loop.create_future()
        self._loop.add_reader(self._fd, self._wake)
        # What is held must not wait for more to come.
        is_holding = self._assembler.has_intake
        due = self._loop.call_at(self._holding.until, self._wake) if is_holding else None
        try:
            await reading
        finally:
            self._reading = None
            self._loop.remove_reader(self._fd)
            if due is not None:
                due.cancel()

    def _wake(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)

    def _drain(self) -> None:
        try:
            drained = self._gulps.drain(self._assembler)
        except psycopg.Error as error:
            self._failure = translated(error, "streaming changes", self._session.place)
            raise self._failure from error
        except SourceError as error:
            # Whoever asks again learns the same.
            self._failure = error
            raise
        if self._failure is not None:
            raise self._failure
        self._heard_at = self._loop.time()
        if self._assembler.take_key_doubt():
            self._keeper.hurry.set()
        if self._assembler.take_reply_wish():
            self._is_reply_wanted = True
            self._feedback_due.set()
        self._may_hold_frames = drained is not Drained.EMPTY
        if drained is Drained.END:
            self._failure = self._end()
            raise self._failure

    def _notice(self, notice: Diagnostic) -> None:
        # PostgreSQL 18 passes over changes that were written while the publication did not exist,
        # and says so only in a warning. Earlier releases end the stream. Another warning, about a
        # standby that is away, has the same SQLSTATE. So the warning is told by the server's
        # function, whose name does not depend on the language. The look then finds what was lost.
        if notice.sqlstate == "55000" and notice.source_function == "LoadPublications":
            self._is_look_wanted = True

    def _end(self) -> SourceError:
        result = self._pgconn.get_result()
        if result is None or not result.error_message:
            return SourceUnavailable(
                "PostgreSQL ended the stream",
                hint="the server stops or restarts; it is tried again",
            )
        error = error_from_result(result)
        if error.sqlstate == "42704":
            return publication_lost(error.diag.message_primary or "a publication is missing")
        return stream_failure(error, self._session.place, self._last_described)

    # ------------------------------------------------------------------------ acknowledging

    def acknowledge(self, point: LogPoint) -> None:
        """See ChangeStream."""
        lsn = lsn_of(point)
        if lsn > self._acknowledged:
            self._acknowledged = lsn
            self._feedback_due.set()

    def ask_keepalive(self) -> None:
        """See ChangeStream."""
        self._is_keepalive_asked = True
        self._feedback_due.set()

    async def give_feedback(self) -> None:
        """Send status updates until cancelled. What goes wrong is raised by `receive`."""
        try:
            while True:
                await self._feedback_moment()
                self._pgconn.put_copy_data(self._status())
                await self._flush()
                await self._watch_shutdown()
        except psycopg.Error as error:
            self._fail(translated(error, "sending a status update", self._session.place))
        except SourceError as error:
            self._fail(error)

    async def _feedback_moment(self) -> None:
        try:
            async with asyncio.timeout(self._feedback_seconds):
                await self._feedback_due.wait()
                await asyncio.sleep(FEEDBACK_GAP_SECONDS)
        except TimeoutError:
            pass
        self._feedback_due.clear()

    @property
    def _may_be_told(self) -> Lsn:
        # A slot that stands before E is the evidence of what lies there. It must not move before
        # the log is judged.
        return NO_LSN if self._assembler.is_judging else self._acknowledged

    def _status(self) -> bytes:
        is_quiet = self._loop.time() - self._heard_at > self._quiet_seconds
        is_asked, self._is_keepalive_asked = self._is_keepalive_asked, False
        self._told = acknowledged = self._may_be_told
        return encode_status(
            write_lsn=max(self._assembler.received_lsn, acknowledged) if acknowledged else NO_LSN,
            flush_lsn=acknowledged,
            sent_us=time.time_ns() // 1000,
            is_reply_wanted=is_asked or (is_quiet and self._reading is not None),
        )

    async def take_leave(self) -> None:
        """Tell the server what was acknowledged last, if it does not know, and have it read that.

        When a socket that holds unread bytes is closed, the connection is reset, and what was sent
        last may be lost. So the copy is ended, and what the server still sends is read and thrown
        away, for `LEAVE_SECONDS_MAX`. A server that takes longer or is gone learns the position
        from the next engine. The same holds after a cancellation.
        """
        if self._may_be_told == self._told or self._failure is not None:
            return
        with contextlib.suppress(TimeoutError, psycopg.Error):
            async with asyncio.timeout(LEAVE_SECONDS_MAX):
                self._pgconn.put_copy_data(self._status())
                self._pgconn.put_copy_end()
                await self._flush()
                self._may_hold_frames = True
                while await self._discard():
                    await self._readable()

    async def _discard(self) -> bool:
        """Throw away what is there; whether the copy goes on."""
        size = 1
        while size:
            await asyncio.sleep(0)
            self._pgconn.consume_input()
            for _ in range(_DISCARDED_FRAMES):
                size, frame = self._pgconn.get_copy_data(1)
                if size < 0:
                    return False
                if size == 0:
                    break
                self._discarded_relation = _relation_of(frame) or self._discarded_relation
        self._may_hold_frames = False
        return True

    async def _flush(self) -> None:
        """Send what libpq holds, waiting for room in the socket where it must."""
        while self._pgconn.flush():
            # To keep server and client from waiting for each other, libpq reads when it cannot
            # write.
            self._may_hold_frames = True
            self._wake()
            writable = self._loop.create_future()
            self._loop.add_writer(self._fd, _set_done, writable)
            try:
                await writable
            finally:
                self._loop.remove_writer(self._fd)

    @property
    def _silent_seconds(self) -> float:
        """How long nothing came although somebody listened."""
        now = self._loop.time()
        # While nobody reads there is nothing to be heard.
        if self._reading is None:
            self._listening_since = now
        return now - max(self._heard_at, self._listening_since)

    async def watch_silence(self) -> None:
        """Look after a server that says nothing, until cancelled; see `silence`.

        What goes wrong is raised by `receive`.
        """
        try:
            while True:
                await asyncio.sleep(self._silence_seconds / _SILENCE_LOOKS)
                if self._silent_seconds <= self._silence_seconds:
                    self._idle_looks = 0
                    self._alarms.clear(silence.ALARM)
                else:
                    await self._ask_about_silence()
        except SourceError as error:
            self._fail(error)
        finally:
            self._alarms.clear(silence.ALARM)

    async def _ask_about_silence(self) -> None:
        try:
            async with asyncio.timeout(silence.ANSWER_SECONDS_MAX):
                look = await silence.look_at_walsender(self._session, self._slot, self.backend_pid)
        except (SourceFailed, SourceRefused) as error:
            # It answers: the server is there, and only its walsender knows how long it takes.
            _log.debug("the silent walsender is not seen", error=str(error))
            return
        except (TimeoutError, SourceUnavailable) as error:
            raise self._silent("and another session gets no answer either") from error
        self._idle_looks = self._idle_looks + 1 if look.doing is Doing.IDLES else 0
        if look.doing is Doing.GONE or self._idle_looks >= silence.IDLE_LOOKS:
            raise self._silent(f"and its walsender {look.doing.value}")
        if look.doing is Doing.WORKS:
            self._alarm_silence(look.waits_for)

    def _silent(self, clause: str) -> SourceUnavailable:
        return SourceUnavailable(
            f"PostgreSQL at {self._session.place} has said nothing for"
            f" {self._silent_seconds:.0f} s, {clause}",
            hint="the connection is taken for dead and made anew",
        )

    def _alarm_silence(self, waits_for: str) -> None:
        waiting = f", waits for {waits_for}" if waits_for else ""
        self._alarms.set(
            silence.ALARM,
            f"PostgreSQL has said nothing for {self._silent_seconds:.0f} s and works"
            f" (walsender {self.backend_pid}{waiting})",
            hint="nothing is lost: it reads something large that this pipeline does not get, such"
            " as a rewritten table or one that is not published; pg_stat_activity shows the"
            " process",
        )

    async def _watch_shutdown(self) -> None:
        """Let a server stop that waits for us.

        A server that shuts down waits, without a limit, until its walsenders' readers have flushed
        everything. We flush when the bucket has it. While the server waits, it sends flagged
        keepalives, and our regular feedback leaves no other reason for them. While nobody reads,
        those keepalives are not seen, so the question is asked at an interval. The server ended its
        other sessions before, so the side session tells whether it goes on.
        """
        now = self._loop.time()
        is_unread = self._reading is None and now - self._heard_at > self._quiet_seconds
        is_due = is_unread and now - self._proved_alive_at > self._quiet_seconds
        if not self._is_reply_wanted and not is_due:
            return
        self._is_reply_wanted = False
        self._proved_alive_at = now
        was_open = self._session.is_open
        try:
            async with asyncio.timeout(_PROBE_SECONDS_MAX):
                await self._session.rows("SELECT", doing="asking whether the server goes on")
        except TimeoutError:
            return
        except SourceUnavailable as error:
            # If no session was open before, the server may just have no room for one more.
            if was_open:
                raise SourceUnavailable(
                    f"PostgreSQL is shutting down: {error}",
                    hint="the stream goes on where it was acknowledged when the server is back",
                ) from error

    def _fail(self, failure: SourceError) -> None:
        self._failure = failure
        self._wake()
        # The socket is shut at once, so that the server does not wait until somebody calls
        # `receive`. The descriptor itself stays open.
        cut_off(self._fd)

    # ---------------------------------------------------------------------------- the slot

    async def standing(self) -> Standing:
        """See ChangeStream. Cancellation leaves nothing behind."""
        found = await self._session.rows(
            _SLOT_STATE, self._slot, doing="reading the replication slot"
        )
        if not found:
            raise PositionLost(
                f"the replication slot {self._slot!r} is gone",
                hint="somebody dropped it: changes are lost; start anew under another prefix",
                loss="keeper",
            )
        confirmed, active_pid, flushed, restart, safe_bytes = found[0]
        if active_pid != self.backend_pid:
            raise await self._own_failure() or SourceUnavailable(
                f"the replication slot {self._slot!r} is held by process {active_pid}, not by this"
                f" connection ({self.backend_pid})",
                hint="the connection was lost, or a pooler stands between: connect to the server",
            )
        await watch_commits(self._session, self.backend_pid, self._alarms)
        end = parse_lsn(flushed)
        return Standing(
            confirmed=log_point(self._generation, parse_lsn(confirmed)),
            end=log_point(self._generation, end),
            gauges={
                SLOT_RETAINED: max(0, end - parse_lsn(restart)),
                SLOT_SAFE: math.inf if safe_bytes is None else safe_bytes,
            },
        )

    @property
    def _last_described(self) -> str:
        """The table whose relation the server sent last; empty where it sent none."""
        if self._discarded_relation is not None:
            message = decode_message(self._discarded_relation[HEADER_SIZE:])
            if isinstance(message, RelationMessage):
                return str(TableName(message.schema, message.table))
        table = self._assembler.last_described
        return "" if table is None else str(table)

    async def _own_failure(self) -> SourceError | None:
        """What the server said on this connection before it let go of the slot, if anything.

        Whoever receives hears it there. Before anybody does, what came in front of it is thrown
        away: the stream is over. Cancellation may leave a part thrown away.
        """
        if self._failure is not None or self._is_received:
            return self._failure
        try:
            async with asyncio.timeout(LEAVE_SECONDS_MAX):
                while await self._discard():
                    await self._readable()
            self._failure = self._end()
        except TimeoutError:
            return self._failure
        except psycopg.Error as error:
            self._failure = translated(error, "streaming changes", self._session.place)
        return self._failure

    async def look(self) -> Look:
        """See ChangeStream. Cancellation leaves nothing behind."""
        return await look(self._session, self._horizon, self._configuration, self._generation)


_SLOT_STATE: Final = """
SELECT confirmed_flush_lsn::pg_catalog.text, active_pid,
       (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
             ELSE pg_catalog.pg_current_wal_flush_lsn() END)::pg_catalog.text,
       coalesce(restart_lsn, '0/0')::pg_catalog.text, safe_wal_size
FROM pg_catalog.pg_replication_slots
WHERE slot_name OPERATOR(pg_catalog.=) %s::pg_catalog.name
"""


_BARE_HIDDEN_FROM: Final = 150000
"""From this release on a stream does not show transactions that have nothing for it."""

_DATABASE: Final = "SELECT pg_catalog.current_database()"


@asynccontextmanager
async def open_stream(
    *,
    dsn: Dsn,
    slot: str,
    generation: int,
    start: LogPoint | None,
    configuration: RecordConfiguration,
    decide: Decide,
    landmark: Landmark | None,
    single_rows: bool,
    batch_rows_max: int = ROWS_MAX,
    hash_key: HashKey = NO_HASH_KEY,
    wal_sender_timeout: float = WAL_SENDER_TIMEOUT_SECONDS,
    alarms: Alarms,
    look_seconds: float = LOOK_SECONDS,
    silence_seconds: float = silence.SILENCE_SECONDS,
    signals: bool = False,
) -> AsyncIterator[PostgresStream]:
    """Hold the slot and stream from `start`; see `Source.stream`. With `signals`, messages too.

    Leaving, also by cancellation, closes the connections; the slot is free as soon as the server
    notices. Raises ConfigurationError where lines need another hash key than this one.
    """
    hash_key.secret_for(configuration)
    # Objects that were planned under other settings are made again under those settings.
    settings = dict(configuration.stream)
    settings["wal_sender_timeout"] = f"{wal_sender_timeout * 1000:.0f}ms"
    async with Session(dsn) as session:
        found = await ready_slot(session, slot)
    confirmed = parse_lsn(found.confirmed) if found.confirmed is not None else NO_LSN
    judge = Judge(durable=start, confirmed=log_point(generation, confirmed), landmark=landmark)
    connection = await connect(dsn, replication=True, settings=settings)
    try:
        await take_bytes_as_they_are(connection)
        async with Session(dsn, **beside(connection)) as session:
            start_lsn = lsn_of(judge.start)
            through = configuration.through
            are_messages_shown = signals or bool(configuration.messages)
            await _start(connection, session, slot, start_lsn, through, messages=are_messages_shown)
            # The server's own name for the database is what the journal has. The server cuts the
            # dsn's name to 63 bytes, and a pooler may use another name.
            [(database,)] = await session.rows(_DATABASE, doing="asking for the database's name")
            catalog = Catalog()
            assembler = Assembler(
                database=str(database),
                generation=generation,
                configuration=configuration,
                decide=decide,
                catalog=catalog,
                judge=judge,
                single_rows=single_rows,
                batch_rows_max=batch_rows_max,
                hash_key=hash_key,
                # What is published shows in any case; what is obeyed may be switched off.
                are_bare_hidden=signals
                and not configuration.messages
                and connection.info.server_version >= _BARE_HIDDEN_FROM,
                signals=signals,
            )
            keeper = CatalogKeeper(session, catalog, assembler, alarms, look_seconds=look_seconds)
            stream = PostgresStream(
                connection,
                session,
                catalog,
                assembler,
                slot,
                generation=generation,
                keeper=keeper,
                configuration=configuration,
                wal_sender_timeout=wal_sender_timeout,
                alarms=alarms,
                silence_seconds=silence_seconds,
            )
            async with _beside(stream, keeper):
                await catalog.read_publication(session, configuration.through)
                yield stream
    finally:
        await connection.close()


@asynccontextmanager
async def _beside(stream: PostgresStream, keeper: CatalogKeeper) -> AsyncIterator[None]:
    """Run feedback and looks beside the body; afterwards send the last acknowledgement."""
    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(stream.give_feedback()),
            group.create_task(stream.watch_silence()),
            group.create_task(keeper.run()),
        ]
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised below, bare: it is not the group's
            failure = error
        finally:
            for task in tasks:
                task.cancel()
    if not isinstance(failure, SourceError):
        await stream.take_leave()
    if failure is not None:
        raise failure


async def _start(
    connection: Connection,
    session: Session,
    slot: str,
    start: Lsn,
    publication: str,
    *,
    messages: bool,
) -> None:
    # The option holds a list of identifiers, so the name is quoted twice: as an identifier and as a
    # literal.
    name = quoted(publication)
    command = sql.SQL(
        "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {}{})"
    ).format(
        sql.Identifier(slot),
        sql.SQL(format_lsn(start)),
        sql.SQL(_literal(name)),
        sql.SQL(", messages 'true'" if messages else ""),
    )
    try:
        await connection.execute(command)
    except psycopg.Error as error:
        raise await start_failure(session, error, slot) from error


def _relation_of(frame: memoryview) -> bytes | None:
    """The frame, where it describes a relation."""
    return bytes(frame) if bytes(frame[HEADER_SIZE : HEADER_SIZE + 1]) == b"R" else None


def _literal(text: str) -> str:
    # The replication grammar knows doubled quotes only, no backslashes and no E''.
    return "'" + text.replace("'", "''") + "'"


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
