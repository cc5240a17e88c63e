"""A database of a test's own, on a server that the whole session shares."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from engine.servers.servers import EmbeddedPostgres

# A physical slot belongs to no database: a test that makes one names it after its own.
_DROP_SLOTS = """
    SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
    WHERE database = %(name)s OR slot_name = %(name)s
"""
# Waits until each backend is gone: a slot whose walsender still ends cannot be dropped.
_END_BACKENDS = """
    SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = %s
"""


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database. Slots and connections on it may be left behind: its end removes them."""

    server: EmbeddedPostgres
    name: str

    @property
    def dsn(self) -> str:
        return self.server.dsn_of(self.name)

    def connect(self, *, autocommit: bool = True) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.dsn, autocommit=autocommit)

    def execute(self, statement: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own and return its rows, if it has any."""
        with self.connect() as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def fresh_database(
    server: EmbeddedPostgres, *, encoding: LiteralString = "UTF8"
) -> Iterator[Database]:
    """Create a database on a server, and remove it with its slots and connections."""
    name = f"t_{secrets.token_hex(6)}"
    create = sql.SQL("CREATE DATABASE {} ENCODING {} TEMPLATE template0")
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(create.format(sql.Identifier(name), sql.Literal(encoding)))
    try:
        yield Database(server, name)
    finally:
        if server.is_running:
            _remove(server, name)


def _remove(server: EmbeddedPostgres, name: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        # An engine that was killed while it connected is let in no more.
        close = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name))
        connection.execute(close)
        connection.execute(_END_BACKENDS, (name,))
        connection.execute(_DROP_SLOTS, {"name": name})
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        connection.execute(drop)


def waiting_for_locks(database: Database) -> list[tuple[Any, ...]]:
    """The sessions of this database that wait for a lock: an autovacuum of another one may, too."""
    return database.execute(
        "SELECT pid, query FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND datname = current_database()"
    )


def members(database: Database) -> set[str]:
    """What the publication has by name."""
    rows = database.execute(
        "SELECT prrelid::regclass::text FROM pg_publication_rel r"
        " JOIN pg_publication p ON p.oid = r.prpubid WHERE pubname = 'tailrace'"
    )
    return {name for (name,) in rows}


@contextmanager
def reader_role(database: Database) -> Iterator[str]:
    """A role that may replicate, and nothing else."""
    role = f"r_{secrets.token_hex(4)}"
    with database.connect() as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN REPLICATION".encode())
    try:
        yield role
    finally:
        drop_role(database, role)


def drop_role(database: Database, role: str) -> None:
    """Take the role away, with its sessions and what it may do in this database."""
    with database.connect() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = %s",
            (role,),
        )
        connection.execute(f'DROP OWNED BY "{role}"'.encode())
        connection.execute(f'DROP ROLE "{role}"'.encode())


def dsn_as(database: Database, role: str) -> str:
    """The dsn of this role's sessions."""
    return database.server.dsn_of(database.name, user=role)
