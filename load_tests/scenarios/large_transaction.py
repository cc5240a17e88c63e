"""`large-transaction`: memory, where one transaction has more rows than any buffer."""

from dataclasses import replace

from load_tests.backlog_scenario import BacklogScenario
from load_tests.result import Target
from load_tests.scenarios.drain import MIXED
from load_tests.workload import Statement

MEMORY = Target(
    text="peak RSS",
    quantity="peak_rss",
    bound=256 * 1024 * 1024,
    direction="at most",
)

assert isinstance(MIXED.write, Statement), "drain writes by SQL"

LARGE_TRANSACTION = BacklogScenario(
    name="large-transaction",
    title="One large transaction",
    text="The rows of drain in a single transaction: nothing can be acknowledged before its end, "
    "and memory must not grow with it. The server spills it to disk before it sends the first row.",
    rows=10_000_000,
    rows_least=1_000_000,
    workloads=(
        replace(MIXED, write=replace(MIXED.write, rows_a_transaction=None), is_sampled=False),
    ),
    targets=(MEMORY,),
    depth="light",
    weight=1.4,
)
