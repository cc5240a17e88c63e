"""The engines that views are printed for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from engine.reader.views import athena, databricks, duckdb, snowflake, spark
from engine.reader.views.dialect import Dialect
from engine.reader.views.names import Names
from engine.reader.views.place import Place
from engine.reader.views.shape import TableShape

EngineName = Literal["duckdb", "athena", "snowflake", "databricks", "spark"]

CREATE_SCHEMA: Final = "CREATE SCHEMA IF NOT EXISTS {name}"


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: its dialect, and its statements for a table.

    `about` are lines for the top of the text; `{position}` in them is what is durable.
    """

    dialect: Dialect
    statements: Callable[[TableShape, Place, Names], tuple[str, ...]]
    about: tuple[str, ...]


ENGINES: Final[Mapping[EngineName, Engine]] = {
    "duckdb": Engine(duckdb.DIALECT, duckdb.statements, duckdb.ABOUT),
    "athena": Engine(athena.DIALECT, athena.statements, athena.ABOUT),
    "snowflake": Engine(snowflake.DIALECT, snowflake.statements, snowflake.ABOUT),
    "databricks": Engine(databricks.DIALECT, databricks.statements, databricks.ABOUT),
    "spark": Engine(spark.DIALECT, spark.statements, spark.ABOUT),
}
