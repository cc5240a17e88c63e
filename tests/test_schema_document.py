"""schema.json: golden bytes, and each kind of difference."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.position import Position
from engine.model.schema import Column, Relation, TableName, TableVersion, is_rename_unclear
from engine.model.schema_document import change_kinds, previous_version, schema_document

FIRST = Position("0001.00000000134EBCB0.00000000134EBC00.000000")
ID = Column("id", "integer", "integer", key=True, json="number", nullable=False, type_id=23)
NOTE = Column("note", "text", "text", key=False, type_id=25)
FACTS: dict[str, str | int] = {"oid": 16384, "replica_identity": "d"}
RELATION = Relation(TableName("public", "orders"), "16384", (ID, NOTE), ("id",), FACTS)
VERSION = TableVersion(1, FIRST, "a" * 16, RELATION)

GOLDEN = b"""{
  "format": 1,
  "database": "shop",
  "schema": "public",
  "table": "orders",
  "version": 1,
  "from": "0001.00000000134EBCB0.00000000134EBC00.000000",
  "columns": [
    {
      "name": "id",
      "type": "integer",
      "type_kind": "integer",
      "key": true,
      "json": "number",
      "nullable": false,
      "default": null
    },
    {
      "name": "note",
      "type": "text",
      "type_kind": "text",
      "key": false,
      "json": "string",
      "nullable": true,
      "default": null
    }
  ],
  "key": [
    "id"
  ],
  "changes": [],
  "oid": 16384,
  "replica_identity": "d"
}
"""


def changes(
    relation: Relation, old: Relation = RELATION, record: str = VERSION.record
) -> list[Any]:
    version = TableVersion(2, FIRST, record, relation)
    document = json.loads(schema_document(version, TableVersion(1, FIRST, "a" * 16, old), "shop"))
    found = document["changes"]
    assert isinstance(found, list)
    return found


def with_columns(*columns: Column) -> Relation:
    return msgspec.structs.replace(RELATION, columns=columns)


def test_a_first_version_has_these_very_bytes() -> None:
    document = schema_document(VERSION, None, "shop")

    assert document == GOLDEN


def test_names_are_raw_and_a_version_that_no_streamed_row_takes_has_no_first_position() -> None:
    name = TableName('we"ird.schema', "täble 100%")
    relation = msgspec.structs.replace(RELATION, table=name)

    document = json.loads(schema_document(TableVersion(3, None, "", relation), None, "sh/op"))

    assert (document["database"], document["schema"], document["table"]) == (
        "sh/op",
        'we"ird.schema',
        "täble 100%",
    )
    assert document["from"] is None
    assert document["version"] == 3


def test_an_equal_relation_shows_no_change() -> None:
    assert changes(RELATION) == []


def test_an_added_column_is_named_with_its_type() -> None:
    added = Column("total", "numeric(10,2)", "numeric", key=False)

    assert changes(with_columns(ID, NOTE, added)) == [
        {"kind": "column_added", "column": "total", "to": "numeric(10,2)"}
    ]


def test_a_dropped_column_is_named_with_its_type() -> None:
    assert changes(with_columns(ID)) == [
        {"kind": "column_dropped", "column": "note", "from": "text"}
    ]


def test_a_rename_that_nobody_proves_is_a_drop_and_an_addition() -> None:
    renamed = msgspec.structs.replace(NOTE, name="remark")

    kinds = [(change["kind"], change["column"]) for change in changes(with_columns(ID, renamed))]

    assert kinds == [("column_dropped", "note"), ("column_added", "remark")]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"type": "bigint", "type_id": 20}, {"from": "text", "to": "bigint"}),
        ({"type_id": 77777}, {"from": "text", "to": "text"}),
        ({"type_modifier": 24}, {"from": "text", "to": "text"}),
    ],
)
def test_a_changed_type_shows_the_old_and_the_new(
    changed: dict[str, object], expected: dict[str, str]
) -> None:
    column = msgspec.structs.replace(NOTE, **changed)

    assert changes(with_columns(ID, column)) == [
        {"kind": "type_changed", "column": "note", **expected}
    ]


def numbered(column: Column, number: int, **others: object) -> Column:
    return msgspec.structs.replace(column, number=number, **others)


def test_a_rename_is_told_where_the_columns_numbers_prove_it() -> None:
    before = with_columns(numbered(ID, 1), numbered(NOTE, 2))
    after = with_columns(numbered(ID, 1), numbered(NOTE, 2, name="remark", type="varchar(9)"))

    assert changes(after, before) == [
        {"kind": "column_renamed", "column": "remark", "from": "note", "to": "remark"},
        {"kind": "type_changed", "column": "remark", "from": "text", "to": "varchar(9)"},
    ]


def test_another_column_of_the_same_name_is_a_drop_and_an_addition() -> None:
    before = with_columns(numbered(ID, 1), numbered(NOTE, 2))
    after = with_columns(numbered(ID, 1), numbered(NOTE, 3, fill='"-"', default="'-'::text"))

    assert changes(after, before) == [
        {"kind": "column_dropped", "column": "note", "from": "text"},
        {
            "kind": "column_added",
            "column": "note",
            "to": "text",
            "default": "'-'::text",
            "fill": "-",
        },
    ]


def test_two_columns_that_swap_their_names_are_two_renames() -> None:
    before = with_columns(numbered(ID, 1), numbered(NOTE, 2), numbered(NOTE, 3, name="remark"))
    after = with_columns(numbered(ID, 1), numbered(NOTE, 2, name="remark"), numbered(NOTE, 3))

    kinds = [(change["kind"], change["column"]) for change in changes(after, before)]

    assert kinds == [("column_renamed", "remark"), ("column_renamed", "note")]


def test_numbers_of_another_table_prove_nothing() -> None:
    before = with_columns(numbered(ID, 2), numbered(NOTE, 1))
    remade = msgspec.structs.replace(
        with_columns(numbered(ID, 1), numbered(NOTE, 2)), identity="16999"
    )

    assert [change["kind"] for change in changes(remade, before)] == ["table_recreated"]


@pytest.mark.parametrize(
    ("former", "expected"),
    [
        ("public.orders_new", [("table_renamed", "orders_new", "orders")]),
        ("staging.orders", [("table_moved", "staging", "public")]),
        (
            "staging.neu",
            [("table_moved", "staging", "public"), ("table_renamed", "neu", "orders")],
        ),
    ],
)
def test_a_table_that_had_another_name_says_so_in_its_first_version_too(
    former: str, expected: list[tuple[str, str, str]]
) -> None:
    version = msgspec.structs.replace(VERSION, former_name=former)

    document = json.loads(schema_document(version, None, "shop"))

    assert [(c["kind"], c["from"], c["to"]) for c in document["changes"]] == expected
    assert change_kinds(version, None) == tuple(kind for kind, _, _ in expected)


def test_a_column_says_its_number_and_what_rows_from_before_have_in_it() -> None:
    column = numbered(NOTE, 7, fill='{"a": [1, null]}')
    version = msgspec.structs.replace(VERSION, relation=with_columns(ID, column))

    exact = msgspec.structs.replace(
        VERSION, relation=with_columns(numbered(NOTE, 1, fill="1.000000000000000000001"))
    )

    first, second = json.loads(schema_document(version, None, "shop"))["columns"]

    assert b'"fill": 1.000000000000000000001' in schema_document(exact, None, "shop")
    assert "number" not in first
    assert "fill" not in first
    assert (second["number"], second["fill"]) == (7, {"a": [1, None]})


@pytest.mark.parametrize(
    ("before", "after", "is_unclear"),
    [
        ((ID, NOTE), (ID, numbered(NOTE, 0, name="remark")), True),
        ((ID, numbered(NOTE, 2)), (ID, numbered(NOTE, 0, name="remark")), True),
        ((ID, numbered(NOTE, 2)), (ID, numbered(NOTE, 2, name="remark")), False),
        ((ID, numbered(NOTE, 2)), (ID, numbered(NOTE, 3, name="remark")), False),
        ((ID, NOTE), (ID,), False),
        ((ID,), (ID, NOTE), False),
        ((ID, NOTE), (NOTE, ID), False),
    ],
)
def test_a_rename_is_unclear_where_a_column_went_another_came_and_no_numbers_tell(
    before: tuple[Column, ...], after: tuple[Column, ...], *, is_unclear: bool
) -> None:
    assert is_rename_unclear(with_columns(*before), with_columns(*after)) == is_unclear


def test_nothing_is_unclear_between_two_tables_of_one_name() -> None:
    remade = msgspec.structs.replace(
        with_columns(ID, msgspec.structs.replace(NOTE, name="remark")), identity="16999"
    )

    assert not is_rename_unclear(RELATION, remade)


def test_nullability_and_default_are_told_apart() -> None:
    column = msgspec.structs.replace(NOTE, nullable=False, default="'-'")

    assert changes(with_columns(ID, column)) == [
        {"kind": "nullability_changed", "column": "note", "from": "null", "to": "not null"},
        {"kind": "default_changed", "column": "note", "to": "'-'"},
    ]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("sad", "glad"), []),
        (("low", "sad", "calm", "glad"), [{"kind": "labels_added", "to": "low, calm"}]),
        # Renamed, or of another type with the same number of labels.
        (("low", "glad"), [{"kind": "labels_changed", "from": "sad, glad", "to": "low, glad"}]),
        # Not known any more: too many, or the column is hashed now.
        ((), []),
    ],
)
def test_labels_of_an_enumeration_are_compared(
    labels: tuple[str, ...], expected: list[dict[str, str]]
) -> None:
    before = Column("mood", "mood", "text", key=False, labels=("sad", "glad"))
    now = msgspec.structs.replace(before, labels=labels)

    found = changes(with_columns(ID, now), with_columns(ID, before))

    assert found == [{"column": "mood", **change} for change in expected]


def test_a_new_order_of_columns_is_one_change() -> None:
    assert changes(with_columns(NOTE, ID)) == [{"kind": "columns_reordered"}]


def test_an_addition_in_front_is_no_new_order() -> None:
    added = Column("total", "money", "money", key=False)

    assert [change["kind"] for change in changes(with_columns(added, ID, NOTE))] == ["column_added"]


def test_another_key_shows_both() -> None:
    relation = msgspec.structs.replace(RELATION, key=("id", "note"))

    assert changes(relation) == [{"kind": "key_changed", "from": "id", "to": "id, note"}]


def test_another_replica_identity_does_not_claim_that_the_key_changed() -> None:
    full = tuple(msgspec.structs.replace(column, key=True) for column in (ID, NOTE))
    relation = msgspec.structs.replace(
        RELATION, facts={**FACTS, "replica_identity": "f"}, columns=full
    )

    assert changes(relation) == [{"kind": "replica_identity_changed", "from": "d", "to": "f"}]


def test_a_table_created_anew_under_its_name_is_seen() -> None:
    relation = msgspec.structs.replace(RELATION, identity="20000", facts={**FACTS, "oid": 20000})

    assert changes(relation) == [{"kind": "table_recreated", "from": "16384", "to": "20000"}]


def test_another_record_configuration_is_seen() -> None:
    assert changes(RELATION, record="b" * 16) == [{"kind": "record_configuration_changed"}]


def test_the_previous_version_is_the_next_lower_number_whatever_the_order() -> None:
    one, two, three = (TableVersion(n, None, "", RELATION) for n in (1, 2, 3))

    assert previous_version((three, one, two), three) == two
    assert previous_version((three, one, two), one) is None


columns = st.builds(
    Column,
    name=st.text(min_size=1, max_size=5),
    type=st.sampled_from(["integer", "text"]),
    type_kind=st.sampled_from(["integer", "text"]),
    key=st.booleans(),
    default=st.none() | st.text(max_size=5),
)
relations = st.builds(
    Relation,
    table=st.builds(TableName, st.text(min_size=1), st.text(min_size=1)),
    identity=st.integers(1, 9).map(str),
    facts=st.fixed_dictionaries({"oid": st.integers(1, 9), "state": st.sampled_from("dnfi")}),
    columns=st.lists(columns, max_size=4, unique_by=lambda column: column.name).map(tuple),
    key=st.lists(st.text(max_size=3), max_size=2).map(tuple),
)


@given(relations, relations)
def test_the_same_arguments_give_the_same_bytes_of_valid_json(old: Relation, new: Relation) -> None:
    version, previous = TableVersion(2, FIRST, "r", new), TableVersion(1, None, "r", old)

    document = schema_document(version, previous, "shop")

    assert document == schema_document(version, previous, "shop")
    assert json.loads(document)["table"] == new.table.table


@given(relations)
def test_nothing_changed_means_no_changes(relation: Relation) -> None:
    assert changes(relation, relation) == []


def test_columns_that_are_left_out_are_not_described() -> None:
    secret = Column("ssn", "text", "text", key=False, type_id=25, included=False)
    relation = msgspec.structs.replace(RELATION, columns=(ID, secret, NOTE))

    document = json.loads(
        schema_document(msgspec.structs.replace(VERSION, relation=relation), None, "shop")
    )

    assert [column["name"] for column in document["columns"]] == ["id", "note"]


def test_a_change_of_columns_that_are_left_out_has_no_names() -> None:
    secret = Column("ssn", "text", "text", key=False, type_id=25, included=False)
    before = msgspec.structs.replace(RELATION, columns=(ID, secret, NOTE))

    assert changes(RELATION, before) == [{"kind": "excluded_columns_changed"}]


def test_a_column_that_is_left_out_from_now_on_is_dropped_from_the_records() -> None:
    left_out = msgspec.structs.replace(NOTE, included=False)

    kinds = [
        change["kind"]
        for change in changes(
            msgspec.structs.replace(RELATION, columns=(ID, left_out)), record="b" * 16
        )
    ]

    assert kinds == ["column_dropped", "excluded_columns_changed", "record_configuration_changed"]
