"""X.509-SVIDs and bundles: the full state at once, and again whenever it is another one; nothing for strangers."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from spiffe._proto import workload_pb2 as real

from ca.tls import KeyAndChain
from ca.trust import Revocation, RevocationKind, TrustBundle
from node_agent.model import Workload
from tests.authority_builder import Authority, make_authority
from tests.certificates import der, make_root
from tests.metrics_text import text_of
from tests.workload_api_builder import WEB, client, pod, served

INVALID_ARGUMENT, PERMISSION_DENIED, UNIMPLEMENTED, UNAVAILABLE = 3, 7, 12, 14


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


def assert_is(svid: real.X509SVID, own: KeyAndChain) -> None:
    assert svid.spiffe_id == str(WEB)
    assert svid.x509_svid == b"".join(each.public_bytes(Encoding.DER) for each in own.chain)
    key = load_der_private_key(svid.x509_svid_key, None)
    leaf = own.chain[0]
    assert [
        each.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for each in (key.public_key(), leaf.public_key())
    ] == [own.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)] * 2


async def test_a_program_gets_the_svid_of_its_pod_and_every_rotation_is_pushed(
    tmp_path: Path, authority: Authority
) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        first = api.identities.issue()
        call = await program.call("FetchX509SVID")
        message = real.X509SVIDResponse.FromString(await call.message())
        assert len(message.svids) == 1
        assert_is(message.svids[0], first)
        assert message.svids[0].bundle == authority.hierarchy.roots_der[0]
        assert message.svids[0].hint == ""
        assert not message.federated_bundles

        second = api.identities.issue()
        assert_is(real.X509SVIDResponse.FromString(await call.message()).svids[0], second)


async def test_the_hint_is_the_pods_label(tmp_path: Path, authority: Authority) -> None:
    labelled = pod(labels={"ringfence.io/svid-hint": "internal"})
    async with served(tmp_path, authority, lambda _: labelled) as api, client(api.path) as program:
        api.identities.issue()
        call = await program.call("FetchX509SVID")
        assert real.X509SVIDResponse.FromString(await call.message()).svids[0].hint == "internal"


async def test_bundles_of_federated_trust_domains_come_and_go(tmp_path: Path, authority: Authority) -> None:
    root = der(make_root("other.example").root)
    bundle = TrustBundle(trust_domain="other.example", sequence=1, refresh_hint_s=300.0, x509_der=(root,))
    own = authority.hierarchy.roots_der[0]
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        api.identities.issue()
        svids = await program.call("FetchX509SVID")
        bundles = await program.call("FetchX509Bundles")
        assert not real.X509SVIDResponse.FromString(await svids.message()).federated_bundles
        assert dict(real.X509BundlesResponse.FromString(await bundles.message()).bundles) == {
            "spiffe://cluster.local": own
        }

        api.take(federated=(bundle,))
        found = real.X509SVIDResponse.FromString(await svids.message())
        assert dict(found.federated_bundles) == {"spiffe://other.example": root}
        assert found.svids[0].bundle == own
        assert dict(real.X509BundlesResponse.FromString(await bundles.message()).bundles) == {
            "spiffe://cluster.local": own,
            "spiffe://other.example": root,
        }

        api.take(federated=(replace(bundle, sequence=2, x509_der=()),))  # "trust nothing"
        assert not real.X509SVIDResponse.FromString(await svids.message()).federated_bundles
        assert list(real.X509BundlesResponse.FromString(await bundles.message()).bundles) == ["spiffe://cluster.local"]


async def test_what_is_the_same_is_not_sent_again(tmp_path: Path, authority: Authority) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        api.identities.issue()
        call = await program.call("FetchX509Bundles")
        await call.message()
        api.api.pods_changed()
        api.identities.issue()
        svids = await program.call("FetchX509SVID")  # by its answer, the others have been looked at, too
        await svids.message()
        api.identities.issue()
        await svids.message()
        with pytest.raises(trio.WouldBlock):
            call._receive.receive_nowait()


@pytest.mark.parametrize("method", ["FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "Else"])
async def test_a_call_without_the_metadata_is_an_invalid_argument(
    tmp_path: Path, authority: Authority, method: str
) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        api.identities.issue()
        status, text = await (await program.call(method, metadata=False)).status()
        assert status == INVALID_ARGUMENT
        assert "workload.spiffe.io: true" in text
        wrong = await program.call(method, metadata=False, headers={"workload.spiffe.io": "True"})
        assert (await wrong.status())[0] == INVALID_ARGUMENT


@pytest.mark.parametrize(
    "method", ["FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"]
)
async def test_a_process_of_no_pod_is_denied_everything(tmp_path: Path, authority: Authority, method: str) -> None:
    async with served(tmp_path, authority, lambda _: None) as api, client(api.path) as program:
        api.identities.issue()
        assert (await (await program.call(method)).status())[0] == PERMISSION_DENIED


async def test_an_unknown_method_is_unimplemented(tmp_path: Path, authority: Authority) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        assert (await (await program.call("FetchWITSVID")).status())[0] == UNIMPLEMENTED
        other = await program.call("", headers={":path": "/grpc.health.v1.Health/Check"})
        assert (await other.status())[0] == UNIMPLEMENTED


async def test_a_pod_that_goes_away_takes_its_programs_streams_along(tmp_path: Path, authority: Authority) -> None:
    here: list[Workload | None] = [pod()]
    async with served(tmp_path, authority, lambda _: here[0]) as api, client(api.path) as program:
        api.identities.issue()
        call = await program.call("FetchX509SVID")
        await call.message()
        here[0] = None
        api.api.pods_changed()
        assert (await call.status())[0] == PERMISSION_DENIED
        assert (await (await program.call("FetchX509SVID")).status())[0] == PERMISSION_DENIED


async def test_a_process_that_moves_to_another_pod_gets_nothing_more_on_this_connection(
    tmp_path: Path, authority: Authority
) -> None:
    here = [pod()]
    async with served(tmp_path, authority, lambda _: here[0]) as api:
        api.identities.issue()
        async with client(api.path) as program:
            call = await program.call("FetchX509SVID")
            await call.message()
            here[0] = pod("uid-2")
            api.identities.issue()
            assert (await call.status())[0] == PERMISSION_DENIED
            assert (await (await program.call("FetchX509Bundles")).status())[0] == PERMISSION_DENIED
        async with client(api.path) as program:  # the other pod's, by a connection of its own
            await (await program.call("FetchX509SVID")).message()


async def test_an_identity_that_has_no_svid_yet_is_unavailable(tmp_path: Path, authority: Authority) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        status, text = await (await program.call("FetchX509SVID")).status()
        assert (status, "has not answered yet" in text) == (UNAVAILABLE, True)
        # Bundles need no SVID.
        await (await program.call("FetchX509Bundles")).message()


async def test_a_stream_ends_when_the_svid_has_expired(tmp_path: Path, authority: Authority) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        api.identities.issue()
        call = await program.call("FetchX509SVID")
        await call.message()
        api.identities.drop()
        assert (await call.status())[0] == UNAVAILABLE


async def test_a_revoked_identity_is_told_to_stop(tmp_path: Path, authority: Authority) -> None:
    revoked = Revocation(
        kind=RevocationKind.IDENTITY, value=str(WEB), at=datetime.now(UTC), until=None, why="stolen laptop"
    )
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        api.identities.issue()
        calls = [await program.call(method) for method in ("FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles")]
        for call in calls:
            await call.message()
        api.take(revocations=(revoked,))
        for call in calls:
            status, text = await call.status()
            assert (status, "stolen laptop" in text) == (PERMISSION_DENIED, True)


async def test_calls_are_counted_by_method_and_status(tmp_path: Path, authority: Authority) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        await (await program.call("FetchX509SVID")).status()
        await (await program.call("MadeUp")).status()
        text = text_of(api.metrics)
        assert 'ringfence_workload_api_calls_total{method="FetchX509SVID",status="unavailable"} 1' in text
        assert 'ringfence_workload_api_calls_total{method="other",status="unimplemented"} 1' in text
        assert "ringfence_workload_api_connections 1" in text
