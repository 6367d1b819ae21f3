"""Why a handshake failed, as a close reason and in words.

By number and by name of the error, never by its text: ``verify_code`` is
X509_V_ERR_* (openssl/x509_vfy.h), ``reason`` is SSL_R_* without its prefix
(openssl/sslerr.h).  An alert is what the peer thinks of us; every other reason
is what we think of the peer.
"""

import ssl
from typing import Final

from node_agent.errors import CloseReason, ConnectionFailure, HandshakeBrokenOff

# What is wrong with a certificate, or is not allowed in a chain, rather than
# a chain that leads nowhere.
_INVALID_CODES: Final = frozenset(
    {
        25,  # PATH_LENGTH_EXCEEDED
        26,  # INVALID_PURPOSE
        32,  # KEYUSAGE_NO_CERTSIGN
        34,  # UNHANDLED_CRITICAL_EXTENSION
        39,  # KEYUSAGE_NO_DIGITAL_SIGNATURE
        41,  # INVALID_EXTENSION
        47,  # PERMITTED_VIOLATION
        48,  # EXCLUDED_VIOLATION
        49,  # SUBTREE_MINMAX
        51,  # UNSUPPORTED_CONSTRAINT_TYPE
        52,  # UNSUPPORTED_CONSTRAINT_SYNTAX
        53,  # UNSUPPORTED_NAME_SYNTAX
        66,  # EE_KEY_TOO_SMALL
        67,  # CA_KEY_TOO_SMALL
        68,  # CA_MD_TOO_WEAK
        *range(79, 95),  # INVALID_CA and the rules of X509_V_FLAG_X509_STRICT
    }
)
_DATE_CODES: Final = frozenset({9, 10})  # CERT_NOT_YET_VALID, CERT_HAS_EXPIRED

_REASONS: Final = {
    # We about the peer.
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": (CloseReason.CERTIFICATE_MISSING, "the peer has no certificate"),
    "WRONG_VERSION_NUMBER": (CloseReason.NOT_TLS, "the peer sent something else than TLS"),
    "HTTP_REQUEST": (CloseReason.NOT_TLS, "the peer sent a plaintext HTTP request"),
    "HTTPS_PROXY_REQUEST": (CloseReason.NOT_TLS, "the peer sent a plaintext HTTP request"),
    "UNKNOWN_PROTOCOL": (CloseReason.NOT_TLS, "the peer sent something else than TLS"),
    "BAD_PACKET_LENGTH": (CloseReason.NOT_TLS, "the peer sent something else than TLS"),
    "RECORD_LENGTH_MISMATCH": (CloseReason.NOT_TLS, "the peer sent something else than TLS"),
    "PACKET_LENGTH_TOO_LONG": (CloseReason.NOT_TLS, "the peer sent something else than TLS"),
    "BAD_RECORD_TYPE": (CloseReason.NOT_TLS, "the peer sent something else than TLS"),
    "UNSUPPORTED_PROTOCOL": (CloseReason.TLS_VERSION, "the peer offers no TLS 1.3"),
    "VERSION_TOO_LOW": (CloseReason.TLS_VERSION, "the peer offers no TLS 1.3"),
    "WRONG_SSL_VERSION": (CloseReason.TLS_VERSION, "the peer offers no TLS 1.3"),
    "BAD_PROTOCOL_VERSION_NUMBER": (CloseReason.TLS_VERSION, "the peer offers no TLS 1.3"),
    "BAD_LEGACY_VERSION": (CloseReason.TLS_VERSION, "the peer offers no TLS 1.3"),
    # The peer about us.
    "TLSV1_ALERT_PROTOCOL_VERSION": (CloseReason.TLS_VERSION, "the peer refuses our TLS version"),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (CloseReason.CERTIFICATE_MISSING, "the peer wants a certificate of ours"),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (CloseReason.CERTIFICATE_EXPIRED, "the peer says that ours is expired"),
    "TLSV1_ALERT_UNKNOWN_CA": (CloseReason.CERTIFICATE_UNTRUSTED, "the peer does not trust the CA of ours"),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": (CloseReason.CERTIFICATE_UNTRUSTED, "the peer says that ours is revoked"),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": (CloseReason.CERTIFICATE_UNTRUSTED, "the peer does not accept ours"),
    "TLSV1_ALERT_ACCESS_DENIED": (CloseReason.CERTIFICATE_UNTRUSTED, "the peer does not accept ours"),
    "SSLV3_ALERT_BAD_CERTIFICATE": (CloseReason.CERTIFICATE_INVALID, "the peer says that ours is invalid"),
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": (CloseReason.CERTIFICATE_INVALID, "the peer says that ours is invalid"),
}


def handshake_failure(error: OSError) -> ConnectionFailure:
    """Turn what ``ssl`` or the socket raised during a handshake into a connection failure.

    In TLS 1.3 a client finishes before the server has judged its certificate,
    so the alerts above may also arrive at a client's first read.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectionFailure(_verification_reason(error.verify_code), f"the peer's: {error.verify_message}")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
        return HandshakeBrokenOff("the peer closed the connection")
    if isinstance(error, ssl.SSLError) and error.reason == "UNEXPECTED_EOF_WHILE_READING":
        return HandshakeBrokenOff("the peer closed the connection (UNEXPECTED_EOF_WHILE_READING)")
    if isinstance(error, ssl.SSLError):
        reason, text = _REASONS.get(error.reason or "", (CloseReason.HANDSHAKE_FAILED, "TLS"))
        return ConnectionFailure(reason, f"{text} ({error.reason})" if error.reason else text)
    return HandshakeBrokenOff(error.strerror or type(error).__name__)


def _verification_reason(code: int) -> CloseReason:
    if code in _DATE_CODES:
        return CloseReason.CERTIFICATE_EXPIRED
    return CloseReason.CERTIFICATE_INVALID if code in _INVALID_CODES else CloseReason.CERTIFICATE_UNTRUSTED
