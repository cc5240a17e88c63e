"""A request's body as it goes out: in slices, and once."""

import asyncio
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp.payload import Payload

from engine.model.errors import InvariantBroken

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

# The size of one write to the transport. It is large enough to cost little, and small enough for
# the loop to turn in between.
_WRITE_BYTES: Final = 256 * 1024
# We yield to the loop after each MiB. The kernel may take several megabytes in one send, on
# loopback.
_TURN_BYTES: Final = 1024 * 1024


class SlicedBody(Payload):
    """A body that goes out in slices, and only once.

    aiohttp would hand a large body to the transport in one piece, which copies it and stops the
    loop meanwhile. If the HTTP layer should send the body again after all, this breaks that
    connection.
    """

    def __init__(self, body: memoryview) -> None:
        super().__init__(body, content_type="application/octet-stream")
        self._view = body
        self._size = len(body)
        self._is_sent = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._view).decode(encoding, errors)

    async def write(self, writer: "AbstractStreamWriter") -> None:
        """Write all of it. Raises ClientConnectionError when it was written before.

        Cancellation leaves a part of it written, and the body of no further use.
        """
        if self._is_sent:
            raise aiohttp.ClientConnectionError("a body is not sent twice")
        self._is_sent = True
        for start in range(0, len(self._view), _WRITE_BYTES):
            await writer.write(self._view[start : start + _WRITE_BYTES])
            if start % _TURN_BYTES == _TURN_BYTES - _WRITE_BYTES:
                await asyncio.sleep(0)

    async def write_with_length(
        self, writer: "AbstractStreamWriter", content_length: int | None
    ) -> None:
        """Write all of it, as `write` does: the length was computed from this very body.

        Cancellation leaves a part of it written, and the body of no further use.
        """
        if content_length not in (None, self._size):
            raise InvariantBroken(f"a body of {self._size} bytes is sent as {content_length}")
        await self.write(writer)
