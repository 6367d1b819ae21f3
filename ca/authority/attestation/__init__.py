"""Is that really the node it says it is?

Each way to prove it is a module, and each judgement in it is a function that
returns ``Attested`` or raises ``Refusal``:

    join_token          a one-time token, bound to a node name by the operator
    node_certificate    the certificate that an earlier attestation bought
    kubernetes          a projected service-account token of the agent's pod (token_review: the rules)
    instance_document   a document of the machine that its provider signed

The first two need nothing but the authority's own store.  The others are
plugins (``attested.Plugin``), and ``plugins`` runs them: bounded, and beside
the one thread that signs.  docs/attestation.md is for operators and for those
who write a plugin.
"""

from ca.authority.attestation.attested import Attested, Claim, Plugin
from ca.authority.attestation.join_token import JOIN_TOKEN, TOKEN_RANDOM_BYTES, by_token, format_token, token_hash
from ca.authority.attestation.node_certificate import by_certificate

__all__ = [
    "JOIN_TOKEN",
    "TOKEN_RANDOM_BYTES",
    "Attested",
    "Claim",
    "Plugin",
    "by_certificate",
    "by_token",
    "format_token",
    "token_hash",
]
