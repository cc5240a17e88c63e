"""Each version's schema.json: it is there before the version's first object becomes visible.

Strategy: its bytes follow from the journal alone, so whoever creates it first writes the same. What
is known to be there is not asked for again.
"""

from engine.journal.journal import Journal
from engine.journal.retry import Patience
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

    def __init__(self, store: ObjectStore, journal: Journal, patience: Patience) -> None:
        self._store = store
        self._journal = journal
        self._patience = patience
        self._known: set[tuple[TableName, int, str]] = set()

    async def ensure(self, table: TableName, number: int, layout: TableLayout) -> None:
        """Make sure that the journalled version `number` of `table` has its file.

        Waits for as long as the bucket does not answer. Cancellation leaves the request in doubt.
        """
        known = (table, number, layout.style)
        if known in self._known:
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
        self._known.add(known)
