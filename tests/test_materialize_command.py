"""`tailrace materialize` as a command: what it says, what it refuses, its exit codes."""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from configured import destination_file
from engine.cli.application import main
from engine.config import DestinationConfiguration
from engine.materialize.folder import BucketFolder
from engine.model.errors import DestinationUnavailable
from engine.servers.servers import EmbeddedS3
from lake_places import make_place
from small_bucket import ODD, ORDERS, SmallBucket
from test_read_command import moved
from test_table_changes import streamed, with_gap
from test_verify_command import destination

TABLE = str(ORDERS)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def target(
    aws_environment: EmbeddedS3, shared_bucket: str, prefix: str
) -> DestinationConfiguration:
    return destination(aws_environment, shared_bucket, prefix)


@pytest.fixture
def file(target: DestinationConfiguration, tmp_path: Path) -> str:
    return destination_file(target, tmp_path)


@pytest.fixture
def changes(target: DestinationConfiguration) -> None:
    moved(asyncio.run(with_odd()), target)


async def with_odd() -> SmallBucket:
    """10 changes of orders, and one of another table."""
    bucket = await streamed("cccu", "dcut", "cc")
    version = bucket.version(ODD)
    piece = bucket.piece(ODD, "c")
    await bucket.journal.append(planned=(piece.planned,), schemas=(version,))
    await bucket.publish(piece)
    await bucket.journal.append(durable=bucket.durable())
    return bucket


def ran(capsys: pytest.CaptureFixture[str], file: str, *words: str) -> tuple[int, str, str]:
    code = main(["materialize", "-c", file, *words])
    out, errors = capsys.readouterr()
    return code, out, errors


@pytest.mark.usefixtures("changes")
def test_it_says_what_was_committed_on_stderr_or_as_json(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place("parquet", tmp_path)

    first = ran(capsys, file, TABLE, place.place, *place.words)
    code, out, errors = ran(capsys, file, TABLE, place.place, *place.words, "--json")

    assert first[:2] == (0, "")
    assert re.fullmatch(
        r"10 changes of public\.orders in 1 commit, up to 0001\.\w+\nnext: .+\n", first[2]
    )
    assert (code, errors) == (0, "")
    done = json.loads(out)
    assert done.pop("until") in first[2]
    assert done.pop("cursor") == [*place.manifests()][-1]["cursor"]
    assert done == {
        "table": TABLE,
        "changes": 0,
        "commits": 0,
        "begun_again": 0,
        "warnings": [],
    }


@pytest.mark.usefixtures("changes")
@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--to", "delta"], "pip install 'tailrace[delta]'"),
        (["--to", "iceberg", "--catalog", "x"], "pip install 'tailrace[iceberg]'"),
        (["--to", "parquet"], "pip install 'tailrace[read]'"),
    ],
)
def test_a_library_that_is_missing_is_one_sentence(
    file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    hint: str,
) -> None:
    monkeypatch.setitem(sys.modules, f"engine.materialize.{words[1]}", None)

    code, _, errors = ran(capsys, file, TABLE, "a.b", *words)

    assert code == 1
    assert " is not installed" in errors
    assert hint in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--to", "iceberg"], 2, "--catalog NAME goes with --to iceberg"),
        (["--to", "delta", "--catalog", "x"], 2, "--catalog NAME goes with --to iceberg"),
        (["--to", "parquet", "--commit-rows", "0"], 2, "--commit-rows"),
        (["--to", "orc"], 2, "--to"),
        (["--to", "iceberg", "--catalog", "nowhere"], 78, "Iceberg's catalog nowhere"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(
    file: str, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    found, _, errors = ran(capsys, file, TABLE, "shop.orders", *words)

    assert (found, said in errors) == (code, True), errors


@pytest.mark.parametrize(
    ("place", "format_", "said"),
    [
        ("gs://bucket/x", "parquet", "gs:// is no place for Parquet files"),
        ("s3://bucket/x?role_arn=y", "delta", "role_arn is no parameter"),
        ("/proc/lake", "parquet", "/proc"),
    ],
)
@pytest.mark.usefixtures("changes")
def test_a_place_that_cannot_be_is_named(
    file: str, capsys: pytest.CaptureFixture[str], place: str, format_: str, said: str
) -> None:
    code, _, errors = ran(capsys, file, TABLE, place, "--to", format_)

    assert (code, said in errors) == (78, True), errors


def test_a_gap_is_refused_or_warned_of(
    target: DestinationConfiguration,
    file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    moved(asyncio.run(with_gap()), target)
    place = make_place("parquet", tmp_path)

    code, _, errors = ran(capsys, file, TABLE, place.place, *place.words)
    allowed, _, warned = ran(capsys, file, TABLE, place.place, *place.words, "--allow-gaps")

    assert (code, allowed) == (1, 0)
    assert "left-publication" in errors
    assert warned.startswith("warning: ")
    assert len(place.positions()) == 5


@pytest.mark.usefixtures("changes")
def test_a_place_belongs_to_one_table(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place("parquet", tmp_path)
    ran(capsys, file, TABLE, place.place, *place.words)

    code, _, errors = ran(capsys, file, str(ODD), place.place, *place.words)

    assert (code, "this cursor is one of table public.orders" in errors) == (1, True)


@pytest.mark.usefixtures("changes")
def test_a_manifest_that_is_damaged_is_no_new_beginning(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = make_place("parquet", tmp_path)
    ran(capsys, file, TABLE, place.place, *place.words)
    Path(place.place, "manifests", f"{1:012d}.json").write_text("{}")

    code, _, errors = ran(capsys, file, TABLE, place.place, *place.words)

    assert (code, "is no manifest" in errors) == (1, True)


@pytest.mark.usefixtures("changes")
def test_duckdb_reads_the_files_that_manifests_name(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe of docs/materialize.md."""
    place = make_place("parquet", tmp_path)
    ran(capsys, file, TABLE, place.place, *place.words, "--commit-rows", "3")
    Path(place.place, "data", "000000000009-orphan.parquet").write_bytes(b"left by a dead job")
    text = (ROOT / "docs" / "materialize.md").read_text()
    [recipe] = re.findall(r"```sql\n(.+?)```", text, re.DOTALL)

    connection = duckdb.connect()
    for statement in recipe.replace("lake/orders", place.place).split(";\n"):
        if statement.strip():
            connection.execute(statement)

    assert connection.execute("SELECT count(*) FROM changes").fetchall() == [(10,)]


def test_a_manifest_whose_answer_was_lost_is_known_as_ours(
    target: DestinationConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = BucketFolder(target)
    create, answers = folder._store.create, ["lost"]

    async def lossy(*words: Any, **options: Any) -> bool:
        is_created = await create(*words, **options)
        if answers:
            raise DestinationUnavailable(f"the answer was {answers.pop()}")
        return is_created

    monkeypatch.setattr(folder._store, "create", lossy)
    try:
        assert folder.create("manifests/1.json", b"ours")
        assert not folder.create("manifests/1.json", b"another one's")
    finally:
        folder.close()
