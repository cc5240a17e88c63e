"""A password that is changed while an engine runs, and one that AWS's credentials sign anew.

The engines are processes before a real PostgreSQL. Its role's password is changed and its sessions
are ended, as a rotation of RDS does.
"""

import datetime as dt
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import botocore.auth
import psycopg
import pytest
from psycopg import sql

from aws_server import moto_server, owner_of
from certificates import write_certificate
from databases import Database, fresh_database
from engine.aws import client
from engine.config import PostgresConfiguration, Secret
from engine.kinds import reach_of
from engine.model.errors import SourceFailed, SourceRefused
from engine.model.record import RecordConfiguration
from engine.servers.fault_proxy import Answer, HttpFaultProxy
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from engine.sources.postgres.source import PostgresSource
from load_tests.engine_process import EngineProcess, Pipeline, until

REGION = "us-east-1"
ROLE = "rotated"
MANAGER = "AWS_ENDPOINT_URL_SECRETS_MANAGER"


@pytest.fixture(scope="module")
def strict_server() -> Iterator[EmbeddedPostgres]:
    """Wants a password from everybody but its superuser, and a token in clear text over TLS."""
    with EmbeddedPostgres.debian(15, settings=FAST_SETTINGS) as server:
        server.stop()
        (server.data_directory / "pg_hba.conf").write_text(
            "host all postgres 127.0.0.1/32 trust\n"
            "hostssl all signed 127.0.0.1/32 password\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
        )
        write_certificate(server)
        server.settings["ssl"] = "on"
        server.start()
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture
def manager(moto: str, aws_environment: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Secrets Manager, as whoever keeps a secret there reaches it."""
    monkeypatch.setenv(MANAGER, moto)
    return owner_of("secretsmanager", moto, REGION)


@pytest.fixture
def shop(strict_server: EmbeddedPostgres) -> Iterator[Database]:
    """A database with a table that the role may stream and read."""
    with fresh_database(strict_server) as database:
        database.execute(
            f"DO $$ BEGIN CREATE ROLE {ROLE} LOGIN REPLICATION; "
            "EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        )
        database.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
        database.execute(f"GRANT SELECT ON orders TO {ROLE}")
        database.execute("CREATE PUBLICATION tailrace FOR TABLE orders")
        yield database


def give_password(database: Database, password: str) -> None:
    with database.connect() as connection:
        connection.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(ROLE), sql.Literal(password))
        )


def end_sessions(database: Database) -> None:
    database.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'"
    )


def pipeline_of(
    database: Database, s3: EmbeddedS3, bucket: str, environment: dict[str, str], **source: object
) -> Pipeline:
    return Pipeline(
        {
            "source": {
                "dsn": f"host=127.0.0.1 port={database.server.port} dbname={database.name}"
                f" user={ROLE}",
                "slot": f"rotated_{secrets.token_hex(4)}",
                "new_tables": "report",
                "snapshot_workers": "local:1",
                **source,
            },
            "destination": {"bucket": bucket, "prefix": "p", "endpoint_url": s3.endpoint_url},
            "chunk": {"max_age": "300ms"},
            "engine": {"append_interval": "100ms"},
            "log": {"level": "info", "format": "json"},
        },
        {**s3.environment, **environment},
    )


Keep = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def lives_through_a_rotation(
    pipeline: Pipeline, database: Database, keep: Keep, folder: Path
) -> AsyncIterator[EngineProcess]:
    """An engine whose password was changed in the server first, and kept later."""
    give_password(database, "kanary-first")
    await keep("kanary-first")
    with EngineProcess(pipeline, folder, "run", "run") as process:
        await process.reaches("streaming")
        await published(process, database, 1)

        give_password(database, "kanary-second")
        end_sessions(database)
        # Between the two steps of a rotation nobody can log in. That ends no engine.
        await process.reaches("reconnecting", "failing")
        await until(lambda: is_logged(process, "password authentication failed"), "a refused login")
        await keep("kanary-second")
        await process.reaches("streaming")
        await published(process, database, 2)
        yield process
        await process.stop()
    assert "kanary-first" not in process.log
    assert "kanary-second" not in process.log


async def is_logged(process: EngineProcess, text: str) -> bool:
    return text in process.log


async def published(process: EngineProcess, database: Database, number: int) -> None:
    before = ((await process.status()) or {})["objects_total"]
    database.execute(f"INSERT INTO orders VALUES ({number})")

    async def look() -> bool:
        return bool(((await process.status()) or {})["objects_total"] > before)

    await until(look, f"row {number}")


async def test_a_password_of_a_file_is_changed_while_the_engine_runs(
    shop: Database, s3: EmbeddedS3, bucket: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"

    async def keep(password: str) -> None:
        file.write_text(password + "\n")

    pipeline = pipeline_of(shop, s3, bucket, {}, password_file=str(file))
    async with lives_through_a_rotation(pipeline, shop, keep, tmp_path) as process:
        status = await process.status()

    assert status is not None
    assert status["alarms"] == []


async def test_a_secret_of_secrets_manager_is_rotated_while_the_engine_runs(
    shop: Database,
    s3: EmbeddedS3,
    bucket: str,
    manager: Any,
    tmp_path: Path,
) -> None:
    name = f"rds!db-{secrets.token_hex(4)}"
    manager.create_secret(Name=name, SecretString="{}")

    async def keep(password: str) -> None:
        text = f'{{"username": "{ROLE}", "password": "{password}"}}'
        manager.put_secret_value(SecretId=name, SecretString=text)

    # The rows that are there are read by a worker, a process of its own.
    shop.execute("INSERT INTO orders SELECT generate_series(100, 200)")
    environment = {"AWS_ENDPOINT_URL_SECRETS_MANAGER": os.environ[MANAGER]}
    pipeline = pipeline_of(
        shop, s3, bucket, environment, password=f"secretsmanager:{name}#password"
    )
    async with lives_through_a_rotation(pipeline, shop, keep, tmp_path) as process:
        await until(lambda: is_logged(process, "snapshot read"), "the rows that were there")
        (read,) = process.events("snapshot read")

    assert read["rows"] >= 101


DENIED = Answer(
    400,
    headers=(("Content-Type", "application/x-amz-json-1.1"),),
    body=b'{"__type": "AccessDeniedException", "Message": "not authorized: GetSecretValue"}',
)


@pytest.mark.timeout(120)
async def test_a_snapshot_begins_with_a_secret_that_is_refused_for_a_while(
    shop: Database, s3: EmbeddedS3, bucket: str, manager: Any, tmp_path: Path
) -> None:
    name = f"rds!db-{secrets.token_hex(4)}"
    manager.create_secret(Name=name, SecretString='{"password": "kanary-first"}')
    give_password(shop, "kanary-first")
    shop.execute("INSERT INTO orders SELECT generate_series(1, 100)")
    async with HttpFaultProxy(urlsplit(os.environ[MANAGER]).port or 0) as proxy:
        pipeline = pipeline_of(
            shop,
            s3,
            bucket,
            {MANAGER: proxy.endpoint_url},
            password=f"secretsmanager:{name}#password",
        )
        with EngineProcess(pipeline, tmp_path, "first", "run", "--until-caught-up") as first:
            assert await first.ended() == 0, first.complaint
        with EngineProcess(pipeline, tmp_path, "second", "run") as process:
            await process.reaches("streaming")
            proxy.inject(DENIED)
            give_password(shop, "kanary-second")
            manager.put_secret_value(SecretId=name, SecretString='{"password": "kanary-second"}')
            words = ("resync", "public.orders")
            with EngineProcess(pipeline, tmp_path, "asks", *words) as asks:
                assert await asks.ended() == 0, asks.complaint

            # The stream has its connections; the snapshot opens its first one.
            await until(lambda: is_logged(process, "snapshot put off"), "a refused secret")
            proxy.clear()
            await until(lambda: is_logged(process, "snapshot read"), "the rows")
            status = await process.status()
            await process.stop()

    put_off, alarms = process.events("snapshot put off"), process.events("alarm")
    assert "AWS refused to give secretsmanager:" in put_off[0]["error"]
    # What is refused is an alarm at once; what may pass is one after three failures.
    assert not alarms or len(put_off) >= 3
    assert status is not None
    assert (status["phase"], status["alarms"]) == ("streaming", [])
    assert "kanary" not in process.log


@pytest.mark.timeout(90)
async def test_a_dsn_that_the_server_refuses_stalls_a_running_engine_with_an_alarm(
    shop: Database, s3: EmbeddedS3, bucket: str, tmp_path: Path
) -> None:
    give_password(shop, "kanary-first")
    good = (
        f"host=127.0.0.1 port={shop.server.port} dbname={shop.name} user={ROLE}"
        " password=kanary-first"
    )
    file = tmp_path / "dsn"
    file.write_text(good)
    pipeline = pipeline_of(shop, s3, bucket, {}, dsn_file=str(file)).without("source", "dsn")
    with EngineProcess(pipeline, tmp_path, "run", "run") as process:
        await process.reaches("streaming")
        await published(process, shop, 1)

        file.write_text(good.replace(f"dbname={shop.name}", "dbname=shop_elsewhere"))
        end_sessions(shop)
        failing = await process.reaches("failing")
        readiness = await process.readiness()
        shop.execute("INSERT INTO orders VALUES (2)")
        file.write_text(good)
        await process.reaches("streaming")
        await published(process, shop, 3)
        over = await process.status()
        await process.stop()

    assert readiness is not None
    assert readiness[0] == 503
    (alarm,) = failing["alarms"]
    assert alarm["code"] == "source-failing"
    assert 'database "shop_elsewhere" does not exist' in alarm["text"]
    assert "check dbname and user" in alarm["hint"]
    assert "read anew at each attempt" in alarm["hint"]
    assert over is not None
    assert over["alarms"] == []
    assert over["rows_total"] == 3
    assert "kanary" not in process.log


async def test_a_dsn_that_the_server_refuses_ends_a_start(
    shop: Database, s3: EmbeddedS3, bucket: str, tmp_path: Path
) -> None:
    give_password(shop, "kanary-first")
    file = tmp_path / "dsn"
    file.write_text(
        f"host=127.0.0.1 port={shop.server.port} dbname=shop_elsewhere user={ROLE}"
        " password=kanary-first"
    )
    pipeline = pipeline_of(shop, s3, bucket, {}, dsn_file=str(file)).without("source", "dsn")
    with EngineProcess(pipeline, tmp_path, "run", "run") as process:
        assert await process.ended() == 78

    (end,) = process.events("engine ended")
    assert 'database "shop_elsewhere" does not exist' in end["error"]


# --- a token in a password's place


FROZEN = dt.datetime(2026, 11, 29, 12, 0, 0)  # noqa: DTZ001 - botocore's own are naive


@pytest.fixture
def signing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Credentials of AWS's, and a clock that stands still."""
    values = {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "kanary-key",
        "AWS_SESSION_TOKEN": "token",
        "AWS_REGION": "eu-west-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: FROZEN)
    client.forget()
    yield
    client.forget()


def signed(dsn: str) -> PostgresConfiguration:
    return PostgresConfiguration(
        dsn=Secret(dsn),
        dsn_file=None,
        password=None,
        password_file=None,
        iam_auth=True,
        slot="s",
        publication="p",
    )


async def token_of(dsn: str) -> str:
    read = reach_of(signed(dsn))
    assert not isinstance(read, str)
    password = psycopg.conninfo.conninfo_to_dict(await read.read())["password"]
    assert isinstance(password, str)
    return password


@pytest.mark.usefixtures("signing")
@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("shop.abc123.eu-central-1.rds.amazonaws.com", "eu-central-1"),
        ("shop.cluster-abc123.cn-north-1.rds.amazonaws.com.cn", "cn-north-1"),
        ("db.internal", "eu-west-1"),
    ],
)
async def test_a_token_is_a_signed_address_of_host_port_role_and_region(
    host: str, region: str
) -> None:
    token = await token_of(f"postgresql://tail%40race@{host}:6543/shop?sslmode=verify-full")

    url = urlsplit(f"https://{token}")
    query = parse_qs(url.query)
    assert (url.hostname, url.port, url.path) == (host, 6543, "/")
    assert query["Action"] == ["connect"]
    assert query["DBUser"] == ["tail@race"]
    assert query["X-Amz-Expires"] == ["900"]
    assert query["X-Amz-Credential"] == [f"AKIDEXAMPLE/20261129/{region}/rds-db/aws4_request"]
    assert query["X-Amz-Security-Token"] == ["token"]
    assert "kanary" not in token


@pytest.mark.usefixtures("signing")
async def test_each_connection_logs_in_with_a_token_of_its_own(
    shop: Database, strict_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = f"host=127.0.0.1 port={strict_server.port} dbname={shop.name} user=signed sslmode=require"
    configuration = RecordConfiguration(through="tailrace", tables=("public.*",))
    source = PostgresSource(dsn=reach_of(signed(dsn)), slot="s", configuration=configuration)
    with shop.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS signed")
        connection.execute(
            sql.SQL("CREATE ROLE signed LOGIN REPLICATION PASSWORD {}").format(
                sql.Literal(await token_of(dsn))
            )
        )

    assert (await source.identify()).database == shop.name

    # A quarter of an hour later the token is another one: nothing was kept.
    later = FROZEN + dt.timedelta(minutes=15)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: later)
    with pytest.raises(SourceFailed, match="password authentication failed"):
        await source.identify()


@pytest.mark.usefixtures("signing")
async def test_no_token_is_made_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    with pytest.raises(SourceRefused, match=r"source\.iam_auth: .*no credentials") as caught:
        await token_of("host=db user=u sslmode=require")

    assert "taskRoleArn" in caught.value.hint
