"""A worker's part: what it refuses, and which failure each error is to the coordinator."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from engine import __version__, worker
from engine.model.batch import Batch, LeftOut
from engine.model.errors import (
    ConfigurationError,
    DecodeError,
    DestinationRefused,
    DestinationUnavailable,
    InvariantBroken,
    ObjectArchived,
    SnapshotStale,
    SourceFailed,
    SourceRefused,
    SourceUnavailable,
    TailraceError,
    UnrepresentableRow,
    UploadGone,
)
from engine.model.position import snapshot_position
from engine.model.snapshot_source import LeaveOut, RangeReader, RangeTask
from engine.snapshot.task import Failure, FailureKind, SnapshotTask, decode_result, encode
from engine.snapshot.work import stage_range
from memory_store import MemoryStore
from small_bucket import ORDERS
from snapshot_rig import BUCKET, Rig, rig, virtually

ERRORS: tuple[tuple[TailraceError, FailureKind], ...] = (
    (SnapshotStale("it failed", hint="do this"), "stale"),
    (SourceUnavailable("it failed", hint="do this"), "again"),
    (SourceFailed("it failed", code="22P05", hint="do this"), "again"),
    (DestinationUnavailable("it failed", hint="do this"), "again"),
    (UploadGone("it failed", hint="do this"), "again"),
    (DecodeError("it failed", hint="do this"), "refused"),
    (InvariantBroken("it failed", hint="do this"), "refused"),
    (ConfigurationError("it failed", hint="do this"), "refused"),
    (SourceRefused("it failed", hint="do this"), "refused"),
    (DestinationRefused("it failed", hint="do this"), "refused"),
    (ObjectArchived("it failed", hint="do this"), "refused"),
    (UnrepresentableRow("it failed", reason="too large", hint="do this"), "unrepresentable"),
)


class Reader:
    """Its range cannot be read. `opened` counts how often it was asked."""

    def __init__(self, error: TailraceError) -> None:
        self.error = error
        self.opened = 0

    def read(
        self, task: RangeTask, leave_out: LeaveOut
    ) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        self.opened += 1
        raise self.error


class OddReader:
    """No record can hold any row of its range, which has no end."""

    def __init__(self) -> None:
        self.row_count = 0

    @asynccontextmanager
    async def read(
        self, task: RangeTask, leave_out: LeaveOut
    ) -> AsyncIterator[AsyncIterator[Batch]]:
        yield self._batches(task, leave_out)

    async def _batches(self, task: RangeTask, leave_out: LeaveOut) -> AsyncIterator[Batch]:
        for number in range(1_000_000):
            position = snapshot_position(task.point, task.attempt, task.range_number, number)
            leave_out(LeftOut(task.version.relation.table, position, "odd", ""))
            self.row_count += 1
        none: tuple[Batch, ...] = ()
        for batch in none:
            yield batch


async def failure_of(content: bytes, reader: RangeReader, *, bucket: str = BUCKET) -> Failure:
    """What becomes of a task that fails. Nothing is staged."""
    store = MemoryStore()
    result = decode_result(await stage_range(content, store=store, bucket=bucket, reader=reader))
    assert result.failure is not None
    assert (result.objects, store.objects, store.uploads) == ((), {}, {})
    return result.failure


async def first_task(one: Rig) -> SnapshotTask:
    """A task as the coordinator gives it."""
    async with one.taking(ORDERS):
        await one.done()
    return one.tasks[0]


# --- what a worker refuses before it reads


@virtually
async def test_a_task_of_another_release_is_refused_by_name() -> None:
    task, reader = await first_task(await rig()), Reader(SourceUnavailable("not asked"))
    other = msgspec.structs.replace(task, release="0.0.7")

    failure = await failure_of(encode(other), reader)

    assert failure.kind == "refused"
    assert failure.text == f"the worker is of release {__version__}, the engine of 0.0.7"
    assert failure.hint == "Run the workers and the engine from the same release."
    assert not reader.opened


@virtually
async def test_a_task_for_another_bucket_is_refused_by_name() -> None:
    task, reader = await first_task(await rig()), Reader(SourceUnavailable("not asked"))

    failure = await failure_of(encode(task), reader, bucket="pond")

    assert failure.kind == "refused"
    assert "'pond'" in failure.text
    assert "'lake'" in failure.text
    assert failure.hint == "Give the workers the engine's configuration."
    assert not reader.opened


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", b'{"release":"0.1.0"}'])
async def test_a_task_that_cannot_be_decoded_is_refused(content: bytes) -> None:
    reader = Reader(SourceUnavailable("not asked"))

    failure = await failure_of(content, reader)

    assert failure.kind == "refused"
    assert failure.text.startswith("the worker does not understand its task: ")
    assert failure.hint == "Run the workers and the engine from the same release."
    assert not reader.opened


def test_a_worker_without_a_usable_configuration_refuses_its_tasks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("[source]\ntype = 7\n")
    monkeypatch.setenv("TAILRACE_CONFIG", str(file))

    failure = decode_result(worker.work(b"")).failure

    assert failure is not None
    assert failure.kind == "refused"
    assert "source.type" in failure.text


# --- which failure an error is, and what the coordinator does


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=lambda value: type(value).__name__)
@virtually
async def test_an_error_is_a_failure_of_its_kind(error: TailraceError, kind: FailureKind) -> None:
    task = await first_task(await rig())

    failure = await failure_of(encode(task), Reader(error))

    assert failure == Failure(kind, "it failed", "do this")


@virtually
async def test_a_worker_keeps_no_more_rows_than_may_be_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.journal.gaps.LEFT_OUT_ROWS_MAX", 3)
    task, reader = await first_task(await rig()), OddReader()

    failure = await failure_of(encode(task), reader)

    assert failure.kind == "unrepresentable"
    assert failure.text.startswith("3 rows of public.orders were left out already")
    assert "exclude the column" in failure.hint
    assert reader.row_count == 3


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=lambda value: type(value).__name__)
@virtually
async def test_the_coordinator_does_what_the_kind_says(
    error: TailraceError, kind: FailureKind
) -> None:
    one, reader = await rig(), Reader(error)

    async def fail(task: SnapshotTask) -> bytes:
        store = one.bucket.store
        return await stage_range(encode(task), store=store, bucket=BUCKET, reader=reader)

    one.deeds = [fail]
    hints: list[str] = []

    async with one.taking(ORDERS):
        if kind in {"refused", "unrepresentable"}:
            # Somebody has to change something, and is told at once.
            await one.until(one.is_alarmed)
            hints = [alarm.hint for alarm in one.alarms.standing()]
        await one.until(lambda: one.is_alarmed() or one.is_done)
        is_alarmed = one.is_alarmed()
        await one.done()

    assert reader.opened == 1
    # The same range again, or another attempt under another snapshot.
    assert one.stated().attempt == (1 if kind == "again" else 2)
    assert is_alarmed == (kind in {"refused", "unrepresentable"})
    assert hints == ["do this"] * is_alarmed
    assert one.visible_rows() == 3
