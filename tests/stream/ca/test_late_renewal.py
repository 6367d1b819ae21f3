"""A node that was away for longer than its certificate lives comes back without the operator, and a thief does not."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from ca.authority.config import AuthorityConfig
from ca.authority.records import CertificateRecord
from ca.authority.store import Store
from ca.csr import build_csr, new_key
from ca.errors import CaRefused
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain
from tests.authority_builder import TRUST_DOMAIN, Authority, make_authority, serving, sign, workload

NODE: Final = SpiffeId.node(TRUST_DOMAIN, "node-1")
HOUR: Final = timedelta(hours=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path, at=datetime.now(UTC) - timedelta(days=30))


def issued(authority: Authority, *, ago: timedelta) -> KeyAndChain:
    """A certificate of node-1 that lives for an hour, in the journal."""
    at = datetime.now(UTC) - ago
    own = authority.node_credentials("node-1", at=at)
    leaf = own.chain[0]
    record = CertificateRecord(
        serial=leaf.serial_number,
        identity=str(NODE),
        node="node-1",
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        issued_at=at,
        attestation="join_token",
        requester="10.0.0.1:4000",
        issuer_key_id="ab",
    )
    with_store(authority, lambda store: store.journal([record]))
    return own


def with_store(authority: Authority, do: Callable[[Store], object]) -> None:
    store = Store.open(authority.config.database)
    try:
        do(store)
    finally:
        store.close()


async def renewed(authority: Authority, own: KeyAndChain) -> None:
    async with serving(authority) as port:
        reply = await authority.client(port).renew_node(build_csr(new_key(), NODE), own)
    assert reply.certificates[0].chain_der


async def refused(authority: Authority, own: KeyAndChain, words: str) -> str:
    """The code of the refusal, whose text has these words."""
    async with serving(authority) as port:
        with pytest.raises(CaRefused, match=words) as caught:
            await authority.client(port).renew_node(build_csr(new_key(), NODE), own)
    return caught.value.code


@pytest.mark.parametrize("ago", [2 * HOUR, timedelta(days=7)])
async def test_the_last_certificate_of_a_node_is_renewed_once_more_after_its_end(
    authority: Authority, ago: timedelta
) -> None:
    await renewed(authority, issued(authority, ago=ago))
    assert authority.journal()[-1].attestation == "expired_node_certificate"


async def test_an_expired_certificate_is_good_for_nothing_else(authority: Authority) -> None:
    authority.pod("web-1", node="node-1", account="web")
    own = issued(authority, ago=2 * HOUR)
    async with serving(authority) as port:
        client = authority.client(port)
        with pytest.raises(CaRefused, match=r"expired at .*it can only be renewed"):
            await sign(client, own, workload("web"))
        connection = await client.connect(own)
        with pytest.raises(CaRefused, match=r"expired at .*it can only be renewed"):
            await client.watch(connection, version=0, digest=b"")
        await connection.close()


async def test_a_copy_of_a_certificate_is_worthless_when_the_node_has_shown_a_newer_one(authority: Authority) -> None:
    stolen = issued(authority, ago=3 * HOUR)
    newer = issued(authority, ago=2 * HOUR)
    with_store(
        authority,
        lambda store: store.trust.acknowledge("node-1", 1, at=datetime.now(UTC), serial=newer.chain[0].serial_number),
    )
    assert await refused(authority, stolen, "the node has shown a newer one since") == RefusalCode.UNAUTHENTICATED
    await renewed(authority, newer)


async def test_a_certificate_that_was_issued_and_never_arrived_shuts_nobody_out(authority: Authority) -> None:
    """The CA was killed between its journal and its answer, again and again."""
    own = issued(authority, ago=3 * HOUR)
    with_store(
        authority,
        lambda store: store.trust.acknowledge("node-1", 1, at=datetime.now(UTC), serial=own.chain[0].serial_number),
    )
    for _ in range(2):
        issued(authority, ago=2 * HOUR)
    await renewed(authority, own)


async def test_after_the_grace_the_node_has_to_join_again(authority: Authority) -> None:
    own = issued(authority, ago=timedelta(days=7) + 2 * HOUR)
    assert await refused(authority, own, "longer ago than node_grace_s.*join again") == RefusalCode.UNAUTHENTICATED


async def test_without_grace_an_expired_certificate_is_refused(authority: Authority) -> None:
    text = authority.config_file.read_text()
    authority.config_file.write_text(text.replace("[ca]\n", "[ca]\nnode_grace_s = 0\n"))
    strict = Authority(
        config=AuthorityConfig.load(authority.config_file),
        config_file=authority.config_file,
        hierarchy=authority.hierarchy,
    )
    await refused(strict, issued(authority, ago=2 * HOUR), "longer ago than node_grace_s")


async def test_a_node_that_is_shut_out_does_not_come_back_when_its_revocation_has_been_forgotten(
    authority: Authority,
) -> None:
    own = issued(authority, ago=2 * HOUR)
    at = datetime.now(UTC)
    with_store(authority, lambda store: store.revocations.revoke_node("node-1", at=at - 2 * HOUR, why="stolen"))
    with_store(authority, lambda store: store.revocations.forget_expired(at=at))
    assert await refused(authority, own, "the node node-1 is revoked .*: stolen") == RefusalCode.REVOKED


async def test_a_node_that_was_let_in_again_renews_late_what_it_was_issued_since(authority: Authority) -> None:
    """An outage after a node was revoked and rebuilt heals by itself too; what was stolen stays worthless."""
    at = datetime.now(UTC)
    stolen = issued(authority, ago=5 * HOUR)
    with_store(authority, lambda store: store.revocations.revoke_node("node-1", at=at - 4.5 * HOUR, why="stolen"))
    rebuilt = issued(authority, ago=3 * HOUR)
    with_store(authority, lambda store: store.revocations.forget_expired(at=at))
    assert await refused(authority, stolen, "the node node-1 is revoked .*: stolen") == RefusalCode.REVOKED
    await renewed(authority, rebuilt)

    with_store(authority, lambda store: store.revocations.revoke_node("node-1", at=at - 2.5 * HOUR, why="again"))
    with_store(authority, lambda store: store.revocations.forget_expired(at=at))
    assert await refused(authority, rebuilt, "the node node-1 is revoked .*: again") == RefusalCode.REVOKED


async def test_what_the_journal_does_not_know_is_not_renewed_late(authority: Authority) -> None:
    own = authority.node_credentials("node-1", at=datetime.now(UTC) - 2 * HOUR)
    await refused(authority, own, "the client certificate is refused")


async def test_a_workloads_certificate_that_has_expired_is_refused_at_once(authority: Authority) -> None:
    own = authority.credentials(workload("web"), at=datetime.now(UTC) - 2 * HOUR)
    assert await refused(authority, own, r"expired: valid from .* here") == RefusalCode.UNAUTHENTICATED
