"""What the journal says of an object beside its statement: the configuration and version behind it.

Pure: the fold and a statement in, an object to be judged out.
"""

from dataclasses import replace

from engine.journal.entry import JournalState, Planned
from engine.journal.publisher import stated_metadata
from engine.model.layout import TableLayout
from engine.model.record import FLAT_PREFIX, RecordConfiguration
from engine.model.schema import TableName
from engine.model.staged_object import StagedObject, staged_metadata
from engine.reader.verify.object_audit import NamedObject


class Naming:
    """Makes objects of one entry: `epoch` is the one that names them."""

    def __init__(self, prefix: str, state: JournalState, epoch: int) -> None:
        self.configuration: RecordConfiguration | None = state.configurations.get(epoch)
        self._state = state
        self._database = state.source.database if state.source is not None else ""
        self.layout = layout_of(prefix, state, self.configuration)

    def planned(self, statements: tuple[Planned, ...], seq: int) -> NamedObject:
        """The object of a stream that entry `seq` planned first."""
        first = statements[0]
        metadata = tuple(stated_metadata(statement) for statement in statements)
        return self._named(statements, metadata, (first.table_name, first.version), seq)

    def staged(
        self, staged: StagedObject, table: TableName, version: int, attempt: int, seq: int
    ) -> NamedObject:
        """The object of a snapshot that entry `seq` named."""
        metadata = staged_metadata(
            first=staged.first,
            version=version,
            codec=staged.codec,
            attempt=attempt,
            nonce=staged.nonce,
        )
        named = self._named((staged,), (metadata,), (table, version), seq)
        return replace(named, size_bytes=staged.size_bytes)

    def _named(
        self,
        statements: tuple[Planned | StagedObject, ...],
        metadata: tuple[dict[str, str], ...],
        of: tuple[TableName, int],
        seq: int,
    ) -> NamedObject:
        (table, version), configuration, layout = of, self.configuration, self.layout
        return NamedObject(
            statements=statements,
            metadata=metadata,
            table=table,
            version=version,
            seq=seq,
            database=self._database,
            envelope=configuration.envelope if configuration is not None else None,
            schema_key=layout.schema_key(table, version) if layout is not None else None,
            flat_prefix=self._flat_prefix(table, version),
        )

    def _flat_prefix(self, table: TableName, number: int) -> str:
        versions = self._state.versions_of(table)
        prefixes = [known.flat_prefix for known in versions if known.number == number]
        return prefixes[0] if prefixes and prefixes[0] else FLAT_PREFIX


def layout_of(
    prefix: str, state: JournalState, configuration: RecordConfiguration | None
) -> TableLayout | None:
    """Where that configuration puts objects; None where the journal lost what says so."""
    if configuration is None or state.source is None:
        return None
    return TableLayout(prefix, state.source.database, configuration.layout)
