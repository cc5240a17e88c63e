"""`tailrace status`: how the pipeline stands, by its journal."""

import asyncio
import os
from collections.abc import Mapping
from shlex import quote
from typing import TYPE_CHECKING, Final

from engine.cli.options import ConfigFile, Json, same_file
from engine.cli.output import say, say_json, say_next, say_table
from engine.cli.running_engine import ask_engine
from engine.cli.startup import lean_imports
from engine.config import DestinationConfiguration, default_log, load_destination_and_port
from engine.model.amount import size_text, time_text
from engine.model.plural import counted
from engine.model.printable import printable
from engine.operate.status import SnapshotStatus, Status, progress_bar
from engine.operate.summary import lag_text

if TYPE_CHECKING:
    from engine.journal.entry import Answer
    from engine.reader.standing import Standing, TableStanding

ROWS_SHOWN_MAX = 50
REQUESTS_SHOWN_MAX = 10

_LABEL: Final = 9
"""How far the texts of the first lines are from the left."""

SNAPSHOT_TEXTS: Final[Mapping[str, str]] = {
    "none": "no snapshot",
    "wanted": "wanted: a running engine begins by itself, or has an alarm that says why not",
    "started": "being read",
    "whole": "read, and about to be visible",
    "void": "void, so another attempt follows",
    "cancelled": "cancelled: earlier rows are missing until somebody asks again",
    "gone": "gone: the source has no table of this name any more",
    "visible": "visible, and the stream is not there yet",
    "finished": "finished",
}


def status(*, config: ConfigFile = None, json: Json = False) -> int:
    """Show how far the pipeline is, its tables' snapshots, gaps and requests, from the bucket.

    Needs only [destination] of the configuration, and the right to list and read. How far snapshots
    are that are being read, and both lags, are asked of the engine, where it answers at http.listen
    on this machine; [http] says where, and with which token.
    The exit code is 0 wherever the journal could be read, whatever it says: `verify` judges.
    """
    destination, port = load_destination_and_port(config, os.environ)
    found = asyncio.run(_standing(destination))
    engine = ask_engine(port, found.writer)
    if json:
        say_json(_as_json(found, engine))
    else:
        _say(found, engine, same_file(config))
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


def _say(found: "Standing", engine: Status | None, option: str) -> None:
    from engine.journal.entry import time_shown  # noqa: PLC0415 - it loads the engine

    say(f"durable  {found.durable_position}")
    say(f"         {time_shown(found.durable_time)}, {time_text(found.durable_age_seconds)} ago")
    say(f"journal  entry {found.seq}, epoch {found.epoch}")
    state = "ended well" if found.is_released else "runs, or was killed"
    task, release = printable(found.task), printable(found.release)
    say(f"engine   {task}, release {release}: {state}", hang=_LABEL)
    if engine is not None:
        say(f"lag      {lag_text(engine)}", hang=_LABEL)
    if found.is_stream_waiting:
        text = "waits for the initial snapshot: nothing is streamed until it is visible"
        say(f"stream   {text}", hang=_LABEL)
    _say_pauses(found)
    _say_tables(found)
    _say_reading(found, engine)
    _say_gaps(found)
    _say_requests(found)
    say_next(*_next_step(found, option))


def _say_pauses(found: "Standing") -> None:
    for pause in found.pauses:
        if not pause.table:
            say(f"stream   paused: {printable(pause.text)}", hang=_LABEL)
            say("         nothing is read, and the source keeps all of its log until it is resumed")
    tables = [(pause.table, pause.text) for pause in found.pauses if pause.table]
    if tables:
        say(f"\n{counted(len(tables), 'table')} paused: changes are dropped until it is resumed")
        _say_list(tables, "tables")


def _say_tables(found: "Standing") -> None:
    # Those that somebody waits for come first.
    ordered = sorted(found.tables, key=lambda table: not table.is_unfinished)
    count = len(found.unfinished)
    unfinished = f", {count} unfinished: earlier rows are not all there" if count else ""
    say(f"\n{counted(len(ordered), 'table')}{unfinished}")
    _say_list([(table.table, _snapshot_text(table)) for table in ordered], "tables")


def _snapshot_text(table: "TableStanding") -> str:
    text = SNAPSHOT_TEXTS[table.snapshot]
    if table.attempt == 0:
        return text
    as_of = f", as of {table.point}" if table.point else ""
    return f"{text}: attempt {table.attempt}{as_of}"


def _say_reading(found: "Standing", engine: Status | None) -> None:
    """How far the tables are that are being read now."""
    if engine is None:
        if any(table.snapshot == "started" for table in found.tables):
            say("\nhow far they are: no engine answers at http.listen on this machine")
        return
    if engine.snapshots_in_all is None:
        return
    say("\nbeing read now, as the engine says")
    rows = [(each.table, _progress_text(each)) for each in engine.snapshots]
    if len(rows) > 1:
        rows.append(("all of them", _progress_text(engine.snapshots_in_all)))
    _say_list(rows, "tables")


def _progress_text(each: SnapshotStatus) -> str:
    estimate = f" of about {each.rows_estimate:,}" if each.rows_estimate else ""
    facts = [
        f"{progress_bar(each.share)}  {each.rows:,}{estimate} rows",
        f"{size_text(each.bytes)} of about {size_text(max(each.bytes, each.bytes_estimate))}",
    ]
    if each.rows_per_second is not None:
        facts.append(f"{each.rows_per_second:,.0f} a second")
    if each.seconds_left is not None:
        facts.append(f"about {time_text(each.seconds_left)} left")
    return ", ".join(facts)


def _say_gaps(found: "Standing") -> None:
    if found.gaps:
        say(
            f"\n{counted(len(found.gaps), 'gap')} not mended: `tailrace check` says what mends each"
        )
        _say_list([(gap.table, gap.reason) for gap in found.gaps], "gaps")


def _say_requests(found: "Standing") -> None:
    if not (found.waiting or found.answers or found.signals):
        return
    say("\nrequests, the newest first")
    waiting = [(name, "waits for an engine") for name in reversed(found.waiting)]
    named = [(answer.at, answer.name, answer) for answer in found.answers]
    named += [(answer.at, f"signal {answer.name}", answer) for answer in found.signals]
    newest = sorted(named, key=lambda each: each[:2], reverse=True)
    answered = [(name, _answer_text(answer)) for _, name, answer in newest]
    shown = [*waiting[:REQUESTS_SHOWN_MAX], *answered[:REQUESTS_SHOWN_MAX]]
    _say_list(shown, "requests", count=len(waiting) + len(answered))


def _answer_text(answer: "Answer") -> str:
    tables = ", ".join(answer.tables[:REQUESTS_SHOWN_MAX])
    more = len(answer.tables) - REQUESTS_SHOWN_MAX
    tables += f" and {more} more" if more > 0 else ""
    text = " ".join(part for part in (f"{answer.outcome}:", answer.kind, tables) if part)
    return f"{text}: {answer.text}" if answer.text else text


def _say_list(rows: list[tuple[str, str]], what: str, *, count: int = 0) -> None:
    """Two columns; at most `ROWS_SHOWN_MAX` rows. `count`: how many there are, if more."""
    shown = rows[:ROWS_SHOWN_MAX]
    say_table(shown, ("left", "prose"), indent="    ")
    more = max(len(rows), count) - len(shown)
    if more:
        say(f"    and {more} more: `tailrace status --json` has all {what}")


def _next_step(found: "Standing", option: str) -> tuple[str, str]:
    if found.waiting:
        return f"tailrace status{option}", "a running engine looks for requests every 10 s"
    if found.pauses:
        return f"tailrace resume{option}", "goes on with what is paused"
    cancelled = [table.table for table in found.unfinished if table.snapshot == "cancelled"]
    if cancelled:
        return f"tailrace resync {quote(cancelled[0])}{option}", "its snapshot was cancelled"
    return f"tailrace verify{option}", "proves what is in the bucket"


def _as_json(found: "Standing", engine: Status | None) -> dict[str, object]:
    return {
        # None: no engine answered on this machine.
        "snapshots": None if engine is None else list(engine.snapshots),
        "snapshots_in_all": None if engine is None else engine.snapshots_in_all,
        "durable": {
            "position": found.durable_position,
            "commit_time": found.durable_time,
            "age_seconds": found.durable_age_seconds,
        },
        "entry": found.seq,
        "epoch": found.epoch,
        "writer": {"id": found.writer, "task": found.task, "release": found.release},
        "released": found.is_released,
        "lag": None if engine is None else _lag_as_json(engine),
        "stream_waits": found.is_stream_waiting,
        "paused": [
            {
                "table": pause.table or None,
                "text": pause.text,
                "position": pause.position or None,
                "at": pause.at,
            }
            for pause in found.pauses
        ],
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
            "answered": [_answer_as_json(answer) for answer in found.answers],
            "signals": [_answer_as_json(answer) for answer in found.signals],
        },
    }


def _lag_as_json(engine: Status) -> dict[str, object]:
    """As the engine's own `/status` names them."""
    return {
        "lag_seconds": engine.lag_seconds,
        "lag": engine.lag,
        "durable_lag_seconds": engine.durable_lag_seconds,
        "durable_lag": engine.durable_lag,
        "lag_unit": engine.lag_unit,
    }


def _answer_as_json(answer: "Answer") -> dict[str, object]:
    return {
        "name": answer.name,
        "kind": answer.kind,
        "tables": list(answer.tables),
        "outcome": answer.outcome,
        "text": answer.text,
        "at": answer.at,
    }
