"""Everything that commands say, in a terminal of 80 columns: help, errors and tables."""

import asyncio
import os
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from configured import destination_file, make_destination
from engine import app
from engine.cli.application import COMMANDS
from engine.cli.table import table_lines
from engine.cli.terminal import cells, wrapped
from engine.config import DestinationConfiguration
from engine.journal.entry import Answer, Gap
from engine.model.request import request_name
from engine.servers.servers import EmbeddedS3
from memory_store import MemoryStore
from small_bucket import ODD, ORDERS, START_US, SmallBucket, make_bucket
from small_snapshot import Snapshots
from terminal import COLUMNS, on_a_real_terminal, shown, too_wide

WORDS = some.text(some.sampled_from("aé漢-./"), min_size=1, max_size=30)


@given(some.lists(WORDS, max_size=30), some.integers(40, 100))
def test_a_text_is_broken_at_blanks_alone_and_fits(words: list[str], columns: int) -> None:
    lines = wrapped(" ".join(words), columns, first="hint: ").split("\n")

    assert "".join(lines).split() == ["hint:", *words][: len(words) + 1] or not words
    assert all(cells(line) <= columns or " " not in line.strip() for line in lines[1:])
    assert all(line.startswith("      ") for line in lines[1:])


def test_what_stands_in_backquotes_is_kept_in_one_piece() -> None:
    text = "say `tailrace verify --depth full -c tailrace.toml` and read what it says there"

    lines = wrapped(text, 60, first="hint: ").split("\n")

    assert any("`tailrace verify --depth full -c tailrace.toml`" in line for line in lines)
    assert len(lines) > 1
    assert wrapped(text, None, first="hint: ") == f"hint: {text}"


@given(some.lists(some.tuples(WORDS, some.integers(0, 10**9)), min_size=1, max_size=5))
def test_a_table_fits_and_no_name_is_shortened(rows: list[tuple[str, int]]) -> None:
    told = [(name * 5, str(number), "prose " * 30) for name, number in rows]

    lines = table_lines(told, ("left", "right", "prose"), COLUMNS, indent="    ")
    piped = table_lines(told, ("left", "right", "prose"), None, indent="    ")

    assert all(cells(line) <= COLUMNS for line in lines)
    for name, number, _ in told:
        assert name in "".join(line.strip() for line in lines)
        assert any(number in line.split() for line in lines)
    assert len(piped) == len(told)


# --- help and errors


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_the_help_of_each_command_fits(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = shown(monkeypatch, *name.split(), "--help")

    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("Usage: tailrace")
    assert too_wide(found.lines) == []
    assert "[ARGS" not in found.out
    assert ("Begin with tailrace demo" in found.out) == (not name)


@pytest.mark.parametrize(
    "words",
    [
        "rn",
        "zzz",
        "run --foo",
        "verify --depth deep",
        "views mysql",
        "views",
        "resync",
        "check some.toml",
        "read",
        "read a.b --current --since x",
        "read a.b --until yesterday",
        "materialize a.b there --to iceberg",
        "demo --seconds -1",
        "config sho",
        "run --accept-gap 0/134EBCB0",
        "run -c nowhere/at/all/in/a/folder/that/has/a/long/name/tailrace.toml",
    ],
)
def test_what_a_wrong_command_line_is_told_fits_and_has_a_hint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    monkeypatch.chdir(tmp_path)

    found = shown(monkeypatch, *words.split())

    assert found.code in {2, 78}
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert "\nhint: " in found.err
    assert too_wide(found.lines) == []


@pytest.mark.parametrize("command", ["run", "check", "config show", "status", "verify", "pause"])
def test_a_wrong_configuration_is_told_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    file = tmp_path / "tailrace.toml"
    file.write_text(
        '[source]\ndsn = "geheim"\nsnapshot_order = "afterwards"\n[[source.table]]\ncolumns = []\n'
        '[destination]\nbuket = "x"\nbucket = "s3://x"\nprefix = "/x"\nexternal_id = "x"\n'
        'endpoint_url = "not a url"\nsse = "none"\n[chunk]\nmax_bytes = "1"\nmax_age = "now"\n'
    )

    found = shown(monkeypatch, *command.split(), "-c", str(file))

    assert found.code == 78
    assert "geheim" not in found.err
    assert len(found.lines) > 10
    assert too_wide(found.lines) == []


# --- tables, from a real bucket


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
def file(target: DestinationConfiguration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration in the working directory, whose source is not there."""
    monkeypatch.chdir(tmp_path)
    destination_file(
        target,
        tmp_path,
        """
        [source]
        dsn = "host=127.0.0.1 port=1 user=tailrace dbname=shop"
        tables = ["public.*", "sales.orders", "sales.customers", "logistics.shipments"]

        [http]
        listen = "off"
        """,
    )
    return "tailrace.toml"


async def _copy(store: MemoryStore, target: DestinationConfiguration) -> None:
    async with app.open_bucket(target) as bucket:
        for key, stored in store.objects.items():
            metadata = {name: value for name, value in stored.metadata.items() if value}
            await bucket.create(
                key, stored.body, content_type="application/x-ndjson", metadata=metadata
            )


async def _with_everything(prefix: str) -> SmallBucket:
    """Snapshots that are finished and cancelled, gaps, answers: whatever `status` can show."""
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
    text = "the journal knows no table of this name, and the configuration names none like it"
    name = request_name(START_US, "0123456789abcdef")
    tables = (str(ORDERS), str(ODD))
    answer = Answer(name, "cancel", "refused", "2026-11-22T09:51:54Z", tables, text)
    gaps = tuple(
        Gap(number, table, "0001.A", "", "operations", f"updates were left out: {text}")
        for number, table in enumerate(tables, 1)
    )
    await bucket.journal.append(snapshots=snapshots.register.pending, answers=(answer,), gaps=gaps)
    return bucket


@pytest.fixture
def full_bucket(target: DestinationConfiguration) -> None:
    asyncio.run(_copy(asyncio.run(_with_everything(target.prefix)).store, target))


@pytest.fixture
def damaged_bucket(target: DestinationConfiguration) -> None:
    made = asyncio.run(make_bucket(prefix=target.prefix))
    store = made.store
    visible = [key for key in store.objects if key.endswith(".ndjson.gz")]
    del store.objects[visible[0]]
    store.objects[f"{visible[1]}.stranger"] = store.objects[visible[1]]
    asyncio.run(_copy(store, target))


def has_ended(text: str) -> bool:
    """Whether the last thing that is said is what to do next."""
    return re.search(r"^next: [^\n]+(\n {6}[^\n]+)*\n\Z", text, re.MULTILINE) is not None


@pytest.mark.usefixtures("full_bucket")
def test_status_fits_and_ends_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    found = shown(monkeypatch, "status", "-c", file)

    assert found.code == 0, found.err
    assert too_wide(found.lines) == []
    assert has_ended(found.out)
    assert str(ODD) in found.out


@pytest.mark.usefixtures("damaged_bucket")
@pytest.mark.parametrize("words", [(), ("--depth", "full", "--strict")])
def test_verify_fits_and_ends_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, file: str, words: tuple[str, ...]
) -> None:
    found = shown(monkeypatch, "verify", *words, "-c", file)

    assert found.code == 1, found.err
    assert "PROBLEM  " in found.out
    assert "what to do:" in found.out
    assert too_wide(found.out.splitlines()) == []
    assert has_ended(found.out)


@pytest.mark.usefixtures("full_bucket")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("resync public.orders", 0),
        ("resync public.order", 1),
        ("pause public.orders", 0),
        ("pause orders.public", 1),
        ("resume", 0),
        ("views duckdb nothing", 2),
        ("read public.orders --output there.ndjson", 0),
        ("read public.ordesr", 1),
        ("""read '"Odd.Schema"."100% täble"' --current""", 1),
        ("materialize public.orders lake --to parquet", 0),
        ("config show", 0),
        ("check --offline", 0),
        ("check", 69),
    ],
)
def test_what_a_command_says_fits(
    monkeypatch: pytest.MonkeyPatch, file: str, words: str, code: int
) -> None:
    found = shown(monkeypatch, *shlex.split(words), "-c", file)

    assert found.code == code, found.err
    assert too_wide(found.lines) == []
    if code == 0:
        assert has_ended(found.out) or has_ended(found.err)
    elif not has_ended(found.out):
        assert "\nhint: " in found.err


@pytest.mark.usefixtures("full_bucket")
def test_a_real_terminal_shows_the_same(
    monkeypatch: pytest.MonkeyPatch, file: str, aws_environment: EmbeddedS3
) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment = {**kept, **aws_environment.environment, "NO_COLOR": "1", "TERM": "dumb"}

    code, text = on_a_real_terminal("status", "-c", file, environment=environment)

    found = shown(monkeypatch, "status", "-c", file)
    lines = text.split("\n")
    ago = re.compile(r", .+ ago$")
    assert code == 0
    assert [ago.sub("", line) for line in lines] == [
        ago.sub("", line) for line in found.out.split("\n")
    ]
