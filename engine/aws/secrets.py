"""Secrets that AWS keeps: Secrets Manager's, and parameters of Systems Manager (SSM).

Strategy: read when they are needed, never kept. A refusal names the right that is missing and the
secret's ARN, because both have to be written into a policy.

Invariant: no message holds a part of a secret. Of a secret that is JSON, the names of its values
are told, never a value.
"""

import asyncio
from typing import Any, Final

import orjson
from botocore import exceptions

from engine.aws import client
from engine.config.secret_reference import SecretFailed, SecretReference
from engine.model.printable import printable

_ABSENT: Final = frozenset(
    {"ResourceNotFoundException", "ParameterNotFound", "ParameterVersionNotFound"}
)
_DENIED: Final = frozenset(
    {"AccessDenied", "AccessDeniedException", "DecryptionFailure", "InvalidKeyId"}
)
_RIGHTS: Final = {"secretsmanager": "secretsmanager:GetSecretValue", "ssm": "ssm:GetParameter"}

_NAMES_TOLD_MAX: Final = 20


async def read_secret(reference: SecretReference) -> str:
    """Implements `engine.config.secret_reference.ReadSecret`.

    Cancellation leaves a thread that ends by itself within seconds.
    """
    return await asyncio.to_thread(_read, reference)


def _read(reference: SecretReference) -> str:
    region = client.region_or_default(reference.region)
    try:
        text = _asked(reference, region)
    except client.ERRORS as error:
        client.forget()
        raise _failure(error, reference, region) from error
    return text if not reference.key else _value(text, reference)


def _asked(reference: SecretReference, region: str) -> str:
    service: Any = client.client(reference.keeper, region)
    if reference.keeper == "ssm":
        answer = service.get_parameter(Name=reference.name, WithDecryption=True)
        return str(answer["Parameter"]["Value"])
    answer = service.get_secret_value(SecretId=reference.name)
    if "SecretString" not in answer:
        raise SecretFailed(
            f"{reference} holds bytes, not text", "store the secret as text (SecretString)"
        )
    return str(answer["SecretString"])


def _value(text: str, reference: SecretReference) -> str:
    """The value that the reference's key names."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise SecretFailed(
            f"{reference} names a key, and what is kept there is no JSON object",
            f"drop #{printable(reference.key)}, or store an object",
        ) from None
    if reference.key not in document:
        names = ", ".join(sorted(printable(name) for name in document)[:_NAMES_TOLD_MAX])
        raise SecretFailed(
            f"what is kept in {reference} has no key of that name",
            f"its keys are {names}" if names else "it has no keys",
        )
    value = document[reference.key]
    if not isinstance(value, str):
        raise SecretFailed(f"{reference} names a value that is no text", "store it in quotes")
    return value


def _failure(error: Exception, reference: SecretReference, region: str) -> SecretFailed:
    code = client.code_of(error) if isinstance(error, exceptions.ClientError) else ""
    if code in _ABSENT:
        return SecretFailed(
            f"there is no {reference} in {region}",
            "check its name and the region; an ARN names both, and a secret of another account"
            " needs one",
        )
    if code in _DENIED and isinstance(error, exceptions.ClientError):
        return _denied(error, reference, region)
    return client.failure(error, f"reading {reference} in {region}")


def _denied(error: exceptions.ClientError, reference: SecretReference, region: str) -> SecretFailed:
    message = client.message_of(error)
    arn = _arn(reference, region)
    is_about_key = "kms" in message.lower() or client.code_of(error) in {
        "DecryptionFailure",
        "InvalidKeyId",
    }
    hint = (
        f"allow kms:Decrypt on the KMS key that encrypts {arn}, in the role's policy and the key's"
        if is_about_key
        else f"allow {_RIGHTS[reference.keeper]} on {arn} in the policy of the role that reads it;"
        " for another account's secret, in the secret's own policy too"
    )
    return SecretFailed(f"AWS refused to give {reference} in {region}: {message}", hint)


def _arn(reference: SecretReference, region: str) -> str:
    """What a policy names: the account is a * where only a name was given."""
    if reference.region:
        return reference.name
    if reference.keeper == "ssm":
        return f"arn:aws:ssm:{region}:*:parameter/{reference.name.lstrip('/')}"
    # Secrets Manager puts a hyphen and six characters of its own behind the name.
    return f"arn:aws:secretsmanager:{region}:*:secret:{reference.name}-??????"
