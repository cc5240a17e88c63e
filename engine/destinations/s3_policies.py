"""The policies that `tailrace iam` prints: the least that each side has to grant.

Strategy: a document is made of statements, one for each kind of resource, in the order in which a
reader asks: find the bucket, list, read and write, what is configured, what is optional. A bucket's
policy repeats the role's statements with a principal, because across accounts both have to allow.

Forms: "IAM JSON policy elements" in AWS's IAM user guide; conditions on creation as in "Enforce
conditional writes on Amazon S3 buckets" of S3's user guide.

This module is pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from engine.destinations.s3_rights import (
    ABORT,
    ASSUME,
    DECRYPT,
    GENERATE_KEY,
    GET,
    GET_LIFECYCLE,
    GET_LOCATION,
    GET_LOCK,
    LIST,
    LIST_PARTS,
    LIST_UPLOADS,
    PUT,
    PUT_ACL,
    PUT_TAGS,
    Place,
)

Who = Literal["engine", "reader", "operator"]
Kind = Literal["task-role", "bucket-role", "trust", "bucket", "key"]
Statement = Mapping[str, object]

EXTERNAL_ID_MARK: Final = "REPLACE-BY-destination.external_id"
"""The external id is not shown: it stands for what a human fills in."""

PRINCIPAL_MARK: Final = "REPLACE-BY-THE-TASK-ROLES-ARN"

_HOLDERS: Final[Mapping[Who, str]] = {
    "engine": "the task role",
    "reader": "whoever reads",
    "operator": "whoever asks the engine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the configuration and the options say about rights.

    `key_arn` is the KMS key's that objects are encrypted with; empty without one of ours.
    `role_arn` is assumed before anything is asked of the bucket. `principal` is the task role's
    ARN; empty where it is not known. `beside` are statements of the task role that are not about
    the bucket.
    """

    place: Place
    who: Who = "engine"
    has_acl: bool = False
    has_tags: bool = False
    key_arn: str = ""
    role_arn: str = ""
    has_external_id: bool = False
    principal: str = ""
    denies_insecure: bool = False
    enforces_create_only: bool = False
    beside: tuple[Statement, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """One policy: what it is, where it goes, and its statements."""

    kind: Kind
    title: str
    statements: tuple[Statement, ...]

    @property
    def policy(self) -> Mapping[str, object]:
        """The document as AWS takes it."""
        return {"Version": "2012-10-17", "Statement": list(self.statements)}


def documents(wanted: Wanted) -> tuple[Document, ...]:
    """All policies that have to be there, the task role's first."""
    own = _granted(wanted)
    bucket = _bucket_statements(wanted, own)
    title = f"Policy of {_HOLDERS[wanted.who]}"
    if wanted.role_arn:
        found = [
            Document("task-role", title, (_assuming(wanted), *wanted.beside)),
            Document("bucket-role", f"Policy of {wanted.role_arn}", (*own, *_key_use(wanted))),
            Document("trust", f"Trust policy of {wanted.role_arn}", (_trusting(wanted),)),
        ]
    else:
        statements = (*own, *_key_use(wanted), *wanted.beside)
        found = [Document("task-role", title, statements)]
    if bucket:
        title = f"Policy of the bucket {wanted.place.bucket}"
        found.append(Document("bucket", title, tuple(bucket)))
    holder = wanted.role_arn or wanted.principal
    if wanted.key_arn and holder:
        title = "Statement for the policy of the key, if it is another account's"
        found.append(Document("key", title, (_key_sharing(wanted, holder),)))
    return tuple(found)


def _granted(wanted: Wanted) -> list[Statement]:
    """What the identity that speaks to the bucket may do there."""
    place = wanted.place
    listing = _allow("TailraceList", [LIST], place.bucket_arn)
    listing["Condition"] = {"StringLike": {"s3:prefix": [place.listed]}}
    if wanted.who != "engine":
        statements = [listing, _allow("TailraceRead", [GET], place.objects_arn)]
        if wanted.who == "operator":
            statements.append(_allow("TailraceAsk", [PUT], place.requests_arn))
        return [*statements]
    objects = [PUT, GET, ABORT, LIST_PARTS]
    objects += [PUT_ACL] if wanted.has_acl else []
    objects += [PUT_TAGS] if wanted.has_tags else []
    return [
        # S3 knows no condition on the prefix for these two.
        _allow("TailraceBucket", [GET_LOCATION, LIST_UPLOADS], place.bucket_arn),
        listing,
        _allow("TailraceObjects", objects, place.objects_arn),
        _allow("TailraceOptionalBucketRules", [GET_LIFECYCLE, GET_LOCK], place.bucket_arn),
    ]


def _key_use(wanted: Wanted) -> list[Statement]:
    if not wanted.key_arn:
        return []
    actions = [DECRYPT] if wanted.who == "reader" else [GENERATE_KEY, DECRYPT]
    return [_allow("TailraceKey", actions, wanted.key_arn) | _by_way_of_s3(wanted.key_arn)]


def _key_sharing(wanted: Wanted, holder: str) -> Statement:
    # In a key's own policy the resource is that key, whatever its name.
    (use,) = _key_use(wanted)
    return {**_shared(use, holder), "Resource": "*"}


def _by_way_of_s3(key_arn: str) -> dict[str, object]:
    """The key is for S3's use alone."""
    _, partition, _, region, *_ = key_arn.split(":")
    domain = "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com"
    return {"Condition": {"StringEquals": {"kms:ViaService": f"s3.{region}.{domain}"}}}


def _assuming(wanted: Wanted) -> Statement:
    return _allow("TailraceAssumeRole", [ASSUME], wanted.role_arn)


def _trusting(wanted: Wanted) -> Statement:
    statement: dict[str, object] = {
        "Sid": "TailraceTaskRole",
        "Effect": "Allow",
        "Principal": {"AWS": wanted.principal or PRINCIPAL_MARK},
        "Action": ASSUME,
    }
    if wanted.has_external_id:
        statement["Condition"] = {"StringEquals": {"sts:ExternalId": EXTERNAL_ID_MARK}}
    return statement


def _bucket_statements(wanted: Wanted, own: Sequence[Statement]) -> list[Statement]:
    """The bucket's policy: who may from another account, and what nobody may."""
    place = wanted.place
    statements: list[Statement] = []
    if wanted.principal and not wanted.role_arn:
        statements += [_shared(each, wanted.principal) for each in own]
    if wanted.denies_insecure:
        statements.append(
            _deny(
                "DenyInsecureTransport",
                "s3:*",
                [place.bucket_arn, f"{place.bucket_arn}/*"],
                {"Bool": {"aws:SecureTransport": "false"}},
            )
        )
    if wanted.enforces_create_only:
        # What begins an upload or carries a part makes no object, and has no such header. Of these
        # S3 says that they are no object creation.
        statements.append(
            _deny(
                "DenyOverwriting",
                PUT,
                place.objects_arn,
                {
                    "Null": {"s3:if-none-match": "true"},
                    "Bool": {"s3:ObjectCreationOperation": "true"},
                },
            )
        )
    return statements


def _shared(statement: Statement, principal: str) -> Statement:
    """The statement in the policy of a resource, which names who is meant."""
    named = {"Sid": statement["Sid"], "Effect": "Allow", "Principal": {"AWS": principal}}
    return {**named, **statement}


def _allow(name: str, actions: Sequence[str], resource: str) -> dict[str, object]:
    return {"Sid": name, "Effect": "Allow", "Action": list(actions), "Resource": resource}


def _deny(name: str, action: str, resource: object, condition: object) -> Statement:
    return {
        "Sid": name,
        "Effect": "Deny",
        "Principal": "*",
        "Action": action,
        "Resource": resource,
        "Condition": condition,
    }
