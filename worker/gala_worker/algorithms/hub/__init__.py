"""The star of A3C and IMPALA: actors send contributions to rank 0, which sends parameters back. See docs/protocol.md.

server = HubServer(plan, identity, loop=loop, contribution_bytes=size)   # on rank 0
client = HubClient(plan, identity, loop=loop, contribution_bytes=size)   # on every other rank
"""

from gala_worker.algorithms.hub.client import HubClient, Octets
from gala_worker.algorithms.hub.contributions import Contribution
from gala_worker.algorithms.hub.parameters import Parameters
from gala_worker.algorithms.hub.server import HubServer
from gala_worker.algorithms.hub.stats import ActorStats, ClientStats, ServerStats
from gala_worker.gossip.membership import Identity

__all__ = [
    "ActorStats",
    "ClientStats",
    "Contribution",
    "HubClient",
    "HubServer",
    "Identity",
    "Octets",
    "Parameters",
    "ServerStats",
]
