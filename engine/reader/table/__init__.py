"""One table, read from the bucket: its changes since a cursor, or its rows as they are.

The journal says up to where everything is there (`past`, `known`). The objects of the table's
stream are found by listing its folder, and proved by their chain (`links`, `folder`); the bodies of
small ones come along (`kept`). Those of its
snapshot are named by the journal (`snapshot`). `steps` puts them in order, `bodies` gets them, and
`doubts` says what keeps the answer from being right. `reading` is the whole.
"""

from engine.reader.table.cursor import Cursor
from engine.reader.table.doubts import Doubt
from engine.reader.table.past import Until, parse_until
from engine.reader.table.reading import Lines, Question, Reading, open_reading

__all__ = [
    "Cursor",
    "Doubt",
    "Lines",
    "Question",
    "Reading",
    "Until",
    "open_reading",
    "parse_until",
]
