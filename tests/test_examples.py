"""config/examples: each one loads, a check accepts it offline, and what its comments say is so."""

import json
import tomllib
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest

from engine.cli.application import main
from engine.config import Configuration, load
from engine.config.json_schema import make_json_schema
from engine.config.secret_reference import SecretReference
from engine.kinds import record_configuration

EXAMPLES = Path(__file__).parents[1] / "config" / "examples"
ENVIRONMENT = {
    "DATABASE_URL": "postgresql://tailrace:kanary@db.internal/shop",
    "EXTERNAL_ID": "kanary-id",
}
NAMES = ("cross-account", "debezium", "kms", "many-tables", "minimal")


def loaded(name: str) -> Configuration:
    return load(EXAMPLES / f"{name}.toml", ENVIRONMENT).configuration


def test_every_example_is_listed_here() -> None:
    assert tuple(sorted(file.stem for file in EXAMPLES.iterdir())) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_example_passes_its_check_offline(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = EXAMPLES / f"{name}.toml"
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)

    assert main(["check", "--offline", "--json", "-c", str(file)]) == 0

    told = capsys.readouterr().out
    assert json.loads(told)["ok"] is True
    assert "kanary" not in told
    jsonschema.Draft202012Validator(make_json_schema()).validate(tomllib.loads(file.read_text()))


def test_the_role_that_an_example_names_in_a_comment_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXAMPLES / "cross-account.toml").read_text()
    file = tmp_path / "tailrace.toml"
    file.write_text(text.replace("# role_arn", "role_arn").replace("# external_id", "external_id"))
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)

    destination = load(file, ENVIRONMENT).configuration.destination
    assert main(["iam", "-c", str(file), "--document", "task-role"]) == 0

    assert destination.external_id is not None
    printed = json.loads(capsys.readouterr().out)
    assert [each["Resource"] for each in printed["Statement"]] == [
        destination.role_arn,
        # The database's password is the task role's to read.
        ["arn:aws:secretsmanager:*:*:secret:tailrace/shop-??????"],
    ]


def test_secrets_are_kept_where_the_comments_say() -> None:
    assert loaded("cross-account").source.own.password == SecretReference(
        "secretsmanager", "tailrace/shop", "password"
    )
    assert loaded("kms").source.own.dsn == SecretReference("ssm", "/tailrace/shop/dsn")


def test_what_is_said_of_many_tables_is_so() -> None:
    configuration = loaded("many-tables")

    assert 86_400 / configuration.engine.append_interval_seconds == 17_280
    assert configuration.chunk.max_age_seconds >= configuration.engine.append_interval_seconds
    assert configuration.source.tables == ("*.*",)


def test_debeziums_envelope_has_its_values_too() -> None:
    record = record_configuration(loaded("debezium"))

    assert (record.envelope, record.numeric, record.json) == ("debezium", "string", "string")
