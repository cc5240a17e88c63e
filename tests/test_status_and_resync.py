"""`tailrace status` and `tailrace resync` against a real S3 server, and one real engine."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from configured import make_destination
from engine import app
from engine.cli.application import main
from engine.config import DestinationConfiguration
from engine.journal.entry import Answer, Gap
from engine.model.layout import requests_folder
from engine.model.request import decode_request, request_key, request_name, request_name_of
from engine.servers.servers import EmbeddedS3
from memory_store import MemoryStore
from small_bucket import ODD, ORDERS, START_US, SmallBucket
from small_snapshot import Snapshots

NONCE = "0123456789abcdef"
ANSWERED = request_name(START_US, NONCE)
WAITING = request_name(START_US + 1, NONCE)


@pytest.fixture
def target(
    aws_environment: EmbeddedS3, shared_bucket: str, prefix: str
) -> DestinationConfiguration:
    return make_destination(
        bucket=shared_bucket,
        prefix=prefix,
        region="us-east-1",
        endpoint_url=aws_environment.endpoint_url,
    )


@pytest.fixture
def file(target: DestinationConfiguration, tmp_path: Path) -> str:
    """A configuration that has nothing but a destination."""
    path = tmp_path / "tailrace.toml"
    path.write_text(
        f'[destination]\nbucket = "{target.bucket}"\nprefix = "{target.prefix}"\n'
        f'region = "us-east-1"\nendpoint_url = "{target.endpoint_url}"\n'
    )
    return str(path)


async def in_memory(prefix: str) -> SmallBucket:
    """Orders has a finished snapshot, the other table's is cancelled; a gap, and a request done."""
    bucket = SmallBucket(prefix=prefix, snapshot="initial")
    await bucket.take_over("writer-1")
    snapshots = Snapshots(bucket)
    await snapshots.make_whole(ORDERS)
    await snapshots.complete()
    bucket.commit += 0x1000
    await snapshots.append(snapshots.durable())
    snapshots.register.capture(ODD)
    await snapshots.append()
    snapshots.register.cancel(ODD)
    answer = Answer(ANSWERED, "cancel", "done", "2026-11-22T09:51:54Z", (str(ODD),))
    gap = Gap(1, str(ORDERS), "0001.A", "", "operations", "updates were left out")
    await bucket.journal.append(
        snapshots=snapshots.register.pending, answers=(answer,), gaps=(gap,)
    )
    return bucket


async def copy(store: MemoryStore, target: DestinationConfiguration) -> None:
    """What lies in memory, to the real bucket."""
    async with app.open_bucket(target) as bucket:
        for key, stored in store.objects.items():
            if "/_tailrace/" in key:
                await bucket.create(
                    key, stored.body, content_type="application/json", metadata=stored.metadata
                )


async def ask(target: DestinationConfiguration, name: str) -> None:
    async with app.open_bucket(target) as bucket:
        key = request_key(target.prefix, name)
        await bucket.create(key, b"{}", content_type="application/json", metadata={})


async def asked(target: DestinationConfiguration) -> dict[str, bytes | None]:
    """Every request that is there, by its name."""
    async with app.open_bucket(target) as bucket:
        keys = [listed.key async for listed in bucket.list(requests_folder(target.prefix))]
        return {str(request_name_of(target.prefix, key)): await bucket.get(key) for key in keys}


@pytest.fixture
def standing_bucket(target: DestinationConfiguration) -> DestinationConfiguration:
    asyncio.run(copy(asyncio.run(in_memory(target.prefix)).store, target))
    return target


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_status_shows_tables_gaps_and_requests_and_names_the_next_step(
    standing_bucket: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["status", "-c", file])

    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert code == 0
    assert re.fullmatch(r"durable 0001\.[0-9A-F]{16}", lines[0])
    assert re.fullmatch(r"2026-11-22 \d\d:\d\d:\d\d UTC, \d+ \w+ ago", lines[1])
    assert "2 tables, 1 unfinished: earlier rows are not all there" in lines
    [odd] = [n for n, line in enumerate(lines) if line.startswith(f"{ODD} cancelled: ")]
    assert lines[odd + 1].startswith(f"{ORDERS} finished: attempt 1, as of 0001.")
    assert "1 gap not mended" in lines
    assert f"{ORDERS} operations" in lines
    assert f"{ANSWERED} done: cancel {ODD}" in lines
    assert lines[-1].startswith("next: tailrace resync ")


def test_status_as_json_has_the_same(
    standing_bucket: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(ask(standing_bucket, WAITING))

    code = main(["status", "-c", file, "--json"])

    found = said(capsys)
    tables = {table["table"]: table for table in found["tables"]}
    assert code == 0
    assert found["released"] is False
    assert tables[str(ODD)] == {
        "table": str(ODD),
        "snapshot": "cancelled",
        "attempt": None,
        "point": None,
        "unfinished": True,
    }
    assert tables[str(ORDERS)]["snapshot"] == "finished"
    assert tables[str(ORDERS)]["point"] < found["durable"]["position"]
    assert found["gaps"] == [{"number": 1, "table": str(ORDERS), "reason": "operations"}]
    assert found["requests"]["waiting"] == [WAITING]
    assert [answer["name"] for answer in found["requests"]["answered"]] == [ANSWERED]


def test_resync_creates_a_request_that_status_then_shows(
    standing_bucket: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["resync", ORDERS.table, str(ODD), "-c", file])
    text = capsys.readouterr().out
    main(["status", "-c", file])
    shown = capsys.readouterr().out

    [(name, body)] = asyncio.run(asked(standing_bucket)).items()
    request = decode_request(body or b"")
    assert code == 0
    assert (request.kind, request.tables) == ("resync", (str(ORDERS), str(ODD)))
    assert f"    request {name}\n" in text
    assert text.endswith(f"next: tailrace status -c {file}\n")
    assert f"    {name}  waits for an engine\n" in shown


def test_cancel_is_a_request_of_its_own_and_json_is_one_object(
    standing_bucket: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["resync", str(ORDERS), "--cancel", "--json", "-c", file])

    found = said(capsys)
    [(name, body)] = asyncio.run(asked(standing_bucket)).items()
    assert code == 0
    assert found == {"request": name, "tables": [str(ORDERS)], "outcome": "waiting", "text": ""}
    assert decode_request(body or b"").kind == "cancel"


def test_a_table_that_is_not_known_ends_with_1_and_near_names(
    standing_bucket: DestinationConfiguration, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["resync", f"{ORDERS}s", "-c", file])
    complaint = capsys.readouterr().err
    json_code = main(["resync", f"{ORDERS}s", "-c", file, "--json"])
    found = said(capsys)

    assert (code, json_code) == (1, 1)
    assert f"error: the journal knows no {ORDERS}s; did you mean {ORDERS}?" in complaint
    assert f"hint: `tailrace status -c {file}` lists" in complaint
    assert (found["outcome"], found["request"]) == ("refused", None)
    assert asyncio.run(asked(standing_bucket)) == {}


def test_no_table_at_all_is_a_wrong_command_line(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resync", "-c", file]) == 2
    assert "no table is named" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["status"], ["resync", "public.orders"]])
def test_a_prefix_without_a_journal_ends_with_70_and_a_hint(
    words: list[str], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([*words, "-c", file])

    captured = capsys.readouterr()
    assert code == 70
    assert captured.out == ""
    assert "error: there is no journal under t/" in captured.err
    assert "hint: Check destination.bucket" in captured.err


@pytest.mark.parametrize("words", [["status"], ["resync", "public.orders"]])
def test_a_bucket_that_does_not_answer_ends_with_69(
    words: list[str],
    target: DestinationConfiguration,
    file: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.reader.journal.PATIENCE_SECONDS", 0.5)
    text = Path(file).read_text()
    # Port 1 on loopback: nobody listens there.
    Path(file).write_text(text.replace(str(target.endpoint_url), "http://127.0.0.1:1"))

    code = main([*words, "-c", file])

    captured = capsys.readouterr()
    assert code == 69, captured.err
    assert captured.out == ""
    assert "error: " in captured.err
