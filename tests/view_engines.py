"""Other engines' SQL, run by DuckDB: parsed in its dialect, transpiled, over the same records.

What no DuckDB has is stood in for here, and said: tables over objects, loading, AUTO CDC. A
statement that sqlglot does not know is a `Command`: those are kept, for their text to be compared.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel

from engine.reader.views.engines import EngineName

_STRUCT = (
    "STRUCT(op VARCHAR, position VARCHAR, source_ts_ms BIGINT, "
    "unchanged VARCHAR[], json_null VARCHAR[])"
)
_SOURCE = _STRUCT.replace("op VARCHAR, ", "").replace("source_ts_ms", "ts_ms")
_OBJECT = {"spark": "MAP(VARCHAR, VARCHAR)", "databricks": "MAP(VARCHAR, VARCHAR)"}

TWINS = {"Note": "Note_2"}
"""Snowflake tells names apart that DuckDB does not."""


@dataclass
class Stand:
    """A DuckDB in place of `engine`, over one object."""

    engine: EngineName
    connection: duckdb.DuckDBPyConnection
    path: Path | str
    is_flat: bool = False
    commands: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        kind = _OBJECT.get(self.engine, "VARCHAR")
        path = _text(self.path)
        given = (
            f"CAST(json AS VARCHAR) AS value FROM READ_NDJSON_OBJECTS({path})"
            if self.is_flat
            else f"* FROM READ_JSON({path}, columns = {{before: '{kind}', after: '{kind}', "
            f"metadata: '{_STRUCT}', source: '{_SOURCE}', op: 'VARCHAR'}})"
        )
        self.connection.execute(f"CREATE TABLE given AS SELECT {given}")
        self.load(self.path)

    def load(self, path: Path | str) -> None:
        """What COPY INTO finds next."""
        lines = f"READ_NDJSON_OBJECTS({_text(path)})"
        self.connection.execute(f"CREATE OR REPLACE TABLE given_lines AS SELECT json FROM {lines}")

    def run(self, text: str) -> None:
        """Every statement, one after the other."""
        if self.engine == "duckdb":
            self.connection.execute(re.sub(r"'s3://[^']*'", f"'{self.path}'", text))
            return
        for block in text.split("\n\n"):
            # Athena takes one statement at a time, and so does sqlglot for it.
            if not all(line.startswith("--") for line in block.splitlines()):
                self._take(
                    sqlglot.parse_one(
                        block.strip().removesuffix(";"),
                        read=self.engine,
                        error_level=ErrorLevel.RAISE,
                    )
                )

    def _take(self, statement: exp.Expr) -> None:
        if isinstance(statement, exp.Command):
            self.commands.append(statement.sql(self.engine))
            if "AUTO CDC" in self.commands[-1]:
                self._apply_events(self.commands[-1])
        elif isinstance(statement, exp.Create):
            self._create(statement)
        elif isinstance(statement, exp.Copy):
            into = statement.this.this if isinstance(statement.this, exp.Schema) else statement.this
            self._execute(f"INSERT INTO {into.sql('duckdb')} SELECT json, 'file' FROM given_lines")
        else:
            self._execute(transpiled(statement))

    def _create(self, statement: exp.Create) -> None:
        name = statement.find(exp.Table)
        assert name is not None
        quoted = name.sql("duckdb")
        match statement.kind:
            case "SCHEMA":
                self._execute(f"CREATE SCHEMA IF NOT EXISTS {quoted}")
            case "STAGE":
                pass
            case "TABLE" if statement.expression is None and self.engine != "snowflake":
                # A streaming table has no columns before its flow gives it some.
                if isinstance(statement.this, exp.Schema):
                    self._execute(f"CREATE TABLE {quoted} AS SELECT * FROM given")
            case "TABLE" | "VIEW":
                statement.set("properties", None)
                statement.set("refresh", None)
                self.views.append(quoted)
                self._execute(transpiled(statement))
            case kind:
                raise AssertionError(kind)

    def _apply_events(self, command: str) -> None:
        """AUTO CDC as it is documented: by key and sequence, nulls of updates ignored."""
        folded, events, keys = re.search(  # type: ignore[union-attr]
            r"INTO (\S+)\s+FROM STREAM\(([^)]*)\)\s+KEYS \(([^)]*)\)", command
        ).groups()
        found = self.connection.execute(
            f"SELECT * FROM {events.replace('`', chr(34))} ORDER BY position"
        )
        names = [described[0] for described in found.description or ()]
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        for row in found.fetchall():
            event = dict(zip(names, row, strict=True))
            key = tuple(event[name] for name in keys.split(", "))
            if event["op"] == "t":
                rows.clear()
            elif event["op"] == "d":
                rows.pop(key, None)
            else:
                kept = rows.setdefault(key, {})
                kept.update({n: v for n, v in event.items() if v is not None or n not in kept})
        columns = [name for name in names if name != "op"]
        table = folded.replace("`", '"')
        self._execute(f"CREATE TABLE {table} ({', '.join(f'{name} VARCHAR' for name in columns)})")
        places = ", ".join("?" for _ in columns)
        for kept in rows.values():
            values = [kept[name] for name in columns]
            self.connection.execute(f"INSERT INTO {table} VALUES ({places})", values)

    def _execute(self, statement: str) -> None:
        try:
            self.connection.execute(statement)
        except duckdb.Error as error:
            raise AssertionError(f"{error}\n{statement}") from error


def _text(path: Path | str) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def transpiled(statement: exp.Expr) -> str:
    """The statement for DuckDB."""
    text = statement.transform(_as_duckdb).sql("duckdb", unsupported_level=ErrorLevel.RAISE)
    # FLATTEN of a range, which sqlglot leaves half done.
    return re.sub(
        r", +CROSS JOIN UNNEST\(INPUT => (RANGE\([^)]*\))\) AS copy\([^)]*\)",
        r" CROSS JOIN UNNEST(\1)",
        text,
    )


def _as_duckdb(node: exp.Expr) -> exp.Expr:
    """What sqlglot leaves as it is, though DuckDB means something else by it."""
    match node:
        case exp.Stream(this=exp.Subquery(this=inner)) | exp.Stream(this=inner):
            return _inside(inner)
        case exp.Table(this=exp.Anonymous(this=function)):
            assert function.upper() == "READ_FILES"
            return exp.to_table("given")
        case exp.Identifier() if node.name in TWINS:
            return exp.to_identifier(TWINS[node.name], quoted=True)
        case exp.DataType() | exp.Cast() | exp.FromJson():
            return _typed(node)
        case _:
            return node


_SPARKS = {"MAP<STRING, STRING>": "MAP(VARCHAR, VARCHAR)", "ARRAY<STRING>": "VARCHAR[]"}


def _typed(node: exp.DataType | exp.Cast | exp.FromJson) -> exp.Expr:
    match node:
        case exp.DataType():
            return _type(node)
        case exp.Cast():
            return _cast(node)
        case _:
            kind = exp.DataType.build(_SPARKS[node.expression.name], dialect="duckdb")
            return exp.cast(exp.cast(_inside(node.this), "json"), kind)


def _inside(node: exp.Expr) -> exp.Expr:
    # What is put in place of a node is not looked into again.
    changed = node.transform(_as_duckdb)
    assert isinstance(changed, exp.Expr)
    return changed


def _type(node: exp.DataType) -> exp.DataType:
    if node.is_type("variant"):
        return exp.DataType.build("json")
    is_bare = node.is_type("array") and not node.expressions
    return exp.DataType.build("array<text>") if is_bare else node


def _cast(node: exp.Cast) -> exp.Expr:
    value, to = node.this, node.to
    if to.is_type("variant"):
        return _inside(value)
    is_path = isinstance(value, (exp.Bracket, exp.JSONExtract))
    if to.is_type("varchar", "text") and is_path:
        # Of a text in JSON, Snowflake's cast gives the text, and DuckDB's its JSON.
        return exp.JSONExtractScalar(
            this=_inside(value),
            expression=exp.JSONPath(expressions=[exp.JSONPathRoot()]),
        )
    return node


def rows_of(stand: Stand, view: str, names: Sequence[str]) -> list[tuple[str | None, ...]]:
    columns = ", ".join(f'CAST("{name}" AS VARCHAR)' for name in names)
    return sorted(stand.connection.execute(f"SELECT {columns} FROM {view}").fetchall(), key=str)
