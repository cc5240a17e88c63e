"""`many-tables`: whether a row's cost grows with the number of tables."""

from dataclasses import dataclass

from load_tests.backlog_scenario import FURTHER_ROW_CPU, BacklogScenario
from load_tests.result import Target
from load_tests.scenarios.large_transaction import MEMORY
from load_tests.servers import Database
from load_tests.workload import MIXED_COLUMNS, MIXED_VALUES, Connection, Workload

_TABLES_A_STATEMENT = 200
_ROWS_A_TRANSACTION = 1_000

# Every row goes to a table that is drawn for it. So neighbours in the log hardly ever share a
# table, which is the hardest case for a reader that gathers rows by table. The seed makes the same
# choices on all servers.
_WRITE = f"""
DO $$
DECLARE
    chosen int;
    one changes;
BEGIN
    PERFORM setseed(0.5);
    FOR i IN 1..{{rows}} LOOP
        chosen := {{choice}};
        one := ROW({MIXED_VALUES});
        EXECUTE 'INSERT INTO changes_' || chosen || ' SELECT ($1).*' USING one;
        IF i % {_ROWS_A_TRANSACTION} = 0 THEN COMMIT; END IF;
    END LOOP;
END $$
"""

_MEET = f"""
DO $$
DECLARE
    one changes;
    i int := -1;
BEGIN
    FOR n IN 1..{{tables}} LOOP
        one := ROW({MIXED_VALUES});
        EXECUTE 'INSERT INTO changes_' || n || ' SELECT ($1).*' USING one;
    END LOOP;
END $$
"""


@dataclass(frozen=True, slots=True)
class _Tables:
    """So many tables; `hot_count` of them take 90 % of the rows, if any."""

    count: int
    hot_count: int = 0

    def make(self, _: Database, connection: Connection) -> None:
        connection.execute(f"CREATE TYPE changes AS ({_plain(MIXED_COLUMNS)})".encode())
        for first in range(1, self.count + 1, _TABLES_A_STATEMENT):
            numbers = range(first, min(first + _TABLES_A_STATEMENT, self.count + 1))
            text = "; ".join(f"CREATE TABLE changes_{n} ({MIXED_COLUMNS})" for n in numbers)
            connection.execute(text.encode())

    def meet(self, _: Database, connection: Connection, row_count: int) -> int:
        del row_count
        text = _MEET.format(tables=self.count)
        connection.execute(text.encode())
        return self.count

    def write(self, _: Database, connection: Connection, row_count: int) -> int:
        uniform = f"1 + floor(random() * {self.count})::int"
        hot = f"1 + floor(random() * {self.hot_count})::int"
        choice = f"CASE WHEN random() < 0.9 THEN {hot} ELSE {uniform} END"
        text = _WRITE.format(rows=row_count, choice=choice if self.hot_count else uniform)
        connection.execute(text.encode())
        return row_count


def _plain(columns: str) -> str:
    """A composite type's: without constraints."""
    return columns.replace(" PRIMARY KEY", "")


def _workload(variant: str, tables: _Tables) -> Workload:
    return Workload(variant=variant, make_tables=tables.make, write=tables.write, meet=tables.meet)


MANY_TABLES = BacklogScenario(
    name="many-tables",
    title="Many tables",
    text="The rows of drain, spread over 1, 100 and 5,000 tables, each row to a table of its own "
    "choice; and over 5,000 of which 1 % take 90 % of the rows. A row's CPU while streaming must "
    "not grow with the number of tables. What a table costs once is told apart: to meet it (its "
    "first row is read alone before), and its object at the end, in milliseconds.",
    rows=300_000,
    rows_least=200_000,
    workloads=(
        _workload("1 table", _Tables(1)),
        _workload("100 tables", _Tables(100)),
        _workload("5,000 tables", _Tables(5_000)),
        _workload("5,000 tables, skewed", _Tables(5_000, hot_count=50)),
    ),
    targets=(
        Target(
            text="CPU a row of a known table, to 1 table's",
            quantity=FURTHER_ROW_CPU,
            bound=1.1,
            direction="at most",
            baseline="1 table",
            variants=("100 tables", "5,000 tables, skewed"),
        ),
        MEMORY,
    ),
    write_us=50.0,
    weight=1.2,
    start_seconds=8.0,
)
