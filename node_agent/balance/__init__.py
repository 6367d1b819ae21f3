"""Step 5: choose an endpoint of the service.

balancer   round-robin and least-latency, and who was picked
latency    peak-EWMA: how long an endpoint takes to connect to
"""

from node_agent.balance.balancer import Balancer, EndpointLoad, NoEndpoints, Pick

__all__ = ["Balancer", "EndpointLoad", "NoEndpoints", "Pick"]
