"""From what was given to types: everything is parsed, then the whole is built or refused.

Strategy: `gather` finds the values, and each key's kind parses its own. Then the few rules that
need two keys are checked. The structs are made only when nothing is wrong. So an operator sees all
problems at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec

from engine.config.gather import Gathered, Given, gather
from engine.config.key import REQUIRED, Key
from engine.config.keys import HASH_KEY, HTTP_TOKEN, KEYS, SECTIONS, TABLE_RULE_KEYS
from engine.config.model import (
    ChunkConfiguration,
    Configuration,
    DestinationConfiguration,
    EngineConfiguration,
    HttpConfiguration,
    LogConfiguration,
    LogFormat,
    QueueConfiguration,
    SourceConfiguration,
)
from engine.config.parsed import Parsed
from engine.config.problems import ConfigurationProblems, Origin, Problem, shown
from engine.config.scalars import Secret
from engine.config.secret_file import settle_secret
from engine.config.secret_reference import Login
from engine.config.sources import SOURCES, SourceSection
from engine.config.values import Unfit, from_text, nearest
from engine.model.errors import ConfigurationError
from engine.model.record import TableRule


@dataclass(frozen=True, slots=True)
class Setting:
    """One key as it is in effect, fit to be printed."""

    key: str
    shown: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and where each of its values came from."""

    configuration: Configuration
    settings: tuple[Setting, ...]
    file: Path | None


def load(path: Path | None, environment: Mapping[str, str]) -> Loaded:
    """The whole configuration. Raises ConfigurationError with everything that is wrong."""
    parsed = _parse(gather(path, environment, SECTIONS), environment, SECTIONS)
    configuration = Configuration(
        source=_source(parsed),
        destination=_destination(parsed),
        chunk=ChunkConfiguration(
            max_bytes=parsed.value("chunk", "max_bytes"),
            max_age_seconds=float(parsed.value("chunk", "max_age")),
            max_rows=parsed.value("chunk", "max_rows"),
            compression=parsed.value("chunk", "compression"),
        ),
        queue=QueueConfiguration(max_bytes=parsed.value("queue", "max_bytes")),
        engine=EngineConfiguration(
            name=parsed.value("engine", "name"),
            memory_limit=parsed.value("engine", "memory_limit"),
            drain_seconds=float(parsed.value("engine", "drain_seconds")),
            append_interval_seconds=float(parsed.value("engine", "append_interval")),
        ),
        http=_http(parsed),
        log=_log(parsed),
    )
    return Loaded(configuration, _settings(parsed), parsed.gathered.file)


def load_destination(path: Path | None, environment: Mapping[str, str]) -> DestinationConfiguration:
    """`[destination]` alone: other sections may be missing, or wrong. Raises ConfigurationError."""
    sections = ("destination",)
    return _destination(_parse(gather(path, environment, sections), environment, sections))


def load_login(path: Path | None, environment: Mapping[str, str]) -> Login:
    """What the login at the source takes from AWS. What is missing or wrong is left out.

    No file is read that the configuration names. Raises ConfigurationError where the file cannot be
    read.
    """
    parsed = Parsed(gather(path, environment, ("source",)), environment)
    _parse_key(parsed, next(key for key in KEYS if (key.section, key.name) == ("source", "type")))
    section = _sections_looked_at(parsed)[0]
    for key in section.login_keys:
        if parsed.given(key.section, key.name) is not None:
            _parse_key(parsed, key)
    return section.login(parsed)


def load_destination_and_port(
    path: Path | None, environment: Mapping[str, str]
) -> tuple[DestinationConfiguration, HttpConfiguration]:
    """As `load_destination`, with `[http]`. Raises ConfigurationError."""
    sections = ("destination", "http")
    parsed = _parse(gather(path, environment, sections), environment, sections)
    return _destination(parsed), _http(parsed)


def load_port(path: Path | None, environment: Mapping[str, str]) -> HttpConfiguration:
    """`[http]` alone. Raises ConfigurationError."""
    return _http(_parse(gather(path, environment, ("http",)), environment, ("http",)))


def load_log(path: Path | None, environment: Mapping[str, str]) -> LogConfiguration:
    """`[log]` alone, for whoever has to say that the configuration is wrong.

    Where that section cannot be read, the defaults hold, and the environment's format.
    """
    sections = ("log",)
    try:
        return _log(_parse(gather(path, environment, sections), environment, sections))
    except ConfigurationError:
        found = default_log()
    for form in get_args(LogFormat):
        if environment.get("TAILRACE_LOG__FORMAT") == form:
            return msgspec.structs.replace(found, format=form)
    return found


def default_log() -> LogConfiguration:
    """`[log]` where nothing of it was given: for commands that do not read that section."""
    return _log(_parse(Gathered(None, {}, {}, ()), {}, ("log",)))


def _settings(parsed: Parsed) -> tuple[Setting, ...]:
    return tuple(_setting(parsed, key) for key in KEYS if not _is_others(parsed, key))


def _setting(parsed: Parsed, key: Key) -> Setting:
    given = parsed.given(key.section, key.name)
    if given is not None:
        return Setting(key.path, given.shown, given.origin)
    as_default = "" if key.default is None else shown(key.default)
    return Setting(key.path, as_default, Origin("default", "default"))


def _parse(gathered: Gathered, environment: Mapping[str, str], sections: Sequence[str]) -> Parsed:
    parsed = Parsed(gathered, environment, problems=list(gathered.problems))
    for key in KEYS:
        if key.section not in sections:
            continue
        if _is_others(parsed, key):
            _refuse_others(parsed, key)
        else:
            _parse_key(parsed, key)
    if "source" in sections:
        for section in _sections_looked_at(parsed):
            section.settle(parsed)
        _settle_hash_key(parsed)
        _check_times(parsed)
        _check_memory(parsed)
    if "http" in sections:
        settle_secret(parsed, HTTP_TOKEN)
    _check_workers(parsed)
    _check_destination(parsed)
    if parsed.problems:
        raise ConfigurationProblems(parsed.problems)
    return parsed


def _is_others(parsed: Parsed, key: Key) -> bool:
    """Whether only other kinds of source than the chosen one have `key`."""
    chosen = parsed.values.get(("source", "type"))
    having = [kind for kind, section in SOURCES.items() if key in section.keys]
    # Where the kind is wrong, every key is looked at: all problems are told at once.
    return chosen is not None and bool(having) and chosen not in having


def _sections_looked_at(parsed: Parsed) -> tuple[SourceSection, ...]:
    """The chosen kind's; all where the kind is wrong."""
    chosen = parsed.values.get(("source", "type"))
    return tuple(SOURCES.values()) if chosen is None else (SOURCES[chosen],)


def _refuse_others(parsed: Parsed, key: Key) -> None:
    if parsed.given(key.section, key.name) is not None:
        chosen = parsed.value("source", "type")
        parsed.complain(key.section, key.name, f'is not a key with type = "{chosen}"', "drop it")


def _parse_key(parsed: Parsed, key: Key) -> None:
    path = (key.section, key.name)
    given = parsed.given(*path)
    if given is None:
        _take_default(parsed, key)
        return
    try:
        value = from_text(key.kind, given.value) if given.is_text else given.value
        parsed.values[path] = key.kind.parse(value)
    except Unfit as unfit:
        parsed.complain(*path, unfit.text, unfit.hint, is_secret=unfit.is_secret)
        return
    if path == ("source", "table"):
        parsed.values[path] = _rules(parsed, value, given)


def _take_default(parsed: Parsed, key: Key) -> None:
    path = (key.section, key.name)
    if key.default is not REQUIRED:
        parsed.values[path] = None if key.default is None else key.kind.parse(key.default)
        return
    if any(problem.key == key.path for problem in parsed.problems):
        return  # It was given, and a `${VAR}` in it failed.
    parsed.complain(*path, "is missing", f"set it there, or {key.variable}: {key.text}")


def _rules(parsed: Parsed, tables: Any, given: Given) -> tuple[TableRule, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        parsed.complain("source", "table", "is not a list of tables", "write [[source.table]]")
        return ()
    rules = [_rule(parsed, table, given, index) for index, table in enumerate(tables)]
    return tuple(rule for rule in rules if rule is not None)


def _rule(parsed: Parsed, table: dict[str, Any], given: Given, index: int) -> TableRule | None:
    def origin(name: str | None) -> Origin:
        path = ("source", "table", index) if name is None else ("source", "table", index, name)
        line = parsed.gathered.lines.get(path, 0)
        if given.origin.kind != "file" or not line:
            return given.origin
        return Origin("file", f"{parsed.gathered.file}:{line}", line)

    names = tuple(key.name for key in TABLE_RULE_KEYS)
    found: list[Problem] = []
    for name in table.keys() - set(names):
        hint = nearest(name, names) or f"keys of [[source.table]] are {', '.join(names)}"
        found.append(Problem(origin(name), f"source.table.{name}", "is not a key", hint))
    values = _rule_defaults()
    for key in TABLE_RULE_KEYS:
        try:
            if key.name in table:
                values[key.name] = key.kind.parse(table[key.name])
                _refuse_empty_include(key.name, values[key.name])
        except Unfit as unfit:
            # A rule's values are not shown: they may come from `${VAR}`.
            found.append(Problem(origin(key.name), key.path, unfit.text, unfit.hint))
    if "match" not in table:
        hint = 'write match = "schema.table"'
        found.append(Problem(origin(None), "source.table.match", "is missing", hint))
    for where, text, hint in _contradictions(values):
        path = "source.table" if where is None else f"source.table.{where}"
        found.append(Problem(origin(where), path, text, hint))
    if found:
        parsed.problems.extend(found)
        return None
    names = ("match", "include", "exclude", "hash", "where", "on_schema_change")
    return TableRule(*(values[name] for name in names))


def _contradictions(values: dict[str, Any]) -> Iterator[tuple[str | None, str, str]]:
    """What does not go together in one rule: the key (None: the whole rule), text and hint."""
    hashed, included, excluded = (set(values.get(n) or ()) for n in ("hash", "include", "exclude"))
    if included and excluded:
        yield None, "has both include and exclude", "keep one of them"
    elif hashed & excluded:
        yield "hash", "has a column that exclude leaves out", "take it out of one of them"
    elif included and not hashed <= included:
        yield "hash", "has a column that include leaves out", "add it there, or take it out of hash"


def _rule_defaults() -> dict[str, Any]:
    return {
        key.name: None if key.default is None else key.kind.parse(key.default)
        for key in TABLE_RULE_KEYS
        if key.default is not REQUIRED
    }


def _refuse_empty_include(name: str, value: Any) -> None:
    if name == "include" and not value:
        raise Unfit("is empty", "leave it out to write all columns")


def _settle_hash_key(parsed: Parsed) -> None:
    """Find the secret of hashed columns, which may stand in a file."""
    rules = parsed.values.get(("source", "table")) or ()
    if not settle_secret(parsed, HASH_KEY) and any(rule.hash for rule in rules):
        hint = "make one: openssl rand -hex 32; without it, whoever has a list of values can look"
        parsed.complain(
            "source", "hash_key", "is missing, and columns are hashed", f"{hint} hashes up in it"
        )


def _check_times(parsed: Parsed) -> None:
    age = parsed.values.get(("chunk", "max_age"))
    interval = parsed.values.get(("engine", "append_interval"))
    if age is not None and interval is not None and age < interval:
        parsed.complain(
            "chunk",
            "max_age",
            "is shorter than engine.append_interval",
            "no chunk can be published more often than the journal is appended to",
        )


def _check_workers(parsed: Parsed) -> None:
    workers = parsed.values.get(("source", "snapshot_workers"))
    if (
        workers is not None
        and workers.scheduler
        and parsed.values.get(("source", "snapshot_rows_per_second"))
    ):
        parsed.complain(
            "source",
            "snapshot_rows_per_second",
            "cannot be kept by a cluster, whose workers come and go",
            "set it to 0, or read with workers of this machine",
        )


def _check_memory(parsed: Parsed) -> None:
    queue = parsed.values.get(("queue", "max_bytes"))
    limit = parsed.values.get(("engine", "memory_limit"))
    if queue is not None and limit is not None and queue > limit:
        parsed.complain(
            "queue", "max_bytes", "is more than engine.memory_limit", "no table may have it all"
        )


def _check_destination(parsed: Parsed) -> None:
    values = parsed.section("destination")
    if values.get("kms_key_id") is not None and values.get("sse") != "kms":
        parsed.complain("destination", "kms_key_id", 'needs sse = "kms"', "set it, or drop the key")
    if values.get("external_id") is not None and values.get("role_arn") is None:
        parsed.complain("destination", "external_id", "needs role_arn", "set the role it is for")


def _source(parsed: Parsed) -> SourceConfiguration:
    section = SOURCES[parsed.value("source", "type")]
    hash_key = parsed.value("source", "hash_key")
    return SourceConfiguration(
        own=section.make(parsed),
        tables=parsed.value("source", "tables"),
        exclude=parsed.value("source", "exclude"),
        rules=tuple(parsed.value("source", "table")),
        snapshot=parsed.value("source", "snapshot"),
        snapshot_order=parsed.value("source", "snapshot_order"),
        snapshot_workers=parsed.value("source", "snapshot_workers"),
        snapshot_tables=parsed.value("source", "snapshot_tables"),
        new_tables=parsed.value("source", "new_tables"),
        snapshot_rows_per_second=parsed.value("source", "snapshot_rows_per_second"),
        snapshot_segment_bytes=parsed.value("source", "snapshot_segment_bytes"),
        on_unrepresentable=parsed.value("source", "on_unrepresentable"),
        on_schema_change=parsed.value("source", "on_schema_change"),
        max_row_bytes=parsed.value("source", "max_row_bytes"),
        hash_key=None if hash_key is None else Secret(hash_key),
        signals=parsed.value("source", "signals"),
        messages=parsed.value("source", "messages"),
    )


def _destination(parsed: Parsed) -> DestinationConfiguration:
    values = parsed.section("destination")
    external_id = values.pop("external_id")
    return DestinationConfiguration(
        **values, external_id=None if external_id is None else Secret(external_id)
    )


def _http(parsed: Parsed) -> HttpConfiguration:
    token = parsed.value("http", "token")
    return HttpConfiguration(
        listen=parsed.value("http", "listen"),
        token=None if token is None else Secret(token),
        token_file=parsed.value("http", "token_file"),
    )


def _log(parsed: Parsed) -> LogConfiguration:
    return LogConfiguration(
        level=parsed.value("log", "level"), format=parsed.value("log", "format")
    )
