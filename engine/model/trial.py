"""A trial: one thing that a start needs, looked at, and what came of it.

Strategy: whoever a start asks (the source, the bucket) gives its trials one after another, each
under a code. `check` shows them all. A start calls the same judges, and ends with the first error.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from engine.model.check_code import CheckCode
from engine.model.errors import TailraceError


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, in words. A `hint` makes it a warning: a start succeeds all the same."""

    text: str
    hint: str = ""


Trial: TypeAlias = Callable[[], Awaitable[Finding]]
"""Looks at one thing. Makes nothing, and raises the TailraceError that a start would end with."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of the trial of that code: a finding, or the error that a start would end with."""

    code: CheckCode
    found: Finding | TailraceError


Trials: TypeAlias = Callable[[], AsyncIterator[Judgement]]
"""Gives judgements, one at a time, as they come. Nothing is made by any of them."""


async def judgement(code: CheckCode, trial: Trial) -> Judgement:
    """What came of it. Raises nothing of our own errors. Cancellation as in the trial."""
    try:
        return Judgement(code, await trial())
    except TailraceError as error:
        return Judgement(code, error)


async def judgements(*trials: tuple[CheckCode, Trial]) -> AsyncIterator[Judgement]:
    """What came of each, one after another. Cancellation as in the trials."""
    for code, trial in trials:
        yield await judgement(code, trial)


State: TypeAlias = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class CheckStep:
    """A judgement as `check` shows it: how it is, the facts, and what to do if it is not well.

    Where any step is a failure, `run` does not start and ends with `exit_code`. It starts in spite
    of a warning.
    """

    code: CheckCode
    state: State
    detail: str
    hint: str = ""
    exit_code: int = 0

    @classmethod
    def of(cls, judged: Judgement) -> "CheckStep":
        """What a judgement comes to."""
        found = judged.found
        if isinstance(found, TailraceError):
            return cls(judged.code, "failure", str(found), found.hint, found.exit_code)
        return cls(judged.code, "warning" if found.hint else "ok", found.text, found.hint)

    @property
    def is_ok(self) -> bool:
        """Whether a start gets over it."""
        return self.state != "failure"
