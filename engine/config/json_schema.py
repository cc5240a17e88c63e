"""The JSON Schema (draft 2020-12) of the configuration file, made from the table of keys.

Nothing is required in it, because any key may come from the environment instead.
"""

from collections.abc import Iterable
from typing import Any

from engine.config.key import REQUIRED, Key
from engine.config.keys import KEYS, SECTIONS, TABLE_RULE_KEYS

_EXPANSION = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"}


def make_json_schema() -> dict[str, Any]:
    """The schema as a document that can be printed."""
    sections = {
        section: _table(key for key in KEYS if key.section == section) for section in SECTIONS
    }
    sections["source"]["properties"]["table"] = {
        "description": _key("source", "table").text,
        "type": "array",
        "items": _table(TABLE_RULE_KEYS) | {"required": ["match"]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tailrace's configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": sections,
        "$defs": {"expansion": _EXPANSION},
    }


def _table(keys: Iterable[Key]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {key.name: _property(key) for key in keys},
    }


def _property(key: Key) -> dict[str, Any]:
    described: dict[str, Any] = {"description": key.text}
    if key.default is not None and key.default is not REQUIRED:
        described["default"] = key.default
    return described | {"anyOf": [dict(key.kind.schema), {"$ref": "#/$defs/expansion"}]}


def _key(section: str, name: str) -> Key:
    return next(key for key in KEYS if (key.section, key.name) == (section, name))
