"""`tailrace demo`: a database, a bucket and the engine between them, on this machine."""

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

Seconds = Annotated[
    float,
    Parameter(
        name="--seconds",
        metavar="SECONDS",
        validator=Number(gte=0, lte=86_400),
        help="How long changes are written. 0: a single change, and the proof.",
    ),
]
Rate = Annotated[
    float,
    Parameter(
        name="--rate",
        metavar="RATE",
        validator=Number(gte=1, lte=1_000_000),
        help="Changes a second that are aimed at; what was reached is shown.",
    ),
]
Existing = Annotated[
    int,
    Parameter(
        name="--existing",
        metavar="ROWS",
        validator=Number(gte=0, lte=100_000_000),
        help="Rows that a new database has before the engine starts: its snapshot reads them.",
    ),
]
Directory = Annotated[
    Path | None,
    Parameter(
        name="--directory",
        metavar="FOLDER",
        show_default=False,
        help="The folder for data, configuration and log; one of an earlier demonstration goes on. "
        "Without it, a new one in the system's temporary folder.",
    ),
]
Crashes = Annotated[
    int,
    Parameter(
        name="--crashes",
        metavar="COUNT",
        validator=Number(gte=0, lte=1000),
        help="How many times the engine is ended by kill -9 and started again meanwhile.",
    ),
]
Keep = Annotated[
    bool,
    Parameter(name="--keep", negative="--no-keep", help="Leave the folder there at the end."),
]
Stay = Annotated[
    bool,
    Parameter(
        name="--stay",
        negative="",
        show_default=False,
        help="Leave the servers running at the end, until Ctrl-C.",
    ),
]


def demo(
    *,
    seconds: Seconds = 20,
    rate: Rate = 3000,
    existing: Existing = 1_000_000,
    directory: Directory = None,
    crashes: Crashes = 0,
    keep: Keep = True,
    stay: Stay = False,
) -> int:
    """Run a database, a bucket and an engine on this machine, and prove that nothing is lost.

    Ctrl-C ends the workload early and shows the same ending; a second one ends everything at once.
    Exit code 1: the proof failed.
    """
    from rich.console import Console  # noqa: PLC0415 - `--help` needs none of these.

    from engine.demo.demo import Wishes, demonstrate  # noqa: PLC0415

    wishes = Wishes(directory, seconds, rate, existing, crashes, is_kept=keep, is_staying=stay)
    return asyncio.run(demonstrate(wishes, Console(highlight=False)))
