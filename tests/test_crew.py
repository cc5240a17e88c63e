"""The crew and its processes: tasks done, workers killed, frozen, and left behind by an engine."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from configured import make_configuration
from engine.snapshot.crew import Crew, WorkerLost
from engine.worker import LocalWorkers
from load_tests.engine_process import until as until_true

ALIVE = b"alive"


def reverse(task: bytes) -> bytes:
    """A task that is done at once."""
    return task[::-1]


def own_pid(_: bytes) -> bytes:
    return str(os.getpid()).encode()


def die(task: bytes) -> bytes:
    """A worker that is killed while it does its task."""
    if task == ALIVE:
        return task
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def freeze(task: bytes) -> bytes:
    """A worker that stands still while it does its task."""
    if task == ALIVE:
        return task
    os.kill(os.getpid(), signal.SIGSTOP)
    return b"woken"


@asynccontextmanager
async def crew_of(work: Callable[[bytes], bytes], count: int = 2) -> AsyncIterator[Crew]:
    crew = Crew(LocalWorkers(make_configuration(), count), work)
    try:
        yield crew
    finally:
        crew.let_go()
    await until(lambda: not multiprocessing.active_children())


async def until(condition: Callable[[], bool]) -> None:
    async def look() -> bool:
        return condition()

    await until_true(look, "the condition")


def nothing() -> None:
    pass


async def test_tasks_are_done_by_processes_that_stay() -> None:
    async with crew_of(own_pid, 1) as crew:
        pids = {await crew.run(b"", nothing) for _ in range(3)}

        assert len(pids) == 1
        assert pids != {str(os.getpid()).encode()}
        assert not crew.is_busy


async def test_no_more_tasks_are_under_way_than_there_are_workers() -> None:
    started: list[bytes] = []
    async with crew_of(freeze, 1) as crew, asyncio.TaskGroup() as group:
        first = group.create_task(crew.run(b"1", lambda: started.append(b"1")))
        await until(lambda: started == [b"1"])
        second = group.create_task(crew.run(ALIVE, lambda: started.append(ALIVE)))
        await asyncio.sleep(0.2)

        assert started == [b"1"]
        assert crew.is_full
        second.cancel()
        first.cancel()
        await asyncio.sleep(0.1)
        # Nobody waits for it, and its worker still has it.
        assert crew.is_busy


async def test_a_killed_worker_is_told_and_the_next_task_gets_another_one() -> None:
    async with crew_of(die) as crew:
        with pytest.raises(WorkerLost):
            await crew.run(b"die", nothing)

        assert await crew.run(ALIVE, nothing) == ALIVE


async def test_workers_that_stand_still_are_ended_when_the_crew_is_renewed() -> None:
    started: list[int] = []
    async with crew_of(freeze) as crew, asyncio.TaskGroup() as group:
        stuck = [group.create_task(lost(crew, started)) for _ in range(2)]
        await until(lambda: len(started) == 2)
        crew.let_go()
        for task in stuck:
            await task

        assert await crew.run(ALIVE, nothing) == ALIVE


class Refusing:
    """Workers that are counted, and whose executor takes no task after its first."""

    def __init__(self) -> None:
        self.made: list[Executor] = []
        self.ended: list[Executor] = []
        self.started = 0
        self.failure: WorkerLost | None = None
        self.is_slow = False

    def start(self) -> tuple[Executor, int]:
        self.started += 1
        if self.is_slow:
            time.sleep(0.2)
        if self.failure is not None:
            raise self.failure
        self.made.append(ThreadPoolExecutor(1))
        return self.made[-1], 1

    def end(self, executor: Executor) -> None:
        self.ended.append(executor)
        executor.shutdown(wait=False)


async def test_an_executor_that_takes_no_task_any_more_is_made_anew() -> None:
    workers = Refusing()
    crew = Crew(workers, reverse)
    assert await crew.run(b"one", nothing) == b"eno"
    # What a client does that lost its scheduler: nothing is under way, and nothing is taken.
    workers.made[0].shutdown()

    with pytest.raises(WorkerLost):
        await crew.run(b"two", nothing)

    assert await crew.run(b"two", nothing) == b"owt"
    assert (workers.started, len(workers.ended)) == (2, 1)
    crew.let_go()


async def test_whoever_waits_for_workers_that_cannot_be_had_waits_for_one_start() -> None:
    workers = Refusing()
    workers.failure = WorkerLost("no scheduler", hint="start it")
    workers.is_slow = True
    crew = Crew(workers, reverse)

    errors: list[WorkerLost] = []

    async def run() -> None:
        with pytest.raises(WorkerLost) as raised:
            await crew.run(b"", nothing)
        errors.append(raised.value)

    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(run())

    assert {(str(error), error.hint) for error in errors} == {("no scheduler", "start it")}
    assert (len(errors), workers.started) == (50, 1)


async def test_workers_that_come_when_nobody_waits_any_more_are_ended() -> None:
    workers = Refusing()
    workers.is_slow = True
    crew = Crew(workers, reverse)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await crew.run(b"", nothing)
    await until(lambda: bool(workers.ended))

    assert (workers.started, len(workers.ended)) == (1, 1)


async def lost(crew: Crew, started: list[int]) -> None:
    with pytest.raises(WorkerLost):
        await crew.run(b"freeze", lambda: started.append(1))


ENGINE = """
import asyncio, sys
sys.path[:0] = ["tests", "."]
import test_crew
from configured import make_configuration
from engine.snapshot.crew import Crew
from engine.worker import LocalWorkers

async def main():
    crew = Crew(LocalWorkers(make_configuration(), 1), test_crew.own_pid)
    print((await crew.run(b"", test_crew.nothing)).decode(), flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_worker_does_not_outlive_an_engine_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "engine_program.py"
    program.write_text(ENGINE)
    engine = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    pid = int(engine.stdout.readline())
    assert is_running(pid)

    engine.kill()
    engine.wait()
    engine.stdout.close()

    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline, "the worker goes on without its engine"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False
