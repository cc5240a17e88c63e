"""Rights on the bucket that were there and are refused now: for how long they are waited for.

Strategy: a refusal is told apart by what was granted to this process before. A right that has never
been seen is one that nobody gave: the refusal passes, and ends the engine. One that was there may
be away for seconds only, while a policy is being replaced. Then the refusal becomes an answer that
is not usable, and whoever asked asks again, as in an outage of the bucket. An alarm names the
right. After a limit the refusal passes all the same.

The limit is that of one object: a policy may refuse one folder, while requests of the same kind
elsewhere succeed.

Invariant: only a refusal is changed, which S3 certainly did not apply. An answer about a key that
is taken, or missing, passes as it is.
"""

from dataclasses import dataclass
from typing import Final, Literal

from engine.model.errors import DestinationRefused, DestinationUnavailable
from engine.model.interfaces import Clock
from engine.operate.alarms import Alarms

RIGHT_WITHDRAWN: Final = "right-withdrawn"

RIGHT_SECONDS: Final = 300.0
"""Our choice: IAM's manual ("Changes that I make are not always immediately visible") says that it
is eventually consistent, and gives no time."""

_FORGOTTEN_SECONDS: Final = 60.0
"""Who asks again does so every few seconds. What nobody asked for so long is given up."""

_CODES: Final = frozenset({"AccessDenied", "Forbidden", "403"})

Kind = Literal["create", "read", "list", "list uploads", "abort uploads"]
"""Requests that need the same right."""


@dataclass(slots=True)
class _Refused:
    """Since when one object is refused, and when it was last: Unix microseconds."""

    since_us: int
    last_us: int


class RightsWatch:
    """What was granted, and what is refused since. Nothing here waits.

    `is_at_work`: the engine runs. A start is refused at once, as `check` is.
    """

    def __init__(self, clock: Clock, alarms: Alarms, *, seconds: float = RIGHT_SECONDS) -> None:
        self._clock = clock
        self._alarms = alarms
        self._seconds = seconds
        self._granted: set[Kind] = set()
        self._refused: dict[tuple[Kind, str], _Refused] = {}
        self.is_at_work = False

    def granted(self, kind: Kind, key: str) -> None:
        """A request succeeded."""
        self._granted.add(kind)
        if not self._refused:
            return
        self._refused.pop((kind, key), None)
        given_up_us = self._clock() - _FORGOTTEN_SECONDS * 1e6
        for each, refused in [*self._refused.items()]:
            if refused.last_us < given_up_us:
                del self._refused[each]
        if not self._refused:
            self._alarms.clear(RIGHT_WITHDRAWN)

    def judged(
        self, kind: Kind, key: str, error: DestinationRefused
    ) -> DestinationUnavailable | None:
        """What a refusal counts as; None: it stays one."""
        if not self.is_at_work or kind not in self._granted or error.code not in _CODES:
            return None
        now_us = self._clock()
        refused = self._refused.setdefault((kind, key), _Refused(now_us, now_us))
        refused.last_us = now_us
        if now_us - refused.since_us >= self._seconds * 1e6:
            return None
        self._alarms.set(
            RIGHT_WITHDRAWN,
            f"the bucket refuses what it allowed before: {error}",
            hint=f"{error.hint.rstrip('.') or 'Give the right back'}. It is asked again for"
            f" {self._seconds / 60:.0f} minutes. Then the engine ends, unless it can do without.",
        )
        return DestinationUnavailable(str(error), code=error.code, hint=error.hint)
