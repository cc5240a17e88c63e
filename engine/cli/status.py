"""`tailrace status`: how the pipeline stands, by its journal alone."""

import asyncio
import os
from typing import TYPE_CHECKING

from engine.cli.options import ConfigFile, Json, same_file
from engine.cli.output import say, say_json, say_next
from engine.cli.startup import lean_imports
from engine.config import DestinationConfiguration, default_log, load_destination
from engine.model.plural import counted
from engine.model.printable import printable

if TYPE_CHECKING:
    from engine.journal.entry import Answer
    from engine.reader.standing import Standing, TableStanding

TABLES_SHOWN_MAX = 50
ANSWERS_SHOWN_MAX = 10


def status(*, config: ConfigFile = None, json: Json = False) -> int:
    """Show how far the pipeline is, its tables' snapshots, and requests, from the bucket alone.

    Needs only [destination] of the configuration, and the right to list and read. The exit code is
    0 whatever the journal says: `tailrace verify` judges.
    """
    destination = load_destination(config, os.environ)
    found = asyncio.run(_standing(destination))
    if json:
        say_json(_as_json(found))
    else:
        _say(found, same_file(config))
    return 0


async def _standing(destination: DestinationConfiguration) -> "Standing":
    with lean_imports():
        from engine import app  # noqa: PLC0415 - a wrong configuration is told before
        from engine.operate import logs  # noqa: PLC0415 - likewise
    from engine.reader.journal import JournalView  # noqa: PLC0415 - likewise
    from engine.reader.standing import standing  # noqa: PLC0415 - likewise

    logs.configure(default_log())
    async with app.open_bucket(destination) as store:
        view = JournalView(store, destination.prefix)
        await view.load()
        return standing(view.state, await view.waiting(), app.wall_clock())


def _say(found: "Standing", option: str) -> None:
    say(f"durable up to {found.durable_position}")
    say(f"    its last commit was {_age(found.durable_age_seconds)} ago ({found.durable_time})")
    state = "released by" if found.is_released else "held by"
    say(f"journal at entry {found.seq}, epoch {found.epoch}, {state} {printable(found.task)}")
    say(f"    writer {printable(found.writer)}, release {printable(found.release)}")
    _say_tables(found.tables)
    _say_gaps(found)
    _say_requests(found)
    say_next(_next_step(found, option))


def _say_tables(tables: "tuple[TableStanding, ...]") -> None:
    # Those that somebody waits for come first.
    ordered = sorted(tables, key=lambda table: not table.is_unfinished)
    say()
    say(counted(len(tables), "table"))
    shown = [(printable(table.table), _snapshot_text(table)) for table in ordered]
    shown = shown[:TABLES_SHOWN_MAX]
    width = max((len(name) for name, _ in shown), default=0)
    for name, text in shown:
        say(f"    {name.ljust(width)}  {text}")
    if len(tables) > TABLES_SHOWN_MAX:
        more = len(tables) - TABLES_SHOWN_MAX
        say(f"    … and {more} more: `tailrace status --json` has all")


def _snapshot_text(table: "TableStanding") -> str:
    match table.snapshot:
        case "none":
            return "no snapshot"
        case "wanted" | "cancelled":
            text = f"snapshot {table.snapshot}"
        case _:
            text = f"snapshot {table.snapshot}: attempt {table.attempt} at {table.point}"
    return f"{text} (unfinished)" if table.is_unfinished else text


def _say_gaps(found: "Standing") -> None:
    if found.gaps:
        tables = sorted({gap.table for gap in found.gaps})
        names = ", ".join(printable(name) for name in tables[:ANSWERS_SHOWN_MAX])
        more = f" and {len(tables) - ANSWERS_SHOWN_MAX} more" * (len(tables) > ANSWERS_SHOWN_MAX)
        say(f"\n{counted(len(found.gaps), 'gap')} not mended, of {names}{more}")


def _say_requests(found: "Standing") -> None:
    if not (found.waiting or found.answers):
        return
    say("\nrequests")
    for answer in found.answers[-ANSWERS_SHOWN_MAX:]:
        say(f"    {printable(answer.name)}  {printable(_answer_text(answer))}")
    for name in found.waiting[:ANSWERS_SHOWN_MAX]:
        say(f"    {printable(name)}  waiting for the engine")
    if len(found.waiting) > ANSWERS_SHOWN_MAX:
        say(f"    … and {len(found.waiting) - ANSWERS_SHOWN_MAX} more are waiting")


def _answer_text(answer: "Answer") -> str:
    tables = ", ".join(answer.tables[:ANSWERS_SHOWN_MAX])
    text = " ".join(part for part in (answer.kind, tables, answer.outcome) if part)
    return f"{text}: {answer.text}" if answer.text else text


def _age(seconds: float) -> str:
    for limit, unit, name in ((86_400, 3_600, "hour"), (5_400, 60, "minute")):
        if seconds >= limit:
            return counted(int(seconds / unit), name)
    return counted(int(seconds), "second")


def _next_step(found: "Standing", option: str) -> str:
    if found.waiting:
        return f"a running engine looks for requests every 10 s: tailrace status{option}"
    cancelled = [table.table for table in found.unfinished if table.snapshot == "cancelled"]
    if cancelled:
        return f"take the snapshot that was cancelled: tailrace resync '{cancelled[0]}'{option}"
    return f"tailrace verify{option}  (proves it)"


def _as_json(found: "Standing") -> dict[str, object]:
    return {
        "durable": {
            "position": found.durable_position,
            "commit_time": found.durable_time,
            "age_seconds": found.durable_age_seconds,
        },
        "entry": found.seq,
        "epoch": found.epoch,
        "writer": {"id": found.writer, "task": found.task, "release": found.release},
        "released": found.is_released,
        "tables": [
            {
                "table": table.table,
                "snapshot": table.snapshot,
                "attempt": table.attempt or None,
                "point": table.point or None,
                "unfinished": table.is_unfinished,
            }
            for table in found.tables
        ],
        "gaps": [
            {"number": gap.number, "table": gap.table, "reason": gap.reason} for gap in found.gaps
        ],
        "requests": {
            "waiting": list(found.waiting),
            "answered": [
                {
                    "name": answer.name,
                    "kind": answer.kind,
                    "tables": list(answer.tables),
                    "outcome": answer.outcome,
                    "text": answer.text,
                    "at": answer.at,
                }
                for answer in found.answers
            ],
        },
    }
