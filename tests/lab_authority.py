"""Certificates that the lab's own CA has signed, right or wrong.

What a CA that was taken over could hand out: its intermediate key is read from
the lab's tmpfs with the lab's passphrase, and signs whatever a test wants.
"""

from datetime import UTC, datetime

from cryptography import x509

from ca.authority import hierarchy
from ca.authority.config import AuthorityConfig
from ca.authority.keys import read_passphrase
from ca.authority.store import Store
from tests.certificates import Signer
from tests.mesh_builder import STATE_DIR


def lab_signer(ca: str = "ca") -> Signer:
    """The intermediate of one of the lab's CAs, as something that can sign every vector of ``tests.certificates``."""
    config = AuthorityConfig.load(STATE_DIR / ca / "ca.toml")
    store = Store.open(config.database)
    try:
        loaded = hierarchy.load(config, store, passphrase=read_passphrase(config.passphrase_file), at=datetime.now(UTC))
    finally:
        store.close()
    intermediate: x509.Certificate = loaded.issuer.certificate
    # Of several roots, in the middle of a rotation, the one that signed it.
    root = next(root for root in loaded.roots if root.subject == intermediate.issuer)
    return Signer(
        certificate=intermediate,
        key=loaded.issuer.key,
        trust_domain=config.trust_domain,
        signers=(intermediate, root),
    )
