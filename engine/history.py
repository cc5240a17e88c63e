"""Whether a source's log is still the one that the journal tells of.

A server whose disk was restored to an earlier state, slot included, may have written so much since
that its log ends past E again: comparing positions sees nothing. What cannot come back is the time
of a commit. So the journal keeps a landmark: the newest commit that it speaks of. A slot that was
restored stands before E, so what lies between can be read again, and the landmark must be in it.

Strategy: `Judge` is fed with what a stream shows from `start` on: commits as they begin, and
boundaries. Where the slot stands at E already, the disk holds everything up to E; then only a
landmark past E is looked for, among what is read anyway. Where it stands before E (restored, or
after a crash, since a server writes its slots to disk now and then), the stream starts at the
landmark instead of E. The landmark must come with its time, and no other commit may come between
it and E, because the journal's reader saw none.

Invariant: until the judge is done nothing may be acknowledged; a slot that stood before E is the
only witness of what lies there.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from engine.errors import PositionLost
from engine.position import Lsn, format_lsn, parse_lsn

HINT: Final = (
    "The server was restored to an earlier state, and went on from there: the bucket holds changes"
    " that the server has forgotten, and lacks others. Start anew: another slot and another prefix."
)


class Landmark(msgspec.Struct, frozen=True, gc=False):
    """A commit by which a log is known again: where it is, and when it was.

    Without a time it is a place before which nothing is known. `through` says what the log was
    read through: another publication may show other commits.
    """

    lsn: str
    time_us: int | None
    through: str

    @property
    def commit_lsn(self) -> Lsn:
        """`lsn` as a number."""
        return parse_lsn(self.lsn)


def newest(*landmarks: Landmark | None) -> Landmark | None:
    """The last in the log of those that are there; a commit before a mere place."""
    known = [landmark for landmark in landmarks if landmark is not None]
    return max(known, key=_place, default=None)


def _place(landmark: Landmark) -> tuple[Lsn, bool]:
    return landmark.commit_lsn, landmark.time_us is not None


class Judge:
    """One stream's log against what the journal knows. Raises PositionLost where they differ."""

    def __init__(self, *, durable_lsn: Lsn, confirmed_lsn: Lsn, landmark: Landmark | None) -> None:
        """`confirmed_lsn` is where the slot stands, `durable_lsn` is E."""
        self.start = durable_lsn
        self.is_done = landmark is None
        if landmark is None:
            return
        self._durable_lsn = durable_lsn
        self._time_us = landmark.time_us
        self._lsn = lsn = landmark.commit_lsn
        is_behind = confirmed_lsn < durable_lsn
        if is_behind:
            self.start = max(confirmed_lsn, min(lsn, durable_lsn))
        # Whether the stream, from its start on, has to show the landmark.
        self._is_awaited = landmark.time_us is not None and lsn >= self.start
        self.is_done = not self._is_awaited and not is_behind

    def began(self, commit_lsn: Lsn, commit_us: int) -> None:
        """The stream shows a transaction that commits there and then. May be told again."""
        if self.is_done:
            return
        if self._is_awaited:
            if commit_lsn == self._lsn and commit_us == self._time_us:
                self._is_awaited = False
            elif commit_lsn >= self._lsn:
                raise self._contradiction(f"a commit at {_moment(commit_lsn, commit_us)}")
        elif commit_lsn < self._durable_lsn and not self._is_landmark(commit_lsn, commit_us):
            raise self._contradiction(
                f"a commit at {_moment(commit_lsn, commit_us)}, of which the journal, durable up to"
                f" {format_lsn(self._durable_lsn)}, knows nothing"
            )
        self._conclude(commit_lsn)

    def reached(self, lsn: Lsn) -> None:
        """The stream has shown everything that commits before `lsn`."""
        if self.is_done:
            return
        if self._is_awaited and lsn > self._lsn:
            raise self._contradiction("none there")
        self._conclude(lsn)

    def _is_landmark(self, commit_lsn: Lsn, commit_us: int) -> bool:
        return (commit_lsn, commit_us) == (self._lsn, self._time_us)

    def _conclude(self, lsn: Lsn) -> None:
        self.is_done = not self._is_awaited and lsn >= self._durable_lsn

    def _contradiction(self, found: str) -> PositionLost:
        known = (
            f"a commit at {_moment(self._lsn, self._time_us)}"
            if self._time_us is not None
            else f"no commit since {format_lsn(self._lsn)}"
        )
        return PositionLost(
            f"the server's history went back: the journal knows {known}, the server's log has"
            f" {found}",
            hint=HINT,
        )


def _moment(lsn: Lsn, time_us: int) -> str:
    try:
        text = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()
    except OverflowError:
        # An origin may set any time.
        text = f"{time_us} us"
    return f"{format_lsn(lsn)} of {text}"
