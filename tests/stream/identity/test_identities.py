"""SVIDs through good and bad times, in virtual time, with a CA that answers as the test says."""

import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from ca.errors import CaRefused, CaUnreachable
from ca.messages import (
    AttestWithToken,
    RefusalCode,
    Refused,
    RenewNode,
    Reply,
    Request,
    SignWorkloads,
)
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain
from node_agent.errors import CloseReason, ConnectionFailure
from node_agent.identity import Credentials, peer_identity
from tests.certificates import START, TRUST_DOMAIN, make_root
from tests.handshakes import shake_hands, trusting
from tests.scripted_ca import CART, HOUR_S, WEB, Agent, ScriptedCa, agent, joined, now_utc


@pytest.fixture(autouse=True)
def _no_threads(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time does not wait for a thread."""

    async def inline(call: Callable[..., None], *arguments: object) -> None:
        await trio.lowlevel.checkpoint()
        call(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", inline)


async def test_two_workloads_know_each_other_by_their_svids(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made, WEB, CART)
        web, cart = await made.identities.wait_for(WEB), await made.identities.wait_for(CART)
        client, server = shake_hands(web.client_context, cart.server_context)
        assert client.finished
        assert server.finished
        assert client.tls.selected_alpn_protocol() == "ringfence/2"
        assert peer_identity(client.tls, bundles=trusting(made.ca.root.certificate), at=now_utc()).identity == CART
        assert peer_identity(server.tls, bundles=trusting(made.ca.root.certificate), at=now_utc()).identity == WEB


async def test_identities_that_come_together_are_asked_for_together(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made)
        for number in range(100):
            wanted = {SpiffeId.workload(TRUST_DOMAIN, "default", f"sa-{i}") for i in range(number + 1)}
            made.identities.set_wanted(frozenset(wanted))
            await trio.lowlevel.checkpoint()
        await trio.sleep(0.1)
        assert len(made.ca.times(SignWorkloads)) == 1
        assert made.identities.ready() == (True, "")


async def test_more_identities_than_fit_one_request_are_all_issued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.identity.identities.MAX_REQUESTS", 10)
    async with agent(tmp_path) as made:
        await joined(made)
        made.identities.set_wanted(frozenset(SpiffeId.workload(TRUST_DOMAIN, "default", f"sa-{i}") for i in range(25)))
        await trio.sleep(0.1)
        assert len(made.ca.times(SignWorkloads)) == 3
        assert made.identities.ready() == (True, "")


async def test_an_svid_is_renewed_at_half_life_and_announced(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made, WEB)
        first = made.identities.current(WEB)
        issued_at = made.rotated[0][0]
        while (second := made.identities.current(WEB)) is first:
            await trio.sleep(1.0)
        assert first is not None
        assert second is not None
        assert second.ring > first.ring
        assert second.serial != first.serial
        assert [identity for _, identity in made.rotated] == [WEB, WEB]
        assert 0.44 * HOUR_S < made.rotated[1][0] - issued_at < 0.56 * HOUR_S


async def test_with_the_ca_down_a_valid_svid_is_kept_and_its_expiry_is_the_deadline(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made, WEB)
        kept = made.identities.current(WEB)
        assert kept is not None
        made.ca.trouble = CaUnreachable("connection refused")
        while now_utc() < kept.not_after - timedelta(seconds=1):
            assert made.identities.current(WEB) is kept
            assert made.identities.ready() == (True, "")
            await trio.sleep(60.0 if now_utc() < kept.not_after - timedelta(seconds=62) else 0.5)
        await trio.sleep(2.0)
        assert made.identities.current(WEB) is None
        assert made.identities.expiring() >= 1  # and not: all is well again, there is nothing left that could end
        ready, why = made.identities.ready()
        assert not ready
        assert "connection refused" in why
        assert made.rotated[-1][1] == WEB

        attempts = made.ca.times(SignWorkloads)[1:]
        pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
        assert max(pauses) <= 30.1
        assert min(pauses) >= 0.2
        assert len(attempts) < 90

        made.ca.trouble = None
        await trio.sleep(31.0)
        assert made.identities.ready() == (True, "")
        assert made.identities.expiring() == 0


async def test_a_connection_that_waits_gets_its_svid_soon_after_the_ca_is_back(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made)
        made.ca.trouble = CaUnreachable("connection refused")
        made.identities.set_wanted(frozenset({WEB}))
        await trio.sleep(300.0)  # the pauses have grown

        async def ca_comes_back() -> None:
            await trio.sleep(3.0)
            made.ca.trouble = None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ca_comes_back)
            began = trio.current_time()
            credentials = await made.identities.wait_for(WEB)
        assert credentials.identity == WEB
        assert 3.0 <= trio.current_time() - began <= 3.6


async def test_a_connection_waits_five_seconds_and_is_told_why(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made)
        made.ca.trouble = CaUnreachable("connection refused")
        made.identities.set_wanted(frozenset({WEB}))
        began = trio.current_time()
        with pytest.raises(ConnectionFailure) as caught:
            await made.identities.wait_for(WEB)
        assert caught.value.reason is CloseReason.IDENTITY_UNAVAILABLE
        assert "connection refused" in caught.value.detail
        assert str(WEB) in caught.value.detail
        assert trio.current_time() - began == pytest.approx(5.0)
        attempts = [at for at in made.ca.times(SignWorkloads) if at >= began]
        assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(attempts))


async def test_an_identity_that_the_ca_does_not_place_here_yet_is_asked_for_again_soon(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made, CART)
        text = "runs no such workload"
        made.ca.refusals[WEB] = Refused(code=RefusalCode.NOT_SCHEDULED, text=text, retry_after_s=1.0)
        made.identities.set_wanted(frozenset({WEB, CART}))
        await trio.sleep(60.0)
        status = {entry["identity"]: entry for entry in made.identities.status()}
        assert status[str(WEB)]["state"] == "refused"
        assert status[str(CART)]["state"] == "valid"
        assert text in made.identities.ready()[1]
        del made.ca.refusals[WEB]
        await trio.sleep(2.1)
        assert made.identities.current(WEB) is not None


async def test_a_refused_join_token_is_a_clear_text_and_slow_attempts(tmp_path: Path) -> None:
    async with agent(tmp_path, token="stolen") as made:
        made.identities.set_wanted(frozenset({WEB}))
        await trio.sleep(600.0)
        ready, why = made.identities.ready()
        assert not ready
        assert "token_invalid" in why
        assert "stolen" not in why
        attempts = made.ca.times(AttestWithToken)
        assert 20 <= len(attempts) <= 40
        assert attempts[-1] - attempts[-2] > 20.0

        # Waiting connections do not make it ask faster.
        with pytest.raises(ConnectionFailure, match="token_invalid"):
            await made.identities.wait_for(WEB)
        assert len(made.ca.times(AttestWithToken)) <= len(attempts) + 1

        made.token_file.write_text("good")
        await joined(made, WEB)


@pytest.mark.parametrize("token", [None, ""])
async def test_a_missing_join_token_is_named(tmp_path: Path, token: str | None) -> None:
    async with agent(tmp_path, token=token) as made:
        await trio.sleep(1.0)
        assert "join_token_file" in made.identities.ready()[1]
        assert not made.ca.asked
        made.token_file.write_text("good")
        await joined(made, WEB)


async def test_an_identity_that_is_no_longer_wanted_is_gone_at_once(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made, WEB, CART)
        made.rotated.clear()
        made.identities.set_wanted(frozenset({CART}))
        assert made.identities.current(WEB) is None
        assert [identity for _, identity in made.rotated] == [WEB]
        with pytest.raises(ConnectionFailure, match="no workload on this node"):
            await made.identities.wait_for(WEB)


async def test_a_connection_that_waits_is_released_when_its_workload_goes(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made)
        made.ca.trouble = CaUnreachable("connection refused")
        made.identities.set_wanted(frozenset({WEB}))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def workload_goes() -> None:
                await trio.sleep(1.0)
                made.identities.set_wanted(frozenset())

            nursery.start_soon(workload_goes)
            with pytest.raises(ConnectionFailure):
                await made.identities.wait_for(WEB)
        assert trio.current_time() - began == pytest.approx(1.0)


async def test_the_node_certificate_is_renewed_without_the_token_and_survives_a_restart(tmp_path: Path) -> None:
    ca = ScriptedCa(make_root())
    async with agent(tmp_path, ca=ca) as made:
        await joined(made, WEB)
        await trio.sleep(14 * HOUR_S)
        assert len(ca.times(AttestWithToken)) == 1
        assert len(ca.times(RenewNode)) == 1
    ca.asked.clear()
    async with agent(tmp_path, ca=ca, token="used up") as made:
        await joined(made, WEB)
        assert not ca.times(AttestWithToken)


async def test_a_node_certificate_that_has_expired_is_renewed_once_more(tmp_path: Path) -> None:
    """After an outage, or a night in which the agent was off: no token is needed if the CA agrees."""
    ca = ScriptedCa(make_root())
    async with agent(tmp_path, ca=ca) as made:
        await joined(made, WEB)
        made.ca.trouble = CaUnreachable("connection refused")
        await trio.sleep(30 * HOUR_S)
        assert made.identities.current(WEB) is None
        made.ca.trouble = None
        await joined(made, WEB)
    await trio.sleep(30 * HOUR_S)
    ca.asked.clear()
    async with agent(tmp_path, ca=ca, token="used up") as made:
        await joined(made, WEB)
        assert not ca.times(AttestWithToken)
        assert len(ca.times(RenewNode)) == 1


async def test_if_the_ca_does_not_renew_it_the_node_proves_itself_again(tmp_path: Path) -> None:
    class StrictCa(ScriptedCa):
        async def _ask(self, request: Request, own: KeyAndChain | None) -> Reply:
            reply = await super()._ask(request, own)
            if isinstance(request, RenewNode):
                raise CaRefused(RefusalCode.UNAUTHENTICATED, "expired, longer ago than node_grace_s")
            return reply

    ca = StrictCa(make_root())
    async with agent(tmp_path, ca=ca) as made:
        await joined(made, WEB)
    await trio.sleep(30 * HOUR_S)
    ca.asked.clear()
    async with agent(tmp_path, ca=ca) as made:
        await joined(made, WEB)
        assert len(ca.times(RenewNode)) == 1
        assert len(ca.times(AttestWithToken)) == 1


async def test_a_new_trust_bundle_reaches_every_identity(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made, WEB)
        await trio.sleep(60.0)
        old, made.ca.also_roots = made.identities.current(WEB), (make_root().certificate,)
        made.identities.set_wanted(frozenset({WEB, CART}))
        await trio.sleep(1.0)
        assert old is not None
        assert len(old.client_context.get_ca_certs()) == 1
        for identity in (WEB, CART):
            credentials = made.identities.current(identity)
            assert credentials is not None
            assert len(credentials.client_context.get_ca_certs()) == 2
            assert len(credentials.server_context.get_ca_certs()) == 2
        assert len(made.ca.roots) == 2


async def _spoilt(made: Agent) -> tuple[Credentials | None, str]:
    before = made.identities.current(WEB)
    started = len(made.ca.asked)
    while len(made.ca.times(SignWorkloads)) < 2 or len(made.ca.asked) == started:
        await trio.sleep(10.0)
    await trio.sleep(1.0)
    assert made.identities.current(WEB) is before
    return before, made.identities.status()[1]["last_error"]


async def test_a_certificate_with_anothers_key_is_not_used(tmp_path: Path) -> None:
    async with agent(tmp_path) as made:
        await joined(made, WEB)
        made.ca.spoil = lambda certificate: made.ca.signer.leaf(str(WEB)).certificate
        kept, why = await _spoilt(made)
        assert kept is not None
        assert "a key that is not ours" in why


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda ca, key: ca.signer.leaf(str(CART), public_key=key), "instead of"),
        (lambda ca, key: make_root().leaf(str(WEB), public_key=key), "not in order"),
        (lambda ca, key: ca.signer.leaf(str(WEB), public_key=key, usage_critical=False), "not critical"),
        (lambda ca, key: ca.signer.leaf(str(WEB), public_key=key, not_after=START), "expired"),
    ],
    ids=["another identity", "another CA", "broken rule", "expired"],
)
async def test_a_certificate_that_was_not_asked_for_is_not_used(
    tmp_path: Path,
    spoil: Callable[[ScriptedCa, object], object],
    words: str,
) -> None:
    async with agent(tmp_path) as made:
        await joined(made, WEB)
        made.ca.spoil = lambda certificate: spoil(made.ca, certificate.public_key()).certificate  # type: ignore[attr-defined]
        kept, why = await _spoilt(made)
        assert kept is not None
        assert words in why
