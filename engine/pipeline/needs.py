"""What a start needs of source, bucket and prefix: `run` asks for it, `check` tries it.

Strategy: one method a step, in the order in which a start takes them. Nothing is made in the source
before all of them hold, because a source that nobody reads retains its log.

Invariant: no step waits longer than `start_seconds_max` without getting on, and nothing is written
but one object under `_tailrace/check/`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from engine.journal.newcomers import newcomers
from engine.journal.prefix import Prefix
from engine.journal.retry import Failure
from engine.model.errors import (
    DestinationUnavailable,
    JournalError,
    SourceUnavailable,
    TailraceError,
)
from engine.model.interfaces import Look, Reason, SourceIdentity, Standing
from engine.model.layout import below
from engine.model.schema import TableName
from engine.pipeline.wiring import Life


class Needs:
    """The steps of a start of `life`. None of them makes anything in the source."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._world = life.world
        self._prefix = Prefix(life.world.store, life.world.settings.prefix, self._failed)

    async def source(self) -> SourceIdentity:
        """Who answers. Raises SourceUnavailable, SourceRefused. Cancellation changes nothing."""
        async with self._timed(_source_is_silent):
            return await self._world.source.identify()

    async def bucket(self) -> None:
        """One request, made once, that shows whether the prefix may be listed.

        `journal` needs as much, and waits for a bucket that does not answer. Raises
        DestinationUnavailable, DestinationRefused. Cancellation changes nothing.
        """
        async with self._bucket_timed():
            async for _ in self._world.store.list(below(self._world.settings.prefix)):
                break

    async def journal(self) -> None:
        """Read the journal into the life's. Raises JournalError, DestinationUnavailable.

        Cancellation leaves a part of it read: it has to be read anew.
        """
        journal, rules = self._life.journal, self._world.bucket_rules
        async with self._bucket_timed() as gets_on:
            # A long journal takes longer: what is limited is a start that does not get on.
            await journal.load(gets_on)
        if journal.ended_us is not None and rules is not None:
            await rules.refuse_expired(journal.ended_us, self._world.clock())

    async def own_source(self) -> SourceIdentity:
        """Who answers, where the journal is this source's and goes nowhere that it does not know.

        Raises ForeignPrefix, PositionLost, SourceUnavailable, SourceRefused. Cancellation changes
        nothing.
        """
        async with self._timed(_source_is_silent):
            return await self._life.lease.identify()

    async def look(self) -> tuple[Look | None, Mapping[TableName, Reason] | None]:
        """What is published now, and why newcomers of it cannot be let in (None: nobody does).

        Raises SourceUnavailable, SourceRefused. Cancellation changes nothing.
        """
        async with self._timed(_source_is_silent):
            look = await self._world.source.look()
            publishing = self._world.publishing
            if publishing is None or self._world.configuration.snapshot == "never" or look is None:
                return look, None
            return look, await publishing.refused(newcomers(look))

    async def standing(self) -> Standing | None:
        """How the source stands where nobody reads it. Raises SourceUnavailable, SourceRefused.

        Cancellation changes nothing.
        """
        async with self._timed(_source_is_silent):
            return await self._world.source.seen()

    async def prefix(self, database: str | None) -> tuple[str, ...]:
        """Other pipelines' prefixes around this one or inside it, one text each.

        Where the journal is empty they are refused: ForeignPrefix. So are tables' objects of a
        journal that is gone, unless it is not known which `database` is read: JournalError.
        Cancellation changes nothing in the bucket.
        """
        async with self._bucket_timed():
            if self._life.journal.state.seq >= 0:
                return tuple(map(self._prefix.neighbour_text, await self._prefix.neighbours()))
            if database is not None:
                await self._refuse_orphans(database)
            await self._prefix.refuse_neighbours()
            return ()

    async def _refuse_orphans(self, database: str) -> None:
        try:
            await self._prefix.refuse_orphans(database)
        except JournalError:
            # Unless another engine has begun the journal since we read it.
            if not await self._life.journal.follow():
                raise

    async def writes(self) -> None:
        """Prove that objects may be created and are not overwritten. Raises DestinationRefused.

        Cancellation leaves in doubt whether the object is there, which does no harm.
        """
        async with self._bucket_timed():
            await self._prefix.prove_write(self._world.settings.check_name)

    async def reads(self) -> None:
        """Prove that what `writes` made may be read. Raises DestinationRefused.

        Cancellation changes nothing.
        """
        async with self._bucket_timed():
            await self._prefix.prove_read(self._world.settings.check_name)

    def _failed(self, error: Failure) -> None:
        self._world.metrics.publish_error(error.code, retryable=error.retryable)

    @asynccontextmanager
    async def _timed(
        self, silence: Callable[[float], TailraceError]
    ) -> AsyncIterator[Callable[[], None]]:
        """Raise `silence` where the block takes too long; the time begins anew at each call."""
        seconds, clock = self._world.settings.start_seconds_max, asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(seconds) as limit:
                yield lambda: limit.reschedule(clock() + seconds)
        except TimeoutError as error:
            raise silence(seconds) from error

    @asynccontextmanager
    async def _bucket_timed(self) -> AsyncIterator[Callable[[], None]]:
        """The same of the bucket: where requests failed meanwhile, the last of them says why."""
        before = self._latest_failures()

        def silence(seconds: float) -> TailraceError:
            found = [error for error in self._latest_failures() if error not in before]
            return _bucket_is_silent(seconds, found[0] if found else None)

        async with self._timed(silence) as gets_on:
            yield gets_on

    def _latest_failures(self) -> tuple[Failure | None, ...]:
        return self._prefix.latest_failure, self._life.journal.latest_failure


def _source_is_silent(seconds: float) -> TailraceError:
    return SourceUnavailable(
        f"the source gave no answer within {seconds:g} s",
        hint="Check the network between this engine and the database, and source.dsn.",
    )


def _bucket_is_silent(seconds: float, failure: Failure | None) -> TailraceError:
    text = f"the bucket gave no usable answer within {seconds:g} s"
    network = (
        "Check the network between this engine and the bucket, destination.region and"
        " destination.endpoint_url."
    )
    if failure is None:
        return DestinationUnavailable(text, hint=network)
    return DestinationUnavailable(
        f"{text}: {failure}", code=failure.code, hint=failure.hint or network
    )
