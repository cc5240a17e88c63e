"""What a command pays before the engine runs: imports, and what they do that nobody needs.

Strategy: everything that is left out is left out here, and only while the engine is imported. The
switches are ones that the libraries or the interpreter document. If a library changes, a start
costs more again, and nothing else happens. A test says so.

Invariant: what was switched is as before after the block, whatever happened inside.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# structlog draws tracebacks with rich where that is installed. It always is, because the command
# line needs it. Our logs have no such tracebacks.
_NOT_NEEDED: Final = "rich"

# OpenSSL's name for the file of certificates that it trusts by default.
_CERTIFICATES: Final = "SSL_CERT_FILE"


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import the engine inside: for a process with one thread, before any connection."""
    with _without_certificates(), _without_module(_NOT_NEEDED):
        yield


@contextmanager
def _without_certificates() -> Iterator[None]:
    """Let aiohttp, when it is imported, make a TLS context without certificates: it trusts nobody.

    aiohttp would read the system's 140 certificates, a tenth of all that the engine needs to start.
    Nothing uses that context: the S3 client brings its own. If it were used, it would refuse every
    server.
    """
    before = os.environ.get(_CERTIFICATES)
    os.environ[_CERTIFICATES] = os.devnull
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CERTIFICATES]
        else:
            os.environ[_CERTIFICATES] = before


@contextmanager
def _without_module(name: str) -> Iterator[None]:
    """Let a package look as if it were not installed, unless it was imported already."""
    if name in sys.modules:
        yield
        return
    # The import system's own word for "not to be had".
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
