"""`check` is green exactly when `run` starts: situations of real servers, checked and started.

A start that ends gives the same sentence and the same exit code as the check's first failure.
"""

import re
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from psycopg.conninfo import make_conninfo

from databases import Database, dsn_as, fresh_database
from engine import app
from engine.config import Configuration, load
from engine.model import check_code as common
from engine.model.check_code import CheckCode
from engine.model.errors import TailraceError
from engine.model.trial import CheckStep
from engine.pipeline.stop import StopSignal
from engine.servers.server_process import free_ports
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3
from engine.sources.postgres import check_codes as codes
from terminal import shown, too_wide

pytestmark = pytest.mark.timeout(300)

NO_FILE: Final = Path("/dev/null")


@dataclass
class Place:
    """A database, a bucket, and what the configuration says of both."""

    database: Database
    keys: dict[str, str]
    roles: list[str] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)

    def configuration(self) -> Configuration:
        given = {f"TAILRACE_{key}": value for key, value in self.keys.items()}
        return load(NO_FILE, given).configuration

    def execute(self, *statements: str) -> None:
        with self.database.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def become(self, attributes: str) -> str:
        """The engine logs in as a role of its own."""
        role = f"r_{secrets.token_hex(4)}"
        self.execute(f"CREATE ROLE {role} LOGIN {attributes}")
        self.roles.append(role)
        self.keys["SOURCE__DSN"] = dsn_as(self.database, role)
        return role

    async def check(self) -> list[CheckStep]:
        return [step async for step in app.check(self.configuration())]

    async def run(self) -> TailraceError | None:
        """What a run to the end of the log ends with."""
        try:
            await app.run(self.configuration(), stop=StopSignal(), until_caught_up=True)
        except TailraceError as error:
            return error
        return None

    async def ran(self) -> None:
        """A first run, that ended well."""
        assert await self.run() is None

    def close(self) -> None:
        for each in self.held:
            each.close()
        for role in self.roles:
            self.execute(
                f"SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
                f" WHERE usename = '{role}'",
                f"DROP OWNED BY {role}",
                f"DROP ROLE {role}",
            )


def keys_of(database: Database, s3: EmbeddedS3, bucket: str, prefix: str) -> dict[str, str]:
    return {
        "SOURCE__DSN": database.dsn,
        "SOURCE__SLOT": database.name,
        "SOURCE__SNAPSHOT": "never",
        "DESTINATION__BUCKET": bucket,
        "DESTINATION__PREFIX": prefix,
        "DESTINATION__REGION": "us-east-1",
        "DESTINATION__ENDPOINT_URL": s3.endpoint_url,
        "ENGINE__APPEND_INTERVAL": "50ms",
        "HTTP__LISTEN": "off",
    }


@pytest.fixture
def place(
    database: Database, aws_environment: EmbeddedS3, shared_bucket: str, prefix: str
) -> Iterator[Place]:
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, note text)")
    database.execute("INSERT INTO orders VALUES (1, 'a')")
    place = Place(database, keys_of(database, aws_environment, shared_bucket, prefix))
    try:
        yield place
    finally:
        place.close()


def which(text: str) -> str:
    """A start lists another folder of the bucket first than a check."""
    return re.sub(r"^list \S+ ", "list ", text)


async def judged(place: Place) -> tuple[list[CheckStep], TailraceError | None]:
    """What a check says, and what a start then ends with: the same."""
    steps = await place.check()
    error = await place.run()
    failures = [step for step in steps if step.state == "failure"]
    if error is None:
        assert not failures, failures
    else:
        told = [(which(step.detail), step.hint, step.exit_code) for step in failures]
        assert told, f"check is green, and a start ends: {error}"
        assert (which(str(error)), error.hint, error.exit_code) in told
    return steps, error


Making = Callable[[Place], None]


# --- a start ends


def nobody_listens(place: Place) -> None:
    (port,) = free_ports(1)
    place.keys["SOURCE__DSN"] = f"host=127.0.0.1 port={port} dbname=shop user=x"


def no_such_database(place: Place) -> None:
    place.keys["SOURCE__DSN"] = make_conninfo(place.database.dsn, dbname="nowhere")


def may_not_replicate(place: Place) -> None:
    place.become("")


def may_not_create(place: Place) -> None:
    place.become("REPLICATION")


def owns_no_table(place: Place) -> None:
    role = place.become("REPLICATION")
    place.execute(f'GRANT CREATE ON DATABASE "{place.database.name}" TO {role}')


def nothing_matches(place: Place) -> None:
    place.keys["SOURCE__TABLES"] = '["public.ordres"]'


def only_keyless(place: Place) -> None:
    place.execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey")


def physical_slot(place: Place) -> None:
    place.execute(f"SELECT pg_create_physical_replication_slot('{place.database.name}')")


def two_phase_slot(place: Place) -> None:
    name = place.database.name
    place.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput', false, true)")


def may_not_log_in(place: Place) -> None:
    role = place.become("REPLICATION")
    place.execute(f"ALTER ROLE {role} NOLOGIN")


def no_plain_session_for_the_role(place: Place) -> None:
    place.become("REPLICATION CONNECTION LIMIT 0")


def no_plain_session_in_the_database(place: Place) -> None:
    place.become("REPLICATION")
    place.execute(f'ALTER DATABASE "{place.database.name}" CONNECTION LIMIT 0')


def one_session_where_a_publication_is_made(place: Place) -> None:
    role = place.become("REPLICATION CONNECTION LIMIT 1")
    place.execute(
        f'GRANT CREATE ON DATABASE "{place.database.name}" TO {role}',
        f"ALTER TABLE orders OWNER TO {role}",
    )


def rows_may_not_be_read(place: Place) -> None:
    place.execute("CREATE PUBLICATION tailrace FOR TABLE orders")
    place.become("REPLICATION")
    place.keys["SOURCE__SNAPSHOT"] = "initial"


def rows_are_hidden(place: Place) -> None:
    place.execute(
        "CREATE PUBLICATION tailrace FOR TABLE orders",
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
        f"GRANT SELECT ON orders TO {place.become('REPLICATION')}",
    )
    place.keys["SOURCE__SNAPSHOT"] = "initial"


def column_called_as_a_field(place: Place) -> None:
    place.execute("ALTER TABLE orders ADD COLUMN _op text")
    place.keys["DESTINATION__ENVELOPE"] = "flat"


def misspelt_condition(place: Place) -> None:
    place.keys["SOURCE__TABLE"] = '[{ match = "public.orders", where = "ordre = 1" }]'


def port_in_use(place: Place) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    place.held.append(taken)
    place.keys["HTTP__LISTEN"] = f"127.0.0.1:{taken.getsockname()[1]}"


def no_such_bucket(place: Place) -> None:
    place.keys["DESTINATION__BUCKET"] = "nowhere"


def other_condition_of_an_old_publication(place: Place) -> None:
    place.execute("CREATE PUBLICATION tailrace FOR TABLE orders WHERE (id > 5)")


def large_values_and_a_condition(place: Place) -> None:
    place.keys["SOURCE__TABLE"] = '[{ match = "public.orders", where = "id > 0" }]'


def large_values_of_a_partition_and_a_condition(place: Place) -> None:
    place.keys["SOURCE__TABLE"] = '[{ match = "public.log", where = "id > 0" }]'
    place.execute(
        "CREATE TABLE log (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)",
        "CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (9)",
    )


def whole_rows_and_a_condition(place: Place) -> None:
    large_values_and_a_condition(place)
    place.execute("ALTER TABLE orders REPLICA IDENTITY FULL")


REFUSED: Final[tuple[tuple[Making, CheckCode, int], ...]] = (
    (nobody_listens, common.SOURCE, 69),
    (no_such_database, common.SOURCE, 78),
    (may_not_replicate, common.SOURCE, 78),
    (may_not_log_in, common.SOURCE, 78),
    (no_plain_session_for_the_role, codes.CONNECTIONS, 69),
    (no_plain_session_in_the_database, codes.CONNECTIONS, 69),
    (one_session_where_a_publication_is_made, codes.CONNECTIONS, 69),
    (may_not_create, codes.PUBLICATION, 78),
    (owns_no_table, codes.PUBLICATION, 78),
    (nothing_matches, codes.TABLES, 78),
    (only_keyless, codes.IDENTITY, 78),
    (physical_slot, codes.SLOT, 78),
    (two_phase_slot, codes.SLOT, 78),
    (rows_may_not_be_read, codes.READING, 78),
    (rows_are_hidden, codes.READING, 78),
    (column_called_as_a_field, codes.NAMES, 78),
    (misspelt_condition, codes.CONDITIONS, 78),
    (port_in_use, common.PORT, 78),
    (no_such_bucket, common.BUCKET, 78),
)


_WITH_CONDITIONS: Final = frozenset(
    {
        misspelt_condition,
        other_condition_of_an_old_publication,
        large_values_and_a_condition,
        large_values_of_a_partition_and_a_condition,
        whole_rows_and_a_condition,
    }
)


def known_by(case: tuple[Making, *tuple[object, ...]]) -> object:
    """A case by its making's name; conditions of a publication came with PostgreSQL 15."""
    is_of_15 = case[0] in _WITH_CONDITIONS
    return pytest.param(*case, id=case[0].__name__, marks=pytest.mark.since(15 if is_of_15 else 14))


@pytest.mark.parametrize(("make", "code", "exit_code"), [known_by(case) for case in REFUSED])
async def test_check_fails_where_a_first_start_ends(
    place: Place, make: Making, code: CheckCode, exit_code: int
) -> None:
    make(place)

    steps, error = await judged(place)

    assert error is not None
    assert error.exit_code == exit_code
    [failure] = [step for step in steps if step.state == "failure"]
    assert failure.code == code


# --- a first start works


def nothing_special(_: Place) -> None:
    """Everything is made by the first run."""


def made_by_the_owner(place: Place) -> None:
    place.execute("CREATE PUBLICATION tailrace FOR TABLE orders")
    place.become("REPLICATION")


def keyless_beside(place: Place) -> None:
    place.execute("CREATE TABLE events (n int)")


def used_slot(place: Place) -> None:
    name = place.database.name
    place.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")


def without_deletes(place: Place) -> None:
    place.execute("CREATE PUBLICATION tailrace FOR TABLE orders WITH (publish = 'insert, update')")


def table_left_out(place: Place) -> None:
    place.execute("CREATE TABLE lines (id int PRIMARY KEY)")
    place.execute("CREATE PUBLICATION tailrace FOR TABLE orders")


def unlogged_partition(place: Place) -> None:
    place.execute(
        "CREATE TABLE log (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE UNLOGGED TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (9)",
    )


def misspelt_column(place: Place) -> None:
    place.keys["SOURCE__TABLE"] = '[{ match = "public.orders", exclude = ["nota"] }]'


STARTS: Final[tuple[tuple[Making, tuple[CheckCode, ...]], ...]] = (
    (nothing_special, ()),
    (made_by_the_owner, ()),
    (keyless_beside, (codes.IDENTITY,)),
    (used_slot, (codes.SLOT,)),
    (without_deletes, (codes.PUBLISHED,)),
    (table_left_out, (codes.PUBLISHED,)),
    (unlogged_partition, (codes.UNLOGGED,)),
    (misspelt_column, (codes.RULE_COLUMNS,)),
    (other_condition_of_an_old_publication, (codes.FILTERS,)),
    (large_values_and_a_condition, (codes.FILTERS,)),
    (large_values_of_a_partition_and_a_condition, (codes.FILTERS,)),
    (whole_rows_and_a_condition, ()),
)


@pytest.mark.parametrize(("make", "warned"), [known_by(case) for case in STARTS])
async def test_check_is_green_where_a_first_start_works(
    place: Place, make: Making, warned: tuple[CheckCode, ...]
) -> None:
    make(place)

    steps, error = await judged(place)

    assert error is None
    assert tuple(step.code for step in steps if step.state == "warning") == warned


# --- a later start


async def test_a_pipeline_that_ran_is_checked_and_goes_on(place: Place) -> None:
    await place.ran()

    steps, error = await judged(place)

    assert error is None
    assert [step for step in steps if step.state != "ok"] == []


async def test_tables_that_are_all_gone_stop_no_later_start(place: Place) -> None:
    await place.ran()
    place.execute("DROP TABLE orders")

    steps, error = await judged(place)

    assert error is None
    assert codes.TABLES in [step.code for step in steps if step.state == "warning"]


async def test_a_slot_that_was_dropped_fails_both(place: Place) -> None:
    await place.ran()
    place.execute(f"SELECT pg_drop_replication_slot('{place.database.name}')")

    steps, error = await judged(place)

    assert error is not None
    assert error.exit_code == 70
    assert [step.code for step in steps if step.state == "failure"] == [codes.SLOT]


async def test_a_slot_that_was_moved_fails_both(place: Place) -> None:
    await place.ran()
    place.execute("INSERT INTO orders VALUES (2, 'b')")
    name = place.database.name
    place.execute(f"SELECT pg_replication_slot_advance('{name}', pg_current_wal_lsn())")

    steps, error = await judged(place)

    assert error is not None
    assert error.exit_code == 70
    assert [step.code for step in steps if step.state == "failure"] == [common.POSITION]


async def test_another_databases_prefix_fails_both(place: Place) -> None:
    await place.ran()
    with fresh_database(place.database.server) as other:
        other.execute("CREATE TABLE orders (id int PRIMARY KEY)")
        place.keys |= {"SOURCE__DSN": other.dsn, "SOURCE__SLOT": other.name}

        steps, error = await judged(place)

    assert error is not None
    assert error.exit_code == 70
    assert [step.code for step in steps if step.state == "failure"] == [common.JOURNAL]


async def test_a_prefix_inside_another_pipelines_fails_both(place: Place) -> None:
    await place.ran()
    place.keys["DESTINATION__PREFIX"] += "/inner"

    steps, error = await judged(place)

    assert error is not None
    assert error.exit_code == 70
    assert [step.code for step in steps if step.state == "failure"] == [common.PREFIX]


async def test_an_aws_profile_that_is_not_there_fails_both(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nowhere")

    steps, error = await judged(place)

    assert error is not None
    assert (error.exit_code, "AWS_PROFILE" in error.hint) == (78, True)
    assert [step.code for step in steps if step.state == "failure"] == [common.BUCKET]


# --- how it looks


def test_every_line_fits_a_terminal_and_what_is_not_well_says_what_to_do(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyless_beside(place)
    place.become("REPLICATION")
    for key, value in place.keys.items():
        monkeypatch.setenv(f"TAILRACE_{key}", value)

    screen = shown(monkeypatch, "check", "-c", str(NO_FILE))

    assert screen.code == 78
    assert too_wide(screen.lines) == []
    text = " ".join(screen.out.split())
    assert "warn TR-PG-009 replica identity: 1 table without one" in text
    assert "FAIL TR-PG-010 publication: there is no publication 'tailrace'" in text
    assert "to do: run as the tables' owner: CREATE PUBLICATION" in text
    assert "docs/checks.md#tr-pg-010" in text
    assert screen.lines[-3:] == [
        "warned: TR-PG-009",
        "",
        "next: mend what failed, then `tailrace check` again",
    ]


# --- what a server's settings decide


async def test_settings_of_the_server_that_leave_no_room_fail_both(
    aws_environment: EmbeddedS3, shared_bucket: str, prefix: str
) -> None:
    settings = {**FAST_SETTINGS, "max_replication_slots": "1", "max_prepared_transactions": "1"}
    with EmbeddedPostgres(settings=settings) as server, fresh_database(server) as database:
        database.execute("CREATE TABLE orders (id int PRIMARY KEY)")
        place = Place(database, keys_of(database, aws_environment, shared_bucket, prefix))
        with database.connect(autocommit=False) as connection:
            connection.execute("INSERT INTO orders VALUES (1)")
            connection.execute("PREPARE TRANSACTION 'forgotten'")
        delayed = {step.code: step for step in await place.check()}
        place.execute("ROLLBACK PREPARED 'forgotten'")
        place.execute("SELECT pg_create_physical_replication_slot('theirs')")
        used, error_used = await judged(place)
        place.execute("SELECT pg_drop_replication_slot('theirs')")
        server.stop()
        server.settings["wal_level"] = "replica"
        server.start()
        replica, error_replica = await judged(place)

    assert delayed[codes.TRANSACTIONS].state == "warning"
    assert "ROLLBACK PREPARED 'forgotten'" in delayed[codes.TRANSACTIONS].hint
    assert [step.code for step in used if step.state == "failure"] == [codes.SLOTS]
    assert [step.code for step in replica if step.state == "failure"] == [codes.WAL_LEVEL]
    assert error_used is not None
    assert error_replica is not None
    assert (error_used.exit_code, error_replica.exit_code) == (78, 78)
