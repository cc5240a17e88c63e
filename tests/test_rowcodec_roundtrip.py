"""What a consumer can make of the lines: the row as it was, for every built-in type.

Tables are read by COPY, written as lines, rebuilt from the lines alone with PostgreSQL's own JSON
functions, and read by COPY again.
"""

import base64
import json
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from databases import Database
from engine.sources.postgres.types import (
    KIND_ARRAY,
    KIND_BYTEA,
    KIND_JSON,
    KIND_TEXT,
    builtin_kind,
)
from row_codec import RowCodec
from rowcodec_capture import SESSION, copy_rows, describe, statements

# The documented exception: an array of json whose elements are arrays looks like more dimensions.
EXCEPTIONS = {("arrays", "jsons")}
ARRAY_TYPES = """
    SELECT oid::int, typarray::int, typdelim::text FROM pg_type
    WHERE typarray BETWEEN 1 AND 9999 AND typtype <> 'p' ORDER BY oid
"""


def blob(text: str) -> bytes:
    return base64.b64decode(json.loads(text))


def blobs(text: str) -> list[bytes | None]:
    return [None if one is None else base64.b64decode(one) for one in json.loads(text)]


# What a consumer turns into a value itself; everything else goes as JSON text to PostgreSQL.
AS_PARAMETER: dict[int, Callable[[str], Any]] = {
    KIND_BYTEA: blob,
    KIND_ARRAY | KIND_BYTEA: blobs,
    KIND_JSON: str,
}


def lines_of(table: dict[str, Any]) -> list[str]:
    codec = RowCodec(1)
    codec.bind(
        1,
        database="d",
        schema=table["schema"],
        table=table["table"],
        version=1,
        columns=[(name, builtin_kind(oid), key, True) for name, oid, key in table["columns"]],
        key=table["key"],
        envelope="standard",
        numeric="string",
        json="embed",
    )
    codec.begin(1, 1, 0)
    for number, row in enumerate(table["copy"]):
        codec.encode_copy(1, bytes.fromhex(row), 1, number)
    rows = codec.take(1)
    return rows.lines.decode().removesuffix("\n").split("\n") if rows else []


def members_of(line: str) -> dict[str, str]:
    """The members of `after` as JSON text, since parsing loses digits; SQL's NULL is empty."""
    decoder = json.JSONDecoder()
    json_null = json.loads(line)["metadata"].get("json_null", [])
    members = {}
    at = line.index('"after":') + len('"after":')
    while line[at] != "}":
        name, at = decoder.raw_decode(line, at + 1)
        _, end = decoder.raw_decode(line, at + 1)
        text = line[at + 1 : end]
        members[name] = "" if text == "null" and name not in json_null else text
        at = end
    return members


def insertion(table: dict[str, Any]) -> tuple[sql.Composed, list[tuple[str, int]]]:
    """The statement that inserts one row, and the columns that are its parameters."""
    name = sql.Identifier(table["schema"], table["table"])
    columns = [
        (column, builtin_kind(oid))
        for column, oid, _ in table["columns"]
        if (table["table"], column) not in EXCEPTIONS
    ]
    values = [
        sql.SQL("%s")
        if kind in AS_PARAMETER
        else sql.SQL("(json_populate_record(NULL::{}, json_build_object({}, %s::json))).{}").format(
            name, sql.Literal(column), sql.Identifier(column)
        )
        for column, kind in columns
    ]
    names = [sql.Identifier(column) for column, _ in columns]
    statement = sql.SQL("INSERT INTO {} ({}) SELECT {}").format(
        name, sql.SQL(", ").join(names), sql.SQL(", ").join(values)
    )
    return statement, columns


def rebuild(connection: psycopg.Connection[Any], table: dict[str, Any]) -> None:
    name = sql.Identifier(table["schema"], table["table"])
    statement, columns = insertion(table)
    connection.execute(sql.SQL("TRUNCATE {}").format(name))
    for line in lines_of(table):
        members = members_of(line)
        values = [
            AS_PARAMETER.get(kind, str)(members[column]) if members[column] else None
            for column, kind in columns
        ]
        connection.execute(statement, values)


def comparable(table: dict[str, Any], rows: list[str]) -> list[list[Any]]:
    """Fields of COPY rows; json by its value, since its white space is not kept."""
    result = []
    for row in rows:
        fields = bytes.fromhex(row).decode().removesuffix("\n").split("\t")
        result.append(
            [
                json.loads(field.encode().decode("unicode_escape"))
                if oid == 114 and field != r"\N"
                else field
                for field, (name, oid, _) in zip(fields, table["columns"], strict=True)
                if (table["table"], name) not in EXCEPTIONS
            ]
        )
    return result


def test_rows_can_be_rebuilt_from_their_lines(any_database: Database) -> None:
    with psycopg.connect(any_database.dsn, autocommit=True, options=SESSION) as connection:
        for statement in statements():
            connection.execute(statement.encode())
        tables = [table for table in describe(connection).values() if table["columns"]]

        for table in tables:
            rebuild(connection, table)

        compared = 0
        for table in tables:
            rebuilt = copy_rows(connection, table["schema"], table["table"])
            assert comparable(table, rebuilt) == comparable(table, table["copy"])
            compared += len(rebuilt)
        assert compared >= 15


def test_every_array_of_a_built_in_type_has_its_elements_kind(any_database: Database) -> None:
    rows = any_database.execute(ARRAY_TYPES)

    kinds = {array: builtin_kind(array) for _, array, _ in rows}

    # box[] alone has another delimiter.
    assert kinds == {
        array: KIND_TEXT if delimiter == ";" else KIND_ARRAY | builtin_kind(oid)
        for oid, array, delimiter in rows
    }
    assert sum(delimiter == ";" for _, _, delimiter in rows) == 1
