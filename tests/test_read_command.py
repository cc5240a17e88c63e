"""`tailrace read` and `tailrace.read` against a real S3 server: what comes out, and exit codes."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet
import pytest

import tailrace
from configured import destination_file
from engine.cli.application import main
from engine.cli.read_target import Target
from engine.config import DestinationConfiguration
from engine.reader.formats import taking
from engine.reader.table import kept
from engine.servers.servers import EmbeddedS3
from memory_store import MemoryStore
from small_bucket import ORDERS, SmallBucket
from test_table_changes import streamed, with_gap
from test_verify_command import destination, put

TABLE = str(ORDERS)


@pytest.fixture
def target(
    aws_environment: EmbeddedS3, shared_bucket: str, prefix: str
) -> DestinationConfiguration:
    return destination(aws_environment, shared_bucket, prefix)


@pytest.fixture
def file(target: DestinationConfiguration, tmp_path: Path) -> str:
    return destination_file(target, tmp_path)


@pytest.fixture
def lake(target: DestinationConfiguration) -> SmallBucket:
    """13 durable changes of orders; 5 rows came after the last truncate record."""
    bucket = asyncio.run(streamed("cccu", "dcut", "cc", "ccc"))
    moved(bucket, target)
    return bucket


def read(
    capsysbinary: pytest.CaptureFixture[bytes], file: str, *words: str
) -> tuple[int, list[bytes], str]:
    code = main(["read", "-c", file, *words])
    out, errors = capsysbinary.readouterr()
    return code, out.splitlines(), errors.decode()


def url(target: DestinationConfiguration) -> str:
    query = f"endpoint_url={target.endpoint_url}&region=us-east-1"
    return f"s3://{target.bucket}/{target.prefix}?{query}"


# --- the command


def test_changes_go_to_stdout_and_the_cursor_to_stderr(
    lake: SmallBucket, file: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    code, lines, errors = read(capsysbinary, file, TABLE)
    assert (code, len(lines)) == (0, 13)
    last = errors.splitlines()[-1]
    assert last.startswith(f"next: tailrace read {TABLE} --since tr1.")

    since = last.split("--since ")[1].split()[0]
    code, again, errors = read(capsysbinary, file, TABLE, "--since", since)

    assert (code, again) == (0, [])
    assert "0 changes of public.orders, up to 0001.0000000000001D10" in errors


def test_a_cursor_file_keeps_how_far_it_was_read(
    lake: SmallBucket, file: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    kept = tmp_path / "orders.cursor"
    words = (TABLE, "--cursor-file", str(kept))

    first = read(capsysbinary, file, *words, "--until", "0001.0000000000001700")
    second = read(capsysbinary, file, *words)
    third = read(capsysbinary, file, *words)

    assert [len(lines) for _, lines, _ in (first, second, third)] == [6, 7, 0]
    assert kept.read_text().startswith("tr1.")
    # Nothing is left beside it.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["orders.cursor", "tailrace.toml"]


def test_a_cursor_file_stays_as_it_was_where_the_output_could_not_be_written(
    lake: SmallBucket, file: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    kept = tmp_path / "orders.cursor"

    code, _, errors = read(
        capsysbinary, file, TABLE, "--cursor-file", str(kept), "--output", "/dev/full/x"
    )

    assert code == 70
    assert "/dev/full/x" in errors
    assert not kept.exists()


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b"\xff\xfe"])
def test_a_cursor_file_without_a_cursor_is_refused(
    lake: SmallBucket,
    file: str,
    tmp_path: Path,
    content: bytes,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    kept = tmp_path / "orders.cursor"
    kept.write_bytes(content)

    code, lines, errors = read(capsysbinary, file, TABLE, "--cursor-file", str(kept))

    assert (code, lines) == (1, [])
    assert "cursor" in errors or "empty" in errors
    assert kept.read_bytes() == content


def test_lines_are_written_piece_by_piece(
    lake: SmallBucket,
    file: str,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, wanted, _ = read(capsysbinary, file, TABLE)
    written: list[bytes] = []
    monkeypatch.setattr(Target, "write", lambda _, content: written.append(content))
    monkeypatch.setattr(taking, "PIECE_BYTES", len(wanted[0]))

    code, _, errors = read(capsysbinary, file, TABLE)

    assert code == 0
    assert "13 changes" in errors
    assert [line.rstrip(b"\n") for line in written] == wanted


def test_rows_are_those_that_are_left(
    lake: SmallBucket, file: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    code, lines, errors = read(capsysbinary, file, "orders", "--current")

    assert [json.loads(line) for line in lines] == [{"id": 7, "note": 'déjà "vu"\n'}]
    assert code == 0
    assert "1 row of public.orders" in errors


def test_csv_has_a_header(
    lake: SmallBucket, file: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    _, changes, _ = read(capsysbinary, file, TABLE, "--format", "csv")
    _, rows, _ = read(capsysbinary, file, TABLE, "--format", "csv", "--current")

    names = b"_op,_position,_version,_source_ts_ms,_unchanged,_before,id,note"
    assert changes[0] == names
    assert b"\n".join(rows).decode() == 'id,note\n7,"déjà ""vu""\n"'


def test_parquet_goes_through_a_pipe_and_into_a_file(
    lake: SmallBucket, file: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    output = tmp_path / "orders.parquet"
    words = ["read", "-c", file, TABLE, "--format", "parquet"]

    assert main(words) == 0
    piped = capsysbinary.readouterr().out
    assert main([*words, "--output", str(output), "--json"]) == 0
    told = json.loads(capsysbinary.readouterr().out)

    (tmp_path / "piped").write_bytes(piped)
    tables = [pyarrow.parquet.read_table(path) for path in (tmp_path / "piped", output)]
    assert tables[0] == tables[1]
    assert tables[0].column("op").to_pylist() == list("cccudcutccccc")
    assert (told["table"], told["kind"], told["count"]) == (TABLE, "changes", 13)
    assert told["until"] == "0001.0000000000001D10"
    assert told["cursor"].startswith("tr1.")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--current", "--since", "x"), "takes no cursor"),
        (("--current", "--cursor-file", "x"), "takes no cursor"),
        (("--json",), "--output"),
        (("--until", "yesterday"), "neither a position nor a time"),
        (("--format", "xml"), "xml"),
    ],
)
def test_options_that_do_not_fit_are_a_wrong_command_line(
    file: str,
    words: tuple[str, ...],
    text: str,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    code, lines, errors = read(capsysbinary, file, TABLE, *words)

    assert (code, lines) == (2, [])
    assert text in errors


def test_a_table_that_is_not_known_is_named(
    lake: SmallBucket, file: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    code, lines, errors = read(capsysbinary, file, "public.ordres")

    assert (code, lines) == (1, [])
    assert "did you mean public.orders?" in errors


def test_a_gap_is_refused_or_warned_of(
    target: DestinationConfiguration,
    file: str,
    tmp_path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    bucket = asyncio.run(with_gap())
    moved(bucket, target)

    refused = read(capsysbinary, file, TABLE)
    allowed = read(capsysbinary, file, TABLE, "--allow-gaps")
    output = str(tmp_path / "x")
    main(["read", "-c", file, TABLE, "--allow-gaps", "--output", output, "--json"])
    told = json.loads(capsysbinary.readouterr().out)

    assert (refused[0], refused[1]) == (1, [])
    assert "hint: " in refused[2]
    assert (allowed[0], len(allowed[1])) == (0, 5)
    assert "warning: gap: gap 1 of public.orders, left-publication" in allowed[2]
    assert [warning["code"] for warning in told["warnings"]] == ["gap"]


def moved(bucket: SmallBucket, target: DestinationConfiguration) -> None:
    """Put the bucket under the target's prefix: what its keys begin with is in no object."""
    store = MemoryStore(
        {
            key.replace(bucket.prefix, target.prefix, 1): found
            for key, found in bucket.store.objects.items()
        }
    )
    put(store, target)


def test_a_bucket_without_a_pipeline_is_named(
    target: DestinationConfiguration, file: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    code, lines, errors = read(capsysbinary, file, TABLE)

    assert (code, lines) == (70, [])
    assert "there is no journal" in errors


def test_a_reader_that_goes_away_ends_it_with_141(
    target: DestinationConfiguration, file: str
) -> None:
    bucket = asyncio.run(streamed(*["c" * 2000] * 4))
    moved(bucket, target)
    command = [sys.executable, "-m", "tailrace", "read", "-c", file, TABLE]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        code = process.wait(60)

    assert (code, errors) == (141, "")


def test_ctrl_c_ends_it_with_130_and_leaves_no_file(
    target: DestinationConfiguration, file: str, tmp_path: Path
) -> None:
    bucket = asyncio.run(streamed(*["c" * 2000] * 4))
    moved(bucket, target)
    command = [sys.executable, "-m", "tailrace", "read", "-c", file, TABLE]
    kept = tmp_path / "cursor"

    with subprocess.Popen(
        [*command, "--cursor-file", str(kept)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        # It writes until the pipe is full, and then it waits for us.
        process.stdout.read(10)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        code = process.wait(60)

    assert code == 130
    assert rest
    assert not kept.exists()


# --- from Python


def test_batches_come_with_cursors(lake: SmallBucket, target: DestinationConfiguration) -> None:
    with tailrace.read(url(target), TABLE) as changes:
        found = [(batch.num_rows, changes.cursor) for batch in changes]
    cursors = [cursor for _, cursor in found]

    rests = [tailrace.read(url(target), TABLE, since=cursor).arrow() for cursor in cursors]

    assert [count for count, _ in found] == [4, 4, 2, 3]
    assert [rest.num_rows for rest in rests] == [9, 5, 3, 0]
    assert changes.cursor == cursors[-1]
    assert changes.until == "0001.0000000000001D10"


def test_lines_come_piece_by_piece_and_the_cursor_with_an_objects_last(
    lake: SmallBucket, target: DestinationConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tailrace.read(url(target), TABLE) as changes:
        wanted = [(piece.count(b"\n"), piece, changes.cursor) for piece in changes.ndjson()]
    monkeypatch.setattr(taking, "PIECE_BYTES", 1)

    with tailrace.read(url(target), TABLE) as changes:
        found = [(piece, changes.cursor) for piece in changes.ndjson()]

    assert [piece for piece, _ in found] == b"".join(piece for _, piece, _ in wanted).splitlines(
        keepends=True
    )
    begun = [None, *(cursor for _, _, cursor in wanted)]
    assert [cursor for _, cursor in found] == [
        cursor
        for before, (count, _, after) in zip(begun, wanted, strict=False)
        for cursor in (*[before] * (count - 1), after)
    ]


def test_rows_are_a_table_and_a_relation(
    lake: SmallBucket, target: DestinationConfiguration, file: str
) -> None:
    table = tailrace.read(file, "orders", current=True).arrow()
    relation = tailrace.read(file, "orders", current=True).duckdb()

    wanted = [{"id": 7, "note": 'déjà "vu"\n'}]
    assert table.to_pylist() == wanted
    assert relation.filter("id = 7").fetchall() == [tuple(wanted[0].values())]
    assert relation.aggregate("count(*)").fetchall() == [(1,)]


def test_a_relation_is_made_in_the_connection_that_is_given(
    lake: SmallBucket, target: DestinationConfiguration
) -> None:
    connection = duckdb.connect()
    tailrace.read(url(target), TABLE).duckdb(connection, 'odd "name"')

    found = connection.execute('SELECT op, after.id FROM "odd ""name""" LIMIT 1').fetchall()
    assert found == [("c", 7)]


def test_an_answer_is_read_once(lake: SmallBucket, target: DestinationConfiguration) -> None:
    changes = tailrace.read(url(target), TABLE)
    assert sum(piece.count(b"\n") for piece in changes.ndjson()) == 13

    with pytest.raises(ValueError, match="read once"):
        changes.arrow()


def test_who_stops_half_way_leaves_no_thread(
    lake: SmallBucket, target: DestinationConfiguration
) -> None:
    with tailrace.read(url(target), TABLE) as changes:
        next(iter(changes))
    unread = tailrace.read(url(target), TABLE)
    unread.close()

    assert [t.name for t in threading.enumerate() if t.name == "tailrace-read"] == []


def test_who_closes_while_the_bucket_is_silent_does_not_wait(
    lake: SmallBucket, target: DestinationConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A small object would be read by now.
    monkeypatch.setattr(kept, "SMALL_BYTES_MAX", 0)
    changes = tailrace.read(url(target), TABLE)
    is_asked = threading.Event()

    async def silent(*_: object) -> bytes:
        is_asked.set()
        await asyncio.sleep(60)
        return b""

    monkeypatch.setattr("engine.destinations.s3.S3ObjectStore.get", silent)
    changes.ndjson()
    assert is_asked.wait(60)
    began = time.monotonic()

    changes.close()

    # The answer would take a minute.
    assert time.monotonic() - began < 30


def test_errors_are_raised_where_they_are_met(
    lake: SmallBucket, target: DestinationConfiguration
) -> None:
    with pytest.raises(tailrace.ReadRefused) as unknown:
        tailrace.read(url(target), "public.nobody")
    with pytest.raises(ValueError, match="either since or current"):
        tailrace.read(url(target), TABLE, since="x", current=True)
    with pytest.raises(tailrace.ReadRefused) as column:
        tailrace.read(url(target), TABLE, text=["nothing"])
    with pytest.raises(tailrace.TailraceError, match="names no bucket"):
        tailrace.read("s3:///prefix", TABLE)

    assert (unknown.value.code, column.value.code) == ("table-unknown", "column-unknown")


def test_an_error_half_way_is_raised_there(
    target: DestinationConfiguration, aws_environment: EmbeddedS3
) -> None:
    bucket = asyncio.run(streamed("c", "c", "c"))
    body = bucket.store.objects[bucket.pieces[0].planned.key].body
    bucket.store.objects[bucket.pieces[1].planned.key].body = body
    moved(bucket, target)

    found: list[Any] = []
    with pytest.raises(tailrace.ReadRefused) as caught:
        found += tailrace.read(url(target), TABLE).ndjson()

    assert caught.value.code == "content-differs"


def test_a_program_may_have_a_loop_of_its_own(
    lake: SmallBucket, target: DestinationConfiguration
) -> None:
    async def program() -> int:
        return int(tailrace.read(url(target), TABLE).arrow().num_rows)

    assert asyncio.run(program()) == 13


def test_pyarrow_is_only_needed_for_batches(
    lake: SmallBucket,
    file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("arrow", "parquet_file"):
        monkeypatch.delitem(sys.modules, f"engine.reader.formats.{name}", raising=False)

    lines = b"".join(tailrace.read(file, "orders").ndjson())
    with pytest.raises(tailrace.ReadRefused) as refused:
        tailrace.read(file, "orders").arrow()
    code, out, errors = read(capsysbinary, file, TABLE, "--format", "parquet")

    assert lines.count(b"\n") == 13
    assert refused.value.code == "extra-missing"
    assert (code, out) == (1, [])
    assert "pip install 'tailrace[read]'" in errors


def test_what_is_logged_is_not_on_a_programs_stdout(lake: SmallBucket, file: str) -> None:
    program = (
        "import structlog, tailrace\n"
        f"found = tailrace.read({file!r}, 'orders').ndjson()\n"
        "structlog.get_logger('engine.x').warning('told', key=1)\n"
        "print(sum(piece.count(b'\\n') for piece in found))\n"
        # One that nobody reads to its end does not keep the program from ending.
        f"unread = tailrace.read({file!r}, 'orders')\n"
        f"next(iter(tailrace.read({file!r}, 'orders').ndjson()))\n"
    )

    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert found.stdout == "13\n"
    assert "told" in found.stderr
