"""Ask a bundle endpoint once: HTTPS, by either profile, within one deadline.

``https_web``: the endpoint proves a host name to the machine's own list of
certificate authorities, as a web site does.

``https_spiffe``: the endpoint proves a SPIFFE ID to the bundle of that ID's
trust domain; its host name proves nothing and is not looked at.

A redirect is followed a few times at most, and only to where the very same
proof is given again (SPIFFE Federation 5.2).  Nothing that comes back is quoted
in an error: it is the other side's text, and errors go to logs and terminals.
"""

import ssl
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from urllib.parse import urljoin

import h11
import trio
from cryptography import x509

from ca.authority.federation.relation import EndpointUrl, Profile, Relation, RelationError
from ca.bundle import MAX_BUNDLE_BYTES
from ca.failures import why
from ca.http_client import Answer, TooLong, exchange
from ca.svid import SvidError, check_dates, load_certificate, verify_chain
from ca.tls import check_time_ourselves, strict_context, verified_chain

_DEADLINE_S: Final = 20.0  # all redirects together
_MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = (301, 302, 303, 307, 308)  # RFC 9110 15.4


class FetchError(Exception):
    """There is no document; the text says why, for the operator."""


async def fetch(relation: Relation, *, roots: Sequence[x509.Certificate], at: datetime) -> bytes:
    """Return the document that the endpoint serves.

    Args:
        relation: where, and what has to be proved.
        roots: of the trust domain of ``relation.endpoint_id``; not used for ``https_web``.
        at: now, aware UTC.

    Raises:
        FetchError: there is no answer to go by.
    """
    url = relation.url
    try:
        with trio.fail_after(_DEADLINE_S):
            for _ in range(1 + _MAX_REDIRECTS):
                answer = await _ask(url, relation, roots, at)
                if answer.status == 200:
                    return answer.body
                if answer.status not in _REDIRECTS:
                    raise FetchError(f"{url} answered with status {answer.status}")
                url = _redirected(url, answer)
    except trio.TooSlowError:
        raise FetchError(f"{url} did not answer within {_DEADLINE_S:g} s") from None
    raise FetchError(f"{relation.url} redirects more than {_MAX_REDIRECTS} times")


async def _ask(url: EndpointUrl, relation: Relation, roots: Sequence[x509.Certificate], at: datetime) -> Answer:
    request = h11.Request(
        method="GET",
        target=url.target,
        headers=[
            ("Host", str(url).removeprefix("https://").split("/", 1)[0].split("?", 1)[0]),
            ("Accept", "application/json"),
            ("User-Agent", "ringfence"),
            ("Connection", "close"),
        ],
    )
    try:
        # In a thread: the machine's list of authorities is a file of some hundred certificates.
        context = await trio.to_thread.run_sync(_context, relation, roots)
        transport = await trio.open_tcp_stream(url.host, url.port)
        # The name is what a proxy in front of the endpoint routes by; only https_web compares it.
        stream = trio.SSLStream(transport, context, server_hostname=url.host, https_compatible=True)
        try:
            await stream.do_handshake()
            if relation.profile is Profile.HTTPS_SPIFFE:
                _require_endpoint(stream, relation, at)
            return await exchange(stream, request, max_body_bytes=MAX_BUNDLE_BYTES)
        finally:
            await trio.aclose_forcefully(stream)
    except SvidError as exc:
        raise FetchError(f"{url} has not proved to be {relation.endpoint_id}: {exc}") from None
    except (OSError, trio.BrokenResourceError) as exc:
        raise FetchError(f"{url} can not be asked: {why(exc)}") from None
    except h11.RemoteProtocolError:
        raise FetchError(f"{url} does not speak HTTP/1.1 (RFC 9112)") from None
    except TooLong:
        raise FetchError(f"{url} answered with more than {MAX_BUNDLE_BYTES} bytes") from None


def _context(relation: Relation, roots: Sequence[x509.Certificate]) -> ssl.SSLContext:
    if relation.profile is Profile.HTTPS_WEB:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context
    assert relation.endpoint_id is not None
    if not roots:
        raise FetchError(
            f"there is no bundle of {relation.endpoint_id.trust_domain!r} to judge its endpoint by: give one with "
            "--bundle, or federate with that trust domain first"
        )
    context = strict_context(server_side=False, roots=roots, alpn="http/1.1", own=None)
    # 5.2: endpoints "MUST adhere to the Mozilla intermediate compatibility requirements", which begin at TLS 1.2.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    check_time_ourselves(context)
    return context


def _require_endpoint(stream: trio.SSLStream[trio.SocketStream], relation: Relation, at: datetime) -> None:
    """5.2.2.4: "it MUST be validated that the server certificate is a valid X509-SVID for the bundle endpoint SPIFFE
    ID that was provided"; raises SvidError."""
    assert relation.endpoint_id is not None
    tls = getattr(stream, "_ssl_object")  # noqa: B009 - trio hands out everything but the chain
    chain = [load_certificate(der) for der in verified_chain(tls)]
    identity = verify_chain(chain, trust_domain=relation.endpoint_id.trust_domain)
    for certificate in chain:
        check_dates(certificate, at=at)
    if identity != relation.endpoint_id:
        raise SvidError(f"it is {identity}", "SPIFFE Federation 5.2.2.4")


def _redirected(url: EndpointUrl, answer: Answer) -> EndpointUrl:
    location = answer.headers.get("location", "")
    try:
        return EndpointUrl.parse(urljoin(str(url), location))
    except (RelationError, ValueError):
        raise FetchError(f"{url} redirects to somewhere that can not be a bundle endpoint") from None
