"""`updates-full-identity`: what an old row costs."""

from load_tests.backlog_scenario import BacklogScenario
from load_tests.workload import MIXED_COLUMNS, MIXED_VALUES, Statement, Workload

_ROWS_HELD = 100_000
_FILL = f"INSERT INTO changes SELECT {MIXED_VALUES} FROM generate_series(1, {_ROWS_HELD}) AS i"

UPDATES_FULL_IDENTITY = BacklogScenario(
    name="updates-full-identity",
    title="Updates with their old rows",
    text="Updates of a table with REPLICA IDENTITY FULL: the server sends the old row with every "
    "new one, twice the bytes a change and twice the columns to write.",
    rows=500_000,
    rows_least=100_000,
    workloads=(
        Workload(
            tables=(
                f"CREATE TABLE changes ({MIXED_COLUMNS})",
                "ALTER TABLE changes REPLICA IDENTITY FULL",
                _FILL,
            ),
            # Over and over the same rows, each transaction a range of them.
            write=Statement(
                "UPDATE changes SET quantity = quantity + 1, changed_at = clock_timestamp() "
                f"WHERE id BETWEEN ({{first}} - 1) % {_ROWS_HELD} + 1 "
                f"AND ({{last}} - 1) % {_ROWS_HELD} + 1"
            ),
        ),
    ),
    write_us=20.0,
    weight=1.8,
)
