"""The port with a token: who is answered, what the others are told, and a token that is rotated."""

import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from engine.config import HTTP_TOKEN, Address, Secret, load, read_secret
from engine.model.errors import ConfigurationError
from engine.operate.access import Access, presented
from engine.operate.http_server import HttpServer
from engine.operate.status import Status

TOKEN = "a-token:with=signs+/"
NEXT = "the-next-token-after-it"
PATHS = ("/", "/status", "/metrics", "/nothing")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def basic(name: str, password: str) -> dict[str, str]:
    encoded = base64.b64encode(f"{name}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


def failing() -> Status:
    return Status(phase="reconnecting", since_us=1, last_error="no answer from db.internal")


@contextlib.asynccontextmanager
async def served(access: Access) -> AsyncIterator[aiohttp.ClientSession]:
    registry = CollectorRegistry()
    async with (
        HttpServer(Address("127.0.0.1", 0), failing, registry, access=access) as server,
        aiohttp.ClientSession(f"http://{server.address}") as client,
    ):
        yield client


async def code(
    client: aiohttp.ClientSession, path: str, headers: dict[str, str] | None = None
) -> int:
    async with client.get(path, headers=headers) as answer:
        return answer.status


@pytest.mark.parametrize(
    "headers",
    [bearer(TOKEN), {"Authorization": f"bearer  {TOKEN} "}, basic("", TOKEN), basic("me", TOKEN)],
)
async def test_who_knows_the_token_reads(headers: dict[str, str]) -> None:
    async with served(Access(Secret(TOKEN))) as client:
        assert [await code(client, path, headers) for path in PATHS] == [200, 200, 200, 404]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "x"),
        basic(TOKEN, ""),
        basic(TOKEN, "x"),
        {"Authorization": TOKEN},
        {"Authorization": "Basic"},
        {"Authorization": "Basic not*base64"},
        {"Authorization": "Basic /////w=="},
        {"Authorization": "Digest username=x"},
        {"Authorization": "Bearer \udcff\udcfe"},
        {"Cookie": f"token={TOKEN}"},
    ],
)
async def test_who_does_not_is_refused_everywhere(headers: dict[str, str]) -> None:
    async with served(Access(Secret(TOKEN))) as client:
        assert {await code(client, path, headers) for path in PATHS} == {401}
        assert await code(client, f"/status?token={TOKEN}", headers) == 401


@pytest.mark.parametrize(
    ("accept", "challenge"), [("text/html,*/*;q=0.8", "Basic"), ("application/json", "Bearer")]
)
async def test_a_refused_browser_asks_its_user_and_its_page_does_not(
    accept: str, challenge: str
) -> None:
    async with (
        served(Access(Secret(TOKEN))) as client,
        client.get("/", headers={"Accept": accept}) as answer,
    ):
        assert answer.headers["WWW-Authenticate"].startswith(f"{challenge} realm=")
        text = await answer.text()

    assert "http.token" in text
    assert TOKEN not in text


async def test_health_is_for_everybody_and_names_nothing() -> None:
    async with served(Access(Secret(TOKEN))) as client:
        async with client.get("/livez") as answer:
            assert answer.status == 200
        async with client.get("/readyz") as answer:
            told = await answer.json()
        async with client.get("/readyz", headers=bearer(TOKEN)) as answer:
            told_to_friends = await answer.json()

    assert told["reason"] == "the connection to the source was lost"
    assert told_to_friends["reason"] == f"{told['reason']}: no answer from db.internal"


@pytest.mark.parametrize("path", ["/livez/", "/livez/../status", "/status/livez"])
async def test_a_path_that_looks_like_health_is_refused(path: str) -> None:
    async with served(Access(Secret(TOKEN))) as client:
        assert await code(client, path) == 401


async def test_without_a_token_everybody_reads_whatever_they_send() -> None:
    async with served(Access()) as client:
        assert await code(client, "/status") == 200
        assert await code(client, "/status", bearer("anything")) == 200


async def test_wrong_tokens_are_counted_once_a_minute_and_not_told() -> None:
    with capture_logs() as lines:
        async with served(Access(Secret(TOKEN))) as client:
            await code(client, "/")
            assert lines == []  # A browser that has not asked its user yet.
            for _ in range(3):
                await code(client, "/status", bearer("a wrong one"))

    assert [line["event"] for line in lines] == ["http requests with a wrong token"]
    assert "a wrong one" not in str(lines)


def in_file(file: Path) -> Access:
    """As the engine makes it, with a look at each request."""
    read = partial(read_secret, HTTP_TOKEN, file)
    return Access(Secret(TOKEN), read, look_seconds=0)


async def test_a_token_that_is_rotated_in_its_file_holds_at_once(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    async with served(in_file(file)) as client:
        before = [await code(client, "/status", bearer(each)) for each in (TOKEN, NEXT)]

        file.write_text(f"{NEXT}\n")

        after = [await code(client, "/status", bearer(each)) for each in (TOKEN, NEXT)]
    assert (before, after) == ([200, 401], [401, 200])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.unlink(),
        lambda file: file.write_text(""),
        lambda file: file.write_text("canary"),
        lambda file: file.write_bytes(b"\xff" * 32),
    ],
)
async def test_a_file_without_a_token_leaves_the_last_one_in_force(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    file = tmp_path / "token"
    file.write_text(NEXT)

    with capture_logs() as lines:
        async with served(in_file(file)) as client:
            assert await code(client, "/status", bearer(NEXT)) == 200
            spoil(file)
            assert await code(client, "/status") == 401
            assert await code(client, "/status", bearer(NEXT)) == 200
            file.write_text(TOKEN)
            assert await code(client, "/status", bearer(TOKEN)) == 200

    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("warning", "http.token_file has no token, the one before still holds"),
        ("info", "http.token_file has a token again"),
    ]
    assert "canary" not in str(lines)


async def test_between_two_looks_the_file_is_left_alone() -> None:
    reads: list[None] = []

    def read() -> str:
        reads.append(None)
        return TOKEN

    access = Access(Secret(TOKEN), read)

    assert [await access.is_granted(f"Bearer {TOKEN}") for _ in range(9)] == [True] * 9
    assert len(reads) == 1


def test_a_colon_belongs_to_the_password() -> None:
    assert presented(basic("name", "a:b")["Authorization"]) == "a:b"


# --- the keys

MINIMAL = """
[source]
dsn = "postgresql://db/shop"
[destination]
bucket = "lake"
prefix = "shop"
[http]
"""


def loaded(tmp_path: Path, lines: str) -> Path:
    file = tmp_path / "tailrace.toml"
    file.write_text(MINIMAL + lines)
    return file


def test_a_token_and_a_token_in_a_file_are_read_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")

    plain = load(loaded(tmp_path, f'token = "{TOKEN}"'), {})
    in_file = load(loaded(tmp_path, 'token_file = "token"'), {})

    for each in (plain, in_file):
        assert each.configuration.http.token == Secret(TOKEN)
        assert TOKEN not in f"{each.configuration!r} {each.settings!r}"
    assert in_file.configuration.http.token_file == tmp_path / "token"
    assert load(loaded(tmp_path, ""), {}).configuration.http.token is None


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ('token = "canary"', "is shorter than 16 characters"),
        ('token = "canary and a space"', "holds a space"),
        ('token = "canary-with-an-ümlaut"', "holds a space, or what is no ASCII"),
        ('token = ""', "is shorter"),
        ('token = "canary-0123456789"\ntoken_file = "t"', "is given beside"),
        ('token_file = "absent"', "cannot be read"),
        ('token_file = "short"', "names a file whose content is shorter"),
    ],
)
def test_a_token_that_cannot_be_one_is_told_without_it(
    tmp_path: Path, lines: str, text: str
) -> None:
    (tmp_path / "short").write_text("canary")

    with pytest.raises(ConfigurationError, match=text) as raised:
        load(loaded(tmp_path, lines), {})

    assert "canary" not in str(raised.value)
