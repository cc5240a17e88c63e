"""Tables that come and go beside a running engine: a real database, a real bucket, real workers."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from databases import Database
from engine.servers.servers import EmbeddedS3
from load_tests.engine_process import EngineProcess, Pipeline, until
from test_initial_snapshot import PREFIX, Lake

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.timeout(300)

# A look each minute is too seldom for a test, and so is an idle position each half a minute.
LOOKS_OFTEN = """
import dataclasses, engine.app as app
settings_of = app.pipeline_settings
app.pipeline_settings = lambda *of, **how: dataclasses.replace(
    settings_of(*of, **how), watch_interval=0.3, idle_interval=0.3
)
"""


@pytest.fixture
def lake(
    any_database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> Lake:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    any_database.execute("INSERT INTO orders VALUES (1), (2)")
    sections = {
        "source": {
            "dsn": any_database.dsn,
            "slot": any_database.name,
            "snapshot": "initial",
            "snapshot_workers": "local:1",
        },
        "destination": {"bucket": bucket, "prefix": PREFIX, "endpoint_url": s3.endpoint_url},
        "chunk": {"max_age": "400ms"},
        "engine": {"append_interval": "200ms"},
        "log": {"level": "debug", "format": "text"},
    }
    pipeline = Pipeline(sections, s3.environment, preamble=LOOKS_OFTEN)
    return Lake(any_database, pipeline, s3_client, bucket, tmp_path)


def alarms(status: dict[str, Any], code: str) -> list[dict[str, Any]]:
    return [alarm for alarm in status["alarms"] if alarm["code"] == code]


async def finished(engine: EngineProcess) -> dict[str, Any]:
    """`/status` once it streams, a snapshot is finished and none is owed."""

    async def look() -> dict[str, Any] | None:
        status = await engine.reaches("streaming")
        is_owed = status["snapshots_unfinished"] or not status["snapshots_finished"]
        return None if is_owed else status

    return await until(look, "every snapshot")


async def alarmed(engine: EngineProcess, code: str) -> dict[str, Any]:
    """The one alarm of that code, once it stands."""

    async def look() -> dict[str, Any] | None:
        status = await engine.reaches("streaming")
        found = alarms(status, code)
        return found[0] if found else None

    return await until(look, f"the alarm {code}")


async def quiet(engine: EngineProcess) -> None:
    """No alarm stands, and no snapshot is owed."""

    async def look() -> bool:
        status = await finished(engine)
        return not status["alarms"]

    await until(look, "no alarm")


async def is_told(engine: EngineProcess, table: str) -> bool:
    status = await engine.reaches("streaming")
    subjects = [alarm["subject"] for alarm in alarms(status, "not-captured")]
    return f"public.{table}" in subjects


def published(database: Database) -> set[str]:
    rows = database.execute("SELECT tablename FROM pg_publication_tables")
    return {name for (name,) in rows}


def states(answer: dict[str, Any]) -> dict[str, str]:
    return {snapshot["table"]: snapshot["state"] for snapshot in answer["snapshots"]}


def after(records: list[dict[str, Any]]) -> list[int]:
    """The ids that the records leave."""
    ids = set[int]()
    for record in records:
        match record["metadata"]["op"]:
            case "t":
                ids.clear()
            case "d":
                ids.discard(record["before"]["id"])
            case "u":
                ids.discard(record["before"]["id"])
                ids.add(record["after"]["id"])
            case _:
                ids.add(record["after"]["id"])
    return sorted(ids)


async def test_a_table_that_is_made_later_is_published_and_all_of_its_rows_are_there(
    lake: Lake,
) -> None:
    database = lake.database
    with EngineProcess(lake.pipeline, lake.folder, "run", "run") as engine:
        await finished(engine)
        database.execute("CREATE TABLE items (id int PRIMARY KEY)")
        database.execute("INSERT INTO items SELECT generate_series(1, 500)")

        async def is_published() -> bool:
            return "items" in published(database)

        await until(is_published, "items in the publication")
        database.execute("INSERT INTO items SELECT generate_series(501, 600)")
        database.execute("DELETE FROM items WHERE id = 7")
        await quiet(engine)
        await engine.stop()
    answer = await lake.verified()

    assert after((await lake.records())["items"]) == [n for n in range(1, 601) if n != 7]
    assert answer["ok"]
    assert states(answer) == {"public.items": "finished", "public.orders": "finished"}
    assert [gap["mended"] is not None for gap in answer["gaps"]] == [True]


async def test_a_table_without_a_replica_identity_stays_out_and_its_owner_is_told_how(
    lake: Lake,
) -> None:
    database = lake.database
    with EngineProcess(lake.pipeline, lake.folder, "run", "run") as engine:
        await finished(engine)
        database.execute("CREATE TABLE notes (id int)")
        database.execute("INSERT INTO notes VALUES (1)")
        alarm = await alarmed(engine, "not-captured")
        database.execute("UPDATE notes SET id = 2")
        out = published(database)
        for statement in alarm["hint"].rstrip(";").split(";"):
            database.execute(statement)
        await quiet(engine)
        database.execute("UPDATE notes SET id = 3")
        await engine.stop()
    await lake.run(name="rest")
    answer = await lake.verified()

    assert (alarm["subject"], out) == ("public.notes", {"orders"})
    assert 'ALTER TABLE "public"."notes" REPLICA IDENTITY FULL' in alarm["hint"]
    assert after((await lake.records())["notes"]) == [3]
    assert answer["ok"]


async def test_where_new_tables_are_only_reported_nothing_is_altered(lake: Lake) -> None:
    lake.pipeline = lake.pipeline.changed(source__new_tables="report")
    database = lake.database
    with EngineProcess(lake.pipeline, lake.folder, "run", "run") as engine:
        await finished(engine)
        database.execute("CREATE TABLE items (id int PRIMARY KEY)")
        alarm = await alarmed(engine, "not-captured")
        database.execute("INSERT INTO items VALUES (1)")
        await engine.stop()
    await lake.run(name="caught up")
    answer = await lake.verified()

    assert 'ADD TABLE ONLY "public"."items"' in alarm["hint"]
    assert published(database) == {"orders"}
    assert set(await lake.records()) == {"orders"}
    assert answer["ok"]
    assert [(gap["table"], gap["to"]) for gap in answer["gaps"]] == [("public.items", None)]


async def test_a_partition_that_is_published_under_its_own_name_is_no_table_that_is_gone(
    lake: Lake,
) -> None:
    database = lake.database
    database.execute("CREATE TABLE tree (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE leaf PARTITION OF tree FOR VALUES FROM (0) TO (10)")
    database.execute("INSERT INTO tree VALUES (1), (2)")
    database.execute("CREATE PUBLICATION tailrace FOR TABLE orders, tree")
    with EngineProcess(lake.pipeline, lake.folder, "run", "run") as engine:
        await finished(engine)
        with database.connect(autocommit=False) as blocker:
            # The slot of a snapshot waits for this transaction.
            blocker.execute("INSERT INTO orders VALUES (3)")
            with database.connect(autocommit=False) as making:
                # One transaction: no look may find a table that nobody publishes.
                making.execute("CREATE TABLE other (id int PRIMARY KEY)")
                making.execute("INSERT INTO other VALUES (11)")
                making.execute(
                    "ALTER TABLE tree ATTACH PARTITION other FOR VALUES FROM (10) TO (20)"
                )
            database.execute("INSERT INTO tree VALUES (12)")

            async def is_owed() -> bool:
                status = await engine.reaches("streaming")
                return bool(status["snapshots_unfinished"])

            await until(is_owed, "a snapshot that is owed")
            for name in ("later", "latest"):
                # Only a look shows it, and the second one comes when the first was judged.
                database.execute(f"CREATE TABLE {name} (id int)")
                await until(functools.partial(is_told, engine, name), f"the alarm of {name}")
            assert await is_owed()
        await finished(engine)
        await engine.stop()
    records = await lake.records()
    answer = await lake.verified()

    assert after(records["leaf"]) == [1, 2]
    assert after(records["other"]) == [11, 12]
    assert {"public.leaf", "public.other"} <= states(answer).keys()
    assert set(states(answer).values()) == {"finished"}
    assert {gap["table"] for gap in answer["gaps"]} == {"public.later", "public.latest"}


async def test_a_table_that_is_dropped_while_its_snapshot_is_wanted_is_owed_no_more(
    lake: Lake,
) -> None:
    database = lake.database
    with EngineProcess(lake.pipeline, lake.folder, "run", "run") as engine:
        await finished(engine)
        with database.connect(autocommit=False) as blocker:
            # The slot of a snapshot waits for this transaction.
            blocker.execute("INSERT INTO orders VALUES (3)")
            database.execute("CREATE TABLE broken (id int PRIMARY KEY)")

            async def is_owed() -> bool:
                status = await engine.reaches("streaming")
                return bool(status["snapshots_unfinished"])

            await until(is_owed, "a snapshot that is owed")
            database.execute("DROP TABLE broken")
            blocker.commit()
        await finished(engine)
        await engine.stop()
    await lake.run(name="again")
    answer = await lake.verified()

    assert answer["ok"]
    assert states(answer) == {"public.broken": "gone", "public.orders": "finished"}
