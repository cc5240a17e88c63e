"""Values of every kind of type: a snapshot writes them byte for byte as the stream does."""

import asyncio
import json
from decimal import Decimal
from typing import Any, Final

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from databases import Database
from engine.model.schema import TableName
from snapshot_reading import read_table
from test_postgres_as_streamed import publish, streamed

_A: Final = TableName("public", "a")

TEXTS: Final = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20
) | st.text('\\"\t\n\r\x08\x0c\x0b\x01\x7f{},/NULLé漢😀', max_size=10)
JSONS: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a\\"\n{}é\x01', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=6,
).map(json.dumps)
SMALL: Final = st.integers(-(2**15), 2**15 - 1)
INTS: Final = st.integers(-(2**31), 2**31 - 1)
NUMBERS: Final = st.sampled_from(("NaN", "Infinity", "-Infinity")) | st.decimals(
    allow_nan=False, allow_infinity=False, min_value=Decimal("-1e30"), max_value=Decimal("1e30")
).map(lambda number: format(number, "f"))
FLOATS: Final = st.floats().map(repr)
TIMES: Final = st.times().map(str)
MOMENTS: Final = st.datetimes().map(str) | st.sampled_from(
    ("infinity", "-infinity", "0044-03-15 12:00:00 BC", "294276-12-31 23:59:59.999999")
)
POINTS: Final = st.tuples(INTS, INTS).map(lambda pair: f"({pair[0]},{pair[1]})")

TYPES: Final[dict[str, st.SearchStrategy[Any]]] = {
    "smallint": SMALL.map(str),
    "integer": INTS.map(str),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "numeric": NUMBERS,
    "real": st.floats(width=32).map(repr),
    "double precision": FLOATS,
    "boolean": st.booleans().map(str),
    "text": TEXTS,
    "varchar(40)": TEXTS,
    "char(30)": TEXTS,
    "bytea": st.binary(max_size=20).map(lambda raw: f"\\x{raw.hex()}"),
    "date": st.dates().map(str) | st.sampled_from(("infinity", "0044-03-15 BC")),
    "time": TIMES,
    "timetz": TIMES.map(lambda time: f"{time}+05:30"),
    "timestamp": MOMENTS,
    "timestamptz": MOMENTS,
    "interval": st.timedeltas().map(lambda span: f"{span.days} days {span.microseconds} us"),
    "uuid": st.uuids().map(str),
    "json": JSONS,
    "jsonb": JSONS,
    "inet": st.ip_addresses().map(str),
    "macaddr": st.binary(min_size=6, max_size=6).map(bytes.hex),
    "varbit": st.text("01", max_size=12),
    "point": POINTS,
    "int4range": st.tuples(SMALL, SMALL).map(lambda pair: f"[{min(pair)},{max(pair)}]"),
    "money": SMALL.map(str),
    "feeling": st.sampled_from(("sad", 'o"k, \\')),
    "price": SMALL.map(str),
    "integer[]": st.lists(st.none() | INTS, max_size=4),
    "text[]": st.lists(st.none() | TEXTS, max_size=4),
    "numeric[]": st.lists(st.none() | NUMBERS, max_size=4),
    "bytea[]": st.lists(st.none() | st.binary(max_size=5), max_size=3),
    "timestamptz[]": st.lists(st.none() | MOMENTS, max_size=3),
}
ROWS: Final = st.lists(
    st.tuples(*(st.none() | strategy for strategy in TYPES.values())), min_size=1, max_size=15
)


def make_table(database: Database) -> None:
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(TYPES))
    with database.connect() as connection:
        connection.execute("CREATE TYPE feeling AS ENUM ('sad', 'o\"k, \\')")
        connection.execute("CREATE DOMAIN price AS numeric(10, 2)")
        connection.execute(f"CREATE TABLE a (id int PRIMARY KEY, {columns})".encode())
    publish(database, "FOR TABLE a WITH (publish = 'insert')")


def insert(connection: psycopg.Connection[Any], rows: list[tuple[Any, ...]]) -> None:
    """Replace the table's rows, and pass over the log up to here before."""
    places = ", ".join(f"%s::{kind}" for kind in TYPES)
    with connection.transaction():
        connection.execute("DELETE FROM a")
        for number, row in enumerate(rows):
            connection.execute(f"INSERT INTO a VALUES (%s, {places})".encode(), (number, *row))


def after_of(line: bytes) -> str:
    """The text of the row as the line has it."""
    text = line.decode()
    begin = text.index('"after":') + len('"after":')
    _, end = json.JSONDecoder().raw_decode(text, begin)
    return text[begin:end]


async def values_of(database: Database, row_count: int) -> tuple[list[str], list[str]]:
    """The rows as the stream's last lines have them, and as the snapshot has them."""
    _, reading = await streamed(database)
    lines = (await read_table(database, _A)).lines
    return [after_of(line) for line in reading.lines[-row_count:]], [
        after_of(line) for line in lines if b'"op":"r"' in line
    ]


@pytest.mark.timeout(900)
def test_every_value_is_byte_for_byte_the_streams(any_database: Database) -> None:
    make_table(any_database)
    compared = 0

    @settings(max_examples=12, deadline=None, database=None)
    @given(ROWS)
    def compare(rows: list[tuple[Any, ...]]) -> None:
        nonlocal compared
        with any_database.connect() as connection:
            insert(connection, rows)

        of_stream, of_snapshot = asyncio.run(values_of(any_database, len(rows)))

        assert len(of_stream) == len(rows)
        assert of_snapshot == of_stream
        compared += len(rows)

    compare()
    assert compared >= 12
