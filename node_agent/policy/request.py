"""One connection, as its destination sees it."""

from dataclasses import dataclass

from ca.spiffe import SpiffeId
from node_agent.model import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is judged.

    ``source_identity`` is proven by TLS, None for plaintext.  Addresses are
    canonical text.  ``port`` is the application's.  ``destination_ip`` is None
    for the destination's first address of the source's IP version.
    """

    source_identity: SpiffeId | None
    source_ip: str
    destination: Workload
    port: int
    destination_ip: str | None = None

    def destination_address(self) -> str:
        """The address that was connected to, empty if the destination has none of that version."""
        if self.destination_ip is not None:
            return self.destination_ip
        is_ipv6 = ":" in self.source_ip
        return next((each for each in self.destination.addresses if (":" in each) == is_ipv6), "")
