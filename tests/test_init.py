"""`tailrace init`: what it asks, what it writes, and that a run can start with it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from databases import Database
from engine.cli.application import main
from engine.config import Configuration, Secret, load
from engine.servers.servers import EmbeddedS3
from terminal import seated

SECRET = "geheim"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shop(database: Database) -> Iterator[str]:
    """A connection string with a password in it, of a database with tables of all kinds."""
    role = f"{database.name}_owner"
    database.execute(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{SECRET}'")
    for statement in (
        "CREATE TABLE orders (id integer PRIMARY KEY)",
        "CREATE TABLE notes (text text)",
        "CREATE UNLOGGED TABLE cache (id integer PRIMARY KEY)",
        "CREATE SCHEMA sales",
        'CREATE TABLE sales."Odd name" (id integer PRIMARY KEY)',
    ):
        database.execute(statement)
    yield f"{database.dsn} user={role} password={SECRET}"
    database.execute(f"DROP OWNED BY {role}")
    database.execute(f"DROP ROLE {role}")


def dsn_of(configuration: Configuration) -> str:
    dsn = configuration.source.own.dsn
    assert isinstance(dsn, Secret)
    return dsn.reveal()


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def options(
    shop: str,
    database: Database,
    aws_environment: EmbeddedS3,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, ...]:
    """All that has to be said about real servers."""
    monkeypatch.setenv("SHOP_DSN", shop)
    monkeypatch.setenv("TAILRACE_HTTP__LISTEN", "off")
    server = ("--endpoint-url", aws_environment.endpoint_url, "--slot", database.name)
    return ("--source-env", "SHOP_DSN", "--bucket", bucket, "--prefix", "shop", *server)


def test_what_it_writes_passes_check_and_holds_no_password(
    folder: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["init", *options])

    told = capsys.readouterr()
    text = (folder / "tailrace.toml").read_text()
    lines = [" ".join(line.split()) for line in told.out.splitlines()]
    assert code == 0, told.err
    assert lines[0].startswith("PostgreSQL 18.")
    assert lines[0].endswith(": 4 tables")
    assert any(
        line.startswith("public.notes cannot be captured: no primary key; `ALTER TABLE")
        for line in lines
    )
    assert any(line.startswith("public.cache cannot be captured: unlogged") for line in lines)
    assert 'sales."Odd name" can be captured' in lines
    assert "it names 4 tables: 2 can be captured, 2 cannot be" in lines
    assert told.out.endswith("\nnext: tailrace check  (tries everything that a run needs)\n")
    assert 'dsn = "${SHOP_DSN}"' in text
    assert 'tables = ["public.*", "sales.*"]' in text
    assert SECRET not in text + told.out + told.err

    assert main(["check", "--offline"]) == 0, capsys.readouterr()
    assert main(["check"]) == 0, capsys.readouterr()


def test_a_database_that_is_not_there_is_told_and_the_file_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dsn = "host=127.0.0.1 port=1 dbname=shop user=tailrace"

    code = main(["init", "--dsn", dsn, "--bucket", "my-bucket", "--tables", "sales.*"])
    told = capsys.readouterr()
    offline = main(["check", "--offline"])

    found = load(folder / "tailrace.toml", {}).configuration
    assert (code, offline) == (0, 0)
    assert "the tables are not known: no connection to PostgreSQL" in told.out
    assert inside(folder) == ["tailrace.toml"]
    assert dsn_of(found) == dsn
    assert (found.destination.bucket, found.destination.prefix) == ("my-bucket", "shop")
    assert found.source.tables == ("sales.*",)


def test_a_variable_that_is_not_set_yet_is_written_all_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--source-env", "NOT_SET", "--bucket", "my-bucket", "--prefix", "a/b")

    code = main(["init", *words, "-o", "other.toml"])

    told = capsys.readouterr().out
    found = load(folder / "other.toml", {"NOT_SET": "host=db"}).configuration
    assert code == 0
    assert "the environment variable NOT_SET is not set here" in told
    assert "next: export NOT_SET with the connection string, then `tailrace check -c" in told
    assert dsn_of(found) == "host=db"


def test_what_looks_like_a_variable_in_a_value_is_written_as_it_is(folder: Path) -> None:
    dsn = "host=127.0.0.1 port=1 dbname=${x}\\' user='a \"b\"'"

    main(["init", "--dsn", dsn, "--bucket", "my-bucket", "--prefix", "p"])

    assert dsn_of(load(folder / "tailrace.toml", {}).configuration) == dsn


def test_a_string_that_aws_keeps_is_written_by_its_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = "secretsmanager:shop#dsn"

    code = main(["init", "--dsn", reference, "--bucket", "my-bucket", "--prefix", "shop"])

    assert code == 0
    assert "AWS keeps the connection string" in capsys.readouterr().out
    assert f'dsn = "{reference}"' in (folder / "tailrace.toml").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("", "add --source-env NAME, or --dsn DSN and --bucket NAME"),
        ("--source-env A --dsn host=b --bucket my-bucket", "keep one of them"),
        ("--source-env TAILRACE_X --bucket my-bucket", "name another one"),
        ("--source-env a-b --bucket my-bucket", "no name of an environment variable"),
        (f"--dsn postgresql://u:{SECRET}@127.0.0.1:1/d --bucket my-bucket", "holds a password"),
        (f"--dsn postgresql://u:a@{SECRET}@h:1/d --bucket my-bucket", "is a URI with an @"),
        ("--dsn jdbc:postgresql://h/d --bucket my-bucket", "JDBC"),
        ("--dsn host=127.0.0.1 --bucket s3://my-bucket", "--bucket is an address"),
        ("--dsn host=127.0.0.1 --bucket my-bucket --prefix /x", "--prefix begins or ends"),
        ("--dsn host=127.0.0.1 --bucket my-bucket --tables .x", "--tables holds a pattern"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str, text: str
) -> None:
    code = main(["init", *words.split()])

    told = capsys.readouterr()
    assert code == 2
    assert text in told.err
    assert SECRET not in told.out + told.err
    assert inside(folder) == []


def test_a_file_is_replaced_only_when_that_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tailrace.toml").write_text("mine")
    words = ("init", "--dsn", "host=127.0.0.1 port=1 dbname=d", "--bucket", "my-bucket")

    refused = main([*words])
    kept = (folder / "tailrace.toml").read_text()
    told = capsys.readouterr().err
    forced = main([*words, "--force", "--json"])

    document = json.loads(capsys.readouterr().out)
    assert (refused, kept, forced) == (2, "mine", 0)
    assert "add --force to replace it" in told
    assert document["file"] == "tailrace.toml"
    assert document["problem"].startswith("no connection to PostgreSQL")
    assert 'bucket = "my-bucket"' in (folder / "tailrace.toml").read_text()
    assert inside(folder) == ["tailrace.toml"]


def test_in_a_terminal_it_asks_and_asks_again(folder: Path, shop: str) -> None:
    environment = {**os.environ, "DATABASE_URL": shop, "AWS_REGION": "eu-west-1", "TERM": "dumb"}
    with seated("init", environment=environment, folder=folder) as seat:
        seat.sees("[DATABASE_URL] > ")
        seat.types(f"postgresql://u:{SECRET}@h/d\n")
        seat.sees("holds a password")
        seat.types("\n")
        seat.sees("[public.* sales.*] > ")
        seat.types("public.orders\n")
        seat.sees("Which bucket?")
        seat.types("Not_A_Bucket\n")
        seat.sees("is not a bucket's name")
        seat.types("my-bucket\n")
        seat.sees("Which prefix?")
        seat.types("\n")
        seat.sees("[eu-west-1] > ")
        seat.types("\n")
        code = seat.leaves()

    found = load(folder / "tailrace.toml", {"DATABASE_URL": shop}).configuration
    assert code == 0, seat.text
    assert dsn_of(found) == shop
    assert found.source.tables == ("public.orders",)
    assert found.destination.region == "eu-west-1"
    assert "next: tailrace check" in seat.text


def test_ctrl_c_at_a_question_leaves_no_file(folder: Path) -> None:
    environment = {**os.environ, "TERM": "dumb"}
    words = ("init", "--dsn", "host=127.0.0.1 port=1 dbname=d")
    with seated(*words, environment=environment, folder=folder) as seat:
        seat.sees("Which tables?")
        seat.sees("> ")
        seat.interrupts()
        code = seat.leaves()

    assert code == 130, seat.text
    assert "Traceback" not in seat.text
    assert inside(folder) == []
