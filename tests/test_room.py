"""Whether a machine has room for an engine, as `check` says it."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from engine import app
from engine.config import load
from engine.operate.room import descriptors_finding, memory_finding

MIB = 1 << 20


def test_too_few_descriptors_are_a_warning_with_what_to_raise() -> None:
    assert "destination.concurrency" in descriptors_finding(limit=95, need=96).hint
    assert not descriptors_finding(limit=96, need=96).hint


def test_the_hint_says_what_to_set_where() -> None:
    hint = descriptors_finding(limit=95, need=96).hint

    assert "ulimit -n 1024" in hint
    assert '"ulimits": [{"name": "nofile", "softLimit": 1024, "hardLimit": 1024}]' in hint
    assert "LimitNOFILE=5064" in descriptors_finding(limit=1024, need=5064).hint


def test_an_engine_with_too_few_descriptors_says_what_to_raise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "raise_limit", lambda: 70)
    given = {
        "TAILRACE_SOURCE__DSN": "host=h",
        "TAILRACE_DESTINATION__BUCKET": "lake",
        "TAILRACE_DESTINATION__PREFIX": "shop",
        "TAILRACE_DESTINATION__REGION": "us-east-1",
    }
    with capture_logs() as lines:
        app._connection_limits(load(Path(os.devnull), given).configuration)

    [line] = lines
    assert (line["event"], line["count"]) == ("few file descriptors", 70)
    assert "nofile" in line["hint"]


def test_a_buffer_that_leaves_no_room_for_the_process_is_a_warning() -> None:
    assert "engine.memory_limit" in memory_finding(129 * MIB, 256 * MIB).hint
    assert not memory_finding(128 * MIB, 256 * MIB).hint
