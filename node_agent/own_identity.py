"""Builds who the agent is and whom it believes: the part of the composition root that is about certificates."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from ca.client import CaClient
from ca.tls import KeyAndChain
from node_agent.config import Config
from node_agent.errors import AgentError
from node_agent.identity import Identities, NodeCredentials, NodeKeyStore, proof_from
from node_agent.identity.identities import utc_now
from node_agent.identity.trust import TrustStore
from node_agent.identity.trust_file import TrustFile
from node_agent.identity.trust_watch import TrustWatch


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnIdentity:
    """Who we are, and whom we believe."""

    identities: Identities
    trust: TrustStore
    watch: TrustWatch
    own: Callable[[], KeyAndChain | None]  # the node's certificate of now


def build_identity(config: Config, rng: random.Random) -> OwnIdentity:
    """Build it from ``[ca]`` and what is on the disk; raises AgentError."""
    try:
        roots_pem = config.ca.bundle_file.read_bytes()
        ca = CaClient(
            addresses=[(each.host, each.port) for each in config.ca.address],
            roots_pem=roots_pem,
            trust_domain=config.agent.trust_domain,
        )
    except OSError as error:
        raise AgentError(
            f"[ca] bundle_file: cannot read {config.ca.bundle_file}: {error.strerror}; copy the CA's bundle.pem there"
        ) from error
    except ValueError as error:
        raise AgentError(
            f"[ca] bundle_file: {config.ca.bundle_file}: {error}; it must hold PEM certificates"
        ) from error
    trust = TrustStore(trust_domain=config.agent.trust_domain, roots=ca.roots)
    trust_file = TrustFile(directory=config.agent.state_dir, configured_pem=roots_pem)
    if trust_file.restore(trust):
        ca.replace_roots(trust.roots())
    node = NodeCredentials(
        node=config.agent.node,
        trust_domain=config.agent.trust_domain,
        ca=ca,
        key_store=NodeKeyStore(directory=config.ca.node_key_dir, passphrase_file=config.ca.node_key_passphrase_file),
        proof=proof_from(config.ca),
        utc_now=utc_now,
        rng=rng,
    )
    identities = Identities(
        ca=ca,
        node=node,
        identity_wait_s=config.proxy.identity_wait_s,
        rng=rng,
        trust=trust,
        utc_now=utc_now,
        share_tunnels=config.proxy.share_tunnels,
    )
    watch = TrustWatch(ca=ca, own=lambda: node.own, trust=trust, identities=identities, save=trust_file.save, rng=rng)
    return OwnIdentity(identities=identities, trust=trust, watch=watch, own=lambda: node.own)
