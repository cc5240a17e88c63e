"""`where` of a rule is the publication's row filter, and nothing else comes of its text."""

import asyncio
import json
from typing import LiteralString

import msgspec
import pytest
from structlog.testing import capture_logs

from databases import Database, dsn_as, reader_role
from engine.journal.causes import NOT_CAPTURED
from engine.model.errors import ConfigurationError
from engine.model.record import RecordConfiguration, TableRule
from engine.model.schema import TableName
from engine.model.trial import Finding
from engine.sources.postgres.publishing import PostgresPublishing
from engine.sources.postgres.row_filters import (
    FilterTexts,
    clause_of,
    unasked_reason,
    version_fault,
)
from engine.sources.postgres.session import Session
from engine.sources.postgres.settings import SHAPING_SETTINGS
from engine.sources.postgres.source import PostgresSource
from memory_store import MemoryStore
from snapshot_reading import read_range, snapshots_of, tasks_of
from test_catalog_watch import make_orders, running
from test_postgres_source import read_all
from trials import trials_of, tried

pytestmark = pytest.mark.since(15)

ORDINARY = RecordConfiguration(through="tailrace", tables=("*.*",))
CUSTOMERS = TableName("public", "customers")


def where(condition: str, match: str = "public.customers") -> RecordConfiguration:
    return RecordConfiguration(
        through="tailrace", tables=("public.*",), rules=(TableRule(match, where=condition),)
    )


def source_of(database: Database, configuration: RecordConfiguration) -> PostgresSource:
    return PostgresSource(dsn=database.dsn, slot=database.name, configuration=configuration)


def filters(database: Database) -> dict[str, str | None]:
    """The publication's tables, each with its filter."""
    rows = database.execute(
        "SELECT prrelid::regclass::text, pg_get_expr(prqual, prrelid) FROM pg_publication_rel r"
        " JOIN pg_publication p ON p.oid = r.prpubid WHERE pubname = 'tailrace'"
    )
    return dict(rows)


@pytest.fixture
def customers(any_database: Database) -> Database:
    any_database.execute(
        "CREATE TABLE customers (id int, region text, amount int, PRIMARY KEY (id, region))"
    )
    any_database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    any_database.execute("CREATE TABLE secrets (id int PRIMARY KEY, region text)")
    return any_database


@pytest.mark.parametrize(
    ("condition", "stored"),
    [
        ("region = 'eu'", "(region = 'eu'::text)"),
        ("region = 'it''s' -- )", "(region = 'it''s'::text)"),
        ("region LIKE 'e%' AND \"id\" > 0", "((region ~~ 'e%'::text) AND (id > 0))"),
        ("region = $$eu$$ /* ) */", "(region = 'eu'::text)"),
        ("lower(region) IN ('eu', 'us')", "(lower(region) = ANY (ARRAY['eu'::text, 'us'::text]))"),
        ("true", "true"),
    ],
)
async def test_the_publication_has_the_rules_condition(
    customers: Database, condition: str, stored: str
) -> None:
    with capture_logs() as logs:
        await source_of(customers, where(condition)).prepare(is_first=True)

    assert filters(customers) == {"customers": stored, "orders": None, "secrets": None}
    assert customers.execute("SELECT pubviaroot FROM pg_publication") == [(True,)]
    assert [entry for entry in logs if entry["log_level"] == "warning"] == []


HOSTILE = {
    "statement": "true); DROP TABLE secrets; --",
    "statement after a comment": "true\t); DROP TABLE secrets; COMMIT; /*",
    "table": "true), ONLY public.secrets WHERE (true",
    "table that was asked for already": "true), ONLY public.orders WHERE (id > 5",
    "column list": "true), ONLY public.orders (id",
    "schema": "true), TABLES IN SCHEMA public, TABLE ONLY public.secrets WHERE (true",
    "schema without its table": "true), TABLES IN SCHEMA public --",
    "option": "true) WITH (publish = 'insert'",
    "open quote": "region = 'eu",
    "open comment": "region = 'eu' /*",
    "open dollar quote": "region = $x$eu",
    "comment alone": "--",
    "subquery": "id IN (SELECT 1)",
    "subquery of another table": "EXISTS (SELECT FROM secrets)",
    "function of a user": "public.mine(id)",
    "volatile function": "random() < 0.5",
    "setting": "current_setting('a.b') = 'c'",
    "aggregate": "count(*) > 1",
    "window": "row_number() OVER () = 1",
    "set": "generate_series(1, 2) = 1",
    "system column": "ctid = '(0,1)'",
    "whole row": "customers IS NOT NULL",
    "parameter": "id = $1",
    "two": "id = 1, id = 2",
    "unknown column": "nothing = 1",
    "column of another table": "orders.id = 1",
    "no condition": "id",
    "no number": "id = 'abc'",
    "deep": "(" * 9000 + "true" + ")" * 900,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_no_single_condition_is_refused_by_the_rules_name(
    customers: Database, name: str
) -> None:
    customers.execute("CREATE FUNCTION mine(int) RETURNS bool LANGUAGE sql AS 'SELECT true'")

    with pytest.raises(ConfigurationError, match=r"where of the rule for 'public\.customers'"):
        await source_of(customers, where(HOSTILE[name])).prepare(is_first=True)

    assert customers.execute("SELECT pubname FROM pg_publication") == []
    assert customers.execute("SELECT to_regclass('public.secrets') IS NULL") == [(False,)]


# Only where a filter is made the server says so.
TOLD_AT_THE_START = {
    "subquery",
    "subquery of another table",
    "function of a user",
    "volatile function",
    "setting",
    "system column",
    "whole row",
}


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - TOLD_AT_THE_START))
async def test_check_refuses_what_is_no_condition_and_makes_nothing(
    customers: Database, name: str
) -> None:
    source = source_of(customers, where(HOSTILE[name]))

    with pytest.raises(ConfigurationError, match=r"where of the rule for 'public\.customers'"):
        await tried(source, "conditions", is_first=True)

    assert customers.execute("SELECT pubname FROM pg_publication") == []
    assert customers.execute("SELECT to_regclass('public.secrets') IS NULL") == [(False,)]


async def test_check_runs_no_function_of_a_condition(customers: Database) -> None:
    # It would be run at once where a query was planned or executed.
    customers.execute(
        "CREATE FUNCTION fail() RETURNS bool IMMUTABLE LANGUAGE plpgsql"
        " AS $$BEGIN RAISE EXCEPTION 'it was run'; END$$"
    )
    source = source_of(customers, where("public.fail()"))

    assert "it was run" not in str(await tried(source, "conditions", is_first=True))


async def test_check_warns_of_a_condition_where_the_publication_is_there(
    customers: Database,
) -> None:
    customers.execute("CREATE PUBLICATION tailrace FOR TABLE customers")
    source = source_of(customers, where("continent = 'eu'"))

    found = await tried(source, "conditions", is_first=True)

    assert "where of the rule for 'public.customers' is not one condition" in found.text
    assert 'column "continent" does not exist' in found.text


async def test_check_waits_for_a_lock_only_a_moment(customers: Database) -> None:
    source = source_of(customers, where("region = 'eu'"))
    with customers.connect() as connection, connection.transaction():
        connection.execute("LOCK customers IN ACCESS EXCLUSIVE MODE")

        found = await tried(source, "conditions", is_first=True)

    assert "where was not tried" in found.text
    assert "public.customers" in found.text


async def test_text_that_is_whole_only_over_two_tables_is_refused(customers: Database) -> None:
    # Two of these, one behind the other, are one text constant with a statement in it.
    customers.execute("DROP TABLE orders")

    with pytest.raises(ConfigurationError, match="unterminated quoted string"):
        await source_of(customers, where("region = ' ", "public.*")).prepare(is_first=True)

    assert customers.execute("SELECT pubname FROM pg_publication") == []


PARTITIONED: LiteralString = """
CREATE TABLE parts (id int, region text) PARTITION BY RANGE (id);
CREATE TABLE leaf (region text NOT NULL, gone int, id int NOT NULL);
ALTER TABLE leaf DROP gone;
CREATE UNIQUE INDEX leaf_key ON leaf (id {key});
ALTER TABLE leaf REPLICA IDENTITY USING INDEX leaf_key;
ALTER TABLE parts ATTACH PARTITION leaf FOR VALUES FROM (0) TO (10)
"""
IDENTITIES: dict[str, tuple[LiteralString, str, bool]] = {
    "primary key": ("CREATE TABLE parts (id int PRIMARY KEY, region text)", "id > 0", True),
    "another column": (
        "CREATE TABLE parts (id int PRIMARY KEY, region text)",
        "region = 'eu'",
        False,
    ),
    "column that the index holds beside its key": (
        "CREATE TABLE parts (id int, region text, PRIMARY KEY (id) INCLUDE (region))",
        "region = 'eu'",
        False,
    ),
    "full identity": (
        "CREATE TABLE parts (id int, region text); ALTER TABLE parts REPLICA IDENTITY FULL",
        "region = 'eu'",
        True,
    ),
    "no column": ("CREATE TABLE parts (id int PRIMARY KEY, region text)", "true", True),
    "partition with other numbers": (
        PARTITIONED.replace("{key}", ", region"),
        "region = 'eu'",
        True,
    ),
    "partition without": (PARTITIONED.replace("{key}", ""), "region = 'eu'", False),
}


@pytest.mark.parametrize("name", IDENTITIES)
async def test_a_filter_never_makes_the_applications_statements_fail(
    any_database: Database, name: str
) -> None:
    statements, condition, is_taken = IDENTITIES[name]
    for statement in statements.split(";"):
        any_database.execute(statement)
    source = source_of(any_database, where(condition, "public.parts"))

    if is_taken:
        await source.prepare(is_first=True)
    else:
        with pytest.raises(ConfigurationError, match="replica identity") as caught:
            await source.prepare(is_first=True)
        assert "REPLICA IDENTITY FULL" in caught.value.hint

    assert set(filters(any_database)) == ({"parts"} if is_taken else set())
    any_database.execute("INSERT INTO parts VALUES (1, 'eu')")
    any_database.execute("UPDATE parts SET id = 2")
    any_database.execute("DELETE FROM parts")


async def test_the_sql_of_a_refused_identity_mends_it(customers: Database) -> None:
    source = source_of(customers, where("amount > 5"))
    with pytest.raises(ConfigurationError) as caught:
        await source.prepare(is_first=True)

    with customers.connect() as connection:
        connection.execute(caught.value.hint.split(" Or ")[0].encode())
    await source.prepare(is_first=True)

    assert filters(customers)["customers"] == "(amount > 5)"


# --- what arrives


async def test_stream_and_snapshot_have_the_rows_that_meet_the_condition(
    any_database: Database,
) -> None:
    configuration = msgspec.structs.replace(where("region = 'eu'"), stream=SHAPING_SETTINGS)
    with any_database.connect() as connection:
        connection.execute("CREATE TABLE customers (id int, region text)")
        connection.execute("ALTER TABLE customers REPLICA IDENTITY FULL")
        connection.execute("INSERT INTO customers VALUES (1, 'eu'), (2, 'us'), (3, NULL)")
        source = source_of(any_database, configuration)
        await source.prepare(is_first=True)
        connection.execute("UPDATE customers SET region = 'us' WHERE id = 1")
        connection.execute("UPDATE customers SET region = 'eu' WHERE id = 2")
        connection.execute("UPDATE customers SET id = 4 WHERE id = 3")
        connection.execute("INSERT INTO customers VALUES (5, 'eu'), (6, 'us')")

    reading = await read_all(source, any_database, configuration=configuration)
    async with snapshots_of(any_database, configuration).hold([CUSTOMERS]) as held:
        [task] = tasks_of(held, CUSTOMERS, configuration)
        batches = await read_range(any_database.dsn, task)

    changes = [
        (record["metadata"]["op"], (record["after"] or record["before"])["id"])
        for record in reading.records
    ]
    assert changes == [("d", 1), ("c", 2), ("c", 5)]
    rows = [json.loads(line)["after"] for batch in batches for line in batch.lines.splitlines()]
    assert [row["id"] for row in rows[1:]] == [2, 5]


async def test_a_row_that_comes_without_its_large_value_is_left_out_as_a_gap(
    any_database: Database,
) -> None:
    configuration = msgspec.structs.replace(
        where("region = 'eu'"), stream=SHAPING_SETTINGS, on_unrepresentable="gap"
    )
    statements: tuple[LiteralString, ...] = (
        "CREATE TABLE customers (id int, region text, note text, PRIMARY KEY (id, region))",
        "ALTER TABLE customers ALTER note SET STORAGE EXTERNAL",
        "INSERT INTO customers SELECT id, 'us', repeat('x', 5000) FROM generate_series(1, 2) id",
    )
    for statement in statements:
        any_database.execute(statement)
    source = source_of(any_database, configuration)
    await source.prepare(is_first=True)
    any_database.execute("UPDATE customers SET region = 'eu' WHERE id = 1")
    # The whole old row has the value.
    any_database.execute("ALTER TABLE customers REPLICA IDENTITY FULL")
    any_database.execute("UPDATE customers SET region = 'eu' WHERE id = 2")

    reading = await read_all(source, any_database, configuration=configuration)

    [left_out] = reading.left_out
    assert left_out.key == '{"id": "1", "region": "eu"}'
    assert left_out.reason.startswith("column 'note': the row came into the publication's row")
    assert [record["after"] for record in reading.records] == [
        {"id": 2, "region": "eu", "note": "x" * 5000}
    ]


# --- a table that appears later


async def test_a_later_table_is_added_with_its_condition(customers: Database) -> None:
    configuration = where("id < 9", "public.late*")
    await source_of(customers, configuration).prepare(is_first=True)
    customers.execute("CREATE TABLE late (id int PRIMARY KEY)")
    customers.execute("CREATE TABLE late2 (id int PRIMARY KEY)")
    tables = (TableName("public", "late"), TableName("public", "late2"))

    refused = await PostgresPublishing(dsn=customers.dsn, configuration=configuration).publish(
        tables
    )

    assert refused == {}
    assert filters(customers)["late"] == filters(customers)["late2"] == "(id < 9)"


@pytest.mark.parametrize(
    ("condition", "text"),
    [("region = 'eu'", "replica identity"), ("true), ONLY secrets WHERE (true", "condition")],
)
async def test_a_later_table_whose_condition_is_refused_is_not_added(
    customers: Database, condition: str, text: str
) -> None:
    configuration = where(condition, "public.late")
    await source_of(customers, configuration).prepare(is_first=True)
    customers.execute("CREATE TABLE late (id int PRIMARY KEY, region text)")
    late = TableName("public", "late")

    refused = await PostgresPublishing(dsn=customers.dsn, configuration=configuration).publish(
        (late,)
    )

    assert text in refused[late].text
    assert "the rule for 'public.late'" in refused[late].text
    assert "late" not in filters(customers)


# --- a publication that is there already


async def warnings_of(database: Database, configuration: RecordConfiguration) -> list[str]:
    """What a start warns of, and `check` with the same words: the SQL."""
    source = source_of(database, configuration)
    with capture_logs() as logs:
        await source.prepare(is_first=True)
    found = [entry for entry in logs if "source.table" in entry["event"]]
    judged = await trials_of(source, is_first=True)
    checked = "; ".join(
        f"{found.text} {found.hint}" for found in judged.values() if isinstance(found, Finding)
    )
    for entry in found:
        assert entry["event"] in checked
        assert "; ".join(entry["sql"]) in checked
    assert found or "[[source.table]]" not in checked
    return [statement for entry in found for statement in entry["sql"]]


CREATED: list[LiteralString] = [
    "CREATE PUBLICATION tailrace FOR TABLE ONLY customers, ONLY orders, ONLY secrets",
    "CREATE PUBLICATION tailrace FOR TABLES IN SCHEMA public",
    "CREATE PUBLICATION tailrace FOR TABLES IN SCHEMA public, TABLE ONLY customers WHERE (id > 1)",
    "CREATE PUBLICATION tailrace FOR ALL TABLES",
    "CREATE PUBLICATION tailrace FOR TABLE ONLY customers, ONLY secrets WHERE (id > 5)",
]


@pytest.mark.parametrize("statement", CREATED)
async def test_a_publication_without_the_filter_is_told_with_the_sql(
    customers: Database, statement: LiteralString
) -> None:
    customers.execute(statement)
    configuration = where("region = 'eu'")

    statements = await warnings_of(customers, configuration)
    with customers.connect() as connection:
        for text in statements:
            connection.execute(text.encode())

    assert filters(customers)["customers"] == "(region = 'eu'::text)"
    assert filters(customers).get("secrets") is None
    assert await warnings_of(customers, configuration) == []


OTHER = "the publication has another row filter than where says"


async def test_a_start_compares_the_conditions_themselves(customers: Database) -> None:
    customers.execute(
        "CREATE PUBLICATION tailrace FOR TABLE customers WHERE (region='eu'), orders, secrets"
    )
    same, other = where("region  = ( 'eu'::text ) -- the same"), where("region = 'us'")

    with capture_logs() as quiet:
        await source_of(customers, same).prepare(is_first=True)
    with capture_logs() as logs:
        await source_of(customers, other).prepare(is_first=True)

    assert OTHER not in [entry["event"] for entry in quiet]
    [warning] = [entry for entry in logs if entry["event"] == OTHER]
    assert warning["tables"] == ["public.customers"]
    assert customers.execute("SELECT pubname FROM pg_publication") == [("tailrace",)]
    with customers.connect() as connection:
        for statement in warning["sql"]:
            connection.execute(statement.encode())
    assert filters(customers)["customers"] == "(region = 'us'::text)"


@pytest.mark.parametrize(
    ("condition", "reason"),
    [("renamed = 'eu'", "'public.customers'"), ("true), ONLY secrets WHERE (true", "'public.cust")],
)
async def test_a_condition_that_cannot_be_compared_does_not_end_a_start(
    customers: Database, condition: str, reason: str
) -> None:
    customers.execute("CREATE PUBLICATION tailrace FOR TABLE customers WHERE (region='eu')")

    with capture_logs() as logs:
        await source_of(customers, where(condition)).prepare(is_first=True)

    [warning] = [entry for entry in logs if entry["event"] == OTHER]
    assert reason in warning["reason"]
    assert customers.execute("SELECT pubname FROM pg_publication") == [("tailrace",)]


async def test_a_start_waits_for_no_lock_to_compare_conditions(customers: Database) -> None:
    customers.execute("CREATE PUBLICATION tailrace FOR TABLE customers WHERE (region='eu')")
    with customers.connect(autocommit=False) as connection:
        connection.execute("LOCK TABLE customers IN SHARE UPDATE EXCLUSIVE MODE")

        with capture_logs() as logs:
            await source_of(customers, where("region = 'us'")).prepare(is_first=True)

    assert "row filters were not compared" in [entry["event"] for entry in logs]


# --- the catalog watch


async def test_a_condition_that_is_altered_stands_until_it_is_the_rules_again(
    any_database: Database,
) -> None:
    make_orders(any_database)
    ruled = where("id > 0", "public.orders")
    async with running(any_database, MemoryStore(), configuration=ruled) as engine:
        any_database.execute(
            "ALTER PUBLICATION tailrace SET TABLE ONLY orders WHERE (id > 5), lines"
        )
        altered = await engine.gap("public.orders", "row-filter")
        [alarm] = [a for a in engine.alarms.standing() if a.code == NOT_CAPTURED]
        with any_database.connect() as connection:
            connection.execute(alarm.hint.encode())
        await engine.until(lambda: not engine.gaps()[0].is_open, "the rule's filter is back")

    assert altered.is_open
    assert alarm.text == (
        'the publication "tailrace" has another row filter for public.orders than the rule for'
        " 'public.orders' asks for, now WHERE (id > 5) and not WHERE (id > 0)"
    )
    assert engine.reasons() == {("public.orders", "row-filter")}
    assert filters(any_database) == {"orders": "(id > 0)", "lines": None}


async def test_the_same_condition_set_anew_is_a_gap_that_ended(any_database: Database) -> None:
    make_orders(any_database)
    ruled = where("id > 0", "public.orders")
    async with running(any_database, MemoryStore(), configuration=ruled) as engine:
        any_database.execute("ALTER PUBLICATION tailrace DROP TABLE ONLY orders")
        await engine.gap("public.orders", "not-published")
        any_database.execute("ALTER PUBLICATION tailrace ADD TABLE ONLY orders WHERE (0 < id)")
        differs = await engine.gap("public.orders", "row-filter")
        any_database.execute(
            "ALTER PUBLICATION tailrace SET TABLE ONLY orders WHERE (((id) > 0)), lines"
        )
        await engine.until(
            lambda: not any(gap.is_open for gap in engine.gaps()), "the rule's filter is back"
        )

    # The server's own text is compared. It does not tell that two conditions mean the same.
    assert differs.is_open


async def test_where_the_role_may_not_compare_an_altered_condition_is_a_gap_that_ended(
    any_database: Database,
) -> None:
    make_orders(any_database)
    any_database.execute("CREATE PUBLICATION tailrace FOR TABLE orders WHERE (id > 0), lines")
    ruled = where("id > 0", "public.orders")
    with reader_role(any_database) as role:
        dsn = dsn_as(any_database, role)
        async with running(any_database, MemoryStore(), configuration=ruled, dsn=dsn) as engine:
            any_database.execute(
                "ALTER PUBLICATION tailrace SET TABLE ONLY orders WHERE (id > 5), lines"
            )
            await engine.gap("public.orders", "left-publication")
            await engine.looked()

    assert engine.reasons() == {("public.orders", "left-publication")}


async def test_a_condition_that_no_rule_has_stands(any_database: Database) -> None:
    make_orders(any_database)
    store, ruled = MemoryStore(), where("id > 5", "public.orders")
    async with running(any_database, store, configuration=ruled):
        pass
    async with running(any_database, store) as engine:
        unasked = await engine.gap("public.orders", "row-filter")
        [alarm] = [a for a in engine.alarms.standing() if a.subject == "public.orders"]
        with any_database.connect() as connection:
            connection.execute(alarm.hint.encode())
        await engine.until(
            lambda: not any(gap.is_open for gap in engine.gaps()), "the filter is gone"
        )

    assert alarm.text == (
        'the publication "tailrace" has another row filter for public.orders than before, now WHERE'
        " (id > 5); all of its rows are expected, because no [[source.table]] rule matches it"
    )
    assert unasked.is_open
    assert filters(any_database) == {"orders": None, "lines": None}


async def test_a_filter_is_read_once_and_never_waited_for_long(customers: Database) -> None:
    condition = "WHERE (region = 'eu')"
    customers.execute(f"CREATE PUBLICATION tailrace FOR TABLE customers {condition}")
    [(oid, tree)] = customers.execute("SELECT prrelid, prqual::text FROM pg_publication_rel")
    texts = FilterTexts()
    async with Session(customers.dsn) as session:
        with customers.connect() as connection, connection.transaction():
            connection.execute("LOCK customers IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(60):
                await texts.read(session, "tailrace", {oid: tree})
        read = await texts.read(session, "tailrace", {oid: tree})
        customers.execute("DROP PUBLICATION tailrace")
        again = await texts.read(session, "tailrace", {oid: tree})
        other = await texts.read(session, "tailrace", {oid: "another"})

    assert read == again == {oid: "(region = 'eu'::text)"}
    assert other == {}


@pytest.mark.parametrize(
    ("configuration", "because"),
    [
        (
            ORDINARY,
            "no [[source.table]] rule matches it",
        ),
        (where("", "public.c*"), "where is not in the [[source.table]] rule for 'public.c*'"),
    ],
)
def test_a_filter_that_no_rule_asks_for_is_told_with_what_is_expected(
    configuration: RecordConfiguration, because: str
) -> None:
    told = unasked_reason(configuration, CUSTOMERS, "(id > 5)", "MEND IT;")
    unread = unasked_reason(configuration, CUSTOMERS, None, "MEND IT;")

    assert told.hint == "MEND IT;"
    assert "for public.customers than before, now WHERE (id > 5); all of its rows" in told.text
    assert told.text.endswith(because)
    assert "now a condition that cannot be read now" in unread.text


# --- pure


def test_where_is_in_the_journal_and_shapes_no_line() -> None:
    rule, plain = where("region = 'eu'"), where("")

    assert rule.record_digest(CUSTOMERS) == plain.record_digest(CUSTOMERS)
    assert msgspec.json.decode(msgspec.json.encode(rule), type=RecordConfiguration) == rule
    assert rule.where_of(CUSTOMERS) == "region = 'eu'"
    assert not rule.where_of(TableName("public", "orders"))


@pytest.mark.parametrize("version", [140000, 140018, 150000, 180000])
def test_a_server_without_filters_is_refused_only_for_rules_that_need_one(version: int) -> None:
    fault = version_fault(version, where("true"))

    assert (fault is None) == (version >= 150000)
    assert version_fault(version, where("")) is None
    if fault is not None:
        assert fault.exit_code == 78
        assert "'public.customers'" in str(fault)


def test_a_comment_does_not_hide_what_stands_behind_it() -> None:
    assert clause_of("") == ""
    assert clause_of("a = 1") == " WHERE (a = 1)"
    assert clause_of("a = 1 --") == " WHERE (\na = 1 --\n)"
