"""The name of a shared tunnel in a ClientHello: it is said, found, tells no token, and proves nothing."""

import hashlib
import os
import ssl

import pytest

from node_agent.tunnel import label_of
from node_agent.tunnel.label import find_label, server_name
from tests.certificates import make_root
from tests.handshakes import context, shake_hands
from tests.shared_name import attach_name

_TOKEN = bytes(range(16))


def test_a_label_is_a_truncated_hash_of_the_token_and_not_the_plain_one() -> None:
    assert server_name(label_of(_TOKEN)) == attach_name(_TOKEN)
    assert server_name(label_of(_TOKEN)) == "LABEL.attach.ringfence.internal".replace("LABEL", label_of(_TOKEN))
    assert len(label_of(_TOKEN)) == 32
    assert _TOKEN.hex() not in label_of(_TOKEN)
    assert not hashlib.sha256(_TOKEN).hexdigest().startswith(label_of(_TOKEN))
    assert label_of(os.urandom(16)) != label_of(os.urandom(16))


def _hello(name: str | None) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = context(None, make_root().certificate, server_side=False)
    with pytest.raises(ssl.SSLWantReadError):
        made.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def test_it_is_found_in_what_openssl_says_first() -> None:
    label = label_of(_TOKEN)
    assert find_label(_hello(server_name(label))) == label
    assert find_label(_hello(None)) is None


@pytest.mark.parametrize(
    "name",
    ["example.org", "attach.ringfence.internal", "0" * 31 + ".attach.ringfence.internal", "A" * 32 + ".example.org"],
)
def test_other_names_are_none(name: str) -> None:
    assert find_label(_hello(name)) is None


def test_a_hello_that_has_come_in_part_has_none() -> None:
    hello = _hello(server_name(label_of(_TOKEN)))
    end = hello.index(b".internal") + len(".internal")
    assert find_label(hello[: end - 1]) is None
    assert find_label(hello[:end]) == label_of(_TOKEN)


def test_a_name_that_is_said_changes_nothing_in_who_is_believed() -> None:
    """A certificate names a SPIFFE ID and no host; with a name it has to be as good, and as bad, as without."""
    signer, stranger = make_root(), make_root()
    leaf, wrong = (each.leaf("spiffe://cluster.local/ns/default/sa/web") for each in (signer, stranger))
    root = signer.certificate
    for own, is_believed in ((leaf, True), (wrong, False)):
        client_context = context(leaf.own, root, server_side=False)
        assert not client_context.check_hostname
        named = _Named(client_context, server_name(label_of(_TOKEN)))
        client, server = shake_hands(named, context(own.own, root, server_side=True))  # type: ignore[arg-type]
        assert client.finished is is_believed
        assert server.finished is is_believed


class _Named:
    """A context whose connections say a server name."""

    def __init__(self, made: ssl.SSLContext, name: str) -> None:
        self._made = made
        self._name = name

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *, server_side: bool) -> ssl.SSLObject:
        return self._made.wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=self._name)
