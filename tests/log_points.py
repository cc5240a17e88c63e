"""Log points by their LSNs, in generation 1, and what is made of them: for tests of the core."""

from collections.abc import Sequence

from engine.journal.entry import Durable
from engine.model.batch import Boundary
from engine.model.history import Landmark
from engine.model.interfaces import SourceIdentity
from engine.model.log_point import LogPoint
from engine.model.position import LOG_BEGIN, LogPosition, log_position
from engine.sources.postgres.lsn import Lsn, log_point

GENERATION = 1
BEGIN_TIME = "1970-01-02T00:00:00.000000Z"


def place(lsn: int) -> LogPosition:
    """The position before the commit at `lsn`."""
    return log_position(GENERATION, lsn)


def point(lsn: int, commit_us: int = 0) -> LogPoint:
    """The log point at `lsn`, as PostgreSQL's source makes it."""
    return log_point(GENERATION, Lsn(lsn), commit_us)


def boundary(
    lsn: int, commit_us: int = 0, *, is_keepalive: bool = False, landmark: Landmark | None = None
) -> Boundary:
    """A boundary at `lsn`."""
    return Boundary(point(lsn, commit_us), is_keepalive, landmark)


def durable(
    lsn: int,
    commit_time: str = BEGIN_TIME,
    *,
    seq: int,
    unfinished: Sequence[str] = (),
    watched: LogPosition = LOG_BEGIN,
    landmark: Landmark | None = None,
) -> Durable:
    """Everything that commits before `lsn` is durable."""
    at = point(lsn)
    return Durable(at.position, at.resume, commit_time, seq, tuple(unfinished), watched, landmark)


def identity(
    source_type: str = "fake",
    system_identifier: str = "7",
    *,
    database: str = "shop",
    lease: str = "tailrace",
    branch: str = "1",
    through: str = "tailrace",
    generation: int = GENERATION,
) -> SourceIdentity:
    """A source: a server by its system identifier, read through a slot and a publication."""
    facts = {"system_identifier": system_identifier}
    return SourceIdentity(source_type, database, lease, facts, branch, through, generation)
