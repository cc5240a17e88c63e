"""The judges: what of a source's situation stops a start, or should be known before it.

Strategy: one function a code. A judge of a start raises the error that the start ends with, or
says what it found. `check` asks every judge and shows each answer. `prepare` asks the same ones in
the same order, and ends with the first error.

Invariant: pure: a judge reads nothing but what was read for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from engine.model.check_code import CheckCode
from engine.model.errors import (
    ConfigurationError,
    SourceError,
    SourceRefused,
    TailraceError,
)
from engine.model.plural import counted
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.trial import Finding, Judgement
from engine.sources.postgres import check_codes as codes
from engine.sources.postgres.row_filters import sql_name, version_fault
from engine.sources.postgres.session import quoted
from engine.sources.postgres.situation import (
    Publication,
    Server,
    Situation,
    Table,
)
from engine.sources.postgres.slot import (
    PASSES_OVER_VERSION,
    publication_lost,
    replication_refusal,
    wal_level_fault,
)
from engine.sources.postgres.statements import (
    LISTED_MAX,
    addition_statement,
    creation_statement,
    identity_statements,
    names_text,
    replacement_statements,
)

PRIMARY_HINT: Final = "(with several hosts in source.dsn: target_session_attrs=primary)"

_OLDEST: Final = 140000

_SLOTS_HINT: Final = (
    "drop one that nobody needs (pg_drop_replication_slot), or raise max_replication_slots and"
    " restart the server"
)

Judge: TypeAlias = Callable[[Situation], Finding | None]
"""Raises the error that a start would end with. None: there is nothing to say."""


def version_refusal(server: Server) -> SourceRefused | None:
    """Why that version cannot be streamed from; None where it can."""
    if server.version < _OLDEST:
        return SourceRefused(
            f"PostgreSQL {server.version // 10000} is too old",
            hint="PostgreSQL 14 to 18 is supported",
        )
    if server.is_standby and server.version < 160000:
        return SourceRefused(
            f"the server is a hot standby, and PostgreSQL {server.version // 10000} decodes"
            " changes on a primary alone",
            hint=f"connect to the primary {PRIMARY_HINT}, or stream from a standby of"
            " PostgreSQL 16 or newer",
        )
    return None


def server_fault(server: Server) -> SourceError | None:
    """Why it cannot be streamed from, whatever its tables; None where nothing is against it."""
    return version_refusal(server) or _wal_level_fault(server) or _replication_fault(server)


def _wal_level_fault(server: Server) -> SourceRefused | None:
    return wal_level_fault(
        server.wal_level, server.effective_wal_level, is_standby=server.is_standby
    )


def _replication_fault(server: Server) -> SourceRefused | None:
    if server.may_replicate:
        return None
    return replication_refusal(f"{server.role!r} lacks REPLICATION")


def _version(situation: Situation) -> Finding:
    server = situation.server
    _raise_if(version_refusal(server))
    number = f"PostgreSQL {server.version // 10000}.{server.version % 10000}"
    return Finding(f"{number}{', a hot standby' if server.is_standby else ''}")


def _wal_level(situation: Situation) -> Finding:
    server = situation.server
    effective = server.effective_wal_level
    _raise_if(_wal_level_fault(server))
    if effective in {None, server.wal_level}:
        return Finding(f"wal_level = {server.wal_level}")
    return Finding(f"wal_level = {server.wal_level}, effective_wal_level = {effective}")


def _replication(situation: Situation) -> Finding:
    server = situation.server
    _raise_if(_replication_fault(server))
    return Finding(f"the role {server.role!r} may stream changes")


def _slot(situation: Situation) -> Finding:
    slot, is_first = situation.slot, situation.is_first
    if slot.exists and situation.is_renewed:
        _raise_if(slot.foreign_fault())
    elif slot.exists or not is_first:
        _raise_if(slot.own_fault())
    if not slot.exists:
        return Finding(f"{slot.name} is made by the first run")
    if slot.is_being_made:
        return Finding(f"{slot.name} is being made by process {slot.active_pid} at this moment")
    text = f"{slot.name} stands at {slot.confirmed}"
    if slot.active_pid is not None:
        text = f"{text}; process {slot.active_pid} reads it: an engine that starts now stands by"
    if (warning := slot_warning(situation)) is not None:
        return Finding(f"{text}; {warning[0]}", warning[1])
    if slot.wal_status == "unreserved":
        return Finding(
            f"{text}; the server is about to remove log that it needs (wal_status unreserved)",
            "start the engine now, or raise max_slot_wal_keep_size first: ALTER SYSTEM SET"
            " max_slot_wal_keep_size = '…'; SELECT pg_reload_conf()",
        )
    return Finding(text)


def slot_warning(situation: Situation) -> tuple[str, str] | None:
    """A used slot may be the wrong one for a prefix without a journal: text and hint."""
    slot = situation.slot
    if not situation.is_first or slot.confirmed is None:
        return None
    text = (
        "the slot was there before, and this prefix has no journal: a new one begins at"
        f" {slot.confirmed}, where the slot stands, and changes from before will not be in"
        " this prefix"
    )
    return text, "if the slot was used with another prefix, name that one in destination.prefix"


def _slots(situation: Situation) -> Finding:
    server, slot = situation.server, situation.slot
    count, count_max = server.slot_count, server.slot_count_max
    is_made = situation.is_first and not slot.exists and not situation.is_renewed
    if is_made and count >= count_max:
        raise slots_are_used(count_max)
    text = f"{count} of {count_max} used (max_replication_slots)"
    if is_made:
        text = f"{text}; the first run takes one more"
    if situation.configuration.snapshot == "never":
        return Finding(text)
    if count + is_made >= count_max:
        return Finding(
            f"{text}; none is left for a snapshot, which takes another one while it begins, and"
            " waits",
            _SLOTS_HINT,
        )
    return Finding(f"{text}; a snapshot takes another one while it begins")


def slots_are_used(count: int) -> SourceRefused:
    """The server can make no further slot."""
    return SourceRefused(
        f"all {count} replication slots of the server are in use",
        hint=_SLOTS_HINT,
    )


def _tables(situation: Situation) -> Finding:
    tables, configuration = situation.tables, situation.configuration
    if not tables and situation.is_first:
        raise SourceRefused(
            f"no table matches source.tables = {list(configuration.tables)}; there is:"
            f" {existing_text(situation)}",
            hint="name tables as schema.table, with * and ? as wildcards; unlogged, temporary and"
            " foreign tables have no changes to read",
        )
    if not tables:
        return Finding(
            f"none is captured: no name matches; there is: {existing_text(situation)}",
            "nothing is read until tables come again; see source.tables and source.exclude",
        )
    others = situation.others
    more = f"; {counted(len(others), 'other table')}: {_names(others)}" if others else ""
    return Finding(f"{counted(len(tables), 'table')} captured: {_names(tables)}{more}")


def existing_text(situation: Situation) -> str:
    """The tables that could be captured, as text."""
    return names_text(table.name for table in situation.others) or "no tables at all"


def _identities(situation: Situation) -> Finding | None:
    """Only what is published, or will be, has to have one."""
    keyless, publication = situation.keyless, situation.publication
    if not situation.tables:
        return None
    if publication is None:
        if situation.is_first and not situation.keyed:
            raise SourceRefused(
                f"no captured table has a replica identity: {names_text(keyless)}; once published,"
                " PostgreSQL would refuse their UPDATE and DELETE",
                hint=_sql(identity_statements(keyless[:LISTED_MAX], situation.fixed)),
            )
        if keyless and situation.is_first:
            statements = [
                *identity_statements(keyless[:LISTED_MAX], situation.fixed),
                addition_statement(situation.configuration, keyless[:LISTED_MAX]),
            ]
            return Finding(
                f"{counted(len(keyless), 'table')} without one: the publication that the first run"
                f" makes leaves out {names_text(keyless)}",
                f"before it, a primary key or {_sql(statements[:-1])}; afterwards also"
                f" {statements[-1]}",
            )
        return Finding("every captured table has one")
    refusing = [table.name for table in situation.published if not table.is_keyed]
    if publication.has_updates and refusing:
        text = "published tables without a replica identity refuse UPDATE and DELETE"
        return Finding(
            f"{text}: {names_text(refusing)}",
            _sql(identity_statements(refusing[:LISTED_MAX], situation.fixed)),
        )
    return Finding("every published table has one")


def _publication(situation: Situation) -> Finding | None:
    publication, server = situation.publication, situation.server
    name = situation.configuration.through
    if publication is not None:
        whose = "" if publication.is_owned else "; another role owns it"
        return Finding(f"{name} is there{whose}")
    if not situation.is_first:
        if server.version < PASSES_OVER_VERSION:
            # PostgreSQL 18 streams on without the publication; what it does not send is a gap that
            # the catalog watch records and alarms. Earlier ones end the stream at the next change.
            raise publication_lost(f"{name!r} is gone")
        again = creation_statement(situation.configuration, situation.keyed)
        return Finding(
            f"{name} is gone: nothing arrives",
            f"make it again: {again}; what was committed meanwhile is a gap (docs/gaps.md)",
        )
    if not situation.keyed:
        return None
    _raise_if(_creation_fault(situation))
    return Finding(f"{name} is made by the first run, of {counted(len(situation.keyed), 'table')}")


def _creation_fault(situation: Situation) -> SourceError | None:
    """Why the publication cannot be made; None where nothing is known against it."""
    configuration, server, keyed = situation.configuration, situation.server, situation.keyed
    if server.is_standby:
        return SourceRefused(
            f"there is no publication {configuration.through!r}, and the server is a hot standby:"
            " it takes its primary's",
            hint=f"run on the primary: {creation_statement(configuration, keyed)}",
        )
    foreign = [table.name for table in situation.tables if table.is_keyed and not table.is_owned]
    if not server.may_create:
        return publication_refused(configuration, keyed, "it lacks CREATE on the database")
    if foreign:
        return publication_refused(configuration, keyed, f"it does not own {names_text(foreign)}")
    return None


def publication_refused(
    configuration: RecordConfiguration, keyed: Sequence[TableName], reason: str
) -> SourceError:
    """The role may not make the publication."""
    return SourceRefused(
        f"there is no publication {configuration.through!r} and the role may not make it: {reason}",
        hint=f"run as the tables' owner: {creation_statement(configuration, keyed)};",
    )


def _published(situation: Situation) -> Finding | None:
    if situation.publication is None or not situation.tables:
        return None
    # Once there is a journal, a look says which tables are missing, and who adds them.
    missing = _missing(situation) if situation.is_first else []
    wrong = [each for each in publication_warnings(situation) if each.code is codes.PUBLISHED]
    if found := missing + wrong:
        return warned(found)
    captured, published = len(situation.tables), len(situation.published)
    return Finding(f"{published} of {counted(captured, 'captured table')}, every operation")


def _filters(situation: Situation) -> Finding | None:
    configuration = situation.configuration
    _raise_if(version_fault(situation.server.version, configuration))
    warnings = [each for each in publication_warnings(situation) if each.code is codes.FILTERS]
    if found := warnings + arrival_warnings(situation):
        return warned(found)
    if not any(rule.where for rule in configuration.rules):
        return None
    return Finding("the rules' conditions and the publication's filters are there together")


def _readable(situation: Situation) -> Finding | None:
    if situation.configuration.snapshot == "never":
        return Finding('no rows are read: source.snapshot = "never"')
    if unreadable := situation.unreadable:
        refusal = snapshot_refused(unreadable)
        if situation.is_first:
            raise refusal
        return Finding(str(refusal), refusal.hint)
    if not situation.tables:
        return None
    return Finding("the role may read the rows of every table that a snapshot reads")


def snapshot_refused(unreadable: Mapping[TableName, SourceRefused]) -> SourceRefused:
    """The role may not read rows that snapshots have to read."""
    texts = names_text(f"{refusal}" for refusal in unreadable.values())
    statements = dict.fromkeys(refusal.hint for refusal in unreadable.values() if refusal.hint)
    return SourceRefused(
        f"a snapshot cannot read {counted(len(unreadable), 'table')}: {texts}",
        hint=f'{"; ".join(list(statements)[:LISTED_MAX])}; or set source.snapshot = "never"',
    )


def _unlogged(situation: Situation) -> Finding | None:
    if not situation.tables:
        return None
    if warnings := unlogged_warnings(situation):
        return warned(warnings)
    return Finding("every captured table is in the server's log")


def _names_clash(situation: Situation) -> Finding | None:
    if situation.configuration.envelope != "flat":
        return None
    # Where a slot is made anew there is a journal: the pipeline's own names give way already.
    if situation.clashes and situation.is_first and not situation.is_renewed:
        raise ConfigurationError(
            'columns are called as fields of destination.envelope = "flat" itself:'
            f" {situation.clashes}",
            hint="choose another destination.flat_prefix, or exclude the columns by a"
            " [[source.table]]",
        )
    if situation.clashes:
        return Finding(f"flat_prefix is repeated for {situation.clashes}")
    return Finding("no column is called as a field of the flat envelope")


def _rule_columns(situation: Situation) -> Finding | None:
    if situation.unknown_columns:
        return Finding(
            f"no table has a column that a [[source.table]] names: {situation.unknown_columns}",
            "correct the name: a column that was to be left out or hashed is written as it is",
        )
    if not any(r.include or r.exclude or r.hash for r in situation.configuration.rules):
        return None
    return Finding("every column that a [[source.table]] names is there")


JUDGES: Final[tuple[tuple[CheckCode, Judge], ...]] = (
    (codes.VERSION, _version),
    (codes.WAL_LEVEL, _wal_level),
    (codes.REPLICATION, _replication),
    (codes.SLOT, _slot),
    (codes.SLOTS, _slots),
    (codes.TABLES, _tables),
    (codes.UNLOGGED, _unlogged),
    (codes.IDENTITY, _identities),
    (codes.PUBLICATION, _publication),
    (codes.PUBLISHED, _published),
    (codes.FILTERS, _filters),
    (codes.READING, _readable),
    (codes.NAMES, _names_clash),
    (codes.RULE_COLUMNS, _rule_columns),
)
"""In the order in which a start asks them."""


def judgements_of(situation: Situation) -> list[Judgement]:
    """What every judge of a start says."""
    found = []
    for code, judge in JUDGES:
        try:
            finding = judge(situation)
        except TailraceError as error:
            found.append(Judgement(code, error))
        else:
            found += [Judgement(code, finding)] if finding is not None else []
    return found


def refuse(situation: Situation) -> None:
    """Raise the first error of a judge, if there is one."""
    for _, judge in JUDGES:
        judge(situation)


# --- what is wrong with tables and publication: a start says it in its log


@dataclass(frozen=True, slots=True)
class Warned:
    """Something wrong that stops no start: the text, the tables, the SQL that mends it."""

    code: CheckCode
    text: str
    tables: Sequence[TableName]
    statements: Sequence[str]


def warned(warnings: Sequence[Warned]) -> Finding:
    """The same as a finding."""
    texts = [f"{w.text}: {names_text(w.tables)}" if w.tables else w.text for w in warnings]
    statements = [statement for w in warnings for statement in w.statements]
    return Finding("; ".join(texts), _sql(statements))


def unlogged_warnings(situation: Situation) -> list[Warned]:
    """Of tables whose changes are not in the log. What is so from the start is agreed."""
    found: list[Warned] = []
    if unlogged := situation.unlogged:
        statements = [f"ALTER TABLE {sql_name(name)} SET LOGGED" for name in unlogged[:LISTED_MAX]]
        text = "captured tables, or partitions of them, are unlogged: the log lacks their changes"
        found.append(Warned(codes.UNLOGGED, text, unlogged, statements))
    if foreign := situation.foreign:
        statements = [
            f"ALTER TABLE {sql_name(parent)} DETACH PARTITION {sql_name(name)}"
            for name, parent in list(foreign.items())[:LISTED_MAX]
        ]
        text = "partitions of captured tables are foreign tables: the log lacks their changes"
        found.append(Warned(codes.UNLOGGED, text, tuple(foreign), statements))
    return found


def arrival_warnings(situation: Situation) -> list[Warned]:
    """Of tables with a condition, into which a row may come without its large values."""
    tables = situation.partly_sent
    if not tables:
        return []
    text = (
        "an UPDATE may bring a row into where and leave a large value as it was, which PostgreSQL"
        " does not send: no record can hold such a row"
    )
    return [Warned(codes.FILTERS, text, tables, identity_statements(tables[:LISTED_MAX]))]


def _missing(situation: Situation) -> list[Warned]:
    """What the catalog watch alarms from its first look on. `run` leaves it to the watch."""
    published = set(situation.published)
    missing = [table for table in situation.tables if table not in published]
    if not missing:
        return []
    keyless = [table.name for table in missing if not table.is_keyed]
    names = [table.name for table in missing]
    statements = [
        *identity_statements(keyless, situation.fixed),
        addition_statement(situation.configuration, names),
    ]
    return [
        Warned(codes.PUBLISHED, "captured tables are not in the publication", names, statements)
    ]


def publication_warnings(situation: Situation) -> list[Warned]:
    """What nobody alarms, because the publication's owner may want it so."""
    publication = situation.publication
    if publication is None:
        return []
    found: list[Warned] = []
    name = quoted(publication.name)
    roots = [table.name for table in situation.tables if table.is_partitioned]
    if not publication.is_via_root and roots:
        statement = f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"
        text = "partitioned tables are published by partition"
        found.append(Warned(codes.PUBLISHED, text, roots, [statement]))
    keyless = [table.name for table in situation.published if not table.is_keyed]
    if publication.has_updates and keyless:
        text = "published tables without a replica identity refuse UPDATE and DELETE"
        found.append(
            Warned(codes.IDENTITY, text, keyless, identity_statements(keyless, situation.fixed))
        )
    if not publication.has_all_operations:
        statement = f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"
        text = "the publication leaves operations out"
        found.append(Warned(codes.PUBLISHED, text, [], [statement]))
    published = [table.name for table in situation.published]
    return found + _filter_warnings(publication, situation.configuration, published)


def _filter_warnings(
    publication: Publication, configuration: RecordConfiguration, published: Sequence[TableName]
) -> list[Warned]:
    """Where there is a filter and none was asked for, or the other way round."""
    found: list[Warned] = []
    filtered = [table for table in published if table in publication.filtered]
    unasked = [table for table in filtered if not configuration.where_of(table)]
    if unasked:
        found.append(
            Warned(
                codes.FILTERS,
                "the publication has some rows only, and no [[source.table]] says which (where)",
                unasked,
                [
                    text
                    for table in unasked
                    for text in replacement_statements(configuration, table)
                ],
            )
        )
    missing = [
        table
        for table in published
        if configuration.where_of(table) and table not in publication.filtered
    ]
    if missing:
        found.append(
            Warned(
                codes.FILTERS,
                "the publication has all rows, and where of a [[source.table]] asks for some",
                missing,
                _filtering_statements(publication, configuration, published, missing),
            )
        )
    return found


def _filtering_statements(
    publication: Publication,
    configuration: RecordConfiguration,
    published: Sequence[TableName],
    tables: Sequence[TableName],
) -> list[str]:
    """The SQL after which the publication has those rows of the tables that `where` asks for."""
    if publication.is_all_tables:
        return [
            f"DROP PUBLICATION {quoted(publication.name)}",
            creation_statement(configuration, published),
        ]
    schemas = sorted({table.schema for table in tables if table in publication.by_schema})
    statements: list[str] = []
    if schemas:
        # Where the schema is published, no filter of its tables counts.
        listed = ", ".join(map(quoted, schemas))
        statements.append(
            f"ALTER PUBLICATION {quoted(publication.name)} DROP TABLES IN SCHEMA {listed}"
        )
        others = publication.by_schema - publication.named - set(tables)
        lost = sorted(table for table in others if table.schema in schemas)
        if lost:
            statements.append(addition_statement(configuration, lost))
    for table in tables:
        if table in publication.named:
            statements += replacement_statements(configuration, table)
        else:
            statements.append(addition_statement(configuration, [table]))
    return statements


def _names(tables: Sequence[Table]) -> str:
    return names_text(table.name for table in tables)


def _sql(statements: Sequence[str]) -> str:
    return "; ".join(statements)


def _raise_if(fault: TailraceError | None) -> None:
    if fault is not None:
        raise fault
