"""The engines that views are printed for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from engine.model.record import Envelope
from engine.reader.views import duckdb
from engine.reader.views.dialect import Dialect
from engine.reader.views.place import Place
from engine.reader.views.shape import TableShape

EngineName = Literal["duckdb"]


@dataclass(frozen=True, slots=True)
class Names:
    """What a table's parts are called, each quoted, with its schema.

    `state` is the table as it is now, `changes` its records.
    """

    changes: str
    state: str


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: its dialect, its statements for a table, and what it calls a schema.

    `about` are lines for the top of the text, `{position}` in them what is durable. `envelopes` are
    those that its statements read.
    """

    dialect: Dialect
    statements: Callable[[TableShape, Place, Names], tuple[str, ...]]
    create_schema: str
    about: tuple[str, ...]
    envelopes: frozenset[Envelope] = frozenset({"standard", "debezium"})


ENGINES: Final[Mapping[EngineName, Engine]] = {
    "duckdb": Engine(
        duckdb.DIALECT,
        lambda shape, place, names: duckdb.statements(shape, place, names.changes, names.state),
        "CREATE SCHEMA IF NOT EXISTS {name}",
        (
            "DuckDB reads s3:// by its extension httpfs, and finds credentials by a secret:",
            "CREATE SECRET (TYPE s3, PROVIDER credential_chain)",
            "A cut that is the same in all tables, as of what was durable when this was printed:",
            f"SET VARIABLE {duckdb.UNTIL} = '{{position}}'; RESET VARIABLE {duckdb.UNTIL} ends it",
            "A record of more than 16 MiB needs maximum_object_size in READ_JSON.",
        ),
        frozenset({"standard", "debezium", "flat"}),
    ),
}
