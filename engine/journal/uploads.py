"""Uploads that nobody will complete: what dead writers began in parts, thrown away at a start.

Strategy: a writer lists the uploads before its `open` is in the journal, and aborts them behind it.
So it knows none that a successor began. A writer that is frozen in between may abort what it listed
whenever it wakes: whoever began those uploads lost the journal at this writer's `open`, and names
none of them any more.

Invariant: an upload is aborted only where its key has the shape of this very prefix's, it was there
before our `open`, and the journal does not name it.
"""

from collections.abc import Collection

from engine.model.interfaces import ListedUpload, ObjectStore
from engine.model.layout import below, prefix_of


async def uploads_of(store: ObjectStore, prefix: str) -> tuple[ListedUpload, ...]:
    """The prefix's unfinished uploads.

    Other pipelines' prefixes that begin alike, or lie inside this one, have theirs. A missing right
    is no error: nothing is listed. Raises DestinationUnavailable. Cancellation changes nothing.
    """
    return tuple(
        [
            upload
            async for upload in store.list_uploads(below(prefix))
            if prefix_of(upload.key) == prefix
        ]
    )


async def abort_uploads(
    store: ObjectStore, uploads: Collection[ListedUpload], *, spared: Collection[str]
) -> int:
    """Abort `uploads`, but for those whose ids are `spared`, and say how many.

    Raises DestinationUnavailable at the first request without a usable answer. That and
    cancellation leave some of them.
    """
    aborted_count = 0
    for upload in uploads:
        if upload.upload_id not in spared:
            aborted_count += await store.abort_upload(upload.key, upload.upload_id)
    return aborted_count


async def abort_attempt(store: ObjectStore, folder: str, lanes_begin: str) -> int:
    """Abort the uploads of one attempt to take a table's snapshot, and say how many.

    Its keys lie in the table's `folder`, and their names begin with `lanes_begin`. The attempt has
    to be visible, void or given up. A worker that is still at it gets UploadGone. Raises
    DestinationUnavailable at the first request without a usable answer. That and cancellation leave
    some of them.
    """
    aborted_count = 0
    async for upload in store.list_uploads(folder):
        if upload.key.rsplit("/", 1)[-1].startswith(lanes_begin):
            aborted_count += await store.abort_upload(upload.key, upload.upload_id)
    return aborted_count
