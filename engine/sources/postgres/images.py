"""Images: what a snapshot and a fresh session see of the same tables, and whether it is the same.

An exported snapshot does not protect from everything. A table that was rewritten since (VACUUM
FULL, CLUSTER, most of ALTER TABLE) lies in another file, and an old snapshot reads the new file
with rows missing: tried, 3,332 of 16,667 rows were lost without a word. Two columns that swapped
their names stand in the same file. A partition that was attached is not in the snapshot's tree.

Strategy: the same question is asked in both sessions, of the catalog's own rows. In the snapshot's
session those rows are as old as the snapshot, while `pg_relation_filenode` answers from the catalog
as it is now. So the file node is compared by one question, the columns and partitions by two.

Nothing here waits for a lock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from engine.model.schema import TableName
from engine.sources.postgres.session import Row

ROOT_KIND: Final = "p"
"""A partitioned table: it has no file, its leaves do."""

# Partitions of every level, by their root. A table with children that are no partitions
# (inheritance) is one of its own, and so are they.
IMAGE: Final = """
WITH RECURSIVE tree(root, oid) AS (
  SELECT c.oid, c.oid
  FROM ROWS FROM (
    pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])
  ) AS wanted(schema, name)
  JOIN pg_catalog.pg_namespace n
    ON n.nspname OPERATOR(pg_catalog.=) wanted.schema::pg_catalog.name
  JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid
    AND c.relname OPERATOR(pg_catalog.=) wanted.name::pg_catalog.name
  UNION ALL
  SELECT tree.root, i.inhrelid FROM tree
  JOIN pg_catalog.pg_class p ON p.oid OPERATOR(pg_catalog.=) tree.oid
    AND p.relkind OPERATOR(pg_catalog.=) 'p'::pg_catalog."char"
  JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) tree.oid
)
SELECT tree.root::pg_catalog.int8, c.oid::pg_catalog.int8, n.nspname, c.relname,
       c.relkind::pg_catalog.text, c.relfilenode::pg_catalog.int8,
       pg_catalog.pg_relation_filenode(c.oid)::pg_catalog.int8,
       ARRAY(
         SELECT ROW(a.attnum, a.attname, a.atttypid, a.atttypmod)::pg_catalog.text
         FROM pg_catalog.pg_attribute a
         WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid
           AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
         ORDER BY a.attnum
       )
FROM tree
JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) tree.oid
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation of a table's tree as one session sees it.

    `seen_file` is the file that the session's snapshot knows, `file` the one that is there now;
    both None for a root. `columns` are number, name, type and modifier of each, as text.
    """

    oid: int
    schema: str
    name: str
    kind: str
    seen_file: int | None
    file: int | None
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Image:
    """One table as one session sees it: its own relation first, then its partitions by OID."""

    table: TableName
    oid: int
    relations: tuple[Relation, ...]

    @property
    def leaves(self) -> tuple[Relation, ...]:
        """The relations that hold rows."""
        return tuple(relation for relation in self.relations if relation.kind != ROOT_KIND)


def images_of(rows: Iterable[Row]) -> dict[TableName, Image]:
    """The tables that `IMAGE` found, by name."""
    trees: dict[int, list[Relation]] = {}
    for root, oid, schema, name, kind, seen_file, file, columns in rows:
        has_file = kind != ROOT_KIND
        relation = Relation(
            oid,
            schema,
            name,
            kind,
            seen_file if has_file else None,
            file if has_file else None,
            tuple(columns),
        )
        trees.setdefault(root, []).append(relation)
    images = (_image(root, relations) for root, relations in trees.items())
    return {image.table: image for image in images}


def _image(root: int, relations: list[Relation]) -> Image:
    relations.sort(key=lambda relation: (relation.oid != root, relation.oid))
    own = relations[0]
    return Image(TableName(own.schema, own.name), root, tuple(relations))


def difference(seen: Image | None, now: Image | None) -> str:
    """Why rows read under the snapshot would be wrong, in words; empty where they are right.

    `seen` is the snapshot's image of a table, `now` a fresh session's; None: it is not there.
    """
    if seen is None or now is None:
        return "" if seen is now else "the table was dropped, made or renamed"
    if seen.oid != now.oid:
        return "the table was dropped and made anew"
    before, after = _by_oid(seen), _by_oid(now)
    if before.keys() != after.keys():
        return "a partition was attached, detached or dropped"
    changes = (_change(relation, after[oid]) for oid, relation in before.items())
    return next(filter(None, changes), "")


def _change(seen: Relation, now: Relation) -> str:
    if seen.columns != now.columns:
        return f"{seen.schema}.{seen.name} has other columns now"
    if not seen.seen_file == seen.file == now.file:
        return f"{seen.schema}.{seen.name} was rewritten or truncated"
    return ""


def _by_oid(image: Image) -> Mapping[int, Relation]:
    return {relation.oid: relation for relation in image.relations}
