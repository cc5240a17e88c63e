"""Keys that a fold has met: the compiled table, and its hash, as the tests see them.

See `keys.pxd` for the strategy. The fold calls it in C.
"""

from typing import final

def siphash(secret: bytes, text: bytes) -> bytes:
    """SipHash-2-4 with 16 bytes of output; `secret` has 16 bytes, else ValueError.

    Where its authors' code gives only zeros, this gives another hash: those stand for none.
    """

@final
class KeySet:
    """A set of hashes (`high`, `low`), not both 0; with `is_counting` a multiset."""

    def __init__(self, *, is_counting: bool = False) -> None: ...
    def __len__(self) -> int:
        """How many different hashes there are."""

    @property
    def size(self) -> int:
        """Bytes that its parts take."""

    def add(self, high: int, low: int) -> bool:
        """Add it, once more where it counts; whether it is new."""

    def take(self, high: int, low: int) -> bool:
        """Take it away once; whether it was there. ValueError where it does not count."""

    def drop(self, first: int, last: int) -> None:
        """Forget the hashes whose top 8 bits are from `first` to before `last`."""
