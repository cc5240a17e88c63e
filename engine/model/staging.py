"""Staging: an object's bytes lie in the bucket as parts of an upload before the object exists.

A CRC32 is written here as the journal writes it: eight hexadecimal digits.
"""

from enum import Enum, auto

import msgspec


class StagedPart(msgspec.Struct, frozen=True):
    """One part of an upload, as the store took it: what a completion has to name.

    `number` counts from 1 and orders the parts in the object. `etag` is the store's own word for
    the part, quotes included. `crc32` is that of the part's bytes.
    """

    number: int
    etag: str
    crc32: str
    size_bytes: int


class Completion(Enum):
    """What a store says to the completion of an upload."""

    CREATED = auto()
    """The object is there, made of this upload."""
    TAKEN = auto()
    """The key holds an object. It may be this upload's own, from an attempt before this one."""
    GONE = auto()
    """There is no such upload. Whether there is an object it does not say: look."""
