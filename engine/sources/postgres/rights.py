"""Whether our role may read a table's rows: asked before any row is read, without a lock.

A worker reads each partition by itself. So it needs the right to each of them, while the owner's
own queries need that of the root alone. Under row-level security a reader would get fewer rows. Our
sessions get an error instead, and here it is said before.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from engine.model.errors import SourceRefused
from engine.model.schema import TableName
from engine.sources.postgres.images import ROOT_KIND, Image
from engine.sources.postgres.session import Row, Session, quoted

_LISTED_MAX: Final = 10

_RIGHTS: Final = """
SELECT c.oid::pg_catalog.int8, n.nspname, c.relname,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
       pg_catalog.has_table_privilege(c.oid, 'SELECT'),
       pg_catalog.row_security_active(c.oid), current_user
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.oid OPERATOR(pg_catalog.=) ANY(%s::pg_catalog.oid[])
"""


async def refusals(
    session: Session, images: Mapping[TableName, Image]
) -> dict[TableName, SourceRefused]:
    """The tables whose rows cannot be read, and why. Cancellation changes nothing."""
    oids = [relation.oid for image in images.values() for relation in image.relations]
    found = await session.rows(_RIGHTS, oids, doing="looking at what may be read")
    rights = {oid: row for oid, *row in found}
    judged = {
        table: _refusal(image, [rights[r.oid] for r in image.relations if r.oid in rights])
        for table, image in images.items()
    }
    return {table: refusal for table, refusal in judged.items() if refusal is not None}


def _refusal(image: Image, rights: Iterable[list[object]]) -> SourceRefused | None:
    kinds = {relation.kind for relation in image.relations}
    if kinds - {ROOT_KIND, "r"}:
        return SourceRefused(
            f"{image.table} is no table, or has a partition that is none",
            hint="leave it out: source.exclude",
        )
    rows = [tuple(row) for row in rights]
    if missing := _grants(rows):
        return SourceRefused(f"{image.table} may not be read by our role", hint=missing)
    for _, _, _, _, is_secured, role in rows:
        if is_secured:
            return SourceRefused(
                f"{image.table} is under row-level security for role {role!r}: a policy would hide"
                " rows from a snapshot",
                hint=f"ALTER ROLE {quoted(str(role))} BYPASSRLS",
            )
    return None


def _grants(rows: Iterable[Row]) -> str:
    """The statements that give what is missing; empty where nothing is."""
    schemas: dict[str, None] = {}
    tables: list[str] = []
    role = ""
    for schema, name, may_use, may_select, _, our_role in rows:
        if not may_use:
            schemas[quoted(schema)] = None
        if not may_select:
            tables.append(f"{quoted(schema)}.{quoted(name)}")
        role = quoted(our_role)
    statements = []
    if schemas:
        statements.append(f"GRANT USAGE ON SCHEMA {', '.join(schemas)} TO {role}")
    if len(tables) > _LISTED_MAX:
        statements.append(f"GRANT pg_read_all_data TO {role}")
    elif tables:
        statements.append(f"GRANT SELECT ON TABLE {', '.join(tables)} TO {role}")
    return "; ".join(statements)
