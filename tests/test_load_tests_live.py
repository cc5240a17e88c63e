"""What live scenarios are made of: pure parts alone, processes and observers on small loads.

No figure of the engine is judged here, only whether figures are right.
"""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, LiteralString

import msgspec
import psutil
import pytest

from databases import Database
from engine.servers.servers import EmbeddedPostgres, EmbeddedS3
from load_tests.engine_process import until
from load_tests.live import generator, livez_probe
from load_tests.live.child import ChildFailed, running
from load_tests.live.exposition import buckets, by_label, total
from load_tests.live.findings import missed_load, run_of, stall_figures, visible_figures
from load_tests.live.live import Live, Order, observed
from load_tests.live.livez_probe import Latencies
from load_tests.live.percentiles import histogram_percentile, percentiles, slope
from load_tests.live.place import Place
from load_tests.live.shape import Shape, Step
from load_tests.live.tables import TableSet
from load_tests.live.visibility import Sight, commits_of, read_sights
from load_tests.live.watcher import Watcher
from load_tests.servers import NAME, Bucket
from load_tests.servers import Database as Server

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

    from load_tests.run import Run

_ROOT = Path(__file__).parent.parent


# Pure


def test_percentiles_are_the_nearest_rank_of_the_weight() -> None:
    hundred = [(float(value), 1) for value in range(100, 0, -1)]

    assert percentiles(hundred, (0.5, 0.99, 0.999, 1.0)) == (50, 99, 100, 100)
    assert percentiles([(1.0, 98), (7.0, 2)], (0.5, 0.98, 0.99)) == (1, 1, 7)
    assert percentiles([(3.0, 1), (9.0, 0)], (0.0, 1.0)) == (3, 3)


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentiles([(1.0, 0)], (0.5,))


def test_a_histograms_percentile_lies_inside_its_bucket() -> None:
    found = ((1.0, 10.0), (2.0, 30.0), (float("inf"), 40.0))

    assert histogram_percentile(found, 0.5) == 1.5
    assert histogram_percentile(found, 0.25) == 1.0
    assert histogram_percentile(found, 0.99) == 2.0
    assert str(histogram_percentile((), 0.5)) == "nan"


def test_a_slope_is_that_of_the_line_through_all_points() -> None:
    assert slope([0, 1, 2, 3], [5, 7, 9, 11]) == pytest.approx(2)
    assert slope([0, 1, 2, 3], [1, 0, 0, 1]) == pytest.approx(0)
    assert slope([4, 4], [1, 2]) == 0
    assert slope([1], [1]) == 0


def test_a_shape_repeats_its_steps() -> None:
    shape = Shape((Step(3.0, 10.0), Step(1.0, 100.0)))

    assert shape.rows_per_second_mean == 32.5
    assert [shape.rows_due(t) for t in (0, 1.5, 3, 3.5, 4, 7, 8)] == [0, 15, 30, 80, 130, 160, 260]


def test_every_row_goes_to_a_table_and_tables_take_turns() -> None:
    tables = TableSet(count=10, per_transaction=3)

    shares = [list(tables.spread(number, 100)) for number in range(10)]

    assert all(sum(rows for _, rows in share) == 100 for share in shares)
    assert [name for name, _ in shares[0]] == list(tables.names[:3])
    counts: dict[str, int] = {}
    for share in shares:
        for name, rows in share:
            counts[name] = counts.get(name, 0) + rows
    assert set(counts) == set(tables.names)
    assert max(counts.values()) - min(counts.values()) <= 3


def test_fewer_rows_than_tables_leave_tables_out() -> None:
    share = list(TableSet(count=10, per_transaction=10).spread(0, 3))

    assert [rows for _, rows in share] == [1, 1, 1]


def test_metrics_are_summed_over_their_labels_and_not_over_like_names() -> None:
    text = (
        "# HELP x_total x\n"
        'x_total{table="a",op="c"} 2.0\nx_total{table="b",op="c"} 3.5\nx_total_other 9.0\n'
        'h_bucket{le="0.5"} 1.0\nh_bucket{le="+Inf"} 4.0\nh_sum 3.0\ny 7.0\n'
    )

    assert total(text, "x_total") == 5.5
    assert total(text, "y") == 7
    assert by_label(text, "x_total", "op") == {"c": 5.5}
    assert total(text, "absent") == 0
    assert buckets(text, "h") == ((0.5, 1.0), (float("inf"), 4.0))


def test_visible_latencies_are_those_of_rows_not_of_objects() -> None:
    sights = [Sight(100.0, {99_000: 98, 98_000: 1}), Sight(200.0, {190_000: 1})]

    figures = visible_figures(sights, 100)

    assert figures["visible_p50_seconds"] == 1
    assert figures["visible_p99_seconds"] == 2
    assert figures["visible_p999_seconds"] == figures["visible_max_seconds"] == 10
    assert figures["visible_newest_p50_seconds"] == 1
    assert figures["visible_rows_ratio"] == 1


def test_stalls_may_be_those_of_a_stretch_of_time() -> None:
    latencies = [Latencies(at=10.0, seconds=(0.001, 0.5)), Latencies(at=12.0, seconds=(0.002,))]

    assert stall_figures(latencies, 1.0)["stall_max_seconds"] == 0.5
    assert stall_figures(latencies, 1.0, within=(11.5, 13))["stall_max_seconds"] == 0.002
    assert stall_figures(latencies, 1.0, within=(20, 30)) == {}


@pytest.mark.parametrize(
    ("row_count", "seconds", "late", "missed"),
    [
        (10_000, 10.1, 0.2, ""),
        (10_000, 12.0, 2.0, "only 833 of 1,000 rows/s asked for were written"),
        (10_000, 10.1, 6.0, "a transaction began 6.0 s later than it was due"),
        (4_000, 4.0, 0.0, ""),
        (3_000, 4.0, 0.0, "only 750 of 1,000 rows/s asked for were written"),
    ],
)
def test_a_load_that_is_not_what_was_asked_for_says_in_what(
    row_count: int, seconds: float, late: float, missed: str
) -> None:
    order = generator.Order(
        dsn="",
        tables=TableSet(count=1),
        shape=Shape.steady(1000),
        seconds=10.0,
        transactions_per_second=20.0,
    )
    last = generator.Progress(
        at=0.0, seconds=seconds, row_count=row_count, transaction_count=1, late_max_seconds=late
    )

    assert missed_load(order, last) == missed


def test_records_are_counted_by_the_millisecond_of_their_commit() -> None:
    times = (7, 7, 9)
    lines = [json.dumps({"after": {"x": 1}, "metadata": {"source_ts_ms": t}}) for t in times]
    content = gzip.compress("\n".join([*lines, ""]).encode())

    assert commits_of(content) == {7: 2, 9: 1}


# Processes


@pytest.fixture
def tables(database: Database) -> TableSet:
    """Two tables in a database of the test's own."""
    tables = TableSet(count=2, per_transaction=2)
    database.execute("CREATE SCHEMA public_load")
    with database.connect() as connection:
        connection.execute("SET search_path = public_load")
        tables.make(connection, "public_load")
        connection.execute(f"ALTER DATABASE {database.name} SET search_path = public_load".encode())
    return tables


def load_order(database: Database, tables: TableSet, **changes: object) -> generator.Order:
    order = generator.Order(
        dsn=database.dsn,
        tables=tables,
        shape=Shape.steady(1000),
        seconds=1.0,
        transactions_per_second=20.0,
    )
    return msgspec.structs.replace(order, **changes)


async def progress_of(order: generator.Order) -> list[generator.Progress]:
    async with running(generator.__name__, order) as child:
        return [msgspec.json.decode(line, type=generator.Progress) async for line in child.lines()]


def row_counts(database: Database) -> list[int]:
    return [
        database.execute(f"SELECT count(*) FROM {name}")[0][0]
        for name in ("live_00000", "live_00001")
    ]


async def test_the_load_commits_exactly_what_is_due_at_its_rate(
    database: Database, tables: TableSet
) -> None:
    progress = await progress_of(load_order(database, tables))

    last = progress[-1]
    assert last.is_last
    assert (last.row_count, last.transaction_count) == (1000, 20)
    assert 0.9 < last.seconds < 3
    assert row_counts(database) == [500, 500]


async def test_a_database_that_stalls_meets_all_that_was_due_meanwhile(
    database: Database, tables: TableSet
) -> None:
    async def waits() -> bool:
        query: LiteralString = (
            "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'live_00000'::regclass"
        )
        return bool(await asyncio.to_thread(database.execute, query))

    order = load_order(database, tables, seconds=3.0, transactions_per_second=10.0)
    with database.connect(autocommit=False) as connection:
        connection.execute("LOCK TABLE live_00000")
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(progress_of(order))
            await until(waits, "a load that waits")
            # Until all that was ordered is due.
            await asyncio.sleep(order.seconds)
            released_at = time.time()
            connection.rollback()

    last = reading.result()[-1]
    # Open loop: nothing is left out or moved, and it says how late it was.
    assert last.row_count == 3000
    assert last.late_max_seconds > 2
    assert last.at - released_at < order.seconds


async def test_a_load_whose_order_is_over_early_tells_what_it_committed(
    database: Database, tables: TableSet
) -> None:
    async with running(generator.__name__, load_order(database, tables, seconds=60.0)) as child:
        told: list[generator.Progress] = []
        async for line in child.lines():
            told.append(msgspec.json.decode(line, type=generator.Progress))
            if told[-1].row_count:
                child.finish()

    last = told[-1]
    assert last.is_last
    assert 0 < last.row_count == sum(row_counts(database)) < 60_000


async def test_a_load_that_fails_is_no_load(database: Database, tables: TableSet) -> None:
    database.execute("DROP TABLE live_00001")

    with pytest.raises(ChildFailed, match="generator ended with code 1"):
        await progress_of(load_order(database, tables))


@asynccontextmanager
async def livez_server(stall_seconds: float, asked: Callable[[int], None]) -> AsyncIterator[int]:
    """Answers as the engine does; the fifth answer takes its time. Tells how often it was asked."""
    count = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                count += 1
                asked(count)
                if count == 5:
                    await asyncio.sleep(stall_seconds)
                body = b'{"live":true}'
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_a_late_answer_counts_for_all_requests_that_were_due_meanwhile() -> None:
    assert livez_probe.due_meanwhile(0.003, 0.02) == [0.003]
    assert livez_probe.due_meanwhile(0.05, 0.02) == pytest.approx([0.05, 0.03, 0.01])


async def test_all_that_was_due_during_a_stall_counts_as_stalled() -> None:
    is_enough = asyncio.Event()

    def asked(count: int) -> None:
        if count == 30:
            is_enough.set()

    async with livez_server(0.5, asked) as port:
        order = livez_probe.Order(port=port, interval_seconds=0.02)
        async with running(livez_probe.__name__, order) as child:
            await is_enough.wait()
            child.finish()
            lines = [line async for line in child.lines()]

    found = [
        seconds for line in lines for seconds in msgspec.json.decode(line, type=Latencies).seconds
    ]
    longest = max(found)
    assert longest >= 0.5
    # 25 requests were due in half a second, each waited less than the one before.
    stalled = livez_probe.due_meanwhile(longest, 0.02)
    begin = found.index(longest)
    assert len(stalled) >= 25
    assert found[begin : begin + len(stalled)] == stalled
    assert min(found) < 0.1


# Observers


async def test_an_object_is_seen_when_it_is_there_and_not_before(
    s3_client: "S3Client", bucket: str
) -> None:
    folder = "p/database=d/schema=s/table=t/"
    watcher = Watcher(s3_client, bucket, (folder,), 0.05)
    committed_ms = round(time.time() * 1000) - 3000
    record = json.dumps({"metadata": {"source_ts_ms": committed_ms}})

    async def put(name: str) -> None:
        body = gzip.compress(f"{record}\n".encode())
        await s3_client.put_object(Bucket=bucket, Key=folder + name, Body=body)

    def seen_by(name: str) -> Callable[[], Awaitable[bool]]:
        async def is_seen() -> bool:
            return folder + name in watcher.first_seen

        return is_seen

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watcher.run())
        before_first = time.time()
        await put("1.ndjson.gz")
        await until(seen_by("1.ndjson.gz"), "the first sight")
        before_second = time.time()
        await put("schema.json")
        await put("2.ndjson.gz")
        await until(seen_by("2.ndjson.gz"), "the second sight")
        after_second = time.time()
        watching.cancel()
    await put("3.ndjson.gz")
    await watcher.look_once_more()

    seen = watcher.first_seen
    assert sorted(key.removeprefix(folder)[0] for key in seen) == ["1", "2", "3"]
    assert before_first <= seen[f"{folder}1.ndjson.gz"] <= before_second
    assert before_second <= seen[f"{folder}2.ndjson.gz"] <= after_second
    assert watcher.missed == {f"{folder}3.ndjson.gz"}
    sights = await read_sights(s3_client, bucket, seen)
    age = seen[f"{folder}1.ndjson.gz"] - committed_ms / 1000
    assert age >= 3
    assert sights[0].oldest_seconds == pytest.approx(age, abs=0.001)
    assert [sight.row_count for sight in sights] == [1, 1, 1]


@pytest.fixture
def place(
    database: Database, postgres: EmbeddedPostgres, s3: EmbeddedS3, bucket: str, tmp_path: Path
) -> Place:
    """The session's servers as a live run has them."""
    server = Server(
        dsn=database.dsn,
        version="PostgreSQL 18",
        programs=postgres.bin_directory,
        is_local=True,
        environment={},
    )
    server.make_schema()
    shelf = Bucket(
        name=bucket,
        region="us-east-1",
        endpoint_url=s3.endpoint_url,
        prefix="",
        environment=s3.environment,
        process_id=s3.process_id,
    )
    return Place(server, shelf, tmp_path)


@contextmanager
def no_process_left() -> Iterator[None]:
    """Of the block's children, and of theirs."""
    own = psutil.Process()
    before = set(own.children(recursive=True))
    yield
    left = set(own.children(recursive=True)) - before
    assert {process.name() for process in left} == set()


@pytest.mark.timeout(240)
async def test_a_steady_run_is_measured_and_proven(place: Place) -> None:
    order = Order(
        tables=TableSet(count=2, per_transaction=2),
        keys={"chunk__max_age": "1s", "engine__append_interval": "200ms"},
        backlog_rows=100,
        is_proxied=True,
    )

    kept: list[Run] = []

    def keep(live: Live) -> None:
        assert live.verification is None
        kept.append(run_of(live, number=1, extra={"own": 7.0}))

    with no_process_left():
        async with observed(place, "steady", order, keep=keep) as live:
            load = live.loading(Shape.steady(500), 2.0, transactions_per_second=20.0)
            async with load as writing:
                await writing.finished()

    [run] = kept
    assert live.verification is not None
    assert live.verification.is_right, live.verification.text
    assert (live.verification.rows, run.rows) == (1100, 1100)
    figures = run.figures
    assert figures["own"] == 7
    assert figures["visible_rows_ratio"] == 1.1
    assert figures["missed_objects"] == 0
    last = live.progress[-1]
    assert last.seconds > 1.9
    assert figures["written_rows_per_second"] == 1000 / last.seconds
    usage = run.usage
    wall_seconds = usage.wall_seconds
    assert 0 < figures["visible_p50_seconds"] <= figures["visible_p999_seconds"] < wall_seconds
    assert 0 < figures["stall_p50_seconds"] <= figures["stall_max_seconds"] < wall_seconds
    # Balanced when the engine ended: what came after it is not in it.
    assert run_of(live, number=1, extra={}).usage == usage
    assert 0 < usage.own_cpu_seconds < usage.wall_seconds * 4
    assert usage.peak_rss_bytes > 32 * 1024 * 1024
    assert usage.walsender_cpu_seconds is not None
    for name in ("rows_per_second", "rss_bytes", "queue_bytes", "lag_bytes", "visible_seconds"):
        assert len(run.series[name].times) == len(run.series[name].values) > 0, name
    with place.database.connect() as connection:
        # Other tests keep engines on the same server.
        own = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
        assert connection.execute(own).fetchall() == []
        found = connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = %s", [NAME])
        assert found.fetchall() == []


@pytest.mark.timeout(240)
async def test_while_the_bucket_is_silent_nothing_is_durable_and_nothing_is_lost(
    place: Place,
) -> None:
    order = Order(
        tables=TableSet(count=1),
        keys={"chunk__max_age": "200ms", "engine__append_interval": "100ms"},
        is_proxied=True,
        probe_seconds=0.0,
    )

    async with observed(place, "stall", order) as live:
        assert live.proxy is not None
        async with live.loading(Shape.steady(200), 60.0, transactions_per_second=20.0):
            await live.rows_read(20)
            await live.settled()
            with live.proxy.blackout():
                dark_at = time.time()
                await asyncio.sleep(1.2)

                async def has_grown() -> bool:
                    lags = [
                        sample.slot_lag_bytes
                        for sample in live.sampler.between(dark_at + 0.5, time.time())
                    ]
                    return len(lags) > 2 and lags[-1] > lags[0]

                # The slot is looked at now and then, and later where the machine is busy.
                await until(has_grown, "a lag that grows in the silence", seconds=60)
                light_at = time.time()
    silent = live.sampler.between(dark_at + 0.5, light_at)

    assert len(silent) > 2
    assert silent[-1].slot_lag_bytes > silent[0].slot_lag_bytes
    assert silent[-1].object_count == silent[0].object_count
    assert live.verification is not None
    assert live.verification.is_right, live.verification.text
    # What was committed during the silence was seen after it.
    assert max(sight.oldest_seconds for sight in live.sights) > 1


def started_load(harness: psutil.Process) -> list[psutil.Process]:
    """The harness's children and theirs, once the load is one of them."""
    while True:
        children = harness.children(recursive=True)
        for child in children:
            with suppress(psutil.Error):
                if generator.__name__ in child.cmdline():
                    return children
        time.sleep(0.02)


@pytest.mark.timeout(240)
def test_an_interrupt_leaves_a_partial_result_and_no_process(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "load_tests", "steady", f"--output={output}"],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    while "round 1" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    children = started_load(psutil.Process(process.pid))

    os.killpg(process.pid, signal.SIGINT)  # As the terminal's Ctrl-C.
    said += process.communicate()[0]

    assert process.returncode == 130, said
    _, alive = psutil.wait_procs(children, timeout=60)
    assert [child.cmdline() for child in alive] == []
    assert json.loads(output.read_bytes())["outcome"] == "interrupted"
