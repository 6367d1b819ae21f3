"""A node proves itself by the certificate that an earlier attestation bought.  Sans-I/O."""

from ca.authority.attestation.attested import Attested
from ca.authority.errors import Refusal
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId


def by_certificate(*, trust_domain: str, presented: SpiffeId | None) -> Attested:
    """Judge the identity that TLS proved, or None where no certificate was presented.

    Raises:
        Refusal: ``unauthenticated``.
    """
    if presented is None:
        raise Refusal(RefusalCode.UNAUTHENTICATED, "a node certificate is needed and none was presented")
    node = presented.node_name
    if presented.trust_domain != trust_domain or node is None:
        raise Refusal(
            RefusalCode.UNAUTHENTICATED,
            f"the certificate of {presented} is not a node certificate of {trust_domain}: only agents may ask",
        )
    return Attested(identity=presented, node=node, method="node_certificate")
