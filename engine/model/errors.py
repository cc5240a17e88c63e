"""Every error that an operator can meet, as one tree.

    TailraceError                  what happened; `hint`: what to do; `exit_code`: the process's
    ├── ConfigurationError         78  the configuration is wrong
    ├── DecodeError                70  the source sent what its protocol does not allow
    │   └── UnrepresentableRow     70  a row that no record can hold, or that exceeds the limit
    ├── SourceError
    │   ├── SourceUnavailable      69  retryable: no connection, a lost one, a server starting
    │   │   └── SourceFailed       69  retryable: it answers with an error that may pass
    │   ├── SourceRefused          78  it answers and will not: a setting, a right, a name
    │   ├── LeaseHeld              75  retryable: somebody else reads the source
    │   ├── SourceChanged          69  another server answers now: start over from the journal
    │   └── PositionLost           70  its log is gone or was moved; server behind the journal
    ├── DestinationError
    │   ├── DestinationUnavailable 69  retryable: no usable answer; applied or not
    │   ├── DestinationRefused     78  403, missing bucket, wrong region: exit with the fix
    │   │   └── ObjectArchived     78  it is there and cannot be read before it is restored
    │   ├── UploadGone             69  a part for an upload that was completed or aborted
    │   └── UploadsOutlived        78  a rule of the bucket leaves less time than was needed
    ├── SnapshotsRefused           78  all else is published, and tables' rows may not be read
    ├── StreamPaused                1  the stream is paused, and this run was to catch up
    ├── Superseded                 75  another writer owns the journal now
    ├── JournalUnseen              75  it was not looked at for half a day
    ├── StopLimit                  75  the drain limit or a second signal ended the process
    ├── ForeignPrefix              70  the prefix belongs to another pipeline
    ├── StateUnknown               70  records that do not tell a table's current state
    │   └── FoldTooLarge           70  … in the memory that it may take
    ├── ReadRefused                1   what is asked of the bucket cannot be told rightly
    ├── InvariantBroken            70  this engine contradicts itself: it stops before it writes
    └── JournalError               70  the bucket contradicts itself or this engine

Strategy: adapters translate foreign errors at their boundary into this tree, with the cause and
the facts; everything above retries on `retryable` alone. Messages never carry row values or
secrets.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal


class TailraceError(Exception):
    """Base of all errors shown to an operator.

    `str(error)` says what happened and where, in one sentence; `hint` says what to do about it.
    """

    exit_code: ClassVar[int] = 70
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigurationError(TailraceError):
    """The configuration cannot be used. The message may hold several lines, one a problem."""

    exit_code = 78


class DecodeError(TailraceError):
    """The bytes are not what the protocol allows; raised instead of IndexError and its kin."""


class UnrepresentableRow(DecodeError):
    """A row that no record can hold, or that is larger than the limit. Others may well be fine.

    `reason` says why in plain words, the column with it; `key` is the row's key as a JSON object of
    texts, empty where it has none. The message never holds the key. `table_number` and `change` are
    those that the line writer was given.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        key: str = "",
        table_number: int = 0,
        change: int = 0,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.key = key
        self.table_number = table_number
        self.change = change


class SourceError(TailraceError):
    """Something about the source."""


class SourceUnavailable(SourceError):
    """The source does not answer, or stopped answering. Trying again later may work."""

    exit_code = 69
    retryable = True


class SourceFailed(SourceUnavailable):
    """The source answers, with an error of its own that may pass.

    `code` is the source's word for it: the same code at the same position may come for ever.
    """

    def __init__(self, message: str, *, code: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class SnapshotStale(SourceUnavailable):
    """What was to be read under a snapshot is not what the snapshot saw: take a new one."""


class SourceRefused(SourceError):
    """The source answered and will not do it: a setting, a right or a name has to change."""

    exit_code = 78


class LeaseHeld(SourceError):
    """Somebody else reads the source now: it gives its lease to one reader at a time."""

    exit_code = 75
    retryable = True


class SourceChanged(SourceError):
    """The source failed over to another branch of its history while this engine was running.

    What was read and not planned may be gone there: start over from the journal.
    """

    exit_code = 69


class StreamStarts(TailraceError):
    """The stream waited for the initial snapshot, which is complete: a new life reads from E."""


LossKind = Literal["moved", "keeper", "history"]
"""What was lost.

*moved*: the source goes on from a later place of the same log. *keeper*: what kept the log for us
is gone, or of no use. *history*: the log is another one now.
"""


class PositionLost(SourceError):
    """Changes between the journal's position and the source's are gone; never skipped silently.

    `loss` is the kind; *history* where nobody knows better, because that one trusts nothing.
    """

    def __init__(self, message: str, *, hint: str = "", loss: LossKind = "history") -> None:
        super().__init__(message, hint=hint)
        self.loss = loss


class DestinationError(TailraceError):
    """Something about the bucket."""


class DestinationUnavailable(DestinationError):
    """No usable answer. The request may have been applied or not: send the same bytes again.

    `code` is S3's error code or the transport's error name, for metrics.
    """

    exit_code = 69
    retryable = True

    def __init__(self, message: str, *, code: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class DestinationRefused(DestinationError):
    """The bucket answered and will not do it: rights, name, region, encryption key."""

    exit_code = 78

    def __init__(self, message: str, *, code: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ObjectArchived(DestinationRefused):
    """The object is there and cannot be read before somebody restores it."""


class UploadGone(DestinationError):
    """There is no such upload: it was completed, or somebody aborted it.

    The same request never succeeds. A new upload may.
    """

    exit_code = 69


class UploadsOutlived(DestinationError):
    """A rule of the bucket throws unfinished uploads away sooner than they could be completed.

    `seconds` is the time that was not enough.
    """

    exit_code = 78

    def __init__(self, message: str, *, seconds: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.seconds = seconds


class SnapshotsRefused(TailraceError):
    """Everything is published but the snapshots of some tables: somebody has to act first."""

    exit_code = 78


class StreamPaused(TailraceError):
    """The stream is paused, and whoever runs this engine waits until it has caught up."""

    exit_code = 1


class Superseded(TailraceError):
    """Another writer appended to the journal: this one may publish nothing more."""

    exit_code = 75

    def __init__(self, message: str) -> None:
        super().__init__(
            message, hint="Two engines may share a pipeline: this one stops, the other goes on."
        )


class JournalUnseen(TailraceError):
    """The journal was not looked at for so long that entries may have come and expired."""

    exit_code = 75

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            hint="The process was stopped, its machine slept, or the bucket was out of reach for"
            " hours. Nothing is lost: start the engine again.",
        )


class StopLimit(TailraceError):
    """The process was told to end before its drain was done; a successor redoes the rest."""

    exit_code = 75


class ForeignPrefix(TailraceError):
    """The journal under the prefix belongs to another source.

    `is_elsewhere`: only the source's facts differ. It may be the same pipeline on another server.
    """

    def __init__(self, message: str, *, hint: str = "", is_elsewhere: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_elsewhere = is_elsewhere


class StateUnknown(TailraceError):
    """A table's current state cannot be told from its records. The message names the table."""


class FoldTooLarge(StateUnknown):
    """The smallest part of a table's state is larger than the memory that it may take."""


class ReadRefused(TailraceError):
    """A reader would get less than it asks for, or something else. `code` is a stable word."""

    exit_code = 1

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class InvariantBroken(TailraceError):
    """This engine is about to break a rule of its own protocol; nothing of it was written.

    A real error, never an `assert`: rules that protect data hold under `python -O` too.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(
            message,
            hint=hint
            or "This is a bug: report it as CONTRIBUTING.md says. What is durable stays so, and a "
            "new start carries on from there.",
        )


class JournalError(TailraceError):
    """The bucket contradicts its journal, or the source its plans. Nothing was written."""


class NewerFormat(JournalError):
    """A newer release has written to the journal."""


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show of a group of tasks: the first of ours, else the first one."""
    leaves = list(_leaves(group))
    ours = (error for error in leaves if isinstance(error, TailraceError))
    return next(ours, leaves[0])


@contextmanager
def first_of_ours() -> Iterator[None]:
    """Raise the first error of ours in place of the group of tasks that holds it."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise first_cause(group) from group


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
