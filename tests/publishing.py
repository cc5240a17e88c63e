"""A publisher for tests: nobody counts what it does, and its patience has no log."""

from engine.journal.journal import Journal
from engine.journal.lanes import Lanes
from engine.journal.publisher import Publisher
from engine.journal.retry import Patience
from engine.journal.schema_files import SchemaFiles
from memory_store import MemoryStore


class NobodyWatches:
    def publishes_in_flight(self, n: int) -> None:
        pass

    def published(self, *_: object) -> None:
        pass

    def publish_error(self, code: str, *, retryable: bool) -> None:
        pass


def publisher_of(store: MemoryStore, journal: Journal, lanes: Lanes) -> Publisher:
    patience = Patience(lambda _: None)
    return Publisher(
        store=store,
        journal=journal,
        clock=lambda: 0,
        observer=NobodyWatches(),
        lanes=lanes,
        schema_files=SchemaFiles(store, journal, patience),
        patience=patience,
    )
