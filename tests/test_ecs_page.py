"""docs/ecs.md: what it tells somebody to run can be run, as far as that goes without AWS.

AWS's commands are held against the models of AWS's interfaces: service, operation, every option.
The templates' parameters are held against the templates. SQL runs in a real database.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from botocore import xform_name
from botocore.loaders import UnknownServiceError
from botocore.session import Session

from databases import Database
from engine.cli import application
from engine.model import check_code
from engine.operate.logs import FIELDS
from engine.sources.postgres import check_codes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "ecs.md").read_text()

# Options of the CLI itself, and commands that it has beside the interfaces'.
GLOBAL = {"query", "output"}
OWN = {
    ("cloudformation", "deploy"): {
        "stack-name",
        "template-file",
        "capabilities",
        "parameter-overrides",
    },
    ("logs", "tail"): {"follow", "format"},
    ("ecr", "get-login-password"): set[str](),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Every command of that program, in words."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    found = (shlex.split(line.split(" | ")[0]) for line in lines if line.startswith(program))
    return [words for words in found if words[0] == program]


def options(words: list[str]) -> Iterator[str]:
    return (word.removeprefix("--") for word in words if word.startswith("--"))


def unknown(words: list[str], session: Session) -> list[str]:
    """What AWS's CLI would not take of a command."""
    _, service, operation, *rest = words
    if (service, operation) in OWN:
        return sorted(set(options(rest)) - OWN[service, operation] - GLOBAL)
    try:
        model = session.get_service_model("s3" if service == "s3api" else service)
    except UnknownServiceError:
        return [service]
    operations = {xform_name(name, "-"): name for name in model.operation_names}
    if operation not in operations:
        return [operation]
    shape = model.operation_model(operations[operation]).input_shape
    known = {xform_name(name, "-") for name in (shape.members if shape else {})}
    return sorted(set(options(rest)) - known - GLOBAL - SHORT.get((service, operation), set()))


# The CLI's short forms of nested parameters.
SHORT = {("ec2", "authorize-security-group-ingress"): {"protocol", "port", "source-group"}}


def test_every_command_of_aws_is_one_with_options_that_it_has() -> None:
    session = Session()
    found = commands("aws")

    assert len(found) > 12
    assert [(words, unknown(words, session)) for words in found if unknown(words, session)] == []


@pytest.mark.parametrize(
    "words",
    [
        ["aws", "ecs", "run-tasks"],
        ["aws", "ecs", "run-task", "--clusters", "x"],
        ["aws", "logs", "tail", "--since-ever"],
        ["aws", "esc", "run-task"],
    ],
)
def test_a_command_that_aws_does_not_have_is_found(words: list[str]) -> None:
    assert unknown(words, Session())


def template(words: list[str]) -> tuple[str, dict[str, Any]]:
    name = words[words.index("--template-file") + 1]
    text = re.sub(r"!(Sub|Ref|GetAtt|If|Not|Equals)\b", "", (ROOT / name).read_text())
    loaded: dict[str, Any] = yaml.safe_load(text)
    return name, loaded["Parameters"]


def test_every_parameter_is_the_templates_and_the_first_deployment_gives_all_it_needs() -> None:
    deployed: set[str] = set()
    for words in commands("aws"):
        if words[1:3] != ["cloudformation", "deploy"]:
            continue
        name, parameters = template(words)
        given = dict(
            word.split("=", 1)
            for word in words[words.index("--parameter-overrides") + 1 :]
            if not word.startswith("--")
        )
        needed = {key for key, value in parameters.items() if "Default" not in value}

        assert given.keys() <= parameters.keys(), name
        for key, value in given.items():
            assert re.fullmatch(parameters[key].get("AllowedPattern", ".*"), value), (key, value)
        if name not in deployed:
            assert needed <= given.keys(), name
        deployed.add(name)

    assert deployed == {"config/ecs/tailrace.yaml", "config/ecs/bucket.yaml"}


def test_every_command_of_tailrace_is_understood() -> None:
    found = commands("tailrace")

    assert len(found) == 4
    for words in found:
        application.make_application().parse_args(words[1:])


def test_what_check_and_the_log_say_is_what_they_have_words_for() -> None:
    shown = "\n".join(blocks("text"))
    lines = [json.loads(line) for line in shown.splitlines() if line.startswith('{"timestamp')]

    codes = set(re.findall(r"\bTR-[A-Z]{2}-\d{3}\b", shown))
    assert codes
    assert codes <= {code.id for code in (*check_code.CODES, *check_codes.CODES)}
    assert len(lines) == 6
    assert {name for line in lines for name in line} - {"timestamp", "level", "event"} <= FIELDS


def test_the_sql_runs(database: Database) -> None:
    (block,) = blocks("sql")
    database.execute("CREATE TABLE customers (id bigint PRIMARY KEY)")
    database.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    role = f"page_{database.name}"
    try:
        for statement in block.strip().split(";\n"):
            database.execute(re.sub(r"(ROLE|TO) tailrace", rf"\1 {role}", statement))
        published = database.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1")
    finally:
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role}".encode())
            connection.execute(f"DROP ROLE {role}".encode())

    assert published == [("customers",), ("orders",)]


def test_the_wider_policy_is_the_one_that_is_described() -> None:
    (policy,) = map(json.loads, blocks("json"))

    actions = [action for each in policy["Statement"] for action in each["Action"]]
    assert actions == [
        "s3:GetBucketLocation",
        "s3:ListBucket",
        "s3:PutObject",
        "s3:GetObject",
        "s3:DeleteObject",
    ]
