"""A bucket's lifecycle rules as S3 answers for them: those that may concern objects of ours.

The answer's form: "GetBucketLifecycleConfiguration" in the S3 API reference. A rule's filter is a
prefix, a tag, sizes, or several of them under `And`; older rules have a prefix of their own. What
acts on versions that are no longer current does not concern us: nothing is overwritten or deleted.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from engine.model.bucket_rule import BucketRule, RuleAction


def rules_of(
    answered: Iterable[Mapping[str, Any]], tags: Iterable[tuple[str, str]]
) -> tuple[BucketRule, ...]:
    """The rules in force that may concern objects with these `tags`, and do something."""
    found = (_rule(rule) for rule in answered if _is_for_us(rule, frozenset(tags)))
    return tuple(rule for rule in found if rule.actions or rule.upload_days)


def _is_for_us(rule: Mapping[str, Any], tags: frozenset[tuple[str, str]]) -> bool:
    part = _filter(rule)
    wanted = [*part.get("Tags", ()), *([part["Tag"]] if "Tag" in part else ())]
    has_tags = all((tag.get("Key"), tag.get("Value")) in tags for tag in wanted)
    return rule.get("Status") == "Enabled" and has_tags


def _filter(rule: Mapping[str, Any]) -> Mapping[str, Any]:
    part: Mapping[str, Any] = rule.get("Filter") or {}
    inner: Mapping[str, Any] | None = part.get("And")
    return inner if inner is not None else part


def _rule(rule: Mapping[str, Any]) -> BucketRule:
    expiring = rule.get("Expiration") or {}
    actions = [_action(expiring, "")] if {"Days", "Date"} & expiring.keys() else []
    actions += [_action(each, each.get("StorageClass", "")) for each in rule.get("Transitions", ())]
    return BucketRule(
        name=rule.get("ID", ""),
        prefix=_filter(rule).get("Prefix") or rule.get("Prefix") or "",
        actions=tuple(actions),
        upload_days=(rule.get("AbortIncompleteMultipartUpload") or {}).get(
            "DaysAfterInitiation", 0
        ),
        larger_than=_filter(rule).get("ObjectSizeGreaterThan"),
    )


def _action(part: Mapping[str, Any], storage_class: str) -> RuleAction:
    date = part.get("Date")
    return RuleAction(storage_class, part.get("Days"), f"{date:%Y-%m-%d}" if date else "")
