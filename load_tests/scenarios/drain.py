"""`drain`: the headline figure."""

from load_tests.backlog_scenario import BacklogScenario
from load_tests.peers import PEERS
from load_tests.result import Target
from load_tests.workload import MIXED_COLUMNS, MIXED_VALUES, Statement, Workload

MIXED = Workload(
    tables=(f"CREATE TABLE changes ({MIXED_COLUMNS})",),
    write=Statement(
        f"INSERT INTO changes SELECT {MIXED_VALUES} FROM generate_series({{first}}, {{last}}) AS i"
    ),
)

DRAIN = BacklogScenario(
    name="drain",
    title="A backlog, drained",
    text="One table of 12 columns of most built-in types, inserted in transactions of 10,000 rows, "
    "read from the log to its end: how fast the engine catches up after it was away, and what a "
    "row costs. Without start-up, since a backlog that matters takes longer than a second.",
    rows=1_000_000,
    rows_least=200_000,
    workloads=(MIXED,),
    peers=tuple(PEERS),
    majors=(15, 18),
    targets=(
        Target(
            text="rows/s, streaming alone",
            quantity="streaming_rate",
            bound=0.95,
            direction="at least",
            peer="ceiling",
        ),
        Target(
            text="rows/s, whole process",
            quantity="rate",
            bound=7.0,
            direction="at least",
            peer="debezium",
        ),
        Target(
            text="own CPU", quantity="own_cpu", bound=1 / 15, direction="at most", peer="debezium"
        ),
        Target(
            text="peak RSS", quantity="peak_rss", bound=1 / 4, direction="at most", peer="debezium"
        ),
    ),
)
