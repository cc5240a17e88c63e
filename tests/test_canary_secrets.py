"""A canary in every secret that is kept elsewhere, looked for in all that anybody is shown.

`test_canary.py` does the same for what stands in the configuration. Here the secrets are in AWS's
keeping, in files, and in what the engine makes of them in memory.
"""

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from aws_server import moto_server, owner_of
from databases import Database
from engine import kinds
from engine.cli.application import main
from engine.config import load
from engine.servers.servers import EmbeddedS3
from load_tests.engine_process import EngineProcess, Pipeline, until

PASSWORD = "canary-kept-password"
BESIDE = "canary-beside-the-password"
KEPT_DSN_PASSWORD = "canary-password-of-a-kept-dsn"
FILE_PASSWORD = "canary-password-of-a-file"
HASH_KEY = "canary-hash-key-of-thirty-two-characters"
SESSION_TOKEN = "canary-session-token"
EXTERNAL_ID = "canary-external-id"
PORT_TOKEN = "canary-port-token"
CANARY = "canary-"


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture
def kept(moto: str, s3: EmbeddedS3, database: Database) -> dict[str, str]:
    """Where the secrets are kept, by what they are; and the environment that leads there."""
    places = {"AWS_ENDPOINT_URL_SECRETS_MANAGER": moto, "AWS_ENDPOINT_URL_SSM": moto}
    manager, parameters = owner_of("secretsmanager", moto), owner_of("ssm", moto)
    name = f"kept/{secrets.token_hex(4)}"
    secret = json.dumps({"password": PASSWORD, "other": BESIDE, "number": 7})
    manager.create_secret(Name=f"{name}/json", SecretString=secret)
    parameters.put_parameter(
        Name=f"/{name}/dsn",
        Type="SecureString",
        Value=f"{database.dsn} password={KEPT_DSN_PASSWORD}",
    )
    return {**s3.environment, **places, "KEPT": name}


class Shown:
    """Everything that was printed, logged and served."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts: dict[str, str] = {}

    async def command(
        self, pipeline: Pipeline, name: str, *words: str, code: int | None = 0
    ) -> None:
        with EngineProcess(pipeline, self.folder, name, *words) as process:
            ended = await process.ended(seconds=90)
        self.keep(process)
        assert code is None or ended == code, (name, process.complaint, self.texts[f"{name} out"])

    def keep(self, process: EngineProcess) -> None:
        self.texts[f"{process.name} log"] = process.log
        self.texts[f"{process.name} out"] = process.output.read_text()

    async def serve(self, process: EngineProcess) -> None:
        for path in ("/", "/status", "/metrics", "/readyz", "/nothing"):
            answer = await process.get(path)
            assert answer is not None
            self.texts[f"{process.name} {path}"] = answer[1].decode()


def pipeline_of(
    database: Database, s3: EmbeddedS3, bucket: str, environment: dict[str, str], **source: object
) -> Pipeline:
    return Pipeline(
        {
            "source": {
                "slot": database.name,
                "snapshot_workers": "local:1",
                "hash_key": HASH_KEY,
                **source,
            },
            "destination": {"bucket": bucket, "prefix": "p", "endpoint_url": s3.endpoint_url},
            "chunk": {"max_age": "300ms"},
            "engine": {"append_interval": "100ms"},
            "log": {"level": "debug", "format": "json"},
        },
        environment,
    )


@pytest.mark.timeout(300)
async def test_nothing_shows_a_secret_that_is_kept_elsewhere(
    database: Database, s3: EmbeddedS3, bucket: str, kept: dict[str, str], tmp_path: Path
) -> None:
    shown, name = Shown(tmp_path), kept["KEPT"]
    database.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    database.execute("INSERT INTO orders SELECT generate_series(1, 10)")
    password = f"secretsmanager:{name}/json#password"
    good = pipeline_of(database, s3, bucket, kept, dsn=database.dsn, password=password)

    with EngineProcess(good, tmp_path, "run", "run") as process:
        await process.reaches("streaming")

        async def is_published() -> bool:
            return "snapshot read" in process.log

        await until(is_published, "the rows that were there")
        await shown.serve(process)
        await process.stop()
    shown.keep(process)
    await shown.command(good, "check", "check", "--json")
    whole = pipeline_of(database, s3, bucket, kept, dsn=f"ssm:/{name}/dsn")
    await shown.command(whole, "whole", "check")
    refused = good.changed(source__password=f"secretsmanager:{name}/json#nothing")
    await shown.command(refused, "refused", "check", code=78)
    signed = {**kept, "AWS_SESSION_TOKEN": SESSION_TOKEN}
    by_token = pipeline_of(
        database, s3, bucket, signed, dsn=f"{database.dsn} sslmode=require", iam_auth=True
    )
    await shown.command(by_token, "by-token", "check", code=None)

    assert "its keys are number, other, password" in shown.texts["refused out"].replace("\n", " ")
    assert "SSL" in shown.texts["by-token out"]
    leaks = [
        (where, text)
        for where, text in shown.texts.items()
        if CANARY in text or s3.secret_access_key in text
    ]
    assert leaks == []


def test_nothing_in_memory_shows_a_secret_when_it_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "password").write_text(FILE_PASSWORD)
    file = tmp_path / "tailrace.toml"
    file.write_text(
        f"""
[source]
dsn = "host=db user=u dbname=shop"
password_file = "password"
hash_key = "{HASH_KEY}"
[[source.table]]
match = "*.*"
hash = ["name"]
[destination]
bucket = "bucket"
prefix = "p"
role_arn = "arn:aws:iam::123456789012:role/r"
external_id = "{EXTERNAL_ID}"
[http]
token = "{PORT_TOKEN}"
"""
    )

    found = load(file, {"PATH": os.defpath})
    configuration = found.configuration
    structures = {
        "loaded": found,
        "settings": kinds.s3_settings(configuration.destination),
        "dsn": kinds.reach_of(configuration.source.own),
        "reader": kinds.range_reader(configuration, is_of_engine=True),
        "hash key": kinds.hash_key(configuration),
        "record": kinds.record_configuration(configuration),
    }

    told = {name: f"{value!r} {value}" for name, value in structures.items()}
    for words in (["config", "show"], ["config", "show", "--json"], ["iam"]):
        assert main([*words, "-c", str(file)]) == 0
        told[" ".join(words)] = "".join(capsys.readouterr())
    assert [name for name, text in told.items() if CANARY in text] == []
