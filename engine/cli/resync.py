"""`tailrace resync`: ask the running engine to take tables' snapshots again, or to cancel them."""

import asyncio
import os
import secrets
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from engine.cli.options import ConfigFile, Json, same_file
from engine.cli.output import complain, say, say_json, say_next
from engine.cli.startup import lean_imports
from engine.config import DestinationConfiguration, default_log, load_destination
from engine.model.printable import printable
from engine.model.request import (
    REQUEST_BYTES_MAX,
    REQUEST_FORMAT,
    Request,
    encode_request,
    request_key,
    request_name,
    request_time_us,
)
from engine.model.schema import TableName

if TYPE_CHECKING:
    from engine.journal.entry import JournalState
    from engine.model.interfaces import ObjectStore
    from engine.reader.journal import JournalView

FOLLOW_SECONDS = 2.0

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
        help="Wait until it is done and, without --cancel, until the snapshots are finished.",
    ),
]


def resync(
    *tables: str,
    cancel: CancelOption = False,
    wait: WaitOption = False,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Ask the running engine to take the snapshots of tables again.

    Needs only [destination] of the configuration, and the right to create objects below
    `_tailrace/requests/`. The engine looks there every 10 s. Tables are schema.table, quoted as in
    SQL. Exit code 1: the request was refused, or its snapshot cancelled meanwhile.
    """
    names = _names(tables)
    if not names:
        return EXIT_USAGE
    destination = load_destination(config, os.environ)
    asked = _Asked(names, "cancel" if cancel else "resync", is_waiting=wait, is_quiet=json)
    code = asyncio.run(asked.run(destination))
    if json:
        say_json({"request": asked.name, "outcome": asked.outcome, "text": asked.text})
    elif code:
        complain(asked.text or "the request was refused", "`tailrace status` shows what there is")
    else:
        say_next(f"tailrace status{same_file(config)}")
    return code


def _names(tables: tuple[str, ...]) -> tuple[str, ...]:
    """The tables as the journal writes them; none where one is no table's name."""
    if not tables:
        complain("no table is named", "tailrace resync schema.table")
    try:
        return tuple(dict.fromkeys(str(TableName.parse(table)) for table in tables))
    except ValueError as error:
        complain(str(error), 'write schema.table, and quote other names: \'"Schema"."my table"\'')
        return ()


class _Asked:
    """One request from its making to its end."""

    def __init__(
        self, tables: tuple[str, ...], kind: str, *, is_waiting: bool, is_quiet: bool
    ) -> None:
        self.name = ""
        self.outcome = "waiting"
        self.text = ""
        self._tables = tables
        self._kind = kind
        self._is_waiting = is_waiting
        self._is_quiet = is_quiet

    async def run(self, destination: DestinationConfiguration) -> int:
        with lean_imports():
            from engine import app  # noqa: PLC0415 - a wrong configuration is told before
            from engine.operate import logs  # noqa: PLC0415 - likewise
        from engine.journal.requests import known_tables, unknown_text  # noqa: PLC0415 - likewise
        from engine.reader.journal import JournalView  # noqa: PLC0415 - likewise

        logs.configure(default_log())
        async with app.open_bucket(destination) as store:
            view = JournalView(store, destination.prefix)
            await view.load()
            known = known_tables(view.state)
            if unknown := [table for table in self._tables if table not in known]:
                self.outcome, self.text = "refused", unknown_text(unknown, known)
                return EXIT_REFUSED
            before = dict(view.state.attempts)
            await self._create(store, destination.prefix, view.state, app.wall_clock())
            return await self._wait(view, before) if self._is_waiting else 0

    async def _create(
        self, store: "ObjectStore", prefix: str, state: "JournalState", now_us: int
    ) -> None:
        # Names up to the mark are over, whatever this machine's clock says.
        through = state.answers_through
        time_us = max(now_us, request_time_us(through) + 1) if through else now_us
        self.name = request_name(time_us, secrets.token_hex(8))
        body = encode_request(Request(REQUEST_FORMAT, self._kind, self._tables))
        if len(body) > REQUEST_BYTES_MAX:
            raise ValueError("too many tables for one request")
        await store.create(
            request_key(prefix, self.name), body, content_type="application/json", metadata={}
        )
        self._tell(f"asked: {self.name}")

    def _tell(self, text: str) -> None:
        if not self._is_quiet:
            say(printable(text))

    async def _wait(self, view: "JournalView", before: dict[str, int]) -> int:
        while not view.state.is_answered(self.name):
            await asyncio.sleep(FOLLOW_SECONDS)
            await view.follow()
        answer = view.state.answers.get(self.name)
        if answer is not None:
            self.outcome, self.text = answer.outcome, answer.text
        if self.outcome == "refused":
            return EXIT_REFUSED
        self._tell("the engine has it")
        return 0 if self._kind == "cancel" else await self._finished(view, before)

    async def _finished(self, view: "JournalView", before: dict[str, int]) -> int:
        left = set(self._tables)
        while left:
            for table in sorted(left):
                stated = view.state.snapshots.get(table)
                is_cancelled = stated is None or stated.snapshot.state == "cancelled"
                is_old = stated is not None and stated.snapshot.attempt <= before.get(table, 0)
                if stated is not None and stated.is_visible and is_old:
                    is_cancelled = True
                if is_cancelled:
                    self.outcome = "cancelled"
                    self.text = f"the snapshot of {table} was cancelled"
                    return EXIT_REFUSED
                if stated is not None and stated.is_visible:
                    if stated.snapshot.point <= view.state.durable_position:
                        left.discard(table)
                        self._tell(f"finished: {table}")
            if left:
                await asyncio.sleep(FOLLOW_SECONDS)
                await view.follow()
        self.outcome = "finished"
        return 0
