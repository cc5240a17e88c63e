"""What a command asks of the running engine: the request's object, and what becomes of it."""

import asyncio
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

from engine.cli.output import flush, say
from engine.cli.startup import lean_imports
from engine.config import DestinationConfiguration, default_log
from engine.model.printable import printable
from engine.model.request import RequestRefused, request_key

if TYPE_CHECKING:
    from engine.model.interfaces import ObjectStore
    from engine.reader.journal import JournalView

Outcome = Literal["waiting", "done", "refused", "finished", "given up"]

FOLLOW_SECONDS = 1.0
IDLE_SECONDS = 30.0
"""The engine looks every 10 s. When it has not answered for so long, probably none is running. A
snapshot that it has not begun for so long probably waits for somebody."""

TABLES_SHOWN_MAX = 10

_WHAT: Final[Mapping[str, str]] = {
    "resync": "for a new snapshot of",
    "cancel": "to cancel the snapshot of",
    "pause": "to pause",
    "resume": "to resume",
}


class Asked:
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
        """Ask it, and wait where that is wanted. Cancellation leaves what was asked as it is."""
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
        everything = "everything that is paused" if self._kind == "resume" else "the stream"
        whom = _some(self.tables) if self.tables else everything
        self._tell(f"asked {_WHAT[self._kind]} {whom}\n    request {name}")

    async def _wait(self, view: "JournalView") -> None:
        before = await self._answered(view)
        answer = view.state.answers.get(self.name)
        if answer is not None:
            self.outcome, self.text = answer.outcome, answer.text
        if self.outcome == "refused":
            return
        self.outcome = "done"
        self._tell("the engine has taken it" if self._kind == "resync" else "the engine did it")
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

        waited = 0.0
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
            if IDLE_SECONDS <= waited < IDLE_SECONDS + FOLLOW_SECONDS:
                self._tell_not_begun([table for table, how in found.items() if how == "wanted"])
            await asyncio.sleep(FOLLOW_SECONDS)
            waited += FOLLOW_SECONDS
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

    def _tell_not_begun(self, tables: list[str]) -> None:
        if tables:
            self._tell(
                f"    not begun yet: {_some(tables)}; an alarm in the engine's log, or `tailrace "
                "check`, says what it waits for"
            )

    def _tell(self, text: str) -> None:
        if not self._is_quiet:
            say(printable(text, keep="\n"))
            # Whoever waits reads it now, in a pipe too.
            flush()


def _some(tables: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(map(printable, tables[:TABLES_SHOWN_MAX]))
    more = len(tables) - TABLES_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown
