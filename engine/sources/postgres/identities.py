"""Replica identities: which columns tell a table's rows apart, and whether they are sent.

Generated columns are not sent, unless a publication of PostgreSQL 18 says so for stored ones. A key
that has one tells no rows apart in the stream. Up to 17 the server says nothing of that. Since 18
it refuses UPDATE and DELETE of such a table once it is published, and likewise under FULL, where
every column belongs to the identity (15 and 18: tried).

Invariant: SQL text alone. Each piece is of a table `c`, in a query whose first CTE is `ASKED`.
"""

from typing import Final

ASKED: Final = """asked AS (SELECT %s::pg_catalog.name AS publication),
generated AS MATERIALIZED (
  SELECT DISTINCT a.attrelid FROM pg_catalog.pg_attribute a
  WHERE a.attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2
    AND a.attgenerated OPERATOR(pg_catalog.<>) ''::pg_catalog."char"
)"""
"""Its parameter is the publication's name; empty for one that is yet to be made."""

# Nearly no table has generated columns: the others are asked nothing.
_IS_GENERATED: Final = "c.oid OPERATOR(pg_catalog.=) ANY (SELECT generated.attrelid FROM generated)"

# A column `a` that the publication does not send, whatever it lists.
_UNSENT: Final = """(a.attgenerated OPERATOR(pg_catalog.<>) ''::pg_catalog."char"
       AND NOT (a.attgenerated OPERATOR(pg_catalog.=) 's'::pg_catalog."char" AND EXISTS (
         SELECT FROM pg_catalog.pg_publication sender
         WHERE sender.pubname OPERATOR(pg_catalog.=) (SELECT asked.publication FROM asked)
           AND pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb(sender), 'pubgencols')
               OPERATOR(pg_catalog.=) 's')))"""

_KEY: Final = """SELECT a.attnum FROM pg_catalog.pg_index i
       JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
       WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid
         AND (CASE WHEN c.relreplident OPERATOR(pg_catalog.=) 'd'::pg_catalog."char"
                   THEN i.indisprimary
                   ELSE c.relreplident OPERATOR(pg_catalog.=) 'i'::pg_catalog."char"
                    AND i.indisreplident END)
         AND pg_catalog.array_position(i.indkey::pg_catalog.int2[], a.attnum)
             OPERATOR(pg_catalog.<) i.indnkeyatts"""

GENERATED_REFUSED_FROM: Final = 180000
"""Since this version the server refuses to change rows where an identity has unsent columns."""

KEY_COLUMNS: Final = f"""CASE WHEN {_IS_GENERATED} OR EXISTS (
         SELECT FROM pg_catalog.pg_publication_rel listing
         WHERE listing.prrelid OPERATOR(pg_catalog.=) c.oid
           AND pg_catalog.jsonb_extract_path_text(pg_catalog.to_jsonb(listing), 'prattrs')
               IS NOT NULL)
       THEN ARRAY({_KEY} ORDER BY a.attnum) ELSE '{{}}' END"""
"""The numbers of the columns that are the key, where some may not be sent; none under FULL."""

KEY_UNSENT: Final = f"""CASE WHEN {_IS_GENERATED}
       THEN ARRAY({_KEY} AND {_UNSENT} ORDER BY a.attnum) ELSE '{{}}' END"""
"""Those of them that are generated, and not sent."""

HAS_UNSENT: Final = f"""({_IS_GENERATED} AND (EXISTS ({_KEY} AND {_UNSENT}) OR (
       c.relreplident OPERATOR(pg_catalog.=) 'f'::pg_catalog."char"
       AND pg_catalog.current_setting('server_version_num')::pg_catalog.int4
           OPERATOR(pg_catalog.>=) {GENERATED_REFUSED_FROM}
       AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
         WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid
           AND a.attnum OPERATOR(pg_catalog.>) 0::pg_catalog.int2 AND {_UNSENT}))))"""
"""Whether rows cannot be told apart by what is sent, or the server refuses to change them."""
