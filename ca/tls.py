"""TLS contexts that trust one bundle and prove one identity.

What every context of the project has in common: TLS 1.3 only, a certificate
required from the peer, RFC 5280 by the letter (``VERIFY_X509_STRICT``), no
host names (the SPIFFE ID is compared instead), no session tickets, so that
every connection is verified afresh.
"""

import _ssl
import os
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca.csr import PrivateKey, key_to_pem

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, openssl/x509_vfy.h


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAndChain:
    """A private key and the chain that belongs to it: leaf first, without the root."""

    key: PrivateKey
    chain: tuple[x509.Certificate, ...]

    def __repr__(self) -> str:
        return f"KeyAndChain(serial={self.chain[0].serial_number:x})"  # never the key


def strict_context(
    *, server_side: bool, roots: Sequence[x509.Certificate], alpn: str, own: KeyAndChain | None
) -> ssl.SSLContext:
    """Make a context that trusts exactly ``roots`` and presents ``own``, if it is given.

    Raises:
        ssl.SSLError: ``own`` does not fit together, or OpenSSL does not like it.
        ValueError: there are no roots; an empty bundle would trust nobody, and is always a mistake here.
    """
    if not roots:
        raise ValueError("the trust bundle is empty")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([alpn])
    if server_side:
        context.num_tickets = 0
    context.load_verify_locations(cadata=b"".join(root.public_bytes(Encoding.DER) for root in roots))
    if own is not None:
        load_key_and_chain(context, own)
    return context


def check_time_ourselves(context: ssl.SSLContext) -> None:
    """Let OpenSSL accept a chain whatever its dates: it knows no tolerance, and clocks differ.

    Whoever calls this compares the dates of the whole ``verified_chain`` with ``ca.svid.check_dates``.
    """
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)


def verified_chain(tls: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """Return the chain that OpenSSL verified, leaf first and root last, in DER; empty without a certificate.

    Python 3.13 made the call public; 3.10 to 3.12 have it on the object inside.

    Raises:
        ValueError: not connected.
    """
    if sys.version_info >= (3, 13):
        return tuple(tls.get_verified_chain())
    inside: Any = getattr(tls, "_sslobj", None)
    if inside is None:
        raise ValueError("not connected")
    return tuple(certificate.public_bytes(_ssl.ENCODING_DER) for certificate in inside.get_verified_chain() or ())


def load_key_and_chain(context: ssl.SSLContext, own: KeyAndChain) -> None:
    """Give ``context`` a key without the key ever being a file on a disk.

    The ``ssl`` module loads keys from paths only; a memfd is a path to memory
    of this process, gone when it is closed.
    """
    pem = key_to_pem(own.key) + b"".join(certificate.public_bytes(Encoding.PEM) for certificate in own.chain)
    fd = os.memfd_create("ringfence-key", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
