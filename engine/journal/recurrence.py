"""The same failure at the same place: what tells trouble that passes from trouble that stays.

Strategy: a source that answers with an error of its own is asked again at the last durable
position. If it gives the same error before anything new was read, a third attempt is unlikely to
help: the failure *stands*. It is still tried again, with pauses that double, because somebody may
mend the source. Reading past the place ends it. So does a source that has nothing left to give.

Invariant: a lost connection never stands, however often it comes: the source said nothing about its
reasons.
"""

from engine.model.errors import SourceFailed, SourceUnavailable
from engine.model.position import LOG_BEGIN, LogPosition

PAUSE_SECONDS_FIRST = 1.0
PAUSE_SECONDS_MAX = 60.0


class Recurrence:
    """Counts failures by their code and by the position up to which everything was read."""

    def __init__(self) -> None:
        self._code = ""
        self._position = LOG_BEGIN
        self._count = 0

    @property
    def is_standing(self) -> bool:
        """Whether the newest failure came at least twice at one position."""
        return self._count > 1

    @property
    def pause_seconds(self) -> float:
        """How long to leave the source alone before the next attempt; 0 where nothing stands."""
        if not self.is_standing:
            return 0.0
        # The exponent is bounded: a float ends at 2 ** 1024.
        return min(PAUSE_SECONDS_FIRST * 2.0 ** min(self._count - 2, 10), PAUSE_SECONDS_MAX)

    def failed(self, error: SourceUnavailable, position: LogPosition) -> None:
        """The source failed after everything before `position` was read."""
        if not isinstance(error, SourceFailed):
            return
        is_same = (error.code, position) == (self._code, self._position)
        # A failure that stands goes on standing until something new was read, whatever else fails
        # meanwhile.
        if is_same or self.is_standing:
            self._count += 1
        else:
            self._code, self._position, self._count = error.code, position, 1

    def reached(self, position: LogPosition) -> None:
        """Everything before `position` was read now."""
        if position > self._position:
            self._count = 0

    def forget(self) -> None:
        """The source has given everything that it has."""
        self._count = 0
