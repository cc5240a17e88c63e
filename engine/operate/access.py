"""Who may read the port: whoever knows the token, where there is one.

Strategy: a program sends the token as a bearer (RFC 6750). A browser asks its user for a name and a
password (RFC 7617): any name will do, and the token is the password. Both are compared as SHA-256
digests in constant time, so neither the token's length nor its beginning can be found by trying.

A token that came from a file is read again when somebody asks and the last look is a second old. So
it can be rotated without a restart. From then on the old one is refused.

Invariant: no answer and no line of the log tells the token. A file that cannot be read, or that
holds no token, leaves the last good token in force: the port never opens by mistake.
"""

import asyncio
import base64
import binascii
import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Final

import structlog

from engine.config import Secret, Unfit

_LOOK_SECONDS: Final = 1.0

_TO_BROWSERS: Final = 'Basic realm="tailrace: any name, the token as password", charset="UTF-8"'
_TO_PROGRAMS: Final = 'Bearer realm="tailrace"'

_log = structlog.get_logger(__name__)


class Access:
    """Judges requests by their `Authorization`. Without a token everybody may read.

    `read_again` gives the token that holds now, where it came from a file. It is called in a
    thread, and raises Unfit where there is none.
    """

    def __init__(
        self,
        token: Secret | None = None,
        read_again: Callable[[], str] | None = None,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self._digest = _digest(token.reveal()) if token is not None else None
        self._read_again = read_again
        self._look_seconds = look_seconds
        self._looked_at = float("-inf")
        self._is_bad = False

    async def is_granted(self, authorization: str) -> bool:
        """Whether that header's value names the token. Cancellation changes nothing."""
        if self._digest is None:
            return True
        await self._look()
        given = presented(authorization)
        return given is not None and hmac.compare_digest(_digest(given), self._digest)

    async def _look(self) -> None:
        """Take over what the file holds now."""
        now = asyncio.get_running_loop().time()
        if self._read_again is None or now - self._looked_at < self._look_seconds:
            return
        self._looked_at = now
        try:
            self._digest = _digest(await asyncio.to_thread(self._read_again))
        except Unfit as unfit:
            if not self._is_bad:
                _log.warning(
                    "http.token_file has no token, the one before still holds",
                    reason=unfit.text,
                    hint=unfit.hint or "write the new token into the file",
                )
            self._is_bad = True
        else:
            if self._is_bad:
                _log.info("http.token_file has a token again")
            self._is_bad = False


def challenge(accept: str) -> str:
    """What a refused request is to be sent with, as `WWW-Authenticate` says it.

    Whoever wants to see a page has a user to ask, which browsers do for Basic alone. The page's own
    requests want none: their user would be asked every two seconds.
    """
    return _TO_BROWSERS if "text/html" in accept else _TO_PROGRAMS


def presented(authorization: str) -> str | None:
    """The token in an `Authorization` header's value; None where there is none."""
    scheme, _, credentials = authorization.strip().partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip() or None
        case "basic":
            return _password(credentials.strip())
        case _:
            return None


def _password(credentials: str) -> str | None:
    try:
        decoded = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    # A name has no colon, a password may have (RFC 7617, section 2).
    return decoded.partition(":")[2] or None


def _digest(token: str) -> bytes:
    # Bytes of a header that are no UTF-8 come as surrogates.
    return sha256(token.encode("utf-8", "surrogateescape")).digest()
