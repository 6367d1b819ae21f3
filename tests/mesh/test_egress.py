"""Places outside through a named egress node: encrypted up to it, never around it, refused without it."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from labkit import pcap
from tests.lab_authority import lab_signer
from tests.mesh_builder import Mesh, Pod, wait_for
from tests.tunnel_peer import OPEN, dial, open_payload, peer_context

pytestmark = pytest.mark.mesh

_EGRESS: Final = {"ringfence.io/egress": "true"}
_VIRTUAL: Final = ("10.249.0.7", "fd00:249::7")
_POLICY: Final = """\
apiVersion: ringfence.io/v1alpha1
kind: TrafficPolicy
metadata: {name: bank}
spec:
  targetRef: {kind: ServiceEntry, name: bank}
  loadBalancing: {policy: round-robin}
  healthCheck: {type: tcp, interval: 200ms, timeout: 200ms}
"""

_ONLY_BUYERS: Final = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: buyers}
spec:
  selector: {matchLabels: {ringfence.io/egress: "true"}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/buyer]}}], to: [{operation: {ports: ["9000"]}}]}]
"""


@pytest.fixture
def bank(mesh: Mesh) -> Iterator[Pod]:
    """A server outside, the host of the CA; it answers with the client's address."""
    server = mesh.node(0)
    server.serve_whoami(9000)
    server.serve_echo(9001)
    yield server
    server.close()


def _declare(mesh: Mesh, bank: Pod, node: str = "node-2") -> None:
    mesh.apply(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n"
        f"metadata: {{name: bank, annotations: {{ringfence.io/egress-node: '{node}'}}}}\n"
        f"spec:\n  hosts: [bank.example]\n  addresses: [{', '.join(_VIRTUAL)}]\n"
        "  ports: [{number: 9000, name: ask}, {number: 9001, name: echo}]\n"
        f"  resolution: STATIC\n  endpoints: [{{address: {bank.ipv4}}}, {{address: '{bank.ipv6}'}}]\n"
    )


def _asked(client: Pod, ip: str) -> str:
    """The address that the server outside sees; empty if the connection is refused."""
    with contextlib.suppress(OSError):
        answer = client.ask_whoami(ip, 9000)
        return answer[1] if answer else ""
    return ""


def _warnings(mesh: Mesh, words: str) -> list[str]:
    return [line for line in mesh.ringfence(1, "status")["warnings"] if words in line]


def test_connections_leave_from_the_egress_pod_and_are_encrypted_up_to_it(
    mesh: Mesh, bank: Pod, tmp_path: Path
) -> None:
    client = mesh.pod("client", node=1)
    egress = mesh.pod("egress", node=2, service_account="egress", labels=_EGRESS)
    neighbour = mesh.pod("neighbour", node=2)
    _declare(mesh, bank)
    word = os.urandom(16).hex().encode()
    path = tmp_path / "link.pcap"
    with mesh.tapped(path):
        for ip, seen in ((_VIRTUAL[0], egress.ipv4), (_VIRTUAL[1], egress.ipv6), (bank.ipv4, egress.ipv4)):
            assert _asked(client, ip) == seen
            assert _asked(neighbour, ip) == seen, "also from the egress node itself"
        for ip in _VIRTUAL:
            with client.connect(ip, 9001) as connection:
                connection.sendall(word * 100)
                assert len(_read(connection, len(word) * 100)) == len(word) * 100
        assert _asked(egress, _VIRTUAL[0]) == egress.ipv4

    ours, theirs = {client.ipv4, client.ipv6, "10.247.0.11", "fd52:4647::11"}, {bank.ipv4, bank.ipv6}
    packets = list(pcap.packets(path))
    pairs = {
        (each.flow.source, each.flow.destination) for each in packets if each.flow.destination_port in (9000, 9001)
    }
    assert pairs == {(egress.ipv4, bank.ipv4), (egress.ipv6, bank.ipv6)}, "the source's node never talks to the bank"
    assert not any({source, to} & ours and {source, to} & theirs for source, to in pairs)
    for flow, data in pcap.streams(packets).items():
        is_last_leg = {flow.source, flow.destination} & theirs and 9001 in (flow.source_port, flow.destination_port)
        assert (word in data) == bool(is_last_leg), flow

    record = mesh.record(1, direction="outbound", original_destination=f"{_VIRTUAL[0]}:9001")
    assert (record["service"], record["endpoint"]) == ("default/bank:9001", f"{bank.ipv4}:9001")
    assert (record["destination_workload"], record["destination_identity"]) == ("default/egress", egress.identity)
    assert (record["attempts"], record["close_reason"]) == (1, "ok")
    assert record["connection_security_policy"] == "mutual_tls"
    other = mesh.record(2, direction="inbound", endpoint=f"{bank.ipv4}:9001")
    assert (other["source_identity"], other["service"]) == (client.identity, "default/bank:9001")
    assert (other["sent_bytes"], other["received_bytes"]) == (record["sent_bytes"], record["received_bytes"])
    assert (other["attempts"], other["close_reason"]) == (1, "ok")

    (service,) = (row for row in mesh.ringfence(1, "services") if row["name"] == "bank")
    assert (service["egress_nodes"], service["endpoints"], service["ready"]) == (["node-2"], 4, 4)
    rows = mesh.ringfence(1, "endpoints", "bank")
    assert {(row["egress"], row["identity"]) for row in rows} == {("default/egress", egress.identity)}
    assert not _warnings(mesh, "bank")


def test_an_egress_is_no_open_proxy_and_its_policies_judge_who_asks(mesh: Mesh, bank: Pod) -> None:
    egress = mesh.pod("egress", node=2, labels=_EGRESS)
    plain = mesh.pod("plain", node=2)
    attacker = mesh.pod("attacker", node=1, mesh=False)
    _declare(mesh, bank)
    signer = lab_signer()
    leaf_id = f"spiffe://{signer.trust_domain}/ns/default/sa/buyer"
    here, there = (attacker.ipv4, 40000), (bank.ipv4, 9000)
    known = ["ServiceEntry", "default", "bank", 9000]
    asked: list[tuple[Pod, tuple[str, int], list[Any] | None, str]] = [
        (egress, there, None, "unknown_destination"),
        (egress, there, ["ServiceEntry", "default", "other", 9000], "unknown_destination"),
        (egress, there, ["Service", "default", "bank", 9000], "unknown_destination"),
        (egress, there, ["ServiceEntry", "default", "bank", 9002], "unknown_destination"),
        (egress, (bank.ipv4, 9001), known, "unknown_destination"),
        (egress, ("10.247.0.12", 9000), known, "unknown_destination"),
        (egress, (_VIRTUAL[0], 9000), known, "unknown_destination"),
        (egress, (plain.ipv4, 9000), known, "unknown_destination"),
        (egress, ("127.0.0.1", 9000), known, "unknown_destination"),
        (plain, there, known, "unknown_destination"),
        (egress, there, known, "ok"),
    ]
    context = peer_context(signer.leaf(leaf_id), signer.signers[-1])
    for pod, destination, outside, reason in asked:
        changes = {} if outside is None else {"outside": outside}
        with dial(attacker, pod.ipv4, context) as peer:
            assert peer.open(destination=destination, source=here, **changes) == reason, (
                pod.name,
                destination,
                outside,
            )
    wrong: tuple[Any, ...] = (["ServiceEntry"], "bank", [1, 2, 3, 4], ["ServiceEntry", "default", "bank", "9000"])
    for each in wrong:
        with dial(attacker, egress.ipv4, context) as peer:
            peer.send(OPEN, open_payload(destination=there, source=here, outside=each))
            assert peer.is_refused()
    served = mesh.record(2, endpoint=f"{bank.ipv4}:9000")
    assert (served["service"], served["source_identity"]) == ("default/bank:9000", leaf_id)

    client = mesh.pod("client", node=1)
    buyer = mesh.pod("buyer", node=1, service_account="buyer")
    mesh.apply(_ONLY_BUYERS)
    assert _asked(buyer, _VIRTUAL[0]) == egress.ipv4
    assert _asked(client, _VIRTUAL[0]) == ""
    denied = mesh.record(2, close_reason="policy_denied")
    assert (denied["source_identity"], denied["service"]) == (client.identity, "default/bank:9000")
    mesh.record(1, close_reason="policy_denied", service="default/bank:9000")


def _read(connection: Any, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := connection.recv(65536)):
        data += part
    return data


def test_without_an_egress_nothing_leaves_and_several_stand_in_for_each_other(mesh: Mesh, bank: Pod) -> None:
    client = mesh.pod("client", node=1)
    _declare(mesh, bank, "elsewhere")
    assert _asked(client, bank.ipv4) == ""
    assert mesh.record(1, original_destination=f"{bank.ipv4}:9000")["close_reason"] == "no_endpoints"
    assert _warnings(mesh, "ServiceEntry default/bank leaves through node elsewhere, which does not exist")

    _declare(mesh, bank)
    assert _asked(client, _VIRTUAL[0]) == ""
    assert _warnings(mesh, "where no pod of namespace default has the label ringfence.io/egress=true")
    stranger = mesh.pod("stranger", node=2, namespace="other", labels=_EGRESS)
    outsider = mesh.pod("outsider", node=2, labels=_EGRESS, mesh=False)
    assert _asked(client, _VIRTUAL[0]) == "", "neither one of another namespace nor one that proves nothing"
    stranger.delete()
    outsider.delete()

    mesh.apply(_POLICY)
    pods = [mesh.pod(f"egress-{number}", node=2, labels=_EGRESS) for number in range(2)]
    addresses = {pod.ipv4 for pod in pods}
    wait_for("both", lambda: {_asked(client, _VIRTUAL[0]) for _ in range(4)} == addresses)
    counts = Counter(_asked(client, _VIRTUAL[0]) for _ in range(20))
    assert min(counts[ip] for ip in addresses) >= 5, counts
    pods[0].delete()
    wait_for("only the other one", lambda: _known(mesh) == {"default/egress-1"})
    assert {_asked(client, _VIRTUAL[0]) for _ in range(10)} == {pods[1].ipv4}

    bank.close()
    wait_for("the check to find out", lambda: {row["why"] for row in _rows(mesh)} >= {"health check: connect_refused"})
    assert _asked(client, bank.ipv4) == ""
    wait_for("the record", lambda: mesh.records(2, direction="inbound", close_reason="connect_refused"))
    with mesh.stopped("agent-2"):
        assert _asked(client, bank.ipv4) == "", "the egress is down, and so is the way out"
    outbound = mesh.records(1, direction="outbound", source_workload="default/client")
    assert all(each["connection_security_policy"] == "mutual_tls" for each in outbound if each["endpoint"])


def _rows(mesh: Mesh) -> list[dict[str, Any]]:
    return [row for row in mesh.ringfence(1, "endpoints", "bank") if ":9000" in row["address"]]


def _known(mesh: Mesh) -> set[str]:
    return {row["egress"] for row in _rows(mesh)}
