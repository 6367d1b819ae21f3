"""Changes of the trust reach those who wait for them, and nobody else is told an older one."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from ca.authority.store import Store
from ca.client import CaClient
from ca.csr import build_csr, new_key
from ca.errors import CaRefused
from ca.messages import RefusalCode, SignRequest
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain
from ca.trust import RevocationKind, Trust
from tests.authority_builder import TRUST_DOMAIN, Authority, attested, make_authority, serving, sign, workload

NODE: Final = SpiffeId.node(TRUST_DOMAIN, "node-1")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = make_authority(tmp_path)
    made.pod("web-1", node="node-1", account="web")
    return made


def changed(authority: Authority, change: Callable[[Store], Any]) -> None:
    """Do something to the database as another process would."""
    store = Store.open(authority.config.database)
    try:
        change(store)
    finally:
        store.close()


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def joined(authority: Authority) -> AsyncIterator[tuple[CaClient, KeyAndChain]]:
    async with serving(authority) as port:
        client = authority.client(port)
        yield client, await attested(authority, client, "node-1")


async def ask(client: CaClient, own: KeyAndChain, *, version: int, digest: bytes = b"") -> Trust:
    connection = await client.connect(own)
    try:
        return await client.watch(connection, version=version, digest=digest)
    finally:
        await connection.close()


def revoke_web(store: Store) -> None:
    store.revocations.revoke_identity(str(workload("web")), at=now(), why="test", unseen=True)


async def test_an_agent_without_any_trust_is_told_at_once(authority: Authority) -> None:
    async with joined(authority) as (client, own):
        trust = await ask(client, own, version=0)
    assert trust.own.trust_domain == TRUST_DOMAIN
    assert trust.own.x509_der == tuple(authority.hierarchy.roots_der)
    assert trust.version >= 1
    assert trust.revocations == ()


async def test_a_change_by_another_process_wakes_the_agents_that_wait(authority: Authority) -> None:
    async with joined(authority) as (client, own):
        first = await ask(client, own, version=0)
        found: list[Trust] = []

        async def wait() -> None:
            found.append(await ask(client, own, version=first.version, digest=first.digest))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait)
                await trio.sleep(0.2)
                assert not found
                await trio.to_thread.run_sync(changed, authority, revoke_web)
    assert {trust.version for trust in found} == {first.version + 1}
    assert [each.value for each in found[0].revocations] == [str(workload("web"))]


async def test_without_a_change_the_answer_is_the_same_trust_after_a_while(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.authority.trust_feed.HOLD_S", 0.1)
    async with joined(authority) as (client, own):
        first = await ask(client, own, version=0)
        again = await ask(client, own, version=first.version, digest=first.digest)
    assert again.digest == first.digest


async def test_the_same_version_with_other_contents_is_told_at_once(authority: Authority) -> None:
    """After a restored backup a number may stand for something else."""
    async with joined(authority) as (client, own):
        first = await ask(client, own, version=0)
        with trio.fail_after(30):
            again = await ask(client, own, version=first.version, digest=b"another" * 4)
    assert again.digest == first.digest


async def test_an_agent_that_knows_more_makes_the_replica_look_first(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ca.authority.trust_feed.POLL_S", 1000.0)  # this replica has not noticed by itself
    async with joined(authority) as (client, own):
        first = await ask(client, own, version=0)
        await trio.to_thread.run_sync(changed, authority, revoke_web)
        with trio.fail_after(30):
            newer = await ask(client, own, version=first.version + 1, digest=b"of another replica" + b"." * 14)
    assert newer.version == first.version + 1


async def test_what_an_agent_has_in_force_is_written_down(authority: Authority) -> None:
    async with joined(authority) as (client, own):
        first = await ask(client, own, version=0)
        store = Store.open(authority.config.database)
        try:
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: ask(client, own, version=first.version, digest=first.digest))
                    while [(each.node, each.version) for each in store.trust.agents()] != [("node-1", first.version)]:
                        await trio.sleep(0.05)
                    assert store.trust.agents()[0].address == "127.0.0.1"
                    nursery.cancel_scope.cancel()
        finally:
            store.close()


async def test_without_a_node_certificate_nobody_waits(authority: Authority) -> None:
    async with serving(authority) as port:
        client = authority.client(port)
        for own in (None, authority.credentials(workload("web"))):
            connection = await client.connect(own)
            with pytest.raises(CaRefused) as caught:
                await client.watch(connection, version=0, digest=b"")
            assert caught.value.code == RefusalCode.UNAUTHENTICATED
            await connection.close()


async def test_a_revoked_node_hears_of_it_once_and_is_refused_from_then_on(authority: Authority) -> None:
    async with joined(authority) as (client, own):
        token = authority.token("node-1")
        first = await ask(client, own, version=0)
        connection = await client.connect(own)
        told: list[Trust] = []

        async def wait() -> None:
            told.append(await client.watch(connection, version=first.version, digest=first.digest))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.5)
                await trio.to_thread.run_sync(
                    changed, authority, lambda store: store.revocations.revoke_node("node-1", at=now(), why="stolen")
                )
        (revocation,) = told[0].revocations
        assert own.chain[0].serial_number in revocation.serials

        csr_der = build_csr(new_key(), NODE)
        for refused in (
            lambda: client.watch(connection, version=told[0].version, digest=told[0].digest),
            lambda: client.renew_node(csr_der, own),
            lambda: sign(client, own, workload("web")),
        ):
            with pytest.raises(CaRefused, match=r"revoked since .*: stolen") as caught:
                await refused()
            assert caught.value.code == RefusalCode.REVOKED
        with pytest.raises(CaRefused) as caught:
            await client.attest(token, "node-1", csr_der)
        assert caught.value.code == RefusalCode.TOKEN_INVALID
        await connection.close()

        # The operator lets it in again: with a token that was made since.
        again = await attested(authority, client, "node-1")
        assert (await sign(client, again, workload("web"))).certificates[0].chain_der


async def test_a_revoked_identity_is_not_issued_and_the_others_are(authority: Authority) -> None:
    authority.pod("cart-1", node="node-1", account="cart")
    async with joined(authority) as (client, own):
        changed(authority, revoke_web)
        issued = await sign(client, own, workload("web"), workload("cart"))
        error = issued.certificates[0].error
        assert error is not None
        assert error.code == RefusalCode.REVOKED
        assert issued.certificates[1].chain_der

        changed(authority, lambda store: store.revocations.undo(RevocationKind.IDENTITY, str(workload("web"))))
        assert (await sign(client, own, workload("web"))).certificates[0].chain_der


async def test_a_certificate_that_is_being_issued_while_its_node_is_revoked_never_leaves(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The revocation comes between the judgement and the journal: the worst moment."""
    async with joined(authority) as (client, own):
        journal_all = Store.journal_all
        revoked = False

        def revoke_then_journal(store: Store, *arguments: Any, **options: Any) -> Any:
            nonlocal revoked
            if not revoked:
                revoked = True
                store.revocations.revoke_node("node-1", at=now(), why="")
            return journal_all(store, *arguments, **options)

        monkeypatch.setattr(Store, "journal_all", revoke_then_journal)
        key = new_key()
        with pytest.raises(CaRefused):
            await client.sign([SignRequest(identity=workload("web"), csr_der=build_csr(key, workload("web")))], own)
        assert revoked
        with pytest.raises(CaRefused) as caught:
            await client.renew_node(build_csr(key, NODE), own)
        assert caught.value.code == RefusalCode.REVOKED


async def test_every_reply_tells_the_authoritys_time(authority: Authority) -> None:
    async with serving(authority) as port:
        client = authority.client(port)
        await client.bundle()
        assert client.clock is not None
        assert abs(client.clock.ahead_s) < 5
        assert client.clock.problem is None
