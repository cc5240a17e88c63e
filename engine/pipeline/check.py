"""The check: everything that a start needs, tried step by step.

Strategy: the judges are those of a start: `needs` asks source, bucket and prefix, the source itself
tries what it would be asked to prepare, and the port is taken as the server takes it. A step that
fails is told, and the next one is tried as long as it can say something.

Invariant: nothing is changed but objects under `_tailrace/check/`, always the same ones; and those
only where the prefix was not found to be another pipeline's, or inside of one's.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from engine.config import Address
from engine.config.scalars import MIB
from engine.journal.acceptance import explain
from engine.journal.findings import findings
from engine.journal.prefix import NEIGHBOUR_HINT
from engine.model.check_code import (
    AWS_IDENTITY,
    BUCKET,
    BUCKET_RULES,
    CODES,
    JOURNAL,
    PORT,
    POSITION,
    PREFIX,
    READS,
    ROWS,
    SOURCE,
    WATCH,
    WRITES,
    CheckCode,
)
from engine.model.errors import DestinationRefused, ForeignPrefix, JournalError, TailraceError
from engine.model.plural import counted
from engine.model.trial import CheckStep, Finding, Judgement, Trial, judgement
from engine.operate.http_server import try_listening
from engine.operate.status import Phase
from engine.pipeline.needs import Needs
from engine.pipeline.wiring import World, begin

if TYPE_CHECKING:
    from engine.model.interfaces import SourceIdentity

_BY_NAME: Final = {code.name: code for code in CODES}
"""What stands against a table is found under the name of a running engine's alarm."""

_FINDINGS_MAX: Final = 100

_TABLES_SHOWN_MAX: Final = 20


async def check(world: World, listen: Address | None) -> AsyncIterator[CheckStep]:
    """Try what a start of `world` needs whose port is `listen`, one step at a time.

    Cancellation leaves at most the keys of `_tailrace/check/`, which the next check takes for its
    own.
    """
    tried = _Check(world, listen)
    yield await tried.step(PORT, tried.port)
    yield await tried.step(SOURCE, tried.source)
    async for step in _bucket(tried, world):
        yield step
    if not tried.is_journal_read or not tried.is_source_known:
        return
    yield await tried.step(ROWS, tried.rows)
    async for judged in world.source.trials(is_first=tried.is_first):
        yield tried.explained(judged)
    if not tried.is_first:
        yield await tried.step(POSITION, tried.position)
        for step in await tried.losses():
            yield step


async def _bucket(tried: "_Check", world: World) -> AsyncIterator[CheckStep]:
    """Who asks, whose the prefix is, and then each right. Cancellation as in `check`."""
    if world.store_identity is not None:
        yield await tried.step(AWS_IDENTITY, world.store_identity)
    bucket = await tried.step(BUCKET, tried.bucket)
    yield bucket
    if not (bucket.is_ok or tried.is_listing_denied):
        return
    if bucket.is_ok:
        journal = await tried.step(JOURNAL, tried.journal)
        yield journal
        tried.is_journal_read = journal.is_ok
    if tried.is_journal_read:
        yield await tried.step(PREFIX, tried.prefix)
    if not tried.is_prefix_refused:
        async for step in _rights(tried, world):
            yield step


async def _rights(tried: "_Check", world: World) -> AsyncIterator[CheckStep]:
    """Each right on the bucket beside that to list it. Cancellation as in `check`."""
    writes = await tried.step(WRITES, tried.writes)
    yield writes
    reads = await tried.step(READS, tried.reads)
    # Where nothing may be written, there may be nothing to read, which says nothing.
    if writes.is_ok or tried.is_reading_denied:
        yield reads
    if world.store_trials is not None:
        async for judged in world.store_trials():
            yield CheckStep.of(judged)
    if world.bucket_rules is not None:
        yield await tried.step(BUCKET_RULES, world.bucket_rules.finding)


class _Check:
    """One check's steps, and what they learned."""

    def __init__(self, world: World, listen: Address | None) -> None:
        self._world = world
        self._listen = listen
        life = begin(world, _nobody_is_told)
        self._journal, self._lease, self._needs = life.journal, life.lease, Needs(life)
        self._identity: SourceIdentity | None = None
        self.is_listing_denied = self.is_reading_denied = self.is_prefix_refused = False
        self.is_journal_read = False

    @property
    def is_source_known(self) -> bool:
        return self._identity is not None

    @property
    def is_first(self) -> bool:
        """Whether no journal is there yet."""
        return self._journal.state.seq < 0

    async def step(self, code: CheckCode, trial: Trial) -> CheckStep:
        return self.explained(await judgement(code, trial))

    def explained(self, judged: Judgement) -> CheckStep:
        """The step, a loss with the flag that accepts it.

        A prefix that is not this pipeline's, or whose journal is not whole, is remembered.
        """
        if isinstance(judged.found, TailraceError):
            explain(judged.found, self._journal.state)
        if isinstance(judged.found, ForeignPrefix | JournalError):
            self.is_prefix_refused = True
        return CheckStep.of(judged)

    async def port(self) -> Finding:
        if self._listen is None:
            return Finding('none: http.listen = "off"')
        await try_listening(self._listen)
        return Finding(f"http.listen = {self._listen} is free")

    async def source(self) -> Finding:
        self._identity = await self._needs.source()
        return Finding(self._world.source.describe(self._identity))

    async def bucket(self) -> Finding:
        try:
            await self._needs.bucket()
        except DestinationRefused as error:
            # The bucket answers: all that is not granted is told at once.
            self.is_listing_denied = error.code == "AccessDenied"
            raise
        return Finding(f"answers, prefix {self._world.settings.prefix or '(none)'} can be listed")

    async def writes(self) -> Finding:
        await self._needs.writes()
        return Finding("If-None-Match is honoured, objects may be created")

    async def reads(self) -> Finding:
        try:
            await self._needs.reads()
        except DestinationRefused as error:
            self.is_reading_denied = error.code == "AccessDenied"
            raise
        return Finding("objects may be read")

    async def journal(self) -> Finding:
        """Without an identity the source did not answer, and was told of already."""
        await self._needs.journal()
        if self._identity is not None:
            self._identity = await self._needs.own_source()
        return Finding(self._journal_text())

    async def prefix(self) -> Finding:
        database = self._identity.database if self._identity is not None else None
        neighbours = await self._needs.prefix(database)
        return Finding(
            "; ".join(neighbours) or "no other pipeline's prefix is inside this one or around it",
            NEIGHBOUR_HINT if neighbours else "",
        )

    async def position(self) -> Finding:
        """As every connection is compared with the journal, but without the lease."""
        standing = await self._needs.standing()
        if standing is None:
            return Finding("not compared: nothing keeps the log, or another engine reads it now")
        lost = self._lease.contradiction(standing)
        # Unless an engine ran between the two looks.
        if lost is not None and await self._journal.follow():
            lost = self._lease.contradiction(standing)
        if lost is not None:
            raise lost
        return Finding(f"the source keeps everything from {standing.confirmed.resume} on")

    async def losses(self) -> list[CheckStep]:
        """What stands against the pipeline's tables: one step each, as alarms say it."""
        look, steps = None, []
        try:
            look, refused = await self._needs.look()
        except TailraceError as error:
            # A start goes on, and its engine looks again.
            text = f"what is published was not looked at: {error}"
            steps.append(_warned(WATCH, text, error.hint))
            refused = None
        found = findings(self._journal.state, self._world.configuration, look, refused)
        steps += [
            _warned(_BY_NAME[f.code], f"{_listed(f.tables)}: {f.cause.text}", f.cause.hint)
            for f in found
        ]
        if len(steps) > _FINDINGS_MAX:
            more = len(steps) - _FINDINGS_MAX
            hint = "`tailrace verify --json` lists all gaps"
            steps[_FINDINGS_MAX:] = [_warned(WATCH, f"and {counted(more, 'finding')} more", hint)]
        return steps or [CheckStep(WATCH, "ok", "nothing stands against a table")]

    def _journal_text(self) -> str:
        if self.is_first:
            return "empty: the first run begins it"
        state = self._journal.state
        at = (
            f"durable at {state.durable.resume}" if state.durable is not None else "nothing durable"
        )
        compared = "" if self.is_source_known else "; not compared with the source"
        return f"{counted(state.seq + 1, 'entry', 'entries')}, epoch {state.epoch}, {at}{compared}"

    async def rows(self) -> Finding:
        configuration = self._world.configuration
        is_left_out = configuration.on_unrepresentable == "gap"
        return Finding(
            f"up to {configuration.row_bytes_max / MIB:,.0f} MiB each (source.max_row_bytes), "
            "three times that in memory; others "
            f"{'are left out, as gaps' if is_left_out else 'stop the engine'}"
        )


def _warned(code: CheckCode, detail: str, hint: str) -> CheckStep:
    return CheckStep(code, "warning", detail, hint or "`tailrace run` says more.")


def _listed(tables: tuple[str, ...]) -> str:
    more = len(tables) - _TABLES_SHOWN_MAX
    listed = ", ".join(tables[:_TABLES_SHOWN_MAX])
    return f"{listed} and {more} more" if more > 0 else listed


def _nobody_is_told(_: Phase) -> None:
    """A check has no phases."""
