"""`tailrace top`: a frame of every state, and the command against the engine's own port."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from engine.cli.application import main
from engine.cli.running_engine import port_at
from engine.cli.top_frame import Rates, frame, line, plain, rates_of
from engine.config import Address, Secret
from engine.operate.access import Access
from engine.operate.alarms import Alarm
from engine.operate.history import History
from engine.operate.http_server import HttpServer
from engine.operate.retention import Retention
from engine.operate.status import NotCaptured, SnapshotStatus, Status, TableStatus
from terminal import COLUMNS, Seat, seated, too_wide

NOW_US = 1_795_341_114_056_779
TOKEN = "0123456789abcdef"
MIB = 1024 * 1024

SNAPSHOT = SnapshotStatus(
    table="public.orders",
    rows=250_000,
    rows_estimate=1_000_000,
    bytes=MIB,
    bytes_estimate=4 * MIB,
    ranges_done=1,
    ranges=4,
    seconds=10.0,
    rows_per_second=25_000.0,
    seconds_left=300.0,
)
LONG = '"' + "s" * 63 + '"."' + "t" * 63 + '"'
TABLES = tuple(
    TableStatus(
        table=name,
        version=number,
        rows_total=10**number,
        rows_per_second=12_345.6 * number,
        queue_bytes=MIB,
        last_object_us=NOW_US - number * 1_000_000,
        is_paused=number == 2,
    )
    for number, name in enumerate(("public.orders", "public.notes", LONG, "a\x1b[31mb"))
)
STATUS = Status(
    phase="streaming",
    since_us=NOW_US - 90_000_000,
    release="0.1.0",
    writer_id="w1",
    source="PostgreSQL 18.1 at db.internal:5432/shop, system 7412345678901234567",
    destination="s3://my-bucket/team/pipeline",
    durable_position="0001.00000000134EBCB0",
    durable_commit_us=NOW_US - 3_000_000,
    lag_seconds=0.0,
    lag=0,
    durable_lag_seconds=2.5,
    durable_lag=3 * MIB,
    lag_unit="bytes",
    retention=Retention(
        looked_us=NOW_US, retained=MIB, limit=1024 * MIB, left=1023 * MIB, seconds_left=7200.0
    ),
    memory_used_bytes=24 * MIB,
    memory_limit_bytes=96 * MIB,
    rows_total=1000,
    bytes_total=10 * MIB,
    objects_total=1,
    busiest=TABLES,
    tables_total=5000,
    not_captured=(NotCaptured("public.x", "no key", "give it one"),),
    not_captured_total=1,
    history=History(times_us=(1,), rows_per_second=(77.0,), bytes_per_second=(2048.0,)),
)
ALARMED = replace(
    STATUS,
    snapshots=(SNAPSHOT, replace(SNAPSHOT, table=LONG)),
    snapshots_in_all=replace(SNAPSHOT, table=""),
    alarms=tuple(Alarm("gap", LONG, "changes are missing " * 9, "do this " * 20, 1) for _ in "123"),
    alarms_total=9,
    waits_for="the initial snapshot: nothing is streamed until it is visible, and so on and on",
)


@pytest.mark.parametrize("status", [STATUS, ALARMED, Status(phase="starting", since_us=NOW_US)])
@pytest.mark.parametrize("lines_max", [24, 50])
def test_a_frame_fits_a_terminal_and_nothing_in_it_acts_on_it(
    status: Status, lines_max: int
) -> None:
    lines = frame(status, Rates(1234.0, MIB), NOW_US, COLUMNS, lines_max)

    assert too_wide([each.text for each in lines]) == []
    assert "\x1b" not in plain(lines)
    assert lines[0].text.startswith("tailrace")
    assert lines[0].look == status.health


def test_a_frame_says_what_goes_on() -> None:
    text = plain(frame(STATUS, Rates(1234.4, 2 * MIB), NOW_US, COLUMNS, None))
    rows = [" ".join(row.split()) for row in text.splitlines()]

    assert rows[0] == "tailrace 0.1.0 streaming for 90 seconds"
    assert "read 1,234 rows a second; 1,000 rows" in rows
    assert "uploaded 2.0 MiB a second; 10.0 MiB in 1 object" in rows
    assert "unread nothing" in rows
    assert "not durable 2.5 s, 3.0 MiB" in rows
    assert "retained 1.0 MiB of 1.0 GiB, full in 2 hours" in rows
    assert "public.notes 12,346 10 1.0 MiB 1 1 second ago" in rows
    assert "and 4996 more tables" in rows


def test_alarms_and_snapshots_come_before_tables_which_give_way() -> None:
    text = plain(frame(ALARMED, Rates(0.0, 0.0), NOW_US, COLUMNS, 24))

    assert "9 alarms" in text
    assert "and 6 more" in text
    assert "█████░░░░░░░░░░░░░░░ 25%" in text
    assert "all of them" in text
    assert text.index("alarms") < text.index("snapshots") < text.index("rows/s")
    assert text.rstrip().endswith("and 4997 more tables")


def test_rates_are_what_was_counted_between_two_looks_at_one_engine() -> None:
    later = replace(STATUS, rows_total=1500, bytes_total=12 * MIB)
    anew = replace(STATUS, rows_total=10, bytes_total=0)

    assert rates_of(STATUS, later, 2.0) == Rates(250.0, MIB)
    assert rates_of(STATUS, anew, 2.0) == Rates(0.0, 0.0)
    assert rates_of(None, STATUS, 2.0) == Rates(77.0, 2048.0)
    assert rates_of(replace(STATUS, writer_id="w0"), later, 2.0) == Rates(77.0, 2048.0)


def test_a_line_has_the_figures() -> None:
    assert line(ALARMED, Rates(1.0, 2048.0)) == (
        "streaming  1 rows/s, 2.0 KiB/s, unread 0.0 s, not durable 2.5 s, buffer 24.0 MiB, 9 alarms"
    )


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://10.0.0.7:9464", "http://10.0.0.7:9464/status"),
        ("10.0.0.7:9464", "http://10.0.0.7:9464/status"),
        ("https://engine.internal/a/status", "https://engine.internal:443/a/status"),
        ("http://[::1]:9464/", "http://[::1]:9464/status"),
    ],
)
def test_an_engine_is_named_by_a_url(url: str, told: str) -> None:
    assert str(port_at(url)) == told


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://u:p@a:1", "http://a:x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        port_at(url)


# --- the command, at the engine's own port


@dataclass
class Served:
    """An engine as far as its port goes."""

    address: str
    status: Status


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    found = Served("", STATUS)
    access = Access(Secret(TOKEN))
    listen = Address("127.0.0.1", 0)
    registry = CollectorRegistry()
    async with HttpServer(listen, lambda: found.status, registry, access=access) as server:
        found.address = str(server.address)
        yield found


def configuration(folder: Path, address: str, token: str) -> str:
    file = folder / "tailrace.toml"
    file.write_text(f'[http]\nlisten = "{address}"\ntoken = "{token}"\n')
    return str(file)


async def test_without_a_terminal_it_looks_once_with_the_token_of_the_configuration(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = configuration(tmp_path, served.address, TOKEN)

    code = await asyncio.to_thread(main, ["top", "-c", file])

    told = capsys.readouterr()
    assert code == 0, told.err
    assert "tailrace 0.1.0  streaming" in told.out
    assert LONG in told.out
    assert f"next: tailrace status -c {file}" in told.out
    assert TOKEN not in told.out + told.err


async def test_a_wrong_token_is_told_and_a_file_has_the_right_one(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    url = f"http://{served.address}"

    without = await asyncio.to_thread(main, ["top", "--url", url])
    wants = capsys.readouterr().err
    wrong = await asyncio.to_thread(
        main, ["top", "-c", configuration(tmp_path, served.address, TOKEN[::-1])]
    )
    refused = capsys.readouterr().err
    right = await asyncio.to_thread(main, ["top", "--url", url, "--token-file", str(token)])

    assert (without, wrong, right) == (78, 78, 0)
    assert "wants a token" in wants
    assert "does not take this token" in refused
    assert "--token-file" in wants


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--url", "http://127.0.0.1:1"), 69, "no engine answers at http://127.0.0.1:1/status: "),
        (("--url", "ftp://x"), 2, "is no URL such as"),
        (("--token-file", "x"), 2, "goes with --url"),
        (("--interval", "0"), 2, "--interval"),
    ],
)
def test_what_cannot_be_asked_is_told(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, text: str
) -> None:
    assert main(["top", *words]) == code
    assert text in capsys.readouterr().err


def test_what_no_request_can_carry_is_told_and_is_no_bug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_text("kanary-of-two\nlines-ü\n")
    url = "http://127.0.0.1:1"

    token = main(["top", "--url", url, "--token-file", str(file)]), capsys.readouterr().err
    host = main(["top", "--url", f"http://{'a' * 70}.example:9464"]), capsys.readouterr().err

    assert token[0] == 2
    assert "no header can carry" in token[1]
    assert "kanary" not in token[1]
    assert host[0] == 69
    assert "no engine answers" in host[1]


def test_an_engine_without_a_port_leads_to_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tailrace.toml"
    file.write_text('[http]\nlisten = "off"\n')

    assert main(["top", "-c", str(file)]) == 78
    assert "`tailrace status` reads the bucket instead" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["q", "\x03"])
async def test_in_a_terminal_it_follows_until_a_key_and_leaves_the_screen_as_it_was(
    served: Served, tmp_path: Path, key: str
) -> None:
    file = configuration(tmp_path, served.address, TOKEN)
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}

    with seated("top", "-c", file, "--interval", "0.1", environment=environment) as seat:
        await asyncio.to_thread(seat.sees, "streaming for")
        served.status = replace(STATUS, phase="paused")
        await asyncio.to_thread(seat.sees, "paused for")
        served.status = ALARMED
        await asyncio.to_thread(seat.sees, "9 alarms")
        code = await asyncio.to_thread(_ends, seat, key)

    # The alternate screen was entered and left.
    assert code == 0, seat.text
    assert seat.text.count("\x1b[?1049h") == seat.text.count("\x1b[?1049l") == 1
    assert "Traceback" not in seat.text


def _ends(seat: Seat, key: str) -> int:
    seat.types(key)
    return seat.leaves()
