"""Hashed columns: the hash itself, and what becomes of a row's values in every place of a line."""

import hashlib
import hmac
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.lines.hashing import hash_of
from engine.lines.writer import VALUE_HASH, VALUE_TEXT, LineWriter
from engine.model.errors import ConfigurationError, UnrepresentableRow
from engine.model.hash_key import NO_HASH_KEY, HashKey
from engine.model.position import Position
from engine.model.record import RecordConfiguration, TableRule
from engine.model.schema import Column, Relation, TableName, TableVersion
from engine.model.schema_document import change_kinds, schema_document
from engine.sources.postgres.types import KIND_TEXT
from row_codec import RowCodec
from rowcodec_golden import ENVELOPES, GENERATION, bind_all, lines_of
from rowcodec_twin import (
    HASHED,
    SECRET,
    Absent,
    TwinCodec,
    Value,
    copy_bytes,
    frame_bytes,
    tuple_bytes,
)

TABLE = 7
ORDERS = TableName("public", "orders")
KEY = HashKey(SECRET)

# RFC 4231, section 4: HMAC-SHA-256. The fifth is of a cut digest.
VECTORS = [
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    (
        b"\xaa" * 20,
        b"\xdd" * 50,
        "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
    ),
    (
        bytes(range(1, 26)),
        b"\xcd" * 50,
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
    ),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        b"\xaa" * 131,
        (
            b"This is a test using a larger than block-size key and a larger than block-size data. "
            b"The key needs to be hashed before being used by the HMAC algorithm."
        ),
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]


@pytest.mark.parametrize(("secret", "value", "expected"), VECTORS)
def test_the_hash_is_hmac_sha_256(secret: bytes, value: bytes, expected: str) -> None:
    assert hash_of(secret, value) == expected


@given(secret=st.binary(max_size=140), value=st.binary(max_size=300))
def test_the_hash_is_what_pythons_own_is(secret: bytes, value: bytes) -> None:
    assert hash_of(secret, value) == hmac.new(secret, value, hashlib.sha256).hexdigest()


# One block holds 55 bytes beside its end, two hold 119.
@pytest.mark.parametrize("size", [0, 1, 54, 55, 56, 63, 64, 65, 119, 120, 127, 128, 1 << 20])
def test_a_value_of_any_size_is_padded_as_the_standard_says(size: int) -> None:
    value = bytes(number & 255 for number in range(size))

    assert hash_of(SECRET, value) == hmac.new(SECRET, value, hashlib.sha256).hexdigest()


# --------------------------------------------------------------------------------------- lines


def hash_text(value: bytes) -> str:
    return hmac.new(SECRET, value, hashlib.sha256).hexdigest()


def new_codec(columns: Any, **changed: Any) -> RowCodec:
    codec = RowCodec(1, **changed)
    codec.bind(
        TABLE,
        database="shop",
        schema="public",
        table="orders",
        version=1,
        columns=columns,
        key=["id"],
        envelope="standard",
        numeric="string",
        json="embed",
    )
    codec.begin(1, 1, 1)
    return codec


def line_of(codec: RowCodec) -> Any:
    rows = codec.take(TABLE)
    assert rows is not None
    return json.loads(rows.lines)


def frame(message: str, *tuples: bytes) -> bytes:
    return frame_bytes(1, message, TABLE, *tuples)


COLUMNS = [
    ("id", HASHED, True, True),
    ("email", HASHED, False, True),
    ("note", KIND_TEXT, False, True),
]


@pytest.mark.parametrize("envelope", ENVELOPES)
def test_of_real_frames_every_value_is_hashed_as_the_twin_does(envelope: str) -> None:
    codec, twin = RowCodec(GENERATION), TwinCodec(GENERATION)
    for one in (codec, twin):
        bind_all(one, envelope, is_hashed=True)

    lines = lines_of(codec, envelope)

    assert lines == lines_of(twin, envelope)
    assert lines.count(b"\n") >= 64


@pytest.mark.parametrize("value", [b"", b"a@b.example", b"tab\tline\n\\slash\x01", b"\xff", b"\\N"])
def test_a_snapshot_has_the_streams_hash(value: bytes) -> None:
    codec = new_codec(COLUMNS)
    codec.encode(frame("I", tuple_bytes("N", [b"1", value, b"x"])))
    streamed = line_of(codec)

    codec.encode_copy(TABLE, copy_bytes([b"1", value, b"x"]), 1, 0)

    assert line_of(codec)["after"] == streamed["after"]
    assert streamed["after"] == {"id": hash_text(b"1"), "email": hash_text(value), "note": "x"}


def test_null_stays_null() -> None:
    codec = new_codec(COLUMNS)

    codec.encode(frame("I", tuple_bytes("N", [b"1", Absent.NULL, Absent.NULL])))

    line = line_of(codec)
    assert line["after"]["email"] is None
    assert "json_null" not in line["metadata"]


def test_a_key_is_hashed_before_and_after_and_what_is_unchanged_stays_so() -> None:
    codec = new_codec(COLUMNS)
    old: list[Value] = [b"1", Absent.NULL, Absent.NULL]

    codec.encode(
        frame("U", tuple_bytes("K", old), tuple_bytes("N", [b"2", Absent.UNCHANGED, b"x"]))
    )

    line = line_of(codec)
    assert line["before"] == {"id": hash_text(b"1")}
    assert line["after"] == {"id": hash_text(b"2"), "note": "x"}
    assert line["metadata"]["unchanged"] == ["email"]


def test_the_full_old_row_is_hashed_too() -> None:
    codec = new_codec(COLUMNS)

    codec.encode(frame("D", tuple_bytes("O", [b"1", b"old@b.example", b"x"])))

    line = line_of(codec)
    assert line["before"] == {
        "id": hash_text(b"1"),
        "email": hash_text(b"old@b.example"),
        "note": "x",
    }


def test_the_shortest_values_have_room_for_their_hashes() -> None:
    columns = [(f"c{number}", HASHED, True, True) for number in range(1600)]
    codec = new_codec(columns)
    row = tuple_bytes("O", [b""] * 1600), tuple_bytes("N", [b""] * 1600)

    codec.encode(frame("U", *row))

    line = line_of(codec)
    expected = dict.fromkeys((name for name, *_ in columns), hash_text(b""))
    assert line["before"] == line["after"] == expected


def test_a_row_that_fails_shows_its_key_as_a_hash() -> None:
    codec = new_codec(COLUMNS)

    with pytest.raises(UnrepresentableRow) as caught:
        codec.encode(frame("I", tuple_bytes("N", [b"geheim", b"x", b"\xff"])))

    assert json.loads(caught.value.key) == {"id": hash_text(b"geheim")}
    assert "geheim" not in str(caught.value)


def test_a_row_that_a_source_writes_itself_is_hashed_alike() -> None:
    lines = LineWriter(1, connector="test", hash_key=SECRET)
    bound: dict[str, Any] = {
        "database": "d",
        "schema": "s",
        "table": "t",
        "version": 1,
        "key": ["id"],
        "envelope": "standard",
    }
    columns = [("id", VALUE_HASH, True, True), ("note", VALUE_TEXT, False, True)]
    lines.bind(TABLE, columns=columns, **bound)
    lines.begin(1, 1)

    lines.write(TABLE, 1, 0, None, (b"geheim", b"x"))
    with pytest.raises(UnrepresentableRow) as caught:
        lines.write(TABLE, 2, 0, None, (b"geheim", b"\xff"))

    rows = lines.take(TABLE)
    assert rows is not None
    assert json.loads(rows.lines)["after"] == {"id": hash_text(b"geheim"), "note": "x"}
    assert json.loads(caught.value.key) == {"id": hash_text(b"geheim")}


def test_nothing_is_hashed_without_a_key() -> None:
    lines = LineWriter(1, connector="test")

    with pytest.raises(ValueError, match="no key for the hash of column 'id'"):
        lines.bind(
            TABLE,
            database="d",
            schema="s",
            table="t",
            version=1,
            columns=[("id", VALUE_HASH, True, True)],
            key=["id"],
            envelope="standard",
        )


# ------------------------------------------------------------------------- configuration, schema


def configured(*rules: TableRule, key: HashKey = KEY) -> RecordConfiguration:
    return RecordConfiguration("tailrace", ("public.*",), rules=rules, hash_key_id=key.id)


def test_the_first_rule_that_matches_says_what_is_hashed() -> None:
    configuration = configured(
        TableRule("public.orders", hash=("email",)), TableRule("public.*", hash=("note",))
    )

    assert configuration.is_hashed(ORDERS, "email")
    assert not configuration.is_hashed(ORDERS, "note")
    assert configuration.is_hashed(TableName("public", "users"), "note")
    assert not configuration.is_hashed(TableName("sales", "users"), "note")


@pytest.mark.parametrize(
    "rule",
    [
        TableRule("public.*", exclude=("email",), hash=("email",)),
        TableRule("public.*", include=("id",), hash=("email",)),
    ],
)
def test_a_column_that_is_left_out_is_not_hashed(rule: TableRule) -> None:
    assert not configured(rule).is_hashed(ORDERS, "email")
    assert not configured(rule).is_included(ORDERS, "email")


def test_another_key_or_another_column_is_another_record_configuration() -> None:
    rule = TableRule("public.orders", hash=("email",))
    digests = {
        configured(rule).record_digest(ORDERS),
        configured(rule, key=HashKey(b"another" * 5)).record_digest(ORDERS),
        configured(TableRule("public.orders", hash=("email", "note"))).record_digest(ORDERS),
        configured(TableRule("public.orders")).record_digest(ORDERS),
    }

    assert len(digests) == 4


def test_a_table_without_hashes_keeps_its_record_under_another_key() -> None:
    rule, other = TableRule("public.users", hash=("email",)), HashKey(b"another" * 5)

    assert configured(rule).record_digest(ORDERS) == configured(rule, key=other).record_digest(
        ORDERS
    )
    # As releases without hashes wrote it.
    assert configured().record_digest(ORDERS) == "e51b5ed393ffbe37"


def test_a_keys_id_tells_keys_apart_and_nothing_shows_the_key() -> None:
    other = HashKey(SECRET + b"!")

    assert KEY.id == HashKey(SECRET).id
    assert len({KEY.id, other.id, NO_HASH_KEY.id}) == 3
    assert len(KEY.id) == 8
    assert SECRET.decode() not in repr(KEY)
    assert KEY.id not in (hash_text(b"")[:8], hashlib.sha256(SECRET).hexdigest()[:8])


def test_lines_of_an_earlier_key_cannot_be_made_under_this_one() -> None:
    configuration = configured(TableRule("public.orders", hash=("email",)))

    assert KEY.secret_for(configuration) == SECRET
    for key in (HashKey(b"another" * 5), NO_HASH_KEY):
        with pytest.raises(ConfigurationError, match=f"the key with the id {KEY.id}"):
            key.secret_for(configuration)


def test_a_configuration_without_hashes_needs_no_key() -> None:
    assert KEY.secret_for(configured(key=NO_HASH_KEY)) == b""


def version_of(*, is_hashed: bool, number: int = 1) -> TableVersion:
    columns = (
        Column("id", "integer", "integer", key=True, json="number"),
        Column("email", "text", "text", key=False, hashed=is_hashed),
    )
    relation = Relation(ORDERS, "16400", columns, ("id",))
    return TableVersion(number, Position("0001.0.0.0"), str(number), relation)


def test_schema_json_says_which_columns_are_hashed() -> None:
    document = json.loads(schema_document(version_of(is_hashed=True), None, "shop"))

    of_id, email = document["columns"]
    assert email["hash"] is True
    assert "hash" not in of_id


def test_a_column_that_becomes_hashed_is_a_change_of_its_own() -> None:
    kinds = change_kinds(version_of(is_hashed=True, number=2), version_of(is_hashed=False))

    assert kinds == ("hash_changed", "record_configuration_changed")


def test_the_journal_holds_the_keys_id_and_not_the_key() -> None:
    text = msgspec.json.encode(configured(TableRule("public.orders", hash=("email",)))).decode()

    assert KEY.id in text
    assert SECRET.decode() not in text
