"""What an attestation is: the claim of an agent, and the proof that came of it.

Sans-I/O.  ``Claim`` is what an agent that has no certificate yet says of
itself.  ``Attested`` is what a method that believes it returns.  A method that
does not believe it raises ``Refusal``, and names the rule.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ca.authority.errors import Refusal
from ca.authority.records import Instance
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId, SpiffeIdError


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An agent says that it is the one of ``node``, and here is why to believe it.

    ``evidence`` is secret: whoever holds it may be able to pose as the node.
    """

    node: str
    evidence: bytes

    def __repr__(self) -> str:
        return f"Claim(node={self.node!r})"  # never the evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """A node that proved itself.

    ``detail`` says in the log what vouched for it: a pod, a machine; never a secret.
    ``token_hash`` is the join token, ``instance`` the machine, that has to be
    used up in the same transaction that journals the certificate; until then
    nothing has been granted.
    """

    identity: SpiffeId
    node: str
    method: str
    detail: str = ""
    token_hash: bytes | None = None
    instance: Instance | None = None


class Plugin(Protocol):
    """One way in which a node proves which node it is; docs/attestation.md says how to write one."""

    @property
    def name(self) -> str:
        """What ``Attest.plugin`` and ``[attestation] plugins`` call it; goes into the journal."""

    async def attest(self, claim: Claim, *, at: datetime) -> Attested:
        """Judge one claim.

        Runs in trio's thread and may wait for the network; the caller bounds
        how long, and how many do so at once.

        Raises:
            Refusal: not believed (``attestation_refused``, naming the rule), or the plugin can not tell at
                the moment (``unavailable``).
        """


def node_identity(trust_domain: str, node: str) -> SpiffeId:
    """The identity of the agent on ``node``.  Raises Refusal: the name can not be part of an ID."""
    try:
        return SpiffeId.node(trust_domain, node)
    except SpiffeIdError as exc:
        raise Refusal(RefusalCode.BAD_REQUEST, f"the node name is not usable: {exc}") from exc


def refused(text: str) -> Refusal:
    """The evidence does not prove what is claimed."""
    return Refusal(RefusalCode.ATTESTATION_REFUSED, text)
