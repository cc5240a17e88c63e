"""A storm: random DDL statements over some tables, beside a load that writes whatever there is.

Strategy: each kind of statement looks at the catalog, and makes SQL for the tables that there are.
The same seed draws the same kinds; what they find is the machine's. What PostgreSQL refuses (a
table that is gone by then, an update without a replica identity) is counted, and the storm goes on.

In the end `settle` leaves every table captured, with a key or with whole rows, and with a row that
is newer than its last statement: a version begins at a row.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString, TypeVar

import psycopg

from databases import Database

CAPTURED = ("public", "other")
PUBLICATION = "tailrace"
_ALL = "insert, update, delete, truncate"
_SETTLING_ROUNDS = 3

_MAKE: tuple[LiteralString, ...] = (
    "CREATE SCHEMA other",
    "CREATE SCHEMA hidden",
    "CREATE TYPE mood AS ENUM ('sad', 'well')",
    *(
        f"CREATE TABLE t{number} (id bigint PRIMARY KEY, num int, note text, short varchar(20),"
        f" made timestamp, feels mood, is_new boolean)"
        for number in range(5)
    ),
    "ALTER TABLE t3 REPLICA IDENTITY FULL",
    # Long notes are stored out of line, so that updates leave some unchanged.
    "ALTER TABLE t0 ALTER note SET STORAGE EXTERNAL",
    "CREATE TABLE other.t9 (id bigint PRIMARY KEY, num int, note text)",
    "CREATE TABLE parent (id bigint PRIMARY KEY, note text)",
    "CREATE TABLE child (id bigint PRIMARY KEY, parent bigint REFERENCES parent, note text)",
    "CREATE TABLE empty (id bigint PRIMARY KEY, note text)",
    "CREATE TABLE tree (id bigint PRIMARY KEY, num int, note text) PARTITION BY RANGE (id)",
    "CREATE TABLE hidden.leaf0 PARTITION OF tree FOR VALUES FROM (0) TO (1000000000)",
    "INSERT INTO t0 (id, note) SELECT n, repeat(md5(n::text), 80) FROM generate_series(1, 40) n",
    "INSERT INTO t3 (id, num, feels) SELECT n, n, 'well' FROM generate_series(1, 40) n",
    "INSERT INTO tree SELECT n, n, 'there' FROM generate_series(1, 40) n",
    # One write to a table of that name: an insert, an update or a delete of its own choice.
    r"""
    CREATE FUNCTION hidden.write(name text, number bigint, choice int) RETURNS void
    LANGUAGE plpgsql AS $$
    DECLARE
        wanted oid := to_regclass(name);
        made text := '';
        set_ text := '';
        names text := '';
        one record;
        value text;
        old text;
    BEGIN
        IF wanted IS NULL THEN RETURN; END IF;
        FOR one IN
            SELECT quote_ident(attname) AS name, atttypid::regtype::text AS type,
                (SELECT format('(SELECT max(id) FROM %s)', confrelid::regclass)
                 FROM pg_constraint
                 WHERE conrelid = wanted AND contype = 'f' AND conkey = ARRAY[attnum]) AS referred
            FROM pg_attribute
            WHERE attrelid = wanted AND attnum > 0 AND NOT attisdropped AND attname <> 'id'
            ORDER BY attnum
        LOOP
            value := CASE
                WHEN one.referred IS NOT NULL THEN one.referred
                WHEN one.type IN ('integer', 'bigint', 'numeric') THEN (number % 100000)::text
                WHEN one.type = 'double precision' THEN (number % 1000 / 8.0)::text
                WHEN one.type = 'boolean' THEN (number % 2 = 0)::text
                WHEN one.type = 'mood' THEN '(enum_range(NULL::mood))[1 + ' || number % 2 || ']'
                WHEN one.type LIKE 'timestamp%'
                    THEN quote_literal('2026-11-29 09:00:00'::timestamp + number * '1 s'::interval)
                WHEN one.type = 'text' AND number % 9 = 0
                    THEN quote_literal(repeat(md5(number::text), 80))
                ELSE quote_literal('x' || number % 1000)
            END;
            names := names || ', ' || one.name;
            made := made || ', ' || value;
            IF set_ = '' OR number % 3 = 0 THEN set_ := one.name || ' = ' || value; END IF;
        END LOOP;
        old := format('id IN (SELECT id FROM %s WHERE id > %s ORDER BY id LIMIT 2)',
                      wanted::regclass, number - choice * 3);
        IF choice < 6 THEN
            EXECUTE format('INSERT INTO %s (id%s) VALUES (%s%s)',
                           wanted::regclass, names, number, made);
        ELSIF choice < 8 AND set_ <> '' THEN
            EXECUTE format('UPDATE %s SET %s WHERE %s', wanted::regclass, set_, old);
        ELSIF choice = 8 THEN
            EXECUTE format('UPDATE %s SET id = -id WHERE %s', wanted::regclass, old);
        ELSE
            EXECUTE format('DELETE FROM %s WHERE %s', wanted::regclass, old);
        END IF;
    END $$
    """,
    # Transactions of one write each, to any tables. What is refused is counted.
    r"""
    CREATE PROCEDURE hidden.write_many(first bigint, count int, IN OUT refused jsonb)
    LANGUAGE plpgsql AS $$
    DECLARE
        name text;
        state text;
    BEGIN
        FOR number IN first .. first + count - 1 LOOP
            BEGIN
                SELECT format('%I.%I', nspname, relname) INTO name
                FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                WHERE nspname IN ('public', 'other') AND relkind IN ('r', 'p')
                    AND NOT relispartition
                ORDER BY hashint8(number + c.oid::bigint) LIMIT 1;
                PERFORM hidden.write(name, number, abs(hashint8(number)) % 10);
            EXCEPTION WHEN OTHERS THEN
                state := SQLSTATE;
                refused := refused || jsonb_build_object(
                    state, coalesce((refused ->> state)::int, 0) + 1);
            END;
            COMMIT;
        END LOOP;
    END $$
    """,
)
_TABLES: LiteralString = """
    SELECT format('%%I.%%I', nspname, relname), relkind = 'p', relnamespace::regnamespace::text,
        relname, relpersistence = 'u', relreplident::text,
        EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary),
        EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = c.oid),
        ARRAY(
            SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute
            WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attname <> 'id'
            ORDER BY attnum)
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname = ANY (%s) AND relkind IN ('r', 'p') AND NOT relispartition
    ORDER BY nspname, relname
"""

T = TypeVar("T")

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the catalog has it. `columns` are those beside `id`, each with its type."""

    name: str
    is_root: bool
    schema: str
    own_name: str
    is_unlogged: bool
    identity: str
    has_key: bool
    is_published: bool
    columns: tuple[tuple[str, str], ...]

    def of(self, *types: str) -> list[str]:
        """Its columns of one of these types; of any, where none is named."""
        return [name for name, kind in self.columns if not types or kind in types]


def make_tables(database: Database) -> None:
    """Tables, and the publication of all of them."""
    with database.connect() as connection:
        for statement in _MAKE:
            connection.execute(statement)
        connection.execute(
            f"CREATE PUBLICATION {PUBLICATION} FOR TABLE t0, t1, t2, t3, t4, other.t9, parent,"
            f" child, empty, tree WITH (publish_via_partition_root = true)".encode()
        )


async def tables_of(connection: Connection, *schemas: str) -> list[Table]:
    """The tables of these schemas (those that are captured, where none is named)."""
    cursor = await connection.execute(_TABLES, [list(schemas or CAPTURED)])
    return [
        Table(*row[:-1], tuple(map(_column, row[-1])))  # type: ignore[call-arg]
        for row in await cursor.fetchall()
    ]


def _column(text: str) -> tuple[str, str]:
    name, _, kind = text.partition(" ")
    return name, kind


class Impossible(Exception):
    """There is nothing that this statement could be about."""


@dataclass(slots=True)
class Storm:
    """The statements and the load. `rate` is transactions a second at most."""

    database: Database
    seed: int
    rate: float = 200.0
    done: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    written_count: int = 0
    _is_over: asyncio.Event = field(default_factory=asyncio.Event)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    # --- the load

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The load goes on for the length of the block, in a task of its own."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write())
            try:
                yield
            finally:
                self._is_over.set()

    async def _write(self) -> None:
        async with await self._connect() as connection:
            turn = time.monotonic()
            while not self._is_over.is_set():
                await self._write_some(connection, max(1, int(self.rate / 5)))
                # A turn that took longer than its share is not made up for.
                turn = max(turn + 0.2, time.monotonic())
                await asyncio.sleep(turn - time.monotonic())

    async def _write_some(self, connection: Connection, count: int) -> None:
        first = 1000 + self.written_count
        self.written_count += count
        cursor = await connection.execute("CALL hidden.write_many(%s, %s, '{}')", [first, count])
        [(refused,)] = await cursor.fetchall()
        self.refused.update(refused)

    async def _write_into(self, connection: Connection, table: str) -> None:
        self.written_count += 1
        await connection.execute(
            "SELECT hidden.write(%s, %s, 0)", [table, 1000 + self.written_count]
        )

    async def _connect(self) -> Connection:
        connection = await psycopg.AsyncConnection.connect(self.database.dsn, autocommit=True)
        # A statement that waits for the engine's own look must not stop the storm.
        await connection.execute("SET lock_timeout = '5s'")
        await connection.execute("SET timezone = 'UTC'")
        return connection

    # --- the statements

    def plan(self, count: int) -> list[str]:
        """So many kinds, each kind as often as others, give or take one."""
        kinds: list[str] = []
        while len(kinds) < count:
            some = sorted(KINDS)
            self._random.shuffle(some)
            kinds += some
        return kinds[:count]

    async def strike(self, kind: str) -> None:
        """One statement of that kind, or several where it takes several."""
        async with await self._connect() as connection:
            tables = await tables_of(connection)
            hidden = await tables_of(connection, "hidden")
            try:
                statements = KINDS[kind](Draw(self._random, tables, hidden, len(self.done)))
            except Impossible:
                statements = ()
            for statement in statements:
                try:
                    await connection.execute(statement.encode())
                except psycopg.Error as error:
                    self.refused[f"{kind}: {type(error).__name__}"] += 1
                    statements = (*statements, f"refused: {error}".strip())
                    break
            self.done.append((kind, statements))

    async def tables(self) -> list[Table]:
        """What is captured now."""
        async with await self._connect() as connection:
            return await tables_of(connection)

    async def settle(self) -> None:
        """Undo what leaves something out, and write a row into each table."""
        async with await self._connect() as connection:
            await connection.execute(
                f"ALTER PUBLICATION {PUBLICATION} SET (publish = '{_ALL}')".encode()
            )
            # Again, because a table is not logged before the one that it refers to.
            for _ in range(_SETTLING_ROUNDS):
                for table in await tables_of(connection):
                    for statement in _settling(table):
                        try:
                            await connection.execute(statement.encode())
                        except psycopg.Error as error:
                            self.refused[f"settle: {type(error).__name__}"] += 1
            for table in await tables_of(connection):
                await self._write_into(connection, table.name)


def _settling(table: Table) -> tuple[str, ...]:
    statements: list[str] = []
    if table.is_unlogged:
        statements.append(f"ALTER TABLE {table.name} SET LOGGED")
    if not table.is_published:
        statements.append(f"ALTER PUBLICATION {PUBLICATION} ADD TABLE ONLY {table.name}")
    if table.identity == "n" or not (table.has_key or table.identity == "f"):
        statements.append(
            f"ALTER TABLE {table.name} REPLICA IDENTITY {'DEFAULT' if table.has_key else 'FULL'}"
        )
    return tuple(statements)


@dataclass(frozen=True, slots=True)
class Draw:
    """What a kind of statement may draw from; `number` makes names that nobody had before."""

    chance: random.Random
    tables: list[Table]
    hidden: list[Table]
    number: int

    def table(self, *types: str, is_any: bool = False) -> Table:
        """A table with such a column; no root of partitions, but for `is_any`."""
        fit = [t for t in self.tables if (is_any or not t.is_root) and (not types or t.of(*types))]
        return self.one(fit)

    def column(self, *types: str) -> tuple[Table, str]:
        table = self.table(*types)
        return table, self.one(table.of(*types))

    def one(self, things: list[T]) -> T:
        if not things:
            raise Impossible
        return self.chance.choice(things)

    @property
    def fresh(self) -> str:
        return f"c{self.number}"


Statements = tuple[str, ...]


def _add(draw: Draw) -> Statements:
    table = draw.table(is_any=True)
    kind = draw.chance.choice(["int", "text", "varchar(20)", "timestamp", "boolean", "mood"])
    return (f"ALTER TABLE {table.name} ADD {draw.fresh} {kind}",)


def _add_default(draw: Draw) -> Statements:
    table = draw.table(is_any=True)
    kind = draw.chance.choice(
        ["int DEFAULT 7", "text DEFAULT 'filled'", "timestamp DEFAULT '2026-11-29 01:02:03'"]
    )
    return (f"ALTER TABLE {table.name} ADD {draw.fresh} {kind}",)


def _add_to_empty(draw: Draw) -> Statements:
    table = draw.table()
    return (
        (
            f"BEGIN; TRUNCATE {table.name} CASCADE;"
            f" ALTER TABLE {table.name} ADD {draw.fresh} int DEFAULT 9; COMMIT"
        ),
    )


def _add_volatile(draw: Draw) -> Statements:
    table = draw.table(is_any=True)
    return (f"ALTER TABLE {table.name} ADD {draw.fresh} double precision DEFAULT random()",)


def _drop(draw: Draw) -> Statements:
    table, column = draw.column()
    return (f"ALTER TABLE {table.name} DROP {column} CASCADE",)


def _rename(draw: Draw) -> Statements:
    table, column = draw.column()
    return (f"ALTER TABLE {table.name} RENAME {column} TO {draw.fresh}",)


def _swap(draw: Draw) -> Statements:
    fit = [t for t in draw.tables if len(t.columns) > 1]
    table = draw.one(fit)
    one, other = draw.chance.sample(table.of(), 2)
    alter = f"ALTER TABLE {table.name} RENAME"
    return (
        (
            f"BEGIN; {alter} {one} TO swapped; {alter} {other} TO {one};"
            f" {alter} swapped TO {other}; COMMIT"
        ),
    )


def _retype(draw: Draw) -> Statements:
    table, column = draw.column("integer")
    return (f"ALTER TABLE {table.name} ALTER {column} TYPE bigint USING {column} * 2",)


def _retype_in_place(draw: Draw) -> Statements:
    table, column = draw.column("character varying(20)", "timestamp without time zone")
    kind = "timestamptz" if column in table.of("timestamp without time zone") else "text"
    return (f"ALTER TABLE {table.name} ALTER {column} TYPE {kind}",)


def _key(draw: Draw) -> Statements:
    table = draw.one([t for t in draw.tables if t.has_key and not t.is_root])
    alter = f"ALTER TABLE {table.name}"
    drop = (
        f"DO $$ BEGIN EXECUTE (SELECT format('{alter} DROP CONSTRAINT %I CASCADE', conname)"
        f" FROM pg_constraint WHERE conrelid = '{table.name}'::regclass AND contype = 'p'); END $$"
    )
    if draw.chance.random() < 0.5:
        return (f"BEGIN; {drop}; {alter} ADD PRIMARY KEY (id); COMMIT",)
    added = f"{alter} ADD {draw.fresh} int NOT NULL DEFAULT 0"
    return (f"BEGIN; {added}; {drop}; {alter} ADD PRIMARY KEY ({draw.fresh}, id); COMMIT",)


def _identity(draw: Draw) -> Statements:
    table = draw.table()
    index = f"{table.own_name}_{draw.fresh}"
    alter = f"ALTER TABLE {table.name} REPLICA IDENTITY"
    return draw.chance.choice(
        [
            (f"{alter} FULL",),
            (f"{alter} DEFAULT",),
            (f"{alter} NOTHING",),
            (f"CREATE UNIQUE INDEX {index} ON {table.name} (id)", f"{alter} USING INDEX {index}"),
        ]
    )


def _recreate(draw: Draw) -> Statements:
    table = draw.table()
    made = f"{table.name} (id bigint PRIMARY KEY, num int, note text, feels mood)"
    added = f"ALTER PUBLICATION {PUBLICATION} ADD TABLE ONLY {table.name}"
    if draw.chance.random() < 0.5:
        return (f"BEGIN; DROP TABLE {table.name} CASCADE; CREATE TABLE {made}; {added}; COMMIT",)
    return (f"BEGIN; DROP TABLE {table.name} CASCADE; CREATE TABLE {made}; COMMIT",)


def _rename_table(draw: Draw) -> Statements:
    table = draw.table()
    return (f"ALTER TABLE {table.name} RENAME TO u{draw.number}",)


def _move(draw: Draw) -> Statements:
    if draw.hidden and draw.chance.random() < 0.6:
        table = draw.one([t for t in draw.hidden if t.own_name != "leaf0"])
        return (f"ALTER TABLE {table.name} SET SCHEMA {draw.chance.choice(CAPTURED)}",)
    table = draw.table()
    target = draw.chance.choice([s for s in (*CAPTURED, "hidden") if s != table.schema])
    return (f"ALTER TABLE {table.name} SET SCHEMA {target}",)


def _truncate(draw: Draw) -> Statements:
    return (f"TRUNCATE {draw.table(is_any=True).name} CASCADE",)


def _truncate_cascade(draw: Draw) -> Statements:
    parents = [t for t in draw.tables if t.own_name == "parent"]
    return (f"TRUNCATE {draw.one(parents).name} CASCADE",)


def _attach(draw: Draw) -> Statements:
    tree = draw.one([t for t in draw.tables if t.is_root])
    begin = (draw.number + 1) * 1_000_000_000
    end = begin + 1_000_000_000
    schema = draw.chance.choice(["hidden", "public"])
    leaf = f"{schema}.leaf{draw.number}"
    return (
        f"CREATE TABLE {leaf} (LIKE {tree.name} INCLUDING ALL)",
        f"INSERT INTO {leaf} (id) SELECT {begin} + n FROM generate_series(1, 5) n",
        f"ALTER TABLE {tree.name} ATTACH PARTITION {leaf} FOR VALUES FROM ({begin}) TO ({end})",
    )


def _detach(draw: Draw) -> Statements:
    tree = draw.one([t for t in draw.tables if t.is_root])
    return (
        (
            f"DO $$ DECLARE leaf regclass := (SELECT min(inhrelid::regclass::text) FROM pg_inherits"
            f" WHERE inhparent = '{tree.name}'::regclass AND inhrelid <> 'hidden.leaf0'::regclass);"
            f" BEGIN IF leaf IS NOT NULL THEN"
            f" EXECUTE format('ALTER TABLE {tree.name} DETACH PARTITION %s', leaf); END IF; END $$"
        ),
    )


def _unlog(draw: Draw) -> Statements:
    table = draw.table()
    return (
        (
            f"BEGIN; ALTER PUBLICATION {PUBLICATION} DROP TABLE ONLY {table.name};"
            f" ALTER TABLE {table.name} SET UNLOGGED; COMMIT"
        ),
    )


def _log(draw: Draw) -> Statements:
    table = draw.one([t for t in draw.tables if t.is_unlogged])
    return (
        f"ALTER TABLE {table.name} SET LOGGED",
        f"ALTER PUBLICATION {PUBLICATION} ADD TABLE ONLY {table.name}",
    )


def _label(draw: Draw) -> Statements:
    if draw.chance.random() < 0.7:
        where = draw.chance.choice(["BEFORE", "AFTER"])
        return (f"ALTER TYPE mood ADD VALUE 'm{draw.number}' {where} 'well'",)
    return (
        (
            "DO $$ DECLARE label text := (enum_range(NULL::mood))[1]; BEGIN IF label <> 'well' THEN"
            f" EXECUTE format('ALTER TYPE mood RENAME VALUE %L TO ''r{draw.number}''', label);"
            " END IF; END $$"
        ),
    )


def _narrow(draw: Draw) -> Statements:
    return (f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert')",)


def _widen(draw: Draw) -> Statements:
    return (f"ALTER PUBLICATION {PUBLICATION} SET (publish = '{_ALL}')",)


def _unpublish(draw: Draw) -> Statements:
    table = draw.one([t for t in draw.tables if t.is_published])
    return (f"ALTER PUBLICATION {PUBLICATION} DROP TABLE ONLY {table.name}",)


def _publish(draw: Draw) -> Statements:
    fit = [t for t in draw.tables if not t.is_published and not t.is_unlogged]
    return (f"ALTER PUBLICATION {PUBLICATION} ADD TABLE ONLY {draw.one(fit).name}",)


KINDS: dict[str, Callable[[Draw], Statements]] = {
    "add": _add,
    "add default": _add_default,
    "add to empty": _add_to_empty,
    "add volatile": _add_volatile,
    "drop": _drop,
    "rename": _rename,
    "swap": _swap,
    "retype": _retype,
    "retype in place": _retype_in_place,
    "key": _key,
    "identity": _identity,
    "recreate": _recreate,
    "rename table": _rename_table,
    "move": _move,
    "truncate": _truncate,
    "truncate cascade": _truncate_cascade,
    "attach": _attach,
    "detach": _detach,
    "unlog": _unlog,
    "log": _log,
    "label": _label,
    "narrow": _narrow,
    "widen": _widen,
    "unpublish": _unpublish,
    "publish": _publish,
}
