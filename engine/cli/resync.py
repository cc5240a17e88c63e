"""`tailrace resync`: ask the running engine to take tables' snapshots again, or to cancel them."""

import asyncio
import os
import secrets
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from engine.cli.options import ConfigFile, Json, same_file
from engine.cli.output import complain, flush, say, say_json, say_next
from engine.cli.startup import lean_imports
from engine.config import DestinationConfiguration, default_log, load_destination
from engine.model.printable import printable
from engine.model.request import RequestRefused, request_key

if TYPE_CHECKING:
    from engine.model.interfaces import ObjectStore
    from engine.reader.journal import JournalView

Outcome = Literal["waiting", "done", "refused", "finished", "given up"]

FOLLOW_SECONDS = 1.0
IDLE_SECONDS = 30.0
"""The engine looks every 10 s. When it has not answered for so long, probably none is running."""

TABLES_SHOWN_MAX = 10
EXIT_REFUSED = 1
EXIT_USAGE = 2

Tables = Annotated[
    str,
    Parameter(
        help="schema.table, quoted as in SQL. The schema may be left out where one table alone has "
        "that name.",
    ),
]

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
    `_tailrace/requests/`. The engine looks there every 10 s. A table is schema.table, quoted as in
    SQL; the schema may be left out where one table has that name. Exit code 1: the request was
    refused, or with --wait, a snapshot was given up. Where source.signals is true, the same can be
    asked in SQL:
    SELECT pg_logical_emit_message(true, 'tailrace',
    '{"format": 1, "kind": "resync", "tables": ["public.orders"]}')
    """
    if not tables:
        complain("no table is named", "tailrace resync schema.table")
        return EXIT_USAGE
    destination = load_destination(config, os.environ)
    asked = _Asked("cancel" if cancel else "resync", is_waiting=wait, is_quiet=json)
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
        say_next(_next_step(asked.outcome, option))
    else:
        complain(asked.text, f"`tailrace status{option}` lists the tables and requests")
    return 0 if is_good else EXIT_REFUSED


def _next_step(outcome: Outcome, option: str) -> str:
    if outcome == "finished":
        return f"tailrace verify{option}  (proves what is in the bucket)"
    waiting = "  (a running engine looks for requests every 10 s)" * (outcome == "waiting")
    return f"tailrace status{option}{waiting}"


class _Asked:
    """One request from its making to its end. `text` says why it was refused or given up."""

    def __init__(self, kind: str, *, is_waiting: bool, is_quiet: bool) -> None:
        self.name = ""
        self.tables: tuple[str, ...] = ()
        self.outcome: Outcome = "waiting"
        self.text = ""
        self._kind = kind
        self._is_waiting = is_waiting
        self._is_quiet = is_quiet
        self._told: dict[str, str] = {}

    async def run(self, words: tuple[str, ...], destination: DestinationConfiguration) -> None:
        with lean_imports():
            from engine import app  # noqa: PLC0415 - a wrong configuration is told before
            from engine.operate import logs  # noqa: PLC0415 - likewise
        from engine.reader.journal import JournalView  # noqa: PLC0415 - likewise

        logs.configure(default_log())
        async with app.open_bucket(destination) as store:
            view = JournalView(store, destination.prefix)
            await view.load()
            try:
                await self._create(words, store, view, app.wall_clock())
            except RequestRefused as refusal:
                self.outcome, self.text = "refused", str(refusal)
                return
            if self._is_waiting:
                await self._wait(view)

    async def _create(
        self, words: tuple[str, ...], store: "ObjectStore", view: "JournalView", now_us: int
    ) -> None:
        from engine.reader import asking  # noqa: PLC0415 - it loads the engine

        self.tables = asking.tables_meant(words, view.state)
        body = asking.request_body(self._kind, self.tables)
        name = asking.name_of_next(view.state, now_us, secrets.token_hex(8))
        key = request_key(view.prefix, name)
        await store.create(key, body, content_type="application/json", metadata={})
        self.name = name
        what = "to cancel the snapshot of" if self._kind == "cancel" else "for a new snapshot of"
        self._tell(f"asked {what} {_some(self.tables)}\n    request {name}")

    async def _wait(self, view: "JournalView") -> None:
        before = await self._answered(view)
        answer = view.state.answers.get(self.name)
        if answer is not None:
            self.outcome, self.text = answer.outcome, answer.text
        if self.outcome == "refused":
            return
        self.outcome = "done"
        self._tell("the engine did it" if self._kind == "cancel" else "the engine has taken it")
        if self.text:
            self._tell(f"    {self.text}")
        if self._kind == "resync":
            await self._finished(view, before)

    async def _answered(self, view: "JournalView") -> dict[str, int]:
        """Wait for the answer. The tables' newest attempts at the last look before it."""
        waited = 0.0
        before = dict(view.state.attempts)
        while not view.state.is_answered(self.name):
            if IDLE_SECONDS <= waited < IDLE_SECONDS + FOLLOW_SECONDS:
                self._tell("no engine has looked yet: is one running? The request stays.")
            await asyncio.sleep(FOLLOW_SECONDS)
            waited += FOLLOW_SECONDS
            before = dict(view.state.attempts)
            await view.follow()
        return before

    async def _finished(self, view: "JournalView", before: dict[str, int]) -> None:
        from engine.reader.asking import progress  # noqa: PLC0415 - it loads the engine

        while True:
            found = {table: progress(table, view.state, before) for table in self.tables}
            for table, how in found.items():
                self._tell_progress(table, how, view.state.attempts.get(table, 0))
            given_up = [table for table, how in found.items() if how == "given up"]
            if given_up:
                self.outcome = "given up"
                self.text = (
                    f"the snapshot of {_some(given_up)} was given up: somebody cancelled it, or "
                    "the configuration leaves the table out"
                )
                return
            if set(found.values()) == {"finished"}:
                self.outcome = "finished"
                return
            await asyncio.sleep(FOLLOW_SECONDS)
            await view.follow()

    def _tell_progress(self, table: str, how: str, attempt: int) -> None:
        texts = {
            "started": f"attempt {attempt} reads its rows",
            "whole": "every row is stored; finished once the stream has passed this point",
            "void": "the attempt's objects are gone, another one follows",
            "finished": f"finished by attempt {attempt}",
        }
        text = texts.get(how)
        if text is not None and self._told.get(table) != text:
            self._told[table] = text
            self._tell(f"    {table}: {text}")

    def _tell(self, text: str) -> None:
        if not self._is_quiet:
            say(printable(text, keep="\n"))
            # Whoever waits reads it now, in a pipe too.
            flush()


def _some(tables: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(map(printable, tables[:TABLES_SHOWN_MAX]))
    more = len(tables) - TABLES_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown
