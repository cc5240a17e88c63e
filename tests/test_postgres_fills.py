"""Values that rows got without a word: as a record would hold them."""

import pytest

from engine.model.record import JsonMode, NumericMode, RecordConfiguration
from engine.sources.postgres.fills import fill_of


@pytest.mark.parametrize(
    ("missing", "kind", "expected"),
    [
        ("{5}", "integer", "5"),
        ("{t}", "boolean", "true"),
        ("{12.50}", "numeric", '"12.50"'),
        ("{NaN}", "float", '"NaN"'),
        ('{""}', "text", '""'),
        ('{"a\\"b\\\\c\n\td"}', "text", '"a\\"b\\\\c\\n\\td"'),
        ('{"2026-11-29 09:00:00.5+00"}', "timestamptz", '"2026-11-29T09:00:00.5Z"'),
        ('{"{1,NULL}"}', "integer[]", "[1,null]"),
        ('{"{\\"a\\": 1}"}', "json", '{"a":1}'),
        ('{"\\\\x00ff"}', "bytea", '"AP8="'),
        # What no record can hold is not told.
        ('{"\\\\x0"}', "bytea", ""),
    ],
)
def test_a_value_is_told_as_a_record_holds_it(missing: str, kind: str, expected: str) -> None:
    configuration = RecordConfiguration(through="tailrace", tables=("public.*",))

    assert fill_of(missing, kind, configuration) == expected


@pytest.mark.parametrize(
    ("numeric", "json", "missing", "kind", "expected"),
    [
        ("number", "embed", "{12.50}", "numeric", "12.50"),
        ("string", "string", "{1}", "json", '"1"'),
    ],
)
def test_the_modes_of_records_decide(
    numeric: NumericMode, json: JsonMode, missing: str, kind: str, expected: str
) -> None:
    configuration = RecordConfiguration(
        through="tailrace", tables=("public.*",), numeric=numeric, json=json
    )

    assert fill_of(missing, kind, configuration) == expected
