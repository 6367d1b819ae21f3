"""JWT-SVIDs from a real authority: the rules of certificates, the journal, the trust that agents are told."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.authority.store import JwtRecord, Store
from ca.errors import CaRefused
from ca.jwt_svid import JwtSvid
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from tests.authority_builder import TRUST_DOMAIN, Authority, attested, make_authority, serving, workload

WEB = workload("web")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = make_authority(tmp_path)
    made.pod("web-1", node="node-1", account="web")
    made.pod("db-1", node="node-2", account="db")
    return made


def issued(authority: Authority) -> list[JwtRecord]:
    store = Store.open(authority.config.database)
    try:
        return store.jwt_keys.issued()
    finally:
        store.close()


async def test_a_node_gets_tokens_of_its_workloads_that_the_trust_verifies(authority: Authority) -> None:
    async with serving(authority) as port:
        client = authority.client(port)
        node = await attested(authority, client, "node-1")
        token = await client.sign_jwt(WEB, ("db", "cache"), node)
        connection = await client.connect(node)
        try:
            trust = await client.watch(connection, version=0, digest=b"")
        finally:
            await connection.close()
    keys = {key.key_id: key.public_key_der for key in trust.own.jwt_keys}
    found = JwtSvid.verify(
        token, audience="cache", public_key_of=lambda _, key_id: keys.get(key_id), at=datetime.now(UTC)
    )
    (record,) = issued(authority)
    assert (found.identity, found.audience) == (WEB, ("db", "cache"))
    assert (record.token_id, record.identity, record.node, record.audience, record.key_id, record.attestation) == (
        found.claims["jti"],
        str(WEB),
        "node-1",
        ("db", "cache"),
        found.key_id,
        "node_certificate",
    )
    assert record.not_after - record.issued_at == timedelta(minutes=5)
    assert record.requester.startswith("127.0.0.1:")


async def test_a_stolen_node_certificate_gets_no_token_of_another_node(authority: Authority) -> None:
    async with serving(authority) as port:
        client, own = authority.client(port), authority.node_credentials("node-1")
        for identity in (workload("db"), SpiffeId.node(TRUST_DOMAIN, "node-1"), SpiffeId.authority(TRUST_DOMAIN)):
            with pytest.raises(CaRefused) as refusal:
                await client.sign_jwt(identity, ("db",), own)
            assert refusal.value.code == RefusalCode.NOT_SCHEDULED
    assert issued(authority) == []


async def test_a_workloads_certificate_can_ask_for_no_token(authority: Authority) -> None:
    async with serving(authority) as port:
        with pytest.raises(CaRefused) as refusal:
            await authority.client(port).sign_jwt(WEB, ("db",), authority.credentials(WEB))
        assert refusal.value.code == RefusalCode.UNAUTHENTICATED
    assert issued(authority) == []


@pytest.mark.parametrize("audience", [(), ("",), ("a", "a")])
async def test_a_token_for_nobody_is_a_bad_request(authority: Authority, audience: tuple[str, ...]) -> None:
    async with serving(authority) as port:
        client, own = authority.client(port), authority.node_credentials("node-1")
        with pytest.raises(CaRefused, match="JWT-SVID 3.2") as refusal:
            await client.sign_jwt(WEB, audience, own)
        assert refusal.value.code == RefusalCode.BAD_REQUEST
        with pytest.raises(CaRefused, match="30 to 3600 s") as refusal:
            await client.sign_jwt(WEB, ("db",), own, ttl_s=86_400.0)
        assert refusal.value.code == RefusalCode.BAD_REQUEST


async def test_a_revoked_identity_gets_no_token(authority: Authority) -> None:
    async with serving(authority) as port:
        client, own = authority.client(port), authority.node_credentials("node-1")
        await client.sign_jwt(WEB, ("db",), own)
        store = Store.open(authority.config.database)
        store.revocations.revoke_identity(str(WEB), at=datetime.now(UTC), why="stolen", unseen=True)
        store.close()
        with pytest.raises(CaRefused, match="revoked") as refusal:
            await client.sign_jwt(WEB, ("db",), own)
        assert refusal.value.code == RefusalCode.REVOKED
    assert len(issued(authority)) == 1


async def test_a_token_is_in_no_log(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(authority) as port:
        token = await authority.client(port).sign_jwt(WEB, ("db",), authority.node_credentials("node-1"))
    assert "issued_jwt" in caplog.text
    assert token not in caplog.text
    assert token.rpartition(".")[2] not in caplog.text


async def test_what_was_signed_before_a_restart_is_verified_after_it(authority: Authority) -> None:
    own = authority.node_credentials("node-1")
    kids = set()
    for _ in range(2):
        async with serving(authority) as port:
            await authority.client(port).sign_jwt(WEB, ("db",), own)
        kids |= {record.key_id for record in issued(authority)}
    assert len(kids) == 1
