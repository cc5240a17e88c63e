"""`tailrace verify` against a real S3 server: what the operator reads, and exit codes."""

import asyncio
import json
from pathlib import Path

import pytest

from configured import destination_file, make_destination
from engine import app
from engine.cli.application import main
from engine.cli.verify import _say_tables
from engine.config import DestinationConfiguration
from engine.journal.entry import Gap
from engine.model.layout import journal_key
from engine.model.position import Position
from engine.reader.verify import TableVerdict, Verdict
from engine.servers.servers import EmbeddedS3
from memory_store import MemoryStore
from small_bucket import ORDERS, SmallBucket, make_bucket


def destination(s3: EmbeddedS3, bucket: str, prefix: str) -> DestinationConfiguration:
    return make_destination(
        bucket=bucket, prefix=prefix, region="us-east-1", endpoint_url=s3.endpoint_url
    )


def put(store: MemoryStore, target: DestinationConfiguration) -> None:
    """Copy a bucket in memory to the real one."""

    async def copy() -> None:
        async with app.open_bucket(target) as bucket:
            for key, stored in store.objects.items():
                metadata = {name: value for name, value in stored.metadata.items() if value}
                await bucket.create(
                    key, stored.body, content_type="application/x-ndjson", metadata=metadata
                )

    asyncio.run(copy())


@pytest.fixture
def small_bucket(prefix: str) -> SmallBucket:
    return asyncio.run(make_bucket(prefix=prefix))


@pytest.fixture
def target(
    aws_environment: EmbeddedS3, shared_bucket: str, prefix: str
) -> DestinationConfiguration:
    return destination(aws_environment, shared_bucket, prefix)


@pytest.fixture
def file(target: DestinationConfiguration, tmp_path: Path) -> str:
    return destination_file(target, tmp_path)


@pytest.mark.parametrize("depth", ["light", "full"])
def test_a_bucket_that_is_right_ends_with_0_and_one_json_object(
    small_bucket: SmallBucket,
    target: DestinationConfiguration,
    file: str,
    depth: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(small_bucket.store, target)

    code = main(["verify", "-c", file, "--depth", depth, "--json"])

    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "tables": 2,
        "objects": 5,
        "rows": 14,
        "pending": 2,
        "expired": 0,
        "problems": [],
        "gaps": [],
        "warnings": [],
        "snapshots": [],
    }
    assert code == 0


def test_a_human_reads_tables_and_the_next_step(
    small_bucket: SmallBucket,
    target: DestinationConfiguration,
    file: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(small_bucket.store, target)

    code = main(["verify", "-c", file])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "table",
        "objects",
        "rows",
        "pending",
        "versions",
        "last",
        "commit",
    ]
    assert lines[2].split()[:5] == [str(ORDERS), "4", "13", "2", "1-2"]
    assert lines[2].split()[5] == "0001.0000000000001E00"
    assert max(map(len, lines[:3])) <= 82
    assert any(line.startswith("ok: 5 objects and 14 rows of 2 tables") for line in lines)
    assert lines[-1].startswith("next: tailrace verify --depth full")
    assert code == 0


@pytest.mark.parametrize(("is_terminal", "width_max"), [(True, 80), (False, 200)])
def test_a_table_of_long_names_fits_a_terminal_and_is_whole_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    is_terminal: bool,
    width_max: int,
) -> None:
    name = '"' + "s" * 63 + '"."' + "t" * 63 + '"'
    last = Position("0001.FFFFFFFF12345678.FFFFFFFF12345670.000000")
    table = TableVerdict(name, 10**7, 10**12, 1000, last, last, (*range(1, 30), 40))
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", "80")

    _say_tables(Verdict((table,), 1, "0/0", "", ()))

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width_max
    assert (name in lines[1]) == (not is_terminal)
    assert name in "".join(lines)
    assert any(line.endswith("1-29,40  0001.FFFFFFFF12345678") for line in lines)


def test_expired_entries_are_a_warning_and_strict_ends_with_1(
    small_bucket: SmallBucket,
    target: DestinationConfiguration,
    file: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seq in range(3):
        del small_bucket.store.objects[journal_key(small_bucket.prefix, seq)]
    put(small_bucket.store, target)

    code = main(["verify", "-c", file])
    text = capsys.readouterr().out
    strict_code = main(["verify", "-c", file, "--strict", "--json"])
    found = json.loads(capsys.readouterr().out)

    assert "WARNING  journal_expired" in text
    assert "docs/retention.md" in text
    assert [warning["code"] for warning in found["warnings"]] == ["journal_expired"]
    assert found["ok"] is True
    assert (code, strict_code) == (0, 1)


def test_problems_end_with_1_and_say_what_to_do(
    small_bucket: SmallBucket,
    target: DestinationConfiguration,
    file: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing = small_bucket.pieces[2].planned.key
    del small_bucket.store.objects[missing]
    put(small_bucket.store, target)

    code = main(["verify", "-c", file])
    text = capsys.readouterr().out
    json_code = main(["verify", "-c", file, "--json"])
    found = json.loads(capsys.readouterr().out)

    assert f"PROBLEM  object_missing  {missing}" in text
    assert "what to do:\n  object_missing: Objects are written once" in text
    assert [(problem["code"], problem["key"]) for problem in found["problems"]] == [
        ("object_missing", missing)
    ]
    assert not found["ok"]
    assert code == json_code == 1


def test_a_gap_is_a_warning_and_a_failure_only_where_that_is_asked_for(
    target: DestinationConfiguration,
    file: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def bucket_with_gaps() -> SmallBucket:
        bucket = await make_bucket(prefix=target.prefix)
        gap = Gap(1, str(ORDERS), "0001.A", "", "operations", "updates were left out")
        mended = Gap(2, str(ORDERS), "0001.A", "0001.B", "operations", "some", "snapshot 3")
        await bucket.journal.append(gaps=(gap, mended))
        return bucket

    put(asyncio.run(bucket_with_gaps()).store, target)

    code = main(["verify", "-c", file])
    text = capsys.readouterr().out
    strict_code = main(["verify", "-c", file, "--strict", "--json"])
    found = json.loads(capsys.readouterr().out)
    main(["verify", "-c", file, "--strict"])
    strict_text = capsys.readouterr().out

    assert "\nok: " in text
    assert "\nfailed, as --strict asks: " in strict_text
    assert "\nok: " not in strict_text
    warning = f"WARNING  gap  {ORDERS}  operations  after 0001.A, and it goes on\n"
    assert warning + "         updates were left out\n" in text
    assert "1 gap not mended" in text
    assert text.count("WARNING") == 1
    assert found["ok"]
    assert found["gaps"][0] == {
        "number": 1,
        "table": str(ORDERS),
        "from": "0001.A",
        "to": None,
        "reason": "operations",
        "text": "updates were left out",
        "mended": None,
        "noticed": None,
    }
    assert found["gaps"][1]["mended"] == "snapshot 3"
    assert (code, strict_code) == (0, 1)


def test_an_empty_prefix_is_a_problem_with_a_name(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["verify", "-c", file, "--json"])

    found = json.loads(capsys.readouterr().out)
    assert [problem["code"] for problem in found["problems"]] == ["no_journal"]
    assert code == 1


def test_a_missing_bucket_ends_with_78(
    target: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(file).read_text()
    Path(file).write_text(text.replace(target.bucket, "there-is-no-such-bucket"))

    code = main(["verify", "-c", file])

    captured = capsys.readouterr()
    assert "NoSuchBucket" in captured.err
    assert "hint:" in captured.err
    assert captured.out == ""
    assert code == 78


def test_an_endpoint_that_does_not_answer_ends_with_69(
    target: DestinationConfiguration,
    file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Long enough for a second attempt, also on a busy machine.
    monkeypatch.setattr("engine.reader.patience.PATIENCE_SECONDS", 3.0)
    text = Path(file).read_text()
    # Port 1 on loopback: nobody listens there.
    Path(file).write_text(text.replace(str(target.endpoint_url), "http://127.0.0.1:1"))

    code = main(["verify", "-c", file])

    said, _, error = capsys.readouterr().err.partition("error: list ")
    # One warning that names the trouble while it is tried again, not one an attempt.
    (warning,) = said.splitlines()
    assert "destination unavailable" in warning
    assert "127.0.0.1:1" in warning
    assert "not shown" not in warning
    assert "hint:" in error
    assert code == 69
