"""Step 5: choose an endpoint of the service.

balancer    who is picked; pick: what becomes of it; pools: what is kept between picks
tiers       who may be picked: readiness, subset, health, locality, panic
choosers    one class a policy; maglev: the table of the consistent hash
endpoints   what is known of each endpoint
health      when active checks are due, and what their results mean; health_shares: by one worker for all
outlier     ejecting those that fail, and letting them back in
recovery    a zone or node that was lost and is back
loads       what operators are shown of an endpoint
silence     those that accept connections and do not answer
latency     peak-EWMA: how long an endpoint takes to connect to
limits      who is let in at all, and how fast; bucket: tokens that come every second
faults      which connections are disturbed on purpose
"""

from node_agent.balance.balancer import Balancer, Client
from node_agent.balance.loads import EndpointLoad
from node_agent.balance.no_endpoints import NoEndpoints
from node_agent.balance.pick import Pick
from node_agent.balance.tiers import Near

__all__ = ["Balancer", "Client", "EndpointLoad", "Near", "NoEndpoints", "Pick"]
