"""Tables that inherit: what we publish must not make the application's statements fail."""

from databases import Database
from engine.model.record import RecordConfiguration
from engine.sources.postgres.source import PostgresSource


async def test_a_child_without_a_key_may_still_be_updated(any_database: Database) -> None:
    configuration = RecordConfiguration(through="tailrace", tables=("public.*",))
    source = PostgresSource(
        dsn=any_database.dsn, slot=any_database.name, configuration=configuration
    )
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE parent (id int PRIMARY KEY)")
        connection.execute("CREATE TABLE child (x int) INHERITS (parent)")
        connection.execute("CREATE TABLE other (id int PRIMARY KEY) INHERITS (parent)")

        await source.prepare(is_first=True)

        connection.execute("INSERT INTO child VALUES (1, 2)")
        connection.execute("UPDATE parent SET id = id + 1")
        connection.execute("DELETE FROM child")
    published = any_database.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1")
    assert published == [("other",), ("parent",)]
