"""`tailrace views duckdb` over what a real engine wrote into a real bucket: they are the tables."""

from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pytest

from bucket_duckdb import differences, reading
from databases import Database
from engine.reader.views.engines import EngineName
from engine.servers.servers import EmbeddedS3
from engine.sources.postgres.lsn import parse_lsn
from load_tests.engine_process import EngineProcess, Pipeline, until
from log_points import place
from view_engines import Stand

NEXT = "next: run it in DuckDB: its first comment says what it needs"

pytestmark = pytest.mark.timeout(300)

PREFIX = "la'ke*"
ENGINES: tuple[EngineName, ...] = ("athena", "snowflake", "databricks", "spark")
LONG = "repeat('lorem ', 2000)"
HOSTILE = '"we""ird.na\'me\n\\ 😀 %s"'
LONGEST = "é" * 31
CAP = '"' + LONGEST + '"'

TABLES = (
    "CREATE TYPE feeling AS ENUM ('sad', 'o\"k, \\')",
    """CREATE TABLE orders (id bigint PRIMARY KEY, customer text, total numeric(10,2), note text,
        paid boolean, placed timestamptz)""",
    "ALTER TABLE orders ALTER note SET STORAGE EXTERNAL",
    f"""INSERT INTO orders SELECT n, 'customer ' || n, n / 7.0, {LONG} || n, n % 2 = 0,
        '2026-01-01 12:00+02'::timestamptz + n * interval '1 hour'
        FROM generate_series(1, 40) AS n""",
    'CREATE TABLE "Twins" ("Id" int PRIMARY KEY, id text, "ID" text)',
    "CREATE TABLE twins (id int PRIMARY KEY)",
    "INSERT INTO \"Twins\" VALUES (1, 'a', 'A'), (2, NULL, 'B')",
    f"""CREATE TABLE {HOSTILE}
        ("a.b" int, "c'""d" text, "e\\\nf" text, PRIMARY KEY ("a.b", "c'""d"))""",
    f"INSERT INTO {HOSTILE} VALUES (1, 'x', 'y'), (2, '''', NULL)",
    f"CREATE TABLE {CAP} ({CAP} text PRIMARY KEY, n int)",
    f"INSERT INTO {CAP} VALUES ('k1', 1)",
    "CREATE TABLE rows (a int, b text)",
    "ALTER TABLE rows REPLICA IDENTITY FULL",
    "INSERT INTO rows VALUES (1, 'one'), (1, 'one'), (2, NULL)",
    "CREATE TABLE whole (id int PRIMARY KEY, note text, n int)",
    "ALTER TABLE whole REPLICA IDENTITY FULL",
    "ALTER TABLE whole ALTER note SET STORAGE EXTERNAL",
    f"INSERT INTO whole SELECT n, {LONG} || n, n FROM generate_series(1, 5) AS n",
    "CREATE TABLE emptied (id int PRIMARY KEY, t text)",
    "INSERT INTO emptied VALUES (1, 'before'), (2, 'before')",
    "CREATE TABLE pair (a int, b int, PRIMARY KEY (a, b))",
    "CREATE TABLE ticks (id serial PRIMARY KEY)",
    "INSERT INTO pair VALUES (1, 1), (1, 2), (2, 1)",
)
"""What is there before the engine's first start: the snapshot has it."""

CHANGES = (
    "INSERT INTO orders VALUES (41, 'new', 1.50, 'short', NULL, NULL)",
    "UPDATE orders SET total = total + 1 WHERE id <= 10",  # the note is left out
    "UPDATE orders SET note = NULL WHERE id = 3",
    "UPDATE orders SET customer = 'again' WHERE id = 3",
    "DELETE FROM orders WHERE id BETWEEN 11 AND 15",
    f"""INSERT INTO orders SELECT id, 'back', 0, {LONG}, true, now()
        FROM (VALUES (11), (12)) AS v (id)""",
    "UPDATE orders SET id = 100, note = 'moved' WHERE id = 1",
    "UPDATE orders SET id = id + 1000 WHERE id = 41",
    "UPDATE orders SET paid = true WHERE id IN (2, 100)",
    'UPDATE "Twins" SET id = \'changed\', "ID" = NULL WHERE "Id" = 1',
    "INSERT INTO twins VALUES (7)",
    f'UPDATE {HOSTILE} SET "c\'""d" = \'other\' WHERE "a.b" = 1',
    f"UPDATE {CAP} SET n = 2",
    "INSERT INTO rows VALUES (1, 'one'), (3, 'three')",
    "UPDATE rows SET b = 'two' WHERE a = 2",
    "DELETE FROM rows WHERE ctid = (SELECT min(ctid) FROM rows WHERE a = 1)",
    "UPDATE whole SET id = id + 10 WHERE id > 3",  # before has what after leaves out
    "UPDATE whole SET n = 0 WHERE id < 3",
    "TRUNCATE emptied",
    "INSERT INTO emptied VALUES (2, 'after')",
    "UPDATE pair SET b = 5 WHERE a = 2",
    "UPDATE pair SET b = b WHERE a = 1",
    "DELETE FROM pair WHERE a = 1 AND b = 1",
)

DRIFT = (
    "ALTER TABLE orders ADD extra int DEFAULT 7",
    "ALTER TABLE orders RENAME customer TO who",
    "UPDATE orders SET id = 200 WHERE id = 2",  # the note is left out, and nobody says it
    "UPDATE orders SET total = 5 WHERE id = 5",
    "UPDATE orders SET who = 'renamed' WHERE id = 7",
    'ALTER TABLE "Twins" ADD plain int',
    'UPDATE "Twins" SET plain = 1 WHERE "Id" = 1',
    "ALTER TABLE whole ADD filled text DEFAULT 'it''s\\'",
    "ALTER TABLE whole RENAME note TO body",
    "INSERT INTO whole VALUES (99, 'x', 1)",
    "UPDATE whole SET filled = NULL WHERE id = 1",  # the body is left out
    "ALTER TABLE rows ADD c text DEFAULT 'c'",
    "DELETE FROM rows WHERE a = 1",
    "INSERT INTO rows VALUES (4, 'four', 'c')",
)
"""Changes of the tables' shapes, among changes of rows."""

NAMES = ("orders", '"Twins"', "twins", HOSTILE, CAP, "rows", "whole", "emptied", "pair")
VIEWS = {"twins": '"twins_2"'}


@dataclass
class Lake:
    """What a pipeline wrote, and its views."""

    database: Database
    pipeline: Pipeline
    folder: Path
    s3: EmbeddedS3
    bucket: str

    async def run(self) -> None:
        """`tailrace run --until-caught-up`, to a good end."""
        with EngineProcess(self.pipeline, self.folder, "run", "run", "--until-caught-up") as engine:
            assert await engine.ended(seconds=60) == 0, engine.log

    async def change(self, engine: EngineProcess, *statements: str) -> None:
        """Do that, and wait until all of it is durable."""
        self.execute(*statements)
        [(text,)] = self.database.execute("SELECT pg_current_wal_insert_lsn()::text")
        written = place(parse_lsn(text))
        # What is durable goes on at once where a captured row is, and idly after 30 s.
        self.execute("INSERT INTO ticks DEFAULT VALUES")

        async def look() -> bool:
            status = await engine.status()
            return status is not None and status["durable_position"] >= written

        await until(look, "everything is durable")

    async def ddl(self, *tables: str, engine: str = "duckdb") -> tuple[str, str]:
        """What `tailrace views` prints, and what it complains about."""
        with EngineProcess(
            self.pipeline, self.folder, "views", "views", engine, *tables
        ) as process:
            assert await process.ended(seconds=60) == 0, process.log
            return process.output.read_text(), process.log

    def execute(self, *statements: str) -> None:
        with self.database.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def objects(self, table: str) -> str:
        """All objects of the table, as DuckDB names them."""
        folder = f"{PREFIX}/database={self.database.name}/schema=public/table={table}"
        return f"s3://{self.bucket}/{folder.replace('*', '[*]')}/**/*.ndjson.*"

    def check(self, connection: duckdb.DuckDBPyConnection, *tables: str) -> None:
        """Each view is the table now."""
        found = {
            table: differences(
                self.database, connection, f"public.{table}", f"public.{VIEWS.get(table, table)}"
            )
            for table in tables
        }
        assert found == {table: ([], []) for table in tables}


@pytest.fixture
def lake(database15: Database, s3: EmbeddedS3, bucket: str, tmp_path: Path) -> Lake:
    sections = {
        "source": {
            "dsn": database15.dsn,
            "slot": database15.name,
            "snapshot": "initial",
            "snapshot_workers": "local:1",
        },
        "destination": {"bucket": bucket, "prefix": PREFIX, "endpoint_url": s3.endpoint_url},
        "chunk": {"max_age": "400ms"},
        "engine": {"append_interval": "200ms"},
    }
    return Lake(database15, Pipeline(sections, s3.environment), tmp_path, s3, bucket)


async def test_the_views_are_the_tables(lake: Lake) -> None:
    lake.execute(*TABLES)
    await lake.run()
    with (
        EngineProcess(lake.pipeline, lake.folder, "live", "run") as engine,
        reading(lake.s3) as connection,
    ):
        await engine.reaches("streaming")
        await lake.change(engine, *CHANGES)
        ddl, complaints = await lake.ddl()

        assert complaints.splitlines() == [NEXT]
        connection.execute(ddl)
        lake.check(connection, *NAMES)

        await lake.change(engine, *DRIFT)
        ddl, complaints = await lake.ddl()

        assert complaints.splitlines() == [NEXT]
        connection.execute(ddl)
        lake.check(connection, *(name for name in NAMES if name != "orders"))
        orders = connection.execute(
            "SELECT id, who, note IS NULL, _not_given FROM public.orders WHERE id IN (6, 7, 200)"
        ).fetchall()
        only_table, only_view = differences(
            lake.database, connection, "public.orders", "public.orders"
        )
    # An update that changes the key and leaves a column out: nobody says its value.
    assert sorted(orders) == [
        (6, "customer 6", False, None),
        (7, "renamed", False, None),
        (200, "customer 2", True, "note"),
    ]
    assert (len(only_table), len(only_view)) == (1, 1)


VALUES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("smallint", ("-32768",)),
    ("integer", ("2147483647",)),
    ("bigint", ("-9223372036854775808", "9223372036854775807")),
    ("oid", ("4294967295",)),
    ("real", ("NaN", "Infinity", "0.1", "1e-38")),
    ("double precision", ("NaN", "-Infinity", "0.1", "1.7976931348623157e308", "5e-324")),
    (
        "numeric",
        (
            "NaN",
            "-Infinity",
            "12345678901234567890123456789012345678901234567890.10",
        ),
    ),
    ("numeric(38,10)", ("1234567890123456789012345678.0000000001", "-0.5")),
    ("numeric(3,-2)", ("99900",)),
    ("numeric(2,4)", ("0.0099",)),
    ("money", ("-1234.50",)),
    ("boolean", ("true", "false")),
    ("timestamptz", ("infinity", "-infinity", "2026-11-22 09:51:54.056779+02")),
    ("timestamp", ("infinity", "0001-01-01 00:00:00", "9999-12-31 23:59:59.999999")),
    ("date", ("infinity", "-infinity", "2024-02-29", "0044-03-15 BC")),
    ("time", ("23:59:59.999999", "24:00:00")),
    ("timetz", ("12:00:00+05:30",)),
    ("interval", ("1 year 2 mons -3 days 04:05:06.789",)),
    ("bytea", ("", "\\x00ff10")),
    ("json", ('{"b":1.5,"a":[1,"é",null]}', '"5"', "null", "5")),
    ("jsonb", ('{"a": 123456789012345678901234567890}', '"x"', "null", "[]")),
    ("text", ("", "=", "nul\\u0000l", "tab\ttab\n😀", "null")),
    ("char(5)", ("ab",)),
    ("uuid", ("c0ffee00-0000-4000-8000-000000000001",)),
    ("inet", ("10.0.0.1/8",)),
    ("int4range", ("[1,10)",)),
    ("feeling", ('o"k, \\',)),
    ("price", ("1.50",)),
    ("integer[]", ("{1,NULL,3}", "{}")),
    ("bigint[]", ("{9223372036854775807}",)),
    ("text[]", ('{"a,b",NULL,"NULL","{}"}',)),
    ("boolean[]", ("{t,f,NULL}",)),
    ("double precision[]", ("{NaN,Infinity,0.5}",)),
    ("numeric[]", ("{1.10,NaN}",)),
    ("timestamptz[]", ("{2026-11-22 09:51:54+00,infinity}",)),
    ("bytea[]", ('{"\\\\x00ff"}',)),
    ("jsonb[]", ('{"{\\"a\\": 1}",NULL}',)),
)
"""Values that DuckDB's types hold."""

MISFITS = (
    ("numeric(10,2)", "NaN"),
    ("timestamptz", "0044-03-15 12:00:00+00 BC"),
    ("timestamp", "294276-12-31 23:59:59"),
    ("integer[]", "{{1,2},{3,4}}"),
    ("text[]", "[0:1]={a,b}"),
)
"""Values that they do not: each has a row that names its column."""


def make_values(lake: Lake) -> None:
    """One row for each value, and one of nulls only."""
    columns = ", ".join(f"c{at} {kind}" for at, (kind, _) in enumerate(VALUES))
    lake.execute(
        "CREATE TYPE feeling AS ENUM ('sad', 'o\"k, \\')",
        "CREATE DOMAIN price AS numeric(10,2)",
        f"CREATE TABLE vals (id serial PRIMARY KEY, {columns})",
        "INSERT INTO vals DEFAULT VALUES",
        "CREATE TABLE misfits (id int PRIMARY KEY, "
        + ", ".join(f"m{at} {kind}" for at, (kind, _) in enumerate(MISFITS))
        + ")",
    )


def insert_values(lake: Lake) -> None:
    with lake.database.connect() as connection:
        for at, (kind, values) in enumerate(VALUES):
            for value in values:
                statement = f"INSERT INTO vals (c{at}) VALUES (%s::text::{kind})"
                connection.execute(statement.encode(), (value,))
        for at, (kind, value) in enumerate(MISFITS):
            statement = f"""INSERT INTO misfits (id, m{at}) VALUES ({at}, %s::text::{kind})
                ON CONFLICT (id) DO UPDATE SET m{at} = excluded.m{at}"""
            connection.execute(statement.encode(), (value,))


async def test_every_types_values_come_back_by_the_plain_layout_and_debeziums_envelope(
    lake: Lake,
) -> None:
    make_values(lake)
    insert_values(lake)
    lake.execute("CREATE TABLE remade (id int PRIMARY KEY)", "INSERT INTO remade VALUES (1)")
    plain = replace(
        lake,
        pipeline=lake.pipeline.changed(
            destination__layout="plain",
            destination__envelope="debezium",
            chunk__compression="zstd",
        ),
    )
    await plain.run()
    lake.execute(
        "UPDATE vals SET c0 = 7 WHERE id % 3 = 0",
        "DROP TABLE remade",
        "CREATE TABLE remade (id int PRIMARY KEY)",
        "INSERT INTO remade VALUES (8)",
    )
    insert_values(lake)
    await plain.run()

    ddl, complaints = await plain.ddl()

    assert complaints.splitlines() == [NEXT]
    with reading(lake.s3) as connection:
        connection.execute(ddl)
        lake.check(connection, "vals", "remade")
        named = connection.execute(
            "SELECT id, _not_given FROM public.misfits ORDER BY id"
        ).fetchall()
    assert named == [(at, f"m{at}") for at in range(len(MISFITS))]


async def test_the_flat_envelopes_views_are_the_tables_but_for_changed_keys(lake: Lake) -> None:
    lake.execute(
        "CREATE TABLE f (id int PRIMARY KEY, op text, note text, doc jsonb)",
        "ALTER TABLE f ALTER note SET STORAGE EXTERNAL",
        f"INSERT INTO f SELECT n, 'x', {LONG}, NULL FROM generate_series(1, 5) AS n",
        "CREATE TABLE moved (id int PRIMARY KEY)",
        "INSERT INTO moved VALUES (1)",
        "CREATE TABLE whole (id int PRIMARY KEY, note text, n int)",
        "ALTER TABLE whole REPLICA IDENTITY FULL",
        "ALTER TABLE whole ALTER note SET STORAGE EXTERNAL",
        f"INSERT INTO whole SELECT n, {LONG} || n, n FROM generate_series(1, 3) AS n",
    )
    flat = replace(lake, pipeline=lake.pipeline.changed(destination__envelope="flat"))
    await flat.run()
    lake.execute(
        "UPDATE f SET op = 'y', doc = 'null' WHERE id < 3",
        "DELETE FROM f WHERE id = 2",
        "INSERT INTO f VALUES (6, NULL, NULL, '[]')",
        "UPDATE moved SET id = 2",
        "UPDATE whole SET n = 0 WHERE id < 3",  # the note is left out, and the old row is not told
    )
    await flat.run()

    ddl, complaints = await flat.ddl("f", "public.moved", "whole")
    words = ("views", "duckdb", "public.muved")
    with EngineProcess(flat.pipeline, flat.folder, "unknown", *words) as process:
        unknown = await process.ended(seconds=60)

    assert unknown == 2
    assert "the journal knows no public.muved; did you mean public.moved" in process.log
    assert complaints.splitlines() == [NEXT]
    assert ddl.count("the flat envelope does not say the old key") == 3
    with reading(lake.s3) as connection:
        connection.execute(ddl)
        lake.check(connection, "f", "whole")
        moved = connection.execute("SELECT id FROM public.moved ORDER BY id").fetchall()
        until = connection.execute("SELECT MAX(position) FROM public.moved_changes").fetchone()
        assert until is not None
        # The variable cuts all tables at one position, and what is at it is left out.
        connection.execute(f"SET VARIABLE tailrace_until = '{until[0]}'")
        before = connection.execute("SELECT id FROM public.moved ORDER BY id").fetchall()
    assert moved == [(1,), (2,)]
    assert before == [(1,)]
    table = lake.database.execute("SELECT id::text, op, left(note, 20), doc::text FROM f")
    for engine in ENGINES:
        ddl, complaints = await flat.ddl("f", engine=engine)
        assert complaints.count("MAY BE WRONG") == 0
        with reading(lake.s3) as connection:
            objects = lake.objects("f")
            Stand(engine, connection, objects, is_flat=True).run(ddl)
            shown = connection.execute(
                "SELECT id::VARCHAR, op, LEFT(note, 20), doc::VARCHAR FROM public.f"
            ).fetchall()
        assert sorted(shown) == sorted(table), engine


async def test_a_view_has_no_column_that_a_snapshot_had_and_the_table_has_no_more(
    lake: Lake,
) -> None:
    lake.execute("CREATE TABLE back (id int PRIMARY KEY, x text)", "INSERT INTO back VALUES (1)")
    await lake.run()
    lake.execute("UPDATE back SET x = 'streamed'", "ALTER TABLE back ADD COLUMN y int DEFAULT 7")
    with EngineProcess(lake.pipeline, lake.folder, "resync", "resync", "public.back") as process:
        assert await process.ended(seconds=60) == 0, process.log
    await lake.run()
    ddl, _ = await lake.ddl("back")
    lake.execute("ALTER TABLE back DROP COLUMN y", "UPDATE back SET x = 'again'")
    await lake.run()
    # The row has the first version again: no version begins with it.
    again, complaints = await lake.ddl("back")

    shown = "SELECT * EXCLUDE (_position, _not_given) FROM public.back"
    with reading(lake.s3) as connection:
        connection.execute(ddl)
        before = connection.execute(f"DESCRIBE {shown}").fetchall()
        connection.execute(again)
        after = connection.execute(f"DESCRIBE {shown}").fetchall()
        lake.check(connection, "back")
    assert [name for name, *_ in before] == ["id", "x", "y"]
    assert [name for name, *_ in after] == ["id", "x"]
    assert complaints.splitlines() == [NEXT]
