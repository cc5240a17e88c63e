"""How tables store their rows: what a look notes of each, by the catalog's own rows.

Strategy: one text a table, made by the server, so that a look of thousands of tables costs little
where nothing changed. Only columns that are sent count. A partitioned table has no file. That its
partitions were written anew is seen by theirs.

Nothing here waits for a lock.
"""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.table_shape import FILL_HIDDEN, FILL_TOLD, decode_shape, encode_shape
from engine.sources.postgres.fills import FILL_LENGTH_MAX
from engine.sources.postgres.session import Questions

_PAGE_TABLES: Final = 500

# text and varchar: each may become the other without a rewrite, and reads the same.
_ALIKE: Final = "{25,1043}"

# The rows of a partition may lack a value that its root's column has as a default.
_SHAPES: Final = f"""
WITH labels AS (
  SELECT e.enumtypid AS type,
         pg_catalog.json_object_agg(e.oid::pg_catalog.text, e.enumlabel ORDER BY e.oid) AS texts
  FROM pg_catalog.pg_enum e GROUP BY e.enumtypid
)
SELECT c.oid::pg_catalog.int8, pg_catalog.json_build_array(
  c.relfilenode::pg_catalog.text,
  pg_catalog.json_agg(pg_catalog.json_build_array(
    a.attnum, a.attname,
    CASE WHEN a.atttypid OPERATOR(pg_catalog.=) ANY ('{_ALIKE}'::pg_catalog.oid[]) THEN 'text'
         ELSE a.atttypid::pg_catalog.text END,
    a.xmin::pg_catalog.text,
    CASE WHEN a.atthasmissing AND pg_catalog.length(a.attmissingval::pg_catalog.text)
              OPERATOR(pg_catalog.<=) {FILL_LENGTH_MAX} THEN {FILL_TOLD}
         WHEN a.atthasmissing THEN {FILL_HIDDEN}
         WHEN c.relkind OPERATOR(pg_catalog.=) 'p'::pg_catalog."char" AND (a.atthasdef OR EXISTS (
           SELECT FROM pg_catalog.pg_inherits i
           JOIN pg_catalog.pg_attribute k ON k.attrelid OPERATOR(pg_catalog.=) i.inhrelid
             AND k.attname OPERATOR(pg_catalog.=) a.attname AND k.atthasmissing
           WHERE i.inhparent OPERATOR(pg_catalog.=) c.oid)) THEN {FILL_HIDDEN}
         ELSE 0 END,
    l.texts,
    CASE WHEN e.typrelid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid THEN (
      SELECT pg_catalog.json_object_agg(
        p.attnum::pg_catalog.text, p.atttypid::pg_catalog.text ORDER BY p.attnum)
      FROM pg_catalog.pg_attribute p WHERE p.attrelid OPERATOR(pg_catalog.=) e.typrelid
        AND p.attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2 AND NOT p.attisdropped) END
  ) ORDER BY a.attnum),
  c.relnatts,
  ARRAY(SELECT d.attnum FROM pg_catalog.pg_attribute d
    WHERE d.attrelid OPERATOR(pg_catalog.=) c.oid AND d.attisdropped ORDER BY d.attnum)
)::pg_catalog.text
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
  AND a.attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2 AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
JOIN pg_catalog.pg_type e ON e.oid OPERATOR(pg_catalog.=) (
  CASE WHEN t.typtype OPERATOR(pg_catalog.=) 'd'::pg_catalog."char" THEN t.typbasetype
       WHEN t.typelem OPERATOR(pg_catalog.<>) 0::pg_catalog.oid THEN t.typelem
       ELSE t.oid END)
LEFT JOIN labels l ON l.type OPERATOR(pg_catalog.=) e.oid
LEFT JOIN pg_catalog.pg_publication p ON p.pubname OPERATOR(pg_catalog.=) %s::pg_catalog.name
LEFT JOIN pg_catalog.pg_publication_rel m ON m.prpubid OPERATOR(pg_catalog.=) p.oid
  AND m.prrelid OPERATOR(pg_catalog.=) c.oid
CROSS JOIN LATERAL (
  SELECT pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb(m), 'prattrs') AS listed
) AS sent
WHERE c.oid OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.oid[])
  AND (CASE WHEN sent.listed IS NOT NULL
            THEN a.attnum OPERATOR(pg_catalog.=) ANY (
              pg_catalog.string_to_array(pg_catalog.translate(sent.listed, '[] ', ''), ',')
                ::pg_catalog.int2[])
            ELSE a.attgenerated OPERATOR(pg_catalog.=) ''::pg_catalog."char"
              OR (a.attgenerated OPERATOR(pg_catalog.=) 's'::pg_catalog."char" AND
                pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb(p), 'pubgencols')
                  OPERATOR(pg_catalog.=) 's') END)
GROUP BY c.oid
"""  # noqa: S608 - of constants.


async def stored_shapes(
    session: Questions, publication: str, oids: Sequence[int]
) -> dict[int, str]:
    """The shapes of these tables (`engine.model.table_shape`), by OID, of those that have columns.

    Raises SourceError. Cancellation as `Questions.rows` says.
    """
    found: dict[int, str] = {}
    for start in range(0, len(oids), _PAGE_TABLES):
        page = list(oids[start : start + _PAGE_TABLES])
        rows = await session.rows(
            _SHAPES, publication, page, doing="looking at how tables store their rows"
        )
        found.update(dict(rows))
    return found


def as_told(text: str, table: TableName, configuration: RecordConfiguration) -> str:
    """The shape as schema.json tells it: of a column that is hashed it tells no value."""
    rule = configuration.rule_of(table)
    if not text or rule is None or not rule.hash:
        return text
    shape = decode_shape(text)
    columns = tuple(
        replace(column, fill=FILL_HIDDEN)
        if column.fill == FILL_TOLD and configuration.is_hashed(table, column.name)
        else column
        for column in shape.columns
    )
    return encode_shape(replace(shape, columns=columns))
