"""Makes the row codec's golden vectors anew, from a real PostgreSQL.

    python tests/rowcodec_capture.py

runs `rowcodec_vectors/source.sql` on a server of its own, reads the replication stream with the
session settings that the engine uses, and writes `frames.json` (the frames in hexadecimal, what the
catalog says of the relations, and each table's rows as COPY prints them at the end) and, for each
envelope, the lines that the codec makes of them. Look at the difference before committing it: the
lines may change only together with CODEC_VERSION.
"""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from psycopg import pq, sql

from engine.servers.postgres_server import EmbeddedPostgres
from rowcodec_golden import ENVELOPES, VECTORS, golden_lines

SESSION = (
    "-c lc_monetary=C -c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=iso_8601 "
    "-c extra_float_digits=3 -c bytea_output=hex"
)
RELATIONS = """
    SELECT c.oid::int, n.nspname, c.relname, c.relreplident::text,
           coalesce((SELECT array_agg(a.attname::text ORDER BY k.place)
                     FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(number, place)
                     JOIN pg_attribute a ON a.attnum = k.number AND a.attrelid = c.oid
                     WHERE i.indrelid = c.oid
                     AND CASE c.relreplident
                         WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END),
                    '{}')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname IN ('public', 'odd "schema"') ORDER BY c.oid
"""
# A domain goes by its base type, an enum's or composite's array by text[].
COLUMNS = """
    WITH RECURSIVE base(oid, type, kind, category) AS (
        SELECT oid, oid, typtype, typcategory FROM pg_type
        UNION ALL
        SELECT base.oid, t.typbasetype, u.typtype, u.typcategory
        FROM base JOIN pg_type t ON t.oid = base.type JOIN pg_type u ON u.oid = t.typbasetype
        WHERE base.kind = 'd')
    SELECT a.attname,
           CASE WHEN base.type >= 16384 AND base.category = 'A' THEN 1009 ELSE base.type END::int
    FROM pg_attribute a JOIN base ON base.oid = a.atttypid AND base.kind <> 'd'
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""


def statements() -> list[str]:
    text = (VECTORS / "source.sql").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("--")]
    return [one for one in "\n".join(lines).split(";\n") if one.strip()]


def describe(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    relations = {}
    for oid, schema, table, identity, key in connection.execute(RELATIONS).fetchall():
        columns = [
            (name, type_oid, identity == "f" or name in key)
            for name, type_oid in connection.execute(COLUMNS, (oid,)).fetchall()
        ]
        relations[oid] = {
            "schema": schema,
            "table": table,
            "key": key,
            "columns": columns,
            "copy": copy_rows(connection, schema, table),
        }
    return relations


def copy_rows(connection: psycopg.Connection[Any], schema: str, table: str) -> list[str]:
    query = sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(schema, table))
    with connection.cursor().copy(query) as copy:
        return [bytes(row).hex() for row in copy]


def read_stream(dsn: str, until: int) -> list[str]:
    """All XLogData payloads up to the end of the WAL, in hexadecimal."""
    frames: list[str] = []
    connection = psycopg.connect(dsn, replication="database", autocommit=True, options=SESSION)
    # Not the connection's own `with`: that would send a COMMIT into the stream.
    with closing(connection) as stream:
        result = stream.pgconn.exec_(
            b"START_REPLICATION SLOT golden LOGICAL 0/0 "
            b"(proto_version '1', publication_names 'golden')"
        )
        assert result.status == pq.ExecStatus.COPY_BOTH, result.error_message
        while True:
            size, data = stream.pgconn.get_copy_data(0)
            assert size > 0
            frame = bytes(data)
            if frame[:1] == b"w":
                frames.append(frame.hex())
            elif int.from_bytes(frame[1:9], "big") >= until:
                return frames


def capture() -> dict[str, Any]:
    with (
        EmbeddedPostgres(settings={"wal_sender_timeout": "2s"}) as server,
        psycopg.connect(server.dsn, autocommit=True, options=SESSION) as connection,
    ):
        connection.execute("CREATE PUBLICATION golden FOR ALL TABLES")
        connection.execute("SELECT pg_create_logical_replication_slot('golden', 'pgoutput')")
        for statement in statements():
            connection.execute(statement.encode())
        row = connection.execute("SELECT (pg_current_wal_lsn() - '0/0')::bigint").fetchone()
        assert row is not None
        frames = read_stream(server.dsn, row[0])
        version = connection.execute("SHOW server_version").fetchone()
        assert version is not None
        return {"server": version[0], "relations": describe(connection), "frames": frames}


def write(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    print(path)  # noqa: T201


if __name__ == "__main__":
    captured = capture()
    write(VECTORS / "frames.json", (json.dumps(captured, indent=0) + "\n").encode())
    for envelope in ENVELOPES:
        write(VECTORS / f"{envelope}.ndjson", golden_lines(envelope))
