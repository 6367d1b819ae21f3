"""The agent follows the trust of a real authority: revocations, roots, a CA that goes away or back in time."""

import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from cryptography import x509

from ca.authority.store import Store
from ca.client import CaClient
from ca.spiffe import SpiffeId
from ca.trust import RevocationKind, Trust
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity import Identities, NodeCredentials, NodeKeyStore, join_token_from
from node_agent.identity.identities import utc_now
from node_agent.identity.trust import TrustStore
from node_agent.identity.trust_file import TrustFile
from node_agent.identity.trust_watch import TrustWatch
from tests.authority_builder import TRUST_DOMAIN, Authority, make_authority, serving, workload
from tests.certificates import der, make_root
from tests.handshakes import context, shake_hands

WEB: Final = workload("web")
CART: Final = workload("cart")

_WAIT_S: Final = 60.0  # identity_wait_s: what is said at once is said in a small part of it


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = make_authority(tmp_path)
    made.pod("web", node="node-1", account="web")
    made.pod("cart", node="node-1", account="cart")
    return made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node_agent.identity.trust_watch._LONGEST_PAUSE_S", 0.5)
    monkeypatch.setattr("ca.authority.trust_feed.POLL_S", 0.05)


@dataclass(kw_only=True)
class Agent:
    """The identity part of an agent, with its watch."""

    client: CaClient
    identities: Identities
    trust: TrustStore
    watch: TrustWatch
    dropped: list[SpiffeId] = field(default_factory=list)

    async def until(self, look: Callable[[], Any]) -> None:
        with trio.fail_after(30):
            while not look():
                await trio.sleep(0.01)


@asynccontextmanager
async def agent(
    directory: Path, authority: Authority, port: int, *, save: Callable[[Trust], None] | None = None
) -> AsyncIterator[Agent]:
    state = directory / "agent"
    state.mkdir(exist_ok=True)
    if not (state / "token").exists():
        (state / "token").write_text(authority.token("node-1"))
    (state / "node-passphrase").write_text("correct horse")
    rng = random.Random(7)
    bundle_pem = authority.config.bundle_file.read_bytes()
    client = authority.client(port)
    trust = TrustStore(trust_domain=TRUST_DOMAIN, roots=client.roots)
    trust_file = TrustFile(directory=state / "trust", configured_pem=bundle_pem)
    if trust_file.restore(trust):
        client.replace_roots(trust.roots())
    node = NodeCredentials(
        node="node-1",
        trust_domain=TRUST_DOMAIN,
        ca=client,
        key_store=NodeKeyStore(directory=state / "node", passphrase_file=state / "node-passphrase"),
        proof=join_token_from(state / "token"),
        utc_now=utc_now,
        rng=rng,
    )
    identities = Identities(ca=client, node=node, identity_wait_s=_WAIT_S, rng=rng, trust=trust)
    watch = TrustWatch(
        ca=client,
        own=lambda: node.own,
        trust=trust,
        identities=identities,
        save=save or trust_file.save,
        rng=rng,
    )
    made = Agent(client=client, identities=identities, trust=trust, watch=watch)

    def rotated(identity: SpiffeId) -> None:
        if identities.current(identity) is None:
            made.dropped.append(identity)

    identities.on_rotated.append(rotated)
    async with trio.open_nursery() as nursery:
        await nursery.start(identities.run)
        nursery.start_soon(watch.run)
        identities.set_wanted(frozenset({WEB, CART}))
        yield made
        nursery.cancel_scope.cancel()


async def changed(authority: Authority, change: Callable[[Store], Any]) -> None:
    """Do something to the database as another process would."""

    def do() -> None:
        store = Store.open(authority.config.database)
        try:
            change(store)
        finally:
            store.close()

    await trio.to_thread.run_sync(do)


def acknowledged(authority: Authority) -> list[tuple[str, int]]:
    with sqlite3.connect(authority.config.state_dir / "authority.db") as connection:
        found = connection.execute("SELECT node, version FROM trust_agents").fetchall()
    connection.close()
    return found


def revoke(identity: SpiffeId) -> Callable[[Store], Any]:
    return lambda store: store.revocations.revoke_identity(str(identity), at=datetime.now(UTC), why="stolen")


async def test_a_revoked_identity_is_dropped_at_once_and_asked_for_again_when_it_is_undone(
    tmp_path: Path, authority: Authority
) -> None:
    async with serving(authority) as port, agent(tmp_path, authority, port) as one:
        first = await one.identities.wait_for(WEB)
        kept = await one.identities.wait_for(CART)
        await changed(authority, revoke(WEB))
        await one.until(lambda: one.dropped == [WEB])
        assert one.identities.current(WEB) is None
        assert one.identities.current(CART) is kept
        with (
            trio.fail_after(_WAIT_S / 2),
            pytest.raises(ConnectionFailure, match="is revoked .*: stolen") as caught,
        ):
            await one.identities.wait_for(WEB)
        assert caught.value.reason is CloseReason.IDENTITY_REVOKED
        assert "revoked" in {entry["state"] for entry in one.identities.status()}

        await changed(authority, lambda store: store.revocations.undo(RevocationKind.IDENTITY, str(WEB)))
        await one.until(lambda: one.identities.current(WEB))
        assert (await one.identities.wait_for(WEB)).serial != first.serial


async def test_a_node_whose_revocation_is_undone_comes_back_by_itself(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its join token is used up: it comes back with the certificate that it had, which counts again."""
    monkeypatch.setattr("node_agent.identity.node_credentials.LONGEST_PAUSE_S", 0.5)
    async with serving(authority) as port, agent(tmp_path, authority, port) as one:
        await one.until(lambda: one.identities.current(WEB) is not None and acknowledged(authority))

        await changed(
            authority, lambda store: store.revocations.revoke_node("node-1", at=datetime.now(UTC), why="typo")
        )
        await one.until(lambda: one.identities.status()[0]["serial"] is None)
        await one.until(lambda: "token_invalid" in (one.identities.status()[0]["last_error"] or ""))
        assert "is revoked since" in one.identities.status()[0]["last_error"]
        assert one.identities.current(WEB) is None

        await changed(authority, lambda store: store.revocations.undo(RevocationKind.NODE, "node-1"))
        await one.until(lambda: one.identities.ready() == (True, ""))
        assert one.identities.current(WEB) is not None


async def test_a_revoked_certificate_of_ours_is_replaced(tmp_path: Path, authority: Authority) -> None:
    async with serving(authority) as port, agent(tmp_path, authority, port) as one:
        first = await one.identities.wait_for(WEB)
        await changed(
            authority, lambda store: store.revocations.revoke_serial(first.serial, at=datetime.now(UTC), why="")
        )
        await one.until(lambda: WEB in one.dropped)
        assert (await one.identities.wait_for(WEB)).serial != first.serial


async def test_what_is_in_force_is_acknowledged_and_what_could_not_be_stored_is_not(
    tmp_path: Path, authority: Authority
) -> None:
    disk_is_full = True

    def save(_: Trust) -> None:
        if disk_is_full:
            raise OSError(28, "No space left on device")

    async with serving(authority) as port, agent(tmp_path, authority, port, save=save) as one:
        await one.until(lambda: one.watch.error is not None)
        assert one.watch.error == "the trust could not be stored: No space left on device"
        assert one.watch.warnings() == [one.watch.error]
        assert one.trust.version >= 1  # in force all the same
        assert one.watch.acknowledged == 0
        await changed(authority, revoke_unseen)
        await one.until(lambda: one.trust.trust.revocations)  # and so is what comes next
        disk_is_full = False
        await one.until(lambda: one.watch.acknowledged == one.trust.version)
        await one.until(lambda: acknowledged(authority) == [("node-1", one.trust.version)])
        assert one.watch.warnings() == []


def revoke_unseen(store: Store) -> None:
    store.revocations.revoke_identity(str(workload("x")), at=datetime.now(UTC), why="", unseen=True)


async def test_an_agent_that_starts_without_the_ca_still_refuses_who_was_revoked(
    tmp_path: Path, authority: Authority
) -> None:
    async with serving(authority) as port:
        async with agent(tmp_path, authority, port) as one:
            await one.identities.wait_for(WEB)
            await changed(authority, revoke(WEB))
            await one.until(lambda: one.watch.acknowledged == one.trust.version and one.trust.trust.revocations)
    async with agent(tmp_path, authority, port) as again:
        with pytest.raises(ConnectionFailure) as caught:
            again.trust.require_trusted(WEB, 1)
        assert caught.value.reason is CloseReason.IDENTITY_REVOKED
        with trio.fail_after(_WAIT_S / 2), pytest.raises(ConnectionFailure, match="revoked"):
            await again.identities.wait_for(WEB)


async def test_an_authority_that_comes_back_is_followed_again(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.identity.trust_watch._SILENT_S", 0.5)
    async with serving(authority) as port:
        async with agent(tmp_path, authority, port) as one:
            await one.until(lambda: one.watch.acknowledged)
            await one.identities.wait_for(WEB)
            assert one.watch.error is None
        first = one.trust.version
    on_that_port = at_port(authority, port)
    async with agent(tmp_path, authority, port) as one:
        await one.until(lambda: one.watch.error)
        assert "Connection refused" in str(one.watch.error)
        await one.until(one.watch.warnings)
        assert one.watch.warnings()[0].startswith("revocations and new roots have not arrived for ")
        assert one.trust.version == first
        async with serving(on_that_port):
            await changed(authority, revoke_unseen)
            await one.until(lambda: one.trust.version > first)
            assert one.watch.error is None
            assert one.watch.warnings() == []


async def test_an_authority_that_says_the_same_at_once_is_not_asked_without_end(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So would one that drains, or a newer one that puts more into its trust than we can read."""
    monkeypatch.setattr("ca.authority.trust_feed.HOLD_S", 0.0)
    asked = 0
    watch = CaClient.watch

    async def counted(*arguments: Any, **options: Any) -> Trust:
        nonlocal asked
        asked += 1
        return await watch(*arguments, **options)

    monkeypatch.setattr(CaClient, "watch", counted)
    async with serving(authority) as port, agent(tmp_path, authority, port) as one:
        await one.until(lambda: one.watch.acknowledged)
        before = asked
        await trio.sleep(1.5)
        assert asked - before <= 2


async def test_an_authority_restored_from_a_backup_is_believed_and_it_is_said(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    backup = tmp_path / "backup.db"
    database = authority.config.state_dir / "authority.db"
    async with serving(authority) as port:
        async with agent(tmp_path, authority, port) as one:
            await one.identities.wait_for(WEB)
            await one.until(lambda: one.watch.acknowledged)
            with sqlite3.connect(database) as source, sqlite3.connect(backup) as target:
                source.backup(target)
            source.close()
            target.close()
            await changed(authority, revoke(WEB))
            await one.until(lambda: one.watch.acknowledged == one.trust.version and one.trust.trust.revocations)
    for each in database.parent.glob("authority.db*"):
        each.unlink()
    shutil.copy(backup, database)
    on_that_port = at_port(authority, port)
    async with serving(on_that_port), agent(tmp_path, authority, port) as again:
        await again.until(lambda: not again.trust.trust.revocations)
        await again.until(lambda: again.identities.current(WEB))
    assert any("restored from a backup?" in record.message for record in caplog.records)


def at_port(authority: Authority, port: int) -> Authority:
    """The same authority, listening where the former one did."""
    text = authority.config_file.read_text()
    authority.config_file.write_text(text.replace('address = "127.0.0.1:0"', f'address = "127.0.0.1:{port}"'))
    return Authority(
        config=type(authority.config).load(authority.config_file),
        config_file=authority.config_file,
        hierarchy=authority.hierarchy,
    )


async def test_new_roots_count_with_the_certificates_at_hand_and_old_ones_no_longer(
    tmp_path: Path, authority: Authority
) -> None:
    """No certificate is asked for again: the CA need not even be there."""
    next_root = make_root()
    newcomer = next_root.intermediate().leaf(str(CART)).own
    old_roots = authority.hierarchy.roots
    async with serving(authority) as port, agent(tmp_path, authority, port) as one:
        before, cart = await one.identities.wait_for(WEB), await one.identities.wait_for(CART)
        await one.until(lambda: one.watch.acknowledged)
        answering = context(newcomer, *old_roots, server_side=True)
        client, _ = shake_hands(before.client_context, answering)
        assert client.error is not None

        await put_in_force(one, *old_roots, next_root.certificate)
        both = one.identities.current(WEB)
        assert both is not None
        assert (both.serial, both.ring > before.ring) == (before.serial, True)
        client, _ = shake_hands(both.client_context, answering)
        assert client.error is None
        client, _ = shake_hands(both.client_context, cart.server_context)
        assert client.error is None

        await put_in_force(one, next_root.certificate)
        only_next = one.identities.current(WEB)
        assert only_next is not None
        client, _ = shake_hands(only_next.client_context, cart.server_context)
        assert client.error is not None


async def put_in_force(one: Agent, *roots: x509.Certificate) -> None:
    """As the watch does with what the CA sends."""
    now = one.trust.trust
    own = replace(now.own, x509_der=tuple(der(root) for root in roots), sequence=now.own.sequence + 1)
    assert one.trust.take(replace(now, version=now.version + 1, bundles=(own,)))
    await one.identities.adopt_roots()
