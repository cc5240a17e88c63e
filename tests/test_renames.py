"""Tables that change names, leave and come back, on real servers: versions never fall."""

import pytest

from databases import Database
from live_engine import LiveEngine, settings_of


def orders_come_back(database: Database) -> None:
    """`orders` is renamed away, another has its name for a while, the first gets it back."""
    with database.connect() as connection:
        connection.execute("INSERT INTO orders VALUES (1), (2)")
        connection.execute("ALTER TABLE orders RENAME TO orders_old")
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY)")
        connection.execute("ALTER PUBLICATION tailrace ADD TABLE ONLY orders")
        connection.execute("INSERT INTO orders VALUES (3), (4)")
        connection.execute("DROP TABLE orders")
        connection.execute("ALTER TABLE orders_old RENAME TO orders")
        connection.execute("INSERT INTO orders VALUES (5), (6)")


@pytest.mark.parametrize("rows_max", [1 << 30, 1])
async def test_a_name_that_comes_back_is_a_new_version(
    any_database: Database, rows_max: int
) -> None:
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    engine = LiveEngine(any_database, settings_of(rows_max))

    async with engine.living() as pipeline:
        orders_come_back(any_database)
        await engine.durable(pipeline)
    async with engine.living() as pipeline:
        any_database.execute("INSERT INTO orders VALUES (7)")
        await engine.durable(pipeline)

    await engine.proven()
    records = engine.records("public.orders")
    assert [record["after"]["id"] for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert [record["metadata"]["version"] for record in records] == [1, 1, 2, 2, 3, 3, 3]
    assert engine.schema("orders", 3)["changes"][0]["kind"] == "table_recreated"
