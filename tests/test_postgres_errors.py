"""What the server's errors mean: the table of SQLSTATEs, and what real servers make of it."""

import re
from pathlib import Path

import psycopg
import pytest

from engine.model.errors import (
    PositionLost,
    SnapshotStale,
    SourceFailed,
    SourceRefused,
    SourceUnavailable,
)
from engine.servers.postgres_binaries import wheel_bin_directory
from engine.sources.postgres.dsn import place_of
from engine.sources.postgres.held_session import judged_stale
from engine.sources.postgres.session import translated
from engine.sources.postgres.slot import Slot, stream_failure
from engine.sources.postgres.sqlstates import CLASSES, CODES, Meaning, judged

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"


class Answer(psycopg.Error):
    """A server's error with nothing but its code."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("the server's own text")
        self.sqlstate = sqlstate


# ------------------------------------------------------------------------------ the table


PASSING = (
    *("53100", "53200", "53300", "57014", "57P01", "57P04", "40001", "40P01", "55006", "55P03"),
    *("58030", "25P03", "25P04", "08006", "XX000", "XX001", "XX002", "F0001", "72000", "ZZ999"),
)
"""Most of these ended in exit code 78 once, although they pass."""


@pytest.mark.parametrize("sqlstate", PASSING)
def test_what_may_pass_is_tried_again(sqlstate: str) -> None:
    assert isinstance(translated(Answer(sqlstate), "asking"), SourceUnavailable)


@pytest.mark.parametrize(
    "sqlstate", ["28000", "28P01", "42501", "42P01", "3D000", "22023", "0A000", "25006", "53400"]
)
def test_what_somebody_has_to_change_is_refused_with_a_hint(sqlstate: str) -> None:
    error = translated(Answer(sqlstate), "asking")

    assert isinstance(error, SourceRefused)
    assert error.hint


@pytest.mark.parametrize("sqlstate", ["42704", "22023", "55000", "72000", "55P03"])
def test_whatever_says_that_a_snapshot_is_gone_makes_its_reading_stale(sqlstate: str) -> None:
    assert isinstance(judged_stale(Answer(sqlstate), "reading", "here"), SnapshotStale)


def test_no_code_alone_says_that_changes_are_lost() -> None:
    every = [*CODES, *(f"{name}000" for name in CLASSES)]

    found = [translated(Answer(code), "asking") for code in every]
    found += [stream_failure(Answer(code), "here", "") for code in every]

    assert not [error for error in found if isinstance(error, PositionLost)]
    assert all(error.hint for error in found)


def test_whatever_ends_a_stream_is_tried_again_in_our_own_words() -> None:
    every = [stream_failure(Answer(code), "db:5432/shop", "") for code in (*CODES, None)]

    error = stream_failure(Answer("22P05"), "db:5432/shop", "public.a")

    assert all(isinstance(found, SourceUnavailable) for found in every)
    assert isinstance(error, SourceFailed)
    assert error.code == "22P05"
    assert "own text" not in str(error)
    assert "db:5432/shop" in str(error)
    assert "public.a" in str(error)


def test_the_page_holds_the_table() -> None:
    rows = re.findall(r"^\| (\w{2}|\w{5}) \| ([a-z ]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)

    told = {code: (meaning, text) for code, meaning, text in rows}

    table = {**CLASSES, **CODES}
    assert told == {code: (j.meaning.value, j.text) for code, j in table.items()}


def test_every_class_that_the_server_has_is_judged() -> None:
    listed = wheel_bin_directory().parent / "share" / "errcodes.txt"
    codes = re.findall(r"^([0-9A-Z]{5})\s+[EWS]\s", listed.read_text(), re.MULTILINE)

    assert len(codes) > 200
    assert {code[:2] for code in codes} <= set(CLASSES)
    assert set(CODES) <= set(codes)
    assert judged("53999").meaning is Meaning.RETRY


# --------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("dsn", "place"),
    [
        ("postgresql://me:hush@db.example:6543/shop", "db.example:6543/shop"),
        ("host=a,b port=1,2 dbname=shop password=hush", "a:1,b:2/shop"),
        ("postgresql://me:hu@sh@db.example/shop", "the place that source.dsn names"),
        ("hostaddr=10.0.0.1 user=me", "10.0.0.1:5432/me"),
    ],
)
def test_a_place_is_what_was_parsed_and_never_a_secret(
    dsn: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGHOSTADDR"):
        monkeypatch.delenv(name, raising=False)

    assert place_of(dsn) == place


# ------------------------------------------------------------------------- the slot's words


def slot(**changes: object) -> Slot:
    fields: dict[str, object] = {
        "name": "s",
        "type": "logical",
        "plugin": "pgoutput",
        "database": "shop",
        "active_pid": None,
        "wal_status": "reserved",
        "confirmed": "0/1",
        "is_temporary": False,
        "is_two_phase": False,
        "is_synced": False,
        "invalidation_reason": "",
        "is_conflicting": False,
        "current_database": "shop",
        "wal_level": "logical",
    }
    return Slot(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_slot_that_has_everything_has_no_fault() -> None:
    assert slot().fault() is None
    assert slot(wal_status="unreserved").fault() is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wal_status": "lost"}, "max_slot_wal_keep_size"),
        ({"invalidation_reason": "wal_removed"}, "max_slot_wal_keep_size"),
        ({"invalidation_reason": "rows_removed"}, "hot_standby_feedback"),
        ({"wal_status": "lost", "is_conflicting": True}, "hot_standby_feedback"),
        ({"invalidation_reason": "wal_level_insufficient"}, "wal_level = logical"),
        ({"wal_status": "lost", "invalidation_reason": "idle_timeout"}, "idle_replication_slot"),
    ],
)
def test_a_lost_slot_says_why_and_what_prevents_it(changes: dict[str, object], words: str) -> None:
    fault = slot(**changes).fault()

    assert isinstance(fault, PositionLost)
    assert words in fault.hint
    assert ("max_slot_wal_keep_size" in fault.hint) == (words == "max_slot_wal_keep_size")


def test_a_reason_of_a_later_release_is_shown_as_it_is() -> None:
    fault = slot(invalidation_reason="moon_phase").fault()

    assert isinstance(fault, PositionLost)
    assert "moon_phase" in str(fault)


@pytest.mark.parametrize("field", ["is_two_phase", "is_temporary", "is_synced"])
def test_a_slot_whose_fields_change_what_arrives_is_refused(field: str) -> None:
    fault = slot(**{field: True}).fault()

    assert isinstance(fault, SourceRefused)
    assert fault.hint
