"""Commands as an operator meets them: real processes, their exit codes, and what they print."""

import ast
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

import engine
from databases import Database
from engine.cli.application import COMMANDS
from engine.config import Address
from engine.operate.logs import FIELDS, HIDDEN
from engine.servers.server_process import free_ports
from engine.servers.servers import EmbeddedS3

PACKAGE = Path(engine.__file__).parent
SECRET = "geheim"
AS_TEXT = {"TAILRACE_LOG__FORMAT": "text"}

FILE = """\
[source]
dsn = "host=127.0.0.1 port={port} dbname=shop user=tailrace password=geheim"
snapshot = "never"
[destination]
bucket = "my-bucket"
prefix = "shop"
region = "us-east-1"
endpoint_url = "http://127.0.0.1:{port}"
[http]
listen = "off"
"""


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Nothing of ours and nothing of AWS's or libpq's from outside."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TAILRACE_", "PG", "AWS_"))
    }
    return kept | {"AWS_EC2_METADATA_DISABLED": "true", "COLUMNS": "100"} | dict(variables or {})


def tailrace(
    *arguments: str,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
    seconds: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine", *arguments],
        env=environment(variables),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@contextmanager
def started(
    command: Sequence[str], variables: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        command,
        env=environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def closed_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.fixture
def file(tmp_path: Path, closed_port: int) -> Path:
    """A valid configuration of servers that are not there."""
    path = tmp_path / "tailrace.toml"
    path.write_text(FILE.format(port=closed_port))
    return path


def test_help_lists_the_commands() -> None:
    result = tailrace("--help")

    assert result.returncode == 0
    for command in (
        "init",
        "run",
        "top",
        "drop",
        "completions",
        "tail",
        "check",
        "iam",
        "verify",
        "read",
        "materialize",
        "status",
        "resync",
        "pause",
        "resume",
        "views",
        "demo",
        "config",
    ):
        assert f" {command} " in result.stdout
    assert result.stderr == ""


def test_every_command_is_a_function_or_a_group_and_is_listed_once() -> None:
    groups = {name.rpartition(" ")[0] for name in COMMANDS}
    functions = [name.split() for name in COMMANDS if name not in groups]

    assert groups - {""} <= set(COMMANDS)
    for words in functions:
        module = importlib.import_module(f"engine.cli.{words[0]}")
        assert callable(getattr(module, words[-1])), words
    for group in groups:
        listed = tailrace(*group.split(), "--help").stdout
        for name, text in COMMANDS.items():
            shown = text.replace("`", "")
            if name.rpartition(" ")[0] == group:
                assert re.search(rf" {name.split()[-1]} +{re.escape(shown)}", listed), name


def test_no_command_is_help() -> None:
    assert tailrace().stdout == tailrace("--help").stdout


def test_the_version_is_the_packages() -> None:
    assert tailrace("--version").stdout == f"tailrace {engine.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["config", "schema"], ["rn"]]
)
def test_what_needs_no_engine_loads_none(arguments: list[str]) -> None:
    code = (
        "import sys; from engine.cli.application import main; main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr)"
    )

    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = set(result.stderr.split())
    assert "cyclopts" in loaded
    assert loaded.isdisjoint({"aiobotocore", "botocore", "psycopg", "aiohttp", "structlog"})
    assert loaded.isdisjoint(
        {"uvloop", "markdown_it"} if arguments == ["--version"] else {"uvloop"}
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rn"], "did you mean `tailrace run`?"),
        (["zzz"], "lists the commands"),
        (["run", "--foo"], "--foo"),
        (["run", "--config"], "--config"),
        (["run", "extra", "words"], '"extra" is no argument'),
        (["verify", "--depth", "deep"], "deep"),
        (["status", "extra"], "extra"),
        (["views"], "ENGINE"),
        (["views", "mysql"], "mysql"),
        (["resync", "a.b", "--wat"], "--wat"),
        (["tail", "a.b", "-n", "x"], '-n takes a whole number, not "x"'),
        (["demo", "--seconds", "x"], '--seconds takes a number, not "x"'),
        (["config", "sho"], "did you mean `tailrace config show`?"),
        (["-c", "x", "run"], "there is no command"),
    ],
)
def test_a_wrong_command_line_exits_2_and_says_why(arguments: list[str], text: str) -> None:
    result = tailrace(*arguments)

    assert result.returncode == 2
    assert text in result.stderr
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "config show",
        "verify",
        "read a.b",
        "materialize a.b lake --to parquet",
        "status",
        "resync a.b",
        "views duckdb",
    ],
)
def test_a_wrong_configuration_exits_78_with_every_problem(tmp_path: Path, command: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('[source]\ndsn = "geheim"\n[destination]\nbuket = "x"\nprefix = "/x"\n')

    result = tailrace(*command.split(), "-c", str(file), variables=AS_TEXT)

    assert result.returncode == 78
    assert "bad.toml:4: destination.buket is not a key" in result.stderr
    assert 'did you mean "bucket"?' in result.stderr
    assert "bad.toml:5: destination.prefix" in result.stderr
    assert "\nhint: " in result.stderr
    assert SECRET not in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("log", ["", '[log]\nformat = "json"\n'])
def test_what_ends_an_engine_is_json_where_its_log_is(tmp_path: Path, log: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(f'[source]\ndsn = "geheim"\n[destination]\nbuket = "x"\nprefix = "/x"\n{log}')

    result = tailrace("run", "-c", str(file))
    as_text = tailrace("run", "-c", str(file), variables=AS_TEXT)

    assert (result.returncode, as_text.returncode) == (78, 78)
    [line] = map(json.loads, result.stderr.splitlines())
    assert (line["level"], line["event"]) == ("error", "engine ended")
    assert "bad.toml:4: destination.buket is not a key" in line["error"]
    assert line["hint"]
    assert SECRET not in result.stderr
    assert as_text.stderr.startswith("error: ")


def test_a_file_that_is_no_toml_is_told_as_the_environment_wants_it(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[[[")

    as_json = tailrace("run", "-c", str(file), variables={"TAILRACE_LOG__FORMAT": "json"})
    as_text = tailrace("run", "-c", str(file), variables=AS_TEXT)

    assert "bad.toml" in json.loads(as_json.stderr)["error"]
    assert as_text.stderr.startswith("error: ")


def test_check_tells_every_problem_of_a_wrong_configuration_as_its_first_step(
    tmp_path: Path,
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('[source]\ndsn = "geheim"\n[destination]\nbuket = "x"\nprefix = "/x"\n')

    result = tailrace("check", "-c", str(file))
    as_json = tailrace("check", "--json", "-c", str(file))

    [step] = json.loads(as_json.stdout)["steps"]
    assert (result.returncode, as_json.returncode, step["state"]) == (78, 78, "failure")
    assert result.stdout.startswith("FAIL  TR-CF-001  configuration: ")
    for text in (" ".join(result.stdout.split()), step["detail"]):
        assert "bad.toml:4: destination.buket is not a key" in text
        assert 'did you mean "bucket"?' in text
        assert "bad.toml:5: destination.prefix" in text
        assert SECRET not in text
    assert "docs/checks.md#tr-cf-001" in result.stdout
    assert result.stderr == as_json.stderr == ""


@pytest.mark.parametrize("place", ["0/134EBCB0", "0001.12", "yes"])
def test_a_loss_that_is_named_by_no_position_exits_78_before_anything_else(place: str) -> None:
    result = tailrace("run", "--accept-gap", place)

    assert result.returncode == 78
    assert "--accept-gap: " in result.stderr
    assert "like 0001.00000000134EBCB0" in result.stderr
    assert "configuration" not in result.stderr


def test_no_configuration_at_all_exits_78(tmp_path: Path) -> None:
    result = tailrace("run", folder=tmp_path)

    assert result.returncode == 78
    assert json.loads(result.stderr)["error"].startswith("no configuration")


def test_config_show_names_each_origin_and_hides_secrets(file: Path) -> None:
    result = tailrace(
        "config",
        "show",
        "-c",
        str(file),
        variables={
            "TAILRACE_CHUNK__MAX_AGE": "5s",
            "TAILRACE_SOURCE__TABLES": '["a.*"]',
        },
    )

    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert result.returncode == 0
    assert f"dsn = (not shown) # {file}:2" in rows
    assert f'bucket = "my-bucket" # {file}:5' in rows
    assert 'max_age = "5s" # TAILRACE_CHUNK__MAX_AGE' in rows
    assert 'tables = ["a.*"] # TAILRACE_SOURCE__TABLES' in rows
    assert 'layout = "hive" # default' in rows
    assert rows[-1].startswith("next: tailrace check")
    assert SECRET not in result.stdout


def test_config_show_does_not_show_what_variables_stand_for(tmp_path: Path) -> None:
    file = tmp_path / "tailrace.toml"
    file.write_text(FILE.format(port=1).replace('"shop"\nregion', '"${SECRET}"\nregion'))

    result = tailrace("config", "show", "-c", str(file), variables={"SECRET": SECRET})

    assert result.returncode == 0
    assert 'prefix = "${SECRET}"' in result.stdout
    assert SECRET not in result.stdout


def test_config_show_json_is_one_object(file: Path) -> None:
    result = tailrace("config", "show", "--json", variables={"TAILRACE_CONFIG": str(file)})

    document = json.loads(result.stdout)
    settings = {setting["key"]: setting for setting in document["settings"]}
    assert settings["destination.bucket"]["value"] == "my-bucket"
    assert settings["source.tables"]["value"] == ["public.*"]
    assert settings["source.dsn"]["value"] == HIDDEN
    assert settings["destination.acl"]["value"] is None
    assert settings["engine.name"]["origin"] == "default"


def test_config_schema_is_a_json_schema() -> None:
    result = tailrace("config", "schema")

    assert result.returncode == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(result.stdout))


def test_check_offline_reads_the_configuration_alone(file: Path) -> None:
    result = tailrace("check", "--offline", "-c", str(file))

    assert result.returncode == 0
    assert f"{file} is valid" in " ".join(result.stdout.split())
    assert result.stdout.endswith(f"next: tailrace check -c {file}\n")


def test_check_offline_reads_the_dsn_and_says_where_it_leads(file: Path) -> None:
    result = tailrace("check", "--offline", "--json", "-c", str(file))

    [_, step, cost] = json.loads(result.stdout)["steps"]
    assert (cost["name"], cost["state"]) == ("cost", "ok")
    assert (result.returncode, step["name"], step["state"]) == (0, "dsn", "ok")
    assert step["detail"].startswith("leads to 127.0.0.1:")
    assert SECRET not in result.stdout + result.stderr


def test_check_offline_finds_a_dsn_that_nobody_can_have_meant(file: Path) -> None:
    dsn = f"postgresql://tailrace:a@{SECRET}@127.0.0.1:5432/shop"
    text = re.sub('dsn = ".*"', f'dsn = "{dsn}"', file.read_text())
    file.write_text(text)

    result = tailrace("check", "--offline", "-c", str(file))

    assert result.returncode == 78
    assert "FAIL  TR-CF-002  dsn: " in result.stdout
    assert "%40 for @" in " ".join(result.stdout.split())
    assert SECRET not in result.stdout + result.stderr


def test_a_file_without_its_option_is_told_with_the_option() -> None:
    result = tailrace("check", "ok.toml")

    assert result.returncode == 2
    assert "did you mean `-c ok.toml`?" in result.stderr


def test_check_says_what_it_writes() -> None:
    for arguments in (("--help",), ("check", "--help")):
        assert "_tailrace/check/" in " ".join(tailrace(*arguments).stdout.split())


def test_config_show_says_what_auto_comes_to(file: Path) -> None:
    result = tailrace("config", "show", "-c", str(file))

    for key in ("memory_limit", "max_row_bytes"):
        [line] = [line for line in result.stdout.splitlines() if line.startswith(f"{key} =")]
        assert re.search(r'"auto" +# default; \d+ bytes here', line)


def test_check_of_servers_that_are_not_there_exits_69(file: Path) -> None:
    result = tailrace("check", "--json", "-c", str(file))

    document = json.loads(result.stdout)
    assert result.returncode == 69, result.stderr
    assert document["ok"] is False
    steps = {step["name"]: step for step in document["steps"]}
    assert steps["configuration"]["state"] == "ok"
    assert steps["source"]["state"] == "failure"
    assert steps["source"]["detail"]
    assert SECRET not in result.stdout + result.stderr


def test_run_on_a_port_in_use_exits_78_and_names_the_port(file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])

        variables = AS_TEXT | {"TAILRACE_HTTP__LISTEN": str(address)}
        result = tailrace("run", "-c", str(file), variables=variables)

    assert result.returncode == 78, result.stderr
    assert f"error: cannot listen on http.listen = {address}: the port is in use" in result.stderr
    assert "hint: " in result.stderr


def test_check_tries_the_port_first(file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])

        result = tailrace(
            "check", "--json", "-c", str(file), variables={"TAILRACE_HTTP__LISTEN": str(address)}
        )

    port = {step["name"]: step for step in json.loads(result.stdout)["steps"]}["port"]
    assert result.returncode == 78, result.stderr
    assert (port["name"], port["state"]) == ("port", "failure")
    assert "the port is in use" in port["detail"]
    assert port["hint"]


def test_an_interrupt_outside_a_drain_exits_130(tmp_path: Path) -> None:
    # A server that takes connections and never answers: the check waits for it.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = tmp_path / "tailrace.toml"
        file.write_text(FILE.format(port=silent.getsockname()[1]))
        command = [sys.executable, "-m", "engine", "check", "-c", str(file)]
        with started(command) as process:
            connection, _ = silent.accept()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            connection.close()

    assert process.returncode == 130, errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("words", ["config schema", "--help", "--version"])
def test_a_reader_that_goes_away_is_no_error(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)

    result = subprocess.run(
        [sys.executable, "-m", "engine", *words.split()],
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )

    os.close(writing)
    assert result.returncode == 141
    assert result.stderr == ""


STAND_IN = """
import asyncio, sys
from pathlib import Path
from engine.cli import application, process
from engine.config import load
from engine.model.errors import PositionLost, StopLimit

async def engine(configuration, *, stop, until_caught_up, on_start):
    print("started", flush=True)
    await stop.requested.wait()
    print("draining", stop.reason, flush=True)
    {drain}

def command(*_):
    configuration = load(Path(sys.argv[1]), dict()).configuration
    return process.run_engine(configuration, until_caught_up=False, engine=engine)

application.make_application = lambda asked: command
sys.exit(application.main())
"""
"""The real process around an engine whose drain is the test's."""


@contextmanager
def engine_process(file: Path, drain: str) -> Iterator["subprocess.Popen[str]"]:
    code = STAND_IN.format(drain=drain)
    with started([sys.executable, "-c", code, str(file)]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_and_exits_0(file: Path, number: signal.Signals) -> None:
    with engine_process(file, "await asyncio.sleep(0)") as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)

    assert process.returncode == 0, errors
    assert output == f"draining {number.name}\n"
    logged = json.loads(errors)
    assert (logged["event"], logged["signal"]) == ("draining", number.name)


def test_a_second_signal_exits_75_whatever_the_engine_does(file: Path) -> None:
    with engine_process(file, "await asyncio.Event().wait()") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "draining SIGTERM\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 75
    assert "error: a second signal (SIGTERM)" in errors
    assert "hint: nothing is lost" in errors


def test_a_drain_that_hangs_ends_at_its_limit(file: Path) -> None:
    file.write_text(file.read_text() + "[engine]\ndrain_seconds = 0.1\n")

    with engine_process(file, "await asyncio.Event().wait()") as process:
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 75
    assert "longer than engine.drain_seconds" in errors
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        ('raise PositionLost("slot gone", hint="resync")', 70, "error: slot gone\nhint: resync\n"),
        ('raise StopLimit("not done", hint="again")', 75, "error: not done\nhint: again\n"),
        (
            'raise ExceptionGroup("g", [ExceptionGroup("g", [PositionLost("lost")])])',
            70,
            "error: lost\n",
        ),
        ('raise KeyError("geheim")', 70, "error: internal error: KeyError"),
        (
            'raise ExceptionGroup("geheim", [PositionLost("lost"), KeyError("geheim")])',
            70,
            "error: internal error: ExceptionGroup",
        ),
    ],
)
def test_what_the_engine_raises_is_told_without_a_traceback(
    file: Path, raised: str, code: int, text: str
) -> None:
    with engine_process(file, raised) as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == code
    assert text in errors
    assert "Traceback" not in errors
    assert ".py:" not in errors
    assert SECRET not in errors


def test_the_debug_level_shows_where_but_no_values(file: Path) -> None:
    file.write_text(file.read_text() + '[log]\nlevel = "debug"\n')

    with engine_process(file, 'raise KeyError("geheim")') as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 70
    assert "KeyError\n" in errors
    assert "process.py:" in errors
    assert SECRET not in errors


@pytest.fixture
def real_file(
    database: Database, s3: EmbeddedS3, bucket: str, tmp_path: Path, closed_port: int
) -> Path:
    """A configuration of real servers, with one table."""
    database.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    file = tmp_path / "tailrace.toml"
    file.write_text(
        f"""
[source]
dsn = "{database.dsn}"
slot = "{database.name}"
snapshot = "never"
[destination]
bucket = "{bucket}"
prefix = "shop"
endpoint_url = "{s3.endpoint_url}"
[chunk]
max_age = "1s"
[http]
listen = "127.0.0.1:{closed_port}"
"""
    )
    return file


def verified_rows(file: Path, s3: EmbeddedS3) -> int:
    verdict = tailrace("verify", "--json", "-c", str(file), variables=s3.environment)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    rows: int = json.loads(verdict.stdout)["rows"]
    return rows


def steps_of(file: Path, s3: EmbeddedS3) -> tuple[int, dict[str, dict[str, Any]]]:
    result = tailrace("check", "--json", "-c", str(file), variables=s3.environment, seconds=60)
    assert result.stdout, result.stderr
    return result.returncode, {step["name"]: step for step in json.loads(result.stdout)["steps"]}


@pytest.mark.timeout(900)
def test_check_finds_what_run_refuses(real_file: Path, database: Database, s3: EmbeddedS3) -> None:
    """A pattern that no table matches, and a table that cannot be published."""
    text = real_file.read_text()
    database.execute("CREATE TABLE keyless (n integer)")

    for pattern, step, text_found in (
        ("public.gone", "tables", "no table matches"),
        ("*.keyless", "replica identity", "no captured table has a replica identity"),
    ):
        real_file.write_text(text.replace("[source]", f'[source]\ntables = ["{pattern}"]'))
        code, steps = steps_of(real_file, s3)
        ran = tailrace(
            "run", "--until-caught-up", "-c", str(real_file), variables=s3.environment, seconds=60
        )

        assert code == ran.returncode == 78, (steps, ran.stderr)
        assert text_found in steps[step]["detail"]
        assert steps[step]["hint"]


@pytest.mark.timeout(900)
def test_check_finds_that_the_role_may_not_make_the_publication(
    real_file: Path, database: Database, s3: EmbeddedS3
) -> None:
    role = f"{database.name}_reader"
    database.execute(f"CREATE ROLE {role} LOGIN REPLICATION")
    try:
        text = real_file.read_text().replace(f'"{database.dsn}"', f'"{database.dsn} user={role}"')
        real_file.write_text(text)

        code, steps = steps_of(real_file, s3)
        ran = tailrace(
            "run", "--until-caught-up", "-c", str(real_file), variables=s3.environment, seconds=60
        )
    finally:
        database.execute(f"DROP ROLE {role}")

    assert code == ran.returncode == 78, (steps, ran.stderr)
    assert "the role may not make it" in steps["publication"]["detail"]
    assert "CREATE PUBLICATION" in steps["publication"]["hint"]
    assert "CREATE PUBLICATION" in ran.stderr


@pytest.mark.timeout(900)
def test_a_used_slot_and_a_prefix_without_a_journal_are_a_warning(
    real_file: Path, database: Database, s3: EmbeddedS3
) -> None:
    _, fresh = steps_of(real_file, s3)
    arguments = ("run", "--until-caught-up", "-c", str(real_file))
    first = tailrace(*arguments, variables=s3.environment, seconds=60)
    _, known = steps_of(real_file, s3)
    real_file.write_text(real_file.read_text().replace('"shop"', '"shpo"'))

    code, steps = steps_of(real_file, s3)
    second = tailrace(*arguments, variables=s3.environment, seconds=60)

    assert (first.returncode, code, second.returncode) == (0, 0, 0), second.stderr
    assert not fresh["slot"]["hint"]
    assert not known["slot"]["hint"]
    assert "changes from before will not be in this prefix" in steps["slot"]["detail"]
    assert "destination.prefix" in steps["slot"]["hint"]
    assert "the slot is there and the prefix has no journal" in second.stderr
    assert "the slot is there" not in first.stderr


@pytest.mark.timeout(900)
def test_a_bucket_that_is_not_there_is_named(real_file: Path, bucket: str, s3: EmbeddedS3) -> None:
    real_file.write_text(real_file.read_text().replace(f'"{bucket}"', '"nobodys-bucket"'))

    code, steps = steps_of(real_file, s3)
    ran = tailrace("run", "-c", str(real_file), variables=s3.environment, seconds=60)

    assert code == ran.returncode == 78
    assert "nobodys-bucket" in steps["bucket"]["detail"]
    assert "in bucket nobodys-bucket: NoSuchBucket" in ran.stderr


@pytest.mark.timeout(300)
def test_a_source_that_does_not_answer_is_one_failure(
    real_file: Path, database: Database, s3: EmbeddedS3
) -> None:
    real_file.write_text(
        real_file.read_text().replace(f'"{database.dsn}"', '"host=127.0.0.1 port=1"')
    )

    code, steps = steps_of(real_file, s3)

    assert code == 69
    assert [name for name, step in steps.items() if step["state"] == "failure"] == ["source"]
    assert steps["journal"]["state"] == "ok"


def test_run_until_caught_up_publishes_what_was_committed_and_exits_0(
    real_file: Path, database: Database, s3: EmbeddedS3
) -> None:
    arguments = ("run", "--until-caught-up", "-c", str(real_file))
    first = tailrace(*arguments, variables=s3.environment)
    database.execute("INSERT INTO orders SELECT generate_series(1, 100)")

    second = tailrace(*arguments, variables=s3.environment)

    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    assert second.stdout == f"\nnext: tailrace verify -c {real_file}\n"
    assert verified_rows(real_file, s3) == 100


@pytest.mark.timeout(180)
def test_run_is_ready_then_drains_at_a_signal(
    real_file: Path, database: Database, s3: EmbeddedS3, closed_port: int
) -> None:
    command = [sys.executable, "-m", "engine", "run", "-c", str(real_file)]
    with started(command, s3.environment) as process:
        wait_until_ready(closed_port, process)
        database.execute("INSERT INTO orders SELECT generate_series(1, 100)")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)

    caught_up = tailrace("run", "--until-caught-up", "-c", str(real_file), variables=s3.environment)
    assert process.returncode == 0, errors
    assert caught_up.returncode == 0, caught_up.stderr
    assert verified_rows(real_file, s3) == 100


def wait_until_ready(port: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    pytest.fail("the engine was not ready in 60 s")


def test_every_field_that_the_engine_logs_may_be_shown() -> None:
    logged: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in {"_log", "log"}
            ):
                logged |= {word.arg: path.name for word in node.keywords if word.arg}

    assert logged, "the engine logs something"
    unknown = {name: where for name, where in logged.items() if name not in FIELDS | {"exc_info"}}
    assert not unknown


LOGGING = """
import logging, sys, warnings
import structlog
from engine.operate import logs
from engine.config import LogConfiguration
from engine.model.errors import SourceUnavailable

logs.configure(LogConfiguration(level=sys.argv[1], format=sys.argv[2]))
log = structlog.get_logger("engine.example")
log.info("slot held", subject="tailrace", password="geheim")
log.debug("looked again")
logging.getLogger("botocore.auth").debug("geheim")
logging.getLogger("botocore.auth").warning("clock is off\\ngeheim")
try:
    try:
        raise ValueError("geheim")
    except ValueError as error:
        raise SourceUnavailable("cannot connect") from error
except SourceUnavailable:
    log.warning("source lost", exc_info=True)
    logging.getLogger("asyncio").error("never retrieved", exc_info=True)
"""


def log_lines(level: str, form: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", LOGGING, level, form],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == ""
    return result.stderr


def test_logs_are_json_lines_on_stderr_with_known_fields_alone() -> None:
    rows = [json.loads(line) for line in log_lines("info", "auto").splitlines()]

    assert [row["event"] for row in rows] == [
        "slot held",
        "a library says",
        "source lost",
        "a library says",
    ]
    assert rows[0]["subject"] == "tailrace"
    assert rows[0]["password"] == HIDDEN
    assert rows[1]["text"] == "clock is off"
    assert rows[2]["error"] == "cannot connect"
    assert all(row["timestamp"].endswith("Z") for row in rows)
    assert all("traceback" not in row for row in rows)


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_level_and_no_format_shows_a_secret(form: str) -> None:
    text = log_lines("debug", form)

    assert "looked again" in text
    assert "ValueError" in text
    assert SECRET not in text


def test_the_error_level_is_silent_about_the_rest() -> None:
    rows = log_lines("error", "json").splitlines()

    assert [json.loads(row)["text"] for row in rows] == ["never retrieved"]
