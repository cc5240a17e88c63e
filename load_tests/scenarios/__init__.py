"""All scenarios, in order of value: where time is short, the first ones are measured.

Adding one: a module with a `Scenario`, and its name here. One that may be made smaller takes all
the time that is left, so the large ones come last.
"""

from load_tests.scenario import Scenario
from load_tests.scenarios.burst import BURST
from load_tests.scenarios.drain import DRAIN
from load_tests.scenarios.drain_small import DRAIN_SMALL
from load_tests.scenarios.drain_wide import DRAIN_WIDE
from load_tests.scenarios.fold import FOLD
from load_tests.scenarios.idle import IDLE
from load_tests.scenarios.large_transaction import LARGE_TRANSACTION
from load_tests.scenarios.many_tables import MANY_TABLES
from load_tests.scenarios.many_tables_steady import MANY_TABLES_STEADY
from load_tests.scenarios.s3_slow import S3_SLOW
from load_tests.scenarios.s3_stall import S3_STALL
from load_tests.scenarios.single_row_transactions import SINGLE_ROW_TRANSACTIONS
from load_tests.scenarios.snapshot import SNAPSHOT
from load_tests.scenarios.snapshot_beside import SNAPSHOT_BESIDE
from load_tests.scenarios.soak import SOAK
from load_tests.scenarios.steady import STEADY
from load_tests.scenarios.synthetic import SYNTHETIC
from load_tests.scenarios.updates_full_identity import UPDATES_FULL_IDENTITY

SCENARIOS: tuple[Scenario, ...] = (
    DRAIN,
    SINGLE_ROW_TRANSACTIONS,
    MANY_TABLES,
    STEADY,
    SNAPSHOT,
    S3_STALL,
    SYNTHETIC,
    FOLD,
    MANY_TABLES_STEADY,
    SNAPSHOT_BESIDE,
    IDLE,
    DRAIN_SMALL,
    DRAIN_WIDE,
    UPDATES_FULL_IDENTITY,
    BURST,
    S3_SLOW,
    SOAK,
    LARGE_TRANSACTION,
)
