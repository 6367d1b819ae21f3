"""The name in the ClientHello of a tunnel that is to be a stream's own: which shared tunnel it belongs to.

Sans-I/O.  An agent with worker processes accepts connections in any of them, and
only one has the shared tunnel.  So whoever dials for ATTACH, and has been refused
by another one of them, says as the server name (RFC 6066 section 3)

    LABEL.attach.ringfence.internal        LABEL: 32 hexadecimal digits

A label is made of the shared tunnel's token, which is a secret of its two ends,
by a hash: who reads it on the wire knows no token.  It is a hint of where to
serve a connection and nothing else; nothing is trusted because of it.
"""

import hashlib
import re
from typing import Final

MOST_PEEKED_BYTES: Final = 4096
"""Of the first bytes of a connection; a ClientHello is shorter, and its server name is near the beginning."""

_SUFFIX: Final = ".attach.ringfence.internal"
_DOMAIN: Final = b"ringfence attach label\0"  # so that this is no hash of the token that anybody else makes
_DIGITS: Final = 32
_NAME: Final = re.compile(  # behind its length (RFC 6066 section 3)
    re.escape((_DIGITS + len(_SUFFIX)).to_bytes(2)) + b"([0-9a-f]{%d})" % _DIGITS + re.escape(_SUFFIX.encode())
)


def label_of(token: bytes) -> str:
    """The label of the shared tunnel that has ``token``."""
    return hashlib.sha256(_DOMAIN + token).hexdigest()[:_DIGITS]


def server_name(label: str) -> str:
    """The server name that says it."""
    return label + _SUFFIX


def find_label(first_bytes: bytes) -> str | None:
    """The label in the first bytes of a connection, if there is one.

    No parser: nobody has proved anything yet, and to be wrong is harmless, because ATTACH is judged as if there
    were no label.
    """
    found = _NAME.search(first_bytes)
    return None if found is None else found[1].decode()
