"""What is known of tables while they are read anew, without a server."""

import asyncio

import pytest

from engine.model.record import RecordConfiguration
from engine.sources.postgres.catalog import Catalog
from engine.sources.postgres.pgoutput import RelationColumn, RelationMessage
from engine.sources.postgres.session import Query, Row, Session

OID = 20_001
INT4 = 23
MESSAGE = RelationMessage(
    OID, "public", "orders", "d", (RelationColumn("id", INT4, -1, is_key=True),)
)
EVERY_TABLE = RecordConfiguration(through="tailrace", tables=("public.*",))

COLUMNS: list[Row] = [(OID, "id", INT4, -1, "integer", False, 1, 1, None, False, "700")]
DROPPED: list[Row] = []
NOW: list[Row] = [("0/10",)]
NOBODY: list[Row] = []
DEFAULTS: list[Row] = [(OID, "id", "7")]


class ScriptedSession(Session):
    """Gives one answer after the other. Whoever asks for more is cancelled."""

    def __init__(self, *answers: list[Row]) -> None:
        super().__init__("")
        self._answers = iter(answers)

    async def rows(self, query: Query, *arguments: object, doing: str) -> list[Row]:
        del query, arguments, doing
        for answer in self._answers:
            return answer
        raise asyncio.CancelledError


def default_of(catalog: Catalog) -> str | None:
    (column,) = catalog.describe(MESSAGE, EVERY_TABLE).columns
    return column.default


@pytest.mark.parametrize("answers", [(), (NOBODY,)])
async def test_a_cancelled_look_at_defaults_leaves_those_that_were_known(
    answers: tuple[list[Row], ...],
) -> None:
    catalog = Catalog()
    await catalog.read(ScriptedSession(COLUMNS, DROPPED, NOW, NOBODY, DEFAULTS), [OID])

    with pytest.raises(asyncio.CancelledError):
        await catalog.read_defaults(ScriptedSession(*answers), [OID])

    assert default_of(catalog) == "7"


async def test_a_default_that_is_gone_is_forgotten() -> None:
    catalog = Catalog()
    await catalog.read(ScriptedSession(COLUMNS, DROPPED, NOW, NOBODY, DEFAULTS), [OID])

    await catalog.read_defaults(ScriptedSession(NOBODY, NOBODY), [OID])

    assert default_of(catalog) is None
