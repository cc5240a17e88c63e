"""Real servers for the tests: one of each for a session (with pytest-xdist: for a worker), started
when the first test asks for it. A server that cannot be had is a failure, never a skip.
"""

import logging
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import aioboto3
import hypothesis
import pytest
import structlog
from aiobotocore.config import AioConfig

from databases import Database, fresh_database
from engine.servers.s3_server import REGION
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

# The same examples in every run, on a machine however slow: a rare one that fails, or one that took
# longer than 200 ms, would be told to whoever changed something else. To search for new ones:
# `pytest --hypothesis-profile default`.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")

_SERVER_FIXTURES = {"postgres", "postgres15", "any_postgres", "s3"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--postgres",
        metavar="FOLDER",
        type=Path,
        help="run only the tests of PostgreSQL 18, on the release whose programs are in FOLDER,"
        " and without those that want a newer one than that",
    )
    parser.addoption(
        "--seed",
        metavar="N",
        default="1",
        help="what tests at random draw from: a number, or `clock` for another one in each test",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a server, so that `-m "not integration"` runs the rest alone."""
    for item in items:
        if _SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("integration")
    if (programs := config.getoption("--postgres")) is not None:
        release = _release(programs)
        wanted = [item for item in items if _is_for(item, release)]
        config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        items[:] = wanted


def _release(programs: Path) -> int:
    said = subprocess.check_output([str(programs / "postgres"), "--version"], text=True)
    return int(said.split()[-1].partition(".")[0])


def _is_for(item: pytest.Item, release: int) -> bool:
    names = set(getattr(item, "fixturenames", ()))
    chosen = getattr(item, "callspec", None)
    is_of_15 = chosen is not None and "postgres15" in chosen.params.values()
    since = item.get_closest_marker("since")
    return (
        ("postgres" in names or "any_postgres" in names)
        and not is_of_15
        and "postgres15" not in names
        and (since is None or since.args[0] <= release)
    )


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """What a test at random draws from: the same in every run, but where `--seed` asks for others.

    The test's output has it.
    """
    chosen = pytestconfig.getoption("--seed")
    seed = time.time_ns() % 1_000_000 if chosen == "clock" else int(chosen)
    print(f"--seed {seed}")  # noqa: T201 - what a failure needs to be told
    return seed


@pytest.fixture(scope="session", autouse=True)
def _programs_obey_signals() -> None:
    """A program that a test starts is ended by a signal, also where the run itself ignores it.

    A run under `nohup` ignores SIGHUP, and one in the background of a script SIGINT. What is
    ignored stays ignored in a program that is started; what is caught does not (execve(2)).
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(autouse=True)
def _logging_is_as_it_was() -> Iterator[None]:
    """A command that runs in this process says where everything is logged: until the test ends."""
    root, ours = logging.getLogger(), logging.getLogger("engine")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    known = structlog.get_config() if structlog.is_configured() else None
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    structlog.reset_defaults()
    if known is not None:
        structlog.configure(**known)


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[EmbeddedPostgres]:
    """PostgreSQL 18, from the wheel. Tests that stop or change a server start one of their own."""
    programs = pytestconfig.getoption("--postgres")
    with EmbeddedPostgres(bin_directory=programs, settings=FAST_SETTINGS) as server:
        yield server


@pytest.fixture(scope="session")
def postgres15() -> Iterator[EmbeddedPostgres]:
    """PostgreSQL 15, Debian's, with TLS and xml."""
    with EmbeddedPostgres.debian(15, settings=FAST_SETTINGS) as server:
        yield server


@pytest.fixture(params=["postgres", "postgres15"])
def any_postgres(request: pytest.FixtureRequest) -> EmbeddedPostgres:
    """Both servers, one after the other."""
    server = request.getfixturevalue(request.param)
    assert isinstance(server, EmbeddedPostgres)
    return server


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> Iterator[Database]:
    """An empty database on PostgreSQL 18."""
    with fresh_database(postgres) as database:
        yield database


@pytest.fixture
def database15(postgres15: EmbeddedPostgres) -> Iterator[Database]:
    """An empty database on PostgreSQL 15."""
    with fresh_database(postgres15) as database:
        yield database


@pytest.fixture
def any_database(any_postgres: EmbeddedPostgres) -> Iterator[Database]:
    """An empty database on both servers, one after the other."""
    with fresh_database(any_postgres) as database:
        yield database


@pytest.fixture(scope="session")
def s3() -> Iterator[EmbeddedS3]:
    """SeaweedFS, from the wheel. Tests that stop or suspend a server start one of their own."""
    with EmbeddedS3() as server:
        yield server


@pytest.fixture(scope="session")
def shared_bucket(s3: EmbeddedS3) -> str:
    """A bucket that all tests share: keep to `prefix`."""
    s3.create_bucket("tests")
    return "tests"


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test uses."""
    return f"t/{secrets.token_hex(6)}"


@pytest.fixture
def bucket(s3: EmbeddedS3) -> str:
    """An empty bucket of the test's own, for what `shared_bucket` and `prefix` cannot show."""
    name = f"t-{secrets.token_hex(6)}"
    s3.create_bucket(name)
    return name


@pytest.fixture
def aws_environment(s3: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> EmbeddedS3:
    """The credentials of `s3` where AWS's default chain finds them."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture(scope="session")
def s3_session() -> aioboto3.Session:
    """One session for all clients: it keeps S3's model, which takes a third of a second to read."""
    return aioboto3.Session()


@pytest.fixture
async def s3_client(s3: EmbeddedS3, s3_session: aioboto3.Session) -> AsyncIterator["S3Client"]:
    """A client of `s3` that does not retry."""
    async with s3_session.client(
        "s3",
        endpoint_url=s3.endpoint_url,
        region_name=REGION,
        aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=s3.secret_access_key,
        config=AioConfig(retries={"total_max_attempts": 1}),
    ) as client:
        yield client
