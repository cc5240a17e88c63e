"""AWS's judgement of a request by policies, as far as ours need it; an oracle for tests.

Strategy: a request on the wire becomes what is asked (action, resource, the keys that conditions
are about), and the documents decide as "Policy evaluation logic" in AWS's IAM user guide says: an
explicit Deny wins; within an account either side may allow; across accounts both have to. What a
document has and this module does not know raises.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.servers.fault_proxy import Request

Policy = Mapping[str, Any]
Decision = Literal["allow", "deny", "nothing"]

_KNOWN = {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
_LITERALS = {"${*}": r"\*", "${?}": r"\?", "${$}": r"\$"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request wants; `context` has lower-case names of condition keys."""

    action: str
    resource: str
    context: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a role's ARN, its own policies, and whether the bucket is in its account."""

    arn: str
    policies: tuple[Policy, ...]
    is_owner_account: bool = True


def refused(
    asked: Asked,
    caller: Caller,
    bucket_policy: Policy | None = None,
    key_policy: Policy | None = None,
) -> str:
    """Why the request is refused, in AWS's own words; empty where it may pass."""
    own = decided(asked, caller.arn, caller.policies)
    resource_policy = key_policy if asked.action.startswith("kms:") else bucket_policy
    theirs = decided(asked, caller.arn, [resource_policy] if resource_policy else [])
    begin = f"User: {caller.arn} is not authorized to perform: {asked.action} on resource: "
    begin += f'"{asked.resource}" '
    for found, kind in ((own, "identity-based"), (theirs, "resource-based")):
        if found == "deny":
            return f"{begin}with an explicit deny in a {kind} policy"
    both = own == theirs == "allow"
    if both or (caller.is_owner_account and "allow" in {own, theirs}):
        return ""
    kind = "identity-based" if own != "allow" else "resource-based"
    return f"{begin}because no {kind} policy allows the {asked.action} action"


def decided(asked: Asked, arn: str, policies: Iterable[Policy]) -> Decision:
    """What the documents together say."""
    effects = {
        statement["Effect"]
        for policy in policies
        for statement in policy["Statement"]
        if _concerns(statement, asked, arn)
    }
    if "Deny" in effects:
        return "deny"
    return "allow" if "Allow" in effects else "nothing"


def without(policy: Policy, action: str) -> Policy:
    """The document without one right."""
    statements = []
    for statement in policy["Statement"]:
        kept = [each for each in _several(statement["Action"]) if each != action]
        if kept or statement["Effect"] == "Deny":
            statements.append({**statement, "Action": kept or statement["Action"]})
    return {**policy, "Statement": statements}


def actions_of(policy: Policy) -> list[str]:
    """The rights that a document allows."""
    return [
        action
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow"
        for action in _several(statement["Action"])
    ]


def asked_by(request: Request, *, is_secure: bool = True, key_arn: str = "") -> tuple[Asked, ...]:
    """What a request to the S3 API wants: "Required permissions for S3 API operations".

    `key_arn` is the KMS key that what is read was encrypted with.
    """
    bucket, key = f"arn:aws:s3:::{request.bucket}", request.key
    resource = f"{bucket}/{key}" if key else bucket
    context = {"aws:securetransport": str(is_secure).lower()}
    action, creates = _action(request)
    if action == "s3:ListBucket" and "prefix" in request.parameters:
        context["s3:prefix"] = request.parameters["prefix"][0]
    if action == "s3:PutObject":
        context["s3:objectcreationoperation"] = str(creates).lower()
        if request.header("if-none-match"):
            context["s3:if-none-match"] = request.header("if-none-match")
    wanted = [Asked(action, resource, context)]
    if request.header("x-amz-acl"):
        wanted.append(Asked("s3:PutObjectAcl", resource, context))
    if request.header("x-amz-tagging"):
        wanted.append(Asked("s3:PutObjectTagging", resource, context))
    named = request.header("x-amz-server-side-encryption-aws-kms-key-id")
    if named:
        wanted.append(Asked("kms:GenerateDataKey", named, _by_s3(named)))
    if key_arn and action == "s3:GetObject" and request.method == "GET":
        wanted.append(Asked("kms:Decrypt", key_arn, _by_s3(key_arn)))
    return tuple(wanted)


def _by_s3(key_arn: str) -> Mapping[str, str]:
    return {"kms:viaservice": f"s3.{key_arn.split(':')[3]}.amazonaws.com"}


def _action(request: Request) -> tuple[str, bool]:
    """The right, and whether the request makes an object."""
    names = request.parameters.keys()
    if not request.key:
        by_name = {
            "location": "s3:GetBucketLocation",
            "uploads": "s3:ListBucketMultipartUploads",
            "lifecycle": "s3:GetLifecycleConfiguration",
            "object-lock": "s3:GetBucketObjectLockConfiguration",
            "list-type": "s3:ListBucket",
        }
        (action,) = (by_name[name] for name in names if name in by_name)
        return action, False
    by_method = {
        "PUT": ("s3:PutObject", "partNumber" not in names),
        "POST": ("s3:PutObject", "uploadId" in names),
        "DELETE": ("s3:AbortMultipartUpload" if "uploadId" in names else "s3:DeleteObject", False),
        "GET": ("s3:ListMultipartUploadParts" if "uploadId" in names else "s3:GetObject", False),
        "HEAD": ("s3:GetObject", False),
    }
    return by_method[request.method]


def _concerns(statement: Mapping[str, Any], asked: Asked, arn: str) -> bool:
    assert statement.keys() <= _KNOWN, statement
    return (
        _is_meant(statement.get("Principal", "*"), arn)
        and any(_like(pattern, asked.action) for pattern in _several(statement["Action"]))
        and any(_like(pattern, asked.resource) for pattern in _several(statement["Resource"]))
        and _holds(statement.get("Condition", {}), asked.context)
    )


def _is_meant(principal: Any, arn: str) -> bool:
    if principal == "*":
        return True
    account = arn.split(":")[4]
    return any(
        name in {"*", arn, f"arn:aws:iam::{account}:root"} for name in _several(principal["AWS"])
    )


def _holds(conditions: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    """All operators and all keys together: a key that is absent fails all but Null."""
    judges: dict[str, Callable[[str | None, Any], bool]] = {
        "StringLike": lambda value, wanted: value is not None and _like(wanted, value),
        "StringEquals": lambda value, wanted: value == wanted,
        "Bool": lambda value, wanted: value == wanted,
        "Null": lambda value, wanted: (value is None) == (wanted == "true"),
    }
    return all(
        any(judges[operator](context.get(key.lower()), wanted) for wanted in _several(value))
        for operator, keys in conditions.items()
        for key, value in keys.items()
    )


def _like(pattern: str, text: str) -> bool:
    parts = re.split(r"(\$\{[*?$]\}|[*?])", pattern)
    known = {**_LITERALS, "*": ".*", "?": "."}
    return (
        re.fullmatch("".join(known.get(part, re.escape(part)) for part in parts), text) is not None
    )


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]
