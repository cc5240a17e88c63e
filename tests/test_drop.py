"""`tailrace drop`: what goes, what stays, and when nothing may go."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configured import make_configuration
from databases import Database
from engine.cli.application import main
from engine.kinds import record_configuration
from engine.model.errors import LeaseHeld
from engine.servers.servers import EmbeddedS3
from engine.sources.postgres.giving_up import Held, Holdings
from live_engine import LiveEngine
from terminal import seated

NAME = "tailrace"


@pytest.fixture
def file(database: Database, aws_environment: EmbeddedS3, bucket: str, tmp_path: Path) -> Path:
    """A configuration of real servers, with one table."""
    database.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    path = tmp_path / "tailrace.toml"
    path.write_text(
        f'[source]\ndsn = "{database.dsn}"\nslot = "{database.name}"\nsnapshot = "never"\n'
        f'[destination]\nbucket = "{bucket}"\nprefix = "shop"\nregion = "us-east-1"\n'
        f'endpoint_url = "{aws_environment.endpoint_url}"\n[http]\nlisten = "off"\n'
    )
    return path


def make_slot(database: Database, plugin: str = "pgoutput", name: str = "") -> None:
    database.execute(
        f"SELECT pg_create_logical_replication_slot('{name or database.name}', '{plugin}')"
    )


def drop_slot(database: Database, name: str) -> None:
    database.execute(f"SELECT pg_drop_replication_slot('{name}')")


def publish(database: Database, what: str = "TABLE orders") -> None:
    database.execute(
        f"CREATE PUBLICATION {NAME} FOR {what} WITH (publish_via_partition_root = true)"
    )


def there(database: Database) -> tuple[bool, bool]:
    """Whether slot and publication are there."""
    [[slot]] = database.execute(
        f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{database.name}'"
    )
    [[publication]] = database.execute("SELECT count(*) FROM pg_publication")
    return bool(slot), bool(publication)


def tailrace(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "engine", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.timeout(300)
def test_a_pipeline_is_given_up_and_its_bucket_stays_whole(
    file: Path, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("run", "--until-caught-up", "-c", str(file))
    first = tailrace(*run)
    database.execute("INSERT INTO orders SELECT generate_series(1, 100)")
    second = tailrace(*run)
    made = there(database)

    code = main(["drop", "--yes", "-c", str(file)])
    told = capsys.readouterr().out
    again = main(["drop", "-c", str(file), "--yes"])
    told_again = capsys.readouterr().out
    verdict = main(["verify", "--depth", "full", "--json", "-c", str(file)])
    proved = json.loads(capsys.readouterr().out)
    started = tailrace(*run)

    assert (first.returncode, second.returncode, made) == (0, 0, (True, True)), second.stderr
    assert (code, there(database)) == (0, (False, False))
    assert f'slot "{database.name}" will be dropped: it keeps ' in told
    assert 'publication "tailrace" of 1 table will be dropped' in told
    assert "everything stays: objects, journal" in told
    assert f"\nnext: tailrace verify --depth full -c {file}" in told
    assert again == 0
    assert told_again.count("is gone already") == 2
    assert "nothing is there to be dropped" in told_again
    assert (verdict, proved["rows"]) == (0, 100)
    # Whoever starts it again by mistake is told, and nothing is made anew behind their back.
    assert started.returncode == 70
    assert f"there is no replication slot '{database.name}'" in started.stderr
    assert "--accept-gap" in started.stderr
    assert there(database) == (False, False)


async def test_nothing_is_dropped_while_an_engine_reads_the_slot(
    file: Path, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    async with LiveEngine(database).living():
        code = await asyncio.to_thread(main, ["drop", "--yes", "-c", str(file)])
        complaint = capsys.readouterr().err
        as_json = await asyncio.to_thread(main, ["drop", "--yes", "--json", "-c", str(file)])
        still = there(database)

    told = json.loads(capsys.readouterr().out)
    assert (code, as_json, still) == (1, 1, (True, True))
    assert told["dropped"] == []
    assert "is being read by process" in told["refused"]
    assert "is being read by process" in complaint
    assert "Stop it for good" in complaint


async def test_a_slot_that_is_taken_after_the_look_is_not_dropped(database: Database) -> None:
    database.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    make_slot(database)
    publish(database)
    held = await holdings(database).look()

    async with LiveEngine(database).living():
        with pytest.raises(LeaseHeld):
            await holdings(database).drop(held)

    assert there(database) == (True, True)


@pytest.mark.parametrize(("typed", "code"), [("nothing like it", 1), ("", 0)])
def test_in_a_terminal_the_name_has_to_be_typed(
    file: Path, database: Database, typed: str, code: int
) -> None:
    make_slot(database)
    publish(database)
    environment = {**os.environ, "TERM": "dumb"}

    with seated("drop", "-c", str(file), environment=environment) as seat:
        seat.sees("to go on")
        seat.types(f"{typed or database.name}\n")
        ended = seat.leaves()

    assert ended == code, seat.text
    assert there(database) == ((True, True) if code else (False, False))


def test_without_a_terminal_or_yes_nothing_is_dropped(
    file: Path, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    make_slot(database)

    code = main(["drop", "-c", str(file)])
    as_json = main(["drop", "--json", "-c", str(file)])

    assert (code, as_json) == (2, 2)
    assert "add --yes" in capsys.readouterr().err
    assert there(database) == (True, False)


def test_json_is_one_object(
    file: Path, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    make_slot(database)

    code = main(["drop", "--json", "--yes", "-c", str(file)])

    assert code == 0
    assert json.loads(capsys.readouterr().out) == {
        "dropped": [{"kind": "slot", "name": database.name}],
        "kept": None,
        "refused": None,
    }


def test_a_slot_of_somebody_else_is_refused(
    file: Path, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    make_slot(database, plugin="test_decoding")

    code = main(["drop", "--yes", "-c", str(file)])

    assert code == 78
    assert "uses the plugin test_decoding" in capsys.readouterr().err
    assert there(database) == (True, False)


# --- whose the publication is


def holdings(database: Database) -> Holdings:
    return Holdings(database.dsn, database.name, record_configuration(make_configuration()))


async def looked(database: Database, *statements: str) -> Held:
    database.execute("CREATE TABLE orders (id integer PRIMARY KEY)")
    database.execute("CREATE SCHEMA other")
    database.execute("CREATE TABLE other.orders (id integer PRIMARY KEY)")
    for statement in statements:
        database.execute(statement)
    return await holdings(database).look()


VIA_ROOT = "WITH (publish_via_partition_root = true)"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (f"CREATE PUBLICATION tailrace FOR TABLE orders {VIA_ROOT}", ""),
        (f"CREATE PUBLICATION tailrace FOR ALL TABLES {VIA_ROOT}", "no start made it"),
        (f"CREATE PUBLICATION tailrace FOR TABLES IN SCHEMA public {VIA_ROOT}", "no start made"),
        ("CREATE PUBLICATION tailrace FOR TABLE orders", "its settings are not those"),
        (
            f"CREATE PUBLICATION tailrace FOR TABLE orders, other.orders {VIA_ROOT}",
            "does not name, such as other.orders",
        ),
    ],
)
async def test_a_publication_goes_only_where_it_looks_as_a_start_makes_it(
    database: Database, statement: str, reason: str
) -> None:
    held = await looked(database, statement)

    assert held.drops_publication == (not reason)
    assert reason in held.kept_reason
    assert held.publication_statement == 'DROP PUBLICATION "tailrace"'


async def test_a_publication_that_another_slot_may_need_stays(database: Database) -> None:
    other = f"{database.name}_b"
    try:
        make_slot(database, name=other)
        held = await looked(database, f"CREATE PUBLICATION tailrace FOR TABLE orders {VIA_ROOT}")
        await holdings(database).drop(held)
    finally:
        drop_slot(database, other)

    assert held.kept_reason == f"another slot of this database may be read through it: {other}"
    assert there(database) == (False, True)


async def test_the_publication_of_another_role_stays(database: Database) -> None:
    role = f"{database.name}_reader"
    held: Any = None
    database.execute(f"CREATE ROLE {role} LOGIN REPLICATION")
    try:
        await looked(database, f"CREATE PUBLICATION tailrace FOR TABLE orders {VIA_ROOT}")
        configuration = record_configuration(make_configuration())
        dsn = f"{database.dsn} user={role}"
        held = await Holdings(dsn, database.name, configuration).look()
    finally:
        database.execute(f"DROP ROLE {role}")

    assert held.kept_reason == "it belongs to another role"
