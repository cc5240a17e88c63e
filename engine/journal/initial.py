"""The initial snapshot, where the stream waits for it.

Strategy: the first `open` says that the stream waits. As long as it does, the engine reads the log
as it does otherwise, so that looks are judged and the source gets its feedback; but it wants no
row, and E stays where the journal began. Once every table's snapshot is visible, an entry says so,
and where each table's stream begins. Then a new life begins at E, which wants rows.

Three kinds of tables are not waited for, once everything else is done: those whose snapshot was
cancelled, those with a gap that somebody else has to end, and those that the source refuses for
good. Somebody has to act there, and the source keeps its log for us meanwhile.

Invariant: while the stream waits, no object of it is planned and nothing becomes durable. A table's
stream begins at the point of a snapshot that everybody can see, or the table has none.
"""

import asyncio

import structlog

from engine.journal.entry import JournalState, StreamStart
from engine.journal.snapshots import SnapshotRegister
from engine.journal.watcher import Watcher

_NAMES_SHOWN = 10

_log = structlog.get_logger(__name__)


def stream_start(state: JournalState) -> StreamStart:
    """The stream starts now: each table's begins at its visible snapshot's point."""
    visible = {name: stated.visible for name, stated in sorted(state.snapshots.items())}
    return StreamStart(
        waits=False,
        begins={name: stated.snapshot.sees for name, stated in visible.items() if stated},
    )


class StreamWait:
    """Whether the stream waits, and until when. `started` is set once the journal says so."""

    def __init__(
        self,
        state: JournalState,
        snapshots: SnapshotRegister,
        watcher: Watcher,
    ) -> None:
        """Begin as the journal is now: it does not change its mind within this life."""
        self.is_waited_for = state.stream_waits
        self.started = asyncio.Event()
        self._state = state
        self._snapshots = snapshots
        self._watcher = watcher

    @property
    def due(self) -> StreamStart | None:
        """What the next entry has to say: that the stream starts; None where it has nothing to say.

        The entry may say of a table that its snapshot is cancelled, and nothing else of snapshots
        that would be waited for.
        """
        if not self.is_waited_for or self.started.is_set():
            return None
        # Before the first look nobody knows which tables there are.
        if not self._watcher.judged_count or self._watcher.is_admitting:
            return None
        return None if self._snapshots.holds_stream_back else stream_start(self._state)

    def journalled(self, start: StreamStart | None) -> None:
        """The journal says that the stream starts. Tells of the tables that it goes on without."""
        if start is None:
            return
        self.started.set()
        _log.info("initial snapshot is complete, the stream starts", tables=len(start.begins))
        without = self._snapshots.unfinished_names - start.begins.keys()
        if without:
            _log.error(
                "the stream starts without the snapshot of some tables",
                table_count=len(without),
                tables=sorted(without)[:_NAMES_SHOWN],
                hint="see their alarms; their snapshots come beside the stream once they can be"
                " taken",
            )
