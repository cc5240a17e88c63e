"""`tailrace top`: a running engine, live in a terminal."""

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from cyclopts.validators import Number

from engine.cli.options import ConfigFile, Usage, same_file
from engine.cli.output import flush, say, say_as_is, say_next
from engine.cli.running_engine import Port, port_at, port_of, read_status
from engine.cli.terminal import columns_of
from engine.cli.top_frame import Line, Look, frame, line, plain, rates_of
from engine.config import load_port
from engine.model.errors import ConfigurationError, TailraceError
from engine.model.printable import printable
from engine.operate.status import Status

if TYPE_CHECKING:
    from rich.console import RenderableType

ANSWER_SECONDS: Final = 5.0
INTERVAL_SECONDS: Final = 2.0

_STYLES: Final[Mapping[Look, str]] = {
    "plain": "",
    "heading": "bold",
    "good": "bold green",
    "wait": "bold yellow",
    "bad": "bold red",
}

Url = Annotated[
    str | None,
    Parameter(
        name="--url",
        metavar="URL",
        help="The engine's port, such as http://10.0.0.7:9464. Without it: http.listen of the "
        "configuration, on this machine.",
    ),
]
TokenFile = Annotated[
    Path | None,
    Parameter(
        name="--token-file",
        metavar="FILE",
        help="The file that holds the port's token, for --url. Without --url, it is the "
        "configuration's http.token.",
    ),
]
Interval = Annotated[
    float | None,
    Parameter(
        name="--interval",
        metavar="SECONDS",
        show_default=False,
        validator=Number(gte=0.1, lte=3600),
        help="Time between two looks, 2 seconds by default. Where there is no terminal: a line for "
        "each.",
    ),
]
Once = Annotated[
    bool,
    Parameter(name="--once", negative="", show_default=False, help="Look once, and end."),
]


def top(
    *,
    config: ConfigFile = None,
    url: Url = None,
    token_file: TokenFile = None,
    interval: Interval = None,
    once: Once = False,
) -> int:
    """Show a running engine, live: phase, lags, rows and uploads a second, tables and alarms.

    It asks the engine's own port (http.listen) and nothing else. q or Ctrl-C ends it. Where there
    is no terminal it shows one look and ends; with --interval it writes a line for each.
    `tailrace status` reads the bucket instead, also while no engine runs.
    """
    port = _port(config, url, token_file)
    is_terminal = sys.stdout.isatty()
    if once or not (is_terminal or interval):
        _look_once(port)
        say_next(f"tailrace status{same_file(config)}", "what the journal says")
        return 0
    seconds = interval or INTERVAL_SECONDS
    if is_terminal:
        _show(port, seconds)
    else:
        _write_lines(port, seconds)
    return 0


def _port(config: Path | None, url: str | None, token_file: Path | None) -> Port:
    if url is not None:
        try:
            return port_at(url, _token(token_file))
        except ValueError:
            raise Usage(f"--url {url} is no URL such as http://10.0.0.7:9464") from None
    if token_file is not None:
        raise Usage("--token-file goes with --url: without it, http.token counts")
    port = port_of(load_port(config, os.environ))
    if port is None:
        raise ConfigurationError(
            "http.listen names no port, so the engine has none to be asked at",
            hint="`tailrace status` reads the bucket instead",
        )
    return port


def _token(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"--token-file {file} cannot be read: {type(error).__name__}") from None
    if not (token.isascii() and token.isprintable()):
        raise Usage(f"--token-file {file} holds what no header can carry, so it is no token")
    return token


def _now_us() -> int:
    return time.time_ns() // 1000


def _look_once(port: Port) -> None:
    status = read_status(port, ANSWER_SECONDS)
    columns = columns_of(sys.stdout)
    say_as_is(plain(frame(status, rates_of(None, status, 0.0), _now_us(), columns, None)))


class _Watch:
    """One engine, looked at again and again."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._at = 0.0
        self.status: Status | None = None
        self.before: Status | None = None
        self.seconds = 0.0
        self.failure: TailraceError | None = None

    def look(self) -> Status | None:
        """Ask once more. Raises what `read_status` does where the first look fails."""
        try:
            found = read_status(self._port, ANSWER_SECONDS)
        except TailraceError as error:
            if self.status is None:
                raise
            self.failure = error
            return None
        now = time.monotonic()
        self.before, self.status = self.status, found
        self.seconds, self._at = now - self._at, now
        self.failure = None
        return found


def _write_lines(port: Port, seconds: float) -> None:
    watch = _Watch(port)
    while True:
        status = watch.look()
        now = time.strftime("%H:%M:%S")
        if status is not None:
            say(f"{now}  {line(status, rates_of(watch.before, status, watch.seconds))}")
        else:
            say(f"{now}  {printable(str(watch.failure))}")
        flush()
        time.sleep(seconds)


def _show(port: Port, seconds: float) -> None:
    from rich.live import Live  # noqa: PLC0415 - only a terminal needs it

    watch = _Watch(port)
    watch.look()
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys() as is_ended,
        Live(_picture(watch), screen=True, auto_refresh=False) as live,
    ):
        live.refresh()
        while not is_ended(seconds):
            watch.look()
            live.update(_picture(watch), refresh=True)


def _picture(watch: _Watch) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415 - see `_show`
    from rich.text import Text  # noqa: PLC0415 - see `_show`

    size = shutil.get_terminal_size()
    assert watch.status is not None
    rates = rates_of(watch.before, watch.status, watch.seconds)
    lines = frame(watch.status, rates, _now_us(), size.columns, size.lines - 2)
    if watch.failure is not None:
        lines.insert(0, Line(f"{printable(str(watch.failure))}; what follows is old", "bad"))
    told = [*lines[: size.lines - 1], Line("q ends", "plain")]
    return Group(*(Text(each.text, _STYLES[each.look], overflow="fold") for each in told))


@contextlib.contextmanager
def _keys() -> Iterator["_Ended"]:
    """The terminal gives each key at once, and shows none; it is as before after the block."""
    if not sys.stdin.isatty():
        yield _Ended(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield _Ended(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class _Ended:
    """Whether somebody pressed q, asked after some time."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def __call__(self, seconds: float) -> bool:
        """Wait so long, or until a key is pressed."""
        if self._descriptor is None:
            time.sleep(seconds)
            return False
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._descriptor], [], [], left)[0]:
                pressed = os.read(self._descriptor, 64)
                if not pressed or b"q" in pressed.lower():
                    return True
        return False
