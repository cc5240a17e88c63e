"""docs/values.md: each example is what PostgreSQL and the codec give, and comes back as it says."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

import engine
from databases import Database
from engine.model.schema import Column, Relation, TableName, TableVersion
from engine.reader.formats.arrow import arrow_type
from engine.reader.formats.columns import columns_of
from engine.sources.postgres.types import _KINDS_BY_NAME, builtin_kind, type_kind
from row_codec import RowCodec
from rowcodec_capture import SESSION

pytestmark = pytest.mark.integration

_PAGE = Path(engine.__file__).resolve().parent.parent / "docs" / "values.md"
_CELL = re.compile(r"\A`(.*)`\Z")


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without their code marks."""
    section = _PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [[_CELL.sub(r"\1", cell) for cell in row] for row in cells]


EXAMPLES = rows_of("Examples")
BACK = {kind: (postgres, duckdb_) for kind, postgres, duckdb_ in rows_of("Back again")}


def way_back(kind: str, value: str, side: int) -> str:
    """How the page says that a value comes back; `side` is 0 for PostgreSQL, 1 for DuckDB."""
    if kind in BACK:
        return BACK[kind][side]
    is_list = kind.endswith("[]") and value.startswith("[")
    return BACK["any other array" if is_list else "everything else"][side]


@pytest.fixture
def connection(database15: Database) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database15.dsn, autocommit=True, options=SESSION) as found:
        yield found


def written(connection: psycopg.Connection[Any], oid: int, expression: str) -> str:
    """What the codec makes of a value that PostgreSQL sends, as JSON text."""
    codec = RowCodec(1)
    codec.bind(
        1,
        database="d",
        schema="s",
        table="t",
        version=1,
        columns=[("v", builtin_kind(oid), False, True)],
        key=[],
        envelope="standard",
        numeric="string",
        json="embed",
    )
    codec.begin(1, 1, 0)
    with connection.cursor().copy(f"COPY (SELECT {expression}) TO STDOUT".encode()) as copy:
        codec.encode_copy(1, b"".join(bytes(piece) for piece in copy), 1, 0)
    lines = codec.take(1)
    assert lines is not None
    line = lines.lines.decode()
    return line[line.index('"after":{"v":') + 13 : line.index('},"metadata"')]


def described(connection: psycopg.Connection[Any], expression: str) -> tuple[int, str]:
    """OID and name of the expression's type, with its precision and scale."""
    cursor = connection.execute(f"SELECT {expression} LIMIT 0".encode())
    assert cursor.description is not None
    return cursor.description[0].type_code, cursor.description[0].type_display


def version_of(column: Column) -> TableVersion:
    return TableVersion(1, None, "", Relation(TableName("s", "t"), "1", (column,), ()))


def test_each_example_is_what_postgres_and_the_codec_give(
    connection: psycopg.Connection[Any],
) -> None:
    found = []
    for expression, *_ in EXAMPLES:
        oid, name = described(connection, expression)
        kind = type_kind(oid, {})
        [read] = columns_of((), version_of(Column(name="v", type=name, type_kind=kind, key=False)))
        value = written(connection, oid, expression)
        found.append([expression, kind, value, str(arrow_type(read))])

    assert found == EXAMPLES
    assert len(found) > 40


def test_each_example_comes_back_in_postgres_as_the_page_says(
    connection: psycopg.Connection[Any],
) -> None:
    for expression, kind, value, _ in EXAMPLES:
        oid, _ = described(connection, expression)
        [(type_name,)] = connection.execute("SELECT format_type(%s, -1)", (oid,)).fetchall()
        connection.execute(f"CREATE TEMP TABLE rows (v {type_name})".encode())
        back = way_back(kind, value, 0).replace("TYPE", type_name)
        # White space between JSON's tokens is not kept, as the page says.
        same = "jsonb" if kind == "json" else type_name
        query = f"""SELECT ({back})::{same}::text, ({expression})::{same}::text
            FROM (SELECT %s::json AS j) AS given"""

        [(found, expected)] = connection.execute(query.encode(), (value,)).fetchall()

        assert found == expected, expression
        connection.execute("DROP TABLE rows")


def test_every_kind_of_the_examples_is_a_kind_that_there_is() -> None:
    shown = {kind.removesuffix("[]") for _, kind, *_ in EXAMPLES}

    assert shown == set(_KINDS_BY_NAME)


@pytest.mark.parametrize(
    ("kind", "value", "type_name", "expected"),
    [
        ("integer", "9223372036854775807", "BIGINT", "9223372036854775807"),
        ("float", '"-Infinity"', "DOUBLE", "-inf"),
        ("numeric", '"12.50"', "DECIMAL(12, 2)", "12.50"),
        ("boolean", "true", "BOOLEAN", "true"),
        (
            "timestamptz",
            '"2026-11-22T09:51:54.056779Z"',
            "TIMESTAMPTZ",
            "2026-11-22 09:51:54.056779+00",
        ),
        ("timestamp", '"2026-11-22T09:51:54"', "TIMESTAMP", "2026-11-22 09:51:54"),
        ("date", '"2026-11-22"', "DATE", "2026-11-22"),
        ("time", '"09:51:54.5"', "TIME", "09:51:54.5"),
        ("bytea", '"AP8Q"', "", "\\x00\\xFF\\x10"),
        ("json", '{"b":1.50}', "", '{"b":1.50}'),
        ("text", r'"größe \"漢字\""', "VARCHAR", 'größe "漢字"'),
        ("integer[]", "[1,null,3]", "BIGINT", "[1, NULL, 3]"),
        ("bytea[]", '["AP8="]', "", "[\\x00\\xFF]"),
        ("json[]", '[{"a":1},2]', "", '[{"a":1}, 2]'),
    ],
)
def test_values_come_back_in_duckdb_as_the_page_says(
    kind: str, value: str, type_name: str, expected: str
) -> None:
    back = way_back(kind, value, 1).replace("TYPE", type_name).replace("ELEMENT", type_name)

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        row = connection.execute(
            f"SELECT CAST({back} AS VARCHAR) FROM (SELECT ?::JSON AS j)", [value]
        ).fetchone()

    assert row == (expected,)
