"""Whether a source's log is still the one that the journal tells of.

A server whose disk was restored to an earlier state, with what was confirmed to it, may have
written so much since that its log ends past E again: comparing positions sees nothing. What cannot
come back is the time of a commit. So the journal keeps a landmark: the newest commit that it speaks
of. Where the server went back, what was confirmed to it lies before E. So what lies between can be
read again, and the landmark must be in it.

Strategy: `Judge` is fed with what a stream shows from `start` on: commits as they begin, and
boundaries. Where E was confirmed already, the disk holds everything up to E; then only a landmark
past E is looked for, among what is read anyway. Where less was confirmed (after a restore, or after
a crash, since a server writes that to disk now and then), the stream starts at the landmark instead
of E. The landmark must come with its time, and no other commit may come between it and E, because
the journal's reader saw none.

Invariant: until the judge is done nothing may be acknowledged; what was confirmed before E is the
only witness of what lies there.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from engine.model.errors import PositionLost
from engine.model.log_point import LogPoint, place_text
from engine.model.position import LOG_BEGIN, LogPosition

HINT: Final = (
    "The server was restored to an earlier state, and went on from there: the bucket holds changes"
    " that the server has forgotten, and lacks others. Start anew under another prefix."
)


class Landmark(msgspec.Struct, frozen=True, gc=False):
    """A commit by which a log is known again: where it is, and when it was.

    Without a time it is a place before which nothing is known. `resume` is the source's text by
    which this commit can be read again, empty where it is not known. `through` says what the log
    was read through: through something else, other commits may show.
    """

    position: LogPosition
    time_us: int | None
    through: str
    resume: str = ""


def newest(*landmarks: Landmark | None) -> Landmark | None:
    """The last in the log of those that are there; a commit before a mere place."""
    known = [landmark for landmark in landmarks if landmark is not None]
    return max(known, key=_place, default=None)


def _place(landmark: Landmark) -> tuple[LogPosition, bool, bool]:
    return landmark.position, landmark.time_us is not None, bool(landmark.resume)


class Judge:
    """One stream's log against what the journal knows. Raises PositionLost where they differ."""

    def __init__(
        self, *, durable: LogPoint | None, confirmed: LogPoint | None, landmark: Landmark | None
    ) -> None:
        """`confirmed` is what the source believes to be acknowledged, `durable` is E."""
        self.start = durable
        """Where the stream has to begin; None: at what was confirmed."""
        self.is_done = landmark is None
        if landmark is None:
            return
        self._durable = durable.position if durable is not None else LOG_BEGIN
        self._resumes = {landmark.position: landmark.resume}
        if durable is not None:
            self._resumes[durable.position] = durable.resume
        self._time_us = landmark.time_us
        self._position = position = landmark.position
        is_behind = (confirmed.position if confirmed is not None else LOG_BEGIN) < self._durable
        if is_behind:
            self.start = self._start_behind(confirmed, landmark)
        # Whether the stream, from its start on, has to show the landmark.
        begin = self.start.position if self.start is not None else LOG_BEGIN
        self._is_awaited = landmark.time_us is not None and position >= begin
        self.is_done = not self._is_awaited and not is_behind

    def _start_behind(self, confirmed: LogPoint | None, landmark: Landmark) -> LogPoint | None:
        """Where to read from so that the landmark comes again, if it lies before E."""
        if landmark.position >= self._durable:
            return self.start
        begin = confirmed.position if confirmed is not None else LOG_BEGIN
        if landmark.position <= begin or not landmark.resume:
            return confirmed
        return LogPoint(landmark.position, landmark.resume, landmark.time_us or 0)

    def began(self, commit: LogPosition, commit_us: int) -> None:
        """The stream shows a transaction that commits there and then. May be told again."""
        if self.is_done:
            return
        if self._is_awaited:
            if commit == self._position and commit_us == self._time_us:
                self._is_awaited = False
            elif commit >= self._position:
                raise self._contradiction(f"a commit at {self._moment(commit, commit_us)}")
        elif commit < self._durable and not self._is_landmark(commit, commit_us):
            raise self._contradiction(
                f"a commit at {self._moment(commit, commit_us)}, of which the journal, durable"
                f" up to {self._place_text(self._durable)}, knows nothing"
            )
        self._conclude(commit)

    def reached(self, position: LogPosition) -> None:
        """The stream has shown everything that commits before `position`."""
        if self.is_done:
            return
        if self._is_awaited and position > self._position:
            raise self._contradiction("none there")
        self._conclude(position)

    def _is_landmark(self, commit: LogPosition, commit_us: int) -> bool:
        return (commit, commit_us) == (self._position, self._time_us)

    def _conclude(self, position: LogPosition) -> None:
        self.is_done = not self._is_awaited and position >= self._durable

    def _contradiction(self, found: str) -> PositionLost:
        known = (
            f"a commit at {self._moment(self._position, self._time_us)}"
            if self._time_us is not None
            else f"no commit since {self._place_text(self._position)}"
        )
        return PositionLost(
            f"the server's history went back: the journal knows {known}, the server's log has"
            f" {found}",
            hint=HINT,
        )

    def _moment(self, position: LogPosition, time_us: int) -> str:
        try:
            text = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()
        except OverflowError:
            # An origin may set any time.
            text = f"{time_us} us"
        return f"{self._place_text(position)} of {text}"

    def _place_text(self, position: LogPosition) -> str:
        return place_text(position, self._resumes.get(position, ""))
