"""How a login reads what may change: what ends a start, and what a running engine waits for."""

import pytest

from engine.config import PostgresConfiguration
from engine.config.secret_reference import SecretFailed, SecretReference
from engine.model.errors import SourceFailed, SourceRefused
from engine.sources.postgres.dsn import ReadDsn
from engine.sources.postgres.login import dsn_of

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


def kept_in(keeper: Keeper) -> ReadDsn:
    configuration = PostgresConfiguration(
        dsn=SecretReference("secretsmanager", "shop"),
        dsn_file=None,
        password=None,
        password_file=None,
        iam_auth=False,
        slot="s",
        publication="p",
    )
    dsn = dsn_of(configuration, read_secret=keeper.read, make_token=no_token)
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

    # What a snapshot's own first connection gets as well, while the engine runs.
    with pytest.raises(SourceRefused) as refused:
        await kept_in(keeper).read()

    assert refused.value.exit_code == 78
