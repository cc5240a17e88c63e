"""What somebody asks of the running engine: which tables are meant, and what became of it. Pure.

Strategy: a snapshot that was asked for has an attempt with a higher number than the table had when
the engine answered. Whoever waits remembers those numbers, and looks for a higher one.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from engine.journal.entry import JournalState
from engine.journal.requests import known_tables, unknown_text
from engine.journal.snapshot_standing import how_far
from engine.model.request import (
    REQUEST_BYTES_MAX,
    REQUEST_FORMAT,
    Request,
    RequestRefused,
    encode_request,
    request_name,
    request_time_us,
)
from engine.model.schema import TableName

Progress = Literal["wanted", "started", "whole", "visible", "finished", "void", "given up"]
"""How far a snapshot is that was asked for. *given up*: no attempt will be made for this asking."""


def tables_meant(words: Sequence[str], state: JournalState) -> tuple[str, ...]:
    """The tables that `words` name, as the journal writes them, each once.

    A name without a schema is enough where one known table has it. Raises RequestRefused.
    """
    known = known_tables(state)
    return tuple(dict.fromkeys(_table_meant(word, known) for word in words))


def _table_meant(word: str, known: frozenset[str]) -> str:
    try:
        name = str(TableName.parse(word))
        meant = [name] if name in known else []
    except ValueError:
        name, bare = word, _bare(word)
        meant = sorted(table for table in known if TableName.parse(table).table == bare)
    if not meant:
        raise RequestRefused(unknown_text([name], known))
    if len(meant) > 1:
        raise RequestRefused(f"{word} may be {' or '.join(meant)}: name its schema, too")
    return meant[0]


def _bare(word: str) -> str:
    """A table's name without its schema, unquoted."""
    try:
        return TableName.parse(f"schema.{word}").table
    except ValueError as error:
        raise RequestRefused(f"{word!r} is no table's name: write schema.table") from error


def request_body(kind: str, tables: tuple[str, ...]) -> bytes:
    """The bytes of a request. Raises RequestRefused where an engine would not read so many."""
    body = encode_request(Request(REQUEST_FORMAT, kind, tables))
    if len(body) > REQUEST_BYTES_MAX:
        raise RequestRefused(
            f"{len(tables)} tables are too many for one request, which has {REQUEST_BYTES_MAX} "
            f"bytes at most: this one has {len(body)}"
        )
    return body


def name_of_next(state: JournalState, now_us: int, nonce: str) -> str:
    """The name of a request that is made now: above the mark, however late this clock is."""
    through = state.answers_through
    time_us = max(now_us, request_time_us(through) + 1) if through else now_us
    return request_name(time_us, nonce)


def progress(table: str, state: JournalState, before: Mapping[str, int]) -> Progress:
    """How far the snapshot of `table` is that an answered request asked for.

    `before` has each table's newest attempt when the request was answered.
    """
    stated = state.snapshots.get(table)
    if stated is None:
        return "given up"
    is_earlier = stated.is_visible and stated.snapshot.attempt <= before.get(table, 0)
    how = how_far(stated, state)
    if is_earlier or how == "cancelled" or how == "gone":  # noqa: PLR1714 - mypy narrows these.
        return "given up"
    return how
