"""The ending: what was proved, a look into the bucket, where everything lies, what to do next.

Rows and commands are printed as they are, however narrow the terminal: a broken path cannot be
copied.
"""

import shlex
from collections.abc import Mapping

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from engine.demo.bucket_reader import NEWEST
from engine.demo.proof import Proof
from engine.demo.shop import DATABASE, State, Tally
from engine.demo.workload import Written
from engine.demo.workspace import BUCKET, PREFIX, Workspace
from engine.model.amount import size_text
from engine.model.plural import counted

_PROBLEMS_SHOWN_MAX = 10
_INDENT = (0, 0, 0, 2)
_COUNTS_WIDTH_MIN = 76


class Ending:
    """Prints its parts on a console."""

    def __init__(self, console: Console, workspace: Workspace) -> None:
        self._console = console
        self._workspace = workspace

    def work(self, written: Written, seconds: float) -> None:
        """What the shop did, and how fast it really was."""
        if not seconds:
            return
        rate = written.row_count / seconds
        self._heading("The shop")
        self._prose(
            f"{counted(written.row_count, 'change', form=',')} in "
            f"{counted(written.transaction_count, 'transaction', form=',')} in "
            f"{seconds:.1f} s: {rate:,.0f} a second. Rolled back: "
            f"{counted(written.roll_back_count, 'transaction', form=',')}."
        )

    def proof(self, proof: Proof) -> None:
        """The accounts side by side."""
        self._heading("The proof")
        self._console.print(
            Padding(_counts_table(proof, self._console.width), _INDENT, expand=False)
        )
        self._line()
        judged = Table.grid(padding=(0, 2))
        judged.add_column(no_wrap=True)
        judged.add_column()
        judged.add_row(_mark(is_ok=proof.verdict.is_ok), _verdict_text(proof))
        judged.add_row(
            _mark(is_ok=proof.are_counts_equal),
            "what the database counted = what DuckDB counts in the bucket, by table and kind",
        )
        for command, states in (
            ("tailrace read --current", proof.in_answers),
            ("tailrace views duckdb", proof.in_views),
        ):
            is_ok = states == proof.in_database
            judged.add_row(_mark(is_ok=is_ok), _states_text(command, states, proof.in_database))
        if proof.existing:
            judged.add_row(_mark(is_ok=proof.are_existing_equal), _existing_text(proof))
        self._console.print(Padding(judged, _INDENT, expand=False))
        for problem in proof.verdict.problems[:_PROBLEMS_SHOWN_MAX]:
            self._line(f"  {problem.code}  {problem.key}: {problem.text}", style="red")

    def newest(self, proof: Proof) -> None:
        """The orders that changed last, as a consumer reads them."""
        if not proof.newest:
            return
        self._heading("The orders that changed last, read from the bucket by DuckDB")
        for line in NEWEST.splitlines():
            self._line(f"  {line}", style="dim")
        rows = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for title, side in (
            ("id", "right"),
            ("status", "left"),
            ("total", "right"),
            ("placed_at", "left"),
        ):
            rows.add_column(title, justify=side, no_wrap=True)  # type: ignore[arg-type]
        for row in proof.newest:
            rows.add_row(*(str(value) for value in row))
        self._console.print(Padding(rows, _INDENT, expand=False))

    def places(self) -> None:
        """Where everything lies."""
        folder = self._workspace.folder
        self._heading("Where everything is")
        self._line(f"  {folder}  ({size_text(self._workspace.size_bytes())})")
        for path, text in (
            (self._workspace.configuration_file, "what the engine ran with"),
            (self._workspace.engine_log, "what it said"),
            (self._workspace.views_file, "the views that DuckDB ran"),
            (self._workspace.credentials_file, "the bucket's, in AWS's form"),
            (folder / "postgres", "the database's data"),
            (folder / "s3", "the bucket's data"),
        ):
            self._line(f"    {path.name:15} {text}")

    def next_steps(self) -> None:
        """What to do when the servers have ended."""
        folder = shlex.quote(str(self._workspace.folder))
        self._heading("Next")
        self._line("  more changes on the same data, the engine killed by kill -9 three times:")
        self._line(f"    tailrace demo --directory {folder} --crashes 3", style="bold")
        self._line("  the servers again, to look around in:")
        self._line(f"    tailrace demo --directory {folder} --seconds 0 --stay", style="bold")
        self._line("  and while they are up, what the proof read by (it prints what to export):")
        self._reading_commands()
        self._line("  your own database:")
        self._line("    tailrace check -c tailrace.toml", style="bold")

    def while_up(self) -> None:
        """What to do while the servers stay up."""
        workspace = self._workspace
        file = shlex.quote(str(workspace.configuration_file))
        postgres = workspace.postgres
        psql = shlex.quote(str(postgres.bin_directory / "psql"))
        self._heading("The servers stay up until Ctrl-C. In another terminal:")
        for name, value in workspace.environment.items():
            self._line(f"    export {name}={shlex.quote(value)}", style="bold")
        self._line(f"    tailrace run -c {file}", style="bold")
        self._line(f"    tailrace verify -c {file}", style="bold")
        self._reading_commands()
        self._line(
            f"    {psql} -h 127.0.0.1 -p {postgres.port} -U postgres {DATABASE}", style="bold"
        )
        self._line(f"  bucket: s3://{BUCKET}/{PREFIX}/ at {workspace.s3.endpoint_url}")

    def _reading_commands(self) -> None:
        """The commands with which the proof read, for the user's own hand."""
        file = shlex.quote(str(self._workspace.configuration_file))
        self._line(f"    tailrace read public.orders --current -c {file}", style="bold")
        self._line(f"    tailrace views duckdb -c {file}", style="bold")

    def result(self, proof: Proof) -> None:
        """The last word."""
        self._line()
        if proof.is_ok:
            changes = counted(sum(proof.committed.values()), "change", form=",")
            rows = f"{counted(proof.existing, 'row', form=',')} and " if proof.existing else ""
            self._line(f"ok: {rows}{changes}, each in the bucket exactly once", style="bold green")
        else:
            self._line("FAILED: the accounts differ, see the proof above", style="bold red")

    def _prose(self, text: str) -> None:
        """Wrap it in a terminal; whoever reads a log wants one line."""
        if self._console.is_terminal:
            self._console.print(Padding(Text(text), _INDENT, expand=False))
        else:
            self._line(f"  {text}")

    def _heading(self, text: str) -> None:
        self._line()
        self._line(text, style="bold cyan")

    def _line(self, text: str = "", style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)


def _counts_table(proof: Proof, width: int) -> Table:
    is_wide = width >= _COUNTS_WIDTH_MIN
    counts = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    counts.add_column("table", no_wrap=True)
    kinds = ("inserted", "updated", "deleted") if is_wide else ()
    for title in (*kinds, "committed", "in bucket"):
        counts.add_column(title, justify="right", no_wrap=True)
    counts.add_column("", no_wrap=True)
    changes = proof.changes_found
    keys = proof.committed.keys() | changes.keys()
    for table in sorted({table for table, _ in keys}):
        cells = [_cell(proof, table, op) for op in "cud"] if is_wide else []
        committed, found = _of_table(proof.committed, table), _of_table(changes, table)
        sums = (f"{sum(tally.values()):,}" for tally in (committed, found))
        counts.add_row(table, *cells, *sums, _mark(is_ok=committed == found))
    return counts


def _cell(proof: Proof, table: str, op: str) -> str:
    committed, found = proof.committed.get((table, op), 0), proof.changes_found.get((table, op), 0)
    return f"{committed:,}" if committed == found else f"{committed:,}/{found:,}"


def _of_table(tally: Tally, table: str) -> Tally:
    return {(name, op): count for (name, op), count in tally.items() if name == table}


def _mark(*, is_ok: bool) -> Text:
    return Text("ok", "green") if is_ok else Text("DIFFERS", "bold red")


def _verdict_text(proof: Proof) -> str:
    verdict = proof.verdict
    problems = "" if verdict.is_ok else f"; {counted(len(verdict.problems), 'problem')}"
    return (
        f"verify --depth full: {counted(verdict.objects, 'object', form=',')}, "
        f"{counted(verdict.rows, 'row', form=',')}, "
        f"{counted(verdict.entries, 'journal entry', 'journal entries', form=',')}{problems}"
    )


def _states_text(
    command: str, states: Mapping[str, State], in_database: Mapping[str, State]
) -> str:
    differing = [table for table in in_database if states.get(table) != in_database[table]]
    if differing:
        return f"{command}: other rows than in PostgreSQL in {', '.join(differing)}"
    rows = sum(state.rows for state in states.values())
    return (
        f"{command}: {counted(len(states), 'table')} with {counted(rows, 'row', form=',')}"
        " = those in PostgreSQL"
    )


def _existing_text(proof: Proof) -> str:
    rows = counted(proof.existing, "row", form=",")
    text = f"{rows} that were there before the engine, each read once by the snapshot"
    if proof.are_existing_equal:
        return text
    return f"{text}: only {proof.existing_found:,} are"
