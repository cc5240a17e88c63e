"""A right on the bucket that is taken away while an engine runs: waited for, told, and limited."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from databases import Database
from engine.journal.entry import Writer
from engine.journal.journal import Journal
from engine.model.errors import DestinationRefused, DestinationUnavailable, Superseded
from engine.model.record import RecordConfiguration
from engine.operate.alarms import Alarms
from engine.operate.bucket_watch import BucketWatch, WatchedStore
from engine.operate.metrics import Metrics
from engine.operate.rights_watch import RIGHT_WITHDRAWN, RightsWatch
from engine.servers.fault_proxy import Answer, HttpFaultProxy, Request, requests_to
from engine.servers.servers import EmbeddedS3
from load_tests.engine_process import EngineProcess, Pipeline, until
from log_points import durable, identity
from memory_store import MemoryStore
from simulation.virtual_loop import VirtualLoop

HINT = "grant s3:PutObject on arn:aws:s3:::lake/*"
DENIED = DestinationRefused("create a: AccessDenied", code="AccessDenied", hint=HINT)
PROCESSED = Answer(
    403,
    "AccessDenied",
    "User: arn:aws:sts::111122223333:assumed-role/task/1 is not authorized to perform: s3:PutObject"
    " on resource: arn:aws:s3:::lake because no identity-based policy allows it",
)


@dataclass
class Rig:
    """A watch whose clock is moved by hand."""

    now_us: int = 1
    alarms: Alarms = field(init=False)
    watch: RightsWatch = field(init=False)

    def __post_init__(self) -> None:
        self.alarms = Alarms(lambda: self.now_us)
        self.watch = RightsWatch(lambda: self.now_us, self.alarms, seconds=300)
        self.watch.is_at_work = True

    def is_waited_for(self, key: str = "a", error: DestinationRefused = DENIED) -> bool:
        judged = self.watch.judged("create", key, error)
        if judged is not None:
            assert (judged.code, judged.hint, str(judged)) == (error.code, error.hint, str(error))
        return judged is not None

    def passes(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)


def test_a_right_that_was_never_there_is_refused() -> None:
    rig = Rig()
    rig.watch.granted("read", "a")

    assert not rig.is_waited_for()
    assert rig.alarms.count == 0


def test_a_start_is_refused_at_once() -> None:
    rig = Rig()
    rig.watch.is_at_work = False
    rig.watch.granted("create", "a")

    assert not rig.is_waited_for()


@pytest.mark.parametrize("code", ["NoSuchBucket", "InvalidAccessKeyId", "KMS.DisabledException"])
def test_only_a_right_is_waited_for(code: str) -> None:
    rig = Rig()
    rig.watch.granted("create", "a")

    assert not rig.is_waited_for(error=DestinationRefused("no", code=code))


def test_a_right_that_was_there_is_waited_for_with_an_alarm_that_names_it() -> None:
    rig = Rig()
    rig.watch.granted("create", "another")

    assert rig.is_waited_for()
    (alarm,) = rig.alarms.of(RIGHT_WITHDRAWN)
    rig.watch.granted("create", "another")
    stands = rig.alarms.count
    rig.watch.granted("create", "a")

    assert alarm.text.endswith("create a: AccessDenied")
    assert alarm.hint.startswith(f"{HINT}. It is asked again for 5 minutes.")
    assert (stands, rig.alarms.count) == (1, 0)


def test_the_limit_is_each_objects_own_whatever_succeeds_beside_it() -> None:
    rig = Rig()
    rig.watch.granted("create", "another")

    waits = []
    for _ in range(31):
        waits.append(rig.is_waited_for())
        rig.watch.granted("create", "another")
        rig.passes(10)

    assert waits == [True] * 30 + [False]


def test_what_nobody_asks_for_any_more_ends_the_alarm() -> None:
    rig = Rig()
    rig.watch.granted("create", "another")
    rig.is_waited_for()

    rig.passes(61)
    rig.watch.granted("read", "another")

    assert rig.alarms.count == 0


@dataclass
class Refusing(MemoryStore):
    """A bucket that refuses to create while `is_refusing`."""

    is_refusing: bool = False
    refused_count: int = 0

    async def create(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        in_one_request: bool = False,
    ) -> bool:
        if self.is_refusing:
            self.refused_count += 1
            raise DENIED
        return await super().create(key, body, content_type=content_type, metadata=metadata)


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    virtual = VirtualLoop()
    yield virtual
    virtual.dispose()


def journal_of(store: MemoryStore, name: str, clock: Callable[[], int]) -> Journal:
    rights = RightsWatch(clock, Alarms(clock))
    rights.is_at_work = True
    watched = WatchedStore(store, BucketWatch(clock), rights)
    return Journal(watched, "lake", Writer(name, name, "test"), Metrics(CollectorRegistry()))


def test_who_waits_for_a_right_and_was_superseded_stops(loop: VirtualLoop) -> None:
    store = Refusing()

    def clock() -> int:
        return round(loop.time() * 1e6)

    async def main() -> None:
        first, second = journal_of(store, "a", clock), journal_of(store, "b", clock)
        configuration = RecordConfiguration(through="tailrace", tables=("public.*",))
        await first.open(identity(), configuration, durable(0x64, seq=-1))
        store.is_refusing = True
        async with asyncio.TaskGroup() as group:
            appending = group.create_task(first.append())
            await asyncio.sleep(10)
            assert not appending.done()
            store.is_refusing = False
            await second.load()
            await second.open(identity(), configuration, None)

    with pytest.raises(ExceptionGroup) as caught:
        loop.run_until_complete(main())

    assert caught.group_contains(Superseded)
    assert store.refused_count > 3


def test_a_right_that_does_not_come_back_ends_the_append_after_the_limit(
    loop: VirtualLoop,
) -> None:
    store = Refusing()

    def clock() -> int:
        return round(loop.time() * 1e6)

    async def main() -> None:
        journal = journal_of(store, "a", clock)
        configuration = RecordConfiguration(through="tailrace", tables=("public.*",))
        await journal.open(identity(), configuration, durable(0x64, seq=-1))
        store.is_refusing = True
        await journal.append()

    with pytest.raises(DestinationRefused) as refused:
        loop.run_until_complete(main())

    assert refused.value.hint == HINT
    assert 300 <= loop.time() < 303


async def test_a_refusal_of_a_running_engine_is_one_for_the_bucket_watch_too() -> None:
    rig, watch = Rig(), BucketWatch(lambda: 1)
    store = Refusing()
    watched = WatchedStore(store, watch, rig.watch)
    await watched.create("a", b"", content_type="text/plain", metadata={})
    store.is_refusing = True

    with pytest.raises(DestinationUnavailable):
        await watched.create("b", b"", content_type="text/plain", metadata={})

    assert (watch.status().state, watch.status().hint) == ("slow", HINT)


# --- a real engine


def pipeline_of(database: Database, s3: EmbeddedS3, bucket: str, endpoint_url: str) -> Pipeline:
    return Pipeline(
        {
            "source": {"dsn": database.dsn, "slot": database.name, "snapshot": "never"},
            "destination": {"bucket": bucket, "prefix": "lake", "endpoint_url": endpoint_url},
            "chunk": {"max_age": "300ms"},
            "engine": {"append_interval": "100ms"},
            "log": {"level": "info", "format": "json"},
        },
        s3.environment,
    )


async def published(process: EngineProcess, database: Database, number: int) -> None:
    database.execute(f"INSERT INTO orders VALUES ({number})")
    await until(lambda: has_objects(process, number), f"row {number}")


async def has_objects(process: EngineProcess, count: int) -> bool:
    return bool(((await process.status()) or {"objects_total": 0})["objects_total"] >= count)


async def is_withdrawn(process: EngineProcess) -> dict[str, str] | None:
    status = (await process.status()) or {"alarms": []}
    return next((each for each in status["alarms"] if each["code"] == RIGHT_WITHDRAWN), None)


@pytest.mark.timeout(90)
async def test_a_running_engine_waits_for_a_right_that_comes_back(
    database: Database, s3: EmbeddedS3, bucket: str, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    async with HttpFaultProxy(s3.port) as proxy:
        pipeline = pipeline_of(database, s3, bucket, proxy.endpoint_url)
        with EngineProcess(pipeline, tmp_path, "run", "run") as process:
            await process.reaches("streaming")
            await published(process, database, 1)
            proxy.inject(PROCESSED, requests_to("PUT"))
            database.execute("INSERT INTO orders VALUES (2)")
            alarm = await until(lambda: is_withdrawn(process), "the alarm")
            standing = await process.status()
            proxy.clear()
            await until(lambda: has_objects(process, 2), "row 2")
            over = await process.status()
            await process.stop()

    assert "the bucket refuses what it allowed before: " in alarm["text"]
    assert f"s3:PutObject on arn:aws:s3:::{bucket}/lake/*" in alarm["hint"]
    assert standing is not None
    assert standing["phase"] == "streaming"
    assert over is not None
    assert (over["alarms"], over["rows_total"]) == ([], 2)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("folder", ["_tailrace/journal/", "database="])
async def test_a_running_engine_ends_where_the_right_does_not_come_back(
    database: Database, s3: EmbeddedS3, bucket: str, tmp_path: Path, folder: str
) -> None:
    def is_refused(request: Request) -> bool:
        return request.method == "PUT" and f"lake/{folder}" in request.key

    database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    async with HttpFaultProxy(s3.port) as proxy:
        pipeline = pipeline_of(database, s3, bucket, proxy.endpoint_url)
        pipeline = Pipeline(
            pipeline.sections,
            pipeline.environment,
            preamble="from engine.operate import rights_watch; rights_watch.RIGHT_SECONDS = 2.0; ",
        )
        with EngineProcess(pipeline, tmp_path, "run", "run") as process:
            await process.reaches("streaming")
            await published(process, database, 1)
            proxy.inject(PROCESSED, is_refused)
            database.execute("INSERT INTO orders VALUES (2)")
            code = await process.ended()

    (end,) = process.events("engine ended")
    (alarm,) = process.events("alarm")
    assert code == 78
    assert "AccessDenied" in end["error"]
    assert f"s3:PutObject on arn:aws:s3:::{bucket}/lake/*" in end["hint"]
    assert alarm["code"] == RIGHT_WITHDRAWN
