"""The secret under which columns are written as hashes, and the name that others may know it by.

Strategy: lines hold HMAC-SHA-256 of a value. Without the secret nobody can look a guessed value up.
The journal has to say which secret a line was made under, so it holds the secret's `id`: 32 bits of
an HMAC over a fixed text. They tell one secret from another, and lead to none: a secret has at
least 256 bits of text.

Invariant: the secret shows in no `repr` and in no message.
"""

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from engine.model.errors import ConfigurationError
from engine.model.record import RecordConfiguration

SECRET_BYTES_MIN: Final = 32

_ID_TEXT: Final = b"tailrace: the id of a hash key"
_ID_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class HashKey:
    """A secret. Empty: there is none."""

    secret: bytes = field(default=b"", repr=False)

    @property
    def id(self) -> str:
        """Eight hexadecimal digits, the same for the same secret; empty without one."""
        if not self.secret:
            return ""
        return hmac.new(self.secret, _ID_TEXT, hashlib.sha256).hexdigest()[:_ID_DIGITS]

    def secret_for(self, configuration: RecordConfiguration) -> bytes:
        """The secret that lines of this configuration are made under; empty where none is needed.

        Raises ConfigurationError where that is another one: an earlier engine had it.
        """
        wanted = configuration.hash_key_id
        if not wanted:
            return b""
        if wanted != self.id:
            here = f"this one has the id {self.id}" if self.id else "there is none here"
            raise ConfigurationError(
                f"rows were planned with columns hashed under the key with the id {wanted}, and"
                f" {here}",
                hint="set source.hash_key to the earlier key once more, and run with"
                " --until-caught-up; after that the new one may be set",
            )
        return self.secret


NO_HASH_KEY: Final = HashKey()
