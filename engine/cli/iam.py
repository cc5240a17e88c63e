"""`tailrace iam`: the policies that the bucket's side and the task's side have to grant."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cyclopts import Parameter

from engine.aws.secret_rights import LoginRights
from engine.cli.options import ConfigFile, same_file
from engine.cli.output import complain, say_as_is, say_next
from engine.config import DestinationConfiguration, load_destination, load_login
from engine.config.secret_reference import Login
from engine.destinations.s3_policies import Document, Kind, Statement, Wanted, Who, documents
from engine.destinations.s3_rights import Place, partition_of, role_of_session
from engine.destinations.s3_templates import template_of
from engine.model.errors import TailraceError

EXIT_USAGE = 2

_PRINCIPAL: Final = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:(root|(role|user)/\S+)")
_KEY: Final = re.compile(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[A-Za-z0-9-]+")

_WAYS: Final[Mapping[Kind, str]] = {
    "task-role": "aws iam put-role-policy --role-name ROLE --policy-name tailrace"
    "\n    --policy-document file://FILE",
    "bucket-role": "aws iam put-role-policy --role-name ROLE --policy-name tailrace"
    "\n    --policy-document file://FILE",
    "trust": "aws iam update-assume-role-policy --role-name ROLE"
    "\n    --policy-document file://FILE",
    "bucket": "aws s3api put-bucket-policy --bucket {bucket} --policy file://FILE"
    "\nIt replaces the policy that the bucket has: add the statements of that one.",
    "key": "aws kms put-key-policy --policy-name default --policy file://FILE"
    "\n    --key-id {key}"
    "\nIt replaces the key's policy: add this statement to those that the key has.",
}
_TEMPLATE: Final = '{\n  "AWSTemplateFormatVersion"'
_TEMPLATE_WAY: Final = (
    "aws cloudformation deploy --template-file FILE --stack-name STACK"
    "\n    --capabilities CAPABILITY_NAMED_IAM"
)
_FROM: Final[Mapping[str, str]] = {
    "bucket-role": "it needs destination.role_arn",
    "trust": "it needs destination.role_arn",
    "bucket": "it needs --account-role-arn (without destination.role_arn), --deny-insecure or"
    " --enforce-create-only",
    "key": "it needs --kms or destination.kms_key_id, and a role to name",
}

Principal = Annotated[
    str | None,
    Parameter(
        name="--account-role-arn",
        metavar="ARN",
        help="The task role's ARN. For a bucket in another account: prints that bucket's policy, "
        "which names it.",
    ),
]
DenyInsecure = Annotated[
    bool,
    Parameter(
        name="--deny-insecure",
        negative="",
        show_default=False,
        help="Add to the bucket's policy: no request without TLS.",
    ),
]
CreateOnly = Annotated[
    bool,
    Parameter(
        name="--enforce-create-only",
        negative="",
        show_default=False,
        help="Add to the bucket's policy: nobody overwrites an object under the prefix.",
    ),
]
KeyArn = Annotated[
    str | None,
    Parameter(
        name="--kms",
        metavar="ARN",
        help="The ARN of the KMS key, where the bucket encrypts with one by default, or where "
        "destination.kms_key_id is no ARN.",
    ),
]
SecretKeyArn = Annotated[
    str | None,
    Parameter(
        name="--secret-kms",
        metavar="ARN",
        help="The ARN of the KMS key that encrypts the database's secrets, where it is not AWS's "
        "own.",
    ),
]
For = Annotated[
    Literal["engine", "reader", "operator"],
    Parameter(
        name="--for",
        help="Who is granted: the engine; who runs verify, read, tail, status or views; who runs "
        "resync, pause or resume as well.",
    ),
]
Format = Annotated[
    Literal["json", "cloudformation"],
    Parameter(help="Policies as AWS takes them, or templates that attach them."),
]
Only = Annotated[
    Literal["task-role", "bucket-role", "trust", "bucket", "key"] | None,
    Parameter(name="--document", help="Print this one alone, without a heading, as for a file."),
]


class _OptionRefused(TailraceError):
    """An option that cannot be taken as it stands."""

    exit_code = EXIT_USAGE


def iam(
    *,
    config: ConfigFile = None,
    account_role_arn: Principal = None,
    deny_insecure: DenyInsecure = False,
    enforce_create_only: CreateOnly = False,
    kms: KeyArn = None,
    secret_kms: SecretKeyArn = None,
    for_: For = "engine",
    format_: Annotated[Format, Parameter(name="--format")] = "json",
    document: Only = None,
) -> int:
    """Print the least policies: the task role's and, across accounts, the bucket's.

    Needs only [destination] of the configuration, and connects to nothing. Where [source] says that
    AWS keeps its secrets or signs its login, the task role gets these rights too. DeleteObject is
    in none of them. What each right is for: docs/permissions.md.
    """
    destination = load_destination(config, os.environ)
    wanted = _wanted(
        destination,
        principal=_principal(account_role_arn or ""),
        key_arn=_key_arn(destination, kms or ""),
        who=for_,
        denies_insecure=deny_insecure,
        enforces_create_only=enforce_create_only,
    )
    if for_ == "engine":
        login = load_login(config, os.environ)
        wanted = replace(
            wanted, beside=_beside(login, wanted, _secret_key(login, secret_kms or ""))
        )
    found = documents(wanted)
    texts = {each.kind: _text(each, wanted, found, format_) for each in found}
    texts = {kind: text for kind, text in texts.items() if text}
    if document is None:
        _say_all(found, texts, wanted)
        say_next(_next_step(config))
    elif document in texts:
        say_as_is(texts[document])
    else:
        complain(f'there is no document "{document}"', _absent_hint(document, texts))
        return EXIT_USAGE
    return 0


def _wanted(
    destination: DestinationConfiguration,
    *,
    principal: str,
    key_arn: str,
    who: Who,
    denies_insecure: bool,
    enforces_create_only: bool,
) -> Wanted:
    return Wanted(
        place=Place(
            destination.bucket,
            destination.prefix,
            _region(destination.region, destination.role_arn or principal),
        ),
        who=who,
        has_acl=destination.acl is not None,
        has_tags=bool(destination.tags),
        key_arn=key_arn,
        role_arn=destination.role_arn or "",
        has_external_id=destination.external_id is not None,
        principal=principal,
        denies_insecure=denies_insecure,
        enforces_create_only=enforces_create_only,
    )


def _secret_key(login: Login, arn: str) -> str:
    """The key of the database's secrets. Raises _OptionRefused."""
    if arn and not _KEY.fullmatch(arn):
        raise _OptionRefused(
            f"--secret-kms {arn} is not a key's ARN, and a policy names nothing else",
            hint=f"`aws kms describe-key --key-id {arn}` says it",
        )
    if arn and not login.references:
        raise _OptionRefused(
            "--secret-kms is given, and source.dsn and source.password name no secret of AWS's",
            hint="drop it, or write where the secret is kept: docs/security.md",
        )
    return arn


def _beside(login: Login, wanted: Wanted, key_arn: str) -> tuple[Statement, ...]:
    """What the task role may do beside the bucket."""
    if not login.references and not login.has_token:
        return ()
    user, region = "", ""
    if login.has_token:
        # What reads a connection string is a tenth of a second, which few need.
        from engine.kinds import login_of  # noqa: PLC0415 - as above

        user, region = login_of(login.dsn.reveal()) if login.dsn is not None else ("*", "")
    return LoginRights(
        references=login.references,
        key_arn=key_arn,
        user=user,
        host_region=region,
        partition=wanted.place.partition,
        account=wanted.principal.split(":")[4] if wanted.principal else "",
    ).statements


def _region(region: str | None, arn: str) -> str:
    """The region, or one of the same partition: an ARN tells that as well."""
    if region is not None or not arn:
        return region or ""
    partition = arn.split(":")[1]
    regions = ("cn-north-1", "us-gov-west-1")
    return next((each for each in regions if partition_of(each) == partition), "")


def _principal(arn: str) -> str:
    """The ARN as a policy may name it. Raises _OptionRefused."""
    role = role_of_session(arn)
    if role:
        name = role.rpartition("/")[2]
        raise _OptionRefused(
            f"--account-role-arn {arn} is a session of a role, which ends",
            hint=f"name the role: {role}, with its path before"
            f" the name if it has one (`aws iam get-role --role-name {name}` says it)",
        )
    if arn and not _PRINCIPAL.fullmatch(arn):
        raise _OptionRefused(
            f"--account-role-arn {arn} is not a role's ARN",
            hint="write it as arn:aws:iam::123456789012:role/name; `tailrace check`, run as that"
            " role, says it",
        )
    return arn


def _key_arn(destination: DestinationConfiguration, option: str) -> str:
    """The key that objects are encrypted with; empty without one. Raises _OptionRefused."""
    name = option or destination.kms_key_id or ""
    if name and not _KEY.fullmatch(name):
        where = "--kms" if option else "destination.kms_key_id"
        raise _OptionRefused(
            f"{where} {name} is not a key's ARN, and a policy names nothing else",
            hint="give it by --kms arn:aws:kms:REGION:ACCOUNT:key/ID; "
            f"`aws kms describe-key --key-id {name}` says it",
        )
    return name


def _text(document: Document, wanted: Wanted, found: tuple[Document, ...], form: Format) -> str:
    """A document as it is printed; empty where another one's template attaches it."""
    if form == "json" or document.kind == "key":
        return _pretty(document.policy)
    template = template_of(document, wanted, found)
    return _pretty(template) if template else ""


def _pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _say_all(found: tuple[Document, ...], texts: dict[Kind, str], wanted: Wanted) -> None:
    """Each document under what it is and how it is attached."""
    shown = [each for each in found if each.kind in texts]
    for number, each in enumerate(shown):
        way = _TEMPLATE_WAY if texts[each.kind].startswith(_TEMPLATE) else _WAYS[each.kind]
        way = way.format(bucket=wanted.place.bucket, key=wanted.key_arn)
        lines = [f"# {line}" for line in (f"{each.kind}: {each.title}\n{way}").splitlines()]
        say_as_is("\n" * bool(number) + "\n".join((*lines, texts[each.kind])))


def _next_step(config: Path | None) -> str:
    return (
        "attach each as its heading says (`--document NAME` prints one alone), then "
        f"`tailrace check{same_file(config)}`"
    )


def _absent_hint(document: str, texts: dict[Kind, str]) -> str:
    reason = _FROM.get(document, "")
    there = f"there is {', '.join(texts)}"
    return f"{reason}; {there}" if reason else there
