"""The catalog kept up to date beside a stream: keys that the stream does not show, and defaults.

Strategy: looks are taken at an interval, and soon after the stream hints at a change. A look asks
for the primary keys of the tables whose key only the catalog knows, and tells the assembler which
ones changed. Defaults that could not be read because somebody had the table locked are tried again
sooner. A table that stays locked for longer is named in an alarm. A table that is gone is forgotten
at a later look, once the stream has passed the look that missed it.

Invariant: no row waits for a look. A look that fails ends nothing: the next one asks again.
"""

import asyncio
from typing import Final

import structlog

from engine.model.errors import SourceError
from engine.operate.alarms import Alarms, Cause
from engine.sources.postgres.assembler import Assembler
from engine.sources.postgres.catalog import Catalog
from engine.sources.postgres.locks import STOPS_READING, Holder, holders
from engine.sources.postgres.lsn import NO_LSN
from engine.sources.postgres.session import Session

LOOK_SECONDS: Final = 60.0

_RETRY_SHARE: Final = 12
"""Defaults that could not be read are tried again so many times in an interval."""

_HURRY_SECONDS: Final = 1.0
"""Looks that the stream asks for are at least so far apart: VACUUM and ANALYZE make it hint too."""

LOCKED: Final = "table-locked"

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class CatalogKeeper:
    """Looks again for one stream. `hurry` is set where a look is wanted soon."""

    def __init__(
        self,
        session: Session,
        catalog: Catalog,
        assembler: Assembler,
        alarms: Alarms,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self.hurry = asyncio.Event()
        self._session = session
        self._catalog = catalog
        self._assembler = assembler
        self._alarms = alarms
        self._look_seconds = look_seconds
        self._gone: set[int] = set()
        self._gone_lsn = NO_LSN

    async def run(self) -> None:
        """Look again and again until cancelled, which leaves what was known."""
        while True:
            await self._moment()
            try:
                await self._look_at_keys()
                await self._read_defaults()
                await self._forget_gone()
            except SourceError as error:
                _log.debug("catalog not looked at", error=str(error))

    async def _moment(self) -> None:
        seconds = self._look_seconds
        await asyncio.sleep(min(_HURRY_SECONDS, seconds))
        if self._catalog.unread_defaults:
            seconds /= _RETRY_SHARE
        try:
            async with asyncio.timeout(seconds):
                await self.hurry.wait()
        except TimeoutError:
            pass
        self.hurry.clear()

    async def _look_at_keys(self) -> None:
        oids = self._assembler.doubtful_oids
        if oids:
            self._assembler.keys_changed(await self._catalog.look_at_keys(self._session, oids))

    async def _read_defaults(self) -> None:
        if self._catalog.unread_defaults:
            await self._catalog.read_defaults(self._session, self._catalog.unread_defaults)
        locked = await self._locked() if self._catalog.unread_defaults else []
        self._alarms.replace(LOCKED, {str(held.table): _cause(held) for held in locked})

    async def _forget_gone(self) -> None:
        if self._assembler.received_lsn >= self._gone_lsn:
            self._assembler.forget(self._gone)
        self._gone, self._gone_lsn = await self._catalog.gone(
            self._session, self._assembler.known_oids
        )

    async def _locked(self) -> list[Holder]:
        names = await self._catalog.names(self._session, self._catalog.unread_defaults)
        found = await holders(self._session, names, STOPS_READING)
        # The order is reversed so that each table keeps its oldest holder.
        return list({holder.table: holder for holder in reversed(found)}.values())


def _cause(holder: Holder) -> Cause:
    return Cause(
        f"somebody has a table locked: {holder}; its rows are streamed, a version of it that begins"
        " now says nothing of defaults",
        "end the migration; pg_locks and pg_stat_activity show it",
    )
