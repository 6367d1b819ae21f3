"""A worker's copy of the node's identities, fed by the parent; keys are in memory only.

The same questions as ``Identities`` answers, ``current`` and ``wait_for``; the
parent does everything that talks to the CA, and the waiting.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from ca.client import load_chain
from ca.errors import CaProtocolError
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity import Credentials
from node_agent.workers.messages import SvidIssued

Ask = Callable[[SpiffeId], Awaitable[ConnectionFailure | None]]


class ReceivedIdentities:
    """The SVIDs that the parent has sent.

    ``ask`` lets the parent wait for an identity, as long as ``identity_wait_s``
    says there, and returns why there is none; None when it has been sent.
    """

    def __init__(self, *, ask: Ask, utc_now: Callable[[], datetime]) -> None:
        self._ask = ask
        self._utc_now = utc_now
        self._held: dict[SpiffeId, Credentials] = {}

    def put(self, credentials: Credentials) -> None:
        """Use these from now on; connections that were made with others go on with those."""
        self._held[credentials.identity] = credentials

    def drop(self, identity: SpiffeId) -> None:
        """Forget an identity."""
        self._held.pop(identity, None)

    def current(self, identity: SpiffeId) -> Credentials | None:
        """Return the SVID of an identity, or None if it has none that is valid now."""
        credentials = self._held.get(identity)
        return None if credentials is None or self._utc_now() >= credentials.not_after else credentials

    async def wait_for(self, identity: SpiffeId) -> Credentials:
        """Return the SVID of an identity, waiting for it if need be.

        Raises:
            ConnectionFailure: IDENTITY_UNAVAILABLE or IDENTITY_REVOKED, with what the CA said.
        """
        credentials = self.current(identity)
        if credentials is None:
            failure = await self._ask(identity)
            credentials = self.current(identity)
            if credentials is None:
                raise failure or ConnectionFailure(
                    CloseReason.IDENTITY_UNAVAILABLE, f"{identity}: its SVID has just expired"
                )
        return credentials


def svid_message(credentials: Credentials) -> SvidIssued:
    """What the parent sends of an identity."""
    own = credentials.own
    return SvidIssued(
        identity=credentials.identity,
        key_der=own.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        chain_der=tuple(certificate.public_bytes(Encoding.DER) for certificate in own.chain),
    )


def key_and_chain(message: SvidIssued) -> KeyAndChain:
    """Read the key and the chain of a message.

    Raises:
        CaProtocolError: they are not what the parent writes.
    """
    try:
        key = load_der_private_key(message.key_der, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CaProtocolError(f"the key of {message.identity} can not be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CaProtocolError(f"the key of {message.identity} is of another kind than P-256")
    return KeyAndChain(key=key, chain=load_chain(message.chain_der))
