"""A node with many workloads asks once, and makes no context that nobody uses."""

from pathlib import Path

import pytest
import trio

from ca.spiffe import SpiffeId
from node_agent.identity import Credentials, Identities
from tests.authority_builder import TRUST_DOMAIN, Authority, make_authority, serving, workload
from tests.stream.identity.test_identities_with_authority import identities

COUNT = 200


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


async def all_of(agent: Identities, wanted: frozenset[SpiffeId]) -> dict[SpiffeId, Credentials]:
    found: dict[SpiffeId, Credentials] = {}

    async def take(identity: SpiffeId) -> None:
        found[identity] = await agent.wait_for(identity)

    async with trio.open_nursery() as nursery:
        for identity in wanted:
            nursery.start_soon(take, identity)
    return found


async def test_two_hundred_identities_arrive_in_few_requests(tmp_path: Path, authority: Authority) -> None:
    for number in range(COUNT):
        authority.pod(f"app-{number}", node="node-1", account=f"app-{number}")
    wanted = frozenset(workload(f"app-{number}") for number in range(COUNT))
    async with serving(authority) as port, trio.open_nursery() as nursery:
        agent = identities(tmp_path, authority.client(port), token=authority.token("node-1"), wait_s=50.0)
        await nursery.start(agent.run)
        agent.set_wanted(wanted)
        found = await all_of(agent, wanted)
        assert agent.ready() == (True, "")
        nursery.cancel_scope.cancel()

    assert found.keys() == wanted
    assert len({each.serial for each in found.values()}) == COUNT
    assert not any(each._made for each in found.values())
    journal = [each for each in authority.journal() if each.node == "node-1"]
    assert len(journal) == COUNT + 1
    connections = {each.requester for each in journal}  # one for each request
    assert len(connections) <= 1 + 2
    node = SpiffeId.node(TRUST_DOMAIN, "node-1")
    assert [each.identity for each in journal if each.attestation == "join_token"] == [str(node)]


async def test_a_context_is_made_once_and_anew_for_other_roots(tmp_path: Path, authority: Authority) -> None:
    authority.pod("web", node="node-1", account="web")
    async with serving(authority) as port, trio.open_nursery() as nursery:
        agent = identities(tmp_path, authority.client(port), token=authority.token("node-1"), wait_s=50.0)
        await nursery.start(agent.run)
        agent.set_wanted(frozenset({workload("web")}))
        before = await agent.wait_for(workload("web"))
        contexts = before.client_context, before.server_context
        assert (before.client_context, before.server_context) == contexts
        await agent.adopt_roots()
        after = agent.current(workload("web"))
        nursery.cancel_scope.cancel()

    assert after is not None
    assert after.own is before.own
    assert after.ring > before.ring
    assert after.client_context is not before.client_context
    assert after.server_context is not before.server_context
