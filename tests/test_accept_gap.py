"""A loss that an operator accepts: by its name, once, with a gap, and on from there."""

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg
import pytest

from databases import Database, fresh_database
from engine.journal.entry import JournalState
from engine.journal.gaps import LOST
from engine.model.errors import PositionLost, SourceRefused, TailraceError, first_cause
from engine.model.position import LogPosition, log_position
from engine.model.record import RecordConfiguration
from engine.pipeline.pipeline import Pipeline
from engine.servers.postgres_server import StopMode
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres
from engine.sources.postgres import preparation
from engine.sources.postgres.source import PostgresSource
from live_engine import LiveEngine
from memory_store import MemoryStore

INITIAL = RecordConfiguration(through="tailrace", tables=("public.*",), snapshot="initial")
ADD = "INSERT INTO orders (note) SELECT 'n' FROM generate_series(1, 5)"


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server that may be stopped, and be given an older disk."""
    with EmbeddedPostgres(settings=FAST_SETTINGS) as server:
        yield server


def table_of(database: Database) -> None:
    database.execute("CREATE TABLE orders (id bigserial PRIMARY KEY, note text)")
    database.execute("CREATE TABLE lines (id bigserial PRIMARY KEY, note text)")


def copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)
    for path in (source, *source.rglob("*")):
        status = path.lstat()
        shutil.chown(target / path.relative_to(source), status.st_uid, status.st_gid)


async def settled(engine: LiveEngine) -> JournalState:
    """A life in which everything that was written becomes durable."""
    async with engine.living() as pipeline:
        engine.database.execute(ADD)
        engine.database.execute("INSERT INTO lines (note) VALUES ('l')")
        await engine.durable(pipeline)
    return engine.journal()


async def refused(engine: LiveEngine) -> TailraceError:
    """A start that ends by itself: what it says."""
    with pytest.raises(BaseExceptionGroup) as caught:
        async with engine.living():
            pass
    error = first_cause(caught.value)
    assert isinstance(error, TailraceError)
    return error


def accepting(engine: LiveEngine, place: LogPosition) -> LiveEngine:
    return replace(engine, settings=replace(engine.settings, accept_gap=place))


def promoted_from(server: EmbeddedPostgres, copy: Path, past: str) -> None:
    """A standby takes over that has what `copy` has; its log has grown past that place since."""
    server.stop(StopMode.FAST)
    shutil.rmtree(server.data_directory)
    copied(copy, server.data_directory)
    standby = server.data_directory / "standby.signal"
    standby.touch()
    server._give_to_account(standby)
    server.start()
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_promote()")
        connection.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        grown = "SELECT pg_current_wal_lsn() > %s::pg_lsn"
        while connection.execute(grown, [past]).fetchone() != (True,):
            connection.execute("SELECT pg_logical_emit_message(false, 'test', repeat('x', 10000))")


async def goes_on(engine: LiveEngine, lost: LogPosition, *, is_told: bool = True) -> JournalState:
    """The engine streams; each table has the gap, and what comes now is there.

    `is_told`: with the flag.
    """
    accepted = accepting(engine, lost) if is_told else engine
    async with accepted.living() as pipeline:
        engine.database.execute("INSERT INTO orders (note) VALUES ('behind the gap')")
        await accepted.durable(pipeline)
    state = engine.journal()
    assert state.accepting is None
    gaps = [gap for gap in state.gaps.values() if gap.reason == LOST]
    assert [gap.table for gap in gaps] == ["public.lines", "public.orders"]
    assert {gap.after for gap in gaps} == {lost}
    assert all(lost < gap.until <= state.durable_position for gap in gaps)
    assert engine.records("public.orders")[-1]["after"]["note"] == "behind the gap"
    await engine.proven()
    return state


@dataclass
class HeldStore(MemoryStore):
    """Never answers to a creation that has `piece`, and does nothing of it."""

    piece: bytes = b"nothing has this"
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        if self.piece in body:
            self.reached.set()
            await asyncio.Event().wait()
        return await super().create(key, body, content_type=content_type, metadata=metadata)


def slot_of(database: Database) -> list[tuple[object, ...]]:
    """Its `wal_status` and where it is confirmed; nothing where there is none."""
    return database.execute(
        "SELECT wal_status, confirmed_flush_lsn::text FROM pg_replication_slots"
        " WHERE slot_name = %s",
        database.name,
    )


def without_slot(database: Database) -> None:
    database.execute("SELECT pg_drop_replication_slot(%s)", database.name)
    database.execute(ADD)


def moved(database: Database) -> None:
    database.execute(ADD)
    database.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", database.name)


def remade(database: Database) -> None:
    without_slot(database)
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", database.name)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("lose", [without_slot, moved, remade])
async def test_a_lost_slot_is_accepted_by_the_position_that_the_error_names(
    any_database: Database, lose: object
) -> None:
    table_of(any_database)
    engine = LiveEngine(any_database)
    before = await settled(engine)
    lost = before.durable_position
    assert callable(lose)
    lose(any_database)

    error = await refused(engine)
    after = await goes_on(engine, lost)

    assert isinstance(error, PositionLost)
    assert f"--accept-gap {lost}" in error.hint
    assert before.source is not None
    assert after.source is not None
    assert after.source.generation == before.source.generation == 1


@pytest.mark.timeout(240)
async def test_the_flag_accepts_no_other_loss_and_the_same_one_once(
    any_database: Database,
) -> None:
    table_of(any_database)
    engine = LiveEngine(any_database)
    first = (await settled(engine)).durable_position
    without_slot(any_database)
    second = (await goes_on(engine, first)).durable_position
    without_slot(any_database)

    error = await refused(accepting(engine, first))

    assert isinstance(error, PositionLost)
    assert f"--accept-gap {second}" in error.hint
    assert engine.journal().durable_position == second


@pytest.mark.timeout(300)
async def test_a_slot_whose_log_the_server_removed_is_accepted() -> None:
    settings = {**FAST_SETTINGS, "max_slot_wal_keep_size": "1MB"}
    with EmbeddedPostgres(settings=settings) as server, fresh_database(server) as database:
        table_of(database)
        engine = LiveEngine(database)
        lost = (await settled(engine)).durable_position
        for _ in range(4):
            database.execute(ADD)
            database.execute("SELECT pg_switch_wal()")
            database.execute("CHECKPOINT")
        invalid = slot_of(database)

        error = await refused(engine)
        state = await goes_on(engine, lost)
        anew = slot_of(database)

    assert [status for status, _ in invalid] == ["lost"]
    assert isinstance(error, PositionLost)
    assert error.loss == "keeper"
    assert "max_slot_wal_keep_size" in error.hint
    assert f"--accept-gap {lost}" in error.hint
    assert state.source is not None
    assert state.source.generation == 1
    assert [status for status, _ in anew] == ["reserved"]


HELD_BEFORE = ("the slot is made anew", "the slot is there again", "the loss is accepted")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", HELD_BEFORE)
async def test_an_engine_that_dies_on_the_way_is_followed_by_one_without_the_flag(
    any_database: Database, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    table_of(any_database)
    engine = LiveEngine(any_database)
    lost = (await settled(engine)).durable_position
    without_slot(any_database)
    held = HeldStore(engine.store.objects, engine.store.uploads)

    async def hold(*_: object, **__: object) -> None:
        held.reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        match step:
            case "the slot is made anew":
                patched.setattr(PostgresSource, "renew", hold)
            case "the slot is there again":
                patched.setattr(preparation, "_create_slot", hold)
            case _:
                held.piece = b'"accepted":true'
        await replace(accepting(engine, lost), bucket=held).killed_at(held.reached)
    halfway = engine.journal()
    slots = slot_of(any_database)

    state = await goes_on(engine, lost, is_told=False)

    assert halfway.accepting is not None
    assert (halfway.accepting.lost, halfway.accepting.loss) == (lost, "keeper")
    assert halfway.durable_position == lost
    assert len(slots) == (step == "the loss is accepted")
    assert len(state.gaps) == 2


@pytest.mark.timeout(240)
async def test_an_engine_that_dies_before_the_journal_says_so_has_accepted_nothing(
    any_database: Database,
) -> None:
    table_of(any_database)
    engine = LiveEngine(any_database)
    lost = (await settled(engine)).durable_position
    moved(any_database)
    before, slots = engine.journal(), slot_of(any_database)
    held = HeldStore(engine.store.objects, engine.store.uploads, piece=b'"accepting":{')
    await replace(accepting(engine, lost), bucket=held).killed_at(held.reached)

    error = await refused(engine)

    assert isinstance(error, PositionLost)
    assert f"--accept-gap {lost}" in error.hint
    assert engine.journal().gaps == {}
    assert engine.journal().durable_position == before.durable_position
    assert slot_of(any_database) == slots


@pytest.mark.timeout(240)
async def test_a_slot_is_not_dropped_where_nothing_could_be_streamed_from_a_new_one(
    any_database: Database,
) -> None:
    table_of(any_database)
    engine = LiveEngine(any_database)
    await settled(engine)
    any_database.execute("DROP PUBLICATION tailrace")
    for table in ("orders", "lines"):
        any_database.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_pkey")
    slots = slot_of(any_database)
    source = PostgresSource(
        dsn=any_database.dsn, slot=any_database.name, configuration=engine.configuration
    )

    with pytest.raises(SourceRefused, match="replica identity"):
        await source.renew()

    assert len(slots) == 1
    assert slot_of(any_database) == slots


@pytest.mark.timeout(240)
async def test_where_nothing_is_lost_the_flag_changes_nothing(any_database: Database) -> None:
    table_of(any_database)
    engine = LiveEngine(any_database)
    place = (await settled(engine)).durable_position

    async with accepting(engine, place).living() as pipeline:
        any_database.execute(ADD)
        await engine.durable(pipeline)

    assert engine.journal().gaps == {}
    assert len(engine.records("public.orders")) == 10
    await engine.proven()


@pytest.mark.timeout(240)
async def test_an_accepted_loss_wants_a_snapshot_of_every_table(any_database: Database) -> None:
    table_of(any_database)
    engine = LiveEngine(any_database)
    lost = (await settled(engine)).durable_position
    without_slot(any_database)

    state = await goes_on(replace(engine, configuration=INITIAL), lost)

    assert state.durable is not None
    assert state.durable.unfinished == ("public.lines", "public.orders")


@pytest.mark.timeout(300)
async def test_a_restored_disk_begins_a_generation(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    with fresh_database(own_postgres) as database:
        table_of(database)
        engine = LiveEngine(database)
        await settled(engine)
        copy = tmp_path / "data"
        own_postgres.stop(StopMode.FAST)
        copied(own_postgres.data_directory, copy)
        own_postgres.start()
        before = await settled(engine)
        lost = before.durable_position
        own_postgres.stop(StopMode.FAST)
        shutil.rmtree(own_postgres.data_directory)
        copied(copy, own_postgres.data_directory)
        own_postgres.start()

        error = await refused(engine)
        accepted = accepting(engine, lost)
        async with accepted.living() as pipeline:
            database.execute("INSERT INTO orders (note) VALUES ('in the new log')")
            new = log_position(2, 0)
            while pipeline.status().durable_position < new:
                database.execute("SELECT pg_logical_emit_message(true, 'test', '')")
                await asyncio.sleep(0.1)

        state = engine.journal()
        # A later start knows the generation from the journal, without the flag.
        async with engine.living():
            pass

    assert isinstance(error, PositionLost)
    assert before.source is not None
    assert state.source is not None
    assert state.source.generation == before.source.generation + 1
    gaps = {gap.table: gap for gap in state.gaps.values()}
    assert sorted(gaps) == ["public.lines", "public.orders"]
    assert all(gap.after == lost and gap.until >= new for gap in gaps.values())
    await engine.proven()


@pytest.mark.timeout(300)
async def test_a_failover_while_a_lost_slot_is_accepted_begins_a_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new server wrote before E what the bucket does not have: no place of it is before E."""
    with EmbeddedPostgres(settings=FAST_SETTINGS) as server, fresh_database(server) as database:
        table_of(database)
        engine = LiveEngine(database)
        await settled(engine)
        server.stop(StopMode.FAST)
        copied(server.data_directory, tmp_path / "data")
        server.start()
        before = await settled(engine)
        lost, durable = before.durable_position, before.durable
        without_slot(database)
        error = await refused(engine)
        failovers: list[LogPosition] = []
        is_accepted = Pipeline._is_accepted

        def fail_over_once(pipeline: Pipeline, error: BaseException) -> bool:
            is_named = is_accepted(pipeline, error)
            if is_named and not failovers:
                failovers.append(lost)
                assert durable is not None
                promoted_from(server, tmp_path / "data", durable.resume)
            return is_named

        monkeypatch.setattr(Pipeline, "_is_accepted", fail_over_once)
        async with accepting(engine, lost).living():
            pass
        state = engine.journal()

    assert isinstance(error, PositionLost)
    assert error.loss == "keeper"
    assert failovers == [lost]
    assert state.source is not None
    assert (state.source.branch, state.source.generation) == ("2", 2)
    new = log_position(2, 0)
    assert all(gap.after == lost and gap.until >= new for gap in state.gaps.values())
    assert sorted(gap.table for gap in state.gaps.values()) == ["public.lines", "public.orders"]
    assert "left the journal's branch" in next(iter(state.gaps.values())).text
    await engine.proven()
