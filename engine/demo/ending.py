"""The ending: what was proved, a look into the bucket, where everything lies, what to do next.

Rows and commands are printed as they are, however narrow the terminal: a broken path cannot be
copied.
"""

import shlex

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.demo.progress import size_text
from engine.demo.proof import Proof
from engine.demo.shop import DATABASE, Tally
from engine.demo.workload import Written
from engine.demo.workspace import BUCKET, PREFIX, Workspace

_PROBLEMS_SHOWN_MAX = 10


class Ending:
    """Prints its parts on a console."""

    def __init__(self, console: Console, workspace: Workspace) -> None:
        self._console = console
        self._workspace = workspace

    def work(self, written: Written, seconds: float) -> None:
        """What the shop did, and how fast it really was."""
        if not written.transaction_count:
            return
        rate = written.row_count / seconds if seconds else 0.0
        self._heading("The shop")
        self._line(
            f"  {written.row_count:,} changes in {written.transaction_count:,} transactions in "
            f"{seconds:.1f} s: {rate:,.0f} a second. {written.roll_back_count:,} transactions were "
            "rolled back."
        )

    def proof(self, proof: Proof) -> None:
        """The accounts side by side."""
        self._heading("The proof")
        self._console.print(_counts_table(proof))
        self._line()
        self._verdict(proof)
        self._judged(
            proof.are_counts_equal,
            "committed = in the bucket: each change of each table is there once",
            "what was committed and what is in the bucket differ",
        )
        count, total, _ = proof.orders_in_bucket
        self._judged(
            proof.are_orders_equal,
            f"orders made again from their changes ({count:,}, {total} in all) = the table",
            f"orders made again from their changes: {proof.orders_in_bucket}, "
            f"the table: {proof.orders_in_database}",
        )

    def busiest(self, proof: Proof) -> None:
        """The orders that changed most, as a consumer reads them."""
        if not proof.busiest:
            return
        self._heading("The orders that changed most, read from the bucket by DuckDB")
        self._line(f"  {proof.orders_pattern}", style="dim")
        rows = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for title, side in (
            ("id", "right"),
            ("status", "left"),
            ("total", "right"),
            ("placed_at", "left"),
            ("changes", "right"),
        ):
            rows.add_column(title, justify=side, no_wrap=True)  # type: ignore[arg-type]
        for row in proof.busiest:
            rows.add_row(*(str(value) for value in row))
        self._console.print(_indented(rows))

    def places(self) -> None:
        """Where everything lies."""
        workspace = self._workspace
        size = size_text(workspace.size_bytes())
        self._heading("Where everything is")
        self._line(f"  {'folder':14} {workspace.folder}  ({size})")
        for name, path in (
            ("configuration", workspace.configuration_file),
            ("engine's log", workspace.engine_log),
            ("credentials", workspace.credentials_file),
            ("database", workspace.folder / "postgres"),
            ("bucket", workspace.folder / "s3"),
        ):
            self._line(f"  {name:14} {path}")

    def next_steps(self) -> None:
        """What to do when the servers have ended."""
        folder = shlex.quote(str(self._workspace.folder))
        self._heading("Next")
        self._line("  more changes on the same data, and kill -9 the engine three times meanwhile:")
        self._line(f"    tailrace demo --directory {folder} --crashes 3", style="bold")
        self._line("  the servers again, to look around in:")
        self._line(f"    tailrace demo --directory {folder} --seconds 0 --stay", style="bold")
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
        self._line(
            f"    {psql} -h 127.0.0.1 -p {postgres.port} -U postgres {DATABASE}", style="bold"
        )
        self._line(f"  bucket: s3://{BUCKET}/{PREFIX}/ at {workspace.s3.endpoint_url}")

    def result(self, proof: Proof) -> None:
        """The last word."""
        self._line()
        if proof.is_ok:
            rows = f"{sum(proof.committed.values()):,}"
            self._line(f"ok: {rows} changes, each in the bucket exactly once", style="bold green")
        else:
            self._line("FAILED: the accounts differ, see the proof above", style="bold red")

    def _verdict(self, proof: Proof) -> None:
        verdict = proof.verdict
        counts = (
            f"verify --depth full: {verdict.objects:,} objects and {verdict.rows:,} rows of "
            f"{len(verdict.tables)} tables, {verdict.entries:,} journal entries"
        )
        self._judged(verdict.is_ok, counts, f"{counts}: {len(verdict.problems)} problems")
        for problem in verdict.problems[:_PROBLEMS_SHOWN_MAX]:
            self._line(f"    {problem.code}  {problem.key}: {problem.text}", style="red")

    def _judged(self, is_ok: bool, text: str, otherwise: str) -> None:  # noqa: FBT001
        if is_ok:
            self._console.print(
                Text.assemble("  ", ("ok", "bold green"), f"        {text}"), soft_wrap=True
            )
        else:
            self._console.print(
                Text.assemble("  ", ("DIFFERS", "bold red"), f"   {otherwise}"), soft_wrap=True
            )

    def _heading(self, text: str) -> None:
        self._line()
        self._line(text, style="bold cyan")

    def _line(self, text: str = "", style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)


def _counts_table(proof: Proof) -> Table:
    counts = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    counts.add_column("  table", no_wrap=True)
    for title in ("inserted", "updated", "deleted", "committed", "in bucket"):
        counts.add_column(title, justify="right", no_wrap=True)
    counts.add_column("", no_wrap=True)
    keys = proof.committed.keys() | proof.found.keys()
    for table in sorted({table for table, _ in keys}):
        cells = [_cell(proof, table, op) for op in "cud"]
        committed, found = _sum(proof.committed, table), _sum(proof.found, table)
        is_equal = all(
            proof.committed.get((table, op), 0) == proof.found.get((table, op), 0) for op in "cudrt"
        )
        mark = Text("ok", "green") if is_equal else Text("DIFFERS", "bold red")
        counts.add_row(f"  {table}", *cells, f"{committed:,}", f"{found:,}", mark)
    return counts


def _cell(proof: Proof, table: str, op: str) -> str:
    committed, found = proof.committed.get((table, op), 0), proof.found.get((table, op), 0)
    return f"{committed:,}" if committed == found else f"{committed:,}/{found:,}"


def _sum(tally: Tally, table: str) -> int:
    return sum(count for (name, _), count in tally.items() if name == table)


def _indented(table: Table) -> Table:
    grid = Table.grid(padding=(0, 0, 0, 2))
    grid.add_column(no_wrap=True)
    grid.add_row(table)
    return grid
