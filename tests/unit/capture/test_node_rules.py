"""The rules of mode ``cgroup``: for exactly the addresses and ports of the workloads of a node."""

from ca.spiffe import SpiffeId
from node_agent.capture.node_rules import rules
from node_agent.capture.rules import REMOVE
from node_agent.model import Cgroup, ObjectName, Workload


def _workload(name: str, *addresses: str, ports: tuple[int, ...] | None) -> Workload:
    return Workload(
        uid=name,
        name=ObjectName("shop", name),
        service_account=name,
        node="vm-1",
        addresses=addresses,
        identity=SpiffeId.workload("cluster.local", "shop", name),
        enrolled=True,
        cgroup=Cgroup(path=f"/{name}", ports=ports),
    )


def test_plaintext_to_declared_ports_and_to_no_other_goes_to_the_agent_on_the_same_address() -> None:
    text = rules([_workload("web", "10.0.0.5", "fd00::5", ports=(9090, 8080))])

    for line in (
        "ip daddr 10.0.0.5 tcp dport { 8080, 9090 } dnat ip to 10.0.0.5:15006",
        "ip6 daddr fd00::5 tcp dport { 8080, 9090 } dnat ip6 to [fd00::5]:15006",
    ):
        assert text.count(line) == 2, "what arrives, and what the node itself sends"
    assert text.count('iifname != "lo" ip daddr 10.0.0.5 tcp dport { 15001, 15006 } dnat ip to 10.0.0.5:15006') == 1
    assert text.count("dnat") == 4 + 2


def test_all_ports_are_all_but_the_agents() -> None:
    text = rules([_workload("web", "10.0.0.5", ports=None)])

    assert "ip daddr 10.0.0.5 tcp dport != { 15001, 15006, 15008 } dnat ip to 10.0.0.5:15006" in text


def test_the_agents_own_ports_are_nobodys() -> None:
    lines = rules([_workload("web", "10.0.0.5", ports=(15008,))]).splitlines()
    assert [line for line in lines if "dnat" in line and "iifname" not in line] == []


def test_the_text_depends_on_what_is_declared_alone() -> None:
    one, other = _workload("a", "10.0.0.5", ports=(1,)), _workload("b", "10.0.0.6", ports=(2,))

    assert rules([one, other]) == rules([other, one])
    assert rules([]) == REMOVE
