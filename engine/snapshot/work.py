"""A worker's part: one task in, its objects staged, one result out.

Invariant: whatever happens to a task becomes a result of bounded size. A worker knows no journal
and completes no upload, so one that dies, comes back late or does another one's work does no harm.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable

import msgspec

from engine import __version__
from engine.journal.gaps import refuse_too_many
from engine.model.batch import Batch, LeftOut
from engine.model.errors import (
    SnapshotStale,
    TailraceError,
    UnrepresentableRow,
    UploadGone,
)
from engine.model.interfaces import ObjectStore
from engine.model.snapshot_source import RangeReader
from engine.snapshot.staging import PART_BYTES, stage
from engine.snapshot.task import (
    Failure,
    FailureKind,
    SnapshotResult,
    decode_task,
    encode,
)

_OTHER_RELEASE_HINT = "Run the workers and the engine from the same release."


def _nonce() -> str:
    return secrets.token_hex(8)


async def stage_range(
    content: bytes,
    *,
    store: ObjectStore,
    bucket: str,
    reader: RangeReader,
    make_nonce: Callable[[], str] = _nonce,
    part_bytes: int = PART_BYTES,
) -> bytes:
    """Do the task in `content` and return its result, both as bytes.

    `bucket` is what `store` writes to. Cancellation leaves an upload that no entry will name.
    """
    try:
        task = decode_task(content)
    except msgspec.DecodeError as error:
        return encode(_refused(f"the worker does not understand its task: {error}"))
    if task.release != __version__:
        return encode(
            _refused(f"the worker is of release {__version__}, the engine of {task.release}")
        )
    if task.bucket != bucket:
        text = f"the worker's destination.bucket is {bucket!r}, the engine's is {task.bucket!r}"
        hint = "Give the workers the engine's configuration."
        return encode(SnapshotResult(failure=Failure("refused", text, hint)))
    left_out: list[LeftOut] = []

    def leave_out(row: LeftOut) -> None:
        refuse_too_many(len(left_out), (row,))
        left_out.append(row)

    try:
        async with reader.read(task.rows, leave_out) as batches:
            objects = await stage(
                store,
                task.staging,
                _paced(batches, task.rows_per_second),
                make_nonce=make_nonce,
                part_bytes=part_bytes,
            )
    except TailraceError as error:
        return failed(error)
    return encode(SnapshotResult(objects, tuple(left_out)))


def failed(error: TailraceError) -> bytes:
    """The result of a task that came to this."""
    return encode(SnapshotResult(failure=Failure(_kind(error), str(error), error.hint)))


async def _paced(batches: AsyncIterator[Batch], rows_per_second: float) -> AsyncIterator[Batch]:
    """The batches, none before its time where there is a limit."""
    loop = asyncio.get_running_loop()
    began, row_count = loop.time(), 0
    async for batch in batches:
        yield batch
        row_count += batch.row_count
        if rows_per_second:
            ahead = row_count / rows_per_second - (loop.time() - began)
            if ahead > 0:
                await asyncio.sleep(ahead)


def _kind(error: TailraceError) -> FailureKind:
    match error:
        case SnapshotStale():
            return "stale"
        case UnrepresentableRow():
            return "unrepresentable"
        case UploadGone():
            return "again"
        case _:
            return "again" if error.retryable else "refused"


def _refused(text: str) -> SnapshotResult:
    return SnapshotResult(failure=Failure("refused", text, _OTHER_RELEASE_HINT))
