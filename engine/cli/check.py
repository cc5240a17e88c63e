"""`tailrace check`: everything that `run` needs, tried in order."""

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from engine.cli.options import ConfigFile, Json, same_file
from engine.cli.output import say, say_json, say_next
from engine.cli.startup import lean_imports
from engine.config import Configuration, load
from engine.model.errors import ConfigurationError
from engine.model.printable import printable

if TYPE_CHECKING:
    from engine.pipeline.check import CheckStep

Offline = Annotated[
    bool,
    Parameter(
        name="--offline",
        negative="",
        show_default=False,
        help="Read the configuration, the dsn in it too, and connect to nothing.",
    ),
]


def check(*, config: ConfigFile = None, offline: Offline = False, json: Json = False) -> int:
    """Try what `run` needs, and change nothing but `_tailrace/check/`.

    To prove that objects can be created, keys under the prefix's `_tailrace/check/` are written,
    always the same ones. Nothing else is: no publication, no slot, no journal.
    """
    loaded = load(config, os.environ)
    where = str(loaded.file) if loaded.file else "the environment"
    steps = [_Told("configuration", is_ok=True, detail=f"{where} is valid")]
    if not json:
        _say_step(steps[0])
    if offline:
        steps.append(_dsn_step(loaded.configuration))
        if not json:
            _say_step(steps[-1])
    else:
        steps += asyncio.run(_checked(loaded.configuration, is_quiet=json))
    failed = [step for step in steps if not step.is_ok]
    if json:
        say_json({"ok": not failed, "steps": [step.as_json() for step in steps]})
    elif failed:
        say_next("mend what failed, then `tailrace check` again")
    else:
        option = same_file(config)
        say_next(f"tailrace check{option}" if offline else f"tailrace run{option}")
    return failed[0].exit_code or 1 if failed else 0


@dataclass(frozen=True, slots=True)
class _Told:
    """A step as it is printed."""

    name: str
    is_ok: bool
    detail: str
    hint: str = ""
    exit_code: int = 0

    @classmethod
    def of(cls, step: "CheckStep") -> "_Told":
        return cls(step.name, step.is_ok, step.detail, step.hint, step.exit_code)

    def as_json(self) -> dict[str, object]:
        return {"name": self.name, "ok": self.is_ok, "detail": self.detail, "hint": self.hint}


def _dsn_step(configuration: Configuration) -> _Told:
    """Whether libpq can read the dsn, and where it leads."""
    from engine.sources.postgres.dsn import parsed, place_of  # noqa: PLC0415 - see `_checked`

    dsn = configuration.source.own.dsn.reveal()
    try:
        parsed(dsn)
    except ConfigurationError as error:
        return _Told("dsn", is_ok=False, detail=str(error), hint=error.hint, exit_code=78)
    return _Told("dsn", is_ok=True, detail=f"leads to {place_of(dsn)}; nothing was connected to")


async def _checked(configuration: Configuration, *, is_quiet: bool) -> list[_Told]:
    with lean_imports():
        from engine import app  # noqa: PLC0415 - drivers: half a second that --offline saves
        from engine.operate import logs  # noqa: PLC0415 - drivers: half a second that --offline saves

    logs.configure(configuration.log)
    steps: list[_Told] = []
    async for step in app.check(configuration):
        steps.append(_Told.of(step))
        if not is_quiet:
            _say_step(steps[-1])
    return steps


def _say_step(step: _Told) -> None:
    mark = "FAIL" if not step.is_ok else "warn" if step.hint else "ok  "
    say(f"{mark}  {step.name:<24}  {printable(step.detail)}".rstrip())
    if step.hint:
        say(f"      hint: {printable(step.hint)}")
