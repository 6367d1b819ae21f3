"""Receive a workload's connection and learn where it was going."""

from node_agent.capture.capture import Capture, CaptureJob, InPodCapture
from node_agent.capture.modes import Adopter, Chosen, choose
from node_agent.capture.netns import open_home
from node_agent.capture.network import Listeners, WorkloadNetwork
from node_agent.capture.original_destination import original_destination, peer_address
from node_agent.capture.plumbing import PlumbingError, PlumbingJob, plumb
from node_agent.capture.pod_network import PodNetwork
from node_agent.capture.sockets import tune

__all__ = [
    "Adopter",
    "Capture",
    "CaptureJob",
    "Chosen",
    "InPodCapture",
    "Listeners",
    "PlumbingError",
    "PlumbingJob",
    "PodNetwork",
    "WorkloadNetwork",
    "choose",
    "open_home",
    "original_destination",
    "peer_address",
    "plumb",
    "tune",
]
