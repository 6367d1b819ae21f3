"""Which pods belong to the mesh: one rule for the CA and for the agents."""

from typing import Final

from ca.manifests.objects import Namespace, Pod

MESH_LABEL: Final = "ringfence.io/mesh"
MESH_VALUES: Final = ("enabled", "disabled")


def enrolled(namespace: Namespace | None, pod: Pod) -> bool:
    """Whether the pod is captured, gets an SVID and is reached through tunnels.

    The pod's label wins over its namespace's; without either it is not
    enrolled.  Pods on the node's own network never are: they share their
    address with the node, so there is nothing to capture by.
    """
    if pod.host_network:
        return False
    choice = pod.labels.get(MESH_LABEL) or (namespace.labels.get(MESH_LABEL) if namespace else None)
    return choice == "enabled"
