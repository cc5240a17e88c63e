"""A table of text: names on the left, numbers below each other, prose that is broken to fit.

Strategy: everything fits a terminal of 80 columns, and nothing is shortened, because an operator
copies names from here. A name that is too long for its column stands on a line of its own, and
what belongs to it follows below. Where there is no terminal, each row is one line.
"""

from collections.abc import Sequence
from typing import Final, Literal

from engine.cli.terminal import cells, wrapped

Alignment = Literal["left", "right", "prose"]
"""How a column stands. prose: on the left, and broken at words; only the last column is."""

_BETWEEN: Final = "  "
_NAME_COLUMNS_MIN: Final = 12
_PROSE_SHARE: Final = 0.4
"""Prose has at least so much of the terminal, so that its lines are no towers of single words."""


def table_lines(
    rows: Sequence[Sequence[str]],
    alignments: Sequence[Alignment],
    columns: int | None,
    *,
    indent: str = "",
) -> list[str]:
    """The rows as lines, each under `indent`, at most `columns` wide (None: as wide as needed).

    A heading is a row like the others. The first column is the name.
    """
    if not rows:
        return []
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    if columns is not None:
        room = columns - cells(indent) - cells(_BETWEEN) * (len(widths) - 1)
        widths[0] = _name_width(widths, alignments, room)
    lines: list[str] = []
    for row in rows:
        lines += _row_lines(row, alignments, widths, columns, indent)
    return lines


def _name_width(widths: list[int], alignments: Sequence[Alignment], room: int) -> int:
    """The first column's width, where all of them have `room`."""
    last = widths[-1]
    if alignments[-1] == "prose":
        last = min(last, int(room * _PROSE_SHARE))
    return min(widths[0], max(_NAME_COLUMNS_MIN, room - sum(widths[1:-1]) - last))


def _row_lines(
    row: Sequence[str],
    alignments: Sequence[Alignment],
    widths: list[int],
    columns: int | None,
    indent: str,
) -> list[str]:
    name, *others = row
    lines = []
    if columns is not None and cells(name) > widths[0]:
        lines += [indent + piece for piece in _pieces(name, columns - cells(indent))]
        name = ""
    told = [_aligned(name, widths[0], "left")]
    for text, width, alignment in zip(others, widths[1:], alignments[1:], strict=True):
        if alignment != "prose":
            told.append(_aligned(text, width, alignment))
    line = indent + _BETWEEN.join(told)
    if alignments[-1] == "prose":
        return [*lines, *wrapped(others[-1], columns, first=line + _BETWEEN).rstrip().split("\n")]
    return [*lines, line.rstrip()]


def _pieces(name: str, width: int) -> list[str]:
    """A name in pieces of at most `width` columns."""
    pieces, piece = [], ""
    for character in name:
        if cells(piece + character) > width:
            pieces.append(piece)
            piece = ""
        piece += character
    return [*pieces, piece]


def _aligned(text: str, width: int, alignment: Alignment) -> str:
    blank = " " * (width - cells(text))
    return blank + text if alignment == "right" else text + blank


def two_columns(rows: Sequence[tuple[str, str]], columns: int | None, indent: str) -> list[str]:
    """Names, and what is to be said of each."""
    return table_lines(rows, ("left", "prose"), columns, indent=indent)
