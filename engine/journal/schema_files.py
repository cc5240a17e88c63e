"""Each version's schema.json: it is there before the version's first object becomes visible.

Strategy: its bytes follow from the journal alone, so whoever creates it first writes the same. What
is known to be there is not asked for again for a quarter of a day. After that a rule of the bucket
may have taken it away: the next object of the version creates it once more, or finds it there.
"""

import asyncio

from engine.journal.journal import Journal
from engine.journal.retry import Patience
from engine.journal.settings import SCHEMA_SECONDS
from engine.model.interfaces import ObjectStore
from engine.model.layout import TableLayout
from engine.model.schema import TableName
from engine.model.schema_document import schema_document

SCHEMAS_KNOWN_MAX = 16_384
"""How many versions are remembered to have their schema.json. Beyond that all are forgotten, and
each is asked for anew."""

_JSON = "application/json"


class SchemaFiles:
    """The schema.json of every journalled version."""

    def __init__(
        self,
        store: ObjectStore,
        journal: Journal,
        patience: Patience,
        known_seconds_max: float = SCHEMA_SECONDS,
    ) -> None:
        self._store = store
        self._journal = journal
        self._patience = patience
        self._known_seconds_max = known_seconds_max
        # When it was last known to be there, by the event loop's time.
        self._known: dict[tuple[TableName, int, str], float] = {}

    async def ensure(self, table: TableName, number: int, layout: TableLayout) -> None:
        """Make sure that the journalled version `number` of `table` has its file.

        Waits for as long as the bucket does not answer. Cancellation leaves the request in doubt.
        """
        known, now = (table, number, layout.style), asyncio.get_running_loop().time()
        known_at = self._known.get(known)
        if known_at is not None and now - known_at < self._known_seconds_max:
            return
        versions = {version.number: version for version in self._journal.state.versions_of(table)}
        content = schema_document(versions[number], versions.get(number - 1), layout.database)
        key = layout.schema_key(table, number)
        # A key that is taken is fine: the file follows from the journal alone, whoever wrote it.
        await self._patience.answered(
            lambda: self._store.create(
                key, content, content_type=_JSON, metadata={}, in_one_request=True
            )
        )
        if len(self._known) >= SCHEMAS_KNOWN_MAX:
            # Tables come and go. For a table that is still there this costs one request, and
            # nothing changes.
            self._known.clear()
        self._known[known] = now
