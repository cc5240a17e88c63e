"""A source that does what its test says: the doubles of the pipeline's unit tests begin here."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from engine.model.batch import Intake
from engine.model.history import Landmark
from engine.model.interfaces import (
    NO_MEASURES,
    ChangeStream,
    Look,
    SourceIdentity,
    SourceMeasures,
    Standing,
)
from engine.model.log_point import LogPoint
from engine.model.position import LOG_BEGIN, LogPosition
from engine.model.record import RecordConfiguration
from engine.model.schema import Decide
from engine.model.trial import Judgement, judgements
from log_points import identity, point

if TYPE_CHECKING:
    from engine.model.errors import SourceError


class StillStream:
    """A stream that notes what it is acknowledged; `confirmed` and `end` are how it stands."""

    def __init__(self, *, confirmed: int = 100, end: int = 200) -> None:
        self.confirmed, self.log_end = confirmed, end
        self.acknowledged: list[LogPoint] = []

    async def receive(self) -> Intake:
        raise NotImplementedError

    async def standing(self) -> Standing:
        return Standing(confirmed=point(self.confirmed), end=point(self.log_end))

    async def look(self) -> None:
        """Nothing can be changed behind it."""

    def acknowledge(self, point: LogPoint) -> None:
        self.acknowledged.append(point)

    def ask_keepalive(self) -> None:
        """It has nothing to say."""


class StillSource:
    """Gives `held` to whoever connects; before that it raises `refusals`, one a connection.

    A connection that ends makes way for the next of `then`, while there is one.
    """

    def __init__(self, held: StillStream | None = None) -> None:
        self.held = held or StillStream()
        self.refusals: list[SourceError] = []
        self.then: list[StillStream] = []
        self.known = identity()
        self.fork_at = LOG_BEGIN
        self.starts: list[LogPoint | None] = []
        self.left_count = 0
        self.renewed_count = 0

    async def identify(self) -> SourceIdentity:
        return self.known

    async def prepare(self, *, is_first: bool) -> None:
        """Nothing is needed."""

    def adopt(self, generation: int) -> None:
        self.known = msgspec.structs.replace(self.known, generation=generation)

    async def renew(self) -> None:
        self.renewed_count += 1

    def trials(self, *, is_first: bool) -> AsyncIterator[Judgement]:
        return judgements()

    async def seen(self) -> Standing | None:
        return await self.held.standing()

    async def look(self) -> Look | None:
        """Nothing can be changed behind it."""
        return None

    def describe(self, identity: SourceIdentity) -> str:
        return f"database {identity.database}"

    @property
    def keeper(self) -> str:
        return "its log"

    @property
    def measures(self) -> SourceMeasures:
        return NO_MEASURES

    def distance(self, begin: LogPoint, end: LogPoint) -> int:
        return 0

    async def end(self) -> LogPoint:
        return point(self.held.log_end)

    async def fork(self, branch: str) -> LogPosition:
        return self.fork_at

    def stream(
        self,
        start: LogPoint | None,
        configuration: RecordConfiguration,
        decide: Decide,
        *,
        landmark: Landmark | None = None,
        single_rows: bool = False,
    ) -> AbstractAsyncContextManager[ChangeStream]:
        self.starts.append(start)
        return self._entered()

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[ChangeStream]:
        if self.refusals:
            raise self.refusals.pop(0)
        try:
            yield self.held
        finally:
            self.left_count += 1
            if self.then:
                self.held = self.then.pop(0)
