"""Texts that are a SPIFFE ID, and texts that are not (SPIFFE-ID section 2)."""

from dataclasses import dataclass
from typing import Final

from tests.certificates import TRUST_DOMAIN, WEB

_TD: Final = f"spiffe://{TRUST_DOMAIN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdVector:
    """One text; ``says`` is a part of the refusal's text."""

    name: str
    rule: str
    text: str
    accepted: bool
    says: str = ""


def _good(name: str, rule: str, text: str) -> IdVector:
    return IdVector(name=name, rule=rule, text=text, accepted=True)


def _bad(name: str, rule: str, text: str, says: str) -> IdVector:
    return IdVector(name=name, rule=rule, text=text, accepted=False, says=says)


def _of_length(size: int) -> str:
    return WEB + "/" + "a" * (size - len(WEB) - 1)


ID_VECTORS: Final = (
    _good("a workload", "id-form", WEB),
    _good("a trust domain", "id-form", _TD),
    _good("one segment", "id-form", f"{_TD}/a"),
    _bad("empty text", "id-form", "", "spiffe://"),
    _bad("one slash", "id-form", "spiffe:/td/a", "spiffe://"),
    _bad("another scheme", "id-form", f"https://{TRUST_DOMAIN}/ns/default/sa/web", "spiffe://"),
    _bad("leading space", "id-form", f" {WEB}", "spiffe://"),
    _bad("no trust domain", "id-trust-domain", "spiffe://", "trust domain is empty"),
    _bad("no trust domain but a path", "id-trust-domain", "spiffe:///a", "trust domain is empty"),
    _good("every character of a trust domain", "id-trust-domain", "spiffe://a.b-c_d.0/a"),
    _bad("a letter that is not ASCII in the trust domain", "id-trust-domain", "spiffe://td\u00e9/a", "may hold only"),
    _bad("an exclamation mark in the trust domain", "id-trust-domain", "spiffe://td!/a", "may hold only a-z"),
    _good("a trust domain of 255 bytes", "id-trust-domain-length", "spiffe://" + "d" * 255 + "/a"),
    _bad("a trust domain of 256 bytes", "id-trust-domain-length", "spiffe://" + "d" * 256 + "/a", "longer than 255"),
    _bad("user information", "id-no-userinfo", f"spiffe://root@{TRUST_DOMAIN}/web", "user information"),
    _bad("user and password", "id-no-userinfo", f"spiffe://root:pw@{TRUST_DOMAIN}/web", "user information"),
    _bad("port", "id-no-port", f"spiffe://{TRUST_DOMAIN}:1/web", "a port"),
    _bad("empty port", "id-no-port", f"spiffe://{TRUST_DOMAIN}:/web", "a port"),
    _bad("IPv6 address", "id-no-port", "spiffe://[::1]/web", "a port"),
    _bad("query", "id-no-query", f"{WEB}?admin", "a query"),
    _bad("empty query after the trust domain", "id-no-query", f"{_TD}?", "a query"),
    _bad("fragment", "id-no-fragment", f"{WEB}#admin", "a fragment"),
    _bad("percent-encoding", "id-no-percent-encoding", f"{_TD}/%41", "percent-encoding"),
    _bad("percent-encoding in the trust domain", "id-no-percent-encoding", "spiffe://%74d/a", "percent-encoding"),
    _good("every character of a segment", "id-segments", f"{_TD}/AZaz09/.a-b_c/-_"),
    _good("three dots", "id-segments", f"{_TD}/..."),
    _bad("space in a segment", "id-segments", f"{_TD}/a b", "may hold only letters"),
    _bad("line feed at the end", "id-segments", f"{_TD}/a\n", "may hold only letters"),
    _bad("NUL in a segment", "id-segments", f"{_TD}/a\x00", "may hold only letters"),
    _bad("a digit that is not ASCII", "id-segments", f"{_TD}/\u0661", "may hold only letters"),
    _bad("empty segment", "id-no-empty-segment", f"{_TD}//web", "empty segment"),
    _bad("dot segment", "id-no-dot-segment", f"{_TD}/./web", "relative segment"),
    _bad("two dots as a segment", "id-no-dot-segment", f"{_TD}/ns/../sa", "relative segment"),
    _bad("two dots at the end", "id-no-dot-segment", f"{_TD}/a/..", "relative segment"),
    _bad("trailing slash", "id-no-trailing-slash", f"{WEB}/", "ends with '/'"),
    _bad("trailing slash after the trust domain", "id-no-trailing-slash", f"{_TD}/", "ends with '/'"),
    _good("2048 bytes", "id-length", _of_length(2048)),
    _bad("2049 bytes", "id-length", _of_length(2049), "longer than 2048"),
    _bad("upper-case trust domain", "decided-lower-case", WEB.replace("cluster", "Cluster"), "may hold only a-z"),
    _bad("upper-case scheme", "decided-lower-case", WEB.replace("spiffe", "SPIFFE"), "lower case"),
)
