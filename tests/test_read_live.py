"""`tailrace.read` of what a real engine wrote: a real database, a real bucket."""

import json
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tailrace
from databases import Database
from engine.servers.servers import EmbeddedS3
from load_tests.engine_process import EngineProcess, Pipeline

pytestmark = pytest.mark.timeout(300)

PREFIX = "lake"
LARGE = "(SELECT string_agg(md5(n::text), '') FROM generate_series(%d, %d) n)"


def large(seed: int) -> str:
    """A text that is stored out of line, and not compressed away."""
    return LARGE % (seed * 1000, seed * 1000 + 200)


@dataclass
class Lake:
    """A pipeline, and what is read of its bucket."""

    database: Database
    pipeline: Pipeline
    url: str
    folder: Path
    runs: int = 0

    async def run(self, *arguments: str) -> None:
        """This command, to a good end; without arguments `tailrace run --until-caught-up`."""
        self.runs += 1
        arguments = arguments or ("run", "--until-caught-up")
        with EngineProcess(self.pipeline, self.folder, f"run{self.runs}", *arguments) as engine:
            code = await engine.ended(seconds=60)
            assert code == 0, engine.log

    def execute(self, *statements: str) -> None:
        with self.database.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def read(self, table: str, **question: Any) -> list[dict[str, Any]]:
        with tailrace.read(self.url, table, **question) as reading:
            return [json.loads(line) for some in reading.ndjson() for line in some.splitlines()]

    def differences(self, table: str, rows: list[dict[str, Any]]) -> tuple[int, int]:
        """How many rows were read and are not in the table, and the other way round."""
        found = f"(SELECT * FROM json_populate_recordset(NULL::{table}, %s::json))"
        sides = (f"{found} EXCEPT ALL TABLE {table}", f"TABLE {table} EXCEPT ALL {found}")
        with self.database.connect() as connection:
            counts = [
                connection.execute(f"SELECT count(*) FROM ({side}) d".encode(), [json.dumps(rows)])
                for side in sides
            ]
            first, second = (cursor.fetchall()[0][0] for cursor in counts)
        return first, second

    def assert_same(self, table: str) -> None:
        rows = self.read(table, current=True)
        assert self.differences(table, rows) == (0, 0), (table, rows[:3])


@pytest.fixture
def lake(database15: Database, aws_environment: EmbeddedS3, bucket: str, tmp_path: Path) -> Lake:
    s3 = aws_environment
    sections: dict[str, dict[str, object]] = {
        "source": {
            "dsn": database15.dsn,
            "slot": database15.name,
            "snapshot": "initial",
            "snapshot_workers": "local:1",
        },
        "destination": {"bucket": bucket, "prefix": PREFIX, "endpoint_url": s3.endpoint_url},
        # Few rows an object: whatever a fold has to carry, it carries over many of them.
        "chunk": {"max_age": "300ms", "max_rows": 4},
        "engine": {"append_interval": "100ms"},
    }
    url = f"s3://{bucket}/{PREFIX}?endpoint_url={s3.endpoint_url}&region=us-east-1"
    return Lake(database15, Pipeline(sections, s3.environment), url, tmp_path)


KEYS = (
    ("int", "n"),
    ("bigint", "n * 10000000000"),
    ("text", "'käy \"' || n || E'\\n'"),
    ("uuid", "md5(n::text)::uuid"),
    ("numeric(12,3)", "n / 8.0"),
    ("timestamptz", "'2026-01-01'::timestamptz + n * interval '1.000001 s'"),
    ("date", "'0044-03-15 BC'::date + n"),
    ("boolean", "n % 2 = 0"),
    ("double precision", "n / 3.0"),
    ("inet", "('10.0.0.' || n)::inet"),
    ("int[]", "ARRAY[n, NULL, n + 1]"),
)

BEFORE = (
    "CREATE TABLE orders (id bigint PRIMARY KEY, note text, body text, total numeric(10,2))",
    f"""INSERT INTO orders SELECT n, 'note ' || n, {large(1)} || n, n / 7.0
        FROM generate_series(1, 30) n""",
    'CREATE TABLE "Orders" (id int PRIMARY KEY, x text)',
    """INSERT INTO "Orders" SELECT n, 'twin ' || n FROM generate_series(1, 5) n""",
    "CREATE TABLE parts (b text, a int, x text, body text, PRIMARY KEY (a, b))",
    f"INSERT INTO parts SELECT 'b' || n % 3, n, 'x', {large(2)} FROM generate_series(1, 20) n",
    "CREATE TABLE bag (a int, b text, body text)",
    "ALTER TABLE bag REPLICA IDENTITY FULL",
    f"""INSERT INTO bag SELECT n % 3, 'bag', CASE WHEN n % 2 = 0 THEN {large(3)} END
        FROM generate_series(1, 12) n""",
    "CREATE TABLE joined (a int, b int, PRIMARY KEY (a, b))",
    "INSERT INTO joined SELECT n, n % 3 FROM generate_series(1, 9) n",
    "CREATE TABLE gone (id int PRIMARY KEY, x text)",
    "INSERT INTO gone SELECT n, 'old' FROM generate_series(1, 5) n",
    "CREATE TABLE parent (id int PRIMARY KEY, x text)",
    "CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, x text)",
    "INSERT INTO parent SELECT n, 'p' FROM generate_series(1, 5) n",
    "INSERT INTO child SELECT n, n, 'c' FROM generate_series(1, 5) n",
    "CREATE TABLE computed (id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED)",
    "INSERT INTO computed (id, a) SELECT n, n FROM generate_series(1, 5) n",
    *(
        statement
        for number, (kind, value) in enumerate(KEYS)
        for statement in (
            f"CREATE TABLE key{number} (k {kind} PRIMARY KEY, x int, body text)",
            f"""INSERT INTO key{number} SELECT {value}, n, {large(4)}
                FROM generate_series(1, {2 if kind == "boolean" else 6}) n""",
        )
    ),
)

CHANGES = (
    "UPDATE orders SET note = note || '!' WHERE id % 3 = 0",
    "DELETE FROM orders WHERE id % 7 = 0",
    f"INSERT INTO orders SELECT n, 'new', {large(5)} || n, 0 FROM generate_series(100, 110) n",
    # A chain of changed keys in one transaction, with a large column that nobody touches.
    """BEGIN; UPDATE orders SET id = 1001 WHERE id = 1; UPDATE orders SET id = 1002 WHERE id = 1001;
       UPDATE orders SET note = 'moved' WHERE id = 1002;
       UPDATE orders SET id = 1003 WHERE id = 1002;
       INSERT INTO orders VALUES (1001, 'again', 'small', 1); COMMIT""",
    # And over transactions, past each other.
    "UPDATE orders SET id = id + 5000 WHERE id BETWEEN 10 AND 20",
    "UPDATE orders SET id = id - 4995 WHERE id BETWEEN 5010 AND 5012",
    """BEGIN; UPDATE orders SET id = -1 WHERE id = 2; UPDATE orders SET id = 2 WHERE id = 3;
       UPDATE orders SET id = 3 WHERE id = -1; COMMIT""",
    """UPDATE "Orders" SET x = 'other' WHERE id = 2""",
    """DELETE FROM "Orders" WHERE id = 3""",
    "UPDATE parts SET x = 'y' WHERE a < 5",
    "UPDATE parts SET b = 'c' WHERE a = 7",
    "UPDATE parts SET a = 700, b = 'd', x = 'z' WHERE a = 8",
    "DELETE FROM parts WHERE a = 9",
    "DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag)",
    "UPDATE bag SET b = 'changed' WHERE ctid = (SELECT max(ctid) FROM bag)",
    "UPDATE bag SET a = a WHERE a = 1",
    "INSERT INTO bag VALUES (1, 'bag', NULL), (1, 'bag', NULL), (NULL, NULL, NULL)",
    "UPDATE joined SET b = b WHERE a = 1",
    "UPDATE joined SET b = 9 WHERE a = 2",
    "DELETE FROM joined WHERE a = 3",
    "TRUNCATE parent CASCADE",
    "INSERT INTO parent VALUES (6, 'after')",
    "INSERT INTO child VALUES (1, 6, 'after')",
    "UPDATE computed SET a = 100 WHERE id = 2",
    *(
        f"UPDATE key{number} SET x = x + 100 WHERE x > 1; DELETE FROM key{number} WHERE x = 1"
        for number in range(len(KEYS))
    ),
)
TABLES = (
    "orders",
    '"Orders"',
    "parts",
    "bag",
    "joined",
    "parent",
    "child",
    *(f"key{number}" for number in range(len(KEYS))),
)


async def test_the_current_rows_are_those_of_the_table(lake: Lake) -> None:
    lake.execute(*BEFORE)
    await lake.run()
    lake.execute(*CHANGES)
    await lake.run()

    for table in TABLES:
        lake.assert_same(table)
    # A generated column is in no record of this server, so it is in no row.
    rows = lake.read("computed", current=True)
    assert {(row["id"], row["a"]) for row in rows} == {(1, 1), (2, 100), (3, 3), (4, 4), (5, 5)}


async def test_rows_of_a_partition_that_came_and_went_while_nobody_looked_are_read_no_more(
    lake: Lake,
) -> None:
    lake.execute(
        """CREATE TABLE sales (id int, region int, PRIMARY KEY (id, region))
        PARTITION BY LIST (region)""",
        "CREATE TABLE sales_1 PARTITION OF sales FOR VALUES IN (1)",
        "INSERT INTO sales VALUES (1, 1)",
    )
    await lake.run()
    lake.execute(
        "CREATE TABLE sales_2 PARTITION OF sales FOR VALUES IN (2)",
        "INSERT INTO sales VALUES (2, 2), (3, 1)",
        "DROP TABLE sales_2",
    )
    await lake.run()

    records = lake.read("sales")
    assert [r["after"]["id"] for r in records if r["metadata"]["op"] == "c"] == [2, 3]
    lake.assert_same("sales")


async def test_reads_in_a_loop_beside_engines_give_each_change_once(lake: Lake) -> None:
    lake.execute(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text)",
        "INSERT INTO orders SELECT n, 'there' FROM generate_series(1, 50) n",
    )
    loop = Loop(lake)
    killed = 0
    for life in range(3):
        with EngineProcess(lake.pipeline, lake.folder, f"life{life}", "run") as engine:
            await engine.reaches("streaming")
            for number in range(12):
                loop.write()
                loop.read()
                if number == 9:
                    # What it has read and not published is another engine's work now.
                    engine.kill()
                    killed += 1
                    break
    lake.execute("UPDATE orders SET note = 'end' WHERE id = 1")
    await lake.run()
    loop.read()

    assert killed == 3
    assert len([1 for count in loop.counts if count]) > 5
    # The union is the stream, and the stream has what was written, each change once.
    whole = lake.read("orders")
    assert loop.stream() == [r for r in whole if r["metadata"]["op"] not in {"t", "r"}]
    positions = [record["metadata"]["position"] for record in loop.records]
    assert len(set(positions)) == len(positions)
    notes = [r["after"]["note"] for r in loop.stream() if r["metadata"]["op"] == "c"]
    assert notes == [f"written {number}" for number in range(loop.written)]
    # The snapshot's records came once, too, in one piece: its truncate record first.
    read = [r["metadata"]["op"] for r in loop.records if r["metadata"]["op"] in {"t", "r"}]
    assert read[0] == "t"
    assert read[1:] == ["r"] * (len(read) - 1)
    lake.assert_same("orders")


@dataclass
class Loop:
    """A job that keeps a cursor, and who writes beside it."""

    lake: Lake
    cursor: str | None = None
    written: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def write(self) -> None:
        number = self.written
        self.lake.execute(
            f"INSERT INTO orders VALUES ({1000 + number}, 'written {number}')",
            f"UPDATE orders SET note = note || '!' WHERE id IN ({1000 + number - 3}, {number})",
            f"DELETE FROM orders WHERE id = {20 + number}",
        )
        self.written += 1

    def read(self) -> None:
        try:
            reading = tailrace.read(self.lake.url, "orders", since=self.cursor)
        except tailrace.ReadRefused as error:
            # Before the first engine has journalled the table.
            if error.code != "table-unknown" or self.cursor is not None:
                raise
            return
        with reading:
            found = [json.loads(line) for some in reading.ndjson() for line in some.splitlines()]
            self.records += found
            self.counts.append(len(found))
            self.cursor = reading.cursor

    def stream(self) -> list[dict[str, Any]]:
        return [r for r in self.records if r["metadata"]["op"] not in {"t", "r"}]


BEFORE_DRIFT = (
    "CREATE TABLE orders (id int PRIMARY KEY, note text, gone int)",
    "INSERT INTO orders SELECT n, 'note ' || n, n FROM generate_series(1, 10) n",
    "CREATE TABLE again (id int PRIMARY KEY, x text)",
    "INSERT INTO again SELECT n, 'old' FROM generate_series(1, 5) n",
    "CREATE TABLE back (id int PRIMARY KEY, x text)",
    "INSERT INTO back SELECT n, 'old' FROM generate_series(1, 5) n",
    "CREATE TABLE tree (id int PRIMARY KEY, x text) PARTITION BY RANGE (id)",
    "CREATE TABLE tree_1 PARTITION OF tree FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE tree_2 PARTITION OF tree FOR VALUES FROM (10) TO (20)",
    "INSERT INTO tree SELECT n, 'leaf' FROM generate_series(5, 14) n",
)
DRIFT = (
    "UPDATE orders SET note = 'before' WHERE id = 1",
    "ALTER TABLE orders ADD COLUMN total numeric(10,2)",
    "ALTER TABLE orders ADD COLUMN kind text DEFAULT 'plain'",
    "ALTER TABLE orders DROP COLUMN gone",
    "UPDATE orders SET total = 1.50 WHERE id = 2",
    "ALTER TABLE orders RENAME COLUMN note TO remark",
    "UPDATE orders SET remark = 'after' WHERE id = 3",
    "DROP TABLE again",
    "CREATE TABLE again (id int PRIMARY KEY, y int)",
    "INSERT INTO again SELECT n, n FROM generate_series(3, 7) n",
    # The stream does not show this: it is a gap, which another snapshot fills.
    "TRUNCATE tree_1",
    "UPDATE tree SET x = 'later' WHERE id = 12",
)


async def test_rows_have_the_columns_that_the_table_has_now(lake: Lake) -> None:
    lake.execute(*BEFORE_DRIFT)
    await lake.run()
    lake.execute("UPDATE back SET x = 'streamed' WHERE id = 1", "ALTER TABLE back ADD COLUMN y int")
    await lake.run("resync", "public.back")
    await lake.run()
    # What was asked for before a run is done by it.
    assert all("y" in row for row in lake.read("back", current=True))
    with tailrace.read(lake.url, "orders") as reading:
        before = reading.until
    lake.execute(*DRIFT)
    lake.execute("ALTER TABLE back DROP COLUMN y", "UPDATE back SET x = 'streamed' WHERE id = 2")
    await lake.run()

    # The last row has the first version again, and the snapshot before it had the second.
    newest = sorted(lake.read("back", current=True), key=lambda row: row["id"])
    assert [row.keys() for row in newest] == [{"id", "x"}] * 5
    lake.assert_same("back")
    lake.assert_same("orders")
    lake.assert_same("again")
    lake.assert_same("tree")
    assert [r["metadata"]["op"] for r in lake.read("tree")].count("t") == 1
    # The table as it was has the columns that it had.
    then = lake.read("orders", current=True, until=before)
    assert sorted((row["id"], row["note"], row["gone"]) for row in then) == [
        (n, f"note {n}", n) for n in range(1, 11)
    ]


VALUES = (
    ("boolean", "true", True),
    ("smallint", "-7", -7),
    ("bigint", "9223372036854775807", 2**63 - 1),
    ("real", "1.5", 1.5),
    ("double precision", "'-Infinity'", float("-inf")),
    ("numeric(12,3)", "1234.5", Decimal("1234.500")),
    ("numeric", "1e40", "1" + "0" * 40),
    ("money", "12.50", "$12.50"),
    ("text", "E'déjà\\n'", "déjà\n"),
    ("char(5)", "'ab'", "ab   "),
    ("bytea", "'\\x00ff68'", b"\x00\xffh"),
    ("date", "'2024-02-29'", date(2024, 2, 29)),
    ("time", "'23:59:59.5'", time(23, 59, 59, 500000)),
    ("timetz", "'10:00:00+02'", None),
    (
        "timestamp",
        "'2024-02-29 10:00:00.000001'",
        datetime.fromisoformat("2024-02-29T10:00:00.000001"),
    ),
    ("timestamptz", "'2024-02-29 10:00:00+02'", datetime(2024, 2, 29, 8, tzinfo=UTC)),
    ("interval", "'1 day 2 hours'", None),
    ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("inet", "'10.0.0.1/24'", "10.0.0.1/24"),
    ("json", "'{\"a\": [1, null]}'", '{"a":[1,null]}'),
    ("jsonb", "'{\"a\": [1, null]}'", '{"a":[1,null]}'),
    ("int[]", "'{1,NULL,3}'", [1, None, 3]),
    ("text[]", "ARRAY['a', NULL, 'NULL']", ["a", None, "NULL"]),
    ("timestamptz[]", "ARRAY['2024-02-29 10:00:00Z']", [datetime(2024, 2, 29, 10, tzinfo=UTC)]),
    ("bytea[]", "ARRAY['\\x00ff'::bytea]", [b"\x00\xff"]),
    ("int4range", "'[1,5)'", "[1,5)"),
    ("point", "'(1,2)'", "(1,2)"),
    ("oid", "4294967295", 4_294_967_295),
    ("mood", "'sad'", "sad"),
    ("positive", "3", 3),
    ("pair", "ROW(1, 'x')", "(1,x)"),
)
BEYOND = (
    ("timestamptz", "'infinity'", "infinity"),
    ("date", "'-infinity'", "-infinity"),
    ("numeric(5,2)", "'NaN'", "NaN"),
    ("time", "'24:00:00'", "24:00:00"),
    ("int[]", "'{{1,2},{3,4}}'", "[[1,2],[3,4]]"),
    ("int[]", "'[0:1]={1,2}'", "[0:1]={1,2}"),
)


async def test_every_type_is_in_batches_files_and_texts(lake: Lake) -> None:
    """Rows come by the snapshot and by the stream, and both write alike."""
    columns = ", ".join(f"c{n} {kind}" for n, (kind, _, _) in enumerate(VALUES))
    values = ", ".join(f"{value}::{kind}" for kind, value, _ in VALUES)
    beyond = ", ".join(f"b{n} {kind}" for n, (kind, _, _) in enumerate(BEYOND))
    lake.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
        "CREATE TYPE pair AS (a int, b text)",
        f"CREATE TABLE types (id int PRIMARY KEY, {columns})",
        f"INSERT INTO types SELECT 1, {values}",
        f"CREATE TABLE beyond (id int PRIMARY KEY, {beyond})",
        f"INSERT INTO beyond SELECT 1, {', '.join(f'{v}::{k}' for k, v, _ in BEYOND)}",
    )
    await lake.run()
    lake.execute(f"INSERT INTO types SELECT 2, {values}", "INSERT INTO types VALUES (3)")
    await lake.run()

    table = tailrace.read(lake.url, "types", current=True).arrow()
    changes = tailrace.read(lake.url, "types").arrow().to_pylist()
    relation = tailrace.read(lake.url, "types", current=True).duckdb(name="types")

    one, two, three = sorted(table.to_pylist(), key=lambda row: row["id"])
    for number, (kind, _, wanted) in enumerate(VALUES):
        name = f"c{number}"
        assert one[name] == two[name], kind
        assert one[name] == wanted or wanted is None, kind
        assert three[name] is None
    assert [change["after"] for change in changes if change["op"] == "c"] == [two, three]
    assert relation.aggregate("count(c10)").fetchall() == [(2,)]
    with pytest.raises(tailrace.ReadRefused) as refused:
        tailrace.read(lake.url, "beyond", current=True).arrow()
    assert refused.value.code == "value-unrepresentable"
    names = [f"b{number}" for number in range(len(BEYOND))]
    [texts] = tailrace.read(lake.url, "beyond", current=True, text=names).arrow().to_pylist()
    assert [texts[name] for name in names] == [wanted for _, _, wanted in BEYOND]
