"""The fold of one table's records, newest first, with each version's shape and projection.

Strategy: a version's envelope is not in the journal for ever, but each of its lines shows it. A
state that is larger than `MEMORY_MAX` is folded in several passes over the same objects.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec.structs import replace

from engine.model.errors import DecodeError, ReadRefused, StateUnknown
from engine.model.record import Envelope
from engine.model.schema import TableVersion
from engine.reader.fold.fold import Fold, Pass
from engine.reader.fold.shape import Shape, shapes_of
from engine.reader.table.projection import Projection, projection
from engine.reader.table.steps import Step

MEMORY_MAX: Final = 256 * 1024 * 1024
_DEBEZIUM_END: Final = b'"transaction":null}\n'


class Folding:
    """The passes of one fold. `versions` are those of its rows, in the order in which they hold.

    `is_divided`: a snapshot's later segments are read behind changes of their own rows. Those rows
    come twice, in the stream and in the segment, so they cannot be counted. They need not be: only
    a table with a true key is read in segments, and its key tells them apart.
    """

    def __init__(
        self, newest: TableVersion, versions: tuple[TableVersion, ...], *, is_divided: bool = False
    ) -> None:
        envelopes: Mapping[int, Envelope] = {
            version.number: "flat" if version.flat_prefix else "standard" for version in versions
        }
        self._newest = newest
        self._versions = versions
        self._shapes: dict[int, Shape] = shapes_of(versions, envelopes)
        if is_divided:
            self._shapes = {
                number: replace(shape, is_whole_row=False) for number, shape in self._shapes.items()
            }
        self._projections: dict[int, Projection] = {}
        self._passes: deque[Pass | None] = deque([None])

    def next_pass(self) -> Fold | None:
        """The next pass; None where none is left. Raises ReadRefused."""
        if not self._passes:
            return None
        part = self._passes.popleft()
        try:
            return Fold(self._shapes[self._newest.number], memory_max=MEMORY_MAX, part=part)
        except StateUnknown as error:
            raise _refused(error) from error

    def taken(self, fold: Fold, lines: memoryview, step: Step) -> Iterator[bytes]:
        """The rows that follow from these lines of an object. Raises ReadRefused."""
        if not lines:
            return
        shape = self._shapes[step.version]
        envelope = envelope_of(lines, shape.envelope)
        if envelope != shape.envelope:
            shape = self._shapes[step.version] = replace(shape, envelope=envelope)
        try:
            for rows in fold.take(lines, shape, low=step.low, high=step.high.rstrip("~")):
                yield self._projected(rows.version, rows.lines)
        except StateUnknown as error:
            raise _refused(error) from error
        except DecodeError as error:
            raise ReadRefused("content-differs", f"{step.key}: {error}") from error

    def _projected(self, version: int, lines: bytes) -> bytes:
        if version == self._newest.number:
            return lines
        if version not in self._projections:
            older = next(known for known in self._versions if known.number == version)
            self._projections[version] = projection(older, self._newest, self._versions)
        return self._projections[version].rows(lines)

    def finish(self, fold: Fold) -> None:
        """Nothing older follows. Raises ReadRefused where a row stayed unfinished."""
        try:
            self._passes.extend(fold.finish())
        except StateUnknown as error:
            raise _refused(error) from error


def envelope_of(lines: memoryview, stated: Envelope) -> Envelope:
    """The envelope of some lines. `stated`: flat where the version says so."""
    if stated == "flat":
        return stated
    return "debezium" if bytes(lines[-len(_DEBEZIUM_END) :]) == _DEBEZIUM_END else "standard"


def _refused(error: StateUnknown) -> ReadRefused:
    return ReadRefused("state-unknown", str(error), hint=error.hint)
