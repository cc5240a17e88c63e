"""Records of the flat envelope, whose columns and own names are members of one object.

Strategy: a line is taken as a whole, and its members by their names. So no name of a column has to
be one that the engine takes, and names that differ in case are two. A delete's line has what its
row had, every other line what the row has.
"""

from collections.abc import Callable
from dataclasses import dataclass

from engine.reader.views.shape import TableShape


@dataclass(frozen=True, slots=True)
class FlatForm:
    """How one engine takes a line apart.

    `row` is what holds the members. `text` makes an own name's text of the name, and `texts` its
    list of texts. `time` is a column of the commit's time, made of its text.
    """

    row: str
    text: Callable[[str], str]
    texts: Callable[[str], str]
    time: Callable[[str], str]


def flat_records(shape: TableShape, form: FlatForm, lines: str) -> str:
    """The SELECT of all records, as other envelopes have them; `lines` is the relation of lines."""

    def own(field: str) -> str:
        return shape.flat_prefix + field

    op = form.text(own("op"))
    return f"""SELECT {op} AS op, {form.text(own("position"))} AS position,
        {form.time(form.text(own("commit_ts")))},
        CASE WHEN {op} = 'd' THEN {form.row} END AS before,
        CASE WHEN {op} <> 'd' THEN {form.row} END AS after,
        {form.texts(own("unchanged"))} AS unchanged,
        {form.texts(own("json_null"))} AS json_null
    FROM {lines}"""
