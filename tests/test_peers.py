"""The peers of the load tests: each reads a real slot to its end, whole, and leaves nothing behind.

Those that `make setup-peers` installs are tried by `make test-peers`; there, one that is missing
is a failure.
"""

import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from databases import Database

from engine.demo.servers import EmbeddedPostgres
from load_tests.peers import PEERS, Peer, Task, debezium, rivet
from load_tests.peers.installed import HINT, release

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

_ROWS = 2_000
_PUBLICATION = "peers"
