"""The contracts of values.pyx: how the compiled readers take a column's values (see types.py)."""

from typing import Final

FORM_TEXT: Final[int]
FORM_BOOLEAN: Final[int]
FORM_INTEGER: Final[int]
FORM_NUMBER: Final[int]
FORM_TIMESTAMP: Final[int]
FORM_TIMESTAMPTZ: Final[int]
FORM_BYTEA: Final[int]
FORM_JSON: Final[int]
# A flag: `FORM_ARRAY | FORM_INTEGER` is an array of integers.
FORM_ARRAY: Final[int]
