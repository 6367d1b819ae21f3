"""The server name of a tunnel that is to be a stream's own, as docs/tunnel-protocol.md has it."""

import hashlib


def attach_name(token: bytes) -> str:
    """Which shared tunnel it belongs to: the one that said SHARE with ``token``."""
    return hashlib.sha256(b"ringfence attach label\0" + token).hexdigest()[:32] + ".attach.ringfence.internal"
