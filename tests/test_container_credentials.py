"""Credentials that a container's agent gives, and takes back while an engine works.

The agent stands in for ECS's: loopback, `AWS_CONTAINER_CREDENTIALS_FULL_URI`, and a file with the
token that it wants. A gate before the bucket refuses every key but the newest.
"""

import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from botocore.exceptions import ClientError

from aws_server import moto_server, owner_of
from databases import Database
from engine.aws import client
from engine.aws.secrets import read_secret
from engine.config.secret_reference import SecretFailed, SecretReference
from engine.destinations.s3 import S3ObjectStore
from engine.destinations.s3_connection import S3Connection, connect
from engine.destinations.s3_errors import Failure
from engine.destinations.s3_settings import S3Settings
from engine.model.errors import DestinationUnavailable
from engine.servers.fault_proxy import Answer, HttpFaultProxy, Request
from load_tests.engine_process import EngineProcess, Pipeline, until

CANARY = "kanary-agent-secret"
REFUSED = Answer(400, "ExpiredToken", "The provided token has expired.")


@pytest.fixture(scope="module")
def moto_port() -> Iterator[int]:
    """moto's S3: it takes any key, so that the gate alone decides."""
    with moto_server() as url:
        yield int(url.rpartition(":")[2])


@dataclass
class Agent:
    """Serves the newest key. `is_honest`: it says that a key ends soon."""

    token_file: Path
    number: int = 0
    is_honest: bool = True
    refused_count: int = 0
    served: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"AGENT{self.number:04}"

    def rotate(self) -> None:
        """Another key, and another token to ask for it."""
        self.number += 1
        self.token_file.write_text(f"kanary-token-{secrets.token_hex(8)}")

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != self.token_file.read_text():
            self.refused_count += 1
            return web.Response(status=401)
        self.served.append(self.key)
        end = datetime.now(UTC) + timedelta(minutes=5 if self.is_honest else 60)
        return web.json_response(
            {
                "AccessKeyId": self.key,
                "SecretAccessKey": CANARY,
                "Token": f"{CANARY}-token",
                "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )

    def is_outdated(self, request: Request) -> bool:
        """Whether a request was signed with another key than the newest."""
        found = re.search(r"Credential=([^/]+)/", request.header("authorization"))
        return found is None or found[1] != self.key


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_get("/credentials", agent.answer)
    async with TestServer(application) as server:
        yield str(server.make_url("/credentials"))


async def test_an_engine_works_on_while_its_keys_are_taken_back(
    database: Database, moto_port: int, tmp_path: Path
) -> None:
    agent = Agent(tmp_path / "token")
    agent.rotate()
    bucket = f"rotating-{secrets.token_hex(4)}"
    make_bucket(moto_port, bucket)
    database.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    database.execute("INSERT INTO orders VALUES (0)")

    async with HttpFaultProxy(moto_port) as gate, running(agent) as address:
        gate.inject(REFUSED, agent.is_outdated)
        pipeline = pipeline_of(database, gate, bucket, address, agent.token_file)
        with EngineProcess(pipeline, tmp_path, "run", "run") as process:
            await process.reaches("streaming")
            for number in range(1, 5):
                # Of the later keys the agent says that they last for an hour. They do not.
                agent.is_honest = number <= 2
                agent.rotate()
                await published(process, database, number)
            await process.stop()
        with EngineProcess(pipeline, tmp_path, "verify", "verify", "--depth", "full") as verify:
            assert await verify.ended() == 0, verify.output.read_text()
        refused = [request for request in gate.requests if agent.is_outdated(request)]

    assert len(set(agent.served)) == 5
    assert refused
    assert CANARY not in process.log
    assert "kanary-token" not in process.log


async def test_a_token_that_no_header_can_carry_is_told_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(tmp_path / "token")
    agent.rotate()
    agent.token_file.write_text("kanary-token\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(agent.token_file))
    client.forget()

    async with running(agent) as address:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
        settings = S3Settings(bucket="bucket", concurrency=1, endpoint_url="http://127.0.0.1:1")
        async with S3ObjectStore(settings) as store:
            with pytest.raises(DestinationUnavailable) as caught:
                await store.get("k")
        with pytest.raises(SecretFailed) as failed:
            await read_secret(SecretReference("ssm", "/dsn"))
        agent.token_file.unlink()
        with pytest.raises(SecretFailed) as absent:
            await read_secret(SecretReference("ssm", "/dsn"))
    client.forget()

    assert agent.served == []
    told = f"{caught.value} {caught.value.hint} {failed.value.text} {absent.value.text}"
    assert "kanary" not in told
    assert "container-role" in told
    assert failed.value.is_passing
    assert absent.value.is_passing


async def test_credentials_that_were_there_before_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "kanary-key"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    settings = S3Settings(bucket="bucket", concurrency=1, endpoint_url="http://127.0.0.1:1")

    async def expired() -> None:
        raise ClientError({"Error": {"Code": "ExpiredToken"}}, "GetObject")

    async with connect(settings) as lasting, connect(settings) as fresh:

        async def failure_of(connection: S3Connection) -> Failure:
            found = await connection.ask(5, connection.client.get_object, Bucket="b", Key="k")
            assert isinstance(found, Failure)
            return found

        before = await failure_of(lasting)
        for name in keys:
            monkeypatch.delenv(name)
        await lasting.ask(5, expired)
        since, never = await failure_of(lasting), await failure_of(fresh)

    assert not before.is_local
    assert (since.code, since.is_local) == ("CredentialRetrievalError", False)
    assert (never.code, never.is_local) == ("NoCredentialsError", True)


def make_bucket(port: int, bucket: str) -> None:
    owner_of("s3", f"http://127.0.0.1:{port}").create_bucket(Bucket=bucket)


def pipeline_of(
    database: Database, gate: HttpFaultProxy, bucket: str, address: str, token_file: Path
) -> Pipeline:
    return Pipeline(
        {
            "source": {
                "dsn": database.dsn,
                "slot": database.name,
                "snapshot_workers": "local:1",
            },
            "destination": {
                "bucket": bucket,
                "prefix": "p",
                "region": "us-east-1",
                "endpoint_url": gate.endpoint_url,
            },
            "chunk": {"max_age": "300ms"},
            "engine": {"append_interval": "100ms"},
            "log": {"level": "debug", "format": "json"},
        },
        {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": address,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token_file),
        },
    )


async def published(process: EngineProcess, database: Database, number: int) -> None:
    before = ((await process.status()) or {})["objects_total"]
    database.execute(f"INSERT INTO orders VALUES ({number})")

    async def look() -> bool:
        assert process.is_running, process.complaint
        return bool(((await process.status()) or {})["objects_total"] > before)

    await until(look, f"row {number}")
