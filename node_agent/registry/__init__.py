"""Resolve: which workload has this address, which service is this, who serves it.

changes      what goes in (Update) and what comes out (Changes)
store        Registry, the pure store that the data path asks
workloads    pods as workloads, by name, address and node
services     services and their endpoints
external     services outside of the mesh, by their addresses
peer_authentication   which mTLS mode is in force for a workload
authorization_policies  what the policy engine is told, and what of it can not be judged
claims       who holds an address that several claim
networks     is this address a pod's at all
file_source  the edge: a watched directory of manifests
dns_names    when to ask DNS for which name, and what is in force of its answers
dns_source   the edge: names outside, resolved (dns_lookup: the door to dnspython)
inotify      the edge's door to the kernel
"""

from node_agent.registry.changes import Changes, Update
from node_agent.registry.store import Registry

__all__ = ["Changes", "Registry", "Update"]
