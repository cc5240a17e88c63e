"""`tailrace resync`: ask the running engine to take tables' snapshots again, or to cancel them."""

import asyncio
import os
from typing import Annotated

from cyclopts import Parameter

from engine.cli.asked import Asked, Outcome
from engine.cli.options import ConfigFile, Json, Tables, same_file
from engine.cli.output import complain, say_json, say_next
from engine.config import load_destination

EXIT_REFUSED = 1
EXIT_USAGE = 2

CancelOption = Annotated[
    bool,
    Parameter(
        name="--cancel",
        negative="",
        show_default=False,
        help="Cancel their snapshots instead, until somebody asks again.",
    ),
]

WaitOption = Annotated[
    bool,
    Parameter(
        name="--wait",
        negative="",
        show_default=False,
        help="Wait for the engine's answer and, without --cancel, for the finished snapshots.",
    ),
]


def resync(
    *tables: Tables,
    cancel: CancelOption = False,
    wait: WaitOption = False,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Ask the running engine to take the snapshots of tables again.

    Needs only [destination] of the configuration, and the right to create objects below
    `_tailrace/requests/`. The engine looks there every 10 s. Exit code 1: the request was refused,
    or with --wait, a snapshot was given up.

    Where source.signals is true, the same can be asked in SQL:

        SELECT pg_logical_emit_message(true, 'tailrace',
            '{"format": 1, "kind": "resync", "tables": ["public.orders"]}')
    """
    if not tables:
        complain("TABLE is missing", "`tailrace resync --help` lists what it takes")
        return EXIT_USAGE
    destination = load_destination(config, os.environ)
    asked = Asked("cancel" if cancel else "resync", is_waiting=wait, is_quiet=json)
    asyncio.run(asked.run(tables, destination))
    is_good = asked.outcome not in {"refused", "given up"}
    option = same_file(config)
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
        say_next(*_next_step(asked.outcome, option))
    else:
        complain(asked.text, f"`tailrace status{option}` lists the tables and requests")
    return 0 if is_good else EXIT_REFUSED


def _next_step(outcome: Outcome, option: str) -> tuple[str, str]:
    if outcome == "finished":
        return f"tailrace verify{option}", "proves what is in the bucket"
    waiting = "a running engine looks for requests every 10 s"
    return f"tailrace status{option}", waiting if outcome == "waiting" else ""
