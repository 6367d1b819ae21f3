"""TCPRoute: what a mesh reads of it, and what is said of the rest."""

from typing import Any

import pytest
import yaml

from ca.manifests import ManifestError, TCPRoute, parse_manifests

_BACKENDS = [{"name": "web-v1", "port": 80, "weight": 90}, {"name": "web-v2", "port": 80}]
_PARENT = {"group": "", "kind": "Service", "name": "web", "port": 80}


def _text(**spec: Any) -> str:
    said = {"parentRefs": [_PARENT], "rules": [{"backendRefs": _BACKENDS}]} | spec
    document = {
        "apiVersion": "gateway.networking.k8s.io/v1alpha2",
        "kind": "TCPRoute",
        "metadata": {"name": "canary", "namespace": "shop"},
        "spec": said,
    }
    return yaml.safe_dump(document)


def test_a_route_of_a_service() -> None:
    (route,) = parse_manifests(_text(), origin="x.yaml").objects
    assert isinstance(route, TCPRoute)
    assert route.key.kind == "TCPRoute"
    assert route.parents == (("web", 80),)
    assert route.backends == (("web-v1", 80, 90), ("web-v2", 80, 1))


def test_a_route_of_a_gateway_is_somebody_elses() -> None:
    parsed = parse_manifests(_text(parentRefs=[{"name": "edge"}]), origin="x.yaml")
    assert parsed.objects == ()
    assert "TCPRoute shop/canary has no parentRefs of kind Service" in parsed.skipped[0]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"rules": []}, "spec.rules: must hold exactly one rule, not 0"),
        ({"rules": [{"backendRefs": []}]}, "spec.rules[0].backendRefs: must hold 1 to 16 backends, not 0"),
        ({"rules": [{"backendRefs": [{"name": "a"}]}]}, "spec.rules[0].backendRefs[0].port: is missing"),
        (
            {"rules": [{"backendRefs": [{"name": "a", "port": 80, "weight": -1}]}]},
            "spec.rules[0].backendRefs[0].weight: must be a whole number from 0 to 1000000",
        ),
        (
            {"rules": [{"backendRefs": [{"name": "a", "port": 80, "weight": True}]}]},
            "spec.rules[0].backendRefs[0].weight: must be a whole number",
        ),
        (
            {"rules": [{"backendRefs": [{"name": "a", "port": 80, "namespace": "other"}]}]},
            "spec.rules[0].backendRefs[0].namespace: must be shop, the route's own",
        ),
        (
            {"rules": [{"backendRefs": [{"name": "a", "port": 80, "kind": "Bucket"}]}]},
            "spec.rules[0].backendRefs[0].kind: must be one of Service",
        ),
    ],
)
def test_mistakes_are_named_where_they_are(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifests(_text(**spec), origin="x.yaml")
    assert said in str(caught.value)
