"""Which nodes places outside leave through, as it is written."""

from typing import Any

import pytest
import yaml

from ca.manifests import ExternalService, ManifestError, Namespace, parse_manifests

_ANNOTATION = "ringfence.io/egress-node"
_ENTRY = {"hosts": ["api.example.com"], "ports": [{"number": 443, "name": "tls"}], "resolution": "DNS"}


def _text(kind: str, spec: dict[str, Any], *, labels: dict[str, str] | None = None, at: str | None = None) -> str:
    group = "networking.istio.io/v1" if kind == "ServiceEntry" else "v1"
    metadata = {
        "name": "api",
        "labels": labels or {},
        "annotations": {} if at is None else {_ANNOTATION: at},
    }
    return yaml.safe_dump({"apiVersion": group, "kind": kind, "metadata": metadata, "spec": spec})


def _nodes(text: str) -> tuple[str, ...] | None:
    (found,) = parse_manifests(text, origin="x.yaml").objects
    assert isinstance(found, ExternalService | Namespace)
    return found.egress_nodes


@pytest.mark.parametrize(
    ("written", "nodes"),
    [
        ("node-7", ("node-7",)),
        ("node-7, node-8.example,node-7", ("node-7", "node-8.example")),
        ("None", ()),
    ],
)
def test_nodes_are_named_on_places_outside_and_on_namespaces(written: str, nodes: tuple[str, ...]) -> None:
    mail = {"type": "ExternalName", "externalName": "smtp.example", "ports": [{"port": 25}]}
    for text in (_text("ServiceEntry", _ENTRY, at=written), _text("Service", mail, at=written)):
        assert _nodes(text) == nodes
    assert _nodes(_text("Namespace", {}, at=written)) == nodes


def test_who_says_nothing_leaves_it_to_others() -> None:
    assert _nodes(_text("ServiceEntry", _ENTRY)) is None
    assert _nodes(_text("Namespace", {})) is None


@pytest.mark.parametrize(
    "written", ["", "none,", "Node 7", "node-7,,node-8", "a/b", ",".join(f"n{n}" for n in range(17))]
)
def test_what_names_no_node_is_refused_and_never_means_directly(written: str) -> None:
    with pytest.raises(ManifestError, match=r"metadata.annotations\['ringfence.io/egress-node'\]: must "):
        parse_manifests(_text("ServiceEntry", _ENTRY, at=written), origin="x.yaml")


def test_a_service_inside_has_no_egress() -> None:
    with pytest.raises(ManifestError, match="is for a ServiceEntry or a Service of type ExternalName"):
        parse_manifests(_text("Service", {"ports": [{"port": 80}]}, at="node-7"), origin="x.yaml")


def test_a_label_that_is_misspelt_is_told() -> None:
    with pytest.raises(ManifestError, match="must be one of false, true, not 'yes'"):
        parse_manifests(_text("Pod", {}, labels={"ringfence.io/egress": "yes"}), origin="x.yaml")
