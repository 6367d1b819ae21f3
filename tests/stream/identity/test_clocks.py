"""Clocks that differ: a minute either way is nobody's business, more is said with both times."""

import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from ca.client import CaClient
from ca.connection import Clock
from ca.csr import build_csr, new_key
from ca.errors import CaUnreachable
from ca.spiffe import SpiffeId
from node_agent.identity import Identities, NodeCredentials, NodeKeyStore, join_token_from, peer_identity
from tests.authority_builder import TRUST_DOMAIN, Authority, make_authority, serving, workload
from tests.handshakes import shake_hands, trusting

_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    # Made long ago, as a root is; the certificate of its server is new in each test.
    return make_authority(tmp_path, at=datetime.now(UTC) - timedelta(days=1))


def off_by(seconds: float) -> Callable[[], datetime]:
    return lambda: datetime.now(UTC) + timedelta(seconds=seconds)


def client_at(authority: Authority, port: int, utc_now: Callable[[], datetime]) -> CaClient:
    return CaClient(
        addresses=[("127.0.0.1", port)],
        roots_pem=authority.config.bundle_file.read_bytes(),
        trust_domain=TRUST_DOMAIN,
        utc_now=utc_now,
    )


@asynccontextmanager
async def agent(
    directory: Path, authority: Authority, port: int, node: str, utc_now: Callable[[], datetime]
) -> AsyncIterator[Identities]:
    state = directory / node
    state.mkdir()
    (state / "token").write_text(authority.token(node))
    (state / "node-passphrase").write_text("correct horse")
    rng = random.Random(7)
    client = client_at(authority, port, utc_now)
    node_credentials = NodeCredentials(
        node=node,
        trust_domain=TRUST_DOMAIN,
        ca=client,
        key_store=NodeKeyStore(directory=state / "key", passphrase_file=state / "node-passphrase"),
        proof=join_token_from(state / "token"),
        utc_now=utc_now,
        rng=rng,
    )
    made = Identities(ca=client, node=node_credentials, identity_wait_s=5.0, rng=rng, utc_now=utc_now)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


async def test_agents_a_minute_ahead_and_a_minute_behind_join_and_believe_each_other(
    tmp_path: Path, authority: Authority
) -> None:
    authority.pod("web", node="fast", account="web")
    authority.pod("cart", node="slow", account="cart")
    web, cart = workload("web"), workload("cart")
    fast, slow = off_by(58), off_by(-58)
    async with (
        serving(authority) as port,
        agent(tmp_path, authority, port, "fast", fast) as one,
        agent(tmp_path, authority, port, "slow", slow) as other,
    ):
        one.set_wanted(frozenset({web}))
        other.set_wanted(frozenset({cart}))
        ours, theirs = await one.wait_for(web), await other.wait_for(cart)
        client, server = shake_hands(ours.client_context, theirs.server_context)
        anchors = trusting(*authority.hierarchy.roots)
        assert peer_identity(client.tls, bundles=anchors, at=fast()).identity == cart
        assert peer_identity(server.tls, bundles=anchors, at=slow()).identity == web
        assert one.warnings() == other.warnings() == []


@pytest.mark.parametrize(("off_s", "apart_s"), [(75, 75), (-75, 75)])
async def test_more_than_a_minute_is_a_warning_with_both_times_as_long_as_it_works(
    tmp_path: Path, authority: Authority, off_s: float, apart_s: int
) -> None:
    authority.pod("web", node="node-1", account="web")
    async with serving(authority) as port, agent(tmp_path, authority, port, "node-1", off_by(off_s)) as one:
        one.set_wanted(frozenset({workload("web")}))
        await one.wait_for(workload("web"))
        (warning,) = one.warnings()
        assert re.search(f"this node's clock says {_TIME} and the CA's {_TIME}: they are 7[456] s apart", warning)
        assert "60 s are tolerated" in warning
        assert abs(abs(one.clock_ahead_s()) - apart_s) < 5


@pytest.mark.parametrize(("off_s", "what"), [(2 * 3600, "expired"), (-600, "not yet valid")])
async def test_a_clock_that_is_far_off_is_an_error_with_its_time_and_the_cas_dates(
    tmp_path: Path, authority: Authority, off_s: float, what: str
) -> None:
    async with serving(authority) as port:
        client = client_at(authority, port, off_by(off_s))
        key, node = new_key(), SpiffeId.node(TRUST_DOMAIN, "node-1")
        with pytest.raises(CaUnreachable) as caught:
            await client.attest(authority.token("node-1"), "node-1", build_csr(key, node))
    pattern = f"{what}: valid from {_TIME} to {_TIME}, and it is {_TIME} here: is this node's clock right, and the CA's"
    assert re.search(pattern, str(caught.value))


async def test_readiness_says_that_the_clock_may_be_wrong(tmp_path: Path, authority: Authority) -> None:
    authority.pod("web", node="node-1", account="web")
    async with serving(authority) as port, agent(tmp_path, authority, port, "node-1", off_by(7200)) as one:
        one.set_wanted(frozenset({workload("web")}))
        with trio.fail_after(30):
            while "is this node's clock right" not in one.ready()[1]:
                await trio.sleep(0.05)


@pytest.mark.parametrize(
    ("ahead_s", "within_s", "is_problem"),
    [(0, 0.0, False), (60, 0.0, False), (-60, 0.0, False), (61, 0.0, True), (-61, 0.0, True), (63, 5.0, False)],
)
def test_what_is_tolerated_ends_after_a_minute(ahead_s: float, within_s: float, is_problem: bool) -> None:
    """``within_s``: an answer that was long on its way proves less."""
    at = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    clock = Clock(ours=at + timedelta(seconds=ahead_s), theirs=at, within_s=within_s)
    assert (clock.problem is not None) is is_problem
