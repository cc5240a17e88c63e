"""Ranges that are hard to read: many columns, large rows, hostile roles."""

import json
from typing import Final

import pytest
from msgspec.structs import replace

from databases import Database, dsn_as
from engine.model.schema import TableName
from snapshot_reading import CONFIGURATION, read_table, read_tasks, snapshots_of, tasks_of
from test_hostile_sessions import make_shadows, role_on, shadows_ran

A: Final = TableName("public", "a")

TIMEOUTS: Final = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
)


async def test_a_row_of_1600_columns_is_read(any_database: Database) -> None:
    names = [f"c{number}" for number in range(1600)]
    columns = ", ".join(f"{name} int" for name in names)
    with any_database.connect() as connection:
        connection.execute(f"CREATE TABLE a ({columns})".encode())
        connection.execute(f"INSERT INTO a VALUES ({', '.join(['7'] * 1600)})".encode())

    [row] = (await read_table(any_database, A)).rows

    assert row == dict.fromkeys(names, 7)


async def test_a_large_row_is_read_whole(database: Database) -> None:
    database.execute("CREATE TABLE a (id int, t text)")
    database.execute(
        "INSERT INTO a SELECT 1, repeat(E'a\\tb\\\\\"\\x01', 2000000) UNION ALL SELECT 2, 'x'"
    )

    rows = (await read_table(database, A)).rows

    assert rows == [{"id": 1, "t": 'a\tb\\"\x01' * 2_000_000}, {"id": 2, "t": "x"}]


async def test_no_timeout_or_search_path_of_a_role_ends_or_changes_a_reading(
    any_database: Database,
) -> None:
    with role_on(any_database) as role, any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY, n numeric)")
        connection.execute("INSERT INTO a SELECT n, n FROM generate_series(1, 2000) AS n")
        connection.execute(
            "CREATE PUBLICATION tailrace FOR TABLE a WHERE (id + 1 > 1001)"
            " WITH (publish = 'insert')"
        )
        connection.execute(f"GRANT SELECT ON a TO {role}".encode())
        make_shadows(connection)
        settings = {"search_path": "shadow, public, pg_catalog", "enable_tidscan": "off"}
        known = connection.execute("SELECT name FROM pg_settings").fetchall()
        settings |= dict.fromkeys({name for (name,) in known}.intersection(TIMEOUTS), "'1s'")
        for name, value in settings.items():
            connection.execute(f"ALTER ROLE {role} SET {name} = {value}".encode())
        dsn = dsn_as(any_database, role)
        async with snapshots_of(any_database, dsn=dsn, range_pages=2).hold([A]) as held:
            connection.execute("SELECT pg_catalog.pg_sleep(2.5)")

            reading = await read_tasks(dsn, tasks_of(held, A))

    assert sorted(row["id"] for row in reading.rows) == list(range(1001, 2001))
    assert not shadows_ran(any_database)


@pytest.mark.parametrize("envelope", ["debezium", "flat"])
async def test_every_envelope_has_the_record_that_begins_the_attempt(
    database: Database, envelope: str
) -> None:
    configuration = replace(CONFIGURATION, envelope=envelope)
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    database.execute("INSERT INTO a VALUES (1)")

    lines = (await read_table(database, A, configuration)).lines

    operations = [json.loads(line)["_op" if envelope == "flat" else "op"] for line in lines]
    assert operations == ["t", "r"]
