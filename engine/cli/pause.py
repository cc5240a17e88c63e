"""`tailrace pause`: ask the running engine to read no further, or to pass over some tables."""

import asyncio
import os
from typing import Annotated

from cyclopts import Parameter

from engine.cli.asked import Asked
from engine.cli.options import ConfigFile, Json, Tables, same_file
from engine.cli.output import complain, say_json, say_next
from engine.config import load_destination

EXIT_REFUSED = 1

WaitOption = Annotated[
    bool,
    Parameter(name="--wait", negative="", show_default=False, help="Wait for the engine's answer."),
]


def pause(
    *tables: Tables, wait: WaitOption = False, config: ConfigFile = None, json: Json = False
) -> int:
    """Ask the running engine to read no further, or to pass over some tables.

    Without a table the whole stream is paused. Nothing is lost, and the source keeps its log, which
    grows until `tailrace resume`. A table that is named is passed over: its changes are dropped,
    the journal says so by a gap, and it is read again when it is resumed. Needs only [destination]
    of the configuration, and the right to create objects below `_tailrace/requests/`. The engine
    looks there every 10 s. Exit code 1: the request was refused.
    """
    return ask("pause", tables, wait=wait, config=config, json=json)


def ask(kind: str, tables: tuple[str, ...], *, wait: bool, config: ConfigFile, json: bool) -> int:
    """Ask it, and say what became of it; the exit code."""
    destination = load_destination(config, os.environ)
    asked = Asked(kind, is_waiting=wait, is_quiet=json)
    asyncio.run(asked.run(tables, destination))
    is_good, option = asked.outcome != "refused", same_file(config)
    if json:
        say_json(
            {
                "request": asked.name or None,
                "tables": list(asked.tables),
                "outcome": asked.outcome,
                "text": asked.text,
            }
        )
    elif is_good:
        waiting = "a running engine looks for requests every 10 s"
        say_next(f"tailrace status{option}", waiting if asked.outcome == "waiting" else "")
    else:
        complain(asked.text, f"`tailrace status{option}` lists what is paused, and the requests")
    return 0 if is_good else EXIT_REFUSED
