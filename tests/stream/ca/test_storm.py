"""A mesh comes back at once: everybody is served in the end, and nobody is told anything but when to come again."""

from collections import Counter
from pathlib import Path

import pytest
import trio

from ca.authority import overload as overload_module
from ca.authority import worker as worker_module
from ca.client import CaClient
from ca.csr import build_csr, new_key
from ca.errors import CaRefused
from ca.messages import RefusalCode, SignRequest
from ca.tls import KeyAndChain
from tests.authority_builder import Authority, make_authority, serving, workload

AGENTS = 60


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path)


async def test_all_agents_of_a_mesh_that_come_at_once_are_served_in_the_end(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "MAX_WAITING", 20)  # two requests: nearly all others are turned away
    monkeypatch.setattr(overload_module, "_FIRST_S", 0.05)
    monkeypatch.setattr(overload_module, "_SHORTEST_WINDOW_S", 0.5)
    for number in range(AGENTS):
        authority.pod(f"app-{number}", node=f"node-{number}", account="app")
    request = SignRequest(identity=workload("app"), csr_der=build_csr(new_key(), workload("app")))
    outcomes: Counter[str] = Counter()

    async def come_back(client: CaClient, own: KeyAndChain, begun: trio.Event) -> None:
        await begun.wait()
        while True:
            try:
                reply = await client.sign([request] * 10, own)
            except CaRefused as exc:
                outcomes[exc.code] += 1
                assert exc.retry_after_s > 0
                await trio.sleep(exc.retry_after_s)
            else:
                outcomes["issued"] += sum(1 for item in reply.certificates if item.chain_der)
                return

    async with serving(authority) as port, trio.open_nursery() as nursery:
        begun = trio.Event()
        for number in range(AGENTS):
            own = authority.node_credentials(f"node-{number}")
            nursery.start_soon(come_back, authority.client(port), own, begun)
        begun.set()

    assert outcomes["issued"] == 10 * AGENTS
    assert outcomes.keys() == {"issued", RefusalCode.UNAVAILABLE}
    issued = Counter(record.node for record in authority.journal() if record.node)
    assert set(issued.values()) == {10}
    assert len(issued) == AGENTS
