"""The bucket's own rules, read now and then: what they take away is told, what they limit is known.

Strategy: the rules are read at a start, every hour, and when a snapshot begins. The right to read
them is optional: whoever may not read them knows none. What they mean is judged in
`model.bucket_rule`.

Invariant: rules that cannot be read stop nothing. The last ones that were read go on to count.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Never

import structlog

from engine.model.bucket_rule import (
    RULE_HINT,
    UPLOAD_DAYS_PLENTY,
    UPLOAD_HINT,
    BucketRule,
    age_days,
    attempt_seconds,
    shortest,
    soonest,
    taken_away,
    upload_text,
)
from engine.model.errors import DestinationError, JournalError, UploadsOutlived
from engine.model.layout import below, journal_folder
from engine.model.plural import counted
from engine.model.trial import Finding

ReadRules = Callable[[], Awaitable[tuple[BucketRule, ...]]]
"""Reads the rules that may concern what this engine makes. Raises DestinationError."""

_LOOK_SECONDS: Final = 3600.0
_ANSWER_SECONDS: Final = 10.0
_FRESH_SECONDS: Final = 60.0
"""Rules that were read so long ago are read again before an attempt is given up for them."""

_log = structlog.get_logger(__name__)


class BucketRules:
    """The rules of the bucket that hold under `prefix`. `is_staging`: snapshots are taken."""

    def __init__(self, read: ReadRules, prefix: str, *, is_staging: bool = True) -> None:
        self._read = read
        self._prefix = prefix
        self._is_staging = is_staging
        self._rules: tuple[BucketRule, ...] = ()
        self._failure: str | None = None
        self._looked: float | None = None
        self._looking = asyncio.Lock()

    async def run(self) -> Never:
        """Look every hour, until cancelled. Cancellation changes nothing."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self, *, age_seconds_max: float = 0.0) -> None:
        """Read the rules, unless that was done a moment ago; 10 s at most. Never fails.

        Cancellation leaves the rules that were known.
        """
        async with self._looking:
            if self._looked is not None and _now() - self._looked < age_seconds_max:
                return
            failure = ""
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    rules = await self._read()
            except (DestinationError, TimeoutError) as error:
                failure, rules = _reason(error), self._rules
            self._looked = _now()
            if failure and failure != self._failure:
                _log.info("the bucket's rules are not known", error=failure)
            if rules != self._rules:
                self._rules = rules
                self._tell()
            self._failure = failure

    def _tell(self) -> None:
        for text in taken_away(self._rules, self._prefix):
            _log.warning("a rule of the bucket takes objects away", text=text, hint=RULE_HINT)
        rule = self._hasty
        if rule is not None:
            _log.warning(
                "a rule of the bucket throws uploads away soon",
                text=upload_text(rule),
                hint=UPLOAD_HINT,
            )

    @property
    def _hasty(self) -> BucketRule | None:
        """The rule that leaves snapshots little time."""
        rule = shortest(self._rules, below(self._prefix)) if self._is_staging else None
        return rule if rule is not None and rule.upload_days < UPLOAD_DAYS_PLENTY else None

    async def finding(self) -> Finding:
        """What a check says. Cancellation as in `look`."""
        await self.look()
        if self._failure:
            return Finding(f"not known, which is no fault: {self._failure}")
        texts = list(taken_away(self._rules, self._prefix))
        hints = [RULE_HINT] if texts else []
        rule = shortest(self._rules, below(self._prefix))
        if rule is not None:
            texts.append(upload_text(rule))
        if self._hasty is not None:
            hints.append(UPLOAD_HINT)
        return Finding("; ".join(texts) or "none that concerns the prefix", " ".join(hints))

    def seconds(self, folder: str) -> float | None:
        """How long an attempt may stage objects in a table's `folder`; None: for ever."""
        rule = shortest(self._rules, folder)
        return attempt_seconds(rule) if rule is not None else None

    async def refuse_expired(self, ended_us: int, now_us: int) -> None:
        """Raise JournalError where entries behind the newest one may have expired already.

        That one was made at `ended_us`. A rule takes what has reached its age in any order, so an
        older entry may outlive a later one. The rules are read before. Cancellation as in `look`.
        """
        await self.look(age_seconds_max=_FRESH_SECONDS)
        age = age_days(ended_us, now_us)
        found = soonest(self._rules, journal_folder(self._prefix))
        if found is not None and age >= found[1]:
            rule, days = found
            raise JournalError(
                f"the newest journal entry is {age:.1f} days old, and {rule} takes entries"
                f" away after {counted(days, 'day')}: there may have been later ones",
                hint="Nobody can tell what they said. Where no engine has run since, take the"
                " journal out of the rule and start again. Otherwise restore the entries from the"
                " bucket's versions, or give the pipeline a new prefix: docs/retention.md",
            )

    async def refuse_outlived(self, folder: str, began: float, subject: str) -> None:
        """Raise UploadsOutlived where what began then (the loop's time) took too long for a rule.

        The rules are read again before. `subject` is what is given up. Cancellation as in `look`.
        """
        if not self._is_outlived(folder, began):
            return
        await self.look(age_seconds_max=_FRESH_SECONDS)
        rule = shortest(self._rules, folder)
        if rule is not None and self._is_outlived(folder, began):
            raise UploadsOutlived(
                f"{subject} would outlive its unfinished uploads: {upload_text(rule)}",
                seconds=attempt_seconds(rule),
                hint="Give the rule more days (DaysAfterInitiation): the table is read again within"
                " an hour of that. Or let more workers read (source.snapshot_workers), and start"
                " the engine again.",
            )

    def _is_outlived(self, folder: str, began: float) -> bool:
        seconds = self.seconds(folder)
        return seconds is not None and _now() - began >= seconds


def _reason(error: DestinationError | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    text = str(error).rstrip(".")
    return f"{text}; {error.hint}" if error.hint else text


def _now() -> float:
    return asyncio.get_running_loop().time()
