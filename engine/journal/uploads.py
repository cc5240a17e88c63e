"""Uploads that nobody will complete: what dead writers began in parts, thrown away at a start.

Invariant: an upload is aborted only where its key has the shape of this very prefix's, it is older
than the caller says, and the journal does not name it.
"""

from collections.abc import Collection

from engine.model.interfaces import ObjectStore
from engine.model.layout import below, prefix_of


async def abort_uploads(
    store: ObjectStore, prefix: str, *, before_us: int, spared: Collection[str]
) -> int:
    """Abort the prefix's uploads that began before that time, and say how many.

    `spared` are the ids of uploads that stay: those that the journal names. Other pipelines'
    prefixes that begin alike, or lie inside this one, keep theirs. A missing right is no error.
    Raises DestinationUnavailable at the first request without a usable answer. That and
    cancellation leave some of them.
    """
    aborted_count = 0
    async for upload in store.list_uploads(below(prefix)):
        is_ours = prefix_of(upload.key) == prefix
        is_left = upload.begun_us < before_us and upload.upload_id not in spared
        if is_ours and is_left:
            aborted_count += await store.abort_upload(upload.key, upload.upload_id)
    return aborted_count


async def abort_attempt(
    store: ObjectStore, folder: str, lanes_begin: str, *, spared: Collection[str]
) -> int:
    """Abort the uploads of one attempt to take a table's snapshot, and say how many.

    Its keys lie in the table's `folder`, and their names begin with `lanes_begin`. `spared` are the
    ids of uploads that the journal names. A worker that is still at it gets UploadGone. Raises
    DestinationUnavailable at the first request without a usable answer. That and cancellation leave
    some of them.
    """
    aborted_count = 0
    async for upload in store.list_uploads(folder):
        is_of_attempt = upload.key.rsplit("/", 1)[-1].startswith(lanes_begin)
        if is_of_attempt and upload.upload_id not in spared:
            aborted_count += await store.abort_upload(upload.key, upload.upload_id)
    return aborted_count
