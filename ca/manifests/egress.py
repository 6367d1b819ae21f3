"""Through which nodes connections to places outside leave the cluster.

Said by an annotation of the place (ServiceEntry, Service of type ExternalName),
or of a Namespace for all that are declared in it.  The pods that make those
connections, the nodes' egress, carry a label; they serve the declarations of
their own namespace, and those of every namespace if their Namespace has the
label too.
"""

from collections.abc import Mapping
from typing import Final

from ca.manifests.fields import Fields, shown

EGRESS_NODE_ANNOTATION: Final = "ringfence.io/egress-node"
EGRESS_LABEL: Final = "ringfence.io/egress"
EGRESS_VALUES: Final = ("true", "false")
DIRECTLY: Final = "None"
"""As in ``clusterIP: None``: no node is called so, and an empty text (a template that went wrong) is not that."""

_MAX_NODES: Final = 16


def egress_nodes(metadata: Fields) -> tuple[str, ...] | None:
    """The nodes of the annotation, none for directly out; None where nothing is said.  Raises FieldError."""
    annotations = metadata.fields("annotations")
    if not annotations.has(EGRESS_NODE_ANNOTATION):
        return None
    text = annotations.text(EGRESS_NODE_ANNOTATION)
    if text == DIRECTLY:
        return ()
    names = []
    for each in text.split(","):
        try:
            names.append(Fields({"name": each.strip()}).name("name"))
        except ValueError:
            raise annotations.error(
                EGRESS_NODE_ANNOTATION,
                f"must be the name of a node, or several with commas between them, or {DIRECTLY}, not {shown(text)}",
            ) from None
    if len(names) > _MAX_NODES:
        raise annotations.error(EGRESS_NODE_ANNOTATION, f"must name at most {_MAX_NODES} nodes, not {len(names)}")
    return tuple(dict.fromkeys(names))


def is_egress(labels: Mapping[str, str]) -> bool:
    """Whether a pod, or a namespace of such pods, is labelled as egress."""
    return labels.get(EGRESS_LABEL) == "true"
