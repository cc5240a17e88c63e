"""The dsn: what libpq reads from it, what is refused, and that no piece of a password is shown."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from databases import Database
from engine import app, kinds
from engine.config import load
from engine.model.errors import ConfigurationError, SourceError, SourceUnavailable
from engine.model.record import RecordConfiguration
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres
from engine.sources.postgres.dsn import parsed, place_of
from engine.sources.postgres.session import APPLICATION_NAME, connect, translated
from engine.sources.postgres.source import PostgresSource

CONFIGURATION = RecordConfiguration(through="tailrace", tables=("public.*",))

CANARIES = ("kanary1", "kanary2", "kanary3")
SIGNS = "@:/?#% '\"\\,=&[]"
PASSWORDS = tuple(
    f"{CANARIES[0]}{one}{CANARIES[1]}{two}{CANARIES[2]}"
    for one, two in itertools.product(SIGNS, repeat=2)
)


def pieces_in(*texts: str) -> list[str]:
    return [canary for canary in CANARIES for text in texts if canary in text]


def shown_of(dsn: str) -> list[str]:
    """Everything that a dsn has anybody see, short of a server."""
    try:
        return [repr(parsed(dsn) and place_of(dsn))]
    except ConfigurationError as error:
        return [str(error), error.hint, place_of(dsn)]


# ------------------------------------------------------------------------------- parsing


def test_no_piece_of_a_password_is_shown_whatever_it_holds() -> None:
    forms = [form for password in PASSWORDS for form in forms_of(password)]

    for form in forms:
        assert not pieces_in(*shown_of(form)), form


def forms_of(password: str) -> list[str]:
    return [
        f"postgresql://u:{password}@db.example:5432/shop",
        f"postgresql://u:{password}@db.example/shop?sslmode=require",
        f"postgresql://{password}@db.example/shop",
        f"postgres://u:{password}@",
        f"host=db.example dbname=shop user=u password={password}",
        f"host=db.example password={password} dbname=shop",
        f"password='{password}' host=db.example",
    ]


def test_an_escaped_password_reaches_libpq_whole() -> None:
    for password in PASSWORDS:
        uri = parsed(f"postgresql://u:{quote(password, safe='')}@db.example/shop")
        words = parsed(make_conninfo(host="db.example", user="u", dbname="shop", password=password))

        assert uri == words
        assert uri["password"] == password


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:kanary1@kanary2@db/shop",
        "postgresql://u:kanary1/kanary2@db/shop",
        "postgresql://u:54/kanary2@db/shop",
        "postgresql://u@kanary1@db/shop",
        "host=kanary1@db",
        "host=db port=kanary1",
        "host=db connect_timeout=kanary1",
        "host=db dbname=postgresql://u:kanary1@db/shop",
        "host=db pasword=kanary1",
        "host=db password='kanary1",
        "service='kanary1 kanary2'",
        "kanary1",
    ],
)
def test_what_nobody_can_have_meant_is_refused_and_not_repeated(dsn: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(dsn)

    assert caught.value.hint
    assert not pieces_in(str(caught.value), caught.value.hint, place_of(dsn))


@pytest.mark.parametrize(
    ("dsn", "place"),
    [
        ("postgresql://u:p@[::1]:5433/shop?user=me@corp", "::1:5433/shop"),
        ("postgresql://a:1,b:2/shop?target_session_attrs=read-write", "a:1,b:2/shop"),
        ("postgresql:///shop?host=/var/run/postgresql", "/var/run/postgresql:5432/shop"),
        ("postgresql://%2Fvar%2Frun/shop", "/var/run:5432/shop"),
        ("host=@tailrace dbname='a b'", "@tailrace:5432/a b"),
        ("service=shop", "service shop"),
        ("postgresql://db_1.example/shop?channel_binding=require", "db_1.example:5432/shop"),
    ],
)
def test_what_libpq_takes_is_taken(dsn: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)

    assert place_of(dsn) == place


# ------------------------------------------------------------------------------ connecting


async def asked(dsn: str, question: str, *, replication: bool = False) -> object:
    async with await connect(dsn, replication=replication) as connection:
        cursor = await connection.execute(question.encode())
        [(value,)] = await cursor.fetchall()
        return value


@pytest.mark.parametrize("extra", ["replication=database", "replication=true", "replication=1"])
async def test_a_dsn_for_replication_serves_side_sessions_too(
    any_database: Database, extra: str
) -> None:
    any_database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    source = PostgresSource(
        dsn=f"{any_database.dsn} {extra}", slot=any_database.name, configuration=CONFIGURATION
    )

    await source.prepare(is_first=True)

    assert (await source.identify()).database == any_database.name


async def test_a_service_file_may_ask_for_replication_and_for_a_name(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "services"
    file.write_text(
        f"[shop]\nhost=127.0.0.1\nport={database.server.port}\ndbname={database.name}\n"
        f"user=postgres\nreplication=database\napplication_name=chosen\n"
        "options=-csearch_path=elsewhere\nclient_encoding=LATIN1\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))

    seen = [
        await asked("service=shop", f"SHOW {name}")
        for name in ("application_name", "search_path", "client_encoding")
    ]

    assert seen == ["chosen", "pg_catalog, pg_temp", "UTF8"]


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ("", APPLICATION_NAME),
        ("application_name=chosen", "chosen"),
        ("fallback_application_name=other", "other"),
    ],
)
async def test_a_name_that_the_dsn_sets_is_kept(database: Database, extra: str, name: str) -> None:
    for replication in (False, True):
        dsn = f"{database.dsn} {extra}"

        assert await asked(dsn, "SHOW application_name", replication=replication) == name


async def test_libpqs_environment_does_not_reach_our_sessions(
    any_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGTZ": "Asia/Tokyo",
        "PGDATESTYLE": "SQL, DMY",
        "PGGEQO": "off",
        "PGCLIENTENCODING": "LATIN1",
        "PGOPTIONS": "-c search_path=elsewhere -c lock_timeout=1",
    }.items():
        monkeypatch.setenv(name, value)

    seen = [
        await asked(any_database.dsn, f"SHOW {name}", replication=True)
        for name in ("TimeZone", "DateStyle", "client_encoding", "search_path", "lock_timeout")
    ]

    assert seen == ["UTC", "ISO, MDY", "UTF8", "pg_catalog, pg_temp", "0"]


@pytest.mark.parametrize(
    "options",
    [
        "-c search_path=elsewhere",
        "-csearch_path=elsewhere",
        "--search_path=elsewhere",
        "--search-path=elsewhere",
        "-c a.b=c\\",
        "-c a.b=c\\\\\\ d\\",
        "  -c  lock_timeout=1\t-c\tsearch_path=elsewhere ",
    ],
)
async def test_options_of_the_dsn_do_not_win_over_ours(database: Database, options: str) -> None:
    dsn = make_conninfo(database.dsn, options=options)

    assert await asked(dsn, "SHOW search_path") == "pg_catalog, pg_temp"
    assert await asked(dsn, "SHOW lock_timeout") == "0"


async def test_other_options_of_the_dsn_are_kept(database: Database) -> None:
    dsn = make_conninfo(database.dsn, options=r"-c a.b=x\ \\y --work_mem=1MB -c geqo=off")

    assert await asked(dsn, "SHOW a.b") == "x \\y"
    assert await asked(dsn, "SHOW geqo") == "off"


# ----------------------------------------------------------------------- what is rotated


@pytest.fixture(scope="module")
def strict_server() -> Iterator[EmbeddedPostgres]:
    """Wants a password from everybody but its superuser."""
    with EmbeddedPostgres(settings=FAST_SETTINGS) as server:
        (server.data_directory / "pg_hba.conf").write_text(
            "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE ROLE rotated LOGIN REPLICATION")
            connection.execute("SELECT pg_reload_conf()")
        yield server


def give_password(server: EmbeddedPostgres, password: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER ROLE rotated PASSWORD {}").format(sql.Literal(password)))


CONFIGURATION_FILE = """
[source]
{source}
snapshot = "never"
[destination]
bucket = "bucket"
prefix = "p"
"""


async def test_a_rotated_dsn_file_is_read_at_the_next_connect(
    strict_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    file = tmp_path / "dsn"
    (tmp_path / "tailrace.toml").write_text(CONFIGURATION_FILE.format(source='dsn_file = "dsn"'))
    uri = f"postgresql://rotated:{{}}@127.0.0.1:{strict_server.port}/postgres"
    give_password(strict_server, PASSWORDS[0])
    file.write_text(uri.format(quote(PASSWORDS[0], safe="")) + "\n")
    configuration = load(tmp_path / "tailrace.toml", {}).configuration
    source = app._source(configuration, kinds.reach_of(configuration.source.own))
    await source.identify()

    give_password(strict_server, PASSWORDS[5])
    with pytest.raises(SourceError) as refused:
        await source.identify()
    file.write_text("")
    with pytest.raises(SourceUnavailable) as empty:
        await source.identify()
    file.unlink()
    with pytest.raises(SourceUnavailable) as absent:
        await source.identify()
    file.write_text(uri.format(quote(PASSWORDS[5], safe="")) + "\n")

    assert (await source.identify()).database == "postgres"
    errors = [refused.value, empty.value, absent.value]
    assert all(error.hint for error in errors)
    assert not pieces_in(*(f"{error} {error.hint}" for error in errors))


async def test_a_rotated_password_file_is_read_at_the_next_connect(
    strict_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    file = tmp_path / "pgpass"
    dsn = make_conninfo(strict_server.dsn_of("postgres", user="rotated"), passfile=str(file))
    source = PostgresSource(dsn=dsn, slot="s", configuration=CONFIGURATION)
    file.touch(mode=0o600)
    for password in ("one", "two"):
        give_password(strict_server, password)
        file.write_text(f"*:*:*:*:{password}\n")

        assert (await source.identify()).database == "postgres"


# --------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("sign", ["@", "/"])
def test_check_and_run_never_show_a_piece_of_a_password(
    sign: str, strict_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    password = sign.join(CANARIES)
    port = strict_server.port
    dsn = f"postgresql://rotated:{password}@127.0.0.1:{port}/postgres?connect_timeout=2"
    (tmp_path / "dsn").write_text(dsn)
    file = tmp_path / "tailrace.toml"
    file.write_text(
        CONFIGURATION_FILE.format(source='dsn_file = "dsn"')
        + 'endpoint_url = "http://127.0.0.1:1"\nregion = "x"\n'
        + '[http]\nlisten = "127.0.0.1:0"\n[log]\nlevel = "debug"\n'
    )
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}

    for command in (["check", "--json"], ["run"]):
        done = subprocess.run(
            [sys.executable, "-m", "engine", *command, "-c", str(file)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

        assert done.stdout or done.stderr
        assert not pieces_in(done.stdout, done.stderr), done.stdout + done.stderr


# ------------------------------------------------------------------- what a server may say


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_catalog.int4in('kanary1')",
        "DO $$ BEGIN RAISE EXCEPTION 'kanary1' USING DETAIL = 'kanary2', HINT = 'kanary3'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'kanary1' USING ERRCODE = '23505'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'kanary1' USING ERRCODE = 'XX000'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'kanary1' USING ERRCODE = '40001'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'kanary1' USING ERRCODE = 'ZZ123'; END $$",
    ],
)
async def test_a_message_that_may_hold_a_value_is_not_passed_on(
    database: Database, statement: str
) -> None:
    with database.connect() as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(statement.encode())

    error = translated(caught.value, "asking")

    assert f"SQLSTATE {caught.value.sqlstate}" in str(error)
    assert not pieces_in(str(error), error.hint)


async def test_a_message_that_names_an_object_is_passed_on(database: Database) -> None:
    with pytest.raises(psycopg.Error) as caught:
        database.execute("SELECT * FROM nowhere")

    assert 'relation "nowhere" does not exist' in str(translated(caught.value, "asking"))
