"""What S3's refusals and silences mean: a failed request becomes one of the destination errors.

Strategy: a table of S3's error codes decides, and then a table of statuses. Stores that only
resemble S3 agree on statuses more than on codes, and answers to HEAD carry no code at all. This
module is pure. `s3_connection` takes the client's exceptions apart before, so every row can be
tested without a server.

Invariant: in doubt a request is *unavailable*, and the same bytes are sent again. *Refused* is only
what was certainly not applied, and will not be until somebody changes a right, a name or a setting.
"""

from dataclasses import dataclass

from engine.destinations.s3_access import access_hint, role_hint
from engine.destinations.s3_rights import CREATING, DECRYPT, GENERATE_KEY, PUT_ACL, PUT_TAGS, Place
from engine.model.errors import (
    DestinationError,
    DestinationRefused,
    DestinationUnavailable,
    ObjectArchived,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without success.

    `code` is S3's error code, or the name of what went wrong on the way; `status` is 0 where no
    answer came. `is_local` says that nothing was sent: credentials or settings were missing or
    wrong. `bucket_region` is what the answer named, if it did. `cause` is the client's own
    exception.
    """

    operation: str
    code: str
    status: int
    text: str
    cause: BaseException
    is_local: bool = False
    bucket_region: str = ""

    @property
    def is_taken(self) -> bool:
        """Whether the key holds an object already: a create-only precondition failed."""
        # A completed multipart upload may be refused inside an answer that began with 200.
        return self.status == 412 or self.code == "PreconditionFailed"

    @property
    def is_missing(self) -> bool:
        """Whether the store says that there is no such object, in an answer that can tell."""
        return self.code in {"NoSuchKey", "NoSuchVersion"}

    @property
    def is_upload_gone(self) -> bool:
        """Whether the store says that there is no such upload: it was completed, or aborted."""
        return self.code == "NoSuchUpload"

    @property
    def is_headless(self) -> bool:
        """Whether the object is there and has no bytes to give: it is archived, or empty."""
        return self.code == "InvalidObjectState" or self.status == 416

    @property
    def is_bare(self) -> bool:
        """Whether the answer had no body, as to HEAD: the code only repeats the status."""
        return self.code == str(self.status)

    @property
    def is_hiding(self) -> bool:
        """Whether access is denied: to a key that may be there, or may not."""
        return self.status == 403 and (self.is_bare or self.code in _ACCESS_CODES)

    @property
    def is_about_role(self) -> bool:
        """Whether it was STS that was asked, for the role's credentials."""
        return self.operation.startswith("AssumeRole")

    @property
    def is_expired(self) -> bool:
        """Whether the credentials were good once: reading them anew may help."""
        return self.code in _EXPIRED_CODES

    @property
    def is_definite(self) -> bool:
        """Whether the request was certainly not applied, now or later."""
        return 400 <= self.status < 500 and self.code not in _DOUBTFUL_CODES


class ClientUnusable(Exception):
    """No client can be made of these settings: nothing was sent. `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Circumstances:
    """The settings that a hint may point at."""

    place: Place
    role_arn: str = ""
    has_external_id: bool = False
    expected_bucket_owner: str = ""
    kms_key_id: str = ""
    has_acl: bool = False
    has_tags: bool = False


_EXPIRED_CODES = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
)

# These are answered with 4xx, and yet what was asked for may have happened: a completion that was
# applied before takes its upload away.
_DOUBTFUL_CODES = frozenset({"NoSuchUpload", "RequestTimeout"})

# Answers that time heals although their status does not say so. Codes with a 5xx status need no
# row.
_PASSING_HINTS = {
    **dict.fromkeys(_EXPIRED_CODES, "the credentials ran out; they are read anew for each attempt"),
    "RequestTimeTooSkewed": "this machine's clock is off by more than 15 minutes: set it",
    "RequestTimeout": "",
    "SlowDown": "",
    "Throttling": "",
    "ThrottlingException": "",
    "TooManyRequestsException": "",
    "RequestLimitExceeded": "",
    "RequestThrottled": "",
    "RequestThrottledException": "",
    "BandwidthLimitExceeded": "",
    "ProvisionedThroughputExceededException": "",
    "PriorRequestNotComplete": "",
    "TransactionInProgressException": "",
    "OperationAborted": "",
    "ConditionalRequestConflict": "",
    "TemporaryRedirect": "the bucket is new; its name settles within hours",
    # The body was damaged on the way: the same bytes are sent again.
    "BadDigest": "",
    "IncompleteBody": "",
    "XAmzContentSHA256Mismatch": "",
    "XAmzContentChecksumMismatch": "",
    # The upload is gone: an earlier attempt completed it, or somebody aborted it. A new attempt
    # with an upload of its own tells which. It gets 412 if the upload was completed, and makes the
    # object otherwise.
    "NoSuchUpload": "",
    "InvalidPart": "",
    "KMS.ThrottlingException": "",
    "KMS.KMSInternalException": "",
    "KMS.InternalException": "",
    "KMS.DependencyTimeoutException": "",
    "KMS.KeyUnavailableException": "",
    "IDPCommunicationError": "",
    # No answer at all.
    "SSLError": "name the authority of a certificate that is not public by AWS_CA_BUNDLE",
    "EndpointConnectionError": "check destination.endpoint_url, its name resolution and the route",
    "ConnectTimeoutError": "check destination.endpoint_url, the route and security groups",
}

_ACCESS_CODES = frozenset(
    {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "UnauthorizedAccess"}
)
_REGION_CODES = frozenset(
    {
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "InvalidRegionError",
        "NoRegionError",
    }
)
_UNKNOWN_KEY_HINT = (
    "the store does not know this access key: check the credentials and destination.endpoint_url"
)
_CREDENTIAL_HINT = (
    "give credentials by AWS's default chain: the task's or instance's role, AWS_PROFILE, or "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
_BUCKET_NAME_HINT = "destination.bucket is a bucket's bare name; folders go to destination.prefix"
_MISSING_BUCKET_HINT = (
    "create the bucket, or correct destination.bucket, destination.region or "
    "destination.endpoint_url"
)
_INCAPABLE_HINT = (
    "this store lacks something that exactly-once needs (conditional writes, checksums): "
    "use one that has it"
)
_NO_PARTS_HINT = (
    "this store takes no uploads in parts (multipart uploads), which snapshots and objects over "
    "20 MiB need: use one that takes them, or let them pass where a proxy stands before it"
)

_NO_TLS_HINT = (
    "what answers there does not speak TLS: for http, write http:// in destination.endpoint_url; "
    "else name the port that has TLS"
)

_SILENT_STS_HINT = (
    "this is AWS's STS, which gives the role's credentials: check the route to it (a VPC without "
    "internet needs an endpoint for STS), destination.region, and AWS_ENDPOINT_URL_STS if it is set"
)

_REFUSAL_HINTS = {
    "InvalidAccessKeyId": _UNKNOWN_KEY_HINT,
    "InvalidToken": _UNKNOWN_KEY_HINT,
    "InvalidClientTokenId": _UNKNOWN_KEY_HINT,
    "UnrecognizedClientException": _UNKNOWN_KEY_HINT,
    "SignatureDoesNotMatch": "the secret key is not the access key's: check the credentials",
    "NoCredentialsError": _CREDENTIAL_HINT,
    "PartialCredentialsError": _CREDENTIAL_HINT,
    "ProfileNotFound": "AWS_PROFILE names a profile that the AWS configuration does not have",
    "NoSuchBucket": _MISSING_BUCKET_HINT,
    "InvalidBucketName": _BUCKET_NAME_HINT,
    "ParamValidationError": _BUCKET_NAME_HINT,
    "AccessControlListNotSupported": "the bucket takes no ACLs: remove destination.acl",
    "InvalidStorageClass": "correct destination.storage_class",
    "InvalidTag": "correct destination.tags",
    "InvalidObjectState": "the object is archived: restore it, or use a storage_class read at once",
    "NotImplemented": _INCAPABLE_HINT,
    "EntityTooLarge": "lower chunk.max_bytes",
    "KeyTooLongError": "shorten destination.prefix",
}


def destination_error(
    failure: Failure, subject: str, circumstances: Circumstances
) -> DestinationError:
    """The error for `failure`, met while doing `subject` ("create a/b.json").

    Raise it from `failure.cause`.
    """
    code = failure.code or str(failure.status)
    message = f"{subject} in bucket {circumstances.place.bucket}: {code}"
    if failure.is_about_role:
        message = f"assume {circumstances.role_arn} to {message}"
    if failure.text:
        message = f"{message}: {failure.text}"
    if _is_passing(failure):
        return DestinationUnavailable(message, code=code, hint=_passing_hint(failure))
    kind = ObjectArchived if code == "InvalidObjectState" else DestinationRefused
    return kind(message, code=code, hint=_refusal_hint(failure, circumstances))


def _passing_hint(failure: Failure) -> str:
    if failure.is_about_role and failure.status == 0:
        return _SILENT_STS_HINT
    if failure.code == "SSLError" and "WRONG_VERSION_NUMBER" in failure.text:
        return _NO_TLS_HINT
    return _PASSING_HINTS.get(failure.code, "")


def _is_passing(failure: Failure) -> bool:
    if failure.is_local:
        return False
    if failure.status == 0 or failure.code in _PASSING_HINTS:
        return True
    if failure.code in _REFUSAL_HINTS:
        return False
    if failure.status >= 500:
        return failure.status != 501
    # 409: two requests met, and neither answer says that the key is taken.
    return failure.status in {307, 408, 409, 425, 429}


def _refusal_hint(failure: Failure, circumstances: Circumstances) -> str:
    is_kms = failure.code.startswith("KMS.") or "kms:" in failure.text
    is_region = failure.code in _REGION_CODES or failure.status in {301, 302}
    is_access = failure.code in _ACCESS_CODES or failure.status in {401, 403, 405}
    if failure.operation == "CreateMultipartUpload" and _is_unknown_request(failure):
        hint = _NO_PARTS_HINT
    elif failure.code in _REFUSAL_HINTS:
        hint = _REFUSAL_HINTS[failure.code]
    elif failure.is_about_role:
        hint = _role_hint(failure, circumstances)
    elif is_kms and not is_access:
        hint = _kms_hint(circumstances)
    elif is_region:
        hint = _region_hint(failure, circumstances)
    elif is_access:
        hint = _access_hint(failure, circumstances)
    else:
        hint = _STATUS_HINTS.get(failure.status, _WRONG_REQUEST_HINT)
    return hint


def _is_unknown_request(failure: Failure) -> bool:
    """Whether the store does not know such a request at all."""
    return failure.status in {405, 501} or failure.code in {"NotImplemented", "MethodNotAllowed"}


_WRONG_REQUEST_HINT = (
    "the store calls the request itself wrong: check [destination] against what it supports"
)
_STATUS_HINTS = {404: _MISSING_BUCKET_HINT, 501: _INCAPABLE_HINT}


def _role_hint(failure: Failure, circumstances: Circumstances) -> str:
    return role_hint(
        failure.text, circumstances.role_arn, has_external_id=circumstances.has_external_id
    )


def _kms_hint(circumstances: Circumstances) -> str:
    key = circumstances.kms_key_id or "of the bucket's default encryption"
    return (
        f"the KMS key {key} must be enabled and in the bucket's region, and the role needs "
        "kms:GenerateDataKey and kms:Decrypt on it (another account's key: in its policy too)"
    )


def _region_hint(failure: Failure, circumstances: Circumstances) -> str:
    region = failure.bucket_region
    if region:
        return f'the bucket is in {region}: set destination.region = "{region}"'
    known = circumstances.place.region or "this region"
    return f"the bucket is not in {known}: set destination.region"


def _access_hint(failure: Failure, circumstances: Circumstances) -> str:
    configured = []
    if failure.operation in CREATING:
        configured += [f"{PUT_ACL} (destination.acl)"] if circumstances.has_acl else []
        configured += [f"{PUT_TAGS} (destination.tags)"] if circumstances.has_tags else []
        if circumstances.kms_key_id:
            configured.append(f"{GENERATE_KEY} on the key {circumstances.kms_key_id}")
    elif failure.operation == "GetObject" and circumstances.kms_key_id:
        configured.append(f"{DECRYPT} on the key {circumstances.kms_key_id}")
    hint = access_hint(failure.text, failure.operation, circumstances.place, configured)
    if circumstances.expected_bucket_owner:
        hint += f"; or the bucket is not owned by {circumstances.expected_bucket_owner}"
    return hint
