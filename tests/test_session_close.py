"""A session is closed while another task asks: libpq's connection outlives who reads from it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from databases import Database
from engine.model.errors import SourceUnavailable
from engine.sources.postgres.held_session import HeldSession
from engine.sources.postgres.session import Session, connect
from load_tests.engine_process import until

_ASKED = """
    SELECT 1 FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
"""
_SLEEP = "SELECT pg_catalog.pg_sleep(60)"


@pytest.fixture(autouse=True)
def freed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Of each connection that was closed, whether somebody was still reading from it."""
    found: list[bool] = []
    close = psycopg.AsyncConnection.close

    async def watched(connection: psycopg.AsyncConnection) -> None:
        found.append(connection.lock.locked())
        await close(connection)

    monkeypatch.setattr(psycopg.AsyncConnection, "close", watched)
    yield found
    assert found
    assert not any(found)


async def is_asked(database: Database) -> bool:
    return bool(database.execute(_ASKED))


async def test_a_session_is_closed_under_a_question(database: Database) -> None:
    session = Session(database.dsn)

    async def ask() -> None:
        with pytest.raises(SourceUnavailable):
            await session.rows(_SLEEP, doing="sleeping")

    async with asyncio.TaskGroup() as group, session:
        for _ in range(2):
            group.create_task(ask())
        await until(lambda: is_asked(database), "the question")


async def test_a_session_that_was_closed_under_a_question_opens_again(database: Database) -> None:
    session = Session(database.dsn)
    answers: list[object] = []
    # A question that opened the session is not asked again.
    await session.rows("SELECT 1", doing="asking")

    async def ask() -> None:
        answers.append(await session.rows("SELECT pg_catalog.pg_sleep(1)", doing="sleeping"))

    async with asyncio.TaskGroup() as group, session:
        group.create_task(ask())
        await until(lambda: is_asked(database), "the question")
        await session.close()
        assert await session.rows("SELECT 1", doing="asking") == [(1,)]
        await until(lambda: is_answered(answers), "the answer")

    assert len(answers) == 1


async def is_answered(answers: list[object]) -> bool:
    return bool(answers)


@asynccontextmanager
async def asked(database: Database) -> AsyncIterator[HeldSession]:
    """A held session of which a question is asked; at the end the question was refused."""
    connection = await connect(database.dsn, replication=False)
    await connection.execute("BEGIN")
    held = HeldSession(connection, "here")

    async def ask() -> None:
        with pytest.raises(SourceUnavailable):
            await held.rows(_SLEEP, doing="sleeping")

    async with asyncio.TaskGroup() as group:
        group.create_task(ask())
        await until(lambda: is_asked(database), "the question")
        yield held


async def test_a_held_session_ends_under_a_question(database: Database) -> None:
    async with asked(database) as held:
        await held.end()


async def test_the_end_of_a_held_session_is_cancelled_under_a_question(database: Database) -> None:
    async with asked(database) as held, asyncio.TaskGroup() as group:
        ending = group.create_task(held.end())
        # One turn of the loop: it has cut the question off, and waits until that ends.
        await asyncio.sleep(0)
        ending.cancel()

    assert ending.cancelled()
    assert held.is_lost


async def test_the_close_of_a_session_cannot_be_cancelled(database: Database) -> None:
    session = Session(database.dsn)
    closed: list[bool] = []

    async def ask() -> None:
        with pytest.raises(SourceUnavailable):
            await session.rows(_SLEEP, doing="sleeping")

    async def close() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        # The first thing that waits would raise.
        await session.close()
        closed.append(not session.is_open)

    async with asyncio.TaskGroup() as group, session:
        group.create_task(ask())
        await until(lambda: is_asked(database), "the question")
        await asyncio.wait([group.create_task(close())])

    assert closed == [True]
