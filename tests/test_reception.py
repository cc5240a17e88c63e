"""Versions and duplicates, decided beside the reader."""

from msgspec.structs import replace

from engine.flow.ledger import Ledger
from engine.flow.reception import Doubt, Reception
from engine.model.position import LOG_BEGIN, LogPosition, Position, log_position, make_position
from engine.model.record import RecordConfiguration
from engine.model.schema import Column, Relation, TableName, TableVersion
from engine.model.table_shape import COLUMNS_UNCLEAR, RENAMED

ORDERS = TableName("public", "orders")
CONFIGURATION = RecordConfiguration(through="tailrace", tables=("*.*",))


def at(commit: int) -> Position:
    return make_position(1, commit, commit - 8, 0)


def relation(identity: str, *columns: str) -> Relation:
    names = columns or ("id",)
    return Relation(
        ORDERS,
        identity,
        tuple(Column(name, "integer", "integer", key=name == "id") for name in names),
        ("id",),
    )


def reception(
    journalled: dict[str, tuple[TableVersion, ...]] | None = None,
    *,
    durable: LogPosition = LOG_BEGIN,
    received: Position | None = None,
    is_stream_waiting: bool = False,
    on_doubt: Doubt | None = None,
) -> Reception:
    return Reception(
        journalled=journalled if journalled is not None else {},
        durable=lambda: durable,
        ledger=Ledger({ORDERS: received} if received is not None else {}),
        configuration=CONFIGURATION,
        is_stream_waiting=is_stream_waiting,
        on_doubt=on_doubt,
    )


def test_no_row_is_wanted_while_the_stream_waits() -> None:
    deciding = reception(is_stream_waiting=True)

    assert deciding.decide(relation("1"), at(100)) is None
    assert deciding.versions_of(ORDERS) == ()


def test_a_table_that_begins_at_a_log_point_wants_what_commits_there_and_nothing_before() -> None:
    deciding = reception(received=Position(log_position(1, 100)))

    assert deciding.decide(relation("1"), at(99)) is None
    assert deciding.decide(relation("1"), at(100)) is not None


def test_a_row_that_is_durable_or_was_received_is_not_wanted() -> None:
    deciding = reception(durable=log_position(1, 100), received=at(200))

    assert deciding.decide(relation("1"), at(99)) is None
    assert deciding.decide(relation("1"), at(200)) is None
    assert deciding.decide(relation("1"), at(201)) is not None


def test_a_commit_at_e_itself_is_not_durable() -> None:
    deciding = reception(durable=log_position(1, 100))

    assert deciding.decide(relation("1"), at(100)) is not None


def test_a_generation_counts_before_an_order() -> None:
    deciding = reception(durable=log_position(1, 100))

    assert deciding.decide(relation("1"), make_position(2, 5, 1, 0)) is not None


def test_a_version_stays_provisional_until_it_is_journalled() -> None:
    journalled: dict[str, tuple[TableVersion, ...]] = {}
    deciding = reception(journalled)
    first = deciding.decide(relation("1"), at(100))
    second = deciding.decide(relation("1", "id", "note"), at(200))
    assert first is not None
    assert second is not None
    assert deciding.provisional(ORDERS) == (first, second)

    journalled[str(ORDERS)] = (first,)
    deciding.journalled((first,))

    assert deciding.provisional(ORDERS) == (second,)
    assert deciding.versions_of(ORDERS) == (first, second)
    assert deciding.decide(relation("1"), at(150)) == first


def test_a_successor_decides_the_same_from_what_is_journalled() -> None:
    first = reception().decide(relation("1"), at(100))
    assert first is not None
    successor = reception({str(ORDERS): (first,)}, received=at(100))

    assert successor.decide(relation("1"), at(101)) == first
    made_anew = successor.decide(relation("2"), at(102))
    assert made_anew is not None
    assert (made_anew.number, made_anew.first) == (2, at(102))
    assert successor.has_identity(ORDERS, "2")
    assert not successor.has_identity(ORDERS, "3")


def test_a_version_says_under_which_name_the_table_was_before() -> None:
    staged = replace(relation("7"), table=TableName("public", "orders_new"))
    deciding = reception()
    deciding.decide(staged, at(100))

    swapped = deciding.decide(relation("7"), at(200))
    again = deciding.decide(relation("7"), at(201))
    other = deciding.decide(relation("8"), at(300))

    assert swapped is not None
    assert swapped.former_name == "public.orders_new"
    assert again == swapped
    assert other is not None
    assert other.former_name == ""


def test_a_successor_knows_the_former_name_from_the_journal() -> None:
    staged = replace(relation("7"), table=TableName("public", "orders_new"))
    first = TableVersion(1, at(100), "", staged)

    found = reception({"public.orders_new": (first,)}).decide(relation("7"), at(200))

    assert found is not None
    assert found.former_name == "public.orders_new"


def test_who_is_told_of_doubtful_versions_is_told_once() -> None:
    told: list[tuple[TableName, Position, str]] = []
    staged = replace(relation("9"), table=TableName("public", "orders_new"))
    deciding = reception(on_doubt=lambda *doubt: told.append(doubt))
    deciding.decide(relation("7", "id", "note"), at(100))

    deciding.decide(relation("7", "id", "remark"), at(200))
    deciding.decide(relation("7", "id", "remark"), at(201))
    deciding.decide(relation("7", "id", "remark", "more"), at(300))
    deciding.decide(relation("8", "id", "else"), at(400))
    deciding.decide(staged, at(500))
    deciding.decide(relation("9"), at(600))
    deciding.decide(relation("9"), at(601))

    assert told == [(ORDERS, at(200), COLUMNS_UNCLEAR), (ORDERS, at(600), RENAMED)]
