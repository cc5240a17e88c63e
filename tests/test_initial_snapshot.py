"""Rows that are there already, end to end: a real database, a real bucket, workers of their own."""

import gzip
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from databases import Database
from engine.servers.fault_proxy import SLOW_DOWN, HttpFaultProxy
from engine.servers.servers import EmbeddedS3
from faults.snapshots import is_begin, is_part
from load_tests.engine_process import EngineProcess, Pipeline, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

pytestmark = pytest.mark.timeout(300)

PREFIX = "lake"
ROWS = 20_000

TABLES = (
    "CREATE TABLE orders (id bigint PRIMARY KEY, customer text, total numeric(10,2))",
    f"""INSERT INTO orders SELECT n, 'customer ' || n % 97, n / 7.0
        FROM generate_series(1, {ROWS}) AS n""",
    "CREATE TABLE empty (id int PRIMARY KEY, note text)",
    'CREATE TABLE "Odd ""name" (a int, "B c" text, PRIMARY KEY ("B c", a))',
    """INSERT INTO "Odd ""name" VALUES (1, E'tab\\there'), (2, E'line\\nbreak \\\\ "quoted"')""",
    "CREATE TABLE keyless (a int, b text)",
    "ALTER TABLE keyless REPLICA IDENTITY FULL",
    "INSERT INTO keyless VALUES (1, 'one'), (1, 'one'), (2, NULL)",
    "CREATE TABLE tree (id int PRIMARY KEY, x text) PARTITION BY RANGE (id)",
    "CREATE TABLE tree_1 PARTITION OF tree FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE tree_2 PARTITION OF tree FOR VALUES FROM (10) TO (20)",
    "INSERT INTO tree SELECT n, 'leaf ' || n FROM generate_series(5, 14) AS n",
)


@dataclass
class Lake:
    """What a pipeline with snapshots wrote."""

    database: Database
    pipeline: Pipeline
    client: "S3Client"
    bucket: str
    folder: Path

    async def run(self, *arguments: str, name: str = "run") -> None:
        """`tailrace run --until-caught-up`, to a good end."""
        with EngineProcess(self.pipeline, self.folder, name, "run", "--until-caught-up") as engine:
            code = await engine.ended(seconds=60)
            assert code == 0, engine.log

    async def entries(self) -> list[dict[str, Any]]:
        """The journal's entries so far, in order."""
        prefix = f"{PREFIX}/_tailrace/journal/"
        listed = await self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        bodies = [
            await (await self.client.get_object(Bucket=self.bucket, Key=each["Key"]))["Body"].read()
            for each in listed.get("Contents", ())
            if each["Key"].endswith(".json")
        ]
        return [json.loads(body) for body in bodies]

    async def records(self) -> dict[str, list[dict[str, Any]]]:
        """Every record by table, in the order of positions."""
        found: dict[str, list[dict[str, Any]]] = {}
        listed = await self.client.list_objects_v2(Bucket=self.bucket, Prefix=f"{PREFIX}/")
        for each in listed["Contents"]:
            if not each["Key"].endswith(".ndjson.gz"):
                continue
            table = unquote(each["Key"].partition("/table=")[2].partition("/")[0])
            response = await self.client.get_object(Bucket=self.bucket, Key=each["Key"])
            for line in gzip.decompress(await response["Body"].read()).splitlines():
                record = json.loads(line)
                found.setdefault(table, []).append(record)
        for records in found.values():
            records.sort(key=lambda record: record["metadata"]["position"])
        return found

    async def verified(self) -> dict[str, Any]:
        with EngineProcess(
            self.pipeline, self.folder, "verify", "verify", "--depth", "full", "--json"
        ) as process:
            code = await process.ended(seconds=60)
            answer: dict[str, Any] = json.loads(process.output.read_text())
            assert code == 0, answer
        return answer


@pytest.fixture
def lake(
    any_database: Database, s3: EmbeddedS3, bucket: str, s3_client: "S3Client", tmp_path: Path
) -> Lake:
    with any_database.connect() as connection:
        for statement in TABLES:
            connection.execute(statement.encode())
    sections = {
        "source": {
            "dsn": any_database.dsn,
            "slot": any_database.name,
            "snapshot": "initial",
            "snapshot_workers": "local:2",
        },
        "destination": {"bucket": bucket, "prefix": PREFIX, "endpoint_url": s3.endpoint_url},
        "chunk": {"max_age": "400ms"},
        "engine": {"append_interval": "200ms"},
        "log": {"level": "debug", "format": "text"},
    }
    return Lake(any_database, Pipeline(sections, s3.environment), s3_client, bucket, tmp_path)


async def test_every_row_that_is_there_is_read_once(lake: Lake) -> None:
    await lake.run()
    records = await lake.records()

    orders = records["orders"]
    assert [record["metadata"]["op"] for record in orders] == ["t"] + ["r"] * ROWS
    assert {record["after"]["id"] for record in orders[1:]} == set(range(1, ROWS + 1))
    assert orders[8]["after"] == {"id": 8, "customer": "customer 8", "total": "1.14"}
    assert [record["metadata"]["op"] for record in records["empty"]] == ["t"]
    assert [record["after"] for record in records['Odd "name'][1:]] == [
        {"a": 1, "B c": "tab\there"},
        {"a": 2, "B c": 'line\nbreak \\ "quoted"'},
    ]
    assert [record["after"] for record in records["keyless"][1:]] == [
        {"a": 1, "b": "one"},
        {"a": 1, "b": "one"},
        {"a": 2, "b": None},
    ]
    assert sorted(record["after"]["id"] for record in records["tree"][1:]) == list(range(5, 15))
    assert sum(record["metadata"]["op"] == "t" for record in records["tree"]) == 1
    answer = await lake.verified()
    assert answer["ok"]


async def test_a_part_that_fails_once_is_sent_again_and_no_range_is_read_again(
    lake: Lake, s3: EmbeddedS3
) -> None:
    async with HttpFaultProxy(s3.port) as proxy:
        fault = proxy.inject(SLOW_DOWN, is_part, nth=2)
        lake.pipeline = lake.pipeline.changed(destination__endpoint_url=proxy.endpoint_url)

        await lake.run()

        begun = [request.key for request in proxy.requests if is_begin(request)]
        parts = [request.key for request in proxy.requests if is_part(request)]
        said = [(lake.folder / f"run.{kind}").read_text() for kind in ("log", "out")]
    assert fault.hits == 1
    # Each table has one range, and the tree two: each reading of a range would begin an upload.
    assert len(begun) == len(set(begun)) == 6
    assert len(parts) == len(begun) + 1
    # A worker has the engine's streams, and no log of its own.
    assert not any("retry" in text for text in said)
    orders = (await lake.records())["orders"]
    assert [record["metadata"]["op"] for record in orders] == ["t"] + ["r"] * ROWS


NEVER_IDLE = """
from dataclasses import replace
from engine import app
made = app.pipeline_settings
app.pipeline_settings = lambda *a, **k: replace(made(*a, **k), idle_interval=3600.0)
"""


async def test_a_table_is_finished_soon_after_its_rows_are_visible_while_nothing_happens(
    lake: Lake,
) -> None:
    pipeline = replace(lake.pipeline, preamble=NEVER_IDLE)
    with EngineProcess(pipeline, lake.folder, "run", "run") as engine:

        async def is_finished() -> bool:
            entries = await lake.entries()
            whole = {
                s["table"]
                for e in entries
                for s in e.get("snapshots") or ()
                if s["state"] == "whole"
            }
            durable = [entry["durable"] for entry in entries if entry.get("durable")]
            return len(whole) == 5 and not durable[-1]["unfinished"]

        await until(is_finished, "the end of every snapshot", seconds=120)
        await engine.stop()


async def test_a_second_run_takes_no_snapshot_again(lake: Lake) -> None:
    await lake.run()
    lake.database.execute("INSERT INTO orders VALUES (0, 'later', 1)")
    lake.database.execute("DELETE FROM orders WHERE id = 7")
    await lake.run(name="again")
    records = await lake.records()

    ops = [record["metadata"]["op"] for record in records["orders"]]
    assert ops == ["t"] + ["r"] * ROWS + ["c", "d"]
    assert (await lake.verified())["ok"]
