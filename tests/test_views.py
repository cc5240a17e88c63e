"""Views of every engine, over records that are told by hand: each shows the table as it is."""

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import sqlglot
from duckdb import DuckDBPyConnection as Connection
from sqlglot import exp

from bucket_duckdb import reading
from engine.journal.entry import Gap
from engine.model.position import make_position, snapshot_position
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.reader.elsewhere import newest_elsewhere
from engine.reader.views.column import ViewColumn
from engine.reader.views.ddl import ddl_text
from engine.reader.views.dialect import numeric_size
from engine.reader.views.engines import ENGINES as ENGINE
from engine.reader.views.engines import EngineName
from engine.reader.views.names import distinct
from engine.reader.views.shape import NoShape, TableShape, shape_of
from small_bucket import DATABASE, PREFIX, make_bucket
from view_engines import Stand, rows_of
from view_stories import CONFIGURATION, ORDERS, PLACE, Story, at, column, point

ENGINES: tuple[EngineName, ...] = get_args(EngineName)

COLUMNS = (
    column("id", "integer", key=True),
    column("total", "numeric", "numeric(10,2)"),
    column("note"),
    column("paid", "boolean"),
    column("doc", "json", "jsonb"),
    column("tags", "text[]"),
    column("Note"),
)
ROW = {
    "id": 1,
    "total": "1.50",
    "note": "n",
    "paid": True,
    "doc": {"a": 1},
    "tags": ["x"],
    "Note": "N",
}


FLAT = msgspec.structs.replace(CONFIGURATION, envelope="flat")


def told(configuration: RecordConfiguration = CONFIGURATION) -> Story:
    """Every kind of record, among attempts that do not count."""
    story = Story(configuration=configuration)
    story.begin(0, COLUMNS)
    story.add(0, "c", ROW | {"id": 90})  # before the snapshot: superseded
    story.read(5, 1, [ROW | {"id": 91}])  # an earlier attempt
    story.read(10, 2, [ROW | {"id": n} for n in range(1, 7)])
    # One that was given up: neither its rows count nor its begin.
    story.read(20, 3, [ROW | {"id": 92}], state="void")
    story.add(
        11,
        "u",
        {"id": 1, "total": "2.50", "paid": False, "Note": "N"},
        unchanged=["note", "doc", "tags"],
    )
    story.add(12, "u", ROW | {"id": 2, "note": None})
    story.add(
        13, "u", {k: v for k, v in ROW.items() if k != "note"} | {"id": 2}, unchanged=["note"]
    )
    # Another row had the key that row 5 gets.
    story.add(13, "c", ROW | {"id": 50, "note": "another"}, position=at(13)[:-1] + "1")
    story.add(14, "d", None, {"id": 50}, position=at(14)[:-1] + "1")
    story.add(14, "d", None, {"id": 3})
    story.add(15, "u", ROW | {"id": 40, "note": "moved"}, {"id": 4})
    story.add(
        16,
        "u",
        {k: v for k, v in ROW.items() if k != "note"} | {"id": 50},
        {"id": 5},
        unchanged=["note"],
    )
    story.add(
        17, "c", ROW | {"id": 3, "note": "=again", "doc": None, "tags": []}, json_null=["doc"]
    )
    story.add(18, "u", ROW | {"id": 6, "total": "NaN", "note": "", "doc": None, "tags": None})
    return story


EXPECTED = [
    ("1", "2.50", "n", "false", '{"a":1}', "x", "N", None),
    ("2", "1.50", None, "true", '{"a":1}', "x", "N", None),
    ("3", "1.50", "=again", "true", "null", "", "N", None),
    ("40", "1.50", "moved", "true", '{"a":1}', "x", "N", None),
    ("50", "1.50", None, "true", '{"a":1}', "x", "N", "note"),
    ("6", None, "", "true", None, None, "N", "total"),
]


NAMES = ("id", "total", "note", "paid", "doc", "tags", "Note_2", "_not_given")


def shown(rows: list[tuple[str | None, ...]]) -> list[tuple[str | None, ...]]:
    """Lists as DuckDB, and as JSON, write them are the same here."""
    return [tuple(_plain(value, place) for place, value in enumerate(row)) for row in rows]


def _plain(value: str | None, place: int) -> str | None:
    if value is None:
        return None
    return value.strip("[]").replace('"', "") if place == 5 else value.replace(" ", "")


def stood(story: Story, engine: EngineName, folder: Path, connection: Connection) -> Stand:
    """The engine's text was run over the story's records."""
    is_flat = story.configuration.envelope == "flat"
    stand = Stand(engine, connection, story.write(folder), is_flat)
    stand.run(ddl_text(engine, story.state(), PLACE, [ORDERS], [ORDERS]).text)
    return stand


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engines_view_is_the_table(engine: EngineName, tmp_path: Path) -> None:
    with reading() as connection:
        stand = stood(told(), engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', NAMES)

    assert shown(rows) == EXPECTED


@pytest.mark.parametrize("engine", ENGINES)
def test_debeziums_envelope_gives_the_same(engine: EngineName, tmp_path: Path) -> None:
    story = told()
    story.configuration = msgspec.structs.replace(CONFIGURATION, envelope="debezium")
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', NAMES)
        times = connection.execute(
            f"SELECT COUNT({TIME.get(engine, 'committed_ms')}) FROM public.orders_changes"
        ).fetchone()

    assert shown(rows) == EXPECTED
    assert times is not None
    assert times[0] > len(EXPECTED)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_flat_envelope_gives_the_same_but_for_changed_keys(
    engine: EngineName, tmp_path: Path
) -> None:
    story = told(FLAT)
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        tables = ["orders", *(["orders_table"] if engine in {"snowflake", "databricks"} else [])]
        found = [rows_of(stand, f'"public"."{table}"', NAMES) for table in tables]
        time = TIME.get(engine, "committed_ms")
        times = connection.execute(
            f"SELECT COUNT({time}), COUNT(DISTINCT {time}) FROM public.orders_changes"
        ).fetchone()

    # These rows have another key: their updates do not say which one they had.
    there_still: list[tuple[str | None, ...]]
    there_still = [(key, "1.50", "n", "true", '{"a":1}', "x", "N", None) for key in ("4", "5")]
    assert [shown(rows) for rows in found] == [sorted([*EXPECTED, *there_still], key=str)] * len(
        found
    )
    assert times is not None
    assert times[0] > times[1] > 5


@pytest.mark.parametrize("engine", ENGINES)
def test_a_flat_record_whose_old_row_was_sent_does_not_say_it(
    engine: EngineName, tmp_path: Path
) -> None:
    # With the whole row as replica identity every column is one that `before` holds.
    story = Story(configuration=FLAT)
    story.begin(0, (column("id", "integer", key=True), column("note", key=True)), ("id",))
    story.add(1, "c", {"id": 1, "note": "kept"})
    story.add(2, "u", {"id": 1}, unchanged=["note"])
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', ("id", "note", "_not_given"))

    assert rows == [("1", "kept", None)]


def test_flat_records_whose_own_names_began_otherwise_are_a_doubt() -> None:
    story = Story(configuration=FLAT)
    key = column("id", "integer", key=True, number=1)
    story.begin(0, (key,))
    story.begin(3, (key, column("_op", number=2)))

    before = doubts_of(story)
    story.read(5, 1, [], version=2)

    assert [doubt.partition(" before")[0] for doubt in before] == [
        "the flat envelope's own names began otherwise"
    ]
    assert "(_ and __)" in before[0]
    assert doubts_of(story) == ()


TIME: dict[EngineName, str] = {"duckdb": "committed_at"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_truncate_ends_what_was_before_it(engine: EngineName, tmp_path: Path) -> None:
    story = told()
    story.add(30, "t")
    story.add(31, "c", ROW)
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        tables = ["orders", *(["orders_table"] if engine in {"snowflake", "databricks"} else [])]
        found = [rows_of(stand, f'"public"."{table}"', ("id",)) for table in tables]

    assert found == [[("1",)]] * len(tables)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_truncate_of_a_source_that_counts_its_changes_is_one(
    engine: EngineName, tmp_path: Path
) -> None:
    story = told()
    # Of a source whose positions count from 0 within a commit.
    story.add(30, "t", position=make_position(1, 31 * 0x100, 0, 0))
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', ("id",))

    assert rows == []


def test_auto_cdc_is_not_told_to_truncate_by_a_snapshot(tmp_path: Path) -> None:
    story = told()
    story.add(30, "t")
    with reading() as connection:
        stand = stood(story, "databricks", tmp_path, connection)

        told_to = connection.execute("SELECT position FROM public__orders__events WHERE op = 't'")
        positions = told_to.fetchall()

    assert stand.commands
    assert positions == [(at(30),)]


def test_the_table_that_auto_cdc_keeps_is_the_view(tmp_path: Path) -> None:
    with reading() as connection:
        stand = stood(told(), "databricks", tmp_path, connection)

        rows = rows_of(stand, '"public"."orders_table"', NAMES)

    assert shown(rows) == EXPECTED


def test_a_merge_of_records_that_come_in_any_order_is_the_view(tmp_path: Path) -> None:
    story = told()
    late, early = story.records[::2], story.records[1::2]
    text = ddl_text("snowflake", story.state(), PLACE, [ORDERS], [ORDERS]).text
    with reading() as connection:
        story.records = late
        stand = Stand("snowflake", connection, story.write(tmp_path))
        stand.run(text)
        first = rows_of(stand, '"public"."orders_table"', NAMES)

        # Some are loaded twice: a record counts once.
        story.records = early + late[:2]
        stand.load(story.write(tmp_path))
        stand.run(text)
        rows = rows_of(stand, '"public"."orders_table"', NAMES)

    assert shown(first) != EXPECTED
    assert shown(rows) == EXPECTED


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_without_a_key_are_counted(engine: EngineName, tmp_path: Path) -> None:
    story = Story()
    story.begin(0, (column("id", "integer", key=True), column("note", key=True)), ("id", "note"))
    story.read(5, 1, [{"id": 1, "note": "a"}, {"id": 1, "note": "a"}, {"id": 2, "note": None}])
    story.add(6, "c", {"id": 1, "note": "a"})
    story.add(7, "d", None, {"id": 1, "note": "a"})
    story.add(8, "u", {"id": 3, "note": None}, {"id": 2, "note": None})
    story.add(9, "u", {"id": 4}, {"id": 3, "note": "b"}, unchanged=["note"])
    story.add(10, "c", {"id": 3, "note": "b"})
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', ("id", "note"))

    assert rows == [("1", "a"), ("1", "a"), ("3", None), ("4", "b")]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_counted_row_that_goes_takes_jsons_null_with_it(
    engine: EngineName, tmp_path: Path
) -> None:
    # What was removed is written as null, whether it was JSON's or SQL's.
    story = Story()
    columns = (column("id", "integer", key=True), column("doc", "json", "jsonb", key=True))
    story.begin(0, columns, ("id", "doc"))
    story.read(5, 1, [{"id": 1, "doc": None}, {"id": 2, "doc": None}])
    for record in story.records[1:]:
        record["metadata"]["json_null"] = ["doc"]
    story.add(6, "c", {"id": 3, "doc": None}, json_null=["doc"])
    story.add(7, "d", None, {"id": 1, "doc": None})
    story.add(8, "u", {"id": 2, "doc": {"b": 2}}, {"id": 2, "doc": None})
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', ("id", "doc"))
    found = shape_of(story.state(), ORDERS)

    assert [(key, doc and doc.replace(" ", "")) for key, doc in rows] == [
        ("2", '{"b":2}'),
        ("3", None),
    ]
    assert isinstance(found, TableShape)
    assert any(limit.startswith("JSON's null is null here") for limit in found.limits)


def test_a_view_that_has_a_key_tells_jsons_null_from_sqls() -> None:
    shape = shape_of(told().state(), ORDERS)

    assert isinstance(shape, TableShape)
    assert not any("JSON's null" in limit for limit in shape.limits)


def test_an_update_of_a_row_that_is_all_key_leaves_it_there_once(tmp_path: Path) -> None:
    story = Story()
    story.begin(0, (column("a", "integer", key=True), column("b", "integer", key=True)), ("a", "b"))
    story.read(5, 1, [{"a": 1, "b": 1}])
    story.add(6, "u", {"a": 1, "b": 1})
    with reading() as connection:
        stand = stood(story, "duckdb", tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', ("a", "b"))

    assert rows == [("1", "1")]


def test_rows_that_snowflake_loaded_twice_are_counted_once(tmp_path: Path) -> None:
    story = Story()
    story.begin(0, (column("a", "integer", key=True),), ("a",))
    story.add(1, "c", {"a": 1})
    text = ddl_text("snowflake", story.state(), PLACE, [ORDERS], [ORDERS]).text
    with reading() as connection:
        stand = stood(story, "snowflake", tmp_path, connection)
        stand.run(text)

        loaded = connection.execute("SELECT COUNT(*) FROM public.orders_records").fetchone()
        rows = rows_of(stand, '"public"."orders"', ("a",))

    assert loaded == (2,)
    assert rows == [("1",)]


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_that_are_counted_have_a_columns_fill_on_both_sides(
    engine: EngineName, tmp_path: Path
) -> None:
    story = Story()
    key = column("id", "integer", key=True, number=1)
    story.begin(0, (key,))
    for number, op in ((1, "c"), (2, "c"), (3, "c")):
        story.add(number, op, {"id": number})
    story.add(4, "u", {"id": 5}, {"id": 1})
    filled = column("size", "integer", key=True, number=2, fill="7", default="7")
    story.begin(5, (key, filled), ("id", "size"))
    story.add(5, "d", None, {"id": 2, "size": 7})
    story.add(6, "c", {"id": 6, "size": None})
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', ("id", "size"))

    assert rows == [("3", "7"), ("5", "7"), ("6", None)]


@pytest.mark.parametrize("engine", ENGINES)
def test_columns_that_come_and_go_and_get_other_names(engine: EngineName, tmp_path: Path) -> None:
    story = Story()
    key = column("id", "integer", key=True, number=1)
    story.begin(0, (key, column("note", number=2), column("gone", number=3)))
    story.add(1, "c", {"id": 1, "note": "kept", "gone": "g"})
    story.add(2, "c", {"id": 2, "note": "old", "gone": "g"})
    filled = column("size", "integer", number=4, fill="7", default="7")
    plain = column("plain", "integer", number=5)
    story.begin(3, (key, column("body", number=2), filled, plain))
    story.add(3, "u", {"id": 1, "size": 8, "plain": 9}, unchanged=["body"])
    story.add(4, "c", {"id": 3, "body": "new", "size": None, "plain": None})
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', ("id", "body", "size", "plain", "_not_given"))

    assert rows == [
        ("1", "kept", "8", "9", None),
        ("2", "old", "7", None, None),
        ("3", "new", None, None, None),
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_column_that_before_holds_only_since_then_is_carried(
    engine: EngineName, tmp_path: Path
) -> None:
    story = Story()
    key = column("id", "integer", key=True)
    story.begin(0, (key, column("note")))
    story.add(1, "c", {"id": 1, "note": "kept"})
    story.add(2, "u", {"id": 1}, unchanged=["note"])
    story.begin(3, (key, column("note", key=True)))
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', ("id", "note", "_not_given"))

    assert rows == [("1", "kept", None)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_column_whose_fill_is_not_known_is_named_in_each_row(
    engine: EngineName, tmp_path: Path
) -> None:
    story = Story()
    key = column("id", "integer", key=True, number=1)
    story.begin(0, (key,))
    story.add(1, "c", {"id": 1})
    story.add(2, "c", {"id": 2})
    story.begin(3, (key, column("made", number=2, default="now()")))
    story.add(3, "u", {"id": 2, "made": "then"})
    printed = ddl_text(engine, story.state(), PLACE, [ORDERS], [ORDERS])
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', ("id", "made", "_not_given"))

    assert rows == [("1", None, "made"), ("2", "then", None)]
    assert "MAY BE WRONG: column made came at" in printed.text


@pytest.mark.parametrize("engine", ENGINES)
def test_a_table_that_was_made_anew_has_none_of_its_rows(
    engine: EngineName, tmp_path: Path
) -> None:
    story = Story()
    story.begin(0, (column("id", "integer", key=True), column("n")))
    story.read(1, 1, [{"id": 1}])
    story.add(2, "c", {"id": 2})
    story.begin(3, (column("id", "integer", key=True), column("n")), oid="2")
    story.add(3, "c", {"id": 3})
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        rows = rows_of(stand, '"public"."orders"', ("id",))

    assert rows == [("3",)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_behind_a_snapshot_may_take_an_older_version_again(
    engine: EngineName, tmp_path: Path
) -> None:
    # A column was added, a snapshot was taken, and the column was dropped.
    story = Story()
    key, note = column("id", "integer", key=True, number=1), column("note", number=2)
    story.begin(0, (key, note))
    story.add(0, "c", {"id": 1, "note": "n"})
    story.begin(None, (key, note, column("extra", number=3)))
    story.read(5, 1, [{"id": n, "note": "n", "extra": "e"} for n in (1, 2)], version=2)
    before = shape_of(story.state(), ORDERS)
    story.add(6, "u", {"id": 1, "note": "again"})
    with reading() as connection:
        stand = stood(story, engine, tmp_path, connection)

        described = connection.execute("DESCRIBE SELECT * FROM public.orders").fetchall()
        rows = rows_of(stand, '"public"."orders"', ("id", "note", "_not_given"))
    after = shape_of(story.state(), ORDERS)

    assert [name for name, *_ in described] == ["id", "note", "_position", "_not_given"]
    assert rows == [("1", "again", None), ("2", "n", None)]
    assert isinstance(before, TableShape)
    assert isinstance(after, TableShape)
    assert [c.name for c in before.columns] == ["id", "note", "extra"]
    # Athena reads the versions that it is told, and the stream may go on with the older one.
    assert [before.versions, after.versions] == [(1, 2), (1, 2)]
    assert after.doubts == ()


def test_a_version_behind_a_snapshot_has_the_columns_that_the_snapshot_has() -> None:
    # A row begins a version whose column the snapshot has: no row came between the two.
    story = Story()
    key, extra = column("id", "integer", key=True, number=1), column("extra", number=3)
    story.begin(0, (key,))
    story.begin(None, (key, extra))
    story.read(5, 1, [{"id": 1, "extra": "e"}], version=2)
    story.begin(6, (key, extra))
    story.add(6, "c", {"id": 2, "extra": "f"})

    shape = shape_of(story.state(), ORDERS)

    assert isinstance(shape, TableShape)
    assert shape.versions == (1, 2, 3)
    assert [c.born for c in shape.columns] == ["", ""]


COMMANDS: dict[EngineName, int] = {"snowflake": 1, "databricks": 1}
"""Statements that sqlglot does not know: CREATE PIPE, and the flow of AUTO CDC."""


@pytest.mark.parametrize("configuration", [CONFIGURATION, FLAT], ids=["standard", "flat"])
@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "duckdb"])
def test_no_statement_but_the_known_ones_is_unknown(
    engine: EngineName, configuration: RecordConfiguration, tmp_path: Path
) -> None:
    with reading() as connection:
        stand = stood(told(configuration), engine, tmp_path, connection)

    assert len(stand.commands) == COMMANDS.get(engine, 0)


PIPE = """CREATE PIPE IF NOT EXISTS "public"."orders_pipe" AUTO_INGEST = TRUE AS
COPY INTO "public"."orders_records" (record, file)
FROM (SELECT $1, METADATA$FILENAME FROM @"public"."orders_stage")
PATTERN = '.*[.]ndjson[.](gz|zst)'
FILE_FORMAT = (TYPE = JSON COMPRESSION = AUTO);"""
STAGE = """CREATE STAGE IF NOT EXISTS "public"."orders_stage"
URL = 's3://lake/pipes/shop/database=shop/schema=public/table=orders/'
STORAGE_INTEGRATION = TAILRACE;"""
FLOW = """CREATE FLOW `public__orders__flow` AS AUTO CDC INTO `public`.`orders_folded`
FROM STREAM(`public__orders__events`)
KEYS (key_1)
IGNORE NULL UPDATES
APPLY AS DELETE WHEN op = 'd'
APPLY AS TRUNCATE WHEN op = 't'
SEQUENCE BY position
COLUMNS * EXCEPT (op)
STORED AS SCD TYPE 1;"""
FILES = """FROM STREAM READ_FILES('s3://lake/pipes/shop/database=shop/schema=public/table=orders\
/*/*/*/*/*/*.ndjson.*', format => 'json', schema => 'before MAP<STRING, STRING>, after \
MAP<STRING, STRING>, metadata STRUCT<op: STRING, position: STRING, source_ts_ms: BIGINT, \
unchanged: ARRAY<STRING>, json_null: ARRAY<STRING>>', mode => 'FAILFAST')
"""
PROJECTION = """CREATE EXTERNAL TABLE IF NOT EXISTS `public`.`orders_objects` (
  `before` string,
  `after` string,
  `metadata` struct<op:string,position:string,source_ts_ms:bigint,unchanged:array<string>,\
json_null:array<string>>
)
PARTITIONED BY (`version` string, `hour` string)
ROW FORMAT SERDE 'org.apache.hive.hcatalog.data.JsonSerDe'
LOCATION 's3://lake/pipes/shop/database=shop/schema=public/table=orders/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.version.type' = 'enum',
  'projection.version.values' = '0001',
  'projection.hour.type' = 'date',
  'projection.hour.format' = '''year=''yyyy''/month=''MM''/day=''dd''/hour=''HH',
  'projection.hour.range' = 'year=2026/month=11/day=21/hour=09,NOW',
  'projection.hour.interval' = '1',
  'projection.hour.interval.unit' = 'HOURS',
  'storage.location.template' = 's3://lake/pipes/shop/database=shop/schema=public/table=orders\
/version=${version}/${hour}/'
);"""
OBJECTS = """CREATE TABLE IF NOT EXISTS `public`.`orders_objects` (
    before MAP<STRING, STRING>, after MAP<STRING, STRING>, metadata STRUCT<op: STRING, \
position: STRING, source_ts_ms: BIGINT, unchanged: ARRAY<STRING>, json_null: ARRAY<STRING>>
)
USING json OPTIONS (
    path 's3a://lake/pipes/shop/database=shop/schema=public/table=orders/',
    pathGlobFilter '*.ndjson.*',
    recursiveFileLookup 'true',
    mode 'FAILFAST'
);"""


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        ("snowflake", PIPE),
        ("snowflake", STAGE),
        ("databricks", FLOW),
        ("databricks", FILES),
        ("athena", PROJECTION),
        ("spark", OBJECTS),
    ],
)
def test_what_duckdb_cannot_run_is_this_text(engine: EngineName, text: str) -> None:
    printed = ddl_text(engine, told().state(), PLACE, [ORDERS], [ORDERS])

    assert text in printed.text


FLAT_LINES = """CREATE EXTERNAL TABLE IF NOT EXISTS `public`.`orders_objects` (
  `value` string
)
PARTITIONED BY (`version` string, `hour` string)
ROW FORMAT DELIMITED FIELDS TERMINATED BY '\\001'
LOCATION"""
FLAT_OBJECTS = """CREATE TABLE IF NOT EXISTS `public`.`orders_objects` (
    value STRING
)
USING text OPTIONS (
    path 's3a://lake/pipes/shop/database=shop/schema=public/table=orders/',
    pathGlobFilter '*.ndjson.*',
    recursiveFileLookup 'true'
);"""
FLAT_FILES = """SELECT FROM_JSON(value, 'MAP<STRING, STRING>', MAP('mode', 'FAILFAST')) AS members
        FROM STREAM READ_FILES('s3://lake/pipes/shop/database=shop/schema=public/table=orders\
/*/*/*/*/*/*.ndjson.*', format => 'text', schema => 'value STRING')
    ) AS lines"""


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        ("snowflake", PIPE),
        ("databricks", FLOW),
        ("databricks", FLAT_FILES),
        ("athena", FLAT_LINES),
        ("spark", FLAT_OBJECTS),
    ],
)
def test_what_duckdb_cannot_run_of_the_flat_envelope_is_this_text(
    engine: EngineName, text: str
) -> None:
    printed = ddl_text(engine, told(FLAT).state(), PLACE, [ORDERS], [ORDERS])

    assert text in printed.text


def test_athena_reads_the_plain_layout_by_its_hours() -> None:
    plain = replace(PLACE, layout="plain")

    text = ddl_text("athena", told().state(), plain, [ORDERS], [ORDERS]).text

    assert "'projection.hour.format' = 'yyyy/MM/dd/HH'" in text
    assert "'projection.hour.range' = '2026/11/21/09,NOW'" in text
    assert "= 's3://lake/pipes/shop/shop/public/orders/${version}/${hour}/'" in text


HOSTILE = TableName("sch.e\"ma'`", "x'y`z\"w\n; DROP TABLE a; -- 😀 \\" + "é" * 15)


HOSTILE_PARTS = (HOSTILE.schema, HOSTILE.table)


def test_athena_and_unity_catalog_are_given_names_that_they_take() -> None:
    names = ("First name", "first.name", "é=1")

    given = {e: list(distinct(names, allowed=ENGINE[e].dialect.allowed).values()) for e in ENGINES}

    assert given["duckdb"] == list(names)
    assert given["athena"] == ["first_name", "first_name_2", "__1"]
    assert given["databricks"] == ["First_name", "first_name_2", "é_1"]


@pytest.mark.parametrize("configuration", [CONFIGURATION, FLAT], ids=["standard", "flat"])
@pytest.mark.parametrize("engine", ENGINES)
def test_hostile_names_stay_names(engine: EngineName, configuration: RecordConfiguration) -> None:
    names = ("it's", 'qu"ote', "back`tick", "a.b", "li\nne", "\\' OR 1=1 --", "😀", "é" * 31)
    story = Story(table=HOSTILE, configuration=configuration)
    key, *others = names
    story.begin(0, (column(key, key=True), *map(column, others)), (key,))
    story.read(1, 1, [])
    place = replace(PLACE, prefix="o'dd*")

    text = ddl_text(engine, story.state(), place, [HOSTILE], [HOSTILE]).text

    [state] = [
        sqlglot.parse_one(statement, read=engine)
        for statement in statements(text)
        if statement.startswith("CREATE OR REPLACE VIEW") and "folded AS" in statement
    ]
    assert isinstance(state, exp.Create)
    table = state.this
    allowed = {name: ENGINE[engine].dialect.allowed(name) for name in (*names, *HOSTILE_PARTS)}
    assert [table.db, table.name] == [allowed[name] for name in HOSTILE_PARTS]
    shown = distinct(names, allowed=allowed.__getitem__)
    assert state.expression.named_selects[: len(names)] == list(shown.values())
    assert set(allowed) == set(allowed.values()) or engine in {"athena", "databricks"}
    literals = {literal.name for literal in state.find_all(exp.Literal)}
    # The key of a flat record is told by no list: Athena has it in a path alone.
    assert literals.issuperset(others if configuration is FLAT else names)
    # In a comment a name is one line.
    assert all(
        statement.startswith(("CREATE", "COPY", "MERGE", "DELETE"))
        for statement in statements(text)
    )


def statements(text: str) -> list[str]:
    """Each without its semicolon; none of them has an empty line."""
    blocks = text.split("\n\n")
    return [b.strip().removesuffix(";") for b in blocks if not b.startswith("--")]


def test_a_name_that_would_act_on_a_terminal_is_not_printed() -> None:
    story = Story()
    story.begin(0, (column("id", "integer", key=True), column("red\x1b[31m")))

    printed = ddl_text("duckdb", story.state(), PLACE, [ORDERS], [ORDERS])

    assert "public.orders: no view, for a name holds characters that would act" in printed.text
    assert "\x1b" not in printed.text
    assert printed.doubtful_count == 1


def test_names_that_differ_in_case_are_told_apart_whichever_are_asked_for() -> None:
    tables = [TableName("public", name) for name in ("Orders", "orders", "orders_changes")]
    stories = [Story(table=table) for table in tables]
    for story in stories:
        story.begin(0, (column("id", "integer", key=True), column("n")))
    state = stories[0].state(*stories[1:])

    one = ddl_text("duckdb", state, PLACE, [tables[1]], tables).text
    every = ddl_text("duckdb", state, PLACE, tables, tables).text

    made = re.findall(r"^CREATE OR REPLACE VIEW (\S+) AS", every, re.MULTILINE)
    assert made == [
        '"public"."Orders_changes_2"',
        '"public"."Orders"',
        '"public"."orders_2_changes"',
        '"public"."orders_2"',
        '"public"."orders_changes_changes"',
        '"public"."orders_changes"',
    ]
    assert statements(one)[1:] == statements(every)[3:5]


# ------------------------------------------------------------------- what a view says of itself


def doubts_of(story: Story) -> tuple[str, ...]:
    shape = shape_of(story.state(), ORDERS)
    assert isinstance(shape, TableShape)
    return shape.doubts


def test_a_gap_and_an_unfinished_snapshot_are_named() -> None:
    story = told()
    story.read(40, 4, [], state="started", is_begun=False)
    story.gaps = [
        Gap(1, str(ORDERS), at(3), at(4), "operations", "updates were left out"),
        Gap(2, str(ORDERS), at(3), at(4), "operations", "", mended="snapshot"),
        Gap(3, "public.other", at(3), "", "operations", ""),
    ]

    unfinished, gap = doubts_of(story)

    assert unfinished.startswith("its newest snapshot is not finished: rows are those of attempt 2")
    assert gap == f"gap 1, operations: changes may be missing from {at(3)} to {at(4)}"


def test_a_table_whose_first_snapshot_is_being_read_says_that_rows_are_missing() -> None:
    story = Story()
    story.begin(0, COLUMNS)
    story.read(10, 1, [], state="started", is_begun=False)

    [doubt] = doubts_of(story)

    assert "rows that were there before its first change are missing" in doubt


def test_another_key_and_another_type_are_doubts_until_a_snapshot_is_past_them() -> None:
    story = Story()
    first, second = column("a", "integer", key=True), column("b", "integer", key=True)
    story.begin(0, (first, column("b", "integer"), column("n")), ("a",))
    story.begin(3, (column("a", "integer"), second, column("n", "integer")), ("b",))

    before = doubts_of(story)
    story.read(9, 1, [], version=2)
    after = doubts_of(story)

    assert [f"its key changed at {at(3)}" in before[0], len(before)] == [True, 2]
    assert f"column n changed its type at {at(3)}" in before[1]
    assert after == ()


def test_another_type_of_the_same_kind_is_no_doubt() -> None:
    # Where rows got other values by it, the journal has a gap.
    story = Story()
    key = column("id", "integer", key=True)
    story.begin(0, (key, column("note", "text", "character varying(20)"), column("n", "integer")))
    story.begin(3, (key, column("note", "text", "text"), column("n", "integer", "bigint")))

    assert doubts_of(story) == ()


def test_a_fill_that_would_act_on_a_terminal_is_not_printed_and_not_given() -> None:
    story = Story()
    key = column("id", "integer", key=True, number=1)
    story.begin(0, (key,))
    story.begin(3, (key, column("red", number=2, fill='"\\u001b[31m"', default="x")))

    [doubt] = doubts_of(story)

    assert doubt.startswith(f"column red came at {at(3)}")
    assert "\x1b" not in ddl_text("duckdb", story.state(), PLACE, [ORDERS], [ORDERS]).text


def test_a_table_that_is_not_captured_any_more_or_is_gone_says_so() -> None:
    story = told()
    story.configuration = msgspec.structs.replace(CONFIGURATION, exclude=("public.orders",))
    left_out = doubts_of(story)
    dropped = Story()
    dropped.begin(0, COLUMNS)
    dropped.read(9, 1, [], state="gone", is_begun=False)

    gone = doubts_of(dropped)

    assert left_out[0].startswith("the engine that wrote last does not capture it")
    assert gone[0].startswith("the source has no table of this name any more")


def test_a_table_that_had_another_name_says_where_its_records_are() -> None:
    story = Story()
    story.begin(0, COLUMNS)
    story.begin(3, COLUMNS, former_name="public.orders_then")

    [doubt] = doubts_of(story)

    assert doubt.startswith(f"it was called public.orders_then before {at(3)}")


def test_an_attempt_that_is_becoming_visible_counts_and_is_named() -> None:
    story = told()
    story.read(50, 4, [], state="whole")
    story.snapshots[-1] = msgspec.structs.replace(story.snapshots[-1], is_visible=False)

    shape = shape_of(story.state(), ORDERS)

    assert isinstance(shape, TableShape)
    assert shape.attempt == 4
    assert shape.doubts[0].startswith("its newest snapshot is not finished: rows are those of atte")


def test_a_segmented_snapshot_keeps_a_key_of_all_columns() -> None:
    whole = (column("a", "integer", key=True), column("b", "integer", key=True))
    story = Story()
    story.begin(0, whole, ("a", "b"))
    story.read(9, 1, [])
    [stated] = story.snapshots
    segment = msgspec.structs.replace(stated.snapshot, segment=1, began=point(5))
    story.snapshots = [msgspec.structs.replace(stated, snapshot=segment)]

    shape = shape_of(story.state(), ORDERS)

    assert isinstance(shape, TableShape)
    assert shape.key == ("a", "b")
    assert shape.floor == snapshot_position(point(5), 1, 0, 0)


def test_a_column_that_may_have_had_another_name_is_a_doubt() -> None:
    story = Story()
    key = column("id", "integer", key=True)
    story.begin(0, (key, column("note")))
    story.begin(3, (key, column("body")))

    [doubt] = doubts_of(story)

    assert doubt.startswith(f"column body came at {at(3)}")


def test_a_column_that_was_excluded_before_is_a_doubt() -> None:
    story = Story()
    key = column("id", "integer", key=True)
    story.begin(0, (key, column("note", included=False)))
    story.begin(3, (key, column("note")))

    [doubt] = doubts_of(story)

    assert doubt.startswith(f"column note came at {at(3)}")


def test_a_segment_of_more_to_come_does_not_count() -> None:
    story = told()
    counts = story.snapshots[-1]
    story.read(50, 4, [], state="whole")
    newest = story.snapshots[-1]
    segment = msgspec.structs.replace(newest.snapshot, rest="id > 7")
    story.snapshots[-1] = msgspec.structs.replace(newest, snapshot=segment, before=counts.before)

    shape = shape_of(story.state(), ORDERS)

    assert isinstance(shape, TableShape)
    assert shape.attempt == 2
    assert shape.doubts[0].startswith("its newest snapshot is not finished: rows are those of atte")


async def test_objects_that_another_layout_put_elsewhere_are_found_and_named() -> None:
    bucket = await make_bucket(layout="plain")
    objects = bucket.store.objects
    there = [
        piece.planned.first
        for piece in bucket.pieces
        if piece.planned.table == str(ORDERS) and piece.planned.key in objects
    ]
    story = Story()
    story.begin(0, COLUMNS)

    same = await newest_elsewhere(bucket.store, PREFIX, DATABASE, "plain", [ORDERS])
    found = await newest_elsewhere(bucket.store, PREFIX, DATABASE, "hive", [ORDERS])
    counts = shape_of(story.state(), ORDERS, found[ORDERS])
    story.read(1 << 20, 1, [])
    superseded = shape_of(story.state(), ORDERS, found[ORDERS])

    assert same == {}
    assert found == {ORDERS: max(there)}
    assert isinstance(counts, TableShape)
    assert isinstance(superseded, TableShape)
    assert "lie in another folder" in counts.doubts[0]
    assert not any("another folder" in doubt for doubt in superseded.doubts)


PAGE = Path(__file__).parents[1] / "docs" / "views.md"


@pytest.mark.parametrize(
    ("engine", "recipe"),
    [
        ("duckdb", "SET VARIABLE tailrace_until = '0001.00000000134EBCB0'"),
        ("duckdb", "SELECT * FROM public.orders"),
        (
            "athena",
            "CREATE TABLE orders_today WITH (format = 'PARQUET') AS SELECT * FROM public.orders",
        ),
    ],
)
def test_the_pages_recipes_run(engine: EngineName, recipe: str, tmp_path: Path) -> None:
    with reading() as connection:
        stand = stood(told(), engine, tmp_path, connection)

        stand.run(recipe)

    assert recipe in PAGE.read_text(encoding="utf-8")


def test_the_pages_casts_of_athena_make_values(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    with reading() as connection:
        stood(told(), "athena", tmp_path, connection)
        made = sqlglot.transpile(
            "SELECT JSON_EXTRACT_SCALAR(JSON_PARSE(doc), '$.a') FROM public.orders WHERE id = 1",
            read="athena",
            write="duckdb",
        )
        found = connection.execute(made[0]).fetchall()

    assert "`JSON_PARSE(doc)`" in page
    assert found == [("1",)]


def test_records_of_another_envelope_are_a_doubt() -> None:
    story = Story()
    story.begin(0, COLUMNS)
    story.configuration = msgspec.structs.replace(CONFIGURATION, envelope="debezium")
    story.begin(3, COLUMNS)

    [doubt] = doubts_of(story)

    assert doubt.startswith("versions 1 were written under another record configuration")


def test_a_key_that_records_leave_out_has_no_view() -> None:
    story = Story()
    story.begin(0, (column("id", "integer", key=True, included=False), column("note")))

    shape = shape_of(story.state(), ORDERS)

    assert shape == NoShape(ORDERS, "its records leave out a column of its key: id")


def test_a_table_without_a_record_has_no_view() -> None:
    printed = ddl_text("spark", told().state(), PLACE, [TableName("a", "b")], [ORDERS])

    assert "-- a.b: no view, for it has no record yet." in printed.text.splitlines()


def test_a_version_that_counts_is_in_the_projection_and_an_earlier_one_is_not() -> None:
    story = Story()
    story.begin(0, (column("id", "integer", key=True),))
    story.begin(3, COLUMNS)
    story.begin(6, (*COLUMNS, column("more")))
    story.read(5, 1, [], version=2)

    text = ddl_text("athena", story.state(), PLACE, [ORDERS], [ORDERS]).text

    assert "'projection.version.values' = '0002,0003'" in text


def test_numbers_fit_their_types() -> None:
    sizes = ("numeric(10,2)", "numeric(3,-2)", "numeric(2,4)", "numeric(39,0)", "numeric", "price")

    found = [numeric_size(_numeric(size), 38) for size in sizes]

    assert found == [(10, 2), (5, 0), (4, 4), None, None, None]


def _numeric(type_: str) -> ViewColumn:
    return ViewColumn(
        "n",
        type_,
        "numeric",
        is_hashed=False,
        is_in_before=False,
        is_long=True,
        is_structured=False,
    )
