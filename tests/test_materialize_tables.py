"""Tables of each format: rows and cursor in one commit, columns that come, jobs side by side."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from engine.materialize.iceberg import IcebergLakeTable
from engine.materialize.job import Done, Job
from engine.materialize.lake_table import LakeTable, MaterializeRefused, Outrun, Settled
from engine.materialize.opening import open_lake
from lake_places import Place, make_place

TABLE = "public.orders"
FORMATS = ("delta", "iceberg", "parquet")

CHANGE_FIELDS = (
    pa.field("op", pa.string(), nullable=False),
    pa.field("position", pa.string(), nullable=False),
    pa.field("version", pa.int32(), nullable=False),
    pa.field("source_ts", pa.timestamp("ms", tz="UTC"), nullable=False),
    pa.field("unchanged", pa.list_(pa.string())),
)


def schema(**columns: Any) -> Any:
    row = pa.struct([pa.field(name, type_) for name, type_ in columns.items()])
    return pa.schema([*CHANGE_FIELDS, pa.field("before", row), pa.field("after", row)])


PLAIN = schema(id=pa.int64(), note=pa.string())


def batch(schema_: Any, positions: Sequence[str], **after: Any) -> Any:
    return pa.RecordBatch.from_pylist(
        [
            {
                "op": "c",
                "position": position,
                "version": 1,
                "source_ts": 1_795_341_114_056,
                "unchanged": ["note"],
                "before": None,
                "after": {"id": number, **after},
            }
            for number, position in enumerate(positions)
        ],
        schema_,
    )


@dataclass
class Scripted:
    """Changes: batches, and the cursor that each one moves to (empty: it ends no object)."""

    batches: Sequence[tuple[Any, str]]
    schema: Any = PLAIN
    cursor: str | None = None
    table: str = TABLE
    until: str = "0001.0F"
    doubts: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        for one, cursor in self.batches:
            self.cursor = cursor or self.cursor
            yield one


@contextmanager
def opened(place: Place) -> Iterator[LakeTable]:
    lake: LakeTable
    if place.format == "iceberg":
        lake = IcebergLakeTable(place.catalog(), place.place)
    else:
        lake = open_lake(place.format, place.place, "")  # type: ignore[arg-type]
    try:
        yield lake
    finally:
        lake.close()


def stream(*positions: str, schema_: Any = PLAIN, **after: Any) -> dict[str, Any]:
    """A stream whose objects have two rows each, and whose cursors are their last positions."""
    pairs = [positions[n : n + 2] for n in range(0, len(positions), 2)]
    return {pair[-1]: batch(schema_, pair, **after) for pair in pairs}


def run(
    place: Place, objects: dict[str, Any], *, commit_rows: int = 4, schema_: Any = PLAIN
) -> Done:
    """One run of a job that reads those objects behind its cursor."""

    @contextmanager
    def changes(cursor: str) -> Iterator[Scripted]:
        yield Scripted(
            [(one, end) for end, one in objects.items() if end > cursor],
            schema_,
            cursor or None,
        )

    with opened(place) as lake:
        return Job(changes, lake, commit_rows=commit_rows, progress=lambda *_: None).run()


@pytest.fixture(params=FORMATS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request.param, tmp_path)


def test_each_run_appends_what_is_new_and_the_table_holds_the_cursor(place: Place) -> None:
    objects = stream("p1", "p2", "p3", "p4", "p5", "p6")
    done = run(place, objects)
    assert (done.rows, done.commits, done.outrun, done.cursor) == (6, 2, 0, "p6")

    again = run(place, objects)
    assert (again.rows, again.commits, again.cursor) == (0, 0, "p6")

    more = run(place, objects | stream("p7", "p8", note="more"))
    assert (more.rows, more.commits, more.cursor) == (2, 1, "p8")
    rows = place.rows()
    assert rows.column("position").to_pylist() == ["p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8"]
    first = rows.to_pylist()[0]
    assert first["after"] == {"id": 0, "note": None}
    assert first["before"] is None
    assert first["unchanged"] == ["note"]
    assert first["source_ts"].isoformat() == "2026-11-22T09:51:54.056000+00:00"


def settled(lake: LakeTable, one: Any, cursor: str, schema_: Any = PLAIN) -> None:
    lake.prepare(schema_, TABLE)
    lake.write(one)
    lake.settle(Settled(cursor, "0001.0F", one.num_rows))


def committed(lake: LakeTable, one: Any, cursor: str) -> None:
    settled(lake, one, cursor)
    lake.commit()


def test_what_was_read_before_another_job_committed_is_refused(place: Place) -> None:
    run(place, stream("p1", "p2"))
    with opened(place) as slow:
        assert slow.load() == "p2"
        settled(slow, batch(PLAIN, ["p3"]), "p3")
        run(place, stream("p3", "p4"))

        with pytest.raises(Outrun):
            slow.commit()

        assert slow.load() == "p4"
    assert place.positions() == ["p1", "p2", "p3", "p4"]


def test_of_two_jobs_that_find_no_table_one_makes_it(place: Place) -> None:
    with opened(place) as slow:
        assert slow.load() == ""
        run(place, stream("p1", "p2"))

        with pytest.raises(Outrun):
            committed(slow, batch(PLAIN, ["p1"]), "p1")
    assert place.positions() == ["p1", "p2"]


def test_between_two_commits_of_a_run_another_job_is_noticed(place: Place) -> None:
    """A handle that is brought up to date after a commit might skip another one's."""
    with opened(place) as slow:
        slow.load()
        settled(slow, batch(PLAIN, ["p1", "p2"]), "p2")
        slow.commit()
        run(place, stream("p1", "p2", "p3", "p4"))
        slow.write(batch(PLAIN, ["p3"]))
        slow.settle(Settled("p3", "0001.0F", 1))

        with pytest.raises(Outrun):
            slow.commit()
    assert place.positions() == ["p1", "p2", "p3", "p4"]


@pytest.mark.parametrize("format_", ["delta", "iceberg"])
def test_a_commit_right_behind_ours_is_not_passed_over(
    tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our next commit would be made on top of it, and with the same rows."""
    place = make_place(format_, tmp_path)
    with opened(place) as slow:
        slow.load()
        settled(slow, batch(PLAIN, ["p1", "p2"]), "p2")
        disturb_opening(slow, place, monkeypatch)

        with pytest.raises(Outrun):
            slow.commit()


def disturb_opening(slow: LakeTable, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job commits right before the table is loaded again."""
    again = slow._opened  # type: ignore[attr-defined]

    def disturbed() -> Any:
        monkeypatch.undo()
        run(place, stream("p1", "p2", "p3", "p4"))
        return again()

    monkeypatch.setattr(slow, "_opened", disturbed)


@pytest.mark.parametrize("format_", ["delta", "iceberg"])
def test_a_commit_right_behind_the_making_of_the_table_is_not_passed_over(
    tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(format_, tmp_path)
    with opened(place) as slow:
        slow.load()
        disturb_opening(slow, place, monkeypatch)

        with pytest.raises(Outrun):
            slow.prepare(PLAIN, TABLE)


def test_a_commit_right_behind_new_columns_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place("delta", tmp_path)
    run(place, stream("p1", "p2"))
    with opened(place) as slow:
        slow.load()
        disturb_opening(slow, place, monkeypatch)

        with pytest.raises(Outrun):
            slow.prepare(WIDER, TABLE)


def test_a_job_that_is_outrun_begins_again(place: Place) -> None:
    objects = stream("p1", "p2", "p3", "p4", "p5", "p6")
    disturbed: list[str] = []

    @contextmanager
    def changes(cursor: str) -> Iterator[Scripted]:
        found = [(one, end) for end, one in objects.items() if end > cursor]
        yield Scripted(found, PLAIN, cursor or None)

    def disturb(_: int, read: int) -> None:
        if read == 4 and not disturbed:
            disturbed.append("here")
            run(place, {"p2": objects["p2"]})

    with opened(place) as lake:
        done = Job(changes, lake, commit_rows=100, progress=disturb).run()

    assert (done.rows, done.commits, done.outrun) == (4, 1, 1)
    assert place.positions() == ["p1", "p2", "p3", "p4", "p5", "p6"]


class Unlucky:
    """A `LakeTable` whose every second commit is outrun, and after `lucky` of them each one."""

    def __init__(self, *, lucky: int) -> None:
        self.lucky, self.cursor, self.settled = lucky, "", ""

    def load(self) -> str:
        return self.cursor

    def prepare(self, *_: Any) -> None: ...

    def write(self, _: Any) -> None: ...

    def settle(self, settled: Settled) -> None:
        self.settled = settled.cursor

    def commit(self) -> None:
        self.lucky -= 1
        if self.lucky < 0 or self.lucky % 2:
            raise Outrun("another job was first")
        self.cursor = self.settled

    def close(self) -> None: ...


@pytest.mark.parametrize(("lucky", "commits"), [(0, 0), (15, 8)])
def test_a_run_ends_when_it_was_outrun_five_times_without_a_commit(
    lucky: int, commits: int
) -> None:
    objects = stream(*(f"p{n:02}" for n in range(40)))
    lake = Unlucky(lucky=lucky)

    @contextmanager
    def changes(cursor: str) -> Iterator[Scripted]:
        found = [(one, end) for end, one in objects.items() if end > cursor]
        yield Scripted(found, PLAIN, cursor or None)

    job = Job(changes, lake, commit_rows=1, progress=lambda *_: None)
    with pytest.raises(Outrun, match="5 times in a row"):
        job.run()

    assert [*objects, ""].index(lake.cursor) + 1 == commits if commits else not lake.cursor


WIDER = schema(id=pa.int64(), note=pa.string(), paid=pa.decimal128(10, 2), at=pa.time64("us"))


def test_columns_that_come_extend_the_table_and_those_that_go_stay(place: Place) -> None:
    run(place, stream("p1", "p2", note="old"))
    run(place, stream("p3", "p4", schema_=WIDER, paid=2), schema_=WIDER)
    gone = schema(id=pa.int64(), paid=pa.decimal128(10, 2), l=pa.list_(pa.date32()))
    run(place, stream("p5", "p6", schema_=gone, paid=3, l=[1, None]), schema_=gone)

    found = place.rows().to_pylist()
    assert {row["before"] for row in found} == {None}, "no row is not a row of nulls"
    rows = [row["after"] for row in found]
    assert [row["note"] for row in rows] == ["old", "old", None, None, None, None]
    assert [row.get("paid") and int(row["paid"]) for row in rows] == [None, None, 2, 2, 3, 3]
    assert [bool(row.get("l")) for row in rows] == [False] * 4 + [True] * 2


def test_a_column_of_another_type_is_refused_by_name_and_nothing_is_written(place: Place) -> None:
    run(place, stream("p1", "p2"))
    other = schema(id=pa.string(), note=pa.string())

    with pytest.raises(MaterializeRefused, match=r"'before\.id' is int64 in the table") as refused:
        run(place, {"p4": batch(other, [])}, schema_=other)

    assert refused.value.code == "type-changed"
    assert place.positions() == ["p1", "p2"]


def test_a_decimal_gets_more_digits_where_the_format_allows_it(place: Place) -> None:
    narrow, wide = (schema(id=pa.int64(), n=pa.decimal128(digits, 2)) for digits in (10, 14))
    run(place, {"p1": batch(narrow, ["p1"], n=1)}, schema_=narrow)

    if place.format == "delta":
        with pytest.raises(MaterializeRefused, match=r"decimal128\(10, 2\) in the table"):
            run(place, {"p2": batch(wide, ["p2"], n=2)}, schema_=wide)
        return
    run(place, {"p2": batch(wide, ["p2"], n=999_999_999_999)}, schema_=wide)
    assert [int(row["after"]["n"]) for row in place.rows().to_pylist()] == [1, 999_999_999_999]
    # And back: what is read now may have fewer digits than the table.
    run(place, {"p3": batch(narrow, ["p3"], n=3)}, schema_=narrow)
    assert len(place.positions()) == 3


def test_a_commit_comes_only_where_an_object_ends(place: Place) -> None:
    """A cursor in the middle of an object would have its first rows come again."""
    objects = {"p2": batch(PLAIN, ["p1", "p2"])}

    @contextmanager
    def changes(cursor: str) -> Iterator[Scripted]:
        pieces = [(batch(PLAIN, [f"p{n}"]), "p7" if n == 7 else "") for n in range(3, 8)]
        yield Scripted([*((one, end) for end, one in objects.items()), *pieces], PLAIN, None)

    @contextmanager
    def more(cursor: str) -> Iterator[Scripted]:
        pieces = [(batch(PLAIN, [f"p{n}"]), "p9" if n == 9 else "") for n in (8, 9)]
        yield Scripted(pieces, PLAIN, cursor)

    with opened(place) as lake:
        done = Job(changes, lake, commit_rows=3, progress=lambda *_: None).run()
        again = Job(more, lake, commit_rows=1, progress=lambda *_: None).run()

    assert (done.rows, done.commits, done.cursor) == (7, 1, "p7")
    assert (again.rows, again.commits, again.cursor) == (2, 1, "p9")


def test_a_table_of_another_table_is_refused(place: Place) -> None:
    run(place, stream("p1", "p2"))

    with opened(place) as lake:
        lake.load()
        with pytest.raises(MaterializeRefused, match=r"holds the changes of public\.orders"):
            lake.prepare(PLAIN, "public.other")


# --- delta


@pytest.fixture
def delta(tmp_path: Path) -> Place:
    return make_place("delta", tmp_path)


def test_the_cursor_of_a_delta_table_survives_checkpoint_cleanup_and_vacuum(delta: Place) -> None:
    run(delta, stream("p1", "p2", "p3", "p4"), commit_rows=1)
    table = DeltaTable(delta.place)
    table.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 days"})
    table = DeltaTable(delta.place)
    table.create_checkpoint()
    table.cleanup_metadata()
    table.optimize.compact()
    table = DeltaTable(delta.place)
    table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)

    names = {path.name for path in Path(delta.place, "_delta_log").glob("*.json")}
    assert "00000000000000000001.json" not in names, "the first commits are gone"
    assert run(delta, stream("p5", "p6")).rows == 2
    assert delta.positions() == ["p1", "p2", "p3", "p4", "p5", "p6"]


def test_a_delta_table_that_forgets_transactions_is_refused(delta: Place) -> None:
    run(delta, stream("p1", "p2"))
    expiring = {"delta.setTransactionRetentionDuration": "interval 1 days"}
    DeltaTable(delta.place).alter.set_table_properties(expiring)

    with pytest.raises(MaterializeRefused, match="forgets its applications' transactions"):
        run(delta, stream("p3", "p4"))


def test_a_delta_table_of_somebody_else_is_refused(delta: Place) -> None:
    DeltaTable.create(delta.place, PLAIN)

    with pytest.raises(MaterializeRefused, match="holds something that is not Tailrace's"):
        run(delta, stream("p1", "p2"))


def test_a_column_that_delta_cannot_name_is_refused(delta: Place) -> None:
    odd = schema(id=pa.int64(), **{"a b": pa.string()})

    with pytest.raises(MaterializeRefused, match="no room for the name of column 'a b'"):
        run(delta, {"p1": batch(odd, ["p1"])}, schema_=odd)


@pytest.mark.parametrize(
    "type_",
    [pa.timestamp("us"), pa.timestamp("us", tz="UTC"), pa.list_(pa.timestamp("us")), pa.binary()],
)
def test_a_delta_table_gets_columns_of_every_type(delta: Place, type_: Any) -> None:
    run(delta, stream("p1", "p2"))
    more = schema(id=pa.int64(), x=type_)

    run(delta, {"p3": batch(more, ["p3"])}, schema_=more)

    assert delta.positions() == ["p1", "p2", "p3"]


def test_each_commit_names_its_own_files_alone(delta: Place) -> None:
    """A file that is named again would come back after a compaction."""
    run(delta, stream("p1", "p2", "p3", "p4"), commit_rows=1)

    logs = sorted(Path(delta.place, "_delta_log").glob("*.json"))
    assert [log.read_text().count('{"add"') for log in logs] == [0, 1, 1]


def test_a_cursor_that_is_lost_is_never_guessed(delta: Place) -> None:
    run(delta, stream("p1", "p2"))
    [file] = Path(delta.place, "_tailrace").iterdir()
    for damage in (lambda: file.write_text("p1"), file.unlink):
        damage()

        with pytest.raises(MaterializeRefused) as refused:
            run(delta, stream("p3", "p4"))
        assert refused.value.code == "cursor-lost"


# --- iceberg


@pytest.fixture
def iceberg(tmp_path: Path) -> Place:
    return make_place("iceberg", tmp_path)


def test_the_cursor_of_an_iceberg_table_survives_its_snapshots(iceberg: Place) -> None:
    run(iceberg, stream("p1", "p2", "p3", "p4"), commit_rows=1)
    with iceberg.catalog() as catalog:
        table = catalog.load_table(iceberg.place)
        old = [snapshot.snapshot_id for snapshot in table.snapshots()[:-1]]
        table.maintenance.expire_snapshots().by_ids(old).commit()
        assert table.properties["tailrace.cursor"] == "p4"
        [summary] = [snapshot.summary for snapshot in table.refresh().snapshots()]
        assert summary is not None
        assert summary["tailrace.cursor"] == "p4"

    assert run(iceberg, stream("p3", "p4", "p5")).rows == 1
    assert iceberg.positions() == ["p1", "p2", "p3", "p4", "p5"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("tailrace.cursor", "no property tailrace.cursor"), ("tailrace.table", "not Tailrace's")],
)
def test_an_iceberg_table_without_its_properties_is_refused(
    iceberg: Place, name: str, said: str
) -> None:
    run(iceberg, stream("p1", "p2"))
    with iceberg.catalog() as catalog, catalog.load_table(iceberg.place).transaction() as change:
        change.remove_properties(name)

    with pytest.raises(MaterializeRefused, match=said):
        run(iceberg, stream("p3", "p4"))


def test_what_is_more_than_one_append_is_one_commit(
    iceberg: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.materialize.iceberg.PIECE_BYTES", 1)

    done = run(iceberg, stream("p1", "p2", "p3", "p4"), commit_rows=100)

    assert (done.commits, iceberg.positions()) == (1, ["p1", "p2", "p3", "p4"])
    with iceberg.catalog() as catalog:
        snapshots = catalog.load_table(iceberg.place).snapshots()
        cursors = [one.summary and one.summary["tailrace.cursor"] for one in snapshots]
    assert cursors == [None, "p4"]


# --- files


@pytest.mark.parametrize("format_", ["delta", "parquet"])
def test_a_commit_may_have_many_files(
    tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.materialize.bodies.BODY_BYTES", 1)
    monkeypatch.setattr("engine.reader.formats.parquet_file.GROUP_BYTES", 1)
    place = make_place(format_, tmp_path)

    done = run(place, stream("p1", "p2", "p3", "p4"), commit_rows=100)

    assert (done.commits, place.positions()) == (1, ["p1", "p2", "p3", "p4"])
    assert len([*Path(place.place).rglob("*.parquet")]) == 2
