"""`tailrace verify`: the bucket proves that nothing is missing, doubled or altered."""

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Annotated, Final, Literal, assert_never

from cyclopts import Parameter

from engine.cli.options import ConfigFile, Json, same_file
from engine.cli.output import say, say_json, say_next, say_table
from engine.cli.startup import lean_imports
from engine.cli.table import Alignment
from engine.cli.verify_progress import LineProgress, SilentProgress, TerminalProgress
from engine.config import DestinationConfiguration, default_log, load_destination
from engine.model.plural import counted
from engine.model.position import commit_of
from engine.model.printable import printable

if TYPE_CHECKING:
    from engine.journal.entry import Gap
    from engine.reader.verify import Problem, TableVerdict, Verdict

PROBLEMS_SHOWN_MAX = 50
GAPS_SHOWN_MAX = 50
UNFINISHED_SHOWN_MAX = 50

_LABEL: Final = 9
"""How far the texts of problems and warnings are from the left."""

_ALIGNMENTS: Final[tuple[Alignment, ...]] = ("left", "right", "right", "right", "right", "right")

DepthOption = Annotated[
    Literal["light", "full"],
    Parameter(
        name="--depth",
        help="light: names, sizes, metadata, journal, continuity. full: every record as well.",
    ),
]

StrictOption = Annotated[
    bool,
    Parameter(
        name="--strict",
        negative="",
        show_default=False,
        help="End with 1 also for a warning, and for a gap that nothing has mended.",
    ),
]


def verify(
    *,
    config: ConfigFile = None,
    depth: DepthOption = "light",
    strict: StrictOption = False,
    json: Json = False,
) -> int:
    """Prove from the bucket alone that nothing is missing or doubled.

    Needs only [destination] of the configuration, and the right to list and read. Judges up to the
    last durable entry of the journal; objects named later are pending. Gaps that the journal
    states are listed: what they name is missing, and the journal says so. Exit code 1: problems.
    """
    destination = load_destination(config, os.environ)
    verdict = asyncio.run(_verdict(destination, depth, is_quiet=json))
    if json:
        say_json(_as_json(verdict))
    else:
        option = same_file(config)
        _say(verdict, depth, option, is_strict=strict)
    return 0 if verdict.is_ok and not (strict and _doubts(verdict)) else 1


async def _verdict(
    destination: DestinationConfiguration, depth: Literal["light", "full"], *, is_quiet: bool
) -> "Verdict":
    with lean_imports():
        from engine import app  # noqa: PLC0415 - a wrong configuration is told before
        from engine.operate import logs  # noqa: PLC0415 - a wrong configuration is told before
    from engine.reader.verify import verify as judge  # noqa: PLC0415 - likewise

    # Without this, whatever is logged would go to stdout.
    logs.configure(default_log())
    with _progress(is_quiet=is_quiet) as progress:
        async with app.open_bucket(destination) as store:
            return await judge(
                store,
                destination.prefix,
                depth=depth,
                concurrency=destination.concurrency,
                progress=progress,
            )


def _progress(*, is_quiet: bool) -> SilentProgress | LineProgress | TerminalProgress:
    if is_quiet:
        return SilentProgress()
    return TerminalProgress() if sys.stderr.isatty() else LineProgress()


def _doubts(verdict: "Verdict") -> int:
    """What `--strict` takes for a failure, although the journal keeps its promise."""
    return len(verdict.unmended_gaps) + len(verdict.warnings)


def _say(
    verdict: "Verdict", depth: Literal["light", "full"], option: str, *, is_strict: bool
) -> None:
    _say_tables(verdict)
    for number, problem in enumerate(verdict.problems):
        if number == PROBLEMS_SHOWN_MAX:
            say(f"… and {len(verdict.problems) - number} more: `tailrace verify --json` has all")
            break
        _say_problem("PROBLEM", problem)
    for warning in verdict.warnings:
        _say_problem("WARNING", warning)
    _say_remedies((*verdict.problems, *verdict.warnings))
    _say_gaps(verdict.unmended_gaps)
    _say_unfinished(verdict.unfinished)
    if verdict.is_ok and is_strict and _doubts(verdict):
        say(f"failed, as --strict asks: {_counts(verdict)}")
        say_next(f"do what is said above, then `tailrace verify --strict{option}`")
        return
    say(_summary(verdict))
    say_next(*_next_step(verdict, depth, option))


def _say_problem(mark: str, problem: "Problem") -> None:
    say(f"{mark}  {problem.code}  {printable(problem.key)}", hang=_LABEL)
    say(f"         {printable(problem.text)}")


def _say_tables(verdict: "Verdict") -> None:
    # Two positions of 45 characters do not fit a terminal. A commit's part compares with "durable
    # up to".
    rows = [
        (
            printable(table.table),
            str(table.objects + table.snapshot_objects),
            str(table.rows + table.snapshot_rows),
            str(table.pending),
            _ranges(table.versions) or "-",
            commit_of(table.last) if table.last else "-",
        )
        for table in verdict.tables
    ]
    if rows:
        heading = ("table", "objects", "rows", "pending", "versions", "last commit")
        say_table([heading, *rows], _ALIGNMENTS)
        say()


def _ranges(versions: tuple[int, ...]) -> str:
    """Ascending numbers as text: `1-3,7`."""
    spans: list[list[int]] = []
    for version in versions:
        if spans and version == spans[-1][1] + 1:
            spans[-1][1] = version
        else:
            spans.append([version, version])
    return ",".join(f"{low}-{high}" if low < high else str(low) for low, high in spans)


def _say_remedies(problems: "tuple[Problem, ...]") -> None:
    told: dict[str, list[str]] = {}
    for problem in problems:
        codes = told.setdefault(problem.remedy, [])
        if problem.code not in codes:
            codes.append(problem.code)
    if told:
        say("\nwhat to do:")
    for remedy, codes in told.items():
        say(f"  {', '.join(codes)}: {remedy}", hang=4)
    if told:
        say()


def _say_gaps(gaps: "tuple[Gap, ...]") -> None:
    for gap in gaps[:GAPS_SHOWN_MAX]:
        until = f"up to {gap.until}" if gap.until else "and it goes on"
        table = printable(gap.table)
        place = f"after {gap.after or 'nothing'}, {until}"
        say(f"WARNING  gap  {table}  {gap.reason}  {place}", hang=_LABEL)
        say(f"         {printable(gap.text)}")
    if len(gaps) > GAPS_SHOWN_MAX:
        say(f"… and {len(gaps) - GAPS_SHOWN_MAX} more: `tailrace verify --json` has all")
    if gaps:
        say()


def _say_unfinished(tables: "tuple[TableVerdict, ...]") -> None:
    for table in tables[:UNFINISHED_SHOWN_MAX]:
        say(f"unfinished  {printable(table.table)}  its snapshot is {table.snapshot}", hang=12)
    if len(tables) > UNFINISHED_SHOWN_MAX:
        say(f"… and {len(tables) - UNFINISHED_SHOWN_MAX} more: `tailrace verify --json` has all")
    if tables:
        say()


def _summary(verdict: "Verdict") -> str:
    counts = _counts(verdict)
    if verdict.is_ok:
        return f"ok: {counts}"
    return f"{counted(len(verdict.problems), 'problem')}: {counts}"


def _counts(verdict: "Verdict") -> str:
    counts = (
        f"{counted(verdict.objects, 'object')} and {counted(verdict.rows, 'row')} of "
        f"{counted(len(verdict.tables), 'table')}, "
        f"{counted(verdict.entries, 'journal entry', 'journal entries')}"
    )
    if verdict.durable_position:
        counts += f"; durable up to {verdict.durable_position} ({verdict.durable_time})"
    if verdict.pending:
        counts += f"; {counted(verdict.pending, 'object')} pending"
    if verdict.expired:
        counts += f"; {counted(verdict.expired, 'object')} of these expired"
    if count := len(verdict.unfinished):
        counts += f"; {counted(count, 'table')} unfinished"
    if count := len(verdict.unmended_gaps):
        counts += f"; {counted(count, 'gap')} not mended"
    if count := len(verdict.warnings):
        counts += f"; {counted(count, 'warning')}"
    return counts


def _next_step(verdict: "Verdict", depth: Literal["light", "full"], option: str) -> tuple[str, str]:
    full = f"tailrace verify --depth full{option}"
    if not verdict.is_ok:
        return f"do what is said above, then `{full}`", ""
    match depth:
        case "light":
            return full, "reads every record as well"
        case "full":
            return "load it: every record is there once; a table's objects sort in commit order", ""
        case _:
            assert_never(depth)


def _as_json(verdict: "Verdict") -> dict[str, object]:
    return {
        "ok": verdict.is_ok,
        "tables": len(verdict.tables),
        "objects": verdict.objects,
        "rows": verdict.rows,
        "pending": verdict.pending,
        "expired": verdict.expired,
        "problems": [
            {"code": str(problem.code), "key": problem.key, "text": problem.text}
            for problem in verdict.problems
        ],
        "gaps": [_gap_as_json(gap) for gap in verdict.gaps],
        "warnings": [
            {"code": str(warning.code), "key": warning.key, "text": warning.text}
            for warning in verdict.warnings
        ],
        "snapshots": [
            {
                "table": table.table,
                "state": table.snapshot,
                "objects": table.snapshot_objects,
                "rows": table.snapshot_rows,
            }
            for table in verdict.tables
            if table.snapshot != "none"
        ],
    }


def _gap_as_json(gap: "Gap") -> dict[str, object]:
    shown: dict[str, object] = {
        "number": gap.number,
        "table": gap.table,
        "from": gap.after,
        "to": gap.until or None,
        "reason": gap.reason,
        "text": gap.text,
        "mended": gap.mended or None,
        "noticed": gap.noticed or None,
    }
    if gap.position:
        shown |= {"position": gap.position, "key": gap.key, "attempt": gap.attempt or None}
    return shown
