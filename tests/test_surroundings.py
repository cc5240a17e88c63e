"""What `check` says of a server beside what stops a start: pure judges of what was read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from certificates import write_certificate
from engine.model.check_code import CheckCode
from engine.model.errors import ConfigurationError
from engine.model.record import RecordConfiguration
from engine.model.schema import TableName
from engine.model.trial import Finding
from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres
from engine.sources.postgres import check_codes as codes
from engine.sources.postgres.judges import judgements_of, refuse, server_fault
from engine.sources.postgres.session import Session
from engine.sources.postgres.situation import Server, Situation, Table, parted
from engine.sources.postgres.slot import Slot, wal_level_fault
from engine.sources.postgres.surroundings import (
    OpenTransaction,
    Surroundings,
    read_surroundings,
    surrounding_judgements,
)

ORDERS = TableName("public", "orders")
SERVER = Server(180006, "logical", False, "reader", True, 10, 3, True)
NO_SLOT = Slot(
    "tail", "", "", "", None, "", None, False, False, False, "", False, "shop", "logical"
)
A_SLOT = replace(
    NO_SLOT, type="logical", plugin="pgoutput", database="shop", wal_status="reserved",
    confirmed="0/64",
)  # fmt: skip
SITUATION = Situation(
    configuration=RecordConfiguration("tailrace", tables=("public.*",), snapshot="initial"),
    server=SERVER,
    slot=NO_SLOT,
    tables=(Table(ORDERS, False, True, True),),
    others=(),
    publication=None,
    unreadable={},
    unlogged=(),
    foreign={},
    clashes="",
    unknown_columns="",
    partly_sent=(),
    is_first=True,
)
AROUND = Surroundings(
    walsender_count_max=10,
    walsender_count=2,
    keep_mib=-1,
    idle_slot_seconds=0,
    old_snapshot_minutes=None,
    encoding="UTF8",
    tls="TLSv1.3",
    client_address="10.0.0.7",
    synchronous_names="",
    application_name="tailrace",
    is_verified=True,
)


def said(code: CheckCode, situation: Situation = SITUATION, **changes: Any) -> Finding | None:
    """What is said under that code of these surroundings; None where nothing is."""
    found = surrounding_judgements(replace(AROUND, **changes), situation)
    for judged in found:
        if judged.code == code:
            assert isinstance(judged.found, Finding)
            return judged.found
    return None


def hint_of(code: CheckCode, situation: Situation = SITUATION, **changes: Any) -> str:
    finding = said(code, situation, **changes)
    assert finding is not None
    return finding.hint


def test_nothing_is_warned_of_a_server_that_is_well() -> None:
    found = [judged.found for judged in surrounding_judgements(AROUND, SITUATION)]

    assert [each for each in found if isinstance(each, Finding) and each.hint] == []


def test_a_connection_in_the_clear_is_warned_of_unless_it_stays_on_the_machine() -> None:
    assert "sslmode=verify-full" in hint_of(codes.TLS, tls=None)
    assert not hint_of(codes.TLS, tls=None, client_address="127.0.0.1")
    assert not hint_of(codes.TLS, tls=None, client_address="::1")
    assert not hint_of(codes.TLS, tls=None, client_address=None)


def test_a_certificate_that_nobody_verifies_is_warned_of_where_somebody_may_stand_between() -> None:
    assert "sslmode=verify-full" in hint_of(codes.CERTIFICATE, is_verified=False)
    assert not hint_of(codes.CERTIFICATE)
    assert said(codes.CERTIFICATE, is_verified=False, client_address="127.0.0.1") is None
    assert said(codes.CERTIFICATE, is_verified=False, client_address=None) is None
    assert said(codes.CERTIFICATE, is_verified=False, tls=None) is None


async def test_what_libpq_verified_is_known(tmp_path: Path) -> None:
    root = tmp_path / "root.crt"
    verified = {}
    with EmbeddedPostgres.debian(15, settings=FAST_SETTINGS) as server:
        server.stop()
        write_certificate(server)
        root.write_bytes((server.data_directory / "server.crt").read_bytes())
        server.settings["ssl"] = "on"
        server.start()
        for options in (
            f"sslmode=prefer sslrootcert={root}",
            "sslmode=require",
            f"sslmode=require sslrootcert={root}",
            f"sslmode=verify-ca sslrootcert={root}",
            f"sslmode=verify-full sslrootcert={root}",
        ):
            place = f"host=localhost port={server.port} dbname=postgres user=postgres"
            async with Session(f"{place} {options}") as session:
                around = await read_surroundings(session)
            assert around.tls is not None
            verified[options.replace(f" sslrootcert={root}", " root")] = around.is_verified

    assert verified == {
        "sslmode=prefer root": False,
        "sslmode=require": False,
        "sslmode=require root": True,
        "sslmode=verify-ca root": True,
        "sslmode=verify-full root": True,
    }


def test_a_server_without_a_free_walsender_is_warned_of_unless_an_engine_has_it() -> None:
    reading = replace(SITUATION, slot=replace(A_SLOT, active_pid=7))

    assert "max_wal_senders" in hint_of(codes.WALSENDERS, walsender_count=10)
    assert not hint_of(codes.WALSENDERS, reading, walsender_count=10)


def test_the_last_walsender_is_not_enough_for_a_snapshot() -> None:
    streaming = replace(
        SITUATION, configuration=msgspec.structs.replace(SITUATION.configuration, snapshot="never")
    )

    assert "max_wal_senders" in hint_of(codes.WALSENDERS, walsender_count=9)
    assert not hint_of(codes.WALSENDERS, streaming, walsender_count=9)
    assert not hint_of(codes.WALSENDERS, walsender_count=8)


@pytest.mark.parametrize(
    ("used", "snapshot", "is_first", "is_warned"),
    [
        (8, "initial", True, False),
        (9, "initial", True, True),
        (9, "never", True, False),
        (10, "initial", False, True),
        (9, "initial", False, False),
    ],
)
def test_the_last_slot_is_not_enough_for_a_snapshot(
    used: int,
    snapshot: str,
    is_first: bool,  # noqa: FBT001 - a parameter of the test
    is_warned: bool,  # noqa: FBT001 - as above
) -> None:
    situation = replace(
        SITUATION,
        configuration=msgspec.structs.replace(SITUATION.configuration, snapshot=snapshot),
        server=replace(SERVER, slot_count=used),
        slot=NO_SLOT if is_first else A_SLOT,
        is_first=is_first,
    )

    [found] = [each.found for each in judgements_of(situation) if each.code == codes.SLOTS]

    assert isinstance(found, Finding)
    assert bool(found.hint) == is_warned


@pytest.mark.parametrize(
    ("keep_mib", "idle_seconds", "setting"),
    [(512, 0, "max_slot_wal_keep_size"), (-1, 3600, "idle_replication_slot_timeout")],
)
def test_a_slot_that_a_short_stop_would_lose_is_warned_of(
    keep_mib: int, idle_seconds: int, setting: str
) -> None:
    hint = hint_of(codes.KEPT, keep_mib=keep_mib, idle_slot_seconds=idle_seconds)

    assert f"ALTER SYSTEM SET {setting}" in hint


def test_generous_limits_of_the_slot_are_told_without_a_warning() -> None:
    finding = said(codes.KEPT, keep_mib=50 * 1024, idle_slot_seconds=7 * 86400)

    assert finding is not None
    assert not finding.hint
    assert "50.0 GiB" in finding.text


def test_transactions_that_the_slot_waits_for_are_named_with_what_ends_them() -> None:
    long = OpenTransaction(42, "batch", "shop", "", 3600)
    prepared = OpenTransaction(0, "batch", "shop", "it's", 5)

    hint = hint_of(codes.TRANSACTIONS, transactions=(long, prepared))

    assert "pg_terminate_backend(42)" in hint
    assert "ROLLBACK PREPARED 'it''s'" in hint


def test_short_transactions_and_hidden_ages_are_told_without_a_warning() -> None:
    finding = said(
        codes.TRANSACTIONS,
        transactions=(OpenTransaction(1, "a", "b", "", 2), OpenTransaction(2, "a", "b", "", None)),
    )

    assert finding is not None
    assert not finding.hint
    assert "2 open transactions" in finding.text
    assert "1 of them" in finding.text


def test_no_transaction_is_waited_for_where_the_slot_is_there() -> None:
    long = OpenTransaction(42, "batch", "shop", "", 3600)

    assert said(codes.TRANSACTIONS, replace(SITUATION, slot=A_SLOT), transactions=(long,)) is None


def test_a_lock_on_a_captured_table_delays_the_publication() -> None:
    assert hint_of(codes.LOCKS, locked=frozenset({ORDERS}))
    assert not hint_of(codes.LOCKS, locked=frozenset({TableName("other", "t")}))


def test_a_database_without_an_encoding_is_warned_of() -> None:
    finding = said(codes.ENCODING, encoding="SQL_ASCII")

    assert finding is not None
    assert "stops the engine" in finding.text
    assert "on_unrepresentable" in finding.hint


def test_a_server_that_ends_old_snapshots_is_warned_of_where_snapshots_are_taken() -> None:
    never = msgspec.structs.replace(SITUATION.configuration, snapshot="never")

    assert hint_of(codes.OLD_SNAPSHOTS, old_snapshot_minutes=60)
    assert not hint_of(codes.OLD_SNAPSHOTS, old_snapshot_minutes=-1)
    assert said(codes.OLD_SNAPSHOTS) is None
    without = replace(SITUATION, configuration=never)
    assert said(codes.OLD_SNAPSHOTS, without, old_snapshot_minutes=60) is None


# --- PostgreSQL 19, which was read about and could not be run


@pytest.mark.parametrize(
    ("wal_level", "effective", "place", "verdict"),
    [
        ("logical", None, "primary", "enough"),
        ("replica", None, "primary", "too little"),
        ("replica", "logical", "primary", "enough"),
        ("replica", "replica", "primary", "enough"),
        ("replica", "replica", "standby", "too little"),
        ("replica", "logical", "standby", "enough"),
        ("minimal", "minimal", "primary", "too little"),
    ],
)
def test_an_effective_wal_level_counts_where_there_is_one(
    wal_level: str, effective: str | None, place: str, verdict: str
) -> None:
    fault = wal_level_fault(wal_level, effective, is_standby=place == "standby")

    assert (fault is not None) == (verdict == "too little")


# --- what stops a start


def judged(situation: Situation) -> dict[CheckCode, str]:
    """The errors, by code."""
    found = judgements_of(situation)
    return {j.code: str(j.found) for j in found if not isinstance(j.found, Finding)}


def test_a_start_that_lacks_several_things_is_told_each_once() -> None:
    server = replace(SERVER, wal_level="replica", may_replicate=False, slot_count=10)
    situation = replace(SITUATION, server=server, tables=())

    assert list(judged(situation)) == [
        codes.WAL_LEVEL, codes.REPLICATION, codes.SLOTS, codes.TABLES,
    ]  # fmt: skip
    assert str(server_fault(server)) == judged(situation)[codes.WAL_LEVEL]


def test_a_slot_that_somebody_reads_without_our_journal_is_warned_of() -> None:
    situation = replace(SITUATION, slot=replace(A_SLOT, active_pid=99))

    [finding] = [j.found for j in judgements_of(situation) if j.code == codes.SLOT]

    assert isinstance(finding, Finding)
    assert "process 99 reads it" in finding.text
    assert finding.hint


def test_a_slot_whose_log_is_about_to_go_is_warned_of() -> None:
    situation = replace(SITUATION, is_first=False, slot=replace(A_SLOT, wal_status="unreserved"))

    [finding] = [j.found for j in judgements_of(situation) if j.code == codes.SLOT]

    assert isinstance(finding, Finding)
    assert "max_slot_wal_keep_size" in finding.hint


def test_a_slot_is_made_anew_whatever_columns_came_since() -> None:
    flat = msgspec.structs.replace(SITUATION.configuration, envelope="flat")
    clashing = replace(SITUATION, configuration=flat, clashes="public.orders._op")

    # The journal is there, so the pipeline's own names give way.
    refuse(replace(clashing, is_renewed=True))

    with pytest.raises(ConfigurationError, match="_op"):
        refuse(clashing)


def test_tables_are_parted_without_comparing_each_with_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = [Table(TableName("public", f"t{n}"), False, True, True) for n in range(200)]
    other = Table(TableName("audit", "log"), False, True, True)
    hashed: list[Table] = []

    def counted_hash(table: Table) -> int:
        hashed.append(table)
        return hash(table.name)

    monkeypatch.setattr(Table, "__hash__", counted_hash)

    captured, others = parted([*every, other], SITUATION.configuration)

    assert (list(captured), list(others)) == (every, [other])
    assert len(hashed) <= len(every) + 1
