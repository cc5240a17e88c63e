"""A process that owns both servers, prints who they are as JSON, and waits. A script.

Tests end it in every way that a process can end, and look at what is left.
"""

import json
import signal
import sys
from contextlib import ExitStack

from engine.servers.servers import FAST_SETTINGS, EmbeddedPostgres, EmbeddedS3


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # As an engine that is draining.
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(settings=FAST_SETTINGS))
        s3 = stack.enter_context(EmbeddedS3())
        description = {
            "dsn": postgres.dsn,
            "s3_port": s3.port,
            "pids": [postgres.process_id, s3.process_id],
            "folders": [str(postgres.log.parent), str(s3.log.parent)],
        }
        print(json.dumps(description), flush=True)  # noqa: T201 - the protocol.
        sys.stdin.read()


if __name__ == "__main__":
    main()
