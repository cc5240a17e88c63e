"""Sessions of a hostile role: settings, shadows and policies that would change what we read.

Every setting that pg_settings has for roles is set to its most awkward values by ALTER ROLE; the
lines of a stream have to be those of an ordinary role, byte for byte. A schema full of shadows of
everything that our SQL names goes before pg_catalog in every path; each shadow counts that it ran.
"""

import ast
import asyncio
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from msgspec.structs import replace
from psycopg import sql
from psycopg.conninfo import make_conninfo

import engine.sources.postgres
from databases import Database
from engine.model.errors import SourceError, SourceRefused
from engine.model.record import RecordConfiguration
from engine.model.schema import Relation, TableVersion
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres
from engine.sources.postgres import session as session_module
from engine.sources.postgres.session import Session, connect
from engine.sources.postgres.settings import PINNED_SETTINGS, SHAPING_SETTINGS, later_statement
from engine.sources.postgres.source import PostgresSource
from test_postgres_source import read_all

CONFIGURATION: Final = RecordConfiguration(
    through="tailrace", tables=("public.*",), stream=SHAPING_SETTINGS
)

SuperuserConnection = psycopg.Connection[tuple[Any, ...]]

# --------------------------------------------------------------------------- the hostile role

UNTOUCHED: Final = {
    # They keep anybody from logging in, or take minutes.
    "post_auth_delay",
    "pre_auth_delay",
    "session_preload_libraries",
    "debug_discard_caches",
    # Superusers' own, and nobody else can set them back: the server finds no output plugin.
    "dynamic_library_path",
    "output_plugin_libraries",
    # Every line of the server's log once more for each session.
    "log_min_messages",
    "debug_print_parse",
    "debug_print_rewritten",
    "debug_print_plan",
}

ODD_TEXTS: Final = {
    "search_path": ("shadow, public, pg_catalog", ""),
    "DateStyle": ("SQL, DMY", "German, YMD"),
    "TimeZone": ("Asia/Tokyo", "<-03>3"),
    "restrict_nonsystem_relation_kind": ("view, foreign-table", "view"),
    "client_encoding": ("LATIN1", "EUC_JP"),
    "application_name": ("standby1", "*"),
    "role": ("other", "other"),
    "temp_tablespaces": ("nowhere", ""),
    "local_preload_libraries": ("nowhere", "nowhere"),
}

# 0 turns a limit of time off.
TIME_LIMITS: Final = ("_timeout", "wal_sender_timeout", "client_connection_check_interval")


LEAST: Final = {
    # It is in force before a session's first statement: with less nobody logs in on a busy machine.
    "transaction_timeout": "500",
}


def awkward_values(row: tuple[Any, ...]) -> list[str]:
    """The values of one setting, at most one a batch."""
    name, kind, low, high, choices, now = row
    match kind:
        case "bool":
            return ["off" if now == "on" else "on"]
        case "enum":
            return [choice for choice in choices if choice != now]
        case "integer" | "real":
            return [
                LEAST.get(name, "1" if low == "0" and name.endswith(TIME_LIMITS) else low),
                high,
            ]
        case _:
            return list(ODD_TEXTS.get(name, ("odd 'text\\",)))


def awkward_batches(connection: SuperuserConnection, count: int) -> list[dict[str, str]]:
    rows = connection.execute(
        "SELECT name, vartype, min_val, max_val, enumvals, setting FROM pg_settings"
        " WHERE context IN ('user', 'superuser', 'backend', 'superuser-backend')"
    ).fetchall()
    batches: list[dict[str, str]] = [{} for _ in range(count)]
    for row in [*rows, ("role", "string", None, None, None, "none")]:
        values = awkward_values(row) if row[0] not in UNTOUCHED else []
        for number, batch in enumerate(batches):
            if values:
                batch[row[0]] = values[number % len(values)]
    return batches


def set_for_role(connection: SuperuserConnection, role: str, settings: dict[str, str]) -> set[str]:
    """Set what can be set; the names of those that the server refused."""
    refused: set[str] = set()
    for name, value in settings.items():
        statement = sql.SQL("ALTER ROLE {} SET {} = {}").format(
            sql.Identifier(role), sql.Identifier(name), sql.Literal(value)
        )
        if name in ("search_path", "DateStyle", "restrict_nonsystem_relation_kind"):
            parts = [sql.Literal(part.strip()) for part in value.split(",")]
            statement = sql.SQL("ALTER ROLE {} SET {} = {}").format(
                sql.Identifier(role), sql.Identifier(name), sql.SQL(", ").join(parts)
            )
        try:
            connection.execute(statement)
        except psycopg.Error:
            refused.add(name)
    return refused


@contextmanager
def role_on(database: Database, attributes: str = "") -> Iterator[str]:
    """A role that may do what tailrace needs, and owns the tables."""
    role = f"r_{secrets.token_hex(4)}"
    with database.connect() as connection:
        for statement in (
            f"CREATE ROLE {role} LOGIN REPLICATION {attributes}",
            f"GRANT ALL ON DATABASE {database.name} TO {role}",
            f"GRANT ALL ON SCHEMA public TO {role}",
        ):
            connection.execute(statement.encode())
    try:
        yield role
    finally:
        with database.connect() as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = %s",
                (role,),
            )
            for statement in (
                f"REASSIGN OWNED BY {role} TO postgres",
                f"DROP OWNED BY {role}",
                f"DROP ROLE {role}",
            ):
                connection.execute(statement.encode())


def source_as(
    database: Database, role: str, slot: str, publication: str = "tailrace", **parameters: str
) -> PostgresSource:
    dsn = make_conninfo(database.server.dsn_of(database.name, user=role), **parameters)
    configuration = replace(CONFIGURATION, through=publication)
    return PostgresSource(dsn=dsn, slot=f"{database.name}_{slot}", configuration=configuration)


TABLES: Final = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN price AS numeric(10,2) CHECK (VALUE > 0);
CREATE TABLE kinds (
  id int PRIMARY KEY, b bool, i8 bigint, f4 real, f8 double precision, n numeric, p price,
  m money, t text, v varchar(20), c char(5), q "char", by bytea, ts timestamp, tz timestamptz,
  d date, ti time, tt timetz, iv interval, j json, jb jsonb, u uuid, ip inet, bits bit(4),
  r int4range, e mood, pr pair, ia int[], ta text[], tza timestamptz[], va money[], pt point,
  cl regclass, ty regtype, pc regproc, op regoper, ns regnamespace, ro regrole, cla regclass[],
  tsv tsvector, ox oid, tid tid, l pg_lsn
);
CREATE TABLE "Odd ""name" ("ID" int PRIMARY KEY, "select" text DEFAULT 'a' || 'b');
CREATE FUNCTION public.own(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
"""

ROWS: Final = r"""
SET TimeZone = 'UTC'; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres';
INSERT INTO kinds VALUES (
  1, true, 9223372036854775807, 1.1, 0.1, 'NaN', 1.50, '$1,234.56', E'a\nb''"\\', 'v', 'c', 'q',
  '\x00ff5c', '2026-02-03 04:05:06.789', '2026-02-03 04:05:06.789+09', '2026-02-03',
  '04:05:06', '04:05:06+09', '1 year 2 mons 3 days 04:05:06', '{"a": [1, null]}', '{"b": "x"}',
  '00000000-0000-0000-0000-000000000001', '10.0.0.1/8', '1010', '[1,5)', 'ok', '(1,"x y")',
  '{1,NULL,3}', '{a,NULL,"NULL","x,y"}', '{"2026-02-03 04:05:06+00"}', '{$1.00}', '(1,2)',
  'kinds', 'mood', 'public.own', '+'::pg_catalog.text::cstring::pg_catalog.text::regoper,
  'public', 'postgres', '{kinds,pg_class}', 'a fat cat', 1, '(1,2)', '0/16B3748'
);
INSERT INTO kinds (id, ts, tz, f8, f4, iv) VALUES
  (2, '0044-03-15 BC', '0044-03-15 12:00+00 BC', 1e-300, 3.4e38, '-1 mons +2 days -00:00:01'),
  (3, 'infinity', '-infinity', 'Infinity', '-0', '0');
UPDATE kinds SET t = repeat('x', 10) WHERE id = 2;
DELETE FROM kinds WHERE id = 3;
INSERT INTO "Odd ""name" VALUES (1, 'x');
"""


def make_tables(database: Database, owner: str) -> None:
    with database.connect() as connection:
        connection.execute(TABLES.encode())
        for table in ("kinds", '"Odd ""name"'):
            connection.execute(f"ALTER TABLE {table} OWNER TO {owner}".encode())
        if database.server.program("postgres").parts[1] == "usr":
            connection.execute("ALTER TABLE kinds ADD x xml DEFAULT '<a b=\"1\">t</a>'")


def write_rows(database: Database) -> None:
    with database.connect() as connection:
        # '+' alone names many operators.
        rows = ROWS.replace(
            "'+'::pg_catalog.text::cstring::pg_catalog.text::regoper", "'||/'::regoper"
        )
        connection.execute(rows.encode())


@pytest.mark.parametrize("attributes", ["", "SUPERUSER"])
async def test_no_setting_of_a_role_changes_what_is_read(
    any_database: Database, attributes: str
) -> None:
    database = any_database
    with role_on(database) as plain, role_on(database, attributes) as hostile:
        database.execute(f"GRANT {plain} TO {hostile}".encode())  # type: ignore[arg-type]
        make_tables(database, plain)
        ordinary = source_as(database, plain, "ordinary")
        await ordinary.prepare(is_first=True)
        with database.connect() as connection:
            batches = awkward_batches(connection, 3)
            sources = []
            for number, settings in enumerate(batches):
                connection.execute(f"ALTER ROLE {hostile} RESET ALL".encode())
                refused = set_for_role(connection, hostile, settings)
                assert len(refused) < len(settings) / 4, refused
                source = source_as(database, hostile, f"h{number}", f"hostile{number}")
                await source.prepare(is_first=True)
                await source.identify()
                await source.end()
                sources.append((source, settings))
            write_rows(database)
            expected = await read_all(ordinary, database, configuration=CONFIGURATION)
            for number, (source, settings) in enumerate(sources):
                connection.execute(f"ALTER ROLE {hostile} RESET ALL".encode())
                set_for_role(connection, hostile, settings)
                configuration = replace(CONFIGURATION, through=f"hostile{number}")

                found = await read_all(source, database, configuration=configuration)

                assert found.lines == expected.lines
                assert [b.version for b in found.batches] == [b.version for b in expected.batches]

    record = expected.of("kinds")[0]["after"]
    assert record["cl"] == "public.kinds"
    assert record["ty"] == "public.mood"
    assert record["cla"] == ["public.kinds", "pg_class"]
    assert record["m"] == "$1,234.56"


LOGGED: Final = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_duration": "on",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "log_replication_commands": "on",
    "log_min_error_statement": "debug5",
    "log_error_verbosity": "verbose",
}


async def test_a_server_that_logs_all_our_statements_logs_no_values_of_rows(
    any_database: Database,
) -> None:
    """What is read of a table is in answers and in the stream, never in a statement."""
    database, canary = any_database, f"kanary{secrets.token_hex(6)}"
    with role_on(database) as role:
        with database.connect() as connection:
            connection.execute("CREATE TABLE kept (id text PRIMARY KEY, note text)")
            connection.execute(f"ALTER TABLE kept OWNER TO {role}".encode())
            assert set_for_role(connection, role, LOGGED) == set()
        source = source_as(database, role, "logged")
        begin = database.server.log.stat().st_size
        await source.prepare(is_first=True)
        database.execute("INSERT INTO kept VALUES (%s, %s)", f"{canary}-id", canary)
        database.execute("UPDATE kept SET id = id || '2', note = note || repeat('x', 9000)")
        database.execute("DELETE FROM kept")

        found = await read_all(source, database, configuration=CONFIGURATION)
        async with source.stream(None, CONFIGURATION, take_all) as stream:
            await stream.look()
            stream.acknowledge((await stream.standing()).end)

    logged = database.server.log.read_bytes()[begin:].decode(errors="replace")
    assert canary in str(found.lines)
    assert "START_REPLICATION" in logged
    assert "pg_replication_slots" in logged
    assert canary not in logged


def take_all(relation: Relation, position: object) -> TableVersion:
    return TableVersion(1, None, "", relation)


def test_the_documents_list_every_pinned_setting() -> None:
    listed = Path(__file__).parent.parent / "docs" / "settings.md"
    text = listed.read_text()

    later = re.findall(r"SET (\w+)", later_statement(180000))
    assert len(later) == 2
    for name in (*PINNED_SETTINGS, *later):
        assert f"`{name}`" in text


async def test_every_pinned_setting_is_in_force_in_both_kinds_of_session(
    any_database: Database,
) -> None:
    with role_on(any_database) as role:
        with any_database.connect() as connection:
            for batch in awkward_batches(connection, 1):
                set_for_role(connection, role, batch)
        dsn = any_database.server.dsn_of(any_database.name, user=role)
        for replication in (False, True):
            async with await connect(dsn, replication=replication) as session:
                for name, value in PINNED_SETTINGS.items():
                    cursor = await session.execute(f"SHOW {name}".encode())
                    [(shown,)] = await cursor.fetchall()
                    # Over a UNIX socket the kernel has no such limits.
                    if not name.startswith("tcp_"):
                        assert shown == value, name
                later = await session.execute(
                    b"SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN"
                    b" ('transaction_timeout', 'debug_logical_replication_streaming')"
                )
                assert set(await later.fetchall()) <= {
                    ("transaction_timeout", "0"),
                    ("debug_logical_replication_streaming", "buffered"),
                }


async def test_settings_that_something_drops_on_the_way_are_missed(
    any_database: Database,
) -> None:
    with role_on(any_database) as role:
        with any_database.connect() as connection:
            connection.execute(f"ALTER ROLE {role} SET TimeZone = 'Asia/Tokyo'".encode())
        dsn = any_database.server.dsn_of(any_database.name, user=role)

        with pytest.raises(SourceRefused, match="does not take our settings") as caught:
            # As a pooler does that is told to ignore them.
            await connect(dsn, replication=False, overrides={"options": ""})

    assert "pooler" in caught.value.hint


@pytest.mark.parametrize("where", ["role", "database", "options"])
async def test_a_read_only_default_does_not_keep_us_from_making_a_publication(
    any_database: Database, where: str
) -> None:
    name = any_database.name
    with role_on(any_database) as role:
        make_tables(any_database, role)
        target = {"role": f"ROLE {role}", "database": f"DATABASE {name}"}.get(where)
        parameters = {} if target else {"options": "-c default_transaction_read_only=on"}
        if target:
            statement = f"ALTER {target} SET default_transaction_read_only = on"
            with any_database.connect() as connection:
                connection.execute(statement.encode())
        source = source_as(any_database, role, "s", **parameters)

        await source.prepare(is_first=True)

        with any_database.connect() as connection:
            found = connection.execute("SELECT pubname FROM pg_publication").fetchall()
    assert found == [("tailrace",)]


async def test_a_policy_is_an_error_instead_of_fewer_rows(any_database: Database) -> None:
    with role_on(any_database) as role:
        with any_database.connect() as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
            connection.execute("INSERT INTO t VALUES (1), (2)")
            connection.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
            connection.execute("CREATE POLICY p ON t USING (id = 1)")
            connection.execute(f"GRANT SELECT ON t TO {role}".encode())
            connection.execute(f"ALTER ROLE {role} SET row_security = on".encode())
        dsn = any_database.server.dsn_of(any_database.name, user=role)
        async with Session(dsn) as session:
            with pytest.raises(SourceError, match="row-level security"):
                await session.rows("SELECT id FROM public.t", doing="reading rows")


# -------------------------------------------------------------------------------- shadows

PACKAGE: Final = Path(engine.sources.postgres.__file__).parent

FUNCTION: Final = re.compile(r"pg_catalog\.([a-z_0-9]+)\s*\(")
OPERATOR: Final = re.compile(r"OPERATOR\(pg_catalog\.([^)]+)\)")
TYPE: Final = re.compile(r'::pg_catalog\."?([a-z_0-9]+)')
RELATION: Final = re.compile(r"(?:FROM|JOIN)\s+pg_catalog\.(pg_[a-z_]+)(?!\s*\(|[a-z_])")

STATEMENT: Final = re.compile(r"\s*(SELECT\b|WITH [A-Z]*\s*\w+[ (])")

CONCRETE: Final = {
    "anyarray": ("int2[]", "oid[]", "text[]", "int4[]", "int8[]", "name[]"),
    "anycompatiblearray": ("int2[]", "oid[]", "text[]"),
    "anyelement": ("int2", "oid", "text", "bool"),
    "anycompatible": ("int2", "oid", "text"),
}


def our_sql() -> dict[str, str]:
    """Every SQL text of the source's modules, by module and line."""
    found: dict[str, str] = {}
    for file in sorted(PACKAGE.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Constant(value=str() as text) if STATEMENT.match(text):
                    found[f"{file.name}:{node.lineno}"] = text
    return found


def names_in(texts: dict[str, str], pattern: re.Pattern[str]) -> set[str]:
    return {name for text in texts.values() for name in pattern.findall(text)}


def make_shadows(connection: SuperuserConnection) -> int:
    """Shadow all that our SQL names, in the schema `shadow`; how many there are."""
    texts = our_sql()
    connection.execute("CREATE SCHEMA shadow")
    connection.execute("CREATE SEQUENCE shadow.ran")
    connection.execute(
        "CREATE FUNCTION shadow.trap(name pg_catalog.text) RETURNS pg_catalog.bool"
        " LANGUAGE plpgsql VOLATILE AS $$ BEGIN"
        " PERFORM pg_catalog.nextval('shadow.ran');"
        " RAISE EXCEPTION 'the shadow of % ran', name; END $$"
    )
    made = 0
    made += _shadow_functions(connection, names_in(texts, FUNCTION))
    made += _shadow_operators(connection, names_in(texts, OPERATOR) | {"<=", ">=", "~~"})
    for name in names_in(texts, TYPE):
        made += _made(
            connection,
            f'CREATE DOMAIN shadow."{name}" AS pg_catalog.text'
            f" CHECK (shadow.trap('type {name}'))",
        )
    for name in names_in(texts, RELATION):
        made += _made(
            connection,
            f'CREATE VIEW shadow."{name}" AS SELECT * FROM pg_catalog."{name}"'
            f" WHERE shadow.trap('relation {name}')",
        )
    connection.execute("GRANT USAGE ON SCHEMA shadow TO PUBLIC")
    connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA shadow TO PUBLIC")
    connection.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA shadow TO PUBLIC")
    return made


def _made(connection: SuperuserConnection, statement: str) -> int:
    try:
        connection.execute(statement.encode())
    except psycopg.Error:
        return 0
    return 1


def _signatures(arguments: list[str]) -> Iterator[list[str]]:
    if not arguments:
        yield []
        return
    for concrete in CONCRETE.get(arguments[0], (arguments[0],)):
        for rest in _signatures(arguments[1:]):
            yield [concrete, *rest]


def _shadow_functions(connection: SuperuserConnection, names: set[str]) -> int:
    rows = connection.execute(
        "SELECT p.proname, array(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) AS t),"
        " format_type(p.prorettype, NULL) FROM pg_proc p"
        " WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY(%s)",
        (list(names),),
    ).fetchall()
    made = 0
    for name, arguments, result in rows:
        for signature in _signatures(arguments):
            returned = "pg_catalog.int4" if result.startswith("any") else result
            made += _made(
                connection,
                f"CREATE FUNCTION shadow.{name}({', '.join(signature)}) RETURNS {returned}"
                f" LANGUAGE plpgsql AS $$ BEGIN PERFORM shadow.trap('{name}'); END $$",
            )
    return made


def _shadow_operators(connection: SuperuserConnection, names: set[str]) -> int:
    rows = connection.execute(
        "SELECT oprname, format_type(oprleft, NULL), format_type(oprright, NULL),"
        " format_type(oprresult, NULL) FROM pg_operator"
        " WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprname = ANY(%s)"
        " AND oprleft <> 0",
        (list(names),),
    ).fetchall()
    made = 0
    for number, (name, left, right, result) in enumerate(rows):
        function = f"shadow.operator_{number}"
        if _made(
            connection,
            f"CREATE FUNCTION {function}({left}, {right}) RETURNS {result} LANGUAGE plpgsql"
            f" AS $$ BEGIN PERFORM shadow.trap('operator {name}'); END $$",
        ):
            made += _made(
                connection,
                f"CREATE OPERATOR shadow.{name} (LEFTARG = {left}, RIGHTARG = {right},"
                f" FUNCTION = {function})",
            )
    return made


def shadows_ran(database: Database) -> bool:
    [(has_run,)] = database.execute("SELECT is_called FROM shadow.ran")
    return bool(has_run)


def test_the_shadows_are_found_by_whoever_does_not_qualify(any_database: Database) -> None:
    with any_database.connect() as connection:
        assert make_shadows(connection) > 100
        connection.execute("SET search_path = shadow, public, pg_catalog")
        for statement in (
            "SELECT array_position('{1}'::pg_catalog.int2[], 1::smallint)",
            "SELECT * FROM pg_catalog.pg_class c WHERE c.oid = 1::pg_catalog.oid",
            "SELECT * FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p')",
            "SELECT * FROM pg_catalog.pg_class c WHERE c.oid = ANY('{1}'::pg_catalog.oid[])",
            "SELECT CASE c.relkind WHEN 'r' THEN 1 END FROM pg_catalog.pg_class c",
            "SELECT nullif(c.relkind, 'r') FROM pg_catalog.pg_class c",
            "SELECT c.relkind IS DISTINCT FROM 'r' FROM pg_catalog.pg_class c",
            "SELECT 1 FROM pg_catalog.pg_class a JOIN pg_catalog.pg_class b USING (oid)",
            "SELECT c.oid BETWEEN 1 AND 2 FROM pg_catalog.pg_class c",
            "SELECT c.relname LIKE 'x' FROM pg_catalog.pg_class c",
            "SELECT 'x'::text",
            "SELECT * FROM pg_type",
        ):
            with pytest.raises(psycopg.errors.RaiseException, match="the shadow of"):
                connection.execute(statement.encode())


def test_grouping_and_ordering_look_for_nothing_by_the_path(any_database: Database) -> None:
    with any_database.connect() as connection:
        make_shadows(connection)
        connection.execute("SET search_path = shadow, public, pg_catalog")
        for statement in (
            "SELECT DISTINCT c.oid, c.relname FROM pg_catalog.pg_class c ORDER BY c.oid, c.relname",
            "SELECT c.relkind FROM pg_catalog.pg_class c GROUP BY c.relkind",
            "SELECT c.oid FROM pg_catalog.pg_class c UNION SELECT c.oid FROM pg_catalog.pg_type c",
        ):
            connection.execute(statement.encode())

    assert not shadows_ran(any_database)


@pytest.mark.parametrize(("path", "is_found"), [("''", True), ("pg_catalog, pg_temp", False)])
def test_only_a_named_pg_temp_does_not_go_before_pg_catalog(
    any_database: Database,
    path: str,
    is_found: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    with any_database.connect() as connection:
        connection.execute("CREATE TEMP TABLE pg_class (id int)")
        connection.execute(f"SET search_path = {path}".encode())
        [(count,)] = connection.execute("SELECT pg_catalog.count(*) FROM pg_class").fetchall()

    assert (count == 0) is is_found


async def test_a_start_does_not_wait_for_itself_as_a_synchronous_standby() -> None:
    settings = {**FAST_SETTINGS, "synchronous_standby_names": "*", "synchronous_commit": "on"}
    with EmbeddedPostgres(settings=settings) as server:
        with psycopg.connect(
            server.dsn, autocommit=True, options="-c synchronous_commit=local"
        ) as connection:
            connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
        source = PostgresSource(dsn=server.dsn, slot="s", configuration=CONFIGURATION)

        async with asyncio.timeout(60):
            await source.prepare(is_first=True)


async def everything(database: Database, role: str, **parameters: str) -> None:
    """Check, start and stream as `role`, a table that the catalog no longer has among it."""
    source = source_as(database, role, "s", **parameters)
    await source.identify()
    await source.prepare(is_first=True)
    await source.prepare(is_first=False)
    await source.end()
    with database.connect() as connection:
        connection.execute("CREATE TYPE public.gone AS ENUM ('a')")
        connection.execute('ALTER TABLE "Odd ""name" ADD g public.gone')
    write_rows(database)
    with database.connect() as connection:
        connection.execute("INSERT INTO \"Odd \"\"name\" VALUES (2, 'y', 'a')")
        connection.execute('ALTER TABLE "Odd ""name" DROP g')
        connection.execute("DROP TYPE public.gone")
    configuration = source._configuration
    reading = await read_all(source, database, configuration=configuration)
    assert len(reading.of("kinds")) == 5
    async with source.stream(None, configuration, lambda *_: None) as stream:
        await stream.standing()


@pytest.mark.parametrize("where", ["role", "database", "options", "unpinned"])
async def test_no_shadow_runs_as_our_role(
    any_database: Database, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, path = any_database, "shadow, public, pg_catalog"
    with role_on(database) as role:
        make_tables(database, role)
        with database.connect() as connection:
            make_shadows(connection)
            if where == "role":
                connection.execute(f"ALTER ROLE {role} SET search_path = {path}".encode())
            if where == "database":
                name = database.name
                connection.execute(f"ALTER DATABASE {name} SET search_path = {path}".encode())
                # The test's own sessions stay as they are.
                connection.execute(
                    f"ALTER ROLE postgres IN DATABASE {name} SET search_path = public".encode()
                )
        parameters = {"options": f"-csearch_path={path.replace(' ', '')}"}
        if where == "unpinned":
            # What qualification is worth by itself.
            pinned = {**PINNED_SETTINGS, "search_path": path}
            monkeypatch.setattr(session_module, "PINNED_SETTINGS", pinned)

        await everything(database, role, **(parameters if where == "options" else {}))

    assert not shadows_ran(database)


async def test_a_function_in_public_that_fits_better_than_the_builtin_does_not_run(
    any_database: Database,
) -> None:
    with role_on(any_database) as role:
        make_tables(any_database, role)
        with any_database.connect() as connection:
            connection.execute("CREATE SCHEMA shadow")
            connection.execute("CREATE SEQUENCE shadow.ran")
            connection.execute(
                "CREATE FUNCTION public.array_position(int2[], int2) RETURNS int LANGUAGE sql"
                " SECURITY INVOKER AS $$ SELECT nextval('shadow.ran')::int $$"
            )

        await everything(any_database, role)

    assert not shadows_ran(any_database)


# ------------------------------------------------------------------------ how SQL is written

GRAMMAR_FUNCTIONS: Final = {
    "coalesce",
    "exists",
    "any",
    "all",
    "from",
    "and",
    "or",
    "not",
    "as",
    "values",
    "select",
    "materialized",
    "lateral",
    "extract",
    "greatest",
    "least",
    "array",
    "on",
    "where",
    "over",
    "union",
    "tree",
    "t",
    "row",
    "with",
    "filter",
    "then",
    "else",
    "when",
}
GRAMMAR_TYPES: Final = {"int", "bigint", "smallint", "boolean"}


def faults_of(text: str) -> list[str]:
    """What of a statement's names and operators would be looked up by search_path."""
    bare = re.sub(r"--[^\n]*", "", text)
    bare = re.sub(r"'(?:[^']|'')*'", "''", bare)
    bare = OPERATOR.sub(" OPERATOR, ", bare).replace("%s", "''")
    faults = re.findall(r"[=<>|~+/!@#&^]|(?<!')-", bare)
    faults += re.findall(
        r"\b(?:IN|LIKE|ILIKE|BETWEEN|NULLIF|USING|NATURAL|SIMILAR|DISTINCT FROM)\b", bare
    )
    faults += re.findall(r"\bCASE\s+(?!WHEN\b)\S+", bare)
    for name in re.findall(r"(?<![\w.])([A-Za-z_]\w*)\s*\(", bare):
        if name.lower() not in GRAMMAR_FUNCTIONS and f"AS {name}" not in bare:
            faults.append(f"{name}()")
    for name in re.findall(r"::\s*([\w.]+)", bare):
        if not name.startswith("pg_catalog.") and name not in GRAMMAR_TYPES:
            faults.append(f"::{name}")
    faults += re.findall(r"\b(?:FROM|JOIN)\s+(pg_\w+)(?!\w|\.)", bare)
    return faults


def test_all_sql_is_qualified() -> None:
    texts = our_sql()

    assert len(texts) >= 10
    for place, text in texts.items():
        assert not faults_of(text), place


@pytest.mark.parametrize(
    "text",
    [
        "SELECT a = b",
        "SELECT f(a)",
        "SELECT a::text",
        "SELECT a FROM pg_class",
        "SELECT a OPERATOR(pg_catalog.=) b WHERE c IN ('x')",
        "SELECT CASE a WHEN b THEN c END",
        "SELECT a IS NOT DISTINCT FROM b",
        "SELECT a || b",
        "SELECT a -> b",
        "SELECT a - b",
    ],
)
def test_sql_that_is_not_qualified_is_found(text: str) -> None:
    assert faults_of(text)
