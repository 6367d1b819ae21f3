"""Which fault, if any, a connection gets: one draw a connection.  Sans-I/O."""

from collections.abc import Sequence

from ca.manifests.traffic import Fault


def draw(faults: Sequence[Fault], source: str, drawn: float) -> Fault | None:
    """The fault that ``drawn``, of [0, 1), means for a connection of the identity ``source``.

    The entries that name the source, or nobody, share the hundred percent in
    their order: a connection gets one of them or none.
    """
    left = drawn * 100.0
    for fault in faults:
        if fault.sources and source not in fault.sources:
            continue
        if left < fault.percent:
            return fault
        left -= fault.percent
    return None
