"""A terminal's width, and text that is broken between words to fit it.

Strategy: only a terminal gets broken lines. In a pipe a text stays one line, because somebody may
search for it. What stands in backquotes is a command or a name, and is kept in one piece: whoever
copies it gets it whole.

Invariant: nothing is lost but the blanks at which a line is broken.
"""

import re
import shutil
from typing import Final, TextIO

_PIECES: Final = re.compile(r"(\s*)((?:`[^`]*`|[^\s`]|`)+)")

COLUMNS_MIN: Final = 40
"""No terminal is taken for narrower: its own breaking of lines does less harm than ours would."""


def columns_of(stream: TextIO) -> int | None:
    """How many columns the terminal behind `stream` has; None where there is none."""
    try:
        if not stream.isatty():
            return None
    except ValueError:
        return None
    return max(COLUMNS_MIN, shutil.get_terminal_size().columns)


def cells(text: str) -> int:
    """How many columns `text` takes: some characters take two, some none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - most texts are ASCII

    return cell_len(text)


def cut(text: str, columns: int) -> str:
    """`text`, or its beginning with `…` where it is wider: for rows, never for names or errors."""
    if cells(text) <= columns:
        return text
    from rich.cells import set_cell_size  # noqa: PLC0415 - as above

    return set_cell_size(text, columns - 1).rstrip() + "…"


def wrapped(text: str, columns: int | None, *, first: str = "", rest: str | None = None) -> str:
    """`text` in lines of at most `columns`, the first after `first`, the others after `rest`.

    Without `rest` the others begin below the first one's text. A piece that fits in no line stands
    on one of its own, too long. `columns`: None breaks nothing.
    """
    if columns is None or cells(first) + cells(text) <= columns:
        return first + text
    rest = " " * cells(first) if rest is None else rest
    lines: list[str] = []
    line, is_empty = first, True
    for blank, piece in _PIECES.findall(text):
        if is_empty or cells(line + blank + piece) <= columns:
            line += blank + piece
        else:
            lines.append(line)
            line = rest + piece
        is_empty = False
    return "\n".join([*lines, line])
