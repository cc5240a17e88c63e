"""The text of a new configuration: what was chosen, and beside it what one most often changes.

Strategy: the comments are the keys' own texts, so the file says what the reference says. A key
that was not chosen stands there as a comment with its default. Everything else is left to the
reference: a file of sixty keys is not read.
"""

import json
import textwrap
from collections.abc import Mapping
from typing import Any, Final

from engine.config.key import REQUIRED, Key
from engine.config.keys import KEYS
from engine.config.problems import shown

_SHOWN: Final = frozenset(
    {
        *(f"source.{name}" for name in ("dsn", "slot", "publication", "tables", "exclude")),
        *("source.snapshot", "source.new_tables"),
        *(f"destination.{name}" for name in ("bucket", "prefix", "region", "endpoint_url")),
        *("destination.role_arn", "destination.sse", "destination.envelope", "destination.layout"),
        *("chunk.max_bytes", "chunk.max_age", "engine.name", "engine.append_interval"),
        *("engine.drain_seconds", "http.listen", "log.level"),
    }
)
_COLUMNS: Final = 100


def file_text(chosen: Mapping[str, Any], heading: str) -> str:
    """A file with the keys of `chosen` (`section.name`), under a comment.

    A text of `chosen` is written so that it is read back as it is, but for `${NAME}`, which is what
    the file is to say.
    """
    lines = [*_comment(heading)]
    section = ""
    for key in KEYS:
        if key.path not in _SHOWN and key.path not in chosen:
            continue
        if key.section != section:
            section = key.section
            lines += ["", f"[{section}]"]
        lines += ["", *_comment(key.text), _line(key, chosen)]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """`text` as a value of a file says it: no variable is meant."""
    return text.replace("${", "$${")


def _line(key: Key, chosen: Mapping[str, Any]) -> str:
    if key.path in chosen:
        # TOML's basic strings and lists of them are JSON's.
        return f"{key.name} = {json.dumps(chosen[key.path], ensure_ascii=False)}"
    if key.default is None or key.default is REQUIRED:
        return f'# {key.name} = "…"'
    return f"# {key.name} = {shown(key.default)}"


def _comment(text: str) -> list[str]:
    return [
        line
        for paragraph in text.split("\n")
        for line in textwrap.wrap(
            paragraph,
            _COLUMNS,
            initial_indent="# ",
            subsequent_indent="# ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        or ["#"]
    ]
