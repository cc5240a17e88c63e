"""Bodies of small objects, which came with what the objects say of themselves.

Strategy: a chain is proved before a line is handed over, so every object of a stream is asked what
it says of itself. The body of a small one travels in the same answer, and is kept until it is
read. A table's changes are many small objects, and there a second request for each costs more than
the bytes.

Invariant: no more than `BYTES_MAX` are kept or on their way. What finds no room is got when its
turn comes, as everything else is.
"""

from typing import Final

SMALL_BYTES_MAX: Final = 64 * 1024
BYTES_MAX: Final = 32 * 1024 * 1024


class Kept:
    """Bodies by key."""

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}
        self._room_bytes = BYTES_MAX

    def has_room(self, size_bytes: int) -> bool:
        """Whether an object of that size is to be asked for with its body; then it has its room."""
        if size_bytes > SMALL_BYTES_MAX or size_bytes > self._room_bytes:
            return False
        self._room_bytes -= size_bytes
        return True

    def keep(self, key: str, body: bytes) -> None:
        """Keep a body that has its room."""
        self._bodies[key] = body

    def taken(self, key: str) -> bytes | None:
        """The body, once: whoever wants it again gets it from the bucket."""
        body = self._bodies.pop(key, None)
        self._room_bytes += len(body) if body is not None else 0
        return body
