"""A canary in every secret, every value and every name, looked for in all that anybody is shown.

One pipeline lives through a good run, faults and every command. Whatever it printed, logged, served
and stored is searched. Secrets must stand nowhere. Values must stand only in the objects that are
there for them. Names must stand nowhere in a form that acts on a terminal or forges a line.
"""

import gzip
import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from databases import Database, _remove
from engine.model.schema import TableName
from engine.servers.servers import EmbeddedPostgres, EmbeddedS3
from load_tests.engine_process import EngineProcess, Pipeline, Section, until

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

RED, OVERRIDE = "\x1b[31m", "\u202e"
FORGED = "\n{forged}"
ROLE = f"canary-role{RED}"
SCHEMA = f"canary-schema\n{OVERRIDE}"
TABLE = f"canary-table{RED}{FORGED}\x9b31m"
COLUMN = f"canary-column{OVERRIDE}\r"
EXCLUDED = "canary-excluded-column"
PREFIX = "canary-prefix"

PASSWORD = "canary-password-@-of-the-dsn"
EXCLUDED_VALUE = "canary-excluded-value"
EXCLUDED_DEFAULT = "canary-excluded-default"
WRONG_KEY = "canary-wrong-secret-key"
TOKEN = "canary-session-token"
EXTERNAL_ID = "canary-external-id"
PORT_TOKEN = "canary-port-token"
ROW_VALUE = "canary-row-value"
SECRETS = (PASSWORD, EXCLUDED_VALUE, EXCLUDED_DEFAULT, WRONG_KEY, TOKEN, EXTERNAL_ID, PORT_TOKEN)


@pytest.fixture
def hostile(postgres: EmbeddedPostgres) -> Iterator[Database]:
    """A database whose names are as bad as names may be, except its own: the dsn refuses those."""
    # The server cuts it to 63 bytes, wherever it is given.
    name = f"canary-database-{secrets.token_hex(4)}".ljust(70, "x")
    role, password = sql.Identifier(ROLE), sql.Literal(PASSWORD)
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}").format(role, password)
        )
    yield Database(postgres, name)
    _remove(postgres, name)
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


def make_table(database: Database) -> None:
    names = {
        "schema": sql.Identifier(SCHEMA),
        "table": sql.Identifier(SCHEMA, TABLE),
        "column": sql.Identifier(COLUMN),
        "excluded": sql.Identifier(EXCLUDED),
        "default": sql.Literal(EXCLUDED_DEFAULT),
    }
    with database.connect() as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {schema}").format(**names))
        connection.execute(
            sql.SQL(
                "CREATE TABLE {table} (id integer PRIMARY KEY, {column} text,"
                " {excluded} text DEFAULT {default})"
            ).format(**names)
        )


def insert(database: Database, number: int) -> None:
    table = sql.Identifier(SCHEMA, TABLE)
    with database.connect() as connection:
        connection.execute(
            sql.SQL("INSERT INTO {} VALUES (%s, %s, %s), (%s, %s, DEFAULT)").format(table),
            (number, ROW_VALUE, EXCLUDED_VALUE, number + 1, ROW_VALUE),
        )


class Found:
    """Everything that was shown, by where."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown: dict[str, str] = {}
        self.served: dict[str, str] = {}
        self.stored: dict[str, str] = {}
        self.objects: dict[str, str] = {}

    async def command(
        self, pipeline: Pipeline, name: str, *words: str, codes: tuple[int, ...] = (0,)
    ) -> None:
        """Run a command to its end, and keep what it said."""
        with EngineProcess(pipeline, self.folder, name, *words) as process:
            code = await process.ended(seconds=90)
        self.keep(process)
        assert code in codes, (name, process.complaint, process.output.read_text()[-3000:])

    def keep(self, process: EngineProcess) -> None:
        self.shown[f"{process.name} stderr"] = process.log
        self.shown[f"{process.name} stdout"] = process.output.read_text()

    def serve(self, process: EngineProcess, when: str) -> None:
        for path in ("", "status", "tables", "metrics", "readyz", "livez", "nothing"):
            self.served[f"{when} /{path}"] = answer(process.http_port, path, PORT_TOKEN)
            self.served[f"{when} /{path} for strangers"] = answer(process.http_port, path)

    async def look(self, pipeline: Pipeline, process: EngineProcess) -> None:
        """What the port says, and who asks it."""
        self.serve(process, "streaming")
        token = self.folder / "port-token"
        token.write_text(PORT_TOKEN)
        url = f"http://127.0.0.1:{process.http_port}"
        await self.command(pipeline, "top", "top", "--url", url, "--token-file", str(token))

    @property
    def everything(self) -> dict[str, str]:
        return self.shown | self.served | self.stored


def answer(port: int, path: str, token: str = "") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            found: bytes = response.read()
    except urllib.error.HTTPError as error:
        found = error.read()
    return found.decode()


async def keep_bucket(found: Found, client: "S3Client", bucket: str) -> None:
    listed = await client.list_objects_v2(Bucket=bucket)
    found.stored["keys"] = "\n".join(each["Key"] for each in listed["Contents"])
    for each in listed["Contents"]:
        key = each["Key"]
        response = await client.get_object(Bucket=bucket, Key=key)
        body = await response["Body"].read()
        text = (gzip.decompress(body) if key.endswith(".gz") else body).decode()
        found.stored[f"metadata of {key}"] = json.dumps(response["Metadata"])
        (found.objects if ".ndjson" in key else found.stored)[key] = text


@pytest.fixture
def pipeline(hostile: Database, s3: EmbeddedS3, bucket: str) -> Pipeline:
    who = f"{quote(ROLE, safe='')}:{quote(PASSWORD, safe='')}"
    dsn = f"postgresql://{who}@127.0.0.1:{hostile.server.port}/{quote(hostile.name, safe='')}"
    sections: dict[str, Section] = {
        "source": {
            "dsn": dsn,
            "slot": f"canary_slot_{secrets.token_hex(4)}",
            "publication": "canary-publication",
            "tables": ["*.*"],
            "snapshot": "never",
        },
        "destination": {
            "bucket": bucket,
            "prefix": PREFIX,
            "endpoint_url": s3.endpoint_url,
        },
        "chunk": {"max_age": "400ms"},
        "engine": {"append_interval": "200ms"},
        "http": {"token": PORT_TOKEN},
        "log": {"level": "debug", "format": "text"},
    }
    return Pipeline(sections, s3.environment).ruled({"match": "*.*", "exclude": [EXCLUDED]})


async def lived(hostile: Database, pipeline: Pipeline, found: Found, client: "S3Client") -> None:
    """The good run, then the faults. Everything is kept in `found`."""
    make_table(hostile)
    with EngineProcess(pipeline, found.folder, "run", "run") as process:
        await process.reaches("streaming")
        insert(hostile, 1)

        async def is_published() -> bool:
            return bool(((await process.status()) or {}).get("objects_total"))

        await until(is_published, "an object")
        await found.look(pipeline, process)
        end_walsender(hostile)
        insert(hostile, 11)
        await process.reaches("streaming")
        await process.stop()
    found.keep(process)
    await keep_bucket(found, client, str(pipeline.sections["destination"]["bucket"]))

    as_json = pipeline.changed(log__format="json")
    await found.command(as_json, "caught-up", "run", "--until-caught-up")
    table = str(TableName(SCHEMA, TABLE))
    await found.command(pipeline, "resync", "resync", table)
    await found.command(pipeline, "resync-unknown", "resync", f"{table}x", codes=(1,))
    await found.command(pipeline, "pause", "pause", table)
    await found.command(pipeline, "pause-unknown", "pause", f"{table}x", codes=(1,))
    await found.command(pipeline, "resume", "resume")
    for word in ("read", "tail"):
        await found.command(pipeline, f"{word}-unknown", word, f"{table}x", codes=(1,))
    bucket, endpoint = pipeline.sections["destination"]["bucket"], client.meta.endpoint_url
    lake = f"s3://{bucket}/canary-lake?region=us-east-1&endpoint_url={endpoint}"
    await found.command(
        pipeline, "materialize-x", "materialize", f"{table}x", lake, "--to", "delta", codes=(1,)
    )
    for words in (("check",), ("verify", "--depth", "full"), ("config", "show"), ("status",)):
        for extra in ((), ("--json",)):
            await found.command(pipeline, "-".join((*words, *extra)), *words, *extra)
    await found.command(pipeline, "views", "views", "duckdb")
    refused = Pipeline(
        pipeline.changed(destination__prefix="canary-other").sections,
        {**pipeline.environment, "AWS_SECRET_ACCESS_KEY": WRONG_KEY, "AWS_SESSION_TOKEN": TOKEN},
    )
    for refused_words in (
        ("check",),
        ("verify",),
        ("read", table),
        ("tail", table),
        ("materialize", table, lake, "--to", "delta"),
        ("status",),
        ("views", "duckdb"),
        ("run",),
    ):
        await found.command(refused, f"refused-{refused_words[0]}", *refused_words, codes=(69, 78))
    role = {"role_arn": "arn:aws:iam::123456789012:role/canary", "external_id": EXTERNAL_ID}
    assumed = Pipeline(
        pipeline.changed(
            **{f"destination__{name}": value for name, value in role.items()}
        ).sections,
        {**pipeline.environment, "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:1"},
    )
    for words in (("config", "show"), ("iam",)):
        await found.command(assumed, f"assumed-{words[0]}", *words)
    nobody = pipeline.changed(
        source__dsn=str(pipeline.sections["source"]["dsn"]).replace("canary-role", "canary-nobody")
    )
    await found.command(nobody, "nobody-run", "run", codes=(69, 78))
    hostile.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        " WHERE database = current_database()"
    )
    insert(hostile, 21)
    await found.command(as_json, "lost-run", "run", codes=(70,))
    hostile.execute('DROP PUBLICATION "canary-publication"')
    for words, codes in ((("check",), (0, 1, 70, 78)), (("drop", "--yes"), (0,))):
        await found.command(pipeline, f"unpublished-{words[0]}", *words, codes=codes)


def end_walsender(database: Database) -> None:
    database.execute(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active"
        " AND database = current_database()"
    )


@pytest.mark.timeout(900)
async def test_nothing_shows_a_secret_a_value_or_a_name_that_acts(
    hostile: Database, pipeline: Pipeline, s3: EmbeddedS3, s3_client: "S3Client", tmp_path: Path
) -> None:
    found = Found(tmp_path)

    await lived(hostile, pipeline, found, s3_client)

    everything = found.everything
    rows = "".join(found.objects.values())
    assert rows.count(ROW_VALUE) == 4
    assert (
        leaks(everything | found.objects, lambda text: any(each in text for each in SECRETS)) == []
    )
    assert leaks(everything, lambda text: s3.secret_access_key in text) == []
    assert leaks(everything, lambda text: ROW_VALUE in text) == []
    assert leaks(found.served, lambda text: "canary-role" in text) == []
    assert leaks(found.served, lambda text: "canary-column" in text) == []
    assert leaks(found.served, lambda text: EXCLUDED in text) == []
    assert leaks(found.shown | found.served, acts) == []
    names = {
        where: text for where, text in found.stored.items() if where.startswith(("keys", "meta"))
    }
    assert leaks(names, lambda text: not text.isascii()) == []


def leaks(texts: dict[str, str], is_leak: Callable[[str], bool]) -> list[tuple[str, str]]:
    return [(where, text[-1500:]) for where, text in texts.items() if is_leak(text)]


def acts(text: str) -> bool:
    lines = text.split("\n")
    return any(line.startswith("{forged}") for line in lines) or not all(
        line.isprintable() for line in lines
    )
