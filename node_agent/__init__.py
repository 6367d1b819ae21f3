"""Ringfence's node agent: one process per node, in the data path of every enrolled workload.

The folders stand in the order in which a connection meets them:

1. ``capture/``    receive a workload's connection; where was it going?
2. ``registry/``   resolve: services, endpoints, workloads
3. ``policy/``     authorize
4. ``balance/``    choose an endpoint
5. ``identity/``   who we are: SVIDs, their rotation, TLS contexts
6. ``tunnel/``     mutual TLS to the peer agent, and the pool of tunnels
7. ``relay/``      move the bytes: the relay loop
8. ``telemetry/``  account: access record, metrics, readiness, admin

``proxy/outbound.py`` and ``proxy/inbound.py`` tell a connection's whole story;
``agent.py`` builds everything.  docs/architecture.md has the picture.
"""

__version__ = "0.1.0"
