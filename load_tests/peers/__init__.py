"""The peers: other readers of the same slot, measured in the same rounds as the engine.

Adding one: a module with a `Peer`, and its name in `PEERS`.
"""

from load_tests.peers.peer import Peer, Task
from load_tests.peers.recvlogical import RECVLOGICAL

PEERS: dict[str, Peer] = {peer.name: peer for peer in (RECVLOGICAL,)}

__all__ = ["PEERS", "Peer", "Task"]
