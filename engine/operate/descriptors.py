"""File descriptors: how many this process may have, and what they are for.

Strategy: the soft limit is raised to the hard one, which needs no right. The engine's own need is
set aside first. The port gets what is left, up to what it can use.

Invariant: `port_share` and what the engine needs are together within the limit.
"""

import resource
from typing import Final

LIMIT_MAX: Final = 65_536
"""A higher limit is of no use, and some libraries walk over all descriptors that a process may
have."""

# These are for the interpreter, the loop, streams, listening sockets, the source's sessions and
# look-ups of names. A streaming engine has 31 open, and one that reconnects a few more.
_ENGINE_BASE: Final = 64

_PORT_MAX: Final = 64
_PORT_MIN: Final = 4


def raise_limit() -> int:
    """Raise the soft limit as far as it goes; the answer is the limit now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = LIMIT_MAX if hard == resource.RLIM_INFINITY else min(hard, LIMIT_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return LIMIT_MAX if soft == resource.RLIM_INFINITY else soft


def engine_need(concurrency: int) -> int:
    """Descriptors that the engine may need itself, with so many requests at a time."""
    return _ENGINE_BASE + concurrency


def port_share(limit: int, concurrency: int) -> int:
    """How many connections the port may hold."""
    return max(_PORT_MIN, min(_PORT_MAX, limit - engine_need(concurrency)))
