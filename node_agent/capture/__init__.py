"""Receive a workload's connection and learn where it was going."""

from node_agent.capture.netns import open_home
from node_agent.capture.original_destination import original_destination, peer_address
from node_agent.capture.plumbing import PlumbingError, PlumbingJob, plumb
from node_agent.capture.pod_network import Listeners, PodNetwork, tune

__all__ = [
    "Listeners",
    "PlumbingError",
    "PlumbingJob",
    "PodNetwork",
    "open_home",
    "original_destination",
    "peer_address",
    "plumb",
    "tune",
]
