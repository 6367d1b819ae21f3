"""Who may have a connection by AuthorizationPolicy, and who may keep it: there is no moment in between."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.spiffe import SpiffeId
from node_agent.errors import CloseReason, PolicyDenied
from node_agent.frames import Denied
from node_agent.model import EndpointAddress, OriginalDestination, PeerAddress
from node_agent.policy import PolicyEngine
from node_agent.proxy.foresight import Foresight
from node_agent.proxy.policy_gate import cut_failure, cut_reason
from node_agent.telemetry.connection_record import ConnectionRecord
from tests.policy_stage import ALLOW_ADDRESSES, ALLOW_CART, CART, DENY_CART, OTHER, PODS, Stage


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    made.apply(PODS.format(app="web"))
    return made


async def _settle(stage: Stage) -> None:
    """Until all that is pending is judged."""
    await trio.testing.wait_all_tasks_blocked()
    assert not stage.gate._pending


async def test_a_new_policy_cuts_those_that_it_denies_and_no_others(stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.connection, "cart", CART)
        nursery.start_soon(stage.connection, "other", OTHER)
        await _settle(stage)
        assert stage.alive() == {"cart", "other"}
        stage.policy(DENY_CART)
        await _settle(stage)
        assert stage.alive() == {"other"}
        record = stage.ended["cart"]
        assert (record.close_reason, record.policy) == (CloseReason.POLICY_DENIED, "shop/policy")
        assert "rule 0" in record.detail
        assert cut_reason(record) == Denied(policy="shop/policy")
        assert sum(stage.metric("ringfence_policy_denials_total").values()) == 1
        nursery.cancel_scope.cancel()


async def test_a_label_that_puts_the_destination_under_a_policy_cuts_as_well(stage: Stage) -> None:
    stage.apply(PODS.format(app="somebody-else"))
    stage.policy(DENY_CART)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.connection, "cart", CART)
        nursery.start_soon(stage.connection, "other", OTHER)
        await _settle(stage)
        assert stage.alive() == {"cart", "other"}
        stage.apply(PODS.format(app="web"))
        await _settle(stage)
        assert stage.alive() == {"other"}
        nursery.cancel_scope.cancel()


async def test_a_plaintext_connection_is_cut_when_the_mode_becomes_strict(stage: Stage) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.connection, "plain", None)
        nursery.start_soon(stage.connection, "cart", CART)
        await _settle(stage)
        stage.apply(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
            "metadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n"
        )
        await _settle(stage)
        assert stage.alive() == {"cart"}
        assert stage.ended["plain"].close_reason is CloseReason.PLAINTEXT_REFUSED
        nursery.cancel_scope.cancel()


@settings(deadline=None)
@given(
    steps=st.lists(
        st.sampled_from(["connect", "slow", "many", "deny", "allow", "relabel", "label", "turn"]), max_size=14
    )
)
def test_in_any_order_of_events_no_connection_lives_that_the_last_policies_deny(steps: list[str]) -> None:
    async def play() -> None:
        stage = Stage()
        stage.apply(PODS.format(app="web"))
        numbers = itertools.count()
        denied, app = False, "web"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.gate.run)

            def connect(count: int, awaits: int) -> None:
                for _ in range(count):
                    number = next(numbers)
                    source = (CART, OTHER)[number % 2]
                    nursery.start_soon(stage.connection, f"{source.service_account}-{number}", source, awaits)

            for step in steps:
                match step:
                    case "connect":
                        connect(1, 0)
                    case "slow":
                        connect(2, 3)
                    case "many":
                        connect(130, 1)  # more than are judged at once
                    case "deny":
                        stage.policy(DENY_CART)
                        denied = True
                    case "allow":
                        stage.delete()
                        denied = False
                    case "relabel" | "label":
                        app = "web" if step == "label" else "somebody-else"
                        stage.apply(PODS.format(app=app))
                    case _:
                        await trio.lowlevel.checkpoint()
            await _settle(stage)
            if denied and app == "web":
                assert not [name for name in stage.alive() if name.startswith("cart")]
            others = {name for name in stage.ended if name.startswith("other")}
            assert others <= stage.alive(), "nobody who was never denied is cut"
            assert len(stage.live.connections) == len(stage.alive())
            nursery.cancel_scope.cancel()

    trio.run(play)


async def test_many_are_judged_in_slices_and_the_last_ones_get_their_turn_whatever_follows(
    stage: Stage,
) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(stage.connection, str(number), CART)
        await _settle(stage)
        nursery.start_soon(stage.gate.run)
        stage.policy(DENY_CART)
        assert len(stage.alive()) == 500, "not all at once"
        turns = 0
        while stage.alive():
            # A change at each turn, before the former one has been carried through.
            stage.policy("{action: DENY, rules: [{from: [{source: {namespaces: [none]}}]}]}", name=f"p{turns % 2}")
            if turns % 2:
                stage.delete("p0")
            turns += 1
            assert turns < 200
            await trio.lowlevel.checkpoint()
        assert turns > 5
        nursery.cancel_scope.cancel()


def test_before_the_policies_are_loaded_nothing_is_allowed() -> None:
    loaded = Stage()
    loaded.apply(PODS.format(app="web"))
    stage = Stage()
    record = _record(stage)
    loaded.fill(record, CART)
    with pytest.raises(PolicyDenied, match="not loaded yet"):
        stage.gate.admit(record)


def test_an_engine_that_fails_denies_and_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_request: object) -> Any:
        raise LookupError("bug")

    monkeypatch.setattr(PolicyEngine, "decide", lambda _self, request: fail(request))
    record = _record(stage)
    stage.fill(record, CART)
    with pytest.raises(PolicyDenied, match="LookupError"):
        stage.gate.admit(record)
    with pytest.raises(PolicyDenied):
        stage.gate.admit_check(stage.web, _tunnel(CART), OriginalDestination("10.0.0.1", 8080), "10.0.0.2")


def _record(stage: Stage) -> ConnectionRecord:
    return ConnectionRecord(traffic=stage.log._traffic, record_id="node-1-1", direction="inbound", now=0.0)


def _tunnel(identity: SpiffeId) -> Any:
    class Peer:
        pass

    class Tunnel:
        peer: Any = Peer()

    Tunnel.peer.identity = identity
    return Tunnel()


def _judge(stage: Stage, source: SpiffeId | None, ip: str = "10.0.0.2") -> ConnectionRecord:
    record = _record(stage)
    stage.fill(record, source, ip)
    stage.gate.admit(record)
    return record


def test_an_address_allows_plaintext_only_if_its_owner_would_not_come_through_a_tunnel(stage: Stage) -> None:
    stage.policy(ALLOW_ADDRESSES)
    assert _judge(stage, None, "10.0.0.77").policy == "shop/policy"
    assert _judge(stage, CART).policy == "shop/policy"
    with pytest.raises(PolicyDenied, match=r"shop/cart, which would come through a tunnel") as denied:
        _judge(stage, None, "10.0.0.2")
    assert denied.value.policy is None


def test_a_denial_without_a_policy_is_counted_as_none_and_is_not_blamed_on_who_allowed_before(
    stage: Stage,
) -> None:
    stage.policy(ALLOW_CART)
    record = _judge(stage, CART)
    assert record.policy == "shop/policy"
    with pytest.raises(PolicyDenied, match="shop/policy") as denied:
        _judge(stage, OTHER)
    assert denied.value.policy is None
    record.failed(denied.value)
    found: tuple[object, object] = (record.close_reason, record.policy)
    assert found == (CloseReason.POLICY_DENIED, None)
    assert stage.metric("ringfence_policy_denials_total") == {"none": 1}


def test_what_is_on_dry_run_or_audited_is_in_the_record_and_counted(stage: Stage) -> None:
    stage.policy(DENY_CART, more=', annotations: {"istio.io/dry-run": "true"}')
    stage.policy("{action: AUDIT, rules: [{}]}", name="watch")
    stage.policy("{action: AUDIT, rules: [{}, {}]}", name="watch-too")
    record = _judge(stage, CART)
    assert record.dry_run == "denied by shop/policy"
    assert record.audit == "shop/watch, shop/watch-too"
    assert _judge(stage, OTHER).dry_run is None
    assert stage.metric("ringfence_policy_dry_run_denials_total") == {"shop/policy": 1}
    assert stage.metric("ringfence_policy_audits_total") == {"shop/watch": 2, "shop/watch-too": 2}


def test_a_check_by_who_is_denied_says_nothing_more(stage: Stage) -> None:
    to = OriginalDestination("10.0.0.1", 8080)
    stage.gate.admit_check(stage.web, _tunnel(CART), to, "10.0.0.2")
    stage.policy(DENY_CART)
    with pytest.raises(PolicyDenied) as denied:
        stage.gate.admit_check(stage.web, _tunnel(CART), to, "10.0.0.2")
    assert (denied.value.detail, denied.value.policy) == ("", None)
    assert stage.metric("ringfence_policy_denials_total") == {}


def _outbound(stage: Stage, source: SpiffeId) -> ConnectionRecord:
    record = ConnectionRecord(traffic=stage.log._traffic, record_id="node-1-2", direction="outbound", now=0.0)
    record.note(source_address=PeerAddress("10.0.0.2", 4000), source_identity=source)
    record.chose(
        endpoint=EndpointAddress("10.0.0.1", 8080),
        destination=stage.web,
        destination_identity=stage.web.identity,
        security="mutual_tls",
    )
    return record


def _asks(stage: Stage, foresight: Foresight, times: Iterable[float], source: SpiffeId = CART) -> int:
    """How often the destination, which always denies, is asked."""
    asked = 0
    for now in times:
        record = _outbound(stage, source)
        try:
            foresight.spare(record, now)
        except PolicyDenied as denied:
            assert denied.policy == "shop/policy"
        else:
            asked += 1
            foresight.denied(record, now)
    return asked


def test_each_denial_is_the_destinations_but_for_a_storm_of_them(stage: Stage) -> None:
    stage.policy(DENY_CART)
    foresight = Foresight(stage.gate)
    assert _asks(stage, foresight, [number * 0.2 for number in range(50)]) == 50
    assert _asks(stage, foresight, [100 + number * 0.001 for number in range(3000)]) == 30
    assert _asks(stage, foresight, [200 + number * 0.001 for number in range(100)], OTHER) == 100, "not denied here"
    stage.delete()
    assert _asks(stage, foresight, [300 + number * 0.001 for number in range(100)]) == 100, "an early allow is none"


@pytest.mark.parametrize("policy", [None, "shop/deny"])
def test_what_the_other_agent_says_of_its_cut_is_in_our_record(stage: Stage, policy: str | None) -> None:
    record = _judge(stage, CART)
    record.failed(cut_failure(Denied(policy=policy)))
    assert (record.close_reason, record.policy) == (CloseReason.POLICY_DENIED, policy)
    record = _judge(stage, CART)
    record.failed(cut_failure(CloseReason.DRAINED))
    assert record.close_reason is CloseReason.DRAINED
