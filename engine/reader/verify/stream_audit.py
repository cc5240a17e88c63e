"""The stream's start against the journal: nothing of it comes before the snapshot. Pure."""

from collections.abc import Iterator

from engine.journal.entry import Entry, JournalState


def early_stream(entry: Entry, state: JournalState) -> Iterator[str]:
    """What is wrong with an entry where the stream waits, or waited, for the initial snapshot.

    `state` is the journal before the entry.
    """
    if state.stream_waits:
        for planned in entry.planned:
            yield f"an object of {planned.table} is planned, and the stream waits for the snapshot"
        durable, known = entry.durable, state.durable_position
        if durable is not None and durable.position != known and not entry.accepted:
            yield f"durable goes from {known} to {durable.position} while the stream waits"
    else:
        for planned in entry.planned:
            begin = state.begins.get(planned.table, "")
            if planned.first < begin:
                yield f"an object of {planned.table} begins before its snapshot's point {begin}"
    if entry.stream is None:
        return
    is_in_place = state.seq < 0 if entry.stream.waits else state.stream_waits
    if not is_in_place:
        yield "the stream begins to wait where the journal goes on, or starts and did not wait"
    for table, begin in entry.stream.begins.items():
        visible = state.visible_snapshot(table)
        if visible is None or visible.snapshot.sees != begin:
            yield f"the stream of {table} begins at {begin}, where no snapshot of it is visible"
