"""Tasks and results: what coordinator and workers tell each other, as bytes of fixed types.

Strategy: a worker may be another process, on another machine, of another release. So nothing of
ours is pickled: both sides know these types, and a worker that cannot take a task says why.
"""

from typing import Literal

import msgspec

from engine.model.batch import LeftOut
from engine.model.snapshot_source import RangeTask
from engine.model.staged_object import StagedObject
from engine.snapshot.staging import StagingTask

FailureKind = Literal["stale", "again", "refused", "unrepresentable"]
"""Why a range was not staged.

stale: the snapshot cannot be read any more; only another one helps. again: the same range may work
later, or on another worker. refused: somebody has to change something first. unrepresentable: a row
cannot be written as a record.
"""


class SnapshotTask(msgspec.Struct, frozen=True):
    """One range to stage.

    `release` is the coordinator's, and `bucket` where the uploads go: a worker that has others
    refuses. The worker reads no more than `rows_per_second` (0: as fast as it can).
    """

    release: str
    bucket: str
    rows: RangeTask
    staging: StagingTask
    rows_per_second: float = 0.0


class Failure(msgspec.Struct, frozen=True):
    """Why a range was not staged: `text` what happened, `hint` what to do."""

    kind: FailureKind
    text: str
    hint: str = ""


class SnapshotResult(msgspec.Struct, frozen=True):
    """What became of a task: the staged objects in order and the rows left out, or a failure."""

    objects: tuple[StagedObject, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    failure: Failure | None = None


def encode(message: SnapshotTask | SnapshotResult) -> bytes:
    """The bytes of a task or a result."""
    return msgspec.msgpack.encode(message)


def decode_task(content: bytes) -> SnapshotTask:
    """The task in `content`. Raises msgspec.DecodeError where it is none of this release's."""
    return msgspec.msgpack.decode(content, type=SnapshotTask)


def decode_result(content: bytes) -> SnapshotResult:
    """The result in `content`. Raises msgspec.DecodeError where it is none of this release's."""
    return msgspec.msgpack.decode(content, type=SnapshotResult)
