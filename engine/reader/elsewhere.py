"""Objects of a table in the folder that another layout gives it: from before the layout changed.

The journal keeps the layout of now alone. Whoever reads a table by its folder misses what lies in
the other one.
"""

from collections.abc import Iterable

from engine.model.interfaces import ObjectStore
from engine.model.layout import TableLayout
from engine.model.position import Position, require_position
from engine.model.record import Layout
from engine.model.schema import TableName


async def newest_elsewhere(
    store: ObjectStore, prefix: str, database: str, layout: Layout, tables: Iterable[TableName]
) -> dict[TableName, Position]:
    """Where the newest object of each table begins that lies as the other layout has it.

    That costs one request where there is none at all. Raises DestinationError. Cancellation changes
    nothing.
    """
    other = TableLayout(prefix, database, "plain" if layout == "hive" else "hive")
    if not await _is_any(store, other.database_folder()):
        return {}
    found: dict[TableName, Position] = {}
    for table in tables:
        async for listed in store.list(other.table_folder(table)):
            position = _first_of(listed.key)
            if position is not None:
                found[table] = max(found.get(table, position), position)
    return found


async def _is_any(store: ObjectStore, folder: str) -> bool:
    async for _ in store.list(folder):
        return True
    return False


def _first_of(key: str) -> Position | None:
    """The position in the name of an object; None for a schema.json."""
    name, dot, _ = key.rpartition("/")[2].partition(".ndjson.")
    if not dot:
        return None
    try:
        require_position(name)
    except ValueError:
        return None
    return Position(name)
