"""The peers: other readers, measured in the same rounds as the engine.

`PEERS` read the same slot, `TABLE_PEERS` the tables themselves. Adding one: a module with a `Peer`,
and its name in one of them.
"""

from load_tests.peers.adbc import ADBC
from load_tests.peers.ceiling import CEILING
from load_tests.peers.copies import COPY, COPY_TWO, PG_DUMP
from load_tests.peers.debezium import DEBEZIUM
from load_tests.peers.peer import Peer, Task
from load_tests.peers.plain_python import PLAIN_PYTHON
from load_tests.peers.recvlogical import RECVLOGICAL
from load_tests.peers.rivet import RIVET, RIVET_TABLES

PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (CEILING, RECVLOGICAL, DEBEZIUM, RIVET, PLAIN_PYTHON)
}

TABLE_PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (COPY, COPY_TWO, PG_DUMP, ADBC, RIVET_TABLES)
}

__all__ = ["PEERS", "TABLE_PEERS", "Peer", "Task"]
