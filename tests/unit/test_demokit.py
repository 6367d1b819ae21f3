"""The demo can fail: what it looks at is told apart, and one fact that does not hold is its exit code."""

import io
import ssl

import pytest
import trustme

from demokit.screen import Screen
from demokit.wire import TLS_1_3, server_hello


def server_bytes(version: ssl.TLSVersion) -> bytes:
    """What a TLS server says first."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("demo.test").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.maximum_version = version
    to_server, to_client, unread = ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO()
    for tls in (client.wrap_bio(unread, to_server), server.wrap_bio(to_server, to_client, server_side=True)):
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
    return to_client.read()


def test_tls_1_3_is_told_from_tls_1_2() -> None:
    assert server_hello(server_bytes(ssl.TLSVersion.TLSv1_3)).version == TLS_1_3
    assert server_hello(server_bytes(ssl.TLSVersion.TLSv1_2)).version == 0x0303


def test_what_does_not_hold_is_named_at_the_end() -> None:
    printed = io.StringIO()
    screen = Screen(printed, colour=False)
    screen.proof(1, "Arithmetic", "Two and two.")
    screen.check(True, "two and two are four")
    screen.check(False, "two and two are five", "they are 4")
    screen.summary(seconds=1.0)

    assert (screen.held, screen.broken) == (1, ["1. Arithmetic - two and two are five: they are 4"])
    assert "1 of 2 facts did NOT hold" in printed.getvalue()
    assert "facts held" not in printed.getvalue()
