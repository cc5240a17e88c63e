"""The configuration: what is read from where, what is refused and how, and what is never shown."""

import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configured import make_configuration
from engine import kinds
from engine.config import (
    Address,
    Configuration,
    ConfigurationProblems,
    Loaded,
    Secret,
    WorkersAddress,
    default_log,
    load,
    load_destination,
    load_destination_and_port,
    model,
    postgres,
    resolve_memory_limit,
)
from engine.config.json_schema import make_json_schema
from engine.config.key import REQUIRED
from engine.config.keys import KEYS
from engine.config.memory import available_memory_bytes
from engine.config.sources import SOURCES
from engine.config.toml_lines import key_lines
from engine.destinations.s3_settings import S3Settings
from engine.journal.settings import Settings
from engine.model.errors import ConfigurationError
from engine.model.record import RecordConfiguration, TableRule

EXAMPLES = Path(__file__).parent.parent / "config"
MIB = 1024 * 1024

MINIMAL = """\
[source]
dsn = "host=db dbname=shop"
snapshot = "never"
[destination]
bucket = "my-bucket"
prefix = "shop"
"""


def loaded(tmp_path: Path, text: str, environment: Mapping[str, str] | None = None) -> Loaded:
    file = tmp_path / "tailrace.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environment or {})


def refused(
    tmp_path: Path, text: str, environment: Mapping[str, str] | None = None
) -> ConfigurationProblems:
    with pytest.raises(ConfigurationProblems) as raised:
        loaded(tmp_path, text, environment)
    return raised.value


def dsn_of(configuration: Configuration) -> str:
    dsn = configuration.source.own.dsn
    assert isinstance(dsn, Secret)
    return dsn.reveal()


def only_problem(tmp_path: Path, text: str, environment: Mapping[str, str] | None = None) -> str:
    error = refused(tmp_path, text, environment)
    assert len(error.problems) == 1, str(error)
    return str(error.problems[0])


def test_a_minimal_file_takes_every_default(tmp_path: Path) -> None:
    configuration = loaded(tmp_path, MINIMAL).configuration

    assert dsn_of(configuration) == "host=db dbname=shop"
    assert configuration.source.own.slot == "tailrace"
    assert configuration.source.tables == ("public.*",)
    assert configuration.destination.layout == "hive"
    assert configuration.destination.concurrency == 16
    assert configuration.chunk.max_bytes == 16 * MIB
    assert configuration.chunk.max_age_seconds == 30.0
    assert configuration.chunk.max_rows == 1_000_000
    assert configuration.queue.max_bytes == 8 * MIB
    assert configuration.engine.memory_limit is None
    assert configuration.engine.drain_seconds == 25.0
    assert configuration.engine.append_interval_seconds == 1.0
    assert configuration.http.listen == Address("0.0.0.0", 9464)
    assert configuration.log.format == "auto"


@pytest.mark.parametrize("name", ["tailrace.toml", "tailrace.reference.toml"])
def test_example_files_load_and_satisfy_the_schema(name: str) -> None:
    file = EXAMPLES / name

    load(file, {"DATABASE_URL": "postgresql://db/shop"})

    jsonschema.Draft202012Validator(make_json_schema()).validate(tomllib.loads(file.read_text()))


def test_the_reference_file_names_every_key_with_its_default() -> None:
    text = (EXAMPLES / "tailrace.reference.toml").read_text()
    document = tomllib.loads(text)

    for key in KEYS:
        given_value = document[key.section].get(key.name)
        if key.default in (None, REQUIRED) or key.name == "table":
            assert key.name in text, key.path
        else:
            assert given_value == key.default, key.path


def test_the_schema_is_a_valid_schema_and_refuses_a_misspelt_key() -> None:
    schema = make_json_schema()

    jsonschema.Draft202012Validator.check_schema(schema)

    errors = jsonschema.Draft202012Validator(schema).iter_errors({"chunk": {"max_agee": "1s"}})
    assert [error.validator for error in errors] == ["additionalProperties"]


@pytest.mark.parametrize(
    ("document", "is_accepted"),
    [
        ({"chunk": {"max_bytes": "16MiB"}}, True),
        ({"chunk": {"max_bytes": "${SIZE}"}}, True),
        ({"chunk": {"max_bytes": "16 apples"}}, False),
        ({"source": {"snapshot": "never"}}, True),
        ({"source": {"snapshot": "initial"}}, True),
        ({"source": {"snapshot": "once"}}, False),
        ({"source": {"table": [{"match": "a.b"}]}}, True),
        ({"source": {"table": [{"mtach": "a.b"}]}}, False),
        ({"source": {"table": [{"match": "a.b", "where": "x > 1"}]}}, True),
        ({"source": {"table": [{"match": "a.b", "where": 1}]}}, False),
    ],
)
def test_the_schema_judges_as_the_loader_does(document: Any, is_accepted: bool) -> None:  # noqa: FBT001
    assert jsonschema.Draft202012Validator(make_json_schema()).is_valid(document) is is_accepted


def test_the_environment_alone_is_enough() -> None:
    environment = {
        "TAILRACE_SOURCE__DSN": "host=db",
        "TAILRACE_SOURCE__SNAPSHOT": "never",
        "TAILRACE_SOURCE__TABLES": '["sales.*", "public.orders"]',
        "TAILRACE_SOURCE__TABLE": '[{ match = "sales.*", exclude = ["note"] }]',
        "TAILRACE_DESTINATION__BUCKET": "my-bucket",
        "TAILRACE_DESTINATION__PREFIX": "shop",
        "TAILRACE_DESTINATION__TAGS": '{ team = "sales" }',
        "TAILRACE_CHUNK__MAX_ROWS": "5000",
        "TAILRACE_CHUNK__MAX_BYTES": "1048576",
        "TAILRACE_HTTP__LISTEN": "off",
    }

    configuration = load(None, environment).configuration

    assert configuration.source.tables == ("sales.*", "public.orders")
    assert configuration.source.rules == (TableRule("sales.*", exclude=("note",)),)
    assert configuration.destination.tags == (("team", "sales"),)
    assert configuration.chunk.max_rows == 5000
    assert configuration.chunk.max_bytes == MIB
    assert configuration.http.listen is None


def test_the_environment_wins_over_the_file_and_says_so(tmp_path: Path) -> None:
    result = loaded(tmp_path, MINIMAL, {"TAILRACE_DESTINATION__PREFIX": "other"})

    origins = {setting.key: str(setting.origin) for setting in result.settings}
    assert result.configuration.destination.prefix == "other"
    assert origins["destination.prefix"] == "TAILRACE_DESTINATION__PREFIX"
    assert origins["destination.bucket"] == f"{tmp_path}/tailrace.toml:5"
    assert origins["destination.layout"] == "default"


def test_the_file_is_named_by_option_then_variable_then_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("option", "variable", "tailrace"):
        (tmp_path / f"{name}.toml").write_text(MINIMAL + f'[engine]\nname = "{name}"\n')
    monkeypatch.chdir(tmp_path)
    named = {"TAILRACE_CONFIG": "variable.toml"}

    assert load(Path("option.toml"), named).configuration.engine.name == "option"
    assert load(None, named).configuration.engine.name == "variable"
    assert load(None, {}).configuration.engine.name == "tailrace"


def test_nothing_at_all_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigurationError, match="no configuration") as raised:
        load(None, {"PATH": "/bin"})

    assert "-c" in raised.value.hint


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load(tmp_path / "absent.toml", {})


def test_text_that_is_not_toml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tailrace\.toml:2: not TOML"):
        loaded(tmp_path, "[source]\ndsn = host\n")


@pytest.mark.parametrize("twice", ["tables = []", "[source]"])
def test_a_key_or_a_section_that_stands_twice_is_told_as_such(tmp_path: Path, twice: str) -> None:
    with pytest.raises(ConfigurationError, match=r"tailrace\.toml:3: not TOML") as raised:
        loaded(tmp_path, f"[source]\ntables = []\n{twice}\n")

    assert "stands in the file once" in raised.value.hint


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = """\
[source]
dsn = "host=db"
snapshot = "never"
slto = "x"
tables = [
    "public.*", # a comment, with "quotes"
    'x.',
]
max_age = 3
[[source.table]]
match = "a.b"
[[source.table]]
mtach = "a.b"
[destination]
bucket = "my-bucket"
prefix = "shop"
tags.team = 3
[chunk]
max_age = "30 sec"
"""

    problems = refused(tmp_path, text).problems

    assert [(problem.origin.line, problem.key) for problem in problems] == [
        (4, "source.slto"),
        (5, "source.tables"),
        (9, "source.max_age"),
        (12, "source.table.match"),
        (13, "source.table.mtach"),
        (17, "destination.tags"),
        (19, "chunk.max_age"),
    ]
    assert problems[0].hint == 'did you mean "slot"?'
    assert problems[2].hint == "max_age belongs under [chunk]"
    assert problems[4].hint == 'did you mean "match"?'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('bucket = "s3://my-bucket"', "write the name alone"),
        ('bucket = "my-bucket/folder"', "destination.prefix"),
        ('bucket = "My_Bucket"', "lower-case"),
        ('bucket = "b"', "3 to 63"),
        ("bucket = 7", "is not text"),
        ('prefix = "/shop"', 'begins or ends with "/"'),
        ('prefix = "shop/"', 'begins or ends with "/"'),
        ('prefix = "a//b"', "empty segment"),
        ('prefix = "a/../b"', "empty segment"),
        ('prefix = ""', "is empty"),
        ('prefix = "_tailrace/x"', "_tailrace"),
        ('prefix = "sh op"', "escaped"),
        ('endpoint_url = "s3.example.com"', "is not a URL"),
        ('endpoint_url = "http://h:99999"', "is not a URL"),
        ('endpoint_url = "https://h/bucket"', "more than a host and a port"),
        ('role_arn = "tailrace"', "is not a role's ARN"),
        ('external_id = "x"', "needs role_arn"),
        ("expected_bucket_owner = 123456789012", "in quotes"),
        ('kms_key_id = "k"', 'needs sse = "kms"'),
        ('sse = "KMS"', 'did you mean "kms"?'),
        ('acl = "public-read"', "is not one of"),
        ('storage_class = "DEEP_ARCHIVE"', "cannot be read back"),
        ('layout = "hives"', 'did you mean "hive"?'),
        ("concurrency = 0", "between 1 and 256"),
        ("concurrency = true", "whole number"),
        ('concurrency = "4"', "without quotes"),
        ('tags = { "aws:x" = "y" }', "S3 refuses"),
    ],
)
def test_a_destination_value_that_does_not_fit_is_explained(
    tmp_path: Path, line: str, expected: str
) -> None:
    name = line.split(" ", maxsplit=1)[0]
    kept = [row for row in MINIMAL.splitlines() if not row.startswith(name)]

    problem = only_problem(tmp_path, "\n".join([*kept, line]))

    assert expected in problem
    assert f":{len(kept) + 1}: destination.{name}" in problem


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('type = "synthetic"', "not in this release"),
        ('type = "mysql"', 'is not one of "postgres"'),
        ('messages = "yes"', "is not true or false"),
        ('on_schema_change = "stop"', "is not one of"),
        ('slot = "Tailrace"', "lower-case"),
        ('publication = ""', "1 to 63 bytes"),
        ("tables = []", "is empty"),
        ('tables = "public.*"', "is not a list"),
        ('tables = [\'"Public"."Orders"\']', "without quotes"),
        ('table = [{ match = "a.b", where = ["x > 1"] }]', "is not text"),
        ('table = [{ match = "a.b", where = "  " }]', "is empty"),
        ('table = [{ match = "a.b", where = "x\\n> 1" }]', "holds a line break"),
        ('table = [{ match = "a.b", where = "x\\u0000" }]', "zero byte"),
        (f'table = [{{ match = "a.b", where = "{"x" * 10_001}" }}]', "longer than 10000"),
        ('table = [{ match = "a.b", hash = ["x"] }]', "source.hash_key is missing"),
        ('table = [{ match = "a.b", hash = "x" }]', "is not a list of texts"),
        ('table = [{ match = "a.b", hash = [" "] }]', "is empty"),
        ('table = [{ match = "a.b", exclude = ["x"], hash = ["x"] }]', "exclude leaves out"),
        ('table = [{ match = "a.b", include = ["x"], hash = ["y"] }]', "include leaves out"),
        ('hash_key = "geheim"', "is shorter than 32 characters"),
        ('hash_key = "the old one\\nand the next one, in one text"', "holds a line break"),
        ("hash_key = 12345678901234567890123456789012", "is not text"),
        ('hash_key_file = ""', "is empty"),
        ('hash_key_file = "absent"', "cannot be read: No such file"),
        ('table = [{ match = "a.b", on_schema_change = "stop" }]', "is not one of"),
        ('table = [{ match = "a.b", include = ["x"], exclude = ["y"] }]', "both include and"),
        ('table = ["a.b"]', "[[source.table]]"),
    ],
)
def test_a_source_value_that_does_not_fit_is_explained(
    tmp_path: Path, line: str, expected: str
) -> None:
    text = MINIMAL.replace('snapshot = "never"', f'snapshot = "never"\n{line}')

    assert expected in only_problem(tmp_path, text)


def test_a_column_that_is_hashed_and_left_out_is_told_on_its_line(tmp_path: Path) -> None:
    rule = '[[source.table]]\nmatch = "a.b"\nexclude = ["x"]\nhash = ["x"]\n'

    problem = only_problem(tmp_path, MINIMAL.replace("[destination]", rule + "[destination]"))

    assert ":7: source.table.hash has a column that exclude leaves out" in problem


def test_values_that_ask_for_nothing_of_a_coming_release_are_taken(tmp_path: Path) -> None:
    quiet = (
        'snapshot = "never"\nsnapshot_order = "beside"\nmessages = false\nsignals = false\n'
        'on_schema_change = "continue"\n'
        'table = [{ match = "a.b", hash = [], where = "", exclude = ["c"] }]'
    )

    configuration = loaded(tmp_path, MINIMAL.replace('snapshot = "never"', quiet)).configuration

    assert configuration.source.rules == (TableRule("a.b", exclude=("c",)),)


def test_a_rules_condition_is_taken_as_it_is_written(tmp_path: Path) -> None:
    rule = '[[source.table]]\nmatch = "a.b"\nwhere = "region = \'eu\'"\n'

    text = MINIMAL.replace("[destination]", rule + "[destination]")

    assert loaded(tmp_path, text).configuration.source.rules == (
        TableRule("a.b", where="region = 'eu'"),
    )


def test_the_rows_that_are_there_already_are_read_unless_somebody_says_no(tmp_path: Path) -> None:
    silent = MINIMAL.replace('snapshot = "never"\n', "")

    assert loaded(tmp_path, silent).configuration.source.snapshot == "initial"
    assert loaded(tmp_path, MINIMAL).configuration.source.snapshot == "never"


@pytest.mark.parametrize(("written", "count"), [("local", 0), ("local:1", 1), ("local:64", 64)])
def test_workers_of_this_machine(tmp_path: Path, written: str, count: int) -> None:
    text = MINIMAL.replace('snapshot = "never"', f'snapshot_workers = "{written}"')

    assert loaded(tmp_path, text).configuration.source.snapshot_workers == WorkersAddress(count)
    assert str(WorkersAddress(count)) == written


@pytest.mark.parametrize("written", ["", "local:", "local:0", "local:-1", "remote", "local:99999"])
def test_what_names_no_workers(tmp_path: Path, written: str) -> None:
    text = MINIMAL.replace('snapshot = "never"', f'snapshot_workers = "{written}"')

    assert "names no workers" in only_problem(tmp_path, text)


def test_sections_that_are_misspelt_or_no_tables_are_told(tmp_path: Path) -> None:
    error = refused(tmp_path, "chunk = 3\n" + MINIMAL + "[qeue]\nmax_bytes = 3\n")

    assert [problem.text for problem in error.problems] == ["is not a table", "is not a section"]
    assert error.problems[1].hint == 'did you mean "queue"?'


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ('"16MiB"', 16 * MIB),
        ('"8MB"', 8_000_000),
        ('"1.5 MiB"', 3 * MIB // 2),
        ('"65536"', 65_536),
        ("100_000", 100_000),
        ('"100kB"', 100_000),
        ('"128KiB"', 131_072),
        ('"1gib"', 1024 * MIB),
    ],
)
def test_sizes_are_read_in_both_kinds_of_units(
    tmp_path: Path, written: str, size_bytes: int
) -> None:
    configuration = loaded(tmp_path, f"{MINIMAL}[chunk]\nmax_bytes = {written}\n").configuration

    assert configuration.chunk.max_bytes == size_bytes


@pytest.mark.parametrize("written", ['"16 apples"', "-1", "true", '"1"', "nan", "inf", "[]", '""'])
def test_a_size_that_is_none_is_refused(tmp_path: Path, written: str) -> None:
    only_problem(tmp_path, f"{MINIMAL}[chunk]\nmax_bytes = {written}\n")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ('"30s"', 30.0),
        ('"1500ms"', 1.5),
        ('"2m"', 120.0),
        ('"1 h"', 3600.0),
        ("7", 7.0),
        ("2.5", 2.5),
    ],
)
def test_times_are_read_as_seconds(tmp_path: Path, written: str, seconds: float) -> None:
    configuration = loaded(tmp_path, f"{MINIMAL}[chunk]\nmax_age = {written}\n").configuration

    assert configuration.chunk.max_age_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("written", ['"30 sec"', "-1", "0", "nan", '"1d"', "1979-05-27"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, written: str) -> None:
    only_problem(tmp_path, f"{MINIMAL}[chunk]\nmax_age = {written}\n")


def test_a_chunk_cannot_be_younger_than_the_append_interval(tmp_path: Path) -> None:
    text = f'{MINIMAL}[chunk]\nmax_age = "1s"\n[engine]\nappend_interval = "2s"\n'

    assert "shorter than engine.append_interval" in only_problem(tmp_path, text)


def test_one_queue_cannot_have_more_than_the_memory_limit(tmp_path: Path) -> None:
    text = f'{MINIMAL}[queue]\nmax_bytes = "64MiB"\n[engine]\nmemory_limit = "32MiB"\n'

    assert "more than engine.memory_limit" in only_problem(tmp_path, text)


@pytest.mark.parametrize(
    ("written", "listen"),
    [
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        (":9464", Address("0.0.0.0", 9464)),
        ("[::1]:9464", Address("::1", 9464)),
        ("localhost:80", Address("localhost", 80)),
        ("off", None),
        ("", None),
    ],
)
def test_addresses_are_host_and_port(tmp_path: Path, written: str, listen: Address | None) -> None:
    configuration = loaded(tmp_path, f'{MINIMAL}[http]\nlisten = "{written}"\n').configuration

    assert configuration.http.listen == listen


@pytest.mark.parametrize("written", ["9464", "host", "host:", "host:99999", "a b:1", "::1:80"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, written: str) -> None:
    problem = only_problem(tmp_path, f'{MINIMAL}[http]\nlisten = "{written}"\n')

    assert "0.0.0.0:9464" in problem


def test_variables_in_values_are_replaced_and_escapes_kept(tmp_path: Path) -> None:
    text = """\
[source]
dsn = "postgresql://u:${PASSWORD}@db/shop?application_name=$${x}"
snapshot = "never"
tables = ["${SCHEMA}.*"]
[destination]
bucket = "${BUCKET}"
prefix = "shop/${STAGE}"
tags = { stage = "${STAGE}" }
concurrency = "${CONCURRENCY}"
"""
    environment = {
        "PASSWORD": "p$${w}",
        "SCHEMA": "sales",
        "BUCKET": "my-bucket",
        "STAGE": "test",
        "CONCURRENCY": "4",
    }

    configuration = loaded(tmp_path, text, environment).configuration

    assert dsn_of(configuration) == ("postgresql://u:p$${w}@db/shop?application_name=${x}")
    assert configuration.source.tables == ("sales.*",)
    assert configuration.destination.prefix == "shop/test"
    assert configuration.destination.tags == (("stage", "test"),)
    assert configuration.destination.concurrency == 4


@pytest.mark.parametrize(
    ("written", "expected"),
    [("${ABSENT}", "ABSENT, which is not set"), ("${", "has a ${"), ("${1x}", "has a ${")],
)
def test_a_variable_that_cannot_be_replaced_is_one_problem(
    tmp_path: Path, written: str, expected: str
) -> None:
    text = MINIMAL.replace('"my-bucket"', f'"{written}"')

    assert expected in only_problem(tmp_path, text)


def test_a_variable_in_the_environment_itself_is_taken_as_it_stands(tmp_path: Path) -> None:
    environment = {"TAILRACE_SOURCE__DSN": "password=a${HOME}b"}

    configuration = loaded(tmp_path, MINIMAL, environment).configuration

    assert dsn_of(configuration) == "password=a${HOME}b"


def test_the_dsn_is_read_from_its_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "dsn").write_text("postgresql://u:secret@db/shop\n")

    configuration = loaded(
        tmp_path, MINIMAL.replace('dsn = "host=db dbname=shop"', 'dsn_file = "dsn"')
    ).configuration

    assert dsn_of(configuration) == "postgresql://u:secret@db/shop"
    assert configuration.source.own.dsn_file == tmp_path / "dsn"


def test_a_dsn_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    text = MINIMAL.replace('dsn = "host=db dbname=shop"', 'dsn_file = "absent"')

    assert "cannot be read: No such file" in only_problem(tmp_path, text)


def test_a_dsn_and_a_dsn_file_exclude_each_other(tmp_path: Path) -> None:
    text = MINIMAL.replace("[source]", '[source]\ndsn_file = "dsn"')

    assert "is given beside source.dsn" in only_problem(tmp_path, text)


def test_a_dsn_of_the_environment_wins_over_a_dsn_file_of_the_file(tmp_path: Path) -> None:
    text = MINIMAL.replace('dsn = "host=db dbname=shop"', 'dsn_file = "absent"')

    configuration = loaded(tmp_path, text, {"TAILRACE_SOURCE__DSN": "host=x"}).configuration

    assert dsn_of(configuration) == "host=x"
    assert configuration.source.own.dsn_file is None


HASHED = '[[source.table]]\nmatch = "a.b"\nhash = ["email"]\n[destination]'


def test_the_hash_key_is_read_from_its_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef" * 4 + "\n")
    text = MINIMAL.replace("[source]", '[source]\nhash_key_file = "key"')

    configuration = loaded(tmp_path, text.replace("[destination]", HASHED)).configuration

    assert configuration.source.hash_key is not None
    assert configuration.source.hash_key.reveal() == "0123456789abcdef" * 4
    assert configuration.source.rules == (TableRule("a.b", hash=("email",)),)
    assert kinds.record_configuration(configuration).hash_key_id == kinds.hash_key(configuration).id


def test_a_hash_key_file_with_too_little_in_it_is_told_without_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("geheim")
    text = MINIMAL.replace("[source]", '[source]\nhash_key_file = "key"')

    problem = only_problem(tmp_path, text.replace("[destination]", HASHED))

    assert "names a file whose content is shorter than 32 characters" in problem
    assert "geheim" not in problem


def test_a_hash_key_that_hashes_nothing_is_not_in_the_journal(tmp_path: Path) -> None:
    text = MINIMAL.replace("[source]", f'[source]\nhash_key = "{"k" * 32}"')

    configuration = loaded(tmp_path, text).configuration

    assert kinds.record_configuration(configuration).hash_key_id == ""


def test_without_a_dsn_libpqs_environment_has_to_name_a_server(tmp_path: Path) -> None:
    text = MINIMAL.replace('dsn = "host=db dbname=shop"\n', "")

    assert dsn_of(loaded(tmp_path, text, {"PGHOST": "db"}).configuration) == ""
    assert "source.dsn is missing" in only_problem(tmp_path, text)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("TAILRACE_SOURCE_DSN", "did you mean TAILRACE_SOURCE__DSN?"),
        ("TAILRACE_CHUNK__MAX_ROW", 'did you mean "TAILRACE_CHUNK__MAX_ROWS"?'),
        ("TAILRACE_CHUNK__PASSWORD", "is not a key"),
    ],
)
def test_a_misspelt_variable_is_a_problem_that_hides_its_value(
    tmp_path: Path, variable: str, expected: str
) -> None:
    problem = only_problem(tmp_path, MINIMAL, {variable: "geheim"})

    assert expected in problem
    assert "geheim" not in problem


def test_variables_that_kubernetes_makes_are_left_alone(tmp_path: Path) -> None:
    environment = {"TAILRACE_PORT": "tcp://10.0.0.1:9464", "TAILRACE_SERVICE_HOST": "x"}

    result = loaded(tmp_path, MINIMAL, environment)

    assert result.settings == loaded(tmp_path, MINIMAL).settings


def test_no_problem_shows_a_secret(tmp_path: Path) -> None:
    text = """\
[source]
dsn = "geheim"
pasword = "geheim"
hash_key = "geheim"
tables = ["${SECRET}."]
slot = "${SECRET}-"
table = [{ match = "${SECRET}.", include = ["${SECRET}"], where = "${SECRET}" }]
[destination]
bucket = "${SECRET}/x"
prefix = "/${SECRET}/"
external_id = 7
endpoint_url = "https://user:${SECRET}@h"
role_arn = "${SECRET}"
[chunk]
max_bytes = "${SECRET}"
max_rows = "${SECRET}"
"""
    environment = {
        "SECRET": "geheim",
        "TAILRACE_SOURCE__DSN": "geheim",
        "TAILRACE_QUEUE__X": "geheim",
    }

    error = refused(tmp_path, text, environment)

    assert len(error.problems) >= 12
    assert "geheim" not in str(error)
    assert "geheim" not in repr(error.problems)


def test_no_configuration_shows_a_secret(tmp_path: Path) -> None:
    secret = f'host=db password=geheim"\nhash_key = "{"geheim" * 6}'
    text = MINIMAL.replace("host=db dbname=shop", secret) + (
        'role_arn = "arn:aws:iam::123456789012:role/x"\nexternal_id = "${ID}"\n'
    )

    result = loaded(tmp_path, text, {"ID": "geheim"})

    assert "geheim" not in repr(result)
    assert "geheim" not in str(result.configuration.source.own.dsn)
    external_id = result.configuration.destination.external_id
    assert external_id is not None
    assert external_id.reveal() == "geheim"


def test_a_key_is_hidden_unless_somebody_decided_otherwise() -> None:
    assert {key.path for key in KEYS if not key.is_shown} == {
        "source.dsn",
        "source.password",
        "source.hash_key",
        "destination.external_id",
        "http.token",
    }


def test_verify_needs_the_destination_alone(tmp_path: Path) -> None:
    file = tmp_path / "verify.toml"
    file.write_text(
        '[source]\ndsn = "${ABSENT}"\n[destination]\nbucket = "my-bucket"\nprefix = "p"\n'
    )

    destination = load_destination(file, {"TAILRACE_SOURCE__SNAPSHOT": "initial"})

    assert (destination.bucket, destination.prefix) == ("my-bucket", "p")


def test_status_needs_the_port_besides(tmp_path: Path) -> None:
    file = tmp_path / "status.toml"
    file.write_text(
        '[destination]\nbucket = "my-bucket"\nprefix = "p"\n[http]\nlisten = "[::1]:7"\n'
    )

    destination, port = load_destination_and_port(file, {"TAILRACE_SOURCE__SNAPSHOT": "initial"})

    assert destination.bucket == "my-bucket"
    assert port.listen == Address("::1", 7)


def test_verify_still_checks_the_destination(tmp_path: Path) -> None:
    file = tmp_path / "verify.toml"
    file.write_text('[destination]\nbucket = "s3://x"\n')

    with pytest.raises(ConfigurationProblems) as raised:
        load_destination(file, {})

    assert {problem.key for problem in raised.value.problems} == {
        "destination.bucket",
        "destination.prefix",
    }


@pytest.mark.parametrize(
    ("available", "limit"),
    [(64 * MIB, 16 * MIB), (512 * MIB, 64 * MIB), (768 * MIB, 96 * MIB), (8192 * MIB, 96 * MIB)],
)
def test_auto_memory_is_an_eighth_within_bounds(available: int, limit: int) -> None:
    assert resolve_memory_limit(None, available_bytes=available) == limit


def test_a_memory_limit_that_was_written_is_taken() -> None:
    assert resolve_memory_limit(200 * MIB, available_bytes=64 * MIB) == 200 * MIB


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", "134217728\n", 134_217_728),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "67108864\n", 67_108_864),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
    ],
)
def test_a_containers_limit_is_found_in_both_cgroup_versions(
    tmp_path: Path, file: str, text: str, expected: int | None
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    machine = available_memory_bytes(tmp_path / "no cgroup here")

    assert available_memory_bytes(tmp_path) == (machine if expected is None else expected)


LINES_DOCUMENT = '''\
# a comment = 1
top = 1 # [not.a.header]

[a]
"quoted key" = "x = 1 \\" # no comment"
'literal.key' = 'c:\\'
dotted.inner."third part" = 3
multi = """
[not.a.header]
key = 1
ends in two quotes"""""
raw = \'\'\'
[neither]\'\'\'
list = [
    1, # one
    [2, 3], { in_list = "}" },
    """
    text, with ] and }
    """,
    4,
]
inline = { x = 1, y.z = [ 2 ], w = {} }
date = 1979-05-27T07:32:00Z
[[a.rows]]
n = 1
[a.rows.sub]
m = 1
[[a.rows]]

n = 2
[[a.rows.deep]]
k = 1
[ "b" . c ]
d = []
last = true'''


def test_every_construct_of_toml_keeps_its_line() -> None:
    lines = key_lines(LINES_DOCUMENT)

    assert {path: lines[path] for path in paths(tomllib.loads(LINES_DOCUMENT))} == {
        ("b",): 33,
        ("top",): 2,
        ("a",): 4,
        ("a", "quoted key"): 5,
        ("a", "literal.key"): 6,
        ("a", "dotted"): 7,
        ("a", "dotted", "inner"): 7,
        ("a", "dotted", "inner", "third part"): 7,
        ("a", "multi"): 8,
        ("a", "raw"): 12,
        ("a", "list"): 14,
        ("a", "list", 0): 15,
        ("a", "list", 1): 16,
        ("a", "list", 1, 0): 16,
        ("a", "list", 1, 1): 16,
        ("a", "list", 2): 16,
        ("a", "list", 2, "in_list"): 16,
        ("a", "list", 3): 17,
        ("a", "list", 4): 20,
        ("a", "inline"): 22,
        ("a", "inline", "x"): 22,
        ("a", "inline", "y"): 22,
        ("a", "inline", "y", "z"): 22,
        ("a", "inline", "y", "z", 0): 22,
        ("a", "inline", "w"): 22,
        ("a", "date"): 23,
        ("a", "rows"): 24,
        ("a", "rows", 0): 24,
        ("a", "rows", 0, "n"): 25,
        ("a", "rows", 0, "sub"): 26,
        ("a", "rows", 0, "sub", "m"): 27,
        ("a", "rows", 1): 28,
        ("a", "rows", 1, "n"): 30,
        ("a", "rows", 1, "deep"): 31,
        ("a", "rows", 1, "deep", 0): 31,
        ("a", "rows", 1, "deep", 0, "k"): 32,
        ("b", "c"): 33,
        ("b", "c", "d"): 34,
        ("b", "c", "last"): 35,
    }


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    match value:
        case dict():
            for name, inner in value.items():
                found += paths(inner, (*path, name))
        case list():
            for index, inner in enumerate(value):
                found += paths(inner, (*path, index))
        case _:
            pass
    return found


VALUES = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.text(alphabet="ab\"'\\]}{[#=,. \n", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(alphabet="ab.\"' ", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def toml_text(value: Any) -> str:
    match value:
        case dict():
            pairs = (f"{json.dumps(name)} = {toml_text(inner)}" for name, inner in value.items())
            return "{ " + ", ".join(pairs) + " }"
        case list():
            return "[\n" + ",\n# ] comment\n".join(map(toml_text, value)) + "]"
        case str() if '"""' not in value and "\\" not in value and not value.endswith('"'):
            return f'"""{value}"""'
        case _:
            return json.dumps(value)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_keys_after_any_values_are_found_on_their_lines(values: list[Any]) -> None:
    text = "\n".join(f"key_{index} = {toml_text(value)}" for index, value in enumerate(values))

    lines = key_lines(text)

    assert set(paths(tomllib.loads(text))) <= set(lines)
    for index in range(len(values)):
        assert text.split("\n")[lines[f"key_{index}",] - 1].startswith(f"key_{index} = ")


def test_no_struct_of_the_model_has_a_default() -> None:
    structs = [
        found
        for module in (model, postgres)
        for found in vars(module).values()
        if isinstance(found, msgspec.StructMeta) and found.__module__ == module.__name__
    ]

    names = {struct.__name__ for struct in structs}
    assert names >= {"Configuration", "LogConfiguration", "PostgresConfiguration"}
    assert [struct.__name__ for struct in structs if struct.__struct_defaults__] == []


def test_what_is_made_of_the_configuration_has_no_default_for_a_key() -> None:
    having = {field.name for field in fields(Settings) if field.default is not MISSING}

    # No key of the configuration: the intervals, how the engine was called, and a name.
    assert having == {
        "accept_gap",
        "check_name",
        "idle_interval",
        "is_until_caught_up",
        "probe_interval",
        "requests_interval",
        "schema_seconds",
        "right_seconds",
        "standby_interval",
        "start_seconds_max",
        "state_seconds",
        "unseen_seconds_max",
        "watch_interval",
    }
    assert {field.name for field in fields(S3Settings) if field.default is MISSING} == {
        "bucket",
        "concurrency",
    }


def test_the_configuration_decides_every_field_that_the_journal_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decided: dict[str, Any] = {}
    monkeypatch.setattr(kinds, "RecordConfiguration", lambda **given: decided.update(given))

    kinds.record_configuration(make_configuration())

    assert set(decided) == set(RecordConfiguration.__struct_fields__)


def test_the_log_by_default_is_the_one_of_a_minimal_file() -> None:
    assert default_log() == make_configuration().log


def test_the_known_kinds_of_source_are_those_that_have_a_table(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, MINIMAL.replace("[source]", '[source]\ntype = "oracle"'))

    kind = next(key.kind for key in KEYS if key.path == "source.type")
    assert kind.schema["enum"] == list(SOURCES)
    assert all(f'"{name}"' in problem for name in SOURCES)


def test_a_key_of_another_kind_of_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = SOURCES["postgres"]
    others = {"postgres": replace(known, keys=()), "mysql": known}
    monkeypatch.setattr(sys.modules["engine.config.load"], "SOURCES", others)

    problem = only_problem(tmp_path, MINIMAL)

    assert 'source.dsn = (not shown) is not a key with type = "postgres"' in problem


def test_what_a_kind_has_of_its_own_is_left_to_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = replace(SOURCES["postgres"], make=lambda parsed: parsed.value("source", "slot"))
    monkeypatch.setattr(sys.modules["engine.config.load"], "SOURCES", {"postgres": section})

    source: Any = loaded(tmp_path, MINIMAL).configuration.source

    assert source.own == "tailrace"
    assert set(source.__struct_fields__).isdisjoint(key.name for key in section.keys)
