"""Step 6 of the data path: who we are, and who the peer is.

rotation          when to renew: the core, sans-I/O
identities        SVIDs of the workloads on this node, kept fresh (slots: one of them)
node_credentials  the node's own certificate, with which they are asked for
node_proof        what buys that one: a join token, a service-account token, a document
key_store         where that one survives a restart
credentials       one SVID as a pair of TLS contexts
trust             whom we believe: roots of each trust domain, and what is revoked
trust_watch       how changes of that arrive from the CA, and are acknowledged
trust_file        where it survives a restart
expiry            whom to tell of certificates that could not be renewed
peers             who is at the other end, after a handshake
handshake         why a handshake failed
openssl           what the ssl module can not set
"""

from node_agent.identity.credentials import Credentials
from node_agent.identity.handshake import handshake_failure
from node_agent.identity.identities import Identities
from node_agent.identity.key_store import NodeKeyStore
from node_agent.identity.node_credentials import NodeCredentials
from node_agent.identity.node_proof import join_token_from, proof_from
from node_agent.identity.openssl import prefer_aes128
from node_agent.identity.peers import PeerCertificate, peer_identity

__all__ = [
    "Credentials",
    "Identities",
    "NodeCredentials",
    "NodeKeyStore",
    "PeerCertificate",
    "handshake_failure",
    "join_token_from",
    "peer_identity",
    "prefer_aes128",
    "proof_from",
]
