"""`drain-wide`: what a column costs."""

from load_tests.backlog_scenario import BacklogScenario
from load_tests.workload import Statement, Workload

# By turns, and none twice the same in a row: its type, and its value in row i.
_KINDS = (
    ("int", "i + {n}"),
    ("text", "'column {n} of row ' || i"),
    ("numeric(12, 2)", "(i % 100000) / 100.0 + {n}"),
    ("boolean", "(i + {n}) % 2 = 0"),
    ("timestamptz", "timestamptz '2026-01-01' + {n} * interval '1 day' + i * interval '1 second'"),
    ("double precision", "i * 1.5 + {n}"),
    ("date", "date '2026-01-01' + (i + {n}) % 1000"),
    ("varchar(40)", "'status ' || (i + {n}) % 10"),
    ("bigint", "i::bigint * 1000003 + {n}"),
)
_COLUMNS = tuple(_KINDS[n % len(_KINDS)] for n in range(99))
_DEFINITIONS = ", ".join(f"column_{n} {kind}" for n, (kind, _) in enumerate(_COLUMNS))
_VALUES = ", ".join(value.format(n=n) for n, (_, value) in enumerate(_COLUMNS))

DRAIN_WIDE = BacklogScenario(
    name="drain-wide",
    title="Wide rows",
    text="As drain, with rows of 100 columns: what a column costs, in the server, in the row codec "
    "and in the compressor.",
    rows=200_000,
    rows_least=50_000,
    workloads=(
        Workload(
            tables=(f"CREATE TABLE wide (id bigint PRIMARY KEY, {_DEFINITIONS})",),
            write=Statement(
                f"INSERT INTO wide SELECT i, {_VALUES} "
                "FROM generate_series({first}, {last}) AS i"
            ),
        ),
    ),
    peers=("ceiling", "pg_recvlogical"),
    write_us=40.0,
    weight=4.0,
)
