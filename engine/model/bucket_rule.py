"""Rules of a bucket: what it does by itself to objects and unfinished uploads, and what that means.

Strategy: the destination reads the rules that may concern what it makes. Here they are judged, by
their prefixes: which ones take objects away, and how long an upload may stay unfinished. A size
counts only where no journal entry can have it.

Invariant: in doubt a rule concerns us. An upload's time is never longer than the shortest of the
rules that may reach it. Amazon S3 rounds up to the next midnight (UTC); other stores need not, so
that is not counted on.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from engine.model.layout import below
from engine.model.plural import counted

DAY_SECONDS: Final = 86_400.0

UPLOAD_DAYS_PLENTY: Final = 7
"""From so many days on nobody needs to be told of a rule for unfinished uploads."""

_COVERED_DAYS: Final = 30
"""Nobody needs to be told of a rule for the journal alone that waits as long: docs/retention.md."""

_ENTRY_BYTES_NEVER: Final = 64 * 1024 * 1024
"""No journal entry is larger: what it holds has limits of a few MiB."""

_READ_AT_ONCE: Final = frozenset(
    {"STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"}
)
"""Storage classes whose objects are read like any other."""

RULE_HINT: Final = (
    "A running engine keeps its newest state file and entries younger than a day, and makes a"
    " schema.json again with its version's next object. A pipeline that stands still for longer"
    " than a rule waits cannot start again. docs/retention.md says what may expire, and has rules"
    " to paste."
)
UPLOAD_HINT: Final = (
    "A table whose snapshot takes longer is not read. Give the rule 7 days or more"
    " (DaysAfterInitiation)."
)


class RuleAction(msgspec.Struct, frozen=True):
    """What becomes of an object: it goes to `storage_class`, or is deleted where that is empty.

    `days` after it was made, or on a `date`, whichever is there.
    """

    storage_class: str = ""
    days: int | None = None
    date: str = ""


class BucketRule(msgspec.Struct, frozen=True):
    """One rule that is in force, for keys that begin with `prefix`.

    `name` is the rule's ID, as far as it has one. `upload_days` is when an unfinished upload is
    thrown away, counted from its beginning; 0: never. Only objects of more than
    `larger_than` bytes are reached, where that is there.
    """

    name: str
    prefix: str
    actions: tuple[RuleAction, ...] = ()
    upload_days: int = 0
    larger_than: int | None = None

    def concerns(self, folder: str) -> bool:
        """Whether it may reach keys that begin with `folder`."""
        return self.prefix.startswith(folder) or folder.startswith(self.prefix)

    def __str__(self) -> str:
        return f'rule "{self.name}"' if self.name else f'the rule for "{self.prefix}"'


def shortest(rules: Iterable[BucketRule], folder: str) -> BucketRule | None:
    """The rule that is the first to throw away an unfinished upload in `folder`."""
    throwing = (rule for rule in rules if rule.upload_days > 0 and rule.concerns(folder))
    return min(throwing, key=lambda rule: rule.upload_days, default=None)


def soonest(rules: Iterable[BucketRule], folder: str) -> tuple[BucketRule, int] | None:
    """The rule that is the first to delete journal entries in `folder`, and after how many days.

    Rules that do it on a date are left out: nobody knows an age from them. So are rules that move
    objects to another storage class, because the keys stay, and those for objects that are larger
    than any entry.
    """
    found = [
        (action.days, rule)
        for rule in rules
        if rule.concerns(folder) and (rule.larger_than or 0) < _ENTRY_BYTES_NEVER
        for action in rule.actions
        if action.days is not None and not action.storage_class
    ]
    days, rule = min(found, key=lambda one: one[0], default=(0, None))
    return (rule, days) if rule is not None else None


def age_days(made_us: int, now_us: int) -> float:
    """How many days after it was made something has; both in Unix microseconds."""
    return (now_us - made_us) / 1e6 / DAY_SECONDS


def attempt_seconds(rule: BucketRule) -> float:
    """How long an attempt to take a snapshot may stage, so that its uploads outlive `rule` never.

    Half of the rule's time. The other half is for completing them: a bucket may be out of reach.
    """
    return rule.upload_days * DAY_SECONDS / 2


def upload_text(rule: BucketRule) -> str:
    """What the rule does to unfinished uploads."""
    hours = attempt_seconds(rule) / 3600
    return (
        f"{rule} throws unfinished uploads away after {counted(rule.upload_days, 'day')}: an"
        f" attempt to read a table has {hours:g} hours"
    )


def taken_away(rules: Iterable[BucketRule], prefix: str) -> tuple[str, ...]:
    """What the rules take away that a pipeline of `prefix` has to keep: a sentence each."""
    root = below(prefix)
    return tuple(
        f'{rule} {_deed(action)} objects under "{max(rule.prefix, root, key=len)}" {_when(action)}'
        + _included(rule, root)
        for rule in rules
        if rule.concerns(root)
        for action in rule.actions
        if not _is_harmless(rule, action, root)
    )


def _is_harmless(rule: BucketRule, action: RuleAction, root: str) -> bool:
    if action.storage_class in _READ_AT_ONCE or rule.prefix.startswith(f"{root}_tailrace/check/"):
        return True
    return rule.prefix.startswith(f"{root}_tailrace/") and (action.days or 0) >= _COVERED_DAYS


def _included(rule: BucketRule, root: str) -> str:
    """What must stay of that which the rule reaches."""
    own = f"{root}_tailrace/"
    kept = {
        "the newest state file": rule.concerns(f"{own}state/"),
        "the newest journal entries": rule.concerns(f"{own}journal/"),
        "each schema.json": not rule.prefix.startswith(own),
    }
    names = [name for name, is_reached in kept.items() if is_reached]
    return f", among them {', '.join(names)}" if names else ""


def _deed(action: RuleAction) -> str:
    return f"moves to {action.storage_class} the" if action.storage_class else "deletes"


def _when(action: RuleAction) -> str:
    if action.days is not None:
        return f"{counted(action.days, 'day')} after they were made"
    return f"from {action.date} on" if action.date else "at a time of its own"
