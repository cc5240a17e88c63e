"""Read a slot as the engine does, and throw everything away: what the walsender can deliver.

Strategy: session, socket, pauses (`Gulps`) and the place where frames come from are the engine's
own code. The frames are given to `FrameCounter`, which is compiled as the engine's frame reader is,
and decodes no row. So the engine's only additional work is what it does with a row.

Streaming begins with the first bytes, not with the start of replication. Until those come, the
server is still finding its place in the log. For the engine it does that while the engine opens its
journal.

It says when it streamed in the lines of the engine's log, and at the end how many changes it read.
It ends with 0 only when everything before `--end-lsn` was read.
"""

import argparse
import asyncio
import json
import time
from datetime import UTC, datetime

import uvloop
from psycopg import sql
from psycopg.errors import error_from_result

from engine.sources.postgres.assembler import STOPS, Drained
from engine.sources.postgres.frames import FrameCounter, Frames
from engine.sources.postgres.gulps import Gulps
from engine.sources.postgres.lsn import NO_LSN, Lsn, parse_lsn
from engine.sources.postgres.pgoutput import encode_status
from engine.sources.postgres.session import Connection, connect
from engine.sources.postgres.settings import SHAPING_SETTINGS

STATUS_SECONDS = 1.0
START = "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {})"


class Discard:
    """Takes frames as the engine's assembler does."""

    def __init__(self) -> None:
        self.counter = FrameCounter()

    @property
    def drained_bytes(self) -> int:
        return self.counter.drained_bytes

    def drain(self, frames: Frames, budget_bytes: int) -> Drained:
        return STOPS[self.counter.read(frames, budget_bytes)]


class Stream:
    """One replication connection."""

    def __init__(self, connection: Connection) -> None:
        self._server = connection.pgconn
        self._gulps = Gulps(connection.pgconn)
        self._discard = Discard()
        self._loop = asyncio.get_running_loop()
        self.counter = self._discard.counter

    async def read(self, end_lsn: Lsn) -> None:
        """Read to `end_lsn`. Cancellation leaves the rest unread."""
        drained = Drained.EMPTY
        while self.counter.received_lsn < end_lsn:
            if drained is Drained.EMPTY:
                await self._gulps.pause()
                await self.readable()
            else:
                # As the engine's loop, which has other tasks.
                await asyncio.sleep(0)
            drained = self._gulps.drain(self._discard)
            if drained is Drained.END:
                raise self._end()
            if self.counter.is_reply_wanted:
                self.send_status()

    def _end(self) -> Exception:
        result = self._server.get_result()
        if result is None or not result.error_message:
            return ConnectionError("the server ended the stream")
        return error_from_result(result)

    async def readable(self) -> None:
        """Wait until the socket has something. Cancellation leaves nothing behind."""
        reading = self._loop.create_future()
        self._loop.add_reader(self._server.socket, _set_done, reading)
        try:
            await reading
        finally:
            self._loop.remove_reader(self._server.socket)

    async def give_feedback(self) -> None:
        """Say now and then what was received, until cancelled."""
        while True:
            await asyncio.sleep(STATUS_SECONDS)
            self.send_status()

    def send_status(self) -> None:
        """Say what was received. Nothing is confirmed: nothing is kept."""
        self.counter.is_reply_wanted = False
        received = Lsn(self.counter.received_lsn)
        sent_us = time.time_ns() // 1000
        status = encode_status(write_lsn=received, flush_lsn=NO_LSN, sent_us=sent_us)
        self._server.put_copy_data(status)
        # What the socket has no room for goes with the next one.
        self._server.flush()

    async def leave(self) -> None:
        """End the copy as the protocol has it: the slot is free when this returns.

        Cancellation leaves the copy open: the connection's end is then what frees the slot.
        """
        self._server.put_copy_end()
        self._server.flush()
        while (drained := self._gulps.drain(self._discard)) is not Drained.END:
            if drained is Drained.EMPTY:
                await self.readable()


async def consume(dsn: str, slot: str, publication: str, end_lsn: Lsn) -> None:
    """Read the slot to `end_lsn`, saying when. Cancellation closes the connection."""
    connection = await connect(dsn, replication=True, settings=dict(SHAPING_SETTINGS))
    try:
        command = sql.SQL(START).format(sql.Identifier(slot), sql.Literal(f'"{publication}"'))
        await connection.execute(command)
        say("opening")
        stream = Stream(connection)
        await stream.readable()
        say("streaming")
        async with asyncio.TaskGroup() as group:
            feedback = group.create_task(stream.give_feedback())
            await stream.read(end_lsn)
            feedback.cancel()
        say("draining")
        await stream.leave()
        print(f"{stream.counter.row_count} changes")
    finally:
        await connection.close()


def say(phase: str) -> None:
    """One line, as the engine's log has it."""
    line = {
        "timestamp": datetime.now(UTC).isoformat(),
        "event": "phase",
        "phase": phase,
        "cpu_seconds": round(time.process_time(), 3),
    }
    print(json.dumps(line), flush=True)


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--slot", required=True)
    parser.add_argument("--publication", required=True)
    parser.add_argument("--end-lsn", required=True, type=parse_lsn)
    options = parser.parse_args()
    # The engine's loop, whose timers decide how long a pause really is.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(consume(options.dsn, options.slot, options.publication, options.end_lsn))


if __name__ == "__main__":
    main()
