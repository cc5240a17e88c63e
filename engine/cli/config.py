"""`tailrace config show` and `tailrace config schema`."""

import os
import sys

import msgspec

from engine.cli.options import ConfigFile, Json, same_file
from engine.cli.output import say_as_is, say_json, say_next, tell_next
from engine.cli.terminal import cells, columns_of
from engine.config import Loaded, Setting, load, resolve_memory_limit, resolve_row_limit
from engine.config.json_schema import make_json_schema

_COLUMN = 44


def show(*, config: ConfigFile = None, json: Json = False) -> int:
    """Print the values in effect and where each came from.

    Values that may be secret are not shown; a value with ${VAR} in it is shown as it was written.
    """
    loaded = load(config, os.environ)
    if json:
        say_json({"ok": True, "settings": [_as_json(setting) for setting in loaded.settings]})
        return 0
    _say_settings(loaded)
    say_next(f"tailrace check{same_file(config)}")
    return 0


def schema() -> int:
    """Print the JSON Schema (draft 2020-12) of the configuration file."""
    text = msgspec.json.format(msgspec.json.encode(make_json_schema()), indent=2).decode()
    say_as_is(text)
    tell_next(
        "save it as tailrace.schema.json. Editors that know TOML's schemas (Taplo, Even Better "
        "TOML) check a file whose first line is `#:schema ./tailrace.schema.json`"
    )
    return 0


def _say_settings(loaded: Loaded) -> None:
    columns = columns_of(sys.stdout)
    section = ""
    for setting in loaded.settings:
        before, _, name = setting.key.partition(".")
        if before != section:
            say_as_is(f"\n[{before}]" if section else f"[{before}]")
            section = before
        say_as_is(_line(name, setting, _origin(setting, loaded), columns))


def _line(name: str, setting: Setting, origin: str, columns: int | None) -> str:
    """The value with its origin behind it, or above it where both do not fit."""
    if not setting.shown:
        return f"# {name} is not set"
    value = f"{name} = {setting.shown}"
    line = f"{value:{_COLUMN}}  # {origin}"
    if columns is None or cells(line) <= columns:
        return line
    return f"# {origin}\n{value}"


def _origin(setting: Setting, loaded: Loaded) -> str:
    configuration = loaded.configuration
    resolved: int | None = None
    if setting.key == "engine.memory_limit" and configuration.engine.memory_limit is None:
        resolved = resolve_memory_limit(None)
    elif setting.key == "source.max_row_bytes" and configuration.source.max_row_bytes is None:
        resolved = resolve_row_limit(None)
    return str(setting.origin) if resolved is None else f"{setting.origin}; {resolved} bytes here"


def _as_json(setting: Setting) -> dict[str, object]:
    return {
        "key": setting.key,
        "value": _value(setting.shown),
        "origin": setting.origin.kind,
        "place": setting.origin.place,
    }


def _value(as_shown: str) -> object:
    """What is shown, as JSON where it is of that form; a variable's text otherwise."""
    if not as_shown:
        return None
    try:
        return msgspec.json.decode(as_shown)
    except msgspec.DecodeError:
        return as_shown
