"""Row filters: `where` of a rule becomes the condition of its tables in the publication.

Strategy: the text is the operator's, so nothing is believed of it. It goes to the server in one
statement for each table, and as one statement alone (`Transaction.run`). It stands on lines of its
own, so that a comment at its end cannot hide the parenthesis behind it. Before the transaction ends
we count what it has written of publications: one table more, one filter more, and nothing else. A
text that closes the parenthesis itself and goes on (`true), TABLES IN SCHEMA public, …`) is found
by that.

Invariant: the application's own statements never fail because of us. PostgreSQL refuses UPDATE and
DELETE of a table whose filter uses a column outside the replica identity. So these columns are
looked up in the same transaction, for every partition by its names.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
import psycopg
import structlog

from engine.model.errors import ConfigurationError, SourceError, SourceFailed, SourceRefused
from engine.model.interfaces import Reason
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.sources.postgres.locks import (
    STOPS_PUBLISHING,
    STOPS_READING,
    locked_names,
    locked_oids,
)
from engine.sources.postgres.session import Questions, Session, primary_message, quoted
from engine.sources.postgres.transaction import LOCK_NOT_AVAILABLE, Transaction, transaction

_log = structlog.get_logger(__name__)

FILTERS_VERSION: Final = 150000
"""Since then a publication can have row filters."""

_IDENTITIES_SHOWN_MAX: Final = 20

_TRY_TIMEOUT: Final = "10s"

_TEXT_TIMEOUT: Final = "50ms"

_COMPARED_MAX: Final = 20
"""Filters that one look compares; each takes a transaction."""

_PARAMETERS: Final = """
SELECT pg_catalog.cardinality(parameter_types)::pg_catalog.int4
FROM pg_catalog.pg_prepared_statements WHERE name OPERATOR(pg_catalog.=) 'tailrace_trial'
"""

_EXPRESSION_CLASSES: Final = ("0A", "22", "42", "54")
"""Classes of SQLSTATE with which the server refuses a filter's text."""

# What this transaction has written, whoever else is at work.
_WRITTEN: Final = """
SELECT pg_catalog.count(*)::pg_catalog.int4, pg_catalog.count(r.prqual)::pg_catalog.int4,
       pg_catalog.count(r.prattrs)::pg_catalog.int4,
       (SELECT pg_catalog.count(*)::pg_catalog.int4 FROM pg_catalog.pg_publication_namespace s
        WHERE s.xmin OPERATOR(pg_catalog.=) pg_catalog.pg_current_xact_id()::pg_catalog.xid)
FROM pg_catalog.pg_publication_rel r
WHERE r.xmin OPERATOR(pg_catalog.=) pg_catalog.pg_current_xact_id()::pg_catalog.xid
"""

# The columns that a filter uses hang on it in pg_depend. One that used the row as a whole would
# hang on none, but PostgreSQL takes no such filter: the row's type is a user's (15 and 18: tested).
_USED: Final = """
SELECT r.prrelid::pg_catalog.int8, n.nspname, c.relname,
       ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_depend d
         JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) d.refobjid
           AND a.attnum::pg_catalog.int4 OPERATOR(pg_catalog.=) d.refobjsubid
         WHERE d.classid OPERATOR(pg_catalog.=) r.tableoid
           AND d.objid OPERATOR(pg_catalog.=) r.oid
           AND d.refclassid OPERATOR(pg_catalog.=) c.tableoid
           AND d.refobjid OPERATOR(pg_catalog.=) r.prrelid
           AND d.refobjsubid OPERATOR(pg_catalog.>) 0)
FROM pg_catalog.pg_publication_rel r
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) r.prrelid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE r.prqual IS NOT NULL
  AND r.xmin OPERATOR(pg_catalog.=) pg_catalog.pg_current_xact_id()::pg_catalog.xid
"""

# Which index is an identity: see `preparation`.
_IDENTITIES: Final = """
WITH RECURSIVE tree(root, relid) AS (
  SELECT c.oid, c.oid FROM pg_catalog.pg_class c
  WHERE c.oid OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.oid[])
  UNION
  SELECT tree.root, i.inhrelid FROM tree
  JOIN pg_catalog.pg_class p ON p.oid OPERATOR(pg_catalog.=) tree.relid
    AND p.relkind OPERATOR(pg_catalog.=) 'p'
  JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) tree.relid
)
SELECT tree.root::pg_catalog.int8, c.relkind OPERATOR(pg_catalog.=) 'p', n.nspname, c.relname,
       c.relreplident OPERATOR(pg_catalog.=) 'f',
       ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_index i
         JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
           AND pg_catalog.array_position(i.indkey::pg_catalog.int2[], a.attnum)
               OPERATOR(pg_catalog.<) i.indnkeyatts
         WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND i.indimmediate
           AND (CASE WHEN c.relreplident OPERATOR(pg_catalog.=) 'd' THEN i.indisprimary
                     ELSE c.relreplident OPERATOR(pg_catalog.=) 'i' AND i.indisreplident END))
FROM tree
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) tree.relid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
ORDER BY 3, 4
"""

_FILTERED: Final = """
SELECT n.nspname, c.relname
FROM pg_catalog.pg_publication p
JOIN pg_catalog.pg_publication_rel r ON r.prpubid OPERATOR(pg_catalog.=) p.oid
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) r.prrelid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE p.pubname OPERATOR(pg_catalog.=) %s::pg_catalog.name
  AND r.prqual IS NOT NULL AND NOT p.puballtables
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
    WHERE s.pnpubid OPERATOR(pg_catalog.=) p.oid AND s.pnnspid OPERATOR(pg_catalog.=) n.oid)
"""

_TEXTS: Final = """
SELECT r.prrelid::pg_catalog.int8, r.prqual::pg_catalog.text,
       pg_catalog.pg_get_expr(r.prqual, r.prrelid)
FROM pg_catalog.pg_publication_rel r
JOIN pg_catalog.pg_publication p ON p.oid OPERATOR(pg_catalog.=) r.prpubid
WHERE p.pubname OPERATOR(pg_catalog.=) %s::pg_catalog.name
  AND r.prrelid OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.oid[])
"""

# `pg_get_expr` opens the table. Without MATERIALIZED the planner may ask it of other tables first,
# which somebody may have locked.
_DIFFERING: Final = """
WITH pairs AS MATERIALIZED (
  SELECT r.prrelid, n.nspname, c.relname, r.prqual AS own, other.prqual AS present
  FROM pg_catalog.pg_publication p
  JOIN pg_catalog.pg_publication_rel r ON r.prpubid OPERATOR(pg_catalog.=) p.oid
  JOIN pg_catalog.pg_publication_rel other ON other.prrelid OPERATOR(pg_catalog.=) r.prrelid
  JOIN pg_catalog.pg_publication o ON o.oid OPERATOR(pg_catalog.=) other.prpubid
    AND o.pubname OPERATOR(pg_catalog.=) %s::pg_catalog.name
  JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) r.prrelid
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
  WHERE p.pubname OPERATOR(pg_catalog.=) %s::pg_catalog.name
)
SELECT pairs.nspname, pairs.relname FROM pairs
WHERE pg_catalog.pg_get_expr(pairs.own, pairs.prrelid)
      OPERATOR(pg_catalog.<>) pg_catalog.pg_get_expr(pairs.present, pairs.prrelid)
ORDER BY 1, 2
"""


def version_fault(version: int, configuration: RecordConfiguration) -> ConfigurationError | None:
    """Why a server of that version cannot do what the rules' `where` asks for; None where it can.

    A filter that is not in force would let rows out that were to stay.
    """
    rules = [rule.match for rule in configuration.rules if rule.where]
    if version >= FILTERS_VERSION or not rules:
        return None
    return ConfigurationError(
        f"PostgreSQL {version // 10000} has no row filters, and rules have where: "
        f"{', '.join(map(repr, rules))}",
        hint="take where out of these [[source.table]], or update to PostgreSQL 15 or newer",
    )


def clause_of(where: str) -> str:
    """What follows a table's name in the statements that publish it; empty without a condition."""
    if not where:
        return ""
    return f" WHERE (\n{where}\n)" if "--" in where else f" WHERE ({where})"


def filtered_of(
    configuration: RecordConfiguration, tables: Iterable[TableName]
) -> dict[TableName, str]:
    """Those of the tables that have a condition, each with it."""
    wheres = {table: configuration.where_of(table) for table in tables}
    return {table: where for table, where in wheres.items() if where}


async def add_filtered(
    inside: Transaction, configuration: RecordConfiguration, table: TableName, *, doing: str
) -> None:
    """Add one table with its rule's condition to the publication.

    Raises ConfigurationError where the server does not take the condition, or where more than one
    table with one condition came of it: then the transaction has to be rolled back. Raises
    SourceError. Cancellation leaves the transaction to be rolled back.
    """
    name, where = quoted(configuration.through), configuration.where_of(table)
    # On lines of its own, whatever is in it.
    statement = f"ALTER PUBLICATION {name} ADD TABLE ONLY {sql_name(table)} WHERE (\n{where}\n)"
    before = await _written(inside, doing)
    try:
        await inside.run(statement, doing=doing)
    except SourceError as error:
        if (text := _said_of_expression(error)) is not None:
            raise _refused(configuration, table, f"PostgreSQL does not take it: {text}") from error
        raise
    tables, filters, lists, schemas = before
    if await _written(inside, doing) != (tables + 1, filters + 1, lists, schemas):
        raise _refused(configuration, table, "it is more than one condition")


async def judge_identities(
    inside: Transaction, configuration: RecordConfiguration, *, doing: str
) -> None:
    """Look whether the application may go on to UPDATE and DELETE what was added.

    Raises ConfigurationError where it may not: then the transaction has to be rolled back. Raises
    SourceError. Cancellation leaves the transaction to be rolled back.
    """
    used = await inside.rows(_USED, doing=doing)
    rows = await inside.rows(_IDENTITIES, [row[0] for row in used], doing=doing)
    partitions: dict[int, list[_Identity]] = {}
    for root, is_partitioned, schema, name, is_full, columns in rows:
        identity = _Identity(TableName(schema, name), is_partitioned, is_full, frozenset(columns))
        partitions.setdefault(root, []).append(identity)
    for root, schema, name, columns in used:
        every = partitions[root]
        # The leaves hold the rows.
        leaves = [identity for identity in every if not identity.is_partitioned] or every
        lacking = {leaf.name: leaf.lacks(frozenset(columns)) for leaf in leaves}
        if any(lacking.values()):
            raise _identity_refused(configuration, TableName(schema, name), lacking)


@dataclass(frozen=True, slots=True)
class _Identity:
    """The replica identity of a table or of one of its partitions."""

    name: TableName
    is_partitioned: bool
    is_full: bool
    columns: frozenset[str]

    def lacks(self, used: frozenset[str]) -> list[str]:
        """Which of the used columns it does not have."""
        return [] if self.is_full else sorted(used - self.columns)


async def _written(inside: Transaction, doing: str) -> tuple[int, int, int, int]:
    [(tables, filters, lists, schemas)] = await inside.rows(_WRITTEN, doing=doing)
    return tables, filters, lists, schemas


def _said_of_expression(error: SourceError) -> str | None:
    """What the server has against the filter's text; None where it is something else."""
    cause = error.__cause__
    if not isinstance(cause, psycopg.Error):
        return None
    if isinstance(cause, psycopg.errors.InsufficientPrivilege):
        return None
    if (cause.sqlstate or "")[:2] not in _EXPRESSION_CLASSES:
        return None
    # No row is read here, so nothing but the text is quoted.
    detail = cause.diag.message_detail
    return primary_message(cause) + (f" ({detail.rstrip('.')})" if detail else "")


def _refused(
    configuration: RecordConfiguration, table: TableName, reason: str
) -> ConfigurationError:
    return ConfigurationError(
        f"where of {_rule_text(configuration, table)} is not one condition that {table} can have:"
        f" {reason}",
        hint="a row filter is one condition on the table's own columns, with the server's own"
        " immutable functions and operators, without subqueries",
    )


def _identity_refused(
    configuration: RecordConfiguration, table: TableName, lacking: Mapping[TableName, list[str]]
) -> ConfigurationError:
    names = sorted(name for name, columns in lacking.items() if columns)
    columns = dict.fromkeys(column for name in names for column in lacking[name])
    statements = [f"ALTER TABLE {sql_name(name)} REPLICA IDENTITY FULL;" for name in names]
    return ConfigurationError(
        f"where of {_rule_text(configuration, table)} uses what the replica identity of {table} has"
        f" not: {', '.join(map(repr, columns))}; PostgreSQL would refuse the application's UPDATE"
        " and DELETE",
        hint=f"{' '.join(statements[:_IDENTITIES_SHOWN_MAX])} Or make a unique index that has these"
        " columns too, and name it in ALTER TABLE … REPLICA IDENTITY USING INDEX",
    )


def _rule_text(configuration: RecordConfiguration, table: TableName) -> str:
    rule = configuration.rule_of(table)
    return f"the rule for {rule.match if rule is not None else ''!r}"


async def read_filtered(session: Questions, version: int, name: str) -> frozenset[TableName]:
    """The tables of which the publication has some rows only. Opens no table.

    Raises SourceError. Cancellation changes nothing.
    """
    if version < FILTERS_VERSION:
        return frozenset()
    rows = await session.rows(_FILTERED, name, doing="reading the publication's row filters")
    return frozenset(TableName(*row) for row in rows)


class FilterTexts:
    """The conditions of filters as the server writes them. Each is asked for once.

    Writing one opens its table. Tables that somebody has locked are left out, and a time limit is
    there for a lock that somebody takes in between.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], str] = {}

    async def read(self, session: Session, name: str, stored: Mapping[int, str]) -> dict[int, str]:
        """By a table's OID, the condition of its filter in the publication, which is `stored` so.

        Without those that cannot be read now. Raises SourceError where the source does not answer.
        Cancellation changes nothing.
        """
        self._known = {key: text for key, text in self._known.items() if stored.get(key[0])}
        unknown = {oid for oid, tree in stored.items() if (oid, tree) not in self._known}
        if unknown:
            unknown -= await locked_oids(session, unknown, STOPS_READING)
        if unknown:
            doing = "reading row filters"
            try:
                async with transaction(session, doing=doing, lock_timeout=_TEXT_TIMEOUT) as inside:
                    rows = await inside.rows(_TEXTS, name, list(unknown), doing=doing)
            except (SourceFailed, SourceRefused) as error:
                _log.debug("row filters were not read", reason=str(error))
                rows = []
            self._known |= {(oid, tree): text for oid, tree, text in rows}
        found = {oid: self._known.get((oid, tree)) for oid, tree in stored.items()}
        return {oid: text for oid, text in found.items() if text is not None}


class AskedFilters:
    """Whether filters in the publication are those that the rules ask for. Each is compared once.

    Tables that somebody has locked are compared later. What the role may not compare counts as what
    was asked for.
    """

    def __init__(self) -> None:
        self._differs: dict[tuple[int, str, str], bool] = {}

    async def others(
        self,
        session: Session,
        configuration: RecordConfiguration,
        stored: Mapping[int, tuple[TableName, str]],
    ) -> frozenset[int]:
        """Of tables with a rule's condition, those whose filter is another one, by OID.

        Their filter is `stored` so. Raises SourceError where the source does not answer.
        Cancellation changes nothing.
        """
        keys = {
            oid: (oid, tree, configuration.where_of(table)) for oid, (table, tree) in stored.items()
        }
        standing = frozenset(keys.values())
        self._differs = {key: known for key, known in self._differs.items() if key in standing}
        unknown = [oid for oid, key in keys.items() if key not in self._differs]
        if unknown:
            held = await locked_oids(session, unknown, STOPS_PUBLISHING)
            for oid in [oid for oid in unknown if oid not in held][:_COMPARED_MAX]:
                differs = await _differs(session, configuration, stored[oid][0])
                if differs is not None:
                    self._differs[keys[oid]] = differs
        return frozenset(oid for oid, key in keys.items() if self._differs.get(key))


async def _differs(
    session: Session, configuration: RecordConfiguration, table: TableName
) -> bool | None:
    """Whether the table's filter is another one than its rule's; None: ask again."""
    try:
        return bool(await differing(session, configuration, [table]))
    except SourceFailed as error:
        _log.debug("a row filter was not compared", reason=str(error))
        return None
    except (SourceRefused, ConfigurationError) as error:
        _log.debug("a row filter cannot be compared", reason=str(error))
        return False


def unasked_reason(
    configuration: RecordConfiguration, table: TableName, text: str | None, mending: str
) -> Reason:
    """A table has a filter that its rule does not ask for, and that it had not before.

    `text` is its condition, None where that cannot be read; `mending` the SQL that ends it.
    """
    rule = configuration.rule_of(table)
    because = "no [[source.table]] rule matches it"
    if rule is not None:
        because = f"where is not in the [[source.table]] rule for {rule.match!r}"
    now = f"WHERE {text}" if text is not None else "a condition that cannot be read now"
    if where := configuration.where_of(table):
        return Reason(
            f"the publication {quoted(configuration.through)} has another row filter for {table}"
            f" than {_rule_text(configuration, table)} asks for, now {now} and not WHERE ({where})",
            mending,
        )
    return Reason(
        f"the publication {quoted(configuration.through)} has another row filter for {table} than"
        f" before, now {now}; all of its rows are expected, because {because}",
        mending,
    )


async def differing(
    session: Session, configuration: RecordConfiguration, tables: Iterable[TableName]
) -> list[TableName]:
    """Those of the tables whose filter in the publication is another one than their rule's.

    Only the server can tell. So the conditions are stored in a publication that nobody sees, and
    rolled back. Its locks keep nobody from reading or writing.

    Raises ConfigurationError for a condition that the server does not take, and SourceError, also
    where the role may not. Cancellation leaves nothing behind.
    """
    doing = "comparing row filters"
    wanted = list(tables)
    if not wanted:
        return []
    trial = msgspec.structs.replace(configuration, through=f"tailrace_{secrets.token_hex(16)}")
    async with transaction(session, doing=doing) as inside:
        await inside.run(f"CREATE PUBLICATION {quoted(trial.through)}", doing=doing)
        for table in wanted:
            await add_filtered(inside, trial, table, doing=doing)
        # With the locks of the tables, this waits for nobody.
        found = await inside.rows(_DIFFERING, trial.through, configuration.through, doing=doing)
    return [TableName(*row) for row in found]


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of trying the rules' conditions: what is refused, and who could not be asked."""

    refusals: tuple[ConfigurationError, ...]
    locked: tuple[TableName, ...]


async def tried(
    session: Session, configuration: RecordConfiguration, tables: Iterable[TableName]
) -> Tried:
    """Have the server parse the conditions of these tables. Reads no row and makes nothing.

    Parsing runs no function but those that read constants, and asks for the weakest lock of a
    table, for a moment. It finds what is no condition on the table's columns. What only a row
    filter may not have (functions of users, volatile ones, subqueries) is found where the filter is
    made. Raises SourceError. Cancellation leaves nothing behind.
    """
    doing = "trying the conditions of where"
    refusals: list[ConfigurationError] = []
    filtered = filtered_of(configuration, tables)
    # Each would take the whole time limit.
    held = await locked_names(session, STOPS_READING) if filtered else set()
    locked = sorted(held & filtered.keys())
    async with transaction(session, doing=doing) as inside:
        await inside.rows(
            "SELECT pg_catalog.set_config('statement_timeout', %s, true)", _TRY_TIMEOUT, doing=doing
        )
        for table, where in filtered.items():
            if table in held:
                continue
            await inside.rows("SAVEPOINT trial", doing=doing)
            try:
                if fault := await _fault_of(inside, table, where, doing):
                    refusals.append(_refused(configuration, table, fault))
            except SourceError as error:
                if (text := _said_of_expression(error)) is not None:
                    fault = f"PostgreSQL does not take it: {text}"
                    refusals.append(_refused(configuration, table, fault))
                elif isinstance(error, SourceFailed) and error.code == LOCK_NOT_AVAILABLE:
                    locked.append(table)
                else:
                    raise
            await inside.rows("ROLLBACK TO trial", doing=doing)
    return Tried(tuple(refusals), tuple(locked))


async def _fault_of(inside: Transaction, table: TableName, where: str, doing: str) -> str:
    """What is wrong with a condition that the server could parse; empty where nothing is."""
    name = sql_name(table)
    # A text that closes a parenthesis and goes on means something else in each place, or nothing.
    for selected, clause in (
        ("", f"WHERE (\n{where}\n)"),
        (f"pg_catalog.count(*) FILTER (WHERE\n{where}\n)", ""),
    ):
        # It is parsed, and never executed.
        query = f"SELECT {selected} FROM ONLY {name} {clause}"  # noqa: S608 - the condition is tried
        await inside.run(f"PREPARE tailrace_trial AS {query}", doing=doing)
        [(count,)] = await inside.rows(_PARAMETERS, doing=doing)
        await inside.rows("DEALLOCATE tailrace_trial", doing=doing)
        if count:
            return "it has parameters ($1)"
    return ""


def sql_name(table: TableName) -> str:
    """A table's name as SQL takes it, whatever is in it."""
    return f"{quoted(table.schema)}.{quoted(table.table)}"
