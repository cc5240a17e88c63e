"""What was given, and where: the file, then the environment over it.

Strategy: nothing is typed here. Each known key that was given becomes a `Given`: its value after
`${VAR}` was replaced, its text before that, and its origin. Each key that nobody knows becomes a
problem.

Only values of the file are expanded. A variable's own value is taken as it is: its shell has
expanded it already, and a password may hold a dollar sign.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config.key import Key
from engine.config.keys import BY_PATH, KEYS, SECTIONS
from engine.config.problems import HIDDEN, Origin, Problem, shown
from engine.config.secret_reference import is_reference
from engine.config.toml_lines import Path as KeyPath
from engine.config.toml_lines import key_lines
from engine.config.values import Unfit, nearest
from engine.model.errors import ConfigurationError

VARIABLE = "TAILRACE_CONFIG"
DEFAULT_FILE = "tailrace.toml"

_ENVIRONMENT_PREFIX = "TAILRACE_"
_EXPANSION = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|\$\{")


@dataclass(frozen=True, slots=True)
class Given:
    """One key's value. `is_text`: it came as text that stands for the value, whatever its kind."""

    value: Any
    shown: str
    origin: Origin
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class Gathered:
    """Everything that was given; `file` is None where the environment is all there is."""

    file: Path | None
    givens: Mapping[tuple[str, str], Given]
    lines: Mapping[KeyPath, int]
    problems: tuple[Problem, ...]

    def missing_origin(self, section: str) -> Origin:
        """Where a key that is missing should have been."""
        if self.file is None:
            return Origin("environment", "environment")
        line = self.lines.get((section,), 0)
        return Origin("file", f"{self.file}:{line}" if line else str(self.file), line)


def gather(path: Path | None, environment: Mapping[str, str], sections: Sequence[str]) -> Gathered:
    """Read the file that `path`, TAILRACE_CONFIG or ./tailrace.toml names, and the environment.

    Keys outside `sections` are neither read nor checked. Raises ConfigurationError when a named
    file cannot be read, when it is not TOML, or when nothing at all was given.
    """
    file = find_file(path, environment)
    collected = _Collected(environment, frozenset(sections))
    if file is not None:
        collected.add_file(file)
    collected.add_environment()
    if file is None and not collected.givens and not collected.problems:
        raise ConfigurationError(
            f"no configuration: neither {DEFAULT_FILE} here nor a {_ENVIRONMENT_PREFIX} variable",
            hint="`tailrace init` writes a file. Name one that is elsewhere with -c or"
            f" {VARIABLE}, or set TAILRACE_SOURCE__DSN and its like",
        )
    return Gathered(file, collected.givens, collected.lines, tuple(collected.problems))


def find_file(path: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The file to read: `path`, else TAILRACE_CONFIG's, else ./tailrace.toml where there is one."""
    if path is not None:
        return path
    if named := environment.get(VARIABLE):
        return Path(named)
    default = Path(DEFAULT_FILE)
    return default if default.exists() else None


@dataclass(slots=True)
class _Collected:
    """What has been found so far."""

    environment: Mapping[str, str]
    sections: frozenset[str]
    givens: dict[tuple[str, str], Given] = field(default_factory=dict)
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add_file(self, file: Path) -> None:
        text = _read(file)
        document = _parse(file, text)
        self.lines = key_lines(text)
        for section, table in document.items():
            origin = self._origin(file, (section,))
            if section not in SECTIONS:
                hint = nearest(section, SECTIONS) or f"sections are {', '.join(SECTIONS)}"
                self.problems.append(Problem(origin, section, "is not a section", hint))
            elif not isinstance(table, dict):
                hint = f"write [{section}] on a line of its own"
                self.problems.append(Problem(origin, section, "is not a table", hint))
            elif section in self.sections:
                for name, value in table.items():
                    self._add(section, name, value, self._origin(file, (section, name)))

    def _origin(self, file: Path, path: KeyPath) -> Origin:
        line = self.lines.get(path, 0)
        return Origin("file", f"{file}:{line}", line)

    def _add(self, section: str, name: str, value: Any, origin: Origin) -> None:
        key = BY_PATH.get((section, name))
        if key is None:
            hint = _suggestion(section, name)
            self.problems.append(Problem(origin, f"{section}.{name}", "is not a key", hint))
            return
        as_given = shown(value) if key.is_shown or is_reference(value) else HIDDEN
        try:
            expanded = expand(value, self.environment)
        except Unfit as unfit:
            self.problems.append(Problem(origin, key.path, unfit.text, unfit.hint, as_given))
            return
        is_text = isinstance(value, str) and expanded != value
        self.givens[section, name] = Given(expanded, as_given, origin, is_text)

    def add_environment(self) -> None:
        for variable in sorted(self.environment):
            if not variable.startswith(_ENVIRONMENT_PREFIX) or variable == VARIABLE:
                continue
            section, double, name = variable[len(_ENVIRONMENT_PREFIX) :].lower().partition("__")
            origin = Origin("environment", variable)
            if key := BY_PATH.get((section, name)):
                if section in self.sections:
                    text = self.environment[variable]
                    as_given = _as_given(key, text)
                    self.givens[section, name] = Given(text, as_given, origin, is_text=True)
            elif double or _single_underscore(variable):
                hint = _single_underscore(variable) or _nearest_variable(variable)
                self.problems.append(Problem(origin, variable, "is not a key", hint))


def expand(value: Any, environment: Mapping[str, str]) -> Any:
    """`value` with each `${VAR}` in its texts replaced. Raises Unfit for one that is not set."""

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name = match["name"]
        if name is None:
            raise Unfit("has a ${ that is not ${NAME}", "write $${ for a ${ that is meant as text")
        if name not in environment:
            raise Unfit(f"needs the environment variable {name}, which is not set", f"set {name}")
        return environment[name]

    match value:
        case str():
            return _EXPANSION.sub(replaced, value)
        case list():
            return [expand(item, environment) for item in value]
        case dict():
            return {name: expand(item, environment) for name, item in value.items()}
        case _:
            return value


def _as_given(key: Key, text: str) -> str:
    if not (key.is_shown or is_reference(text)):
        return HIDDEN
    return shown(text) if key.kind.is_text else text


def _nearest_variable(variable: str) -> str:
    hint = nearest(variable.lower(), tuple(key.variable.lower() for key in KEYS), cutoff=0.9)
    return hint.replace(hint[14:-2], hint[14:-2].upper()) if hint else "no key has that name"


def _suggestion(section: str, name: str) -> str:
    elsewhere = [key.section for key in KEYS if key.name == name]
    if elsewhere:
        return f"{name} belongs under [{elsewhere[0]}]"
    names = tuple(key.name for key in KEYS if key.section == section)
    return nearest(name, names) or f"keys of [{section}] are {', '.join(names)}"


def _single_underscore(variable: str) -> str:
    """Catch TAILRACE_SOURCE_DSN. Other TAILRACE_ variables are left alone.

    Kubernetes makes some.
    """
    for key in KEYS:
        if variable.replace("_", "") == key.variable.replace("_", ""):
            return f"did you mean {key.variable}?"
    return ""


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the configuration {file}: {error.strerror}",
            hint=f"name another file with -c or {VARIABLE}",
        ) from error
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"the configuration {file} is not UTF-8", hint="save it as UTF-8 text"
        ) from None


def _parse(file: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigurationError(
            f"{file} nests lists or tables too deep", hint="no key needs more than two levels"
        ) from None
    except tomllib.TOMLDecodeError as error:
        # The parser says "… (at line 3, column 5)". Its text holds no values, but at most one
        # character of one.
        match = re.search(r"(.*) \(at line (\d+), column (\d+)\)", str(error))
        what, line = (match[1], int(match[2])) if match else (str(error), 0)
        if "at end of document" in str(error):
            what, line = str(error), text.count("\n") + 1
        raise ConfigurationError(
            f"{file}:{line}: not TOML: {what}",
            hint=f"{_toml_hint(what)}; nothing else was checked yet",
        ) from None


def _toml_hint(what: str) -> str:
    """What mends it, by the parser's words."""
    if what.startswith(("Cannot overwrite", "Cannot declare")):
        return "each key, and each [section], stands in the file once"
    return "texts need quotes, lists brackets"
