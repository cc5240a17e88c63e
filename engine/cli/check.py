"""`tailrace check`: everything that `run` needs, tried in order."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from engine.cli.options import ConfigFile, Json, same_file
from engine.cli.output import flush, say, say_json, say_next
from engine.cli.startup import lean_imports
from engine.config import Configuration, load
from engine.model.check_code import CONFIGURATION, COST, DSN
from engine.model.errors import ConfigurationError
from engine.model.plural import counted
from engine.model.printable import printable
from engine.model.request_cost import Pace, cost_text
from engine.model.trial import CheckStep, Finding, Judgement, judgement

_MARKS: Final = {"ok": "ok", "warning": "warn", "failure": "FAIL"}

_HANG: Final = 6
"""Lines of a step go on behind its mark."""

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
    always the same ones, unless the prefix is another pipeline's. Nothing else is: no publication,
    no slot, no journal.

    A line is ok, a warning or a failure. `run` starts where there is no failure, and docs/checks.md
    explains each code. The exit code is 0 then, else that with which `run` would end.
    """
    steps = asyncio.run(_told(config, is_offline=offline, is_quiet=json))
    failed = [step for step in steps if not step.is_ok]
    if json:
        say_json({"ok": not failed, "steps": [_as_json(step) for step in steps]})
    else:
        _say_end(steps, same_file(config), is_offline=offline)
    return failed[0].exit_code or 1 if failed else 0


async def _told(file: Path | None, *, is_offline: bool, is_quiet: bool) -> list[CheckStep]:
    steps = []
    async for step in _steps(file, is_offline=is_offline):
        steps.append(step)
        if not is_quiet:
            _say_step(step)
            # Some steps wait for a server: what is known so far is seen meanwhile.
            flush()
    return steps


async def _steps(file: Path | None, *, is_offline: bool) -> AsyncIterator[CheckStep]:
    try:
        loaded = load(file, os.environ)
    except ConfigurationError as error:
        yield CheckStep.of(Judgement(CONFIGURATION, error))
        return
    where = str(loaded.file) if loaded.file else "the environment"
    yield CheckStep.of(Judgement(CONFIGURATION, Finding(f"{where} is valid")))
    configuration = loaded.configuration
    yield CheckStep.of(await judgement(DSN, lambda: _try_dsn(configuration)))
    yield CheckStep.of(Judgement(COST, Finding(_cost_text(configuration))))
    if not is_offline:
        async for step in _connected(configuration):
            yield step


def _cost_text(configuration: Configuration) -> str:
    """What requests cost, at the engine's own intervals."""
    from engine.journal import settings  # noqa: PLC0415 - see `_connected`
    from engine.journal.journal import STATE_INTERVAL  # noqa: PLC0415 - see `_connected`

    return cost_text(
        Pace(
            append=configuration.engine.append_interval_seconds,
            age=configuration.chunk.max_age_seconds,
            idle=settings.IDLE_SECONDS,
            probe=settings.PROBE_SECONDS,
            look=settings.REQUESTS_SECONDS,
            entries_a_state=STATE_INTERVAL,
        )
    )


async def _try_dsn(configuration: Configuration) -> Finding:
    """Whether libpq can read the dsn, and where it leads; or where it is kept."""
    from engine.sources.postgres.login import described  # noqa: PLC0415 - see `_connected`

    return Finding(described(configuration.source.own))


async def _connected(configuration: Configuration) -> AsyncIterator[CheckStep]:
    with lean_imports():
        from engine import app  # noqa: PLC0415 - drivers: half a second that --offline saves
        from engine.operate import logs  # noqa: PLC0415 - drivers: half a second that --offline saves

    logs.configure(configuration.log)
    async for step in app.check(configuration):
        yield step


def _say_step(step: CheckStep) -> None:
    """What it is, what was found, what to do, and where it is explained."""
    head = f"{_MARKS[step.state]:<4}  {step.code.id}  {step.code.name}: "
    first, *more = step.detail.splitlines()
    say(head + printable(first), hang=_HANG)
    # A configuration's problems have a line each.
    for line in more:
        say(" " * _HANG + printable(line))
    if step.state != "ok":
        if step.hint:
            say(f"{' ' * _HANG}to do: {printable(step.hint)}")
        say(f"{' ' * _HANG}{step.code.page}")


def _say_end(steps: list[CheckStep], option: str, *, is_offline: bool) -> None:
    """The count, and what one would do now."""
    count = Counter(step.state for step in steps)
    failures, warnings = count["failure"], count["warning"]
    told = [f"{count['ok']} ok"]
    told += [counted(warnings, "warning")] * bool(warnings)
    told += [counted(failures, "failure")] * bool(failures)
    would = "would not start" if failures else "would start"
    verdict = "; nothing was connected to" if is_offline else f": `tailrace run` {would}"
    say(f"\n{', '.join(told)}{verdict}")
    for state, word in (("failure", "failed"), ("warning", "warned")):
        if ids := [step.code.id for step in steps if step.state == state]:
            say(f"{word}: {', '.join(dict.fromkeys(ids))}")
    if failures:
        say_next("mend what failed, then `tailrace check` again")
    else:
        say_next(f"tailrace check{option}" if is_offline else f"tailrace run{option}")


def _as_json(step: CheckStep) -> dict[str, object]:
    return {
        "code": step.code.id,
        "name": step.code.name,
        "state": step.state,
        "detail": step.detail,
        "hint": step.hint,
        "docs": step.code.page,
    }
