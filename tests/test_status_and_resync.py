"""`tailrace status` and `tailrace resync` against a real S3 server, and one real engine."""

import asyncio
import contextlib
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from configured import destination_file, make_destination
from databases import Database
from engine import app
from engine.cli.application import main
from engine.cli.asked import Asked
from engine.config import DestinationConfiguration
from engine.journal.entry import Answer, Gap, JournalState
from engine.model.errors import DestinationUnavailable, JournalError
from engine.model.layout import requests_folder
from engine.model.request import decode_request, request_key, request_name, request_name_of
from engine.operate.status import SnapshotStatus, Status
from engine.reader.journal import JournalView
from engine.reader.standing import standing
from engine.servers.servers import EmbeddedS3
from load_tests.engine_process import EngineProcess, Pipeline, until
from memory_store import MemoryStore
from small_bucket import ODD, ORDERS, START_US, SmallBucket
from small_snapshot import Snapshots

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

NONCE = "0123456789abcdef"
ANSWERED = request_name(START_US, NONCE)
WAITING = request_name(START_US + 1, NONCE)


@pytest.fixture
def target(
    aws_environment: EmbeddedS3, shared_bucket: str, prefix: str
) -> DestinationConfiguration:
    return make_destination(
        bucket=shared_bucket,
        prefix=prefix,
        region="us-east-1",
        endpoint_url=aws_environment.endpoint_url,
    )


@pytest.fixture
def file(target: DestinationConfiguration, tmp_path: Path) -> str:
    return destination_file(target, tmp_path)


async def in_memory(prefix: str) -> SmallBucket:
    """Orders has a finished snapshot, the other table's is cancelled; a gap, and a request done."""
    bucket = SmallBucket(prefix=prefix, snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    await snapshots.make_whole(ORDERS)
    await snapshots.complete()
    bucket.commit += 0x1000
    await snapshots.append(snapshots.durable())
    snapshots.register.capture(ODD)
    await snapshots.append()
    snapshots.register.cancel(ODD)
    answer = Answer(ANSWERED, "cancel", "done", "2026-11-22T09:51:54Z", (str(ODD),))
    gap = Gap(1, str(ORDERS), "0001.A", "", "operations", "updates were left out")
    await bucket.journal.append(
        snapshots=snapshots.register.pending, answers=(answer,), gaps=(gap,)
    )
    return bucket


async def copy(store: MemoryStore, target: DestinationConfiguration) -> None:
    """What lies in memory, to the real bucket."""
    async with app.open_bucket(target) as bucket:
        for key, stored in store.objects.items():
            if "/_tailrace/" in key:
                await bucket.create(
                    key, stored.body, content_type="application/json", metadata=stored.metadata
                )


async def ask(target: DestinationConfiguration, name: str) -> None:
    async with app.open_bucket(target) as bucket:
        key = request_key(target.prefix, name)
        await bucket.create(key, b"{}", content_type="application/json", metadata={})


async def asked(target: DestinationConfiguration) -> dict[str, bytes | None]:
    """Every request that is there, by its name."""
    async with app.open_bucket(target) as bucket:
        keys = [listed.key async for listed in bucket.list(requests_folder(target.prefix))]
        return {str(request_name_of(target.prefix, key)): await bucket.get(key) for key in keys}


@pytest.fixture
def standing_bucket(target: DestinationConfiguration) -> DestinationConfiguration:
    asyncio.run(copy(asyncio.run(in_memory(target.prefix)).store, target))
    return target


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_status_shows_tables_gaps_and_requests_and_names_the_next_step(
    standing_bucket: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["status", "-c", file])

    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert code == 0
    assert re.fullmatch(r"durable 0001\.[0-9A-F]{16}", lines[0])
    assert re.fullmatch(r"2026-11-22 \d\d:\d\d:\d\d UTC, \d+ \w+ ago", lines[1])
    assert "2 tables, 1 unfinished: earlier rows are not all there" in lines
    [odd] = [n for n, line in enumerate(lines) if line.startswith(f"{ODD} cancelled: ")]
    assert lines[odd + 1].startswith(f"{ORDERS} finished: attempt 1, as of 0001.")
    assert "1 gap not mended: `tailrace check` says what mends each" in lines
    assert f"{ORDERS} operations" in lines
    assert f"{ANSWERED} done: cancel {ODD}" in lines
    assert lines[-1].startswith("next: tailrace resync ")


def test_status_as_json_has_the_same(
    standing_bucket: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(ask(standing_bucket, WAITING))

    code = main(["status", "-c", file, "--json"])

    found = said(capsys)
    tables = {table["table"]: table for table in found["tables"]}
    assert code == 0
    assert found["released"] is False
    assert tables[str(ODD)] == {
        "table": str(ODD),
        "snapshot": "cancelled",
        "attempt": None,
        "point": None,
        "unfinished": True,
    }
    assert tables[str(ORDERS)]["snapshot"] == "finished"
    assert tables[str(ORDERS)]["point"] < found["durable"]["position"]
    assert found["gaps"] == [{"number": 1, "table": str(ORDERS), "reason": "operations"}]
    assert found["requests"]["waiting"] == [WAITING]
    assert [answer["name"] for answer in found["requests"]["answered"]] == [ANSWERED]


def test_resync_creates_a_request_that_status_then_shows(
    standing_bucket: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["resync", ORDERS.table, str(ODD), "-c", file])
    text = capsys.readouterr().out
    main(["status", "-c", file])
    shown = capsys.readouterr().out

    [(name, body)] = asyncio.run(asked(standing_bucket)).items()
    request = decode_request(body or b"")
    assert code == 0
    assert (request.kind, request.tables) == ("resync", (str(ORDERS), str(ODD)))
    assert f"    request {name}\n" in text
    assert f"\nnext: tailrace status -c {file}  (a running engine looks" in text
    assert f"    {name}  waits for an engine\n" in shown


def test_cancel_is_a_request_of_its_own_and_json_is_one_object(
    standing_bucket: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["resync", str(ORDERS), "--cancel", "--json", "-c", file])

    found = said(capsys)
    [(name, body)] = asyncio.run(asked(standing_bucket)).items()
    assert code == 0
    assert found == {"request": name, "tables": [str(ORDERS)], "outcome": "waiting", "text": ""}
    assert decode_request(body or b"").kind == "cancel"


class Ended(Exception):
    """Nobody looks any more."""


class StillView:
    """A journal in which nothing more happens, for so many looks."""

    def __init__(self, look_count: int) -> None:
        self.state = JournalState()
        self._left = look_count

    async def follow(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Ended


async def test_whoever_waits_for_a_snapshot_that_does_not_begin_is_told_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("engine.cli.asked.FOLLOW_SECONDS", 0.001)
    monkeypatch.setattr("engine.cli.asked.IDLE_SECONDS", 0.003)
    monkeypatch.setattr("engine.reader.asking.progress", lambda *_: "wanted")
    waiting = Asked("resync", is_waiting=True, is_quiet=False)
    waiting.tables = (str(ORDERS),)

    with pytest.raises(Ended):
        await waiting._finished(cast("JournalView", StillView(20)), {})

    assert capsys.readouterr().out.count(f"not begun yet: {ORDERS}; an alarm") == 1


async def test_a_bucket_that_goes_on_failing_is_told_with_its_own_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def late(_: str) -> None:
        raise DestinationUnavailable("list: RequestTimeTooSkewed", hint="set the clock")

    monkeypatch.setattr("engine.reader.journal.PATIENCE_SECONDS", 0.5)
    view = JournalView(MemoryStore(before_list=late), "shop")

    with pytest.raises(DestinationUnavailable, match="RequestTimeTooSkewed") as raised:
        await view.load()

    assert raised.value.hint == "set the clock"


def test_a_table_that_is_not_known_ends_with_1_and_near_names(
    standing_bucket: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["resync", f"{ORDERS}s", "-c", file])
    complaint = capsys.readouterr().err
    json_code = main(["resync", f"{ORDERS}s", "-c", file, "--json"])
    found = said(capsys)

    assert (code, json_code) == (1, 1)
    assert f"error: the journal knows no {ORDERS}s; did you mean {ORDERS}?" in complaint
    assert f"hint: `tailrace status -c {file}` lists" in complaint
    assert (found["outcome"], found["request"]) == ("refused", None)
    assert asyncio.run(asked(standing_bucket)) == {}


def test_no_table_at_all_is_a_wrong_command_line(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resync", "-c", file]) == 2
    assert "TABLE is missing" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["status"], ["resync", "public.orders"]])
def test_a_prefix_without_a_journal_ends_with_70_and_a_hint(
    words: list[str], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*words, "-c", file])

    captured = capsys.readouterr()
    assert code == 70
    assert captured.out == ""
    assert "error: there is no journal under t/" in captured.err
    assert "hint: Check destination.bucket" in captured.err


@pytest.mark.parametrize("words", [["status"], ["resync", "public.orders"]])
def test_a_bucket_that_does_not_answer_ends_with_69(
    words: list[str],
    target: DestinationConfiguration,
    file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.reader.journal.PATIENCE_SECONDS", 0.5)
    text = Path(file).read_text()
    # Port 1 on loopback: nobody listens there.
    Path(file).write_text(text.replace(str(target.endpoint_url), "http://127.0.0.1:1"))

    code = main([*words, "-c", file])

    captured = capsys.readouterr()
    assert code == 69, captured.err
    assert captured.out == ""
    assert "error: " in captured.err


# --- one real engine

ROWS = 500


@pytest.fixture
def pipeline(database: Database, s3: EmbeddedS3, target: DestinationConfiguration) -> Pipeline:
    with database.connect() as connection:
        connection.execute("CREATE TABLE orders (id bigint PRIMARY KEY, customer text)")
        connection.execute(
            "INSERT INTO orders SELECT n, 'row ' || n FROM generate_series(1, %s) AS n", [ROWS]
        )
    sections = {
        "source": {
            "dsn": database.dsn,
            "slot": database.name,
            "snapshot": "initial",
            "snapshot_workers": "local:1",
        },
        "destination": {
            "bucket": target.bucket,
            "prefix": target.prefix,
            "endpoint_url": s3.endpoint_url,
        },
        "chunk": {"max_age": "400ms"},
        "engine": {"append_interval": "200ms"},
        "log": {"level": "debug", "format": "text"},
    }
    # A second, not ten until requests are looked for, and not thirty until a quiet stream goes on.
    often = (
        "from engine.journal.settings import Settings\n"
        "made = Settings.__init__\n"
        "def make(*words, **named):\n"
        "    made(*words, **{**named, 'requests_interval': 1.0, 'idle_interval': 1.0})\n"
        "Settings.__init__ = make\n"
    )
    return Pipeline(sections, s3.environment, preamble=often)


async def command(pipeline: Pipeline, folder: Path, *words: str) -> tuple[int, str]:
    """A command beside the engine: its exit code, and all that it said."""
    with EngineProcess(pipeline, folder, "command", *words) as process:
        code = await process.ended(seconds=60)
        return code, process.output.read_text() + process.log


async def operations(client: "S3Client", target: DestinationConfiguration) -> Counter[str]:
    """How many records of each kind the table's objects have."""
    found = Counter[str]()
    listed = await client.list_objects_v2(Bucket=target.bucket, Prefix=f"{target.prefix}/")
    for each in listed["Contents"]:
        if each["Key"].endswith(".ndjson.gz"):
            response = await client.get_object(Bucket=target.bucket, Key=each["Key"])
            lines = gzip.decompress(await response["Body"].read()).splitlines()
            found.update(json.loads(line)["metadata"]["op"] for line in lines)
    return found


@pytest.mark.timeout(900)
async def test_a_running_engine_takes_a_snapshot_again_and_cancels_one(
    database: Database,
    pipeline: Pipeline,
    target: DestinationConfiguration,
    s3_client: "S3Client",
    tmp_path: Path,
) -> None:
    with EngineProcess(pipeline, tmp_path, "run", "run") as engine:
        await engine.reaches("streaming")
        await until(lambda: has_finished(target, 1), "the first snapshot")

        # A snapshot waits for every transaction that is open.
        with database.connect(autocommit=False) as older:
            older.execute("SELECT pg_current_xact_id()")
            with EngineProcess(pipeline, tmp_path, "waits", "resync", "orders", "--wait") as waits:
                await until(lambda: has_said(waits, "the engine has taken it"), "the answer")
                cancelled = await command(
                    pipeline, tmp_path, "resync", "orders", "--cancel", "--wait"
                )
                waited = await waits.ended()
            is_as_it_was = await has_finished(target, 1)
        again = await command(pipeline, tmp_path, "resync", "orders", "--wait")
        _, shown = await command(pipeline, tmp_path, "status")
        nothing = await command(pipeline, tmp_path, "resync", "orders", "--cancel", "--wait")
        await engine.stop()

    verified = await command(pipeline, tmp_path, "verify", "--depth", "full")
    assert cancelled[0] == 0, cancelled
    assert (waited, "the snapshot of public.orders was given up" in waits.log) == (1, True)
    assert is_as_it_was
    assert (again[0], "public.orders: finished by attempt 2" in again[1]) == (0, True), again
    assert "    public.orders  finished: attempt 2, as of 0001." in shown
    assert (nothing[0], "nothing to cancel of public.orders" in nothing[1]) == (1, True), nothing
    assert verified[0] == 0, verified
    assert await operations(s3_client, target) == {"t": 2, "r": 2 * ROWS}


@pytest.mark.timeout(300)
async def test_status_says_how_far_a_table_is_that_is_being_read(
    database: Database, pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with database.connect() as connection:
        connection.execute("ANALYZE orders")
    # Half a minute for the rows of one table.
    slowly = pipeline.changed(source__snapshot_rows_per_second=ROWS // 30)
    with EngineProcess(slowly, tmp_path, "run", "run") as engine:
        await engine.reaches("streaming")
        file = str(engine.file)

        async def shown() -> str | None:
            code = await asyncio.to_thread(main, ["status", "-c", file])
            text = capsys.readouterr().out
            return text if code == 0 and "being read now, as the engine says" in text else None

        text = await until(shown, "a table that is being read")
        await asyncio.to_thread(main, ["status", "-c", file, "--json"])
        found = said(capsys)
        engine.kill()
        alone = await shown()
        await asyncio.to_thread(main, ["status", "-c", file])
        without = capsys.readouterr().out

    assert re.search(r"public.orders  [█░]{20} \d+%  [\d,]+ of about 500 rows, .* B of", text), text
    assert [each["table"] for each in found["snapshots"]] == ["public.orders"]
    assert found["snapshots_in_all"]["rows_estimate"] == ROWS
    assert alone is None
    assert "how far they are: no engine answers at http.listen on this machine" in without


def test_several_tables_that_are_being_read_have_a_sum(
    target: DestinationConfiguration,
    standing_bucket: DestinationConfiguration,
    file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of(name: str, rows: int) -> SnapshotStatus:
        return SnapshotStatus(
            table=name,
            rows=rows,
            rows_estimate=4 * rows,
            bytes=2048 * rows,
            bytes_estimate=0,
            ranges_done=0,
            ranges=1,
            seconds=2,
            rows_per_second=rows / 2,
            seconds_left=6,
        )

    engine = Status(
        phase="streaming",
        since_us=1,
        durable_lag_seconds=12.0,
        lag_seconds=0.0,
        snapshots=(of("s.one", 1_000), of("s.two", 500)),
        snapshots_in_all=of("", 1_500),
    )
    monkeypatch.setattr("engine.cli.status.ask_engine", lambda *_: engine)

    assert main(["status", "-c", file]) == 0

    bar = "█████░░░░░░░░░░░░░░░ 25%"
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    waiting = "the oldest change that is not durable is 12 seconds old"
    assert f"lag      {waiting}; everything written is read" in lines
    at = lines.index("being read now, as the engine says")
    end = "a second, about 6 seconds left"
    assert lines[at + 1 : at + 4] == [
        f"s.one        {bar}  1,000 of about 4,000 rows, 2.0 MiB of about 2.0 MiB, 500 {end}",
        f"s.two        {bar}  500 of about 2,000 rows, 1.0 MiB of about 1.0 MiB, 250 {end}",
        f"all of them  {bar}  1,500 of about 6,000 rows, 2.9 MiB of about 2.9 MiB, 750 {end}",
    ]


async def has_said(process: EngineProcess, text: str) -> bool:
    return text in process.output.read_text()


async def has_finished(target: DestinationConfiguration, attempt: int) -> bool:
    """Whether the only table's newest snapshot is finished by that attempt."""
    async with app.open_bucket(target) as store:
        view = JournalView(store, target.prefix)
        with contextlib.suppress(JournalError):
            await view.load()
        tables = standing(view.state, (), 0).tables
    return [(table.snapshot, table.attempt) for table in tables] == [("finished", attempt)]
