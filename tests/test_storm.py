"""Random DDL under load, with kills: the bucket tells what the tables hold, or says what it lacks.

Two engines read one database, each with a slot and a prefix of its own: one is killed, the other
never is. Both have to tell the same.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
import pytest

import tailrace
from databases import Database
from engine.servers.fault_proxy import HttpFaultProxy, When, requests_to
from engine.servers.servers import EmbeddedS3
from faults.bucket_image import BucketImage, Look
from faults.storm import CAPTURED, PUBLICATION, Storm, make_tables
from faults.twin import Changes, Twin
from load_tests.engine_process import EngineProcess, Pipeline

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client


@dataclass
class Side:
    """One pipeline over the database: its engines, and what is read of its bucket."""

    name: str
    database: Database
    pipeline: Pipeline
    image: BucketImage
    url: str
    folder: Path
    count: int = 0

    def start(self, *arguments: str) -> EngineProcess:
        self.count += 1
        name = f"{self.name}-{self.count}"
        return EngineProcess(self.pipeline, self.folder, name, *(arguments or ("run",)))

    async def ran(self, *arguments: str) -> None:
        """A command that ends well."""
        with self.start(*arguments) as process:
            code = await process.ended(seconds=200)
            assert code == 0, process.complaint

    async def begun(self) -> None:
        """A first life, up to the stream: its slot is there."""
        with self.start() as engine:
            await engine.reaches("streaming")
            await engine.stop()

    async def caught_up(self) -> None:
        await self.ran("run", "--until-caught-up")

    def rows(self, table: str) -> list[dict[str, Any]]:
        with tailrace.read(self.url, table, current=True) as reading:
            return [json.loads(line) for some in reading.ndjson() for line in some.splitlines()]

    async def verdict(self) -> dict[str, Any]:
        """The answer of `verify --depth full`."""
        with self.start("verify", "--depth", "full", "--json") as process:
            await process.ended(seconds=200)
            verdict: dict[str, Any] = json.loads(process.output.read_text())
            return verdict

    def differences(self, table: str, rows: list[dict[str, Any]]) -> tuple[list[Any], list[Any]]:
        """Rows that were read and are not in the table, and the other way round."""
        found = f"(SELECT * FROM json_populate_recordset(NULL::{table}, %s::json))"
        sides = (f"{found} EXCEPT ALL TABLE {table}", f"TABLE {table} EXCEPT ALL {found}")
        with self.database.connect() as connection:
            first, second = (
                connection.execute(side.encode(), [json.dumps(rows)]).fetchall() for side in sides
            )
        return first, second


@dataclass(frozen=True)
class Shape:
    """What tells a version from another one."""

    oid: int
    columns: tuple[tuple[str, str, str], ...]
    key: tuple[str, ...]
    identity: str


@dataclass
class Told:
    """What one bucket tells: streamed records by table, and every version of every table."""

    look: Look
    records: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    staged: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    documents: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def shape(self, table: str, version: int) -> Shape:
        """What the stream shows of a version.

        Of a table whose whole rows or no rows are shown, the key is the catalog's, as of a look:
        which row is the first with another one, each engine decides by itself, once.
        """
        document = self.documents[table, version]
        columns = tuple((c["name"], c["type"], c["type_kind"]) for c in document["columns"])
        identity = document["replica_identity"]
        is_shown = identity not in {"f", "n"}
        return Shape(document["oid"], columns, tuple(document["key"]) if is_shown else (), identity)

    def begins(self, table: str) -> list[tuple[str, Shape]]:
        """Where streamed rows take another shape, in order of the versions' numbers."""
        numbers = sorted(number for name, number in self.documents if name == table)
        begins: list[tuple[str, Shape]] = []
        for number in numbers:
            first, shape = self.documents[table, number]["from"], self.shape(table, number)
            if first is not None and (not begins or begins[-1][1] != shape):
                begins.append((first, shape))
        return begins


async def told(side: Side) -> Told:
    look = await side.image.look()
    found = Told(look)
    plans = look.planned
    for key, lines in zip(plans, await side.image.lines(plans), strict=True):
        records = found.records.setdefault(plans[key]["table"], {})
        for record in map(json.loads, lines.splitlines()):
            assert record["metadata"]["position"] not in records, "a change came twice"
            records[record["metadata"]["position"]] = record
    staged = sorted(look.staged)
    for key, lines in zip(staged, await side.image.lines(staged), strict=True):
        found.staged[key] = [json.loads(line) for line in lines.splitlines()]
    schemas = sorted(key for key in look.keys if key.endswith("/schema.json"))
    for body in await side.image.bodies(schemas):
        document = json.loads(body)
        name = f"{document['schema']}.{document['table']}"
        found.documents[name, document["version"]] = document
    return found


TYPES = {
    "number": {"type": ["number", "null"]},
    "string": {"type": ["string", "null"]},
    "boolean": {"type": ["boolean", "null"]},
    "array": {"type": ["array", "string", "null"]},
    "any": {},
}


def json_schema(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the records of a version have to look like."""
    columns = document["columns"]
    properties = {column["name"]: TYPES[column["json"]] for column in columns}
    row = {"type": "object", "properties": properties, "additionalProperties": False}
    metadata = {
        "version": {"const": document["version"]},
        "schema": {"const": document["schema"]},
        "table": {"const": document["table"]},
        "key": {"const": document["key"]},
        "op": {"enum": ["c", "u", "d", "t", "r"]},
        "unchanged": {"items": {"enum": list(properties)}},
    }
    keys = [column["name"] for column in columns if column["key"]]
    whole = {**row, "required": list(properties)}
    return {
        "type": "object",
        "required": ["before", "after", "metadata"],
        "additionalProperties": False,
        "properties": {
            "before": {"anyOf": [{"type": "null"}, {**row, "required": keys}]},
            "after": {"anyOf": [{"type": "null"}, row]},
            "metadata": {"type": "object", "required": ["version"], "properties": metadata},
        },
        # A row is whole, but for what the source did not send.
        "if": {"properties": {"metadata": {"not": {"required": ["unchanged"]}}}},
        "then": {"properties": {"after": {"anyOf": [{"type": "null"}, whole]}}},
    }


def misfits(found: Told, each_count: int) -> tuple[int, list[str]]:
    """How many records were held against their version's schema, and what did not fit."""
    counts: dict[tuple[str, int], int] = {}
    checks: dict[tuple[str, int], Any] = {}
    problems = []
    every = [r for records in found.records.values() for r in records.values()]
    every += [r for records in found.staged.values() for r in records]
    for record in every:
        metadata = record["metadata"]
        version = (f"{metadata['schema']}.{metadata['table']}", metadata["version"])
        counts[version] = counts.get(version, 0) + 1
        if counts[version] > each_count:
            continue
        if version not in checks:
            schema = json_schema(found.documents[version])
            jsonschema.Draft202012Validator.check_schema(schema)
            checks[version] = jsonschema.Draft202012Validator(schema)
        found_wrong = checks[version].iter_errors(record)
        problems += [f"{version} {wrong.json_path} {wrong.message}" for wrong in found_wrong]
    return sum(min(each_count, count) for count in counts.values()), problems


@dataclass(frozen=True)
class Place:
    """The side that is killed and reaches the bucket by the proxy, the other one, and the slot."""

    database: Database
    proxy: HttpFaultProxy
    killed: Side
    steady: Side
    twin: Twin


@pytest.fixture
async def place(
    database15: Database,
    aws_environment: EmbeddedS3,
    bucket: str,
    s3_client: "S3Client",
    tmp_path: Path,
) -> AsyncIterator[Place]:
    """Two sides, over tables that are there."""
    s3 = aws_environment
    make_tables(database15)

    def side(name: str, endpoint_url: str) -> Side:
        sections: dict[str, dict[str, object]] = {
            "source": {
                "dsn": database15.dsn,
                "slot": f"{database15.name}_{name}",
                "publication": PUBLICATION,
                "tables": [f"{schema}.*" for schema in CAPTURED],
                "snapshot_workers": "local:1",
            },
            "destination": {"bucket": bucket, "prefix": name, "endpoint_url": endpoint_url},
            "chunk": {"max_age": "400ms", "max_rows": 2000},
            "engine": {"append_interval": "100ms"},
            "log": {"level": "info", "format": "json"},
        }
        url = f"s3://{bucket}/{name}?endpoint_url={s3.endpoint_url}&region=us-east-1"
        pipeline = Pipeline(sections, s3.environment)
        image = BucketImage(s3_client, bucket, name)
        return Side(name, database15, pipeline, image, url, tmp_path)

    async with HttpFaultProxy(s3.port) as proxy:
        killed, steady = side("killed", proxy.endpoint_url), side("steady", s3.endpoint_url)
        yield Place(database15, proxy, killed, steady, Twin(database15, PUBLICATION))


# --- where to strike

# Behind a `schemas` entry and before its schema.json; the schema.json is there, and none of its
# version's objects; between the plan of an object and the object; before an entry.
AIMS: tuple[tuple[str, When, bool], ...] = (
    ("schema.json", requests_to("PUT", "/schema.json"), False),
    ("answer of schema.json", requests_to("PUT", "/schema.json"), True),
    ("object", requests_to("PUT", ".ndjson."), False),
    ("entry", requests_to("PUT", "/_tailrace/journal/"), False),
)


@dataclass
class Killer:
    """The lives of one side, each killed where it aims."""

    side: Side
    proxy: HttpFaultProxy
    chance: random.Random
    struck: list[tuple[str, Look]] = field(default_factory=list)

    async def lives(self, count: int) -> None:
        """So many, and a few more where none of them hit its window: behind `schemas`."""
        number = 0
        while number < count or (number < count + 4 and not self.hits):
            await self._life(AIMS[number % len(AIMS)])
            number += 1

    @property
    def hits(self) -> Counter[str]:
        """The kills between a version in the journal and its durable, by what they aimed at."""
        return Counter(name for name, look in self.struck if is_before_durable(look))

    async def _life(self, aim: tuple[str, When, bool]) -> None:
        name, when, is_applied = aim
        with self.side.start() as engine:
            await engine.reaches("streaming")
            # Some lives stream and take snapshots first.
            await asyncio.sleep(2 * self.chance.random())
            hold = self.proxy.hold_next(when, applied=is_applied)
            await hold.wait_reached(60)
            assert engine.is_running, engine.complaint
            engine.kill()
        self.struck.append((name, await self.side.image.look()))
        # Half of the held requests arrive late: when the next engine has begun, or never.
        if self.chance.random() < 0.5:
            hold.release()


def is_before_durable(look: Look) -> bool:
    """Whether a version begins that is not durable."""
    durable = [entry["durable"]["position"] for entry in look.entries if "durable" in entry]
    versions = [version for entry in look.entries for version in entry.get("schemas", ())]
    return any(durable[-1] < version["first"] for version in versions if version["first"])


async def strike(storm: Storm, weather: "Weather", killing: asyncio.Task[None]) -> None:
    """The weather's statements, and more of them until the kills are done."""
    for kind in storm.plan(weather.statements):
        await storm.strike(kind)
        await asyncio.sleep(weather.pause_seconds)
    while not killing.done():
        await storm.strike("add")
        await asyncio.sleep(4 * weather.pause_seconds)
    await killing


# --- what is judged


def different_streams(mine: Told, theirs: Told) -> list[str]:
    """Where two buckets do not tell the same of the stream."""
    found = []
    for table in sorted({*mine.records, *theirs.records}):
        a, b = mine.records.get(table, {}), theirs.records.get(table, {})
        if a.keys() != b.keys():
            only = sorted(a.keys() - b.keys())[:2], sorted(b.keys() - a.keys())[:2]
            found.append(f"{table}: positions {only}")
        for position in sorted(a.keys() & b.keys()):
            one, other = a[position]["metadata"], b[position]["metadata"]
            shapes = mine.shape(table, one["version"]), theirs.shape(table, other["version"])
            records = [
                without_version(r[position], is_key_guessed=not shapes[0].key) for r in (a, b)
            ]
            if shapes[0] != shapes[1] or records[0] != records[1]:
                found.append(f"{table} {position}: {records} {shapes}")
                break
        if mine.begins(table) != theirs.begins(table):
            found.append(f"{table}: versions {mine.begins(table)}, {theirs.begins(table)}")
    return found


def without_version(record: Mapping[str, Any], *, is_key_guessed: bool) -> dict[str, Any]:
    """A record but for its version: a snapshot that came earlier takes a number of its own."""
    left_out = {"version", "key"} if is_key_guessed else {"version"}
    metadata = {k: v for k, v in record["metadata"].items() if k not in left_out}
    return {**record, "metadata": metadata}


def different_from(twin: Changes, found: Told) -> list[str]:
    """Changes of captured tables that the slot has and the bucket has not, or the other way."""
    problems = []
    captured = {t for t in twin if t.partition(".")[0] in CAPTURED}
    for table in sorted(captured | found.records.keys()):
        wanted = {(c.position, c.op) for c in twin.get(table, ())}
        records = found.records.get(table, {}).values()
        pairs = {(r["metadata"]["position"], r["metadata"]["op"]) for r in records}
        have = {pair for pair in pairs if pair[1] != "t"}
        if have != wanted:
            problems.append(
                f"{table}: {len(wanted - have)} lost, {sorted(wanted - have)[:2]};"
                f" {len(have - wanted)} unknown, {sorted(have - wanted)[:2]}"
            )
    return problems


def newest_gaps(look: Look) -> list[dict[str, Any]]:
    """Each gap as the journal says it last."""
    gaps: dict[int, dict[str, Any]] = {}
    for entry in look.entries:
        for gap in entry.get("gaps", ()):
            gaps[gap["number"]] = {**gaps.get(gap["number"], {}), **gap}
    return list(gaps.values())


async def mended(side: Side, tables: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tables that a reader was refused and that were read again; what is wrong in the end.

    A key that changed is no gap: a reader of rows from before and behind it says `state-unknown`,
    and a resync is what its hint names. No other refusal is right.
    """
    unknown, problems, rows = [], [], {}
    for table in tables:
        try:
            rows[table] = await asyncio.to_thread(side.rows, table)
        except tailrace.ReadRefused as error:
            unknown.append(table)
            if error.code != "state-unknown":
                problems.append(f"{table} is refused: {error.code}, {error}")
    if unknown:
        await side.ran("resync", *unknown)
        await side.caught_up()
        rows.update({table: await asyncio.to_thread(side.rows, table) for table in unknown})
    for table, found in rows.items():
        extra, missing = side.differences(table, found)
        if extra or missing:
            problems.append(f"{table}: {extra[:2]} are not in it, {missing[:2]} are missing")
    return unknown, problems


def say(text: str) -> None:
    print(text)  # noqa: T201 - what a failure needs to be told


# --- the storms


async def both(one: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(one)
        group.create_task(other)


@dataclass
class Weather:
    """What one storm is: how many statements and kills, and how fast it blows."""

    statements: int
    kills: int
    rate: float
    pause_seconds: float


SHORT = Weather(30, 2, rate=200, pause_seconds=0.1)
LONG = Weather(300, 10, rate=500, pause_seconds=0.2)


async def test_a_settled_storm_leaves_a_row_in_each_table(database15: Database) -> None:
    make_tables(database15)
    database15.execute("ALTER TABLE child RENAME parent TO swapped")
    database15.execute("ALTER TABLE child RENAME note TO parent")
    database15.execute("ALTER TABLE child RENAME swapped TO note")
    database15.execute("ALTER PUBLICATION tailrace DROP TABLE child, parent")
    database15.execute("ALTER TABLE child SET UNLOGGED")
    database15.execute("ALTER TABLE parent SET UNLOGGED")
    storm = Storm(database15, seed=1)

    await storm.settle()

    tables = await storm.tables()
    assert all(table.is_published and not table.is_unlogged for table in tables)
    assert storm.written_count == len(tables)
    assert database15.execute("SELECT count(*) FROM child WHERE note IS NULL") == [(1,)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("weather", [SHORT, pytest.param(LONG, marks=pytest.mark.long)])
async def test_storms_of_ddl_leave_what_the_tables_hold(
    weather: Weather, place: Place, seed: int
) -> None:
    killed, steady = place.killed, place.steady
    storm = Storm(place.database, seed, weather.rate)
    killer = Killer(killed, place.proxy, random.Random(seed))
    # All three slots begin at one place: nothing is written before.
    await both(killed.begun(), steady.begun())

    began = time.monotonic()
    with steady.start() as other:
        await other.reaches("streaming")
        async with storm.running(), asyncio.TaskGroup() as group:
            await strike(storm, weather, group.create_task(killer.lives(weather.kills)))
        await storm.settle()
        await other.stop()
    seconds = time.monotonic() - began
    await both(killed.caught_up(), steady.caught_up())

    for kind, statements in storm.done:
        say(f"{kind}: {'; '.join(statements)}")
    mine, theirs = await told(killed), await told(steady)
    stream = await asyncio.to_thread(place.twin.changes)
    problems = [*different_streams(mine, theirs), *different_from(stream, mine)]
    checked_count, unfit = misfits(mine, weather.statements * 10)
    tables = [table.name for table in await storm.tables()]
    reread, wrong = await mended(killed, tables)
    problems += [*unfit[:5], *wrong]
    verdict = await killed.verdict()
    gaps = newest_gaps(await killed.image.look())
    row_count = sum(map(len, mine.records.values()))
    say(
        f"{len(storm.done)} statements and {storm.written_count} transactions in {seconds:.0f} s;"
        f" {row_count} changes of {len(mine.records)} tables, {len(mine.documents)} versions;"
        f" {checked_count} records held against their schema; refused {dict(storm.refused)}"
    )
    say(f"{len(killer.struck)} kills, before the durable of a version: {dict(killer.hits)}")
    say(f"gaps {Counter(gap['reason'] for gap in gaps)}; read again {reread}")
    for problem in problems:
        say(f"PROBLEM {problem[:2000]}")
    assert not problems
    assert verdict["ok"], verdict["problems"][:5]
    assert len(killer.struck) >= weather.kills
    assert killer.hits
    assert checked_count > len(mine.documents)
    # Something was hidden, and everything that was hidden from a table that is there is told anew.
    assert gaps
    assert [gap for gap in gaps if gap["table"] in tables and not gap.get("mended")] == []
