"""JWT-SVIDs through the Workload API: asked for once until half-life, and never handed on when they are no good."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
import trio
from google.protobuf import json_format
from spiffe._proto import workload_pb2 as real

from ca.authority.jwt import JwtSigner
from ca.authority.store import Store
from ca.errors import CaRefused
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from ca.trust import Revocation, RevocationKind, TrustBundle
from node_agent.workload_api.jwt_cache import MAX_BYTES, JwtCache
from tests.authority_builder import PASSPHRASE, Authority, make_authority, workload
from tests.certificates import der, make_root
from tests.workload_api_builder import WEB, Client, Served, client, jwt_request, pod, served, validate_request

INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNAVAILABLE = 3, 7, 8, 14
AT: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


@pytest.fixture
def signer(authority: Authority) -> JwtSigner:
    made = JwtSigner(
        store=Store.open(authority.config.database),
        passphrase=PASSPHRASE,
        ttl=timedelta(minutes=5),
        lifetime=timedelta(days=7),
    )
    made.tend(at=datetime.now(UTC))
    return made


def issue(api: Served, authority: Authority, signer: JwtSigner) -> None:
    """Let the CA sign, and the agent have its keys."""
    api.identities.token = lambda identity, audience: (
        signer.sign(identity, audience, ttl=None, at=datetime.now(UTC)).token
    )
    api.take(jwt_keys=Store.open(authority.config.database).jwt_keys.published())


async def fetched(program: Client, *audience: str) -> str:
    reply = real.JWTSVIDResponse.FromString(
        await (await program.call("FetchJWTSVID", jwt_request(*audience))).message()
    )
    assert [each.spiffe_id for each in reply.svids] == [str(WEB)]
    return str(reply.svids[0].svid)


async def test_a_token_is_asked_for_once_and_validated_for_its_audience_only(
    tmp_path: Path, authority: Authority, signer: JwtSigner
) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        issue(api, authority, signer)
        token = await fetched(program, "db", "cache")
        assert await fetched(program, "db", "cache") == token
        assert await fetched(program, "db") != token
        assert api.identities.asked == [(WEB, ("db", "cache")), (WEB, ("db",))]

        call = await program.call("ValidateJWTSVID", validate_request(token, "cache"))
        found = real.ValidateJWTSVIDResponse.FromString(await call.message())
        assert found.spiffe_id == str(WEB)
        claims = json_format.MessageToDict(found.claims)
        assert (claims["sub"], claims["aud"]) == (str(WEB), ["db", "cache"])
        assert await call.status() == (0, "")

        for wrong, audience in ((token, "web"), (token[:-1], "db"), ("x", "db"), (token + "A", "db")):
            status, text = await (await program.call("ValidateJWTSVID", validate_request(wrong, audience))).status()
            assert (status, "not a valid JWT-SVID" in text) == (INVALID_ARGUMENT, True)
            assert wrong not in text or wrong == "x"
        for missing in (validate_request("", "db"), validate_request(token, ""), b""):
            assert (await (await program.call("ValidateJWTSVID", missing)).status())[0] == INVALID_ARGUMENT


async def test_many_who_want_the_same_token_ask_the_ca_once(
    tmp_path: Path, authority: Authority, signer: JwtSigner
) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        issue(api, authority, signer)
        api.identities.gate = trio.Event()
        calls = [await program.call("FetchJWTSVID", jwt_request("db")) for _ in range(10)]
        await program.call("FetchJWTSVID", jwt_request("other"))
        while len(api.identities.asked) < 2:  # by then the ten wait
            await trio.sleep(0.001)
        api.identities.gate.set()
        tokens = {(await call.message()) for call in calls}
        assert len(tokens) == 1
        assert len(api.identities.asked) == 2


async def test_when_the_ca_is_away_all_who_wait_are_told_and_a_token_that_is_still_good_serves_on(
    tmp_path: Path, authority: Authority, signer: JwtSigner
) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        issue(api, authority, signer)
        at = datetime.now(UTC) - timedelta(minutes=4)  # past half of its life
        api.identities.token = lambda identity, audience: signer.sign(identity, audience, ttl=None, at=at).token
        old = await fetched(program, "db")
        api.identities.token = None
        assert await fetched(program, "db") == old
        calls = [await program.call("FetchJWTSVID", jwt_request("new")) for _ in range(5)]
        for call in calls:
            assert await call.status() == (UNAVAILABLE, "the CA is away")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (RefusalCode.NOT_SCHEDULED, PERMISSION_DENIED),
        (RefusalCode.REVOKED, PERMISSION_DENIED),
        (RefusalCode.UNAVAILABLE, UNAVAILABLE),
        (RefusalCode.INTERNAL, UNAVAILABLE),
    ],
)
async def test_a_refusal_of_the_ca_reaches_the_program(
    tmp_path: Path, authority: Authority, code: RefusalCode, status: int
) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        api.identities.error = CaRefused(code, "because", 0.0)
        got, text = await (await program.call("FetchJWTSVID", jwt_request("db"))).status()
        assert (got, "because" in text) == (status, True)


async def test_an_audience_is_required_and_another_identity_is_denied(
    tmp_path: Path, authority: Authority, signer: JwtSigner
) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        issue(api, authority, signer)
        for wrong in (jwt_request(), jwt_request(""), jwt_request("a", "a"), b"\x0a\x05a"):
            assert (await (await program.call("FetchJWTSVID", wrong)).status())[0] == INVALID_ARGUMENT
        other = jwt_request("db", spiffe_id=str(workload("other")))
        assert (await (await program.call("FetchJWTSVID", other)).status())[0] == PERMISSION_DENIED
        own = await program.call("FetchJWTSVID", jwt_request("db", spiffe_id=str(WEB)))
        await own.message()
        assert len(api.identities.asked) == 1


async def test_what_the_ca_signs_wrongly_is_not_handed_on(
    tmp_path: Path, authority: Authority, signer: JwtSigner
) -> None:
    now = datetime.now(UTC)

    def sign(identity: SpiffeId, *audience: str, at: datetime = now) -> str:
        return signer.sign(identity, audience, ttl=None, at=at).token

    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        issue(api, authority, signer)
        wrong = [
            sign(workload("other"), "db"),
            sign(WEB, "cache"),
            sign(WEB, "db", "cache"),
            sign(WEB, "db", at=now - timedelta(hours=1)),
            sign(WEB, "db")[:-2] + "AA",
            "no token",
        ]
        for token in wrong:
            api.identities.token = lambda *_, token=token: token
            call = await program.call("FetchJWTSVID", jwt_request("db"))
            status, text = await call.status()
            assert status == UNAVAILABLE
            assert token not in text


async def test_a_token_whose_key_was_withdrawn_is_asked_for_anew(
    tmp_path: Path, authority: Authority, signer: JwtSigner
) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        issue(api, authority, signer)
        await fetched(program, "db")
        api.take()
        assert (await (await program.call("FetchJWTSVID", jwt_request("db"))).status())[0] == UNAVAILABLE
        assert len(api.identities.asked) == 2


async def test_a_flood_of_audiences_does_not_reach_the_ca(
    tmp_path: Path, authority: Authority, signer: JwtSigner
) -> None:
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        issue(api, authority, signer)
        statuses = []
        for number in range(120):
            call = await program.call("FetchJWTSVID", jwt_request(f"audience-{number}"))
            statuses.append((await call.status())[0])
        assert set(statuses) == {0, RESOURCE_EXHAUSTED}
        assert statuses[:50] == [0] * 50
        assert len(api.identities.asked) == statuses.count(0)


async def test_a_revoked_identity_gets_no_token_and_one_of_it_is_not_valid(
    tmp_path: Path, authority: Authority, signer: JwtSigner
) -> None:
    other = workload("other")
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        issue(api, authority, signer)
        token = signer.sign(other, ("db",), ttl=None, at=datetime.now(UTC)).token
        await (await program.call("ValidateJWTSVID", validate_request(token, "db"))).message()
        keys = api.trust.trust.own.jwt_keys
        for identity, method, message, status in (
            (other, "ValidateJWTSVID", validate_request(token, "db"), INVALID_ARGUMENT),
            (WEB, "FetchJWTSVID", jwt_request("db"), PERMISSION_DENIED),
        ):
            revoked = Revocation(
                kind=RevocationKind.IDENTITY, value=str(identity), at=datetime.now(UTC), until=None, why="gone"
            )
            api.take(jwt_keys=keys, revocations=(revoked,))
            got, text = await (await program.call(method, message)).status()
            assert (got, "revoked" in text) == (status, True)


async def test_jwt_bundles_are_standard_key_sets_of_every_trust_domain(
    tmp_path: Path, authority: Authority, signer: JwtSigner
) -> None:
    other = TrustBundle(
        trust_domain="other.example", sequence=1, refresh_hint_s=300.0, x509_der=(der(make_root("other.example").root),)
    )
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        issue(api, authority, signer)
        keys = api.trust.trust.own.jwt_keys
        call = await program.call("FetchJWTBundles")
        await call.message()
        api.take(jwt_keys=keys, federated=(other,))
        bundles = real.JWTBundlesResponse.FromString(await call.message()).bundles
        assert json.loads(bundles["spiffe://other.example"]) == {"keys": []}
        (jwk,) = json.loads(bundles["spiffe://cluster.local"])["keys"]
        assert (jwk["kid"], jwk["kty"], jwk["crv"], sorted(jwk)) == (
            keys[0].key_id,
            "EC",
            "P-256",
            ["crv", "kid", "kty", "x", "y"],
        )


async def test_a_token_of_a_federated_trust_domain_is_judged_by_that_ones_keys_only(
    tmp_path: Path, authority: Authority, signer: JwtSigner
) -> None:
    """Our own key must not vouch for another trust domain's subject, nor the other way round."""
    stranger = SpiffeId("other.example", "/ns/default/sa/web")
    async with served(tmp_path, authority, lambda _: pod()) as api, client(api.path) as program:
        issue(api, authority, signer)
        keys = api.trust.trust.own.jwt_keys
        signed_by_us = signer.sign(stranger, ("db",), ttl=None, at=datetime.now(UTC)).token
        roots = (der(make_root("other.example").root),)

        def federated(*jwt_keys: object) -> TrustBundle:
            return TrustBundle(
                trust_domain="other.example",
                sequence=1,
                refresh_hint_s=300.0,
                x509_der=roots,
                jwt_keys=tuple(jwt_keys),  # type: ignore[arg-type]
            )

        for bundles in ((), (federated(),)):
            api.take(jwt_keys=keys, federated=bundles)
            call = await program.call("ValidateJWTSVID", validate_request(signed_by_us, "db"))
            assert "not in the trust bundle of its subject" in (await call.status())[1]
        api.take(jwt_keys=keys, federated=(federated(*keys),))
        found = await program.call("ValidateJWTSVID", validate_request(signed_by_us, "db"))
        assert real.ValidateJWTSVIDResponse.FromString(await found.message()).spiffe_id == str(stranger)


def test_the_cache_is_bounded_and_forgets_what_was_used_longest_ago() -> None:
    cache = JwtCache()
    token = "x" * (MAX_BYTES // 4)
    for number in range(4):
        cache.keep((WEB, (str(number),)), token, key_id="k", not_after=AT + timedelta(minutes=5), at=AT)
    assert cache.find((WEB, ("0",)), at=AT)
    cache.keep((WEB, ("4",)), token, key_id="k", not_after=AT + timedelta(minutes=5), at=AT)
    assert [cache.find((WEB, (str(number),)), at=AT) is None for number in range(5)] == [
        False,
        True,
        False,
        False,
        False,
    ]
    cache.keep((WEB, ("4",)), token, key_id="k", not_after=AT + timedelta(minutes=5), at=AT)  # replaced, not added
    assert cache.find((WEB, ("0",)), at=AT)
    assert cache.find((WEB, ("0",)), at=AT + timedelta(minutes=4, seconds=50)) is None
    cache.forget(WEB)
    assert cache.find((WEB, ("4",)), at=AT) is None
