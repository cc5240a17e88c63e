"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

from cyclopts import CycloptsError, Parameter

ConfigFile = Annotated[
    Path | None,
    Parameter(
        name=["--config", "-c"],
        metavar="FILE",
        help="The configuration file. Without it: TAILRACE_CONFIG, ./tailrace.toml, or the "
        "environment alone.",
    ),
]


def same_file(config: Path | None) -> str:
    """What a command that is named next needs, so that it reads the same configuration."""
    return "" if config is None else f" -c {config}"


Json = Annotated[
    bool,
    Parameter(
        name="--json",
        negative="",
        show_default=False,
        help="Put one JSON object on stdout, and nothing else.",
    ),
]

Table = Annotated[
    str,
    Parameter(
        name="TABLE",
        help="schema.table, quoted as in SQL. The schema may be left out where one table alone has "
        "that name.",
    ),
]

Tables = Annotated[
    str,
    Parameter(
        name="TABLE",
        help="schema.table, quoted as in SQL. The schema may be left out where one table alone has "
        "that name. Several may be named.",
    ),
]


class Usage(CycloptsError):
    """Options that do not go together."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def __str__(self) -> str:
        return self._text
