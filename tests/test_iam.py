"""`tailrace iam`: the documents that it prints, judged as AWS judges requests."""

import json
import re
from pathlib import Path
from typing import Any

import cfnlint.api  # type: ignore[import-untyped]
import pytest

from engine.cli.application import main
from policies import Asked, Caller, Policy, actions_of, refused

ROLE = "arn:aws:iam::111122223333:role/ecs/tailrace-task"
THERE = "arn:aws:iam::444455556666:role/lake/writer"
KEY = "arn:aws:kms:eu-west-1:444455556666:key/12ab-34cd"
BUCKET = "arn:aws:s3:::lake"
SECRET = "external-canary-7"

ON_BUCKET = [
    "s3:GetBucketLocation",
    "s3:ListBucketMultipartUploads",
    "s3:GetLifecycleConfiguration",
    "s3:GetBucketObjectLockConfiguration",
]
ON_OBJECTS = [
    "s3:PutObject",
    "s3:GetObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
]
CREATION = {"s3:objectcreationoperation": "true", "aws:securetransport": "true"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Nothing but a destination: neither a source nor credentials are needed."""
    path = tmp_path / "tailrace.toml"
    path.write_text('[destination]\nbucket = "lake"\nprefix = "team/shop"\nregion = "eu-west-1"\n')
    return path


def add(file: Path, *lines: str) -> None:
    file.write_text("\n".join((file.read_text(), *lines)))


class Printed:
    """What one call printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], file: Path, *options: str) -> None:
        self.code = main(["iam", "-c", str(file), *options])
        captured = capsys.readouterr()
        self.text, self.errors = captured.out, captured.err

    @property
    def json(self) -> Any:
        assert self.code == 0, self.errors
        return json.loads(self.text)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], file: Path) -> Any:
    return lambda *options: Printed(capsys, file, *options)


def may(action: str, resource: str, policy: Policy, **context: str) -> bool:
    asked = Asked(
        action, resource, {name.replace("__", ":"): text for name, text in context.items()}
    )
    return not refused(asked, Caller(ROLE, (policy,)))


def test_the_task_role_may_do_what_the_engine_does_under_its_prefix_and_nothing_else(
    printed: Any,
) -> None:
    policy = printed("--document", "task-role").json

    assert sorted(actions_of(policy)) == sorted([*ON_BUCKET, *ON_OBJECTS, "s3:ListBucket"])
    for action in ON_BUCKET:
        assert may(action, BUCKET, policy)
    for action in ON_OBJECTS:
        assert may(action, f"{BUCKET}/team/shop/_tailrace/journal/000000000000.json", policy)
        assert not may(action, f"{BUCKET}/team/shop2/key", policy)
        assert not may(action, f"{BUCKET}/team/key", policy)
    assert not may("s3:DeleteObject", f"{BUCKET}/team/shop/key", policy)


def test_only_the_prefix_may_be_listed(printed: Any) -> None:
    policy = printed("--document", "task-role").json

    for prefix in ("team/shop/", "team/shop/_tailrace/journal/", "team/shop/database="):
        assert may("s3:ListBucket", BUCKET, policy, s3__prefix=prefix)
    for prefix in ("", "team/", "team/shop", "team/shop2/"):
        assert not may("s3:ListBucket", BUCKET, policy, s3__prefix=prefix)
    assert not may("s3:ListBucket", BUCKET, policy)


def test_a_star_in_the_prefix_is_a_star_and_no_pattern(printed: Any, file: Path) -> None:
    file.write_text('[destination]\nbucket = "lake"\nprefix = "team*"\n')

    policy = printed("--document", "task-role").json

    assert may("s3:GetObject", f"{BUCKET}/team*/key", policy)
    assert not may("s3:GetObject", f"{BUCKET}/teams/key", policy)
    assert may("s3:ListBucket", BUCKET, policy, s3__prefix="team*/")
    assert not may("s3:ListBucket", BUCKET, policy, s3__prefix="teams/")


@pytest.mark.parametrize(
    ("line", "action", "resource"),
    [
        ('acl = "bucket-owner-full-control"', "s3:PutObjectAcl", f"{BUCKET}/team/shop/*"),
        ('tags = { team = "data" }', "s3:PutObjectTagging", f"{BUCKET}/team/shop/*"),
        (f'sse = "kms"\nkms_key_id = "{KEY}"', "kms:GenerateDataKey", KEY),
    ],
)
def test_a_right_is_there_only_where_it_is_configured(
    printed: Any, file: Path, line: str, action: str, resource: str
) -> None:
    before = actions_of(printed("--document", "task-role").json)
    add(file, line)

    policy = printed("--document", "task-role").json

    assert action not in before
    (statement,) = (each for each in policy["Statement"] if action in each["Action"])
    assert statement["Resource"] == resource


def test_a_key_may_be_used_by_way_of_s3_alone(printed: Any) -> None:
    policy = printed("--kms", KEY, "--document", "task-role").json

    for action in ("kms:GenerateDataKey", "kms:Decrypt"):
        assert may(action, KEY, policy, kms__viaservice="s3.eu-west-1.amazonaws.com")
        assert not may(action, KEY, policy)


def test_across_accounts_both_sides_grant_the_same(printed: Any) -> None:
    options = ("--account-role-arn", ROLE, "--kms", KEY)
    own = printed(*options, "--document", "task-role").json
    theirs = printed(*options, "--document", "bucket").json
    of_key = printed(*options, "--document", "key").json

    assert set(actions_of(own)) == set(actions_of(theirs)) | set(actions_of(of_key))
    for statement in (*theirs["Statement"], *of_key["Statement"]):
        assert statement["Principal"] == {"AWS": ROLE}
    caller = Caller(ROLE, (own,), is_owner_account=False)
    asked = Asked("s3:PutObject", f"{BUCKET}/team/shop/key", CREATION)
    assert not refused(asked, caller, theirs)
    assert "resource-based" in refused(asked, caller)
    stranger = Caller(ROLE.replace("tailrace", "other"), (own,), is_owner_account=False)
    assert "resource-based" in refused(asked, stranger, theirs)


def test_without_tls_everything_is_denied_where_that_is_asked_for(printed: Any) -> None:
    own = printed("--document", "task-role").json
    bucket = printed("--deny-insecure", "--document", "bucket").json
    asked = Asked("s3:GetObject", f"{BUCKET}/team/shop/key", {"aws:securetransport": "false"})

    assert not refused(asked, Caller(ROLE, (own,)))
    assert "explicit deny in a resource-based" in refused(asked, Caller(ROLE, (own,)), bucket)
    secure = Asked("s3:GetObject", f"{BUCKET}/team/shop/key", {"aws:securetransport": "true"})
    assert not refused(secure, Caller(ROLE, (own,)), bucket)


def test_overwriting_is_denied_where_that_is_asked_for_and_parts_pass(printed: Any) -> None:
    own = printed("--document", "task-role").json
    bucket = printed("--enforce-create-only", "--document", "bucket").json
    admin: Policy = {"Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    mine, theirs = f"{BUCKET}/team/shop/key", f"{BUCKET}/team/other/key"

    def put(resource: str, policy: Policy, **context: str) -> str:
        named = {name.replace("__", ":"): text for name, text in context.items()}
        return refused(Asked("s3:PutObject", resource, named), Caller(ROLE, (policy,)), bucket)

    creation = {"s3__objectcreationoperation": "true"}
    assert not put(mine, own, **creation, **{"s3:if-none-match": "*"})
    assert not put(mine, own, s3__objectcreationoperation="false"), "a part"
    assert "explicit deny" in put(mine, admin, **creation)
    assert not put(theirs, admin, **creation), "another prefix"


def test_a_role_that_is_assumed_has_the_rights_and_trusts_the_task_role(
    printed: Any, file: Path
) -> None:
    add(file, f'role_arn = "{THERE}"', f'external_id = "{SECRET}"')
    options = ("--account-role-arn", ROLE)

    task = printed(*options, "--document", "task-role").json
    role = printed(*options, "--document", "bucket-role").json
    trust = printed(*options, "--document", "trust").json

    assert [(each["Action"], each["Resource"]) for each in task["Statement"]] == [
        (["sts:AssumeRole"], THERE)
    ]
    assert "s3:PutObject" in actions_of(role)
    (trusted,) = trust["Statement"]
    assert (trusted["Principal"], trusted["Action"]) == ({"AWS": ROLE}, "sts:AssumeRole")
    assert trusted["Condition"]["StringEquals"].keys() == {"sts:ExternalId"}
    assert printed(*options, "--document", "bucket").code == 2, "the role is in its account"


def test_the_external_id_is_not_printed(printed: Any, file: Path) -> None:
    add(file, f'role_arn = "{THERE}"', f'external_id = "{SECRET}"')

    texts = [printed().text, printed("--format", "cloudformation").text]

    assert all("ExternalId" in text and SECRET not in text for text in texts)


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        ("reader", ["s3:ListBucket", "s3:GetObject", "kms:Decrypt"]),
        (
            "operator",
            ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "kms:GenerateDataKey", "kms:Decrypt"],
        ),
    ],
)
def test_those_who_read_and_those_who_ask_get_less(
    printed: Any, who: str, expected: list[str]
) -> None:
    policy = printed("--for", who, "--kms", KEY, "--document", "task-role").json

    assert actions_of(policy) == expected
    assert not may("s3:PutObject", f"{BUCKET}/team/shop/_tailrace/journal/1.json", policy)
    request = f"{BUCKET}/team/shop/_tailrace/requests/1.json"
    assert may("s3:PutObject", request, policy) == (who == "operator")


def test_other_partitions_have_their_own_arns(printed: Any, file: Path) -> None:
    file.write_text('[destination]\nbucket = "lake"\nprefix = "p"\nregion = "cn-north-1"\n')
    key = "arn:aws-cn:kms:cn-north-1:444455556666:key/1"

    text = printed("--kms", key).text

    assert "arn:aws-cn:s3:::lake/p/*" in text
    assert "s3.cn-north-1.amazonaws.com.cn" in text
    file.write_text('[destination]\nbucket = "lake"\nprefix = "p"\n')
    gov = printed("--account-role-arn", ROLE.replace("arn:aws:", "arn:aws-us-gov:")).text
    assert "arn:aws-us-gov:s3:::lake/p/*" in gov


def test_all_documents_stand_under_headings_that_say_where_each_goes(
    printed: Any, file: Path
) -> None:
    text = printed("--account-role-arn", ROLE, "--enforce-create-only", "--kms", KEY).text

    headings = [line for line in text.splitlines() if line.startswith("# ")]
    kinds = [line.split()[1] for line in headings if line.split()[1].endswith(":")]
    assert kinds == ["task-role:", "bucket:", "key:"]
    assert max(map(len, headings)) <= 80
    assert "aws s3api put-bucket-policy --bucket lake" in text
    assert text.endswith(f"then `tailrace check -c {file}`\n")


@pytest.mark.parametrize(
    ("options", "text", "hint"),
    [
        (
            ("--account-role-arn", "arn:aws:sts::111122223333:assumed-role/task/3f"),
            "session of a role",
            "arn:aws:iam::111122223333:role/task",
        ),
        (("--account-role-arn", "tailrace-task"), "not a role's ARN", "arn:aws:iam::"),
        (("--kms", "alias/lake"), "not a key's ARN", "describe-key --key-id alias/lake"),
        (("--document", "bucket"), 'no document "bucket"', "--account-role-arn"),
        (("--document", "trust"), 'no document "trust"', "destination.role_arn"),
    ],
)
def test_what_cannot_be_printed_says_what_would_be(
    printed: Any, options: tuple[str, ...], text: str, hint: str
) -> None:
    result = printed(*options)

    assert (result.code, result.text) == (2, "")
    assert text in result.errors
    assert hint in result.errors.split("hint: ")[1]


def test_a_configured_key_that_is_no_arn_asks_for_one(printed: Any, file: Path) -> None:
    add(file, 'sse = "kms"', 'kms_key_id = "alias/lake"')

    assert "destination.kms_key_id alias/lake" in printed().errors
    assert printed("--kms", KEY).code == 0


def shown_in_docs() -> list[tuple[str, str, Any]]:
    """Each policy of the page: whether a role is assumed, the options, and what is shown."""
    page = (Path(__file__).parent.parent / "docs" / "permissions.md").read_text()
    found = re.findall(r"<!-- iam( role)?: (.+?) -->\n```json\n(.*?)```", page, re.DOTALL)
    return [(role, options, json.loads(text)) for role, options, text in found]


@pytest.mark.parametrize(("role", "options", "shown"), shown_in_docs())
def test_the_page_shows_what_is_printed(
    printed: Any, file: Path, role: str, options: str, shown: Any
) -> None:
    file.write_text(file.read_text().replace('"lake"', '"my-lake"'))
    if role:
        add(file, f'role_arn = "{THERE}"', f'external_id = "{SECRET}"')

    assert printed(*options.split()).json == shown


def test_the_page_shows_every_kind_of_bucket_policy() -> None:
    assert len(shown_in_docs()) == 4


def test_templates_are_ones_that_cloudformation_takes(printed: Any, file: Path) -> None:
    shared = ("--format", "cloudformation", "--account-role-arn", ROLE)
    found = [
        printed(*shared, "--document", "task-role").json,
        printed(*shared, "--document", "bucket", "--deny-insecure", "--enforce-create-only").json,
    ]
    add(file, f'role_arn = "{THERE}"', f'external_id = "{SECRET}"')
    found.append(printed(*shared, "--document", "bucket-role").json)

    problems = [cfnlint.api.lint(json.dumps(template)) for template in found]

    assert problems == [[], [], []]
    (role,) = found[2]["Resources"].values()
    assert (role["Properties"]["Path"], role["Properties"]["RoleName"]) == ("/lake/", "writer")
    assert found[2]["Parameters"]["TaskRoleArn"]["Default"] == ROLE
    (trusted,) = role["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert trusted["Principal"]["AWS"] == {"Ref": "TaskRoleArn"}
    assert trusted["Condition"]["StringEquals"]["sts:ExternalId"] == {"Ref": "ExternalId"}


# --- the database's secrets and its login

SECRET_ARN = "arn:aws:secretsmanager:eu-central-1:111122223333:secret:tailrace/shop-AbCdEf"
SECRETS_KEY = "arn:aws:kms:eu-central-1:111122223333:key/56ef-78ab"
RDS = "host=shop.abc123.eu-central-1.rds.amazonaws.com dbname=shop user=tailrace sslmode=require"


def with_source(file: Path, *lines: str) -> None:
    add(file, "[source]", *lines)


def test_the_task_role_may_read_the_secrets_that_are_named_and_no_other(
    printed: Any, file: Path
) -> None:
    with_source(file, f'dsn = "secretsmanager:{SECRET_ARN}#dsn"', 'password = "ssm:/shop/pass:3"')

    policy = printed("--account-role-arn", ROLE, "--document", "task-role").json

    def parameter(name: str, account: str = "111122223333") -> str:
        return f"arn:aws:ssm:eu-west-1:{account}:parameter/{name}"

    assert may("secretsmanager:GetSecretValue", SECRET_ARN, policy)
    assert may("ssm:GetParameter", parameter("shop/pass"), policy)
    assert not may("ssm:GetParameter", parameter("shop/other"), policy)
    assert not may("ssm:GetParameter", parameter("shop/pass", "999988887777"), policy)
    assert not may("secretsmanager:GetSecretValue", SECRET_ARN.replace("AbCdEf", "AbCdEg"), policy)
    assert not may("secretsmanager:PutSecretValue", SECRET_ARN, policy)
    assert "kms:Decrypt" not in actions_of(policy)


@pytest.mark.parametrize("name", ["rds!db-1", "tailrace/shop"])
def test_a_secret_that_is_named_only_may_be_read_in_any_region(
    printed: Any, file: Path, name: str
) -> None:
    with_source(file, f'dsn = "host=db"\npassword = "secretsmanager:{name}#password"')

    policy = printed("--document", "task-role").json

    place = "arn:aws:secretsmanager:eu-west-3:111122223333:secret"
    assert may("secretsmanager:GetSecretValue", f"{place}:{name}-AbCdEf", policy)
    assert not may("secretsmanager:GetSecretValue", f"{place}:{name}-other-AbCdEf", policy)


def test_an_arn_without_the_six_characters_is_completed(printed: Any, file: Path) -> None:
    bare = SECRET_ARN.removesuffix("-AbCdEf")
    with_source(file, f'dsn = "secretsmanager:{bare}"')

    policy = printed("--document", "task-role").json

    assert may("secretsmanager:GetSecretValue", SECRET_ARN, policy)


def test_the_secrets_key_may_decrypt_by_way_of_who_keeps_them_alone(
    printed: Any, file: Path
) -> None:
    with_source(file, f'dsn = "secretsmanager:{SECRET_ARN}"')

    policy = printed("--document", "task-role", "--secret-kms", SECRETS_KEY).json

    def decrypts(service: str) -> bool:
        return may("kms:Decrypt", SECRETS_KEY, policy, kms__viaservice=service)

    assert decrypts("secretsmanager.eu-central-1.amazonaws.com")
    assert not decrypts("s3.eu-central-1.amazonaws.com")
    assert not may("kms:GenerateDataKey", SECRETS_KEY, policy)


@pytest.mark.parametrize(
    ("dsn", "region", "user"),
    [
        (RDS, "eu-central-1", "tailrace"),
        ("secretsmanager:shop#dsn", "*", "*"),
        ("host=db", "*", "*"),
    ],
)
def test_a_login_by_iam_may_connect_as_its_role(
    printed: Any, file: Path, dsn: str, region: str, user: str
) -> None:
    with_source(file, f'dsn = "{dsn}"', "iam_auth = true")

    policy = printed("--account-role-arn", ROLE, "--document", "task-role").json

    (login,) = [each for each in policy["Statement"] if each["Sid"] == "TailraceLogin"]
    assert login["Resource"] == [f"arn:aws:rds-db:{region}:111122223333:dbuser:*/{user}"]
    place = "arn:aws:rds-db:eu-central-1:111122223333:dbuser:db-ABC"
    assert may("rds-db:connect", f"{place}/tailrace", policy)
    assert may("rds-db:connect", f"{place}/postgres", policy) == (user == "*")


def test_only_the_engines_own_role_reads_secrets(printed: Any, file: Path) -> None:
    add(file, f'role_arn = "{THERE}"')
    with_source(file, f'dsn = "secretsmanager:{SECRET_ARN}"', "iam_auth = true")
    shared = ("--account-role-arn", ROLE)

    task = printed(*shared, "--document", "task-role").json
    bucket = printed(*shared, "--document", "bucket-role").json
    reader = printed(*shared, "--for", "reader", "--document", "task-role").json

    assert {"sts:AssumeRole", "secretsmanager:GetSecretValue", "rds-db:connect"} == {
        *actions_of(task)
    }
    assert all(action.startswith("s3:") for action in actions_of(bucket))
    assert {*actions_of(reader)} == {"sts:AssumeRole"}


@pytest.mark.parametrize(
    "lines",
    [
        ('dsn = "${ABSENT_HERE}"',),
        ('type = "other"',),
        ('dsn = "jdbc:x"', "iam_auth = 3"),
        ('dsn_file = "absent"',),
        ("nonsense = 1",),
    ],
)
def test_a_source_that_is_wrong_keeps_no_policy_from_being_printed(
    printed: Any, file: Path, lines: tuple[str, ...]
) -> None:
    before = printed("--document", "task-role").json
    with_source(file, *lines)

    assert printed("--document", "task-role").json == before


@pytest.mark.parametrize(
    ("option", "words"),
    [("alias/secrets", "is not a key's ARN"), (SECRETS_KEY, "name no secret of AWS's")],
)
def test_a_key_of_secrets_that_cannot_be_meant_is_refused(
    printed: Any, option: str, words: str
) -> None:
    result = printed("--secret-kms", option)

    assert (result.code, result.text) == (2, "")
    assert words in result.errors


def test_a_template_has_the_secrets_rights_too(printed: Any, file: Path) -> None:
    with_source(file, f'dsn = "secretsmanager:{SECRET_ARN}"', 'password = "ssm:pass"')
    add(file, "iam_auth = false")
    options = ("--document", "task-role", "--secret-kms", SECRETS_KEY)

    template = printed("--format", "cloudformation", *options).json

    (policy,) = template["Resources"].values()
    assert policy["Properties"]["PolicyDocument"] == printed(*options).json
    assert cfnlint.api.lint(json.dumps(template)) == []
