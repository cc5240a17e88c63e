"""How a login reads what may change: what ends a start, and what a running engine waits for."""

from pathlib import Path

import pytest

from databases import Database
from engine import worker
from engine.config import Configuration, PostgresConfiguration, load
from engine.config.secret_reference import SecretFailed, SecretReference
from engine.model.errors import SourceFailed, SourceRefused
from engine.sources.postgres.dsn import ReadDsn
from engine.sources.postgres.login import dsn_of
from engine.sources.postgres.range_reader import PostgresRangeReader
from engine.sources.postgres.session import connect

GOOD = "host=db user=u password=kanary"


class Keeper:
    """Keeps one secret, and can refuse to give it."""

    def __init__(self) -> None:
        self.answer: str | SecretFailed = GOOD

    async def read(self, _reference: SecretReference) -> str:
        if isinstance(self.answer, SecretFailed):
            raise self.answer
        return self.answer


async def no_token(_host: str, _port: int, _user: str) -> str:
    raise AssertionError("nobody asked for a token")


def kept_in(keeper: Keeper, *, has_worked: bool = False) -> ReadDsn:
    configuration = PostgresConfiguration(
        dsn=SecretReference("secretsmanager", "shop"),
        dsn_file=None,
        password=None,
        password_file=None,
        iam_auth=False,
        slot="s",
        publication="p",
    )
    dsn = dsn_of(configuration, read_secret=keeper.read, make_token=no_token, has_worked=has_worked)
    assert not isinstance(dsn, str)
    return dsn


DENIED = SecretFailed("AWS refused to give it", "allow secretsmanager:GetSecretValue")


@pytest.mark.parametrize("answer", [DENIED, "postgresql://u:kanary@/@half"])
async def test_a_secret_that_was_right_before_is_waited_for(answer: str | SecretFailed) -> None:
    keeper = Keeper()
    dsn = kept_in(keeper)
    await dsn.read()

    keeper.answer = answer
    with pytest.raises(SourceFailed) as failed:
        await dsn.read()
    keeper.answer = GOOD

    assert await dsn.read() == GOOD
    assert failed.value.hint.endswith("it was right before, so it is read again")
    assert "kanary" not in f"{failed.value} {failed.value.hint}"


@pytest.mark.parametrize("answer", [DENIED, "postgresql://u:kanary@/@half"])
async def test_a_secret_that_was_never_right_ends_a_start(
    answer: str | SecretFailed,
) -> None:
    keeper = Keeper()
    keeper.answer = answer

    with pytest.raises(SourceRefused) as refused:
        await kept_in(keeper).read()

    assert refused.value.exit_code == 78


@pytest.mark.parametrize("answer", [DENIED, "postgresql://u:kanary@/@half"])
async def test_a_process_of_a_running_engine_waits_for_a_secret_that_it_has_not_read(
    answer: str | SecretFailed,
) -> None:
    keeper = Keeper()
    keeper.answer = answer
    dsn = kept_in(keeper, has_worked=True)

    with pytest.raises(SourceFailed):
        await dsn.read()
    keeper.answer = GOOD

    assert await dsn.read() == GOOD
    assert dsn.worked == {False, True}


def test_a_local_worker_knows_that_its_engine_has_reached_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = kept_configuration(tmp_path)
    of_cluster = worker._Worker(configuration)
    monkeypatch.setattr(worker, "_configured", configuration)
    of_engine = worker._Worker(configuration)

    worked = [_worked(of_cluster), _worked(of_engine)]

    for each in (of_cluster, of_engine):
        each._runner.run(each._open.aclose())
        each._runner.close()
    assert worked == [set(), {False, True}]


def _worked(each: worker._Worker) -> set[bool]:
    reader = each._reader
    assert isinstance(reader, PostgresRangeReader)
    assert not isinstance(reader._dsn, str)
    return reader._dsn.worked


async def test_a_refused_session_may_pass_where_such_a_session_was_had_before(
    database: Database,
) -> None:
    keeper = Keeper()
    dsn = kept_in(keeper)
    keeper.answer = absent = f"{database.dsn} dbname=absent_{database.name}"
    with pytest.raises(SourceRefused):
        await connect(dsn, replication=False)
    keeper.answer = database.dsn
    await (await connect(dsn, replication=False)).close()

    keeper.answer = absent
    with pytest.raises(SourceFailed) as failed:
        await connect(dsn, replication=False)
    with pytest.raises(SourceRefused):
        await connect(dsn, replication=True)

    assert failed.value.code == "connection refused"
    assert "check dbname and user in source.dsn; " in failed.value.hint


def kept_configuration(folder: Path) -> Configuration:
    file = folder / "tailrace.toml"
    file.write_text(
        '[source]\ndsn = "secretsmanager:shop"\n'
        '[destination]\nbucket = "bucket"\nprefix = "p"\nregion = "eu-west-1"\n'
    )
    return load(file, {}).configuration
