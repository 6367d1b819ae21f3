"""Take out what looks like a secret; pure.

The last line of defence: nothing that is collected should have one.  Rather too
much than too little, but never what a key names: ``join_token_file = /path`` stays.
"""

import re
from typing import Final

REMOVED: Final = "(removed)"
_PATTERNS: Final = (
    # A private key in PEM, also as text inside JSON, also when its end is missing.
    (re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z0-9 ]*-----|\Z)"), REMOVED),
    # User and password in a URL.
    (re.compile(r"\b([a-z][a-z0-9+.-]{0,30}://)[^/\s\"'@]+@", re.IGNORECASE), rf"\1{REMOVED}@"),
    # A JSON Web Token.
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), REMOVED),
    # `Authorization: Bearer x`, `authorization=Basic x`, "authorization": "x"
    (re.compile(r"(\bauthorization\"?\s*[:=]\s*\"?)(?:(?:bearer|basic)\s+)?[^\s\",]+", re.IGNORECASE), rf"\1{REMOVED}"),
    (re.compile(r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{REMOVED}"),
    # password=x, "api_key": "x", join_token: x
    (
        re.compile(
            r"([\w-]*(?:password|passwd|passphrase|secret|token|api[-_]?key)\"?\s*[:=]\s*\"?)(?!\s|null|none|true|false)[^\s\",]+",
            re.IGNORECASE,
        ),
        rf"\1{REMOVED}",
    ),
)


def redacted(text: str) -> str:
    """``text`` without what looks like a key, a password or a token."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
