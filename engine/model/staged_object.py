"""A snapshot's objects, staged: every byte is in the bucket as parts of an upload, none is visible.

What an object says of itself is fixed when its upload begins, before its rows are read: where it
begins, and a nonce that no other upload has. Everything else is in the journal's entry, which names
the upload. So an object is one that an entry names exactly if it carries that object's nonce.
"""

from collections.abc import Mapping

import msgspec

from engine.model.position import Position
from engine.model.staging import StagedPart


class StagedObject(msgspec.Struct, frozen=True):
    """One object of a snapshot's lane, as the worker that staged it tells of it.

    `range_number` is the lane's, `previous` where the lane's object before it ended (empty: it is
    the first). `raw_bytes` and `raw_crc32` are those of the lines; `size_bytes` and `crc32` those
    of the body. `upload_id` and `parts` are what a completion has to name.
    """

    range_number: int
    key: str
    previous: Position
    first: Position
    last: Position
    rows: int
    ops: dict[str, int]
    codec: int
    raw_bytes: int
    raw_crc32: str
    size_bytes: int
    crc32: str
    nonce: str
    upload_id: str
    parts: tuple[StagedPart, ...]


def staged_metadata(
    *, first: Position, version: int, codec: int, attempt: int, nonce: str
) -> dict[str, str]:
    """What a staged object says of itself, by metadata name."""
    return {
        "first-position": first,
        "version": str(version),
        "codec": str(codec),
        "attempt": str(attempt),
        "nonce": nonce,
    }


def is_staged_as(
    metadata: Mapping[str, str], staged: StagedObject, *, version: int, attempt: int
) -> bool:
    """Whether the object with this metadata was made of the upload that `staged` names."""
    stated = staged_metadata(
        first=staged.first,
        version=version,
        codec=staged.codec,
        attempt=attempt,
        nonce=staged.nonce,
    )
    return all(metadata.get(name) == value for name, value in stated.items())
