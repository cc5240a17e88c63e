"""`tailrace tail`: the newest changes, what comes then, and what it asks of the bucket for that."""

import asyncio
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.cli.application import main
from engine.config import DestinationConfiguration
from engine.model.interfaces import ObjectHead
from engine.reader.journal import JournalView
from engine.reader.table.newest import Change, Tail
from engine.servers.servers import EmbeddedS3
from memory_store import MemoryStore
from small_bucket import ODD, ORDERS, SmallBucket
from terminal import COLUMNS, seated, shown, too_wide
from test_read_command import moved
from test_table_changes import go_on, published, streamed, with_gap, with_snapshot
from test_verify_command import destination

TABLE = str(ORDERS)


@dataclass
class AskedStore(MemoryStore):
    heads: list[str] = field(default_factory=list)

    async def head(self, key: str) -> ObjectHead | None:
        self.heads.append(key)
        return await super().head(key)


async def opened(bucket: SmallBucket) -> Tail:
    view = JournalView(bucket.store, bucket.prefix)
    await view.load()
    return Tail(bucket.store, view, TABLE)


def ops(changes: list[Change]) -> str:
    return "".join(json.loads(each.line)["metadata"]["op"] for each in changes)


@pytest.mark.parametrize(
    ("count", "wanted"), [(0, ""), (1, "c"), (3, "ccc"), (6, "tccccc"), (99, "cccudcutccccc")]
)
async def test_the_newest_come_first_to_last(count: int, wanted: str) -> None:
    bucket = await streamed("cccu", "dcut", "cc", "ccc")

    found = await (await opened(bucket)).newest(count)

    assert ops(found) == wanted


async def test_what_is_not_durable_is_not_shown_yet() -> None:
    bucket = await streamed("cccu")
    piece = bucket.piece(ORDERS, "dd")
    await bucket.journal.append(planned=(piece.planned,))
    await bucket.publish(piece)
    tail = await opened(bucket)

    first = await tail.newest(10)
    before = await tail.more()
    await bucket.journal.append(durable=bucket.durable())
    after = await tail.more()

    assert (ops(first), before, ops(after)) == ("cccu", [], "dd")


async def test_each_change_that_becomes_durable_is_shown_once() -> None:
    bucket = await streamed("cccu")
    tail = await opened(bucket)
    found = await tail.newest(1)

    for word in ("d", "cc", "u"):
        await published(bucket, word)
        found += await tail.more()
        found += await tail.more()

    assert ops(found) == "udccu"
    assert len({each.line for each in found}) == 5


async def test_the_newest_rows_of_many_objects_are_found_without_asking_each() -> None:
    bucket = await streamed(*["c"] * 100, store=AskedStore())
    store = bucket.store
    assert isinstance(store, AskedStore)
    tail = await opened(bucket)
    store.heads.clear()

    found = await tail.newest(3)

    assert len(found) == 3
    assert len(store.heads) < 40


async def test_changes_of_another_table_cost_a_look_at_the_journal_alone() -> None:
    bucket = await streamed("cccu", store=AskedStore())
    store = bucket.store
    assert isinstance(store, AskedStore)
    tail = await opened(bucket)
    await tail.newest(1)
    version = bucket.version(ODD)
    piece = bucket.piece(ODD, "c")
    await bucket.journal.append(planned=(piece.planned,), schemas=(version,))
    await bucket.publish(piece)
    await bucket.journal.append(durable=bucket.durable())
    store.heads.clear()

    found = await tail.more()

    assert found == []
    assert store.heads == []


async def test_rows_of_a_snapshot_that_was_there_are_no_changes() -> None:
    snapshots = await with_snapshot()
    tail = await opened(snapshots.bucket)

    found = await tail.newest(10)
    await go_on(snapshots, "ud")
    found += await tail.more()

    assert ops(found) == "ccuud"


async def test_a_gap_is_a_doubt_and_no_end() -> None:
    tail = await opened(await with_gap())

    found = await tail.newest(10)

    assert ops(found) == "ccccc"
    assert tail.reading is not None
    assert [doubt.code for doubt in tail.reading.doubts] == ["gap"]


# --- the command


@pytest.fixture
def target(
    aws_environment: EmbeddedS3, shared_bucket: str, prefix: str
) -> DestinationConfiguration:
    return destination(aws_environment, shared_bucket, prefix)


@pytest.fixture
async def file(target: DestinationConfiguration, tmp_path: Path) -> str:
    """A configuration of a bucket with 13 durable changes."""
    moved_bucket = await streamed("cccu", "dcut", "cc", "ccc")
    path = tmp_path / "tailrace.toml"
    path.write_text(
        f'[destination]\nbucket = "{target.bucket}"\nprefix = "{target.prefix}"\n'
        f'region = "us-east-1"\nendpoint_url = "{target.endpoint_url}"\n'
    )
    # It has a loop of its own.
    await asyncio.to_thread(moved, moved_bucket, target)
    return str(path)


def test_a_pipe_gets_the_records_as_they_are(
    file: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    code = main(["tail", "orders", "-n", "2", "-c", file])

    out, errors = capsysbinary.readouterr()
    assert code == 0
    assert [json.loads(line)["metadata"]["op"] for line in out.splitlines()] == ["c", "c"]
    assert errors.decode().startswith("next: tailrace read orders --since tr1.")


def test_the_cursor_that_it_names_has_nothing_behind_it(
    file: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    main(["tail", TABLE, "-n", "2", "-c", file])
    cursor = capsysbinary.readouterr().err.decode().split("--since ")[1].split()[0]

    code = main(["read", TABLE, "--since", cursor, "-c", file])

    assert (code, capsysbinary.readouterr().out) == (0, b"")


def test_a_terminal_gets_a_line_for_each_that_fits(
    monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    found = shown(monkeypatch, "tail", TABLE, "-c", file)

    rows = found.out.splitlines()
    assert found.code == 0, found.err
    assert len(rows) == 10
    assert any(" UTC" not in row and "  delete    " in row for row in rows)
    assert all(len(row) <= COLUMNS for row in rows)
    assert too_wide(found.lines) == []


def test_a_table_without_changes_is_said_to_have_none(
    monkeypatch: pytest.MonkeyPatch, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def none(_: Tail, __: int) -> list[Change]:
        return []

    monkeypatch.setattr(Tail, "newest", none)

    code = main(["tail", TABLE, "-c", file])

    out, errors = capsys.readouterr()
    assert (code, out) == (0, "")
    assert errors.startswith(f"no change of {TABLE} is in the bucket yet")


def test_a_table_that_nobody_knows_is_told_with_near_names(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["tail", "public.order", "-c", file])

    assert code == 1
    assert "did you mean public.orders?" in capsys.readouterr().err


def test_ctrl_c_ends_following_with_130(file: str, aws_environment: EmbeddedS3) -> None:
    environment = {**os.environ, **aws_environment.environment, "TERM": "dumb"}
    with seated("tail", TABLE, "-n", "1", "-f", "-c", file, environment=environment) as seat:
        seat.sees("insert")
        seat.interrupts()
        code = seat.leaves()

    assert code == 130, seat.text
    assert "Traceback" not in seat.text
