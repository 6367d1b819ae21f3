"""How many calls ended how, for the metrics."""

from collections import Counter
from typing import Final

from node_agent.workload_api.grpc_status import GrpcStatus

METHODS: Final = ("FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID")


class Statistics:
    """Counts; labels are of closed sets, whatever callers send."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, ...]] = Counter()

    def count(self, method: str, status: GrpcStatus) -> None:
        """One call has ended."""
        self.calls[method if method in METHODS else "other", status.name.lower()] += 1
