"""`tailrace run`: the engine as a process."""

import gc
import os
import sys
from functools import partial
from typing import Annotated

from cyclopts import Parameter

from engine.cli.options import ConfigFile, same_file
from engine.cli.output import complain_in_json, say_last
from engine.cli.startup import lean_imports
from engine.config import load, load_log
from engine.model.errors import ConfigurationError
from engine.model.position import LogPosition, require_log_position

UntilCaughtUp = Annotated[
    bool,
    Parameter(
        name="--until-caught-up",
        negative="",
        show_default=False,
        help="Publish what was committed before the start, then end. Stands by while another "
        "engine holds the slot.",
    ),
]


AcceptGap = Annotated[
    str,
    Parameter(
        name="--accept-gap",
        metavar="POSITION",
        show_default=False,
        help="Accept that the changes behind this position are lost, and go on with a gap: the one "
        "that the error or `tailrace check` names. It accepts no other loss, and the same one "
        "once.",
    ),
]


def run(
    *,
    config: ConfigFile = None,
    until_caught_up: UntilCaughtUp = False,
    accept_gap: AcceptGap = "",
) -> int:
    """Stream changes until told to stop.

    SIGTERM, SIGINT and SIGHUP publish what is held and end the process inside
    engine.drain_seconds; a second signal ends it at once, and the next start makes again what was
    not published.

    Exit codes: 69, source or bucket away at the start: start it later. 70, changes are lost, or
    the prefix is another pipeline's: read the hint first. 75, another engine took over, or the
    drain had no time left: start it again. 78, a setting or a right has to change first.
    docs/operations.md has all of them.
    """
    # Garbage is not looked for until the engine has started. Drivers and the S3 client's models are
    # 120,000 objects that stay, and 3,000 that do not. Looking for those again and again takes 0.2
    # s of 0.65 s CPU.
    gc.disable()
    # From here on, whatever ends the engine is told as the log is.
    complain_in_json(load_log(config, os.environ).is_json(sys.stderr))
    place = _place(accept_gap)
    loaded = load(config, os.environ)
    # The drivers are loaded only now. So a wrong configuration is told in a tenth of the time that
    # they take.
    with lean_imports():
        from engine import app  # noqa: PLC0415
        from engine.cli.process import run_engine  # noqa: PLC0415

    engine = partial(app.run, accept_gap=place)
    code = run_engine(loaded.configuration, until_caught_up=until_caught_up, engine=engine)
    say_last(f"tailrace verify{same_file(config)}")
    return code


def _place(text: str) -> LogPosition:
    """The position as it was given. Raises ConfigurationError where it is none."""
    if text:
        try:
            require_log_position(text)
        except ValueError as error:
            raise ConfigurationError(
                f"--accept-gap: {error}",
                hint="It is the position that the error names, like 0001.00000000134EBCB0.",
            ) from error
    return LogPosition(text)
