"""The assembler alone: frames in, batches and a boundary out, without a server."""

import json
import struct

import pytest

from engine.lines.batcher import BATCHES_A_TURN
from engine.model.batch import Batch, Intake, Moved
from engine.model.errors import DecodeError, UnrepresentableRow
from engine.model.position import Position
from engine.model.record import OnUnrepresentable, RecordConfiguration, TableRule
from engine.model.schema import Decide, Relation, TableName, TableVersion, decide_version
from engine.sources.postgres.assembler import Assembler, Drained
from engine.sources.postgres.catalog import Catalog, CatalogColumn, CatalogTable
from engine.sources.postgres.frames import ListedFrames
from engine.sources.postgres.lsn import Lsn, lsn_of
from engine.sources.postgres.pgoutput import POSTGRES_EPOCH_US
from log_points import place

HOUR_US = 3_600_000_000
NOON_US = 1_795_348_800_000_000
"""2026-11-22 12:00 UTC."""

BUDGET = 1 << 20


def carried(message: bytes, lsn: int = 0) -> bytes:
    return b"w" + struct.pack(">QQq", lsn, lsn, 0) + message


def begin(commit_lsn: int, commit_us: int = NOON_US) -> bytes:
    return carried(struct.pack(">cQqI", b"B", commit_lsn, commit_us - POSTGRES_EPOCH_US, 7))


def commit(commit_lsn: int, commit_us: int = NOON_US) -> bytes:
    time = commit_us - POSTGRES_EPOCH_US
    return carried(struct.pack(">cBQQq", b"C", 0, commit_lsn, commit_lsn + 8, time))


def relation(oid: int, table: str, *columns: str, identity: bytes = b"d") -> bytes:
    body = b"".join(
        struct.pack(">B", place == 0) + name.encode() + struct.pack(">xIi", 23, -1)
        for place, name in enumerate(columns)
    )
    head = b"R" + struct.pack(">I", oid) + b"public\0" + table.encode() + b"\0" + identity
    return carried(head + struct.pack(">h", len(columns)) + body)


def insert(oid: int, lsn: int, *values: int) -> bytes:
    texts = [str(value).encode() for value in values]
    body = b"".join(b"t" + struct.pack(">i", len(text)) + text for text in texts)
    return carried(b"I" + struct.pack(">IcH", oid, b"N", len(texts)) + body, lsn)


def fields(letter: bytes, *values: bytes | None) -> bytes:
    """A tuple; a value None is one that did not change and is left out, an empty one is null."""
    body = b"".join(
        b"u" if value is None else b"t" + struct.pack(">i", len(value)) + value if value else b"n"
        for value in values
    )
    return letter + struct.pack(">H", len(values)) + body


def update(oid: int, lsn: int, *tuples: bytes) -> bytes:
    return carried(b"U" + struct.pack(">I", oid) + b"".join(tuples), lsn)


def truncate(lsn: int, *oids: int) -> bytes:
    return carried(b"T" + struct.pack(f">IB{len(oids)}I", len(oids), 0, *oids), lsn)


def keepalive(lsn: int, *, is_reply_wanted: bool = False) -> bytes:
    return b"k" + struct.pack(">QqB", lsn, NOON_US - POSTGRES_EPOCH_US, is_reply_wanted)


def always_first(relation: Relation, position: Position) -> TableVersion:
    return TableVersion(1, position, "", relation)


def assembler(
    configuration: RecordConfiguration | None = None,
    *,
    decide: Decide = always_first,
    catalog: Catalog | None = None,
) -> Assembler:
    return Assembler(
        database="shop",
        generation=1,
        configuration=configuration or RecordConfiguration("tailrace", tables=("public.*",)),
        decide=decide,
        catalog=catalog if catalog is not None else Catalog(),
    )


def fed(to: Assembler, *frames: bytes) -> Intake:
    """Feed frames, each look-up answered by an empty catalog."""
    source = ListedFrames(frames)
    while to.drain(source, BUDGET) is Drained.LOOKUP:
        pass
    return to.intake()


def rows_of(batches: tuple[Batch, ...]) -> list[tuple[str, int]]:
    return [(batch.table.table, batch.row_count) for batch in batches]


def test_only_the_last_of_a_drains_intakes_has_the_boundary() -> None:
    count = BATCHES_A_TURN + 1
    oids = range(1, count + 1)
    assembling = assembler()
    frames = ListedFrames(
        [
            *(relation(oid, f"t{oid}", "id") for oid in oids),
            begin(count + 100),
            *(insert(oid, oid, 1) for oid in oids),
            commit(count + 100),
        ]
    )
    while assembling.drain(frames, BUDGET) is Drained.LOOKUP:
        pass

    first = assembling.intake()
    was_handing_over = assembling.is_handing_over
    last = assembling.intake()

    assert was_handing_over
    assert not assembling.is_handing_over
    assert (len(first.batches), first.boundary, first.named) == (BATCHES_A_TURN, None, ())
    assert len(last.batches) == 1
    assert last.boundary is not None
    assert len(last.named) == count


def test_as_many_tables_as_a_turn_takes_are_one_intake_in_mid_transaction_too() -> None:
    oids = range(1, BATCHES_A_TURN + 1)
    assembling = assembler()
    frames = ListedFrames(
        [
            *(relation(oid, f"t{oid}", "id") for oid in oids),
            begin(1_000),
            *(insert(oid, oid, 1) for oid in oids),
        ]
    )
    while assembling.drain(frames, BUDGET) is Drained.LOOKUP:
        pass

    intake = assembling.intake()

    # A next intake would have nothing, not even a boundary: nobody may wait for it.
    assert len(intake.batches) == BATCHES_A_TURN
    assert not assembling.is_handing_over
    assert not assembling.has_intake


def test_a_batch_ends_where_the_hour_of_commit_changes() -> None:
    last_us = NOON_US + HOUR_US - 1

    intake = fed(
        assembler(),
        relation(1, "a", "id"),
        relation(2, "b", "id"),
        begin(100, NOON_US),
        insert(1, 90, 1),
        commit(100, NOON_US),
        begin(200, last_us),
        insert(1, 190, 2),
        insert(2, 191, 2),
        commit(200, last_us),
        begin(300, last_us + 1),
        insert(1, 290, 3),
        commit(300, last_us + 1),
    )

    a = [batch for batch in intake.batches if batch.table.table == "a"]
    assert rows_of(tuple(a)) == [("a", 2), ("a", 1)]
    assert (a[0].first_commit_us, a[0].last_commit_us) == (NOON_US, last_us)
    assert a[1].first_commit_us == last_us + 1
    assert intake.boundary is not None
    assert lsn_of(intake.boundary.point) == 308


def test_an_hour_that_goes_back_ends_a_batch_too() -> None:
    intake = fed(
        assembler(),
        relation(1, "a", "id"),
        begin(100, NOON_US),
        insert(1, 90, 1),
        commit(100, NOON_US),
        begin(200, NOON_US - 1),
        insert(1, 190, 2),
        commit(200, NOON_US - 1),
    )

    assert [batch.first_commit_us for batch in intake.batches] == [NOON_US, NOON_US - 1]


def test_a_drain_in_the_middle_of_a_transaction_remembers_its_time() -> None:
    target = assembler()

    first = fed(target, relation(1, "a", "id"), begin(100), insert(1, 90, 1))
    second = fed(target, insert(1, 91, 2), commit(100))

    assert first.boundary is None
    assert [batch.first_commit_us for batch in (*first.batches, *second.batches)] == [NOON_US] * 2
    assert second.boundary is not None
    assert lsn_of(second.boundary.point) == 108


def test_rows_wait_in_order_for_a_look_up() -> None:
    target = assembler()
    frames = ListedFrames(
        [relation(1, "a", "id"), begin(100), insert(1, 90, 1), insert(1, 91, 2), commit(100)]
    )

    assert target.drain(frames, BUDGET) is Drained.LOOKUP
    assert [message.table for message in target.lookups] == ["a"]
    assert target.drain(frames, BUDGET) is Drained.EMPTY

    assert rows_of(target.intake().batches) == [("a", 2)]


def test_a_truncate_of_several_tables_waits_for_all_of_them() -> None:
    target = assembler()
    frames = ListedFrames(
        [
            relation(1, "a", "id"),
            relation(2, "b", "id"),
            begin(100),
            truncate(90, 1, 2),
            commit(100),
        ]
    )

    assert target.drain(frames, BUDGET) is Drained.LOOKUP
    assert [message.table for message in target.lookups] == ["a", "b"]
    assert target.drain(frames, BUDGET) is Drained.EMPTY

    assert sorted(rows_of(target.intake().batches)) == [("a", 1), ("b", 1)]


def test_a_changed_relation_ends_the_batch_of_the_old_one() -> None:
    intake = fed(
        assembler(),
        relation(1, "a", "id"),
        begin(100),
        insert(1, 90, 1),
        relation(1, "a", "id", "v"),
        insert(1, 91, 2, 3),
        commit(100),
    )

    assert rows_of(intake.batches) == [("a", 1), ("a", 1)]
    assert b'"v":3' in intake.batches[1].lines


def test_a_repeated_relation_changes_nothing() -> None:
    intake = fed(
        assembler(),
        relation(1, "a", "id"),
        begin(100),
        insert(1, 90, 1),
        relation(1, "a", "id"),
        insert(1, 91, 2),
        commit(100),
    )

    assert rows_of(intake.batches) == [("a", 2)]


def test_a_table_of_the_same_name_comes_after_the_one_before() -> None:
    intake = fed(
        assembler(),
        relation(1, "a", "id"),
        begin(100),
        insert(1, 90, 1),
        relation(2, "a", "id"),
        insert(2, 91, 2),
        commit(100),
    )

    assert [b'"id":1' in intake.batches[0].lines, b'"id":2' in intake.batches[1].lines] == [
        True
    ] * 2
    assert intake.batches[0].last < intake.batches[1].first


def test_a_full_buffer_is_handed_over_at_once() -> None:
    rows = [insert(1, 1000 + number, number) for number in range(1000)]

    intake = fed(assembler(), relation(1, "a", "id"), begin(9999), *rows)

    assert sum(batch.row_count for batch in intake.batches) == 1000
    assert len(intake.batches) > 1
    assert max(len(batch.lines) for batch in intake.batches) < 65 * 1024


def test_a_drain_stops_at_its_budget() -> None:
    target = assembler()
    frames = ListedFrames(
        [relation(1, "a", "id"), begin(100), insert(1, 90, 1), insert(1, 91, 2), commit(100)]
    )
    assert target.drain(frames, BUDGET) is Drained.LOOKUP

    assert target.drain(frames, 1) is Drained.BUDGET
    assert target.drain(frames, BUDGET) is Drained.EMPTY
    assert rows_of(target.intake().batches) == [("a", 2)]


def test_a_keepalive_is_a_boundary() -> None:
    intake = fed(assembler(), keepalive(500))

    assert intake.boundary is not None
    assert (lsn_of(intake.boundary.point), intake.boundary.is_keepalive) == (500, True)


def test_the_newest_boundary_counts_and_never_goes_back() -> None:
    target = assembler()

    intake = fed(target, begin(600), commit(600), keepalive(500))
    later = fed(target, keepalive(550))

    assert intake.boundary is not None
    assert (lsn_of(intake.boundary.point), intake.boundary.is_keepalive) == (608, False)
    assert later.boundary is None
    assert target.received_lsn == 608


def test_a_keepalive_inside_a_transaction_does_not_pass_its_commit() -> None:
    target = assembler()

    inside = fed(target, begin(600), keepalive(700), keepalive(550))

    assert inside.boundary is not None
    assert lsn_of(inside.boundary.point) == 550


def test_a_flagged_keepalive_is_noticed() -> None:
    target = assembler()

    fed(target, keepalive(500, is_reply_wanted=True))

    assert target.take_reply_wish()
    assert not target.take_reply_wish()


def test_a_stream_that_ended_says_so() -> None:
    assert assembler().drain(ListedFrames([], is_ended=True), BUDGET) is Drained.END


@pytest.mark.parametrize(
    "frame",
    [
        carried(b"Q"),
        b"x" + bytes(40),
        b"w" + bytes(10),
        b"k" + bytes(16),
        b"x" * 5,
        insert(77, 90, 1),
        truncate(90, 77),
        begin(100)[:-1],
        commit(100) + b"\0",
    ],
)
def test_a_frame_that_the_protocol_does_not_allow_is_a_decode_error(frame: bytes) -> None:
    with pytest.raises(DecodeError):
        fed(assembler(), begin(100), frame)


@pytest.mark.parametrize(
    ("columns", "prefix"),
    [
        (("id", "op"), "_"),
        (("id", "_op"), "__"),
        (("id", "_op", "__version"), "___"),
        (("_position", "___unchanged", "_x", "__x"), "__"),
    ],
)
def test_the_flat_envelope_gives_way_to_columns_with_its_names(
    columns: tuple[str, ...], prefix: str
) -> None:
    flat = RecordConfiguration("tailrace", tables=("public.*",), envelope="flat")
    values = range(1, 1 + len(columns))

    intake = fed(
        assembler(flat), relation(1, "a", *columns), begin(100), insert(1, 90, *values), commit(100)
    )

    record = json.loads(intake.batches[0].lines)
    expected = [*columns, *(prefix + name for name in ("op", "position", "commit_ts", "version"))]
    assert list(record) == expected
    assert [record[column] for column in columns] == list(values)


def test_a_chosen_prefix_is_repeated_as_well_and_for_written_columns_alone() -> None:
    flat = RecordConfiguration(
        "tailrace",
        tables=("public.*",),
        envelope="flat",
        flat_prefix="x.",
        rules=(TableRule("public.b", exclude=("x.op",)),),
    )
    columns = ("id", "x.op")

    intake = fed(
        assembler(flat),
        relation(1, "a", *columns),
        relation(2, "b", *columns),
        begin(100),
        insert(1, 90, 1, 2),
        insert(2, 91, 1, 2),
        commit(100),
    )

    records = {batch.table.table: json.loads(batch.lines) for batch in intake.batches}
    assert records["a"]["x.x.op"] == "c"
    assert records["b"]["x.op"] == "c"


def test_a_batch_ends_at_the_rows_of_a_chunk() -> None:
    target = Assembler(
        database="shop",
        generation=1,
        configuration=RecordConfiguration("tailrace", tables=("public.*",)),
        decide=always_first,
        catalog=Catalog(),
        batch_rows_max=3,
    )

    intake = fed(
        target,
        relation(1, "a", "id"),
        begin(100),
        *(insert(1, 90 + i, i) for i in range(7)),
        commit(100),
    )

    assert rows_of(intake.batches) == [("a", 3), ("a", 3), ("a", 1)]


def left_out_by(mode: OnUnrepresentable, *frames: bytes) -> Intake:
    configuration = RecordConfiguration(
        "tailrace", tables=("public.*",), row_bytes_max=500, on_unrepresentable=mode
    )
    return fed(assembler(configuration), *frames)


TOO_LARGE = int("9" * 600)


def test_a_row_that_is_left_out_counts_in_the_positions_behind_it() -> None:
    frames = [
        relation(1, "a", "id", "note"),
        begin(100),
        insert(1, 90, 1, 1),
        insert(1, 90, 2, TOO_LARGE),
        insert(1, 90, 3, 3),
        commit(100),
    ]

    intake = left_out_by("gap", *frames)

    [batch] = intake.batches
    [row] = intake.left_out
    positions = [json.loads(line)["metadata"]["position"] for line in batch.lines.splitlines()]
    assert [position[-6:] for position in positions] == ["000000", "000002"]
    assert row.position == positions[0][:-6] + "000001"
    assert (row.table, row.key) == (TableName("public", "a"), '{"id": "2"}')
    assert "max_row_bytes" in row.reason


def test_a_row_that_may_not_be_left_out_ends_the_stream_behind_what_came_before() -> None:
    configuration = RecordConfiguration("tailrace", tables=("public.*",), row_bytes_max=500)
    target = assembler(configuration)
    frames = [
        relation(1, "a", "id", "note"),
        begin(100),
        insert(1, 90, 1, 1),
        insert(1, 91, 2, TOO_LARGE),
        insert(1, 92, 3, 3),
    ]

    intake = fed(target, *frames)

    assert rows_of(intake.batches) == [("a", 1)]
    with pytest.raises(
        UnrepresentableRow, match=r"public\.a, the row at position 0001\."
    ) as caught:
        target.drain(ListedFrames([]), BUDGET)
    assert caught.value.exit_code == 70
    assert "on_unrepresentable" in caught.value.hint
    assert "99999" not in str(caught.value)


# --- rows that move to another key without all their columns


LARGE = b"1" * (1 << 20)
MOVED = "moved"
STAYS = "stays"


@pytest.mark.parametrize(
    ("tuples", "expected"),
    [
        ((fields(b"K", b"1", b""), fields(b"N", b"2", None)), MOVED),
        ((fields(b"K", b"1", b""), fields(b"N", b"2", b"7")), STAYS),
        ((fields(b"N", b"2", None),), STAYS),
        # A key's column that is kept apart is in the old tuple although it is as it was.
        ((fields(b"K", b"1", b""), fields(b"N", None, None)), STAYS),
        ((fields(b"K", b"1", b""), fields(b"N", b"1", None)), STAYS),
        # With REPLICA IDENTITY FULL the old tuple is always there.
        ((fields(b"O", b"1", b"7"), fields(b"N", b"1", None)), STAYS),
        ((fields(b"O", b"1", b"7"), fields(b"N", b"2", None)), MOVED),
        ((fields(b"O", b"1", b"7"), fields(b"N", b"12", None)), MOVED),
        ((fields(b"O", b"1", b"7"), fields(b"N", b"2", b"8")), STAYS),
        ((fields(b"O", b"1", LARGE), fields(b"N", b"1", None)), STAYS),
        ((fields(b"O", b"1", LARGE), fields(b"N", b"2", None)), MOVED),
    ],
)
@pytest.mark.parametrize("is_consumable", [False, True])
def test_a_row_that_moves_to_another_key_and_leaves_a_column_out_is_told(
    tuples: tuple[bytes, ...], expected: str, *, is_consumable: bool
) -> None:
    target = assembler()
    frames = [
        relation(1, "a", "id", "note"),
        begin(100),
        update(1, 90, *tuples),
        commit(100),
        begin(200),
        update(1, 190, fields(b"N", b"9", None)),
        commit(200),
    ]

    source = ListedFrames(frames, is_consumable=is_consumable)
    while target.drain(source, 4 * BUDGET) is Drained.LOOKUP:
        pass
    intake = target.intake()

    told = (Moved(TableName("public", "a"), place(100)),) if expected == MOVED else ()
    assert intake.moved == told
    assert sum(batch.row_count for batch in intake.batches) == 2
    assert target.intake().moved == ()


def test_the_newest_commit_of_a_tables_moved_rows_is_told() -> None:
    moved = fields(b"K", b"1", b""), fields(b"N", b"2", None)
    frames = [relation(1, "a", "id", "note"), relation(2, "b", "id", "note")]
    for lsn, oid in ((100, 1), (200, 2), (300, 1)):
        frames += [begin(lsn), update(oid, lsn - 10, *moved), commit(lsn)]

    intake = fed(assembler(), *frames)

    a, b = TableName("public", "a"), TableName("public", "b")
    assert set(intake.moved) == {Moved(a, place(300)), Moved(b, place(200))}


def test_a_moved_row_is_told_with_the_batch_that_has_it_before_the_transaction_ends() -> None:
    target = assembler()
    frames = [relation(1, "a", "id", "note"), begin(100)]
    frames.append(update(1, 10, fields(b"K", b"1", b""), fields(b"N", b"2", None)))
    frames += [insert(1, 10 + n, n, int("7" * 600)) for n in range(1, 300)]
    source = ListedFrames(frames)
    while target.drain(source, BUDGET) is Drained.LOOKUP:
        pass

    assert target.has_full_batches
    intake = target.full_batches()

    assert intake.boundary is None
    assert intake.moved == (Moved(TableName("public", "a"), place(100)),)


def test_a_moved_row_is_told_under_the_name_that_it_came_under() -> None:
    moved = fields(b"K", b"1", b""), fields(b"N", b"2", None)
    frames = [
        relation(1, "a", "id", "note"),
        begin(100),
        update(1, 90, *moved),
        commit(100),
        relation(1, "b", "id", "note"),
        begin(200),
        insert(1, 190, 3, 3),
        commit(200),
    ]

    intake = fed(assembler(), *frames)

    assert intake.moved == (Moved(TableName("public", "a"), place(100)),)


def test_what_was_received_is_the_newest_end() -> None:
    target = assembler()

    fed(target, begin(100), commit(100), begin(200))

    assert target.received_lsn == Lsn(108)


class Deciding:
    """A `decide` that keeps versions by table, as the planner does."""

    def __init__(self) -> None:
        self.versions: dict[TableName, tuple[TableVersion, ...]] = {}

    def __call__(self, relation: Relation, position: Position) -> TableVersion:
        known = self.versions.get(relation.table, ())
        version = decide_version(known, relation, "", position)
        if version not in known:
            self.versions[relation.table] = (*known, version)
        return version


def versions_of(batches: tuple[Batch, ...], table: str) -> list[int]:
    return [batch.version for batch in batches if batch.table.table == table]


def test_a_name_that_goes_away_and_comes_back_brings_a_new_version() -> None:
    deciding = Deciding()

    # orders (1) is renamed away, another (2) has its name for a while, then the first is renamed
    # back: its relation says what it said before.
    intake = fed(
        assembler(decide=deciding),
        relation(1, "orders", "id"),
        begin(100),
        insert(1, 90, 1),
        relation(2, "orders", "id"),
        insert(2, 91, 2),
        relation(1, "orders", "id"),
        insert(1, 92, 3),
        commit(100),
    )

    assert versions_of(intake.batches, "orders") == [1, 2, 3]
    assert [batch.last for batch in intake.batches] == sorted(b.last for b in intake.batches)


def test_a_relation_that_lost_its_name_is_asked_for_again_without_a_word_about_it() -> None:
    intake = fed(
        assembler(decide=Deciding()),
        relation(1, "orders", "id"),
        begin(100),
        insert(1, 90, 1),
        relation(2, "orders", "id"),
        insert(2, 91, 2),
        insert(1, 92, 3),
        truncate(93, 2),
        truncate(94, 1),
        commit(100),
    )

    assert versions_of(intake.batches, "orders") == [1, 2, 3, 4, 5]


def test_names_are_told_at_the_first_row_behind_each_relation_also_of_rows_passed_over() -> None:
    only_a = RecordConfiguration("tailrace", tables=("public.a",))
    stream = assembler(only_a)

    first = fed(
        stream,
        begin(100),
        relation(1, "b", "id"),
        relation(2, "c", "id"),
        insert(1, 90, 1),
        insert(1, 91, 2),
        commit(100),
        begin(200),
        relation(1, "a", "id"),
        insert(1, 190, 3),
        insert(1, 191, 4),
        truncate(192, 2),
        commit(200),
    )
    # It may have had its other name meanwhile: told again.
    again = fed(stream, begin(300), relation(2, "c", "id"), insert(2, 290, 1), commit(300))

    told = [(n.identity, n.table.table, n.is_captured, n.commit) for n in first.named]
    assert told == [
        ("1", "b", False, place(100)),
        ("1", "a", True, place(200)),
        ("2", "c", False, place(200)),
    ]
    assert [(n.identity, n.commit) for n in again.named] == [("2", place(300))]
    assert stream.intake().named == ()


def test_two_tables_that_swap_their_names_keep_both_in_order() -> None:
    intake = fed(
        assembler(decide=Deciding()),
        relation(1, "a", "id"),
        relation(2, "b", "id"),
        begin(100),
        insert(1, 90, 1),
        insert(2, 91, 2),
        relation(1, "b", "id"),
        relation(2, "a", "id"),
        insert(1, 92, 3),
        insert(2, 93, 4),
        relation(1, "a", "id"),
        relation(2, "b", "id"),
        insert(1, 94, 5),
        insert(2, 95, 6),
        commit(100),
    )

    for table in ("a", "b"):
        assert versions_of(intake.batches, table) == [1, 2, 3]
        lasts = [batch.last for batch in intake.batches if batch.table.table == table]
        assert lasts == sorted(lasts)


def test_a_table_that_is_gone_is_forgotten_and_its_rows_are_not() -> None:
    target = assembler(decide=Deciding())
    first = fed(target, relation(1, "a", "id"), begin(100), insert(1, 90, 1))

    target.forget([1, 99])
    rest = fed(target, relation(2, "a", "id"), insert(2, 91, 2), commit(100))

    assert versions_of((*first.batches, *rest.batches), "a") == [1, 2]
    assert target.known_oids == [2]


def test_a_guessed_key_is_asked_for_again_when_its_own_look_is_passed_and_not_before() -> None:
    columns = {"id": CatalogColumn(23, -1, "integer", is_nullable=False)}
    catalog = Catalog(
        _tables={
            1: CatalogTable(columns, ("id",), seen_lsn=Lsn(200)),
            2: CatalogTable(columns, ("id",), seen_lsn=Lsn(1000)),
        }
    )
    asked: list[tuple[str, bool]] = []

    def decide(relation: Relation, position: Position) -> TableVersion:
        asked.append((relation.table.table, relation.is_key_guessed))
        return always_first(relation, position)

    target = assembler(decide=decide, catalog=catalog)
    whole = [relation(oid, name, "id", identity=b"f") for oid, name in ((1, "a"), (2, "b"))]
    rows = (insert(1, 90, 1), insert(2, 91, 2))

    fed(target, *whole, begin(100), *rows, commit(100), begin(200), commit(200))
    fed(target, begin(300), *rows, commit(300))
    fed(target, begin(1000), commit(1000))
    fed(target, begin(1100), *rows, commit(1100))

    # Were all guesses given up at each look, thousands of tables would be asked for at each.
    assert asked == [("a", True), ("b", True), ("a", False), ("b", False)]


class CountingCatalog(Catalog):
    """Counts how often columns' numbers are looked for."""

    numbered_count = 0

    def numbered(self, oid: int, relation: Relation, commit_lsn: int) -> Relation:
        self.numbered_count += 1
        return super().numbered(oid, relation, commit_lsn)


def test_numbers_are_looked_for_once_however_many_rows_are_not_wanted() -> None:
    catalog = CountingCatalog()
    target = assembler(decide=lambda _relation, _position: None, catalog=catalog)

    rows = [insert(1, 90 + number, number) for number in range(5)]
    fed(target, relation(1, "a", "id"), begin(100), *rows, commit(100))
    changed = relation(1, "a", "id", "note")
    fed(target, changed, begin(200), insert(1, 190, 1), insert(1, 191, 2), commit(200))

    assert catalog.numbered_count == 2
