"""`tailrace materialize`: a table's changes into a Delta or Iceberg table, or Parquet files."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from engine.cli.options import ConfigFile, Json, Table, Usage
from engine.cli.output import say_json, tell, tell_next
from engine.cli.read import AllowGaps, Text
from engine.cli.startup import lean_imports
from engine.cli.verify_progress import SilentProgress, TerminalProgress
from engine.config import DestinationConfiguration, default_log, load_destination
from engine.materialize.lake_table import Format
from engine.model.plural import counted

if TYPE_CHECKING:
    from engine.materialize.job import Done

LakePlace = Annotated[
    str,
    Parameter(
        name="PATH",
        help="A folder, s3://BUCKET/PREFIX, or with --to iceberg NAMESPACE.TABLE.",
    ),
]
To = Annotated[
    Format,
    Parameter(
        name="--to",
        help="The format. delta needs pip install 'tailrace[delta]', iceberg 'tailrace[iceberg]',"
        " parquet 'tailrace[read]'.",
    ),
]
CatalogName = Annotated[
    str | None,
    Parameter(
        name="--catalog",
        metavar="NAME",
        help="Iceberg's catalog, by its name in PyIceberg's own configuration.",
    ),
]
CommitRows = Annotated[
    int,
    Parameter(
        name="--commit-rows",
        metavar="ROWS",
        validator=Number(gte=1),
        help="Commit when so many rows came together, or 1 GiB of them in memory.",
    ),
]


def materialize(
    table: Table,
    path: LakePlace,
    /,
    *,
    to: To,
    catalog: CatalogName = None,
    config: ConfigFile = None,
    commit_rows: CommitRows = 1_000_000,
    allow_gaps: AllowGaps = False,
    text: Text = (),
    json: Json = False,
) -> int:
    """Bring a table of another format up to date with a table's changes, and end.

    PATH is a folder, s3://BUCKET/PREFIX (with ?endpoint_url= and &region= where needed), or with
    --to iceberg NAMESPACE.TABLE. Changes are appended, each once, however often a run is killed and
    begun again: the table itself holds how far it has come. The first run takes all changes that
    are there. Needs [destination] of the configuration, and the right to list and read.
    """
    if (to == "iceberg") != (catalog is not None):
        raise Usage("--catalog NAME goes with --to iceberg, and only with it")
    done = _run(
        load_destination(config, os.environ),
        table,
        to,
        path,
        catalog or "",
        commit_rows=commit_rows,
        allow_gaps=allow_gaps,
        text=text,
        is_quiet=json,
    )
    if json:
        say_json(_as_json(done, table))
    else:
        for doubt in done.doubts:
            tell(f"warning: {doubt}")
        tell(
            f"{counted(done.rows, 'change')} of {table} in {counted(done.commits, 'commit')}, up"
            f" to {done.until}"
        )
        tell_next("the same command again, when more has changed: it goes on from here")
    return 0


def _run(
    destination: DestinationConfiguration,
    table: str,
    to: Format,
    path: str,
    catalog: str,
    *,
    commit_rows: int,
    allow_gaps: bool,
    text: tuple[str, ...],
    is_quiet: bool,
) -> "Done":
    with lean_imports():
        from engine.library import TableReading  # noqa: PLC0415 - a wrong configuration first
        from engine.operate import logs  # noqa: PLC0415 - likewise
    from engine.materialize.job import Job  # noqa: PLC0415 - likewise
    from engine.materialize.opening import open_lake  # noqa: PLC0415 - likewise
    from engine.reader.table import Question  # noqa: PLC0415 - likewise

    # Without this, whatever is logged would go to stdout.
    logs.configure(default_log())

    def open_changes(cursor: str) -> TableReading:
        question = Question(table=table, since=cursor, allows_gaps=allow_gaps)
        return TableReading(destination, question, text)

    lake = open_lake(to, path, catalog)
    try:
        with _progress(is_quiet=is_quiet) as progress:
            job = Job(
                open_changes,
                lake,
                commit_rows=commit_rows,
                progress=lambda committed, read: progress.reached("committed", committed, read),
            )
            return job.run()
    finally:
        lake.close()


def _progress(*, is_quiet: bool) -> SilentProgress | TerminalProgress:
    is_shown = sys.stderr.isatty() and not is_quiet
    return TerminalProgress() if is_shown else SilentProgress()


def _as_json(done: "Done", table: str) -> dict[str, object]:
    return {
        "table": table,
        "changes": done.rows,
        "commits": done.commits,
        "begun_again": done.outrun,
        "until": done.until,
        "cursor": done.cursor or None,
        "warnings": list(done.doubts),
    }
