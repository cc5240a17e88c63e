"""The demonstration: a database at work, a bucket, the engine between them, and the proof.

Strategy: everything is real and from this machine: the servers come from wheels, and the engine is
the process that an operator would run. The workload is stopped first. Then the engine reads what is
left of it, and drains. Only then are the accounts taken.

The first Ctrl-C ends the workload early, and all that follows is the same. The second one ends the
process at once: servers and engine die with it, by their watchdogs.
"""

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psycopg
from rich.console import Console

from engine.demo import bucket_reader, shop, workload
from engine.demo.ending import Ending
from engine.demo.engine_process import EngineFailed, EngineProcess
from engine.demo.progress import Moment, Progress, progress_on
from engine.demo.proof import Proof, prove
from engine.demo.workload import Written
from engine.demo.workspace import Workspace
from engine.model.errors import first_cause
from engine.model.plural import counted
from engine.operate.status import Status
from engine.servers.server_process import ServerError
from engine.sources.postgres.lsn import NO_LSN, Lsn, parse_lsn

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_ABORTED = 130

_MOMENT_SECONDS = 0.25
_STALL_SECONDS_MAX = 30.0
_SAME_PRESS_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for."""

    directory: Path | None
    seconds: float
    rate: float
    existing_count: int
    crash_count: int
    is_kept: bool
    is_staying: bool


async def demonstrate(wishes: Wishes, console: Console) -> int:
    """Run the whole demonstration; the answer is the exit code.

    Raises ServerError, EngineFailed and ConfigurationError. Cancellation ends servers and engine.
    """
    bucket_reader.refuse_missing()
    workspace = Workspace.prepare(
        wishes.directory, wishes.seconds * wishes.rate + wishes.existing_count
    )
    _forget_credentials(workspace)
    progress = progress_on(console)
    asked = _Asked(console, progress)
    progress.say(f"Tailrace demonstration in {workspace.folder}")
    try:
        proof = await _Demonstration(wishes, workspace, console, progress, asked).run()
    except psycopg.Error as error:
        raise ServerError(
            f"the shop's database failed: {type(error).__name__} {error}",
            hint="is the disk full? The data are in the --directory",
        ) from error
    finally:
        asked.forget()
    if proof is None:
        if wishes.directory is None:
            workspace.remove()
        progress.say("Stopped before anything was written.")
        return EXIT_ABORTED
    ending = Ending(console, workspace)
    # After a failure the folder is kept for inspection, whether that was asked for or not.
    if wishes.is_kept or not proof.is_ok:
        ending.places()
        ending.next_steps()
    else:
        workspace.remove()
    ending.result(proof)
    return EXIT_OK if proof.is_ok else EXIT_FAILED


class _Asked:
    """What Ctrl-C and SIGTERM do: `event` at first, the end of the process at the second."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.event = asyncio.Event()
        self._console = console
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._asked_at = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._on_signal)

    def again(self) -> None:
        """From now on the next signal is the first one."""
        self.event.clear()

    def forget(self) -> None:
        """Let signals do what they do without us."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        now = self._loop.time()
        if not self.event.is_set():
            self.event.set()
            self._asked_at = now
            self._progress.say("Ending in order. Once more ends everything at once.")
            return
        # On a busy machine one Ctrl-C was seen to arrive twice.
        if now - self._asked_at < _SAME_PRESS_SECONDS:
            return
        # The cursor was hidden while the picture was drawn.
        self._console.show_cursor()
        self._console.print("\nended at once; servers and engine end with it", soft_wrap=True)
        self._console.file.flush()
        os._exit(EXIT_ABORTED)


class _Demonstration:
    """One run."""

    def __init__(
        self,
        wishes: Wishes,
        workspace: Workspace,
        console: Console,
        progress: Progress,
        asked: _Asked,
    ) -> None:
        self._wishes = wishes
        self._workspace = workspace
        self._ending = Ending(console, workspace)
        self._progress = progress
        self._asked = asked
        self._written = Written()
        self._status: Status | None = None
        self._existing_count = 0
        self._began = time.monotonic()

    async def run(self) -> Proof | None:
        """From the servers' start to their end. None when stopped before the engine was ready."""
        with ExitStack() as stack:
            await self._start_servers(stack)
            if self._asked.event.is_set():
                return None
            async with aiohttp.ClientSession() as http:
                engine = EngineProcess(self._workspace, http)
                stack.callback(engine.close)
                return await self._run(engine)

    async def _run(self, engine: EngineProcess) -> Proof | None:
        await self._start_engine(engine)
        if self._asked.event.is_set():
            return None
        with self._progress:
            seconds = await self._work(engine)
            drain_seconds = await engine.drain()
            proof = await prove(self._workspace, self._progress)
        self._progress.say(f"  the engine drained in {drain_seconds:.1f} s and ended with code 0")
        self._ending.work(self._written, seconds)
        self._ending.proof(proof)
        self._ending.newest(proof)
        if self._wishes.is_staying:
            self._ending.while_up()
            self._asked.again()
            await self._asked.event.wait()
        return proof

    # --- start

    async def _start_servers(self, stack: ExitStack) -> None:
        began = time.monotonic()
        await asyncio.to_thread(stack.enter_context, self._workspace)
        seconds = time.monotonic() - began
        async with await shop.connect(self._workspace.dsn) as connection:
            version = connection.info.server_version
            stocking = time.monotonic()
            self._existing_count = await shop.create_tables(
                connection, existing_count=self._wishes.existing_count
            )
        postgres, s3 = self._workspace.postgres, self._workspace.s3
        self._progress.say(
            f"  PostgreSQL {version // 10_000}.{version % 10_000} on 127.0.0.1:{postgres.port}"
        )
        self._progress.say(f"  SeaweedFS at {s3.endpoint_url} ({seconds:.1f} s for both)")
        if self._existing_count:
            self._progress.say(
                f"  {counted(self._existing_count, 'order', form=',')} were there before the engine"
                f" ({time.monotonic() - stocking:.1f} s)"
            )

    async def _start_engine(self, engine: EngineProcess) -> None:
        began = time.monotonic()
        await engine.start()
        status = await engine.ready()
        self._progress.say(
            f"  Tailrace {status.release} at {self._workspace.engine_url} "
            f"({time.monotonic() - began:.1f} s)"
        )

    # --- the workload, and the engine behind it

    async def _work(self, engine: EngineProcess) -> float:
        """Write until the time is over or Ctrl-C, then wait until the engine has read all of it.

        The answer is how long was written.
        """
        self._began = time.monotonic()
        if self._wishes.seconds:
            await self._write(engine)
        seconds = time.monotonic() - self._began
        last = await workload.write_last(self._workspace.dsn, self._written)
        await self._catch_up(engine, last)
        return seconds if self._wishes.seconds else 0.0

    async def _write(self, engine: EngineProcess) -> None:
        over = asyncio.Event()
        dsn, rate = self._workspace.dsn, self._wishes.rate
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(
                    workload.write(
                        dsn, rate, over, self._written, existing_count=self._existing_count
                    )
                )
                await self._watch_work(engine)
                over.set()
        except ExceptionGroup as errors:
            raise first_cause(errors) from errors

    async def _watch_work(self, engine: EngineProcess) -> None:
        wished = self._wishes
        crash_count = 0
        while (seconds := time.monotonic() - self._began) < wished.seconds:
            if crash_count < wished.crash_count and seconds > wished.seconds * (crash_count + 1) / (
                wished.crash_count + 1
            ):
                crash_count += 1
                await self._crash(engine, crash_count)
            await self._look(engine, "the shop is at work", min(1.0, seconds / wished.seconds))
            if await self._is_asked_within(_MOMENT_SECONDS):
                return

    async def _crash(self, engine: EngineProcess, number: int) -> None:
        process_id = engine.process_id
        await engine.kill()
        await engine.start()
        self._progress.say(
            f"  kill -9 {process_id}, number {number} of {self._wishes.crash_count}; "
            f"the next engine is process {engine.process_id}"
        )

    async def _catch_up(self, engine: EngineProcess, last: Lsn) -> None:
        """Wait until the engine has read beyond `last`, and every snapshot is finished.

        Raises EngineFailed if it stands still.
        """
        reached, moved = _Reached(NO_LSN, -1), time.monotonic()
        while reached.lsn <= last or not _is_snapshot_finished(self._status):
            await self._look(engine, "the engine reads the rest", None)
            now = _Reached(_read_up_to(self._status), _snapshot_rows(self._status))
            if now != reached:
                reached, moved = now, time.monotonic()
            elif time.monotonic() - moved > _STALL_SECONDS_MAX:
                raise EngineFailed(
                    f"the engine has read nothing for {_STALL_SECONDS_MAX:.0f} s",
                    hint=f"its log is {self._workspace.engine_log}",
                )
            await asyncio.sleep(_MOMENT_SECONDS / 2)

    async def _look(self, engine: EngineProcess, doing: str, fraction: float | None) -> None:
        engine.refuse_ended()
        self._status = await engine.status()
        seconds = time.monotonic() - self._began
        self._progress.show(Moment(doing, seconds, fraction, self._written, self._status))

    async def _is_asked_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._asked.event.wait()
        except TimeoutError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Reached:
    """How far the engine is: with the stream, and with the snapshots that it is taking."""

    lsn: Lsn
    snapshot_rows: int


def _is_snapshot_finished(status: Status | None) -> bool:
    return (
        status is not None
        and not status.snapshots_unfinished
        and status.snapshots_finished >= shop.TABLE_COUNT
    )


def _snapshot_rows(status: Status | None) -> int:
    return sum(each.rows for each in status.snapshots) if status is not None else -1


def _read_up_to(status: Status | None) -> Lsn:
    """Up to where the engine has read its source's log; zero where it does not say."""
    if status is None or not status.read_resume:
        return NO_LSN
    return parse_lsn(status.read_resume)


def _forget_credentials(workspace: Workspace) -> None:
    """Take the user's own AWS settings out of this process: they lead to other buckets."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            del os.environ[name]
    os.environ.update(workspace.environment)
