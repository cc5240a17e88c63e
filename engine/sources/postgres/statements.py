"""The SQL that makes or mends what streaming needs, as it is run, and as it is shown.

Strategy: a statement that an operator is shown is the very one that the engine would run.

Invariant: pure; every name is quoted, whatever is in it.
"""

from collections.abc import Container, Iterable
from typing import Final

from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.sources.postgres.row_filters import clause_of, sql_name
from engine.sources.postgres.session import quoted

LISTED_MAX: Final = 20
"""So many names, or statements, a message holds."""


def creation_statement(configuration: RecordConfiguration, tables: Iterable[TableName]) -> str:
    """The SQL that makes the publication with these tables, each with its rule's condition."""
    listed = _sql_list(configuration, tables)
    return (
        f"CREATE PUBLICATION {quoted(configuration.through)}{' FOR TABLE ' if listed else ''}"
        f"{listed} WITH (publish_via_partition_root = true)"
    )


def addition_statement(configuration: RecordConfiguration, tables: Iterable[TableName]) -> str:
    """The SQL that adds tables to the publication, each with its rule's condition."""
    return (
        f"ALTER PUBLICATION {quoted(configuration.through)}"
        f" ADD TABLE {_sql_list(configuration, tables)}"
    )


def replacement_statements(configuration: RecordConfiguration, table: TableName) -> list[str]:
    """The SQL that publishes a table anew: with its rule's condition, or whole without one."""
    drop = f"ALTER PUBLICATION {quoted(configuration.through)} DROP TABLE ONLY {sql_name(table)}"
    return ["BEGIN", drop, addition_statement(configuration, [table]), "COMMIT"]


def identity_statements(tables: Iterable[TableName], fixed: Container[TableName] = ()) -> list[str]:
    """The SQL that gives these tables a replica identity. See `identity_statement` for `fixed`."""
    return [identity_statement(table, is_fixed=table in fixed) for table in tables]


def identity_statement(table: TableName, *, is_fixed: bool = False) -> str:
    """The SQL that gives a table a replica identity, whatever its columns are.

    `is_fixed`: the server takes no whole rows of it, because it has generated columns.
    """
    if is_fixed:
        return f"ALTER TABLE {sql_name(table)} REPLICA IDENTITY USING INDEX …"
    return f"ALTER TABLE {sql_name(table)} REPLICA IDENTITY FULL"


def names_text(names: Iterable[object]) -> str:
    """Names in a message: the first of them, and how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - LISTED_MAX} more" if len(every) > LISTED_MAX else ""
    return ", ".join(every[:LISTED_MAX]) + more


def names_listed(names: Iterable[object]) -> list[str]:
    """The same for the log, whose lists are lists."""
    every = [str(name) for name in names]
    more = [f"and {len(every) - LISTED_MAX} more"] if len(every) > LISTED_MAX else []
    return every[:LISTED_MAX] + more


def _sql_list(configuration: RecordConfiguration, tables: Iterable[TableName]) -> str:
    # Without ONLY, tables that inherit come along, whether they were asked for or not, and whether
    # they have a replica identity or not. Partitions come along in any case.
    return ", ".join(
        f"ONLY {sql_name(table)}{clause_of(configuration.where_of(table))}" for table in tables
    )
