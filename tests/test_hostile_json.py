"""verify: everything that PostgreSQL's json holds is right, however odd."""

import re

import pytest

from engine.reader.verify import Code
from small_bucket import make_bucket
from test_verify import codes, edit_lines, judged


@pytest.mark.parametrize(
    "value",
    [
        b"1E400",
        b"1" + b"0" * 5000,
        b"-0.5e-9999",
        rb'"\ud800"',
        rb'{"\udc00x":["\ud800\ud800"]}',
        rb'"\u0000"',
        b"[" * 5000 + b"1E400" + b"]" * 5000,
    ],
    ids=["huge", "digits", "tiny", "half-pair", "half-pair-key", "zero", "deep"],
)
async def test_json_that_a_fast_parser_refuses_is_no_problem(value: bytes) -> None:
    bucket = await make_bucket()
    member = b'"note":' + value
    edit_lines(bucket, 2, lambda lines: re.sub(rb'"note":"[^,]*"(?=[,}])', lambda _: member, lines))

    verdict = await judged(bucket.store)

    assert codes(verdict) == {Code.CONTENT_DIFFERS}


@pytest.mark.parametrize("value", [b"NaN", b"-Infinity", b"01", b'"\x01"', b'"\xff"', b"[" * 5000])
async def test_what_is_no_json_is_a_problem(value: bytes) -> None:
    bucket = await make_bucket()
    member = b'"note":' + value
    edit_lines(bucket, 2, lambda lines: re.sub(rb'"note":"[^,]*"(?=[,}])', lambda _: member, lines))

    verdict = await judged(bucket.store)

    assert codes(verdict) == {Code.CONTENT_DIFFERS, Code.LINE_MALFORMED}
