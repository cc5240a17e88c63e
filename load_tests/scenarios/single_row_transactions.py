"""`single-row-transactions`: what a transaction costs."""

from load_tests.backlog_scenario import BacklogScenario
from load_tests.result import Target
from load_tests.workload import MIXED_COLUMNS, MIXED_VALUES, Statement, Workload

_LOOP = f"""
DO $$ BEGIN
    FOR i IN {{first}}..{{last}} LOOP
        INSERT INTO changes SELECT {MIXED_VALUES};
        COMMIT;
    END LOOP;
END $$
"""

SINGLE_ROW_TRANSACTIONS = BacklogScenario(
    name="single-row-transactions",
    title="One row a transaction",
    text="The rows of drain, each in a transaction of its own: what Begin and Commit cost the "
    "reader, and whether positions and acknowledgements stay cheap.",
    rows=300_000,
    rows_least=100_000,
    workloads=(
        Workload(
            tables=(f"CREATE TABLE changes ({MIXED_COLUMNS})",),
            # The transactions are in the loop: a statement's size is only how many it loops.
            write=Statement(_LOOP, rows_a_transaction=10_000),
        ),
    ),
    targets=(
        Target(
            text="rows/s, without start-up",
            quantity="started_rate",
            bound=1.2,
            direction="at least",
            peer="pg_recvlogical",
        ),
    ),
    write_us=30.0,
    weight=2.0,
)
