"""The peers: other readers of the same slot, measured in the same rounds as the engine.

Adding one: a module with a `Peer`, and its name in `PEERS`.
"""

from load_tests.peers.ceiling import CEILING
from load_tests.peers.debezium import DEBEZIUM
from load_tests.peers.peer import Peer, Task
from load_tests.peers.plain_python import PLAIN_PYTHON
from load_tests.peers.recvlogical import RECVLOGICAL
from load_tests.peers.rivet import RIVET

PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (CEILING, RECVLOGICAL, DEBEZIUM, RIVET, PLAIN_PYTHON)
}

__all__ = ["PEERS", "Peer", "Task"]
