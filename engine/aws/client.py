"""Clients of AWS's services beside S3: made once, used by one thread after the other.

Strategy: a secret is asked for when a connection is opened, a few times an hour. So botocore's
plain client does, in a thread: making one reads models for a tenth of a second, which must not
stand in the loop's way. Each question has one attempt and a few seconds. Who asked tries again,
with the pauses of whatever it was about to do.

Credentials come from AWS's default chain, which renews them. After a failure the clients are
forgotten: the next one walks the chain anew, and finds a file that was rotated.
"""

import functools
import os
from typing import TYPE_CHECKING, Any, Final

from botocore import exceptions
from botocore.config import Config
from botocore.session import Session

from engine.config.secret_reference import SecretFailed

if TYPE_CHECKING:
    from botocore.client import BaseClient

ERRORS: Final = (
    exceptions.BotoCoreError,
    exceptions.ClientError,
    OSError,
    ValueError,
    RuntimeError,
)
"""What a question may raise. OSError and ValueError are about the file of an agent's token: it is
not there, or ends in a line break, which no header can carry. RuntimeError says that credentials
were renewed and are expired all the same, because whoever gives them lags behind."""

_CONNECT_SECONDS: Final = 3
_ANSWER_SECONDS: Final = 5

_PASSING_CODES: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_UNKNOWN_CALLER: Final = frozenset(
    {
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_SERVER_ERROR: Final = 500


def region_or_default(region: str) -> str:
    """`region`, else the environment's, else that of AWS's configuration. Raises SecretFailed."""
    found = region or os.environ.get("AWS_REGION") or Session().get_config_variable("region")
    if not found:
        raise SecretFailed(
            "no AWS region is known", "write the secret's ARN, which names one, or set AWS_REGION"
        )
    return str(found)


@functools.lru_cache(maxsize=8)
def client(service: str, region: str) -> "BaseClient":
    """The client of one service in one region."""
    configuration = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_ANSWER_SECONDS,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    return Session().create_client(service, region_name=region, config=configuration)


def forget() -> None:
    """Make new clients from the next question on."""
    client.cache_clear()


def code_of(error: exceptions.ClientError) -> str:
    """The service's word for what went wrong."""
    return str(_details(error).get("Code", ""))


def message_of(error: exceptions.ClientError) -> str:
    """The service's sentence, which names who asked for what."""
    return " ".join(str(_details(error).get("Message", "")).split())


def failure(error: Exception, doing: str) -> SecretFailed:
    """What went wrong while `doing`, where it is nothing about the secret itself."""
    if isinstance(error, exceptions.ClientError):
        return _answered(error, doing)
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return SecretFailed(
            f"{doing} failed: AWS's default chain has no credentials",
            "give the task a role (on ECS its taskRoleArn), or set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY",
        )
    is_passing = isinstance(error, _TRANSPORT_ERRORS)
    return SecretFailed(
        f"{doing} failed: {type(error).__name__}",
        "it is tried again; check the network: a subnet without internet needs VPC endpoints for"
        " secretsmanager, ssm and sts"
        if is_passing
        else "see AWS's own documentation of this error; nothing was read",
        is_passing=is_passing,
    )


# `CredentialRetrievalError`: whoever gives the credentials did not, this time.
_TRANSPORT_ERRORS: Final = (
    exceptions.HTTPClientError,
    exceptions.ConnectionError,
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
    exceptions.TokenRetrievalError,
    OSError,
    ValueError,
    RuntimeError,
)


def _answered(error: exceptions.ClientError, doing: str) -> SecretFailed:
    code = code_of(error)
    if code in _UNKNOWN_CALLER:
        return SecretFailed(
            f"{doing} failed: AWS does not know these credentials ({code})",
            "check where AWS's default chain finds them: environment, profile, task role",
        )
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    is_passing = code in _PASSING_CODES or status >= _SERVER_ERROR
    return SecretFailed(
        f"{doing} failed: {code} {message_of(error)}".rstrip(),
        "it is tried again" if is_passing else "what AWS says has to change first",
        is_passing=is_passing,
    )


def _details(error: exceptions.ClientError) -> dict[str, Any]:
    return dict(error.response.get("Error", {}))
