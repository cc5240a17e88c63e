"""Secrets that AWS keeps: how a reference is read, what AWS answers, and what nobody is shown.

moto keeps the secrets. What it does not refuse is refused by a proxy before it, in AWS's words.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.credentials import CredentialResolver, RefreshableCredentials

from aws_server import moto_server, owner_of
from engine.aws import client
from engine.aws.secrets import read_secret
from engine.config import ConfigurationProblems, Loaded, Secret, load
from engine.config.secret_reference import SecretFailed, SecretReference, reference_in
from engine.config.values import Unfit
from engine.model.errors import ConfigurationError
from engine.servers.fault_proxy import Answer, HttpFaultProxy, Reset
from engine.sources.postgres.login import described

REGION = "eu-west-1"
CANARY = "kanary-of-a-secret"

ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:tailrace/shop-AbCdEf"


# ------------------------------------------------------------------------- what a reference is


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("secretsmanager:shop", SecretReference("secretsmanager", "shop")),
        ("secretsmanager:t/shop#dsn", SecretReference("secretsmanager", "t/shop", "dsn")),
        (f"secretsmanager:{ARN}#a#b", SecretReference("secretsmanager", ARN, "a#b")),
        # RDS gives the secrets that it manages such names.
        (
            "secretsmanager:rds!db-1#password",
            SecretReference("secretsmanager", "rds!db-1", "password"),
        ),
        ("ssm:/tailrace/dsn", SecretReference("ssm", "/tailrace/dsn")),
        ("ssm:/tailrace/dsn:3", SecretReference("ssm", "/tailrace/dsn:3")),
        ("host=db dbname=shop", None),
        ("postgresql://u:ssm:x@db/shop", None),
        (7, None),
    ],
)
def test_a_reference_is_what_begins_as_one(text: object, reference: SecretReference | None) -> None:
    assert reference_in(text) == reference
    if reference is not None:
        assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("secretsmanager:", "names no secret"),
        ("ssm:a b", "names no secret"),
        ("ssm:name#", "ends in a #"),
        (ARN, "is an ARN alone"),
        (f"ssm:{ARN}", "is not one of ssm"),
        (f"secretsmanager:{ARN}:password::", "more behind the secret's name"),
        ("secretsmanager:arn:aws:secretsmanager:x", "is not one of secretsmanager"),
    ],
)
def test_a_wrong_reference_is_never_taken_for_the_secret(text: str, words: str) -> None:
    with pytest.raises(Unfit) as caught:
        reference_in(text)

    assert words in caught.value.text
    assert caught.value.hint


def test_the_region_is_the_arns() -> None:
    assert SecretReference("secretsmanager", ARN).region == "eu-central-1"
    assert SecretReference("ssm", "/tailrace/dsn").region == ""


# ----------------------------------------------------------------------------- configuration


def configured(tmp_path: Path, source: str, environment: dict[str, str] | None = None) -> Loaded:
    file = tmp_path / "tailrace.toml"
    file.write_text(f'[source]\n{source}\n[destination]\nbucket = "bucket"\nprefix = "p"\n')
    return load(file, environment or {})


def refusal(tmp_path: Path, source: str) -> str:
    with pytest.raises(ConfigurationProblems) as caught:
        configured(tmp_path, source)
    return str(caught.value)


def test_a_reference_may_come_from_a_variable_and_is_shown(tmp_path: Path) -> None:
    loaded = configured(
        tmp_path,
        'dsn = "${WHERE}"',
        {"WHERE": "ssm:/dsn", "TAILRACE_SOURCE__PASSWORD": "secretsmanager:shop#password"},
    )

    own = loaded.configuration.source.own
    assert own.dsn == SecretReference("ssm", "/dsn")
    assert own.password == SecretReference("secretsmanager", "shop", "password")
    shown = {setting.key: setting.shown for setting in loaded.settings}
    assert shown["source.password"] == '"secretsmanager:shop#password"'
    assert shown["source.dsn"] == "(not shown)"


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    loaded = configured(tmp_path, f'dsn = "host=db"\npassword = "{CANARY}"')

    assert loaded.configuration.source.own.password == Secret(CANARY)
    assert CANARY not in repr(loaded)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('dsn = "secretsmanager:"', "names no secret"),
        ('dsn = "host=db"\niam_auth = true\npassword = "x"', "is set beside a password"),
        ('dsn = "host=db"\nhash_key = "ssm:/hash/key/of/thirty-two/characters"', "is a reference"),
        ('dsn = "host=db"\npassword = "x"\npassword_file = "y"', "is given beside"),
        ('dsn_file = "kept"', "says where the secret is kept"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "kept").write_text("secretsmanager:shop")

    assert words in refusal(tmp_path, source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('dsn = "secretsmanager:shop#dsn"', "is kept in secretsmanager:shop#dsn"),
        (
            'dsn = "host=db dbname=shop"\npassword = "ssm:/p"',
            "leads to db:5432/shop, password kept in ssm:/p",
        ),
        (
            'dsn = "host=db dbname=shop sslmode=require"\niam_auth = true',
            "leads to db:5432/shop",
        ),
    ],
)
def test_what_is_known_offline_is_said_without_asking(
    tmp_path: Path, source: str, words: str
) -> None:
    assert words in described(configured(tmp_path, source).configuration.source.own)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('dsn = "host=db password=a"\npassword = "b"', "source.password gives another"),
        ('dsn = "host=db user=u password=a sslmode=require"\niam_auth = true', "holds a password"),
        ('dsn = "host=db user=u"\niam_auth = true', "has sslmode=prefer"),
        ('dsn = "host=db user=u sslmode=allow"\niam_auth = true', "has sslmode=allow"),
        ('dsn = "host=a,b user=u sslmode=require"\niam_auth = true', "needs one host"),
        ('dsn = "host=/run user=u sslmode=require"\niam_auth = true', "needs one host"),
    ],
)
def test_what_does_not_go_together_is_found_offline(
    tmp_path: Path, source: str, words: str
) -> None:
    own = configured(tmp_path, source).configuration.source.own

    with pytest.raises(ConfigurationError, match=words) as caught:
        described(own)

    assert caught.value.hint


def test_commands_that_run_offline_ask_nobody(tmp_path: Path) -> None:
    configured(tmp_path, 'dsn = "secretsmanager:shop"')
    nobody = "http://127.0.0.1:1"
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_ENDPOINT_URL": nobody,
        "PYTHONPROFILEIMPORTTIME": "1",
    }

    for command in (["check", "--offline"], ["config", "show"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "engine", *command, "-c", "tailrace.toml"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

        assert done.returncode == 0, done.stderr[-2000:]
        assert "botocore" not in done.stderr
        assert "secretsmanager:shop" in done.stdout


# -------------------------------------------------------------------------- what AWS answers


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture
def aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """moto, where AWS's default chain finds it, and no client of another test."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "kanary-of-the-key")
    answering_at(moto, monkeypatch)
    yield moto
    client.forget()


def answering_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client.forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SSM", url)


def referred(text: str) -> SecretReference:
    reference = reference_in(text)
    assert reference is not None
    return reference


async def failure_of(text: str) -> SecretFailed:
    with pytest.raises(SecretFailed) as caught:
        await read_secret(referred(text))
    assert CANARY not in f"{caught.value.text} {caught.value.hint}"
    assert caught.value.hint
    return caught.value


async def test_secrets_are_read_by_name_by_arn_and_by_key(aws: str) -> None:
    manager = owner_of("secretsmanager", aws, REGION)
    elsewhere = owner_of("secretsmanager", aws, "us-east-2")
    parameters = owner_of("ssm", aws, REGION)
    plain = manager.create_secret(Name="plain", SecretString="host=db")["ARN"]
    manager.create_secret(Name="rds", SecretString='{"username": "u", "password": "p@"}')
    far = elsewhere.create_secret(Name="far", SecretString="host=far")["ARN"]
    parameters.put_parameter(Name="/t/dsn", Value="host=ssm", Type="SecureString")

    found = [
        await read_secret(referred(text))
        for text in (
            "secretsmanager:plain",
            f"secretsmanager:{plain}",
            "secretsmanager:rds#password",
            f"secretsmanager:{far}",
            "ssm:/t/dsn",
        )
    ]

    assert found == ["host=db", "host=db", "p@", "host=far", "host=ssm"]


async def test_what_is_kept_otherwise_than_the_reference_says_is_told_without_values(
    aws: str,
) -> None:
    manager = owner_of("secretsmanager", aws, REGION)
    kept = {"username": CANARY, "port": 5432, "a": CANARY}
    manager.create_secret(Name="json", SecretString=json.dumps(kept))
    manager.create_secret(Name="text", SecretString=CANARY)
    manager.create_secret(Name="bytes", SecretBinary=CANARY.encode())

    no_key = await failure_of("secretsmanager:json#password")
    number = await failure_of("secretsmanager:json#port")
    no_json = await failure_of("secretsmanager:text#password")
    binary = await failure_of("secretsmanager:bytes")
    absent = await failure_of("secretsmanager:nowhere")
    no_parameter = await failure_of("ssm:/nowhere")

    assert no_key.hint == "its keys are a, port, username"
    assert "is no text" in number.text
    assert "is no JSON object" in no_json.text
    assert "holds bytes" in binary.text
    assert absent.text == f"there is no secretsmanager:nowhere in {REGION}"
    assert no_parameter.text == f"there is no ssm:/nowhere in {REGION}"
    each = (no_key, number, no_json, binary, absent, no_parameter)
    assert not any(failed.is_passing for failed in each)


def denied(code: str, message: str) -> Answer:
    body = json.dumps({"__type": code, "message": message}).encode()
    return Answer(400, body=body, headers=(("x-amzn-errortype", code),))


ROLE = "User: arn:aws:sts::123456789012:assumed-role/tailrace/task"


@pytest.mark.parametrize(
    "case",
    [
        (
            "secretsmanager:shop",
            "AccessDeniedException",
            f"{ROLE} is not authorized to perform: secretsmanager:GetSecretValue on resource: shop",
            "secretsmanager:GetSecretValue",
            f"arn:aws:secretsmanager:{REGION}:*:secret:shop-??????",
        ),
        (
            f"secretsmanager:{ARN}",
            "AccessDeniedException",
            "Access to KMS is not allowed",
            "kms:Decrypt",
            ARN,
        ),
        ("secretsmanager:shop", "DecryptionFailure", "no key", "kms:Decrypt", "secret:shop-??????"),
        (
            "ssm:/t/dsn",
            "AccessDeniedException",
            f"{ROLE} is not authorized to perform: ssm:GetParameter on resource: …",
            "ssm:GetParameter",
            f"arn:aws:ssm:{REGION}:*:parameter/t/dsn",
        ),
        (
            "ssm:/t/dsn",
            "AccessDeniedException",
            f"{ROLE} is not authorized to perform: kms:Decrypt on resource: …",
            "kms:Decrypt",
            f"arn:aws:ssm:{REGION}:*:parameter/t/dsn",
        ),
    ],
)
async def test_a_refusal_names_the_right_that_is_missing_and_the_arn(
    aws: str,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, str, str, str, str],
) -> None:
    text, code, message, right, arn = case
    async with HttpFaultProxy(int(aws.rpartition(":")[2])) as proxy:
        answering_at(proxy.endpoint_url, monkeypatch)
        proxy.inject(denied(code, message))

        failed = await failure_of(text)

    rights = {"secretsmanager:GetSecretValue", "ssm:GetParameter", "kms:Decrypt"}
    assert {each for each in rights if each in failed.hint} == {right}
    assert arn in failed.hint
    assert message.rstrip("…") in failed.text
    assert not failed.is_passing


@pytest.mark.parametrize(
    ("fault", "is_passing"),
    [
        (denied("ThrottlingException", "Rate exceeded"), True),
        (denied("ExpiredTokenException", "expired"), True),
        (Answer(500, body=b"{}"), True),
        (Reset(), True),
        (denied("UnrecognizedClientException", "The security token is invalid"), False),
        (denied("InvalidRequestException", "marked for deletion"), False),
    ],
)
async def test_what_passes_by_itself_is_told_from_what_somebody_has_to_change(
    aws: str, monkeypatch: pytest.MonkeyPatch, fault: Answer | Reset, *, is_passing: bool
) -> None:
    async with HttpFaultProxy(int(aws.rpartition(":")[2])) as proxy:
        answering_at(proxy.endpoint_url, monkeypatch)
        proxy.inject(fault)

        failed = await failure_of("secretsmanager:shop")

    assert len(proxy.requests) == 1
    assert failed.is_passing is is_passing


async def test_without_credentials_or_region_the_hint_says_where_they_come_from(
    aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    no_credentials = await failure_of("secretsmanager:shop")
    monkeypatch.delenv("AWS_REGION")
    no_region = await failure_of("secretsmanager:shop")

    assert "taskRoleArn" in no_credentials.hint
    assert "AWS_REGION" in no_region.hint


async def test_credentials_that_are_expired_when_they_are_new_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expired = {
        "access_key": "key",
        "secret_key": "kanary",
        "token": "token",
        "expiry_time": "2020-01-01T00:00:00Z",
    }
    lagging = RefreshableCredentials.create_from_metadata(expired, lambda: expired, "agent")
    monkeypatch.setattr(CredentialResolver, "load_credentials", lambda _: lagging)
    monkeypatch.setenv("AWS_REGION", REGION)
    client.forget()

    failed = await failure_of("ssm:/dsn")

    client.forget()
    assert failed.is_passing
    assert "RuntimeError" in failed.text
