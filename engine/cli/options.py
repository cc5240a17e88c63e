"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

ConfigFile = Annotated[
    Path | None,
    Parameter(
        name=["--config", "-c"],
        help="The configuration file. Without it: TAILRACE_CONFIG, ./tailrace.toml, or the "
        "environment alone.",
    ),
]

Json = Annotated[
    bool,
    Parameter(
        name="--json",
        negative="",
        show_default=False,
        help="Put one JSON object on stdout, and nothing else.",
    ),
]
