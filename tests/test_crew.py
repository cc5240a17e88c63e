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
