"""Configurations that somebody careless wrote: what happens, and that no secret is shown."""

from pathlib import Path

import pytest

from engine.config import load
from engine.model.errors import ConfigurationError
from engine.model.record import matches
from engine.model.schema import TableName

WHOLE = """[source]
dsn = "host=db"
snapshot = "never"
{source}
[destination]
bucket = "my-bucket"
prefix = "shop"
{destination}
"""


def whole(folder: Path, *, source: str = "", destination: str = "") -> Path:
    file = folder / "tailrace.toml"
    file.write_text(WHOLE.format(source=source, destination=destination), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "url", ["https://user:hunter2@host:1", "user:hunter2@host", "http://u:hunter2@h:99999"]
)
def test_credentials_in_an_endpoint_are_refused_and_not_shown(tmp_path: Path, url: str) -> None:
    file = whole(tmp_path, destination=f'endpoint_url = "{url}"')

    with pytest.raises(ConfigurationError, match="holds credentials") as caught:
        load(file, {})

    assert "hunter2" not in str(caught.value)


def test_a_byte_order_mark_is_no_statement(tmp_path: Path) -> None:
    file = whole(tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))

    loaded = load(file, {})

    assert loaded.configuration.destination.bucket == "my-bucket"


def test_a_file_that_nests_too_deep_is_a_wrong_configuration(tmp_path: Path) -> None:
    file = whole(tmp_path, destination=f"tags = {'[' * 5000}{']' * 5000}")

    with pytest.raises(ConfigurationError, match="too deep"):
        load(file, {})


def test_the_journals_folder_of_another_pipeline_is_no_prefix(tmp_path: Path) -> None:
    file = whole(tmp_path)

    with pytest.raises(ConfigurationError, match="_tailrace"):
        load(file, {"TAILRACE_DESTINATION__PREFIX": "shop/_tailrace"})


def test_a_rule_that_includes_nothing_is_refused(tmp_path: Path) -> None:
    file = whole(tmp_path, source='[[source.table]]\nmatch = "public.a"\ninclude = []')

    with pytest.raises(ConfigurationError, match=r"source\.table\.include is empty"):
        load(file, {})


def test_brackets_in_a_pattern_stand_for_themselves() -> None:
    assert matches("public.a[1]*", TableName("public", "a[1]b"))
    assert not matches("public.a[1]", TableName("public", "a1"))
