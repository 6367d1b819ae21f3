"""A server that runs while somebody rotates its keys: it follows, and whoever is connected hardly notices."""

import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509

from ca.authority import profile
from ca.authority.root_succession import RootSuccession
from ca.authority.store import Store
from ca.authority.succession import Succession
from ca.client import load_chain
from ca.errors import CaRefused, CaUnreachable
from ca.messages import GetBundle, Issued, RefusalCode, Refused, SignWorkloads, WatchTrust, parse_reply
from ca.tls import KeyAndChain
from ca.trust import Trust
from ca.wire import FrameDecoder, encode_frame
from tests.authority_builder import (
    PASSPHRASE,
    Authority,
    attested,
    connected,
    make_authority,
    serving,
    sign,
    sign_request,
    workload,
)
from tests.authority_process import running


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = make_authority(tmp_path)
    made.pod("web-1", node="node-1", account="web")
    return made


@contextmanager
def succession(authority: Authority) -> Iterator[Succession]:
    """What another process does: ``ringfence ca rotate``."""
    with closing(Store.open(authority.config.database)) as store:
        yield Succession(config=authority.config, store=store, passphrase=PASSPHRASE)


def rotate_intermediate(authority: Authority) -> str:
    with succession(authority) as found:
        key_id = found.prepare_intermediate(at=datetime.now(UTC))
        found.activate_intermediate(key_id, at=datetime.now(UTC))
    return key_id


async def why_not(call: Callable[[], Awaitable[object]]) -> str:
    """How a call fails; empty when it does not.  Not too often: the server limits what one address may ask."""
    await trio.sleep(0.1)
    try:
        await call()
    except (CaUnreachable, CaRefused) as error:
        return str(error)
    return ""


async def ask(stream: trio.SSLStream[trio.SocketStream], request: SignWorkloads | GetBundle | WatchTrust) -> object:
    await stream.send_all(encode_frame(request.to_wire()))
    decoder = FrameDecoder()
    while True:
        data = await stream.receive_some(65536)
        assert data, "the server closed the connection"
        arrived = decoder.feed(bytes(data))
        if arrived:
            return parse_reply(arrived[0])


async def issuer_of_a_new_svid(authority: Authority, port: int, own: KeyAndChain) -> str:
    issued = await sign(authority.client(port), own, workload("web"))
    return profile.key_id(load_chain(issued.certificates[0].chain_der)[1])


async def presented_by(authority: Authority, port: int) -> str:
    """The intermediate that the server's own certificate was signed with."""
    async with connected(authority, port) as stream:
        leaf = x509.load_der_x509_certificate(stream.getpeercert(binary_form=True))
    found = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert found is not None
    return found.hex()


async def test_a_server_signs_with_the_new_intermediate_within_seconds_and_presents_it(authority: Authority) -> None:
    async with serving(authority) as port:
        own = await attested(authority, authority.client(port), "node-1")
        key_id = rotate_intermediate(authority)
        while await issuer_of_a_new_svid(authority, port, own) != key_id:
            await trio.sleep(0.1)
        while await presented_by(authority, port) != key_id:
            await trio.sleep(0.1)


async def test_a_connection_that_is_open_goes_on_over_the_rotation(authority: Authority) -> None:
    async with (
        serving(authority) as port,
        connected(authority, port, authority.node_credentials("node-1")) as stream,
    ):
        key_id = rotate_intermediate(authority)
        issuers: list[str] = []
        while key_id not in issuers:
            issued = await ask(stream, sign_request("web", count=1))
            assert isinstance(issued, Issued)
            issuers.append(profile.key_id(load_chain(issued.certificates[0].chain_der)[1]))
            await trio.sleep(0.05)
        assert set(issuers) <= {key_id, authority.hierarchy.issuer_key_id}


async def test_a_client_that_learns_the_new_root_in_time_never_misses_the_server(authority: Authority) -> None:
    async with serving(authority) as port:
        client = authority.client(port)
        with succession(authority) as found:
            RootSuccession(found).prepare(at=datetime.now(UTC))
            while len((bundle := await client.bundle()).roots_der) == 1:
                await trio.sleep(0.05)
            client.replace_roots(load_chain(bundle.roots_der))
            RootSuccession(found).activate(at=datetime.now(UTC))
        old = authority.client(port)
        old.replace_roots(authority.hierarchy.roots)
        failure = ""
        while not failure:  # until the server presents a certificate under the new root
            await client.bundle()
            failure = await why_not(old.bundle)
        assert "not to be trusted" in failure
        await client.bundle()


async def test_the_trust_that_is_watched_has_the_new_root_at_once(authority: Authority) -> None:
    async with (
        serving(authority) as port,
        connected(authority, port, authority.node_credentials("node-1")) as stream,
    ):
        first = await ask(stream, WatchTrust(version=0))
        assert isinstance(first, Trust)
        with succession(authority) as found:
            RootSuccession(found).prepare(at=datetime.now(UTC))
        with trio.fail_after(30):
            second = await ask(stream, WatchTrust(version=first.version))
        assert isinstance(second, Trust)
        assert second.own.x509_der[:1] == first.own.x509_der
        assert len(second.own.x509_der) == 2


async def test_who_is_connected_with_a_stolen_root_is_told_the_new_one_and_gets_nothing_more(
    authority: Authority,
) -> None:
    """The thief of a root key has made himself a node certificate; replacing the root ends what he has open."""
    async with (
        serving(authority) as port,
        connected(authority, port, authority.node_credentials("node-1")) as stream,
    ):
        first = await ask(stream, WatchTrust(version=0))
        assert isinstance(first, Trust)
        with succession(authority) as found:
            RootSuccession(found).replace_everything(at=datetime.now(UTC))
        second = await ask(stream, WatchTrust(version=first.version))
        assert isinstance(second, Trust)
        assert not set(second.own.x509_der) & set(first.own.x509_der)
        refused = await ask(stream, sign_request("web", count=1))
        assert isinstance(refused, Refused)
        assert refused.code is RefusalCode.UNAUTHENTICATED
        assert "join again" in refused.text

        client = authority.client(port)  # of the new bundle.pem
        old = authority.node_credentials("node-1")
        while not await why_not(lambda: sign(client, old, workload("web"))):
            pass  # until the server has a context that trusts only the new root
        await client.bundle()


async def test_an_authority_that_was_down_over_the_end_of_its_intermediate_starts_with_a_new_one(
    tmp_path: Path,
) -> None:
    authority = make_authority(tmp_path, at=datetime.now(UTC) - timedelta(days=400))
    async with serving(authority) as port:
        assert (await presented_by(authority, port)) != authority.hierarchy.issuer_key_id


async def test_a_root_key_that_is_elsewhere_is_asked_for_in_the_log(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, at=datetime.now(UTC) - timedelta(days=200))
    root_id = profile.key_id(authority.hierarchy.roots[0])
    (authority.config.keys_dir / f"{root_id}.pem").rename(tmp_path / "taken-away.pem")
    async with running(authority) as (server, port):
        line = await server.logged("rotation_due")
        assert line["what"] == "prepare the next intermediate"
        assert (line["level"], line["see"]) == ("warning", "ringfence ca rotate")
        assert (await presented_by(authority, port)) == authority.hierarchy.issuer_key_id


async def test_a_hierarchy_that_can_not_be_loaded_leaves_the_old_one_in_force_until_it_can(
    authority: Authority,
) -> None:
    async with running(authority) as (server, port):
        async with trio.open_nursery() as nursery:
            own = await attested(authority, authority.client(port), "node-1")
            with succession(authority) as found:
                key_id = found.prepare_intermediate(at=datetime.now(UTC))
                key_file = authority.config.keys_dir / f"{key_id}.pem"
                key_file.rename(tmp := key_file.with_suffix(".away"))
                found.activate_intermediate(key_id, at=datetime.now(UTC))
            line = await server.logged("hierarchy_not_loaded")
            assert str(key_file) in line["why"]
            nursery.start_soon(server.read_on)
            assert await issuer_of_a_new_svid(authority, port, own) == authority.hierarchy.issuer_key_id
            tmp.rename(key_file)
            with succession(authority) as again:
                again.change(lambda *_: None)  # any change of the trust makes it look again
            while await issuer_of_a_new_svid(authority, port, own) != key_id:
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()


async def test_python_3_13s_strict_default_accepts_what_the_server_presents(authority: Authority) -> None:
    async with serving(authority) as port:
        context = ssl.create_default_context(cafile=str(authority.config.bundle_file))
        context.check_hostname = False  # an SVID has no host name: its SPIFFE ID is compared instead
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        context.set_alpn_protocols(["ringfence-ca/1"])
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context)
        await stream.do_handshake()
        assert stream.getpeercert()["subjectAltName"] == (("URI", "spiffe://cluster.local/ringfence/ca"),)
        await trio.aclose_forcefully(stream)
