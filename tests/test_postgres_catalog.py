"""What a source needs on the server: what it makes, what it warns of, what it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from certificates import write_certificate
from databases import Database
from engine.model.errors import (
    ConfigurationError,
    PositionLost,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableVersion
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres
from engine.sources.postgres.catalog import Catalog
from engine.sources.postgres.session import Session
from engine.sources.postgres.source import PostgresSource
from engine.sources.postgres.types import json_type, kind_number, type_kind
from trials import tried

PUBLIC = RecordConfiguration(through="tailrace", tables=("public.*",))


def source_of(
    database: Database, configuration: RecordConfiguration = PUBLIC, *, dsn: str = ""
) -> PostgresSource:
    return PostgresSource(dsn=dsn or database.dsn, slot=database.name, configuration=configuration)


def published(database: Database) -> set[str]:
    rows = database.execute(
        "SELECT schemaname || '.' || tablename FROM pg_publication_tables"
        " WHERE pubname = 'tailrace'"
    )
    return {name for (name,) in rows}


def slot_exists(database: Database) -> bool:
    return bool(
        database.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", database.name)
    )


async def refusal(source: PostgresSource, *, is_first: bool = True) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await source.prepare(is_first=is_first)
    return caught.value


# ------------------------------------------------------------------------ what is made


async def test_a_first_start_makes_publication_and_slot(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute("CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)")
        connection.execute("CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY)")
        connection.execute("CREATE VIEW v AS SELECT * FROM a")
        connection.execute("CREATE SCHEMA other")
        connection.execute("CREATE TABLE other.b (id int PRIMARY KEY)")
    source = source_of(any_database)

    await source.prepare(is_first=True)
    await source.prepare(is_first=True)
    await source.prepare(is_first=False)

    assert published(any_database) == {"public.a", "public.p"}
    assert any_database.execute("SELECT pubviaroot FROM pg_publication") == [(True,)]
    assert slot_exists(any_database)


@pytest.mark.since(17)
async def test_a_slot_can_be_copied_to_standbys_where_the_server_knows_how(
    database: Database,
) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")

    await source_of(database).prepare(is_first=True)

    rows = database.execute(
        "SELECT failover, two_phase, plugin FROM pg_replication_slots WHERE slot_name = %s",
        database.name,
    )
    assert rows == [(True, False, "pgoutput")]


async def test_tables_without_a_replica_identity_are_left_out_with_the_fix(
    any_database: Database,
) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE keyed (id int PRIMARY KEY)")
        connection.execute("CREATE TABLE whole (id int)")
        connection.execute("ALTER TABLE whole REPLICA IDENTITY FULL")
        connection.execute("CREATE TABLE keyless (id int)")
        connection.execute("CREATE TABLE nothing (id int PRIMARY KEY)")
        connection.execute("ALTER TABLE nothing REPLICA IDENTITY NOTHING")
        connection.execute("CREATE TABLE p (id int) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)")
        connection.execute("CREATE TABLE q (id int) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE q1 PARTITION OF q FOR VALUES FROM (0) TO (10)")
        connection.execute("ALTER TABLE q1 REPLICA IDENTITY FULL")

        with capture_logs() as logs:
            await source_of(any_database).prepare(is_first=True)

        for name in ("keyless", "nothing", "p"):
            statement = sql.SQL("INSERT INTO {} VALUES (1)").format(sql.Identifier(name))
            connection.execute(statement)
            connection.execute(sql.SQL("UPDATE {} SET id = 2").format(sql.Identifier(name)))

    assert published(any_database) == {"public.keyed", "public.whole", "public.q"}
    [warning] = [entry for entry in logs if entry["log_level"] == "warning"]
    assert warning["tables"] == ["public.keyless", "public.nothing", "public.p"]
    assert 'ALTER TABLE "public"."keyless" REPLICA IDENTITY FULL' in warning["sql"]
    assert any(statement.startswith("ALTER PUBLICATION") for statement in warning["sql"])


async def test_tables_that_all_lack_an_identity_are_refused_with_the_fix(
    database: Database,
) -> None:
    database.execute("CREATE TABLE keyless (id int)")

    error = await refusal(source_of(database))

    assert isinstance(error, SourceRefused)
    assert 'ALTER TABLE "public"."keyless" REPLICA IDENTITY FULL' in error.hint
    assert not slot_exists(database)


async def test_patterns_that_match_nothing_say_what_there_is(database: Database) -> None:
    database.execute('CREATE TABLE "Orders" (id int PRIMARY KEY)')
    configuration = RecordConfiguration(through="tailrace", tables=("public.orders",))

    error = await refusal(source_of(database, configuration))

    assert isinstance(error, SourceRefused)
    assert 'public."Orders"' in str(error)
    assert not slot_exists(database)


async def test_a_role_that_may_not_publish_is_given_the_statement(any_database: Database) -> None:
    role = f"{any_database.name}_role"
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION").format(sql.Identifier(role)))
    dsn = any_database.server.dsn_of(any_database.name, user=role)

    error = await refusal(source_of(any_database, dsn=dsn))

    assert isinstance(error, SourceRefused)
    assert 'CREATE PUBLICATION "tailrace" FOR TABLE ONLY "public"."a"' in error.hint
    statement = error.hint[error.hint.index("CREATE") :]
    with any_database.connect() as connection:
        connection.execute(statement.encode())
    await source_of(any_database, dsn=dsn).prepare(is_first=True)
    assert slot_exists(any_database)


async def test_a_role_without_replication_is_refused(any_database: Database) -> None:
    role = f"{any_database.name}_role"
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    source = source_of(any_database, dsn=any_database.server.dsn_of(any_database.name, user=role))

    error = await refusal(source)
    with pytest.raises(SourceRefused) as caught:
        await source.identify()

    assert isinstance(error, SourceRefused)
    assert "REPLICATION" in error.hint
    assert "REPLICATION" in caught.value.hint


# ----------------------------------------------------------------- what is there already


async def test_a_publication_that_sends_less_is_a_warning_with_the_statement(
    database: Database,
) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute("CREATE TABLE b (id int PRIMARY KEY)")
        connection.execute("CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        connection.execute("CREATE PUBLICATION tailrace FOR TABLE a, p WITH (publish = 'insert')")

    with capture_logs() as logs:
        await source_of(database).prepare(is_first=True)

    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    statements = [statement for entry in warnings for statement in entry["sql"]]
    # That b is missing is an alarm, which the engine's first look sets.
    assert statements == [
        'ALTER PUBLICATION "tailrace" SET (publish_via_partition_root = true)',
        "ALTER PUBLICATION \"tailrace\" SET (publish = 'insert, update, delete, truncate')",
    ]
    with database.connect() as connection:
        for statement in statements:
            connection.execute(statement.encode())
    with capture_logs() as logs:
        await source_of(database).prepare(is_first=False)
    assert [entry for entry in logs if entry["log_level"] == "warning"] == []


async def test_a_published_table_that_refuses_updates_is_a_warning(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE keyless (id int)")
        connection.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")

    with capture_logs() as logs:
        await source_of(database).prepare(is_first=True)

    [warning] = [entry for entry in logs if entry["log_level"] == "warning"]
    assert warning["sql"] == ['ALTER TABLE "public"."keyless" REPLICA IDENTITY FULL']


async def test_a_partition_that_is_a_foreign_table_is_a_warning(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE FOREIGN DATA WRAPPER far")
        connection.execute("CREATE SERVER far FOREIGN DATA WRAPPER far")
        for name in ("orders", "other"):
            for statement in (
                f"CREATE TABLE {name} (id int) PARTITION BY LIST (id)",
                f"ALTER TABLE {name} REPLICA IDENTITY FULL",
                f"CREATE FOREIGN TABLE {name}_1 PARTITION OF {name} FOR VALUES IN (1) SERVER far",
                f"CREATE TABLE {name}_2 PARTITION OF {name} FOR VALUES IN (2)",
                f"ALTER TABLE {name}_2 REPLICA IDENTITY FULL",
            ):
                connection.execute(statement.encode())
    configuration = RecordConfiguration("tailrace", tables=("public.orders*",))
    source = PostgresSource(dsn=database.dsn, slot=database.name, configuration=configuration)

    with capture_logs() as logs:
        await source.prepare(is_first=True)
    told = await tried(source, "unlogged", is_first=False)

    statement = 'ALTER TABLE "public"."orders" DETACH PARTITION "public"."orders_1"'
    [warning] = [entry for entry in logs if entry["log_level"] == "warning"]
    assert (warning["tables"], warning["sql"]) == (["public.orders_1"], [statement])
    assert told.text.endswith("are foreign tables: the log lacks their changes: public.orders_1")
    assert told.hint == statement


async def test_what_is_captured_and_unlogged_is_a_warning(database: Database) -> None:
    database.execute("CREATE UNLOGGED TABLE orders_cache (id int PRIMARY KEY)")
    for name in ("orders", "other"):
        with database.connect() as connection:
            for statement in (
                f"CREATE TABLE {name} (id int PRIMARY KEY) PARTITION BY RANGE (id)",
                f"CREATE UNLOGGED TABLE {name}_1 PARTITION OF {name} FOR VALUES FROM (0) TO (9)",
            ):
                connection.execute(statement.encode())
    configuration = RecordConfiguration("tailrace", tables=("public.orders*",))
    source = PostgresSource(dsn=database.dsn, slot=database.name, configuration=configuration)

    with capture_logs() as logs:
        await source.prepare(is_first=True)
    told = await tried(source, "unlogged", is_first=False)

    names = ("orders_1", "orders_cache")
    statements = [f'ALTER TABLE "public"."{name}" SET LOGGED' for name in names]
    listed = ", ".join(f"public.{name}" for name in names)
    [warning] = [entry for entry in logs if entry["log_level"] == "warning"]
    assert (", ".join(warning["tables"]), warning["sql"]) == (listed, statements)
    assert told.text.endswith(f": {listed}")
    assert told.hint == "; ".join(statements)


async def test_a_missing_slot_is_made_at_the_first_start_alone(database: Database) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")

    error = await refusal(source_of(database), is_first=False)

    assert isinstance(error, PositionLost)
    assert not slot_exists(database)


async def test_a_publication_gone_since_is_a_lost_position_up_to_17(database15: Database) -> None:
    # From 18 on the stream passes over such changes: the look records a gap (test_catalog_watch).
    database15.execute("CREATE TABLE a (id int PRIMARY KEY)")
    await source_of(database15).prepare(is_first=True)
    database15.execute("DROP PUBLICATION tailrace")

    error = await refusal(source_of(database15), is_first=False)

    assert isinstance(error, PositionLost)
    assert "tailrace" in str(error)


async def test_a_slot_of_another_kind_is_refused(any_database: Database) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute(
            "SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (any_database.name,)
        )

    error = await refusal(source_of(any_database))

    assert isinstance(error, SourceRefused)
    assert "test_decoding" in str(error)


async def test_a_physical_slot_is_refused(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute("SELECT pg_create_physical_replication_slot(%s)", (database.name,))

    error = await refusal(source_of(database))

    assert isinstance(error, SourceRefused)
    assert "physical" in str(error)


async def test_a_slot_of_another_database_is_refused(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute(
            "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (database.name,)
        )
    configuration = RecordConfiguration(through="tailrace", tables=("*.*",))
    source = source_of(database, configuration, dsn=database.server.dsn)

    error = await refusal(source)
    with pytest.raises(SourceRefused, match=database.name):
        async with source.stream(None, configuration, take_all):
            pytest.fail("streamed from another database's slot")

    assert isinstance(error, SourceRefused)
    assert database.name in str(error)


def take_all(relation: Relation, position: object) -> TableVersion:
    return TableVersion(1, None, "", relation)


# ------------------------------------------------------------------ servers that are not so


@pytest.fixture(scope="module")
def strict_postgres() -> Iterator[EmbeddedPostgres]:
    """A server with too little in its log, a role with a password, TLS, and no slots to spare."""
    settings = {**FAST_SETTINGS, "wal_level": "replica"}
    server = EmbeddedPostgres.debian(15, settings=settings)
    with server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
            connection.execute("CREATE ROLE locked LOGIN REPLICATION PASSWORD 'correct'")
        access = server.data_directory / "pg_hba.conf"
        access.write_text(
            f"host all,replication locked 127.0.0.1/32 scram-sha-256\n{access.read_text()}"
        )
        server.stop()
        write_certificate(server)
        server.settings["ssl"] = "on"
        server.start()
        yield server


def locked_dsn(server: EmbeddedPostgres, password: str) -> str:
    return make_conninfo(server.dsn_of("postgres", user="locked"), password=password)


async def test_a_server_that_logs_too_little_is_refused_with_the_fix(
    strict_postgres: EmbeddedPostgres,
) -> None:
    source = PostgresSource(dsn=strict_postgres.dsn, slot="tailrace", configuration=PUBLIC)

    error = await refusal(source)
    with pytest.raises(SourceRefused) as caught:
        async with source.stream(None, PUBLIC, take_all):
            pytest.fail("streamed without a logical log")

    for refused in (error, caught.value):
        assert isinstance(refused, SourceRefused)
        assert "ALTER SYSTEM SET wal_level = logical" in refused.hint
        assert "rds.logical_replication" in refused.hint


async def test_a_wrong_password_is_refused_and_not_repeated(
    strict_postgres: EmbeddedPostgres,
) -> None:
    dsn = locked_dsn(strict_postgres, "not-the-one")
    source = PostgresSource(dsn=dsn, slot="tailrace", configuration=PUBLIC)

    with pytest.raises(SourceRefused, match="password authentication failed") as caught:
        await source.identify()

    assert "not-the-one" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


async def test_the_right_password_opens(strict_postgres: EmbeddedPostgres) -> None:
    source = PostgresSource(
        dsn=locked_dsn(strict_postgres, "correct"), slot="tailrace", configuration=PUBLIC
    )

    assert (await source.identify()).database == "postgres"


async def test_a_database_that_is_not_there_is_refused(strict_postgres: EmbeddedPostgres) -> None:
    source = PostgresSource(
        dsn=strict_postgres.dsn_of("nowhere"), slot="tailrace", configuration=PUBLIC
    )

    with pytest.raises(SourceRefused, match="does not exist"):
        await source.identify()


async def test_a_certificate_that_does_not_verify_is_refused(
    strict_postgres: EmbeddedPostgres,
) -> None:
    dsn = make_conninfo(strict_postgres.dsn, sslmode="verify-full", sslrootcert="/dev/null")
    source = PostgresSource(dsn=dsn, slot="tailrace", configuration=PUBLIC)

    with pytest.raises(SourceRefused, match="certificate"):
        await source.identify()


async def test_a_dsn_that_is_none_is_not_repeated() -> None:
    source = PostgresSource(
        dsn="host=localhost pasword=secret", slot="tailrace", configuration=PUBLIC
    )

    with pytest.raises(ConfigurationError) as caught:
        await source.identify()

    assert "secret" not in f"{caught.value} {caught.value.hint}"
    assert caught.value.__cause__ is None


async def test_a_unix_socket_that_is_not_there_is_unavailable(tmp_path: object) -> None:
    source = PostgresSource(dsn=f"host={tmp_path}", slot="tailrace", configuration=PUBLIC)

    with pytest.raises(SourceUnavailable):
        await source.identify()


async def test_changes_stream_over_tls(strict_postgres: EmbeddedPostgres) -> None:
    with logical(strict_postgres) as server:
        dsn = make_conninfo(server.dsn, sslmode="require")
        source = PostgresSource(dsn=dsn, slot="tailrace", configuration=PUBLIC)
        await source.prepare(is_first=True)
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            # Rows of very different sizes: TLS records end inside of frames.
            connection.execute("ALTER TABLE a ADD COLUMN v text")
            connection.execute(
                "INSERT INTO a SELECT i, repeat('x', (i * 7919) % 40000)"
                " FROM generate_series(1, 500) i"
            )
        row_count = 0
        async with source.stream(None, PUBLIC, take_all) as stream:
            while row_count < 500:
                intake = await stream.receive()
                row_count += sum(batch.row_count for batch in intake.batches)

    assert row_count == 500


async def test_no_slot_to_spare_is_refused_with_the_fix(strict_postgres: EmbeddedPostgres) -> None:
    with logical(strict_postgres, max_replication_slots="1") as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_create_physical_replication_slot('other')")
        source = PostgresSource(dsn=server.dsn, slot="second", configuration=PUBLIC)

        error = await refusal(source)

    assert isinstance(error, SourceRefused)
    assert "max_replication_slots" in error.hint


async def test_a_slot_that_the_server_gave_up_is_a_lost_position(
    strict_postgres: EmbeddedPostgres,
) -> None:
    with logical(strict_postgres, max_slot_wal_keep_size="1MB") as server:
        source = PostgresSource(dsn=server.dsn, slot="tailrace", configuration=PUBLIC)
        await source.prepare(is_first=True)
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for _ in range(3):
                connection.execute("SELECT pg_switch_wal()")
                connection.execute("CREATE TABLE IF NOT EXISTS waste (v text)")
                connection.execute("INSERT INTO waste SELECT repeat('x', 1000)")
                connection.execute("CHECKPOINT")

        error = await refusal(source, is_first=False)
        with pytest.raises(PositionLost) as caught:
            async with source.stream(None, PUBLIC, take_all):
                pytest.fail("streamed from a slot without its log")

    for lost in (error, caught.value):
        assert isinstance(lost, PositionLost)
        assert "max_slot_wal_keep_size" in lost.hint


@contextmanager
def logical(server: EmbeddedPostgres, **settings: str) -> Iterator[EmbeddedPostgres]:
    """Restart with a log for logical decoding; afterwards without slots, and as before."""
    before = dict(server.settings)
    server.stop()
    server.settings.update({"wal_level": "logical", **settings})
    server.start()
    try:
        yield server
    finally:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(active_pid, 60000) FROM pg_replication_slots"
                " WHERE active"
            )
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            )
        server.stop()
        server.settings = before
        server.start()


# ------------------------------------------------------------------------- types and tables


@dataclass(frozen=True)
class Kind:
    name: str
    json: str


@pytest.mark.parametrize(
    ("type_oid", "kind"),
    [
        (16, Kind("boolean", "boolean")),
        (23, Kind("integer", "number")),
        (1007, Kind("integer[]", "array")),
        (701, Kind("float", "number")),
        (1700, Kind("numeric", "string")),
        (1184, Kind("timestamptz", "string")),
        (17, Kind("bytea", "string")),
        (3802, Kind("json", "any")),
        (790, Kind("money", "string")),
        (2950, Kind("text", "string")),
        (999_999, Kind("text", "string")),
    ],
)
def test_a_type_has_a_kind_and_a_json_type(type_oid: int, kind: Kind) -> None:
    name = type_kind(type_oid, {})

    assert Kind(name, json_type(name, "string", "embed")) == kind


def test_the_configuration_decides_how_numeric_and_json_are_written() -> None:
    assert json_type("numeric", "number", "embed") == "number"
    assert json_type("json", "string", "string") == "string"
    assert json_type("numeric[]", "number", "embed") == "array"


def test_a_kind_of_a_later_release_is_read_as_text() -> None:
    assert kind_number("quaternion") == kind_number("text")
    assert kind_number("quaternion[]") == kind_number("text[]")


async def test_a_publication_of_many_tables_is_read_in_pages(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(
            "DO $$ BEGIN FOR i IN 1..450 LOOP"
            " EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', i);"
            " END LOOP; END $$"
        )
        connection.execute("CREATE PUBLICATION tailrace FOR ALL TABLES")
    catalog = Catalog()

    async with Session(database.dsn) as session:
        await catalog.read_publication(session, "tailrace")

    assert catalog.table_count == 450


async def test_a_lost_side_session_is_opened_again(database: Database) -> None:
    async with Session(database.dsn) as session:
        [(first,)] = await session.rows("SELECT pg_backend_pid()", doing="asking")
        database.execute("SELECT pg_terminate_backend(%s, 60000)", first)

        [(second,)] = await session.rows("SELECT pg_backend_pid()", doing="asking")

    assert second != first


async def test_an_error_shows_no_values_of_rows(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE a (id int PRIMARY KEY)")
        connection.execute("INSERT INTO a VALUES (4711)")
    async with Session(database.dsn) as session:
        with pytest.raises(SourceRefused) as caught:
            await session.rows("INSERT INTO a VALUES (4711)", doing="trying")

    assert "4711" not in str(caught.value)
