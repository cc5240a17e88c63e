"""Signals at every moment, as process 1 too; streams that are closed, broken or full."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENTRY = next(
    line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("ENTRYPOINT")
)
BLOCKED = "--block-signal=TERM,INT,HUP"
RUN = (sys.executable, "-m", "engine", "run", "-c")


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


@pytest.fixture
def file(tmp_path: Path, silent: socket.socket) -> Path:
    """A configuration with that server for source and bucket."""
    port = silent.getsockname()[1]
    file = tmp_path / "tailrace.toml"
    file.write_text(
        f"""
[source]
dsn = "host=127.0.0.1 port={port} dbname=shop user=tailrace"
snapshot = "never"
[destination]
bucket = "my-bucket"
prefix = "shop"
region = "us-east-1"
endpoint_url = "http://127.0.0.1:{port}"
[http]
listen = "off"
"""
    )
    return file


@contextlib.contextmanager
def started(command: Sequence[str], **streams: int) -> Iterator["subprocess.Popen[bytes]"]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**kept, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams},  # type: ignore[call-overload]
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_process(unshare: int) -> int:
    """The process that is number 1 in its own namespace, as we number it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                # First it is a copy of `unshare`, then `env`, which blocks the signals.
                if Path(f"/proc/{child}/comm").read_text().startswith("python"):
                    return int(child)
        time.sleep(0.001)
    raise AssertionError("no process 1")


# From before Python is there to where the engine waits for the source.
MOMENTS = (0.0, 0.01, 0.02, 0.04, 0.08, 0.12, 0.2, 0.3, 0.45, 0.6, 0.8, 1.2)


def test_the_image_blocks_what_python_cannot_handle_yet() -> None:
    assert f'ENTRYPOINT ["env", "{BLOCKED}", "tailrace"]' == ENTRY


@pytest.mark.timeout(240)
def test_as_process_1_a_signal_at_any_moment_ends_the_engine_well(file: Path) -> None:
    unshare = ("unshare", "--pid", "--fork", "--kill-child")
    codes = []
    for number, after in enumerate(MOMENTS):
        sent = signal.SIGINT if number % 3 == 2 else signal.SIGTERM
        with started([*unshare, "env", BLOCKED, *RUN, str(file)]) as process:
            first = first_process(process.pid)
            time.sleep(after)
            os.kill(first, sent)
            codes.append((after, process.wait(60)))

    assert [(after, code) for after, code in codes if code] == []


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["run", "--until-caught-up"], 75),
        (["init"], 128 + signal.SIGTERM),
        (["top"], 128 + signal.SIGTERM),
        (["tail", "public.orders"], 128 + signal.SIGTERM),
        (["drop", "--yes"], 128 + signal.SIGTERM),
        (["completions", "bash"], 128 + signal.SIGTERM),
        (["verify"], 128 + signal.SIGTERM),
        (["read", "public.orders"], 128 + signal.SIGTERM),
        (["materialize", "public.orders", "lake", "--to", "parquet"], 128 + signal.SIGTERM),
        (["status"], 128 + signal.SIGTERM),
        (["views", "duckdb"], 128 + signal.SIGTERM),
        (["resync", "public.orders"], 128 + signal.SIGTERM),
        (["pause"], 128 + signal.SIGTERM),
        (["resume"], 128 + signal.SIGTERM),
        (["iam"], 128 + signal.SIGTERM),
        (["config", "schema"], 128 + signal.SIGTERM),
    ],
)
def test_a_signal_before_the_start_says_what_was_not_done(words: list[str], code: int) -> None:
    # The signal is there before the interpreter is.
    early = f"import os, sys; os.kill(os.getpid(), {signal.SIGTERM}); sys.argv = ['', *{words!r}]"
    command = f"{early}; import runpy; runpy.run_module('engine', run_name='__main__')"
    python = ["env", BLOCKED, sys.executable, "-c", command]

    with started(python) as process:
        _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (code, b"")


@pytest.mark.parametrize("words", [["run"], ["run", "--until-caught-up"]])
def test_a_stop_in_the_middle_of_the_start(
    file: Path, silent: socket.socket, words: list[str]
) -> None:
    with started([sys.executable, "-m", "engine", *words, "-c", str(file)]) as process:
        asked, _ = silent.accept()
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=60)
        asked.close()

    assert process.returncode == (75 if len(words) > 1 else 0), errors
    assert (b"SIGHUP came before everything was published" in errors) is (len(words) > 1)


def test_what_a_caller_has_ignored_stays_ignored(file: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "import engine.__main__\n"
        "from engine.cli.process import _taken_signals\n"
        "print(*(n.name for n in _taken_signals()))"
    )

    with started([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        output, _ = process.communicate(timeout=60)

    assert output == b"SIGTERM SIGINT\n"


LATE = """
import os, signal, sys
from engine.cli import process
from engine.cli.application import main
from engine.config import load
from pathlib import Path

class Runner(process.asyncio.Runner):
    def close(self):
        {closing}
        super().close()
process.asyncio.Runner = Runner
async def engine(*_, **__): pass
def command(*_):
    loaded = load(Path(sys.argv[1]), dict())
    code = process.run_engine(loaded.configuration, until_caught_up=False, engine=engine)
    {after}
    return code
from engine.cli import application
application.make_application = lambda asked: command
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("closing", "after", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", "pass", 0),
        ("pass", "os.kill(os.getpid(), signal.SIGTERM)", 0),
        ("pass", "[os.kill(os.getpid(), signal.SIGTERM) for _ in 'ab']", 75),
    ],
)
def test_a_signal_after_the_end_changes_it_only_when_repeated(
    file: Path, closing: str, after: str, code: int
) -> None:
    text = LATE.format(closing=closing, after=after)

    with started([sys.executable, "-c", text, str(file)]) as process:
        _, errors = process.communicate(timeout=60)

    assert process.returncode == code, errors


BAD = 'exec "$0" -m engine run -c /nonexistent.toml'


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2>&9"])
def test_a_broken_stderr_does_not_change_the_exit_code(stderr: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    # 9 is a pipe that nobody reads.
    shell = f"exec 9>&{writing}; {BAD} {stderr}"
    try:
        done = subprocess.run(
            ["/bin/bash", "-c", shell, sys.executable],
            cwd=ROOT,
            pass_fds=[writing],
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)

    assert done.returncode == 78


@pytest.mark.parametrize(
    ("words", "stdout", "code"),
    [
        ("config schema", ">/dev/full", 70),
        ("config schema", ">&-", 0),
        ("--version", ">&-", 0),
        ("--version", ">/dev/full", 70),
        ("--help", ">/dev/full", 70),
    ],
)
def test_a_broken_stdout_is_told(words: str, stdout: str, code: int) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m engine {words} {stdout}', sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == code, done.stderr
    assert ("could not be written to stdout: No space left" in done.stderr) is (code == 70)
    assert "internal error" not in done.stderr
