"""`tailrace run`: the engine as a process."""

import gc
import os
from typing import Annotated

from cyclopts import Parameter

from engine.cli.options import ConfigFile, same_file
from engine.cli.output import say_last
from engine.cli.startup import lean_imports
from engine.config import load

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


def run(*, config: ConfigFile = None, until_caught_up: UntilCaughtUp = False) -> int:
    """Stream changes until told to stop.

    SIGTERM, SIGINT and SIGHUP publish what is held and end the process inside
    engine.drain_seconds; a second signal ends it at once, and the next start makes again what was
    not published.
    """
    # Garbage is not looked for until the engine has started. Drivers and the S3 client's models are
    # 120,000 objects that stay, and 3,000 that do not. Looking for those again and again takes 0.2
    # s of 0.65 s CPU.
    gc.disable()
    loaded = load(config, os.environ)
    # The drivers are loaded only now. So a wrong configuration is told in a tenth of the time that
    # they take.
    with lean_imports():
        from engine.cli.process import run_engine  # noqa: PLC0415

    code = run_engine(loaded.configuration, until_caught_up=until_caught_up)
    say_last(f"tailrace verify{same_file(config)}")
    return code
