"""`python -m load_tests.synthetic_engine FILE ROWS TABLES`: the engine on a computed log.

Everything else is as `tailrace run --until-caught-up -c FILE` has it; what the file says of the
database is not used.
"""

import functools
import os
import sys
from pathlib import Path

from engine import app
from engine.cli.process import run_engine
from engine.config import load
from engine.sources.synthetic import SyntheticSource


def main(file: str, row_count: str, table_count: str) -> int:
    """Run until everything is durable."""
    source = SyntheticSource(row_count=int(row_count), table_count=int(table_count))
    engine = functools.partial(app.run, source=source)
    configuration = load(Path(file), os.environ).configuration
    return run_engine(configuration, until_caught_up=True, engine=engine)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
