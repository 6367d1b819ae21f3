"""Which identities a node is entitled to, by the manifests."""

from pathlib import Path

import pytest

from ca.authority.errors import Refusal
from ca.authority.placement import PlacementDirectory, Placements
from ca.manifests import parse_manifests
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from tests.authority_builder import TRUST_DOMAIN, workload

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: %(name)s, namespace: default, labels: {%(labels)s}%(extra)s}
spec: {nodeName: %(node)s, serviceAccountName: %(account)s, hostNetwork: %(host)s}
status: {phase: %(phase)s, podIP: 10.247.1.5}
"""
ENROLLED_NAMESPACE = """\
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {ringfence.io/mesh: enabled}}
"""


def pod(**fields: str) -> str:
    defaults = {"name": "web-1", "labels": "ringfence.io/mesh: enabled", "node": "node-1", "account": "web"}
    return POD % {**defaults, "extra": "", "host": "false", "phase": "Running", **fields}


def placements(*documents: str) -> Placements:
    objects = parse_manifests("---\n".join(documents), origin="test.yaml").objects
    return Placements(trust_domain=TRUST_DOMAIN, objects={each.key: each for each in objects})


def refusal(found: Placements, identity: SpiffeId, node: str) -> str:
    with pytest.raises(Refusal) as caught:
        found.require_placed(identity, node=node)
    assert caught.value.code is RefusalCode.NOT_SCHEDULED
    return caught.value.text


def test_a_node_may_have_the_identity_of_a_pod_that_it_runs() -> None:
    placements(pod()).require_placed(workload("web"), node="node-1")


def test_a_pod_is_enrolled_by_its_namespace() -> None:
    placements(ENROLLED_NAMESPACE, pod(labels="")).require_placed(workload("web"), node="node-1")


def test_a_stolen_node_certificate_reaches_no_workload_of_another_node() -> None:
    found = placements(pod(), pod(name="db-1", account="db", node="node-2"))
    text = refusal(found, workload("db"), "node-1")
    assert "node-2" not in text
    assert "no pod with this service account is scheduled there" in text


def test_a_terminating_pod_keeps_its_identity() -> None:
    found = placements(pod(extra=", deletionTimestamp: '2026-11-22T12:00:00Z'"))
    found.require_placed(workload("web"), node="node-1")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"phase": "Succeeded"}, "has finished"),
        ({"phase": "Failed"}, "has finished"),
        ({"labels": ""}, "not enrolled"),
        ({"labels": "ringfence.io/mesh: disabled"}, "not enrolled"),
        ({"host": "true"}, "own network"),
    ],
)
def test_a_pod_that_is_not_served_has_no_identity_and_the_reason_is_told(fields: dict[str, str], says: str) -> None:
    assert says in refusal(placements(pod(**fields)), workload("web"), "node-1")


def test_one_pod_that_is_served_is_enough() -> None:
    found = placements(pod(name="a", phase="Failed"), pod(name="b"), pod(name="c", phase="Succeeded"))
    found.require_placed(workload("web"), node="node-1")


@pytest.mark.parametrize(
    "identity",
    [
        SpiffeId.authority(TRUST_DOMAIN),
        SpiffeId.node(TRUST_DOMAIN, "node-1"),
        SpiffeId.node(TRUST_DOMAIN, "node-2"),
        SpiffeId(TRUST_DOMAIN, "/ns/default/sa/web/more"),
    ],
)
def test_no_placement_grants_an_identity_of_the_infrastructure(identity: SpiffeId) -> None:
    assert "not the identity of a workload" in refusal(placements(pod()), identity, "node-1")


def test_the_same_account_in_another_trust_domain_is_refused() -> None:
    refusal(placements(pod()), workload("web", trust_domain="other.example"), "node-1")


def test_a_change_in_the_directory_counts_at_the_next_request(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(pod())
    directory = PlacementDirectory(trust_domain=TRUST_DOMAIN, directory=tmp_path)
    directory.current().require_placed(workload("web"), node="node-1")

    (tmp_path / "db.yaml").write_text(pod(name="db-1", account="db"))
    directory.current().require_placed(workload("db"), node="node-1")

    (tmp_path / "web.yaml").unlink()
    refusal(directory.current(), workload("web"), "node-1")


def test_a_broken_file_keeps_its_last_good_version(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(pod())
    directory = PlacementDirectory(trust_domain=TRUST_DOMAIN, directory=tmp_path)
    directory.current()

    (tmp_path / "web.yaml").write_text("kind: [")
    (tmp_path / "db.yaml").write_text(pod(name="db-1", account="db"))

    directory.current().require_placed(workload("web"), node="node-1")
    directory.current().require_placed(workload("db"), node="node-1")


def test_nothing_is_granted_before_the_manifests_could_be_read(tmp_path: Path) -> None:
    directory = PlacementDirectory(trust_domain=TRUST_DOMAIN, directory=tmp_path / "missing")
    with pytest.raises(Refusal) as caught:
        directory.current()
    assert caught.value.code is RefusalCode.UNAVAILABLE

    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "web.yaml").write_text(pod())
    directory.current().require_placed(workload("web"), node="node-1")


def test_a_directory_that_disappears_keeps_the_last_good_state(tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "web.yaml").write_text(pod())
    directory = PlacementDirectory(trust_domain=TRUST_DOMAIN, directory=manifests)
    directory.current()
    manifests.rename(tmp_path / "gone")

    directory.current().require_placed(workload("web"), node="node-1")


NODE = """\
apiVersion: v1
kind: Node
metadata: {name: node-1, annotations: {ringfence.io/trust-domain: %s}}
"""


def test_a_pod_on_a_node_of_another_trust_domain_is_never_signed_for() -> None:
    found = placements(NODE % "other.example", pod())

    for trust_domain in (TRUST_DOMAIN, "other.example"):
        with pytest.raises(Refusal) as caught:
            found.require_placed(workload("web", trust_domain=trust_domain), node="node-1")
        assert caught.value.code is RefusalCode.NOT_SCHEDULED
    assert "trust domain other.example" in refusal(found, workload("web"), "node-1")


def test_a_node_may_say_that_it_is_of_our_own_trust_domain() -> None:
    placements(NODE % TRUST_DOMAIN, pod()).require_placed(workload("web"), node="node-1")


def test_the_authority_of_the_other_trust_domain_signs_for_that_pod() -> None:
    objects = parse_manifests(NODE % "other.example" + "---\n" + pod(), origin="test.yaml").objects
    found = Placements(trust_domain="other.example", objects={each.key: each for each in objects})

    found.require_placed(workload("web", trust_domain="other.example"), node="node-1")
    with pytest.raises(Refusal):
        found.require_placed(workload("web"), node="node-1")
