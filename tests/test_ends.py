"""Exit codes and what is said at the end, whatever the log's level and format."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.model.plural import counted

ROOT = Path(__file__).parent.parent
CANARY = "canary-of-a-library"

ENDINGS = (
    """
import asyncio, json
from engine.model import errors
from engine.operate import logs
from engine.cli import application
from engine.config import LogConfiguration
import structlog

def kinds():
    for found in vars(errors).values():
        if isinstance(found, type) and issubclass(found, errors.TailraceError):
            yield found

def told(kind):
    # Some have more to say: their own arguments do not matter here.
    error = kind.__new__(kind)
    errors.TailraceError.__init__(error, "told", hint="to do")
    return error

def bare(error):
    raise error

def from_its_group(error):
    # What a pipeline does: the member is raised from the group that holds it.
    try:
        raise BaseExceptionGroup("g", [BaseExceptionGroup("g", [error]), ValueError("CANARY")])
    except BaseExceptionGroup as group:
        raise error from group

def own_cause(error):
    error.__cause__ = error
    raise error

def ring(error):
    other = KeyError("CANARY")
    other.__context__ = error
    error.__context__ = other
    raise error

def in_a_group(error):
    raise ExceptionGroup("CANARY", [ExceptionGroup("CANARY", [error])])

def deep(error):
    for _ in range(3000):
        outer = ValueError("CANARY")
        outer.__context__, error.__context__ = error.__context__, outer
    raise error

def deep_group(error):
    group = error
    for _ in range(300):
        group = BaseExceptionGroup("CANARY", [group])
    raise error from group

def foreign(error):
    raise ValueError("CANARY") from error

def cancelled(error):
    raise asyncio.CancelledError("CANARY") from error

def uncommon_group(error):
    raise BaseExceptionGroup("CANARY", [error, asyncio.CancelledError("CANARY")])

def endless(error):
    endless(error)

SHAPES = bare, from_its_group, own_cause, ring, in_a_group, deep, deep_group
log = structlog.get_logger("engine.example")
outcomes = []

def ended(level, form, kind, shape):
    def command(*_):
        logs.configure(LogConfiguration(level=level, format=form))
        try:
            shape(told(kind))
        except BaseException:
            log.warning("connection lost", exc_info=True)
            raise
    application.make_application = lambda asked: command
    code = application.main()
    outcomes.append((level, form, kind.__name__, shape.__name__, kind.exit_code, code))

for level in ("debug", "info", "warning", "error"):
    for form in ("auto", "json", "text"):
        for shape in SHAPES:
            for kind in kinds():
                ended(level, form, kind, shape)
        for shape in (foreign, cancelled, uncommon_group, endless):
            ended(level, form, errors.TailraceError, shape)
print(json.dumps(outcomes))
"""
).replace("CANARY", CANARY)


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("options", [[], ["-O"]])
def test_every_error_ends_with_its_code_at_every_level_and_format(options: list[str]) -> None:
    result = python(ENDINGS, *options)

    assert result.returncode == 0, result.stderr[-2000:]
    outcomes = json.loads(result.stdout)
    assert len(outcomes) > 1000
    assert [outcome for outcome in outcomes if outcome[-1] != outcome[-2]] == []
    assert "error: told\nhint: to do\n" in result.stderr
    assert "RecursionError" in result.stderr
    assert "Logging error" not in result.stderr
    assert "Traceback" not in result.stderr
    assert CANARY not in result.stderr


def test_a_member_that_is_raised_from_its_group_is_told_once() -> None:
    code = """
from engine.model.errors import SourceRefused
from engine.operate.logs import trace_text
error = SourceRefused("told")
error.__cause__ = ExceptionGroup("g", [error, KeyError("hidden")])
print(trace_text(error))
"""

    assert python(code).stdout.splitlines() == [
        "SourceRefused: told",
        "ExceptionGroup",
        "  KeyError",
    ]


@pytest.mark.parametrize(
    "broken",
    [
        """
from engine.flow.ledger import Ledger
from test_ledger import *
ledger = Ledger({})
ledger.read(intake(batch(A, at(5))))
ledger.read(intake(batch(A, at(5))))
""",
        """
from types import SimpleNamespace
from engine.model.record import RecordConfiguration
from engine.journal.planner import Planner
from engine.model.schema import TableName
configuration = RecordConfiguration(through="tailrace", tables=("public.*",))
planner = Planner(
    state=None, ledger=None, reception=None, configuration=configuration, layout=None,
    codec_version=1, clock=None
)
chunk = SimpleNamespace(table=TableName("public", "a"), first="0001")
planner._planned(chunk, SimpleNamespace(last="0001"))
""",
        """
from engine.flow.budget import MemoryBudget
MemoryBudget(10).charge(-1)
""",
        """
import asyncio
from engine.destinations.s3 import S3ObjectStore
from engine.destinations.s3_settings import S3Settings
store = S3ObjectStore(S3Settings(bucket="b", concurrency=1, region="us-east-1"))
asyncio.run(store.create("k", b"", content_type="x", metadata={"a": "\\u00e4"}))
""",
        """
import asyncio
from engine.destinations.s3_body import SlicedBody
async def send():
    await SlicedBody(memoryview(b"abc")).write_with_length(None, 2)
asyncio.run(send())
""",
    ],
)
def test_a_broken_invariant_is_an_error_under_the_optimiser_too(broken: str) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
assert False, "this is -O"
from engine.model.errors import InvariantBroken
try:
    exec({broken!r})
except InvariantBroken as error:
    print(error.exit_code, bool(error.hint))
"""

    result = python(code, "-O")

    assert (result.stdout, result.stderr) == ("70 True\n", "")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 problems"), (1, "1 problem"), (2, "2 problems"), (1234, "1,234 p")]
)
def test_counts_agree_with_their_nouns(count: int, text: str) -> None:
    assert counted(count, "problem", form=",").startswith(text)
    assert counted(count, "entry", "entries").endswith("entry" if count == 1 else "entries")
