"""The rights on a bucket that Tailrace asks for, in the words of AWS's policies.

Strategy: one table says which right each request of ours needs and on what. Policies that are
printed, errors that name what is missing, and the check read the same table. The source of names:
"Actions, resources, and condition keys for Amazon S3" in AWS's service authorization reference.

This module is pure.
"""

import re
from dataclasses import dataclass
from typing import Final

from engine.model.layout import below, requests_folder

GET_LOCATION: Final = "s3:GetBucketLocation"
LIST: Final = "s3:ListBucket"
LIST_UPLOADS: Final = "s3:ListBucketMultipartUploads"
PUT: Final = "s3:PutObject"
GET: Final = "s3:GetObject"
ABORT: Final = "s3:AbortMultipartUpload"
LIST_PARTS: Final = "s3:ListMultipartUploadParts"
PUT_ACL: Final = "s3:PutObjectAcl"
PUT_TAGS: Final = "s3:PutObjectTagging"
GET_LIFECYCLE: Final = "s3:GetLifecycleConfiguration"
GET_LOCK: Final = "s3:GetBucketObjectLockConfiguration"
DELETE: Final = "s3:DeleteObject"
GENERATE_KEY: Final = "kms:GenerateDataKey"
DECRYPT: Final = "kms:Decrypt"
ASSUME: Final = "sts:AssumeRole"

RIGHT_OF: Final = {
    "GetBucketLocation": GET_LOCATION,
    "ListObjectsV2": LIST,
    "ListMultipartUploads": LIST_UPLOADS,
    "GetBucketLifecycleConfiguration": GET_LIFECYCLE,
    "GetObjectLockConfiguration": GET_LOCK,
    "PutObject": PUT,
    "CreateMultipartUpload": PUT,
    "UploadPart": PUT,
    "CompleteMultipartUpload": PUT,
    "GetObject": GET,
    "HeadObject": GET,
    "AbortMultipartUpload": ABORT,
    "ListParts": LIST_PARTS,
}
"""By the name of a request in S3's API."""

CREATING: Final = frozenset({"PutObject", "CreateMultipartUpload"})
"""The requests that carry an object's encryption, ACL and tags, and need the rights for them."""

_SESSION: Final = re.compile(r"arn:(aws[a-z-]*):sts::(\d{12}):assumed-role/([^/\s]+)/\S+")

_ON_THE_BUCKET: Final = frozenset({GET_LOCATION, LIST, LIST_UPLOADS, GET_LIFECYCLE, GET_LOCK})


@dataclass(frozen=True, slots=True)
class Place:
    """A pipeline's part of a bucket, as policies name it. `region` may be unknown, and empty."""

    bucket: str
    prefix: str
    region: str = ""

    @property
    def partition(self) -> str:
        """Which of AWS's separate clouds: their ARNs begin differently."""
        return partition_of(self.region)

    @property
    def bucket_arn(self) -> str:
        return f"arn:{self.partition}:s3:::{self.bucket}"

    @property
    def objects_arn(self) -> str:
        """All of the pipeline's objects."""
        return f"{self.bucket_arn}/{_literal(below(self.prefix))}*"

    @property
    def requests_arn(self) -> str:
        """What commands ask of a running engine."""
        return f"{self.bucket_arn}/{_literal(requests_folder(self.prefix))}*"

    @property
    def listed(self) -> str:
        """The pattern of what is listed, as `s3:prefix` is compared with it."""
        return f"{_literal(below(self.prefix))}*"

    def resource_of(self, right: str) -> str:
        """What a right is needed on."""
        return self.bucket_arn if right in _ON_THE_BUCKET else self.objects_arn


def role_of_session(arn: str) -> str:
    """The ARN of the role whose session that is; empty where it is none.

    A session's ARN lacks the role's path.
    """
    found = _SESSION.fullmatch(arn)
    return f"arn:{found[1]}:iam::{found[2]}:role/{found[3]}" if found else ""


def partition_of(region: str) -> str:
    """The partition that a region belongs to."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def _literal(text: str) -> str:
    """Text that a policy compares as it stands: a prefix may have a star."""
    return text.replace("*", "${*}")
