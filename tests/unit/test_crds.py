"""The CRDs that ship: made from the schemas that validate, and what an API server takes.

The rules are those of a structural schema; OpenAPI 3.0 is near enough to draft 4
of JSON Schema that its validator can judge documents by one.
"""

import copy
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from ca.manifests.schema import load
from crdkit import TRAFFIC_POLICIES, WORKLOADS, structural, traffic_policies, workloads

_CRD: Any = yaml.safe_load(TRAFFIC_POLICIES.read_text(encoding="utf-8"))
(_VERSION,) = _CRD["spec"]["versions"]
_SCHEMA: Any = _VERSION["schema"]["openAPIV3Schema"]
_KNOWN = {
    "type",
    "description",
    "enum",
    "pattern",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "oneOf",
    "properties",
    "additionalProperties",
    "items",
    "x-kubernetes-list-type",
    "x-kubernetes-validations",
}
_POLICY: Any = {
    "apiVersion": "ringfence.io/v1alpha1",
    "kind": "TrafficPolicy",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {
        "targetRef": {"kind": "Service", "name": "web"},
        "port": 80,
        "loadBalancing": {"policy": "least-latency", "weights": [{"matchLabels": {"size": "large"}, "weight": 3}]},
        "locality": {"mode": "prefer", "levels": ["zone", "region"]},
        "timeouts": {"connect": "2s"},
    },
}


def _nodes(schema: Any, path: str = "spec") -> Iterator[tuple[str, Any]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from _nodes(each, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from _nodes(schema[keyword], f"{path}.{keyword}")


def test_what_ships_is_what_the_schema_says_now() -> None:
    assert TRAFFIC_POLICIES.read_text(encoding="utf-8") == traffic_policies(), "run scripts/crds"
    assert WORKLOADS.read_text(encoding="utf-8") == workloads(), "run scripts/crds"


def test_the_schema_is_structural() -> None:
    for path, node in _nodes(_SCHEMA):
        assert set(node) <= _KNOWN, path
        assert node["type"] in {"object", "array", "string", "integer", "number", "boolean"}, path
        assert not {"properties", "additionalProperties"} <= set(node), f"{path}: they exclude each other"
        assert isinstance(node.get("exclusiveMinimum", False), bool), path
        assert (node["type"] == "array") == ("items" in node), path
        if node.get("x-kubernetes-list-type") == "set":
            assert node["items"]["type"] != "object", f"{path}: the items of a set are scalars"
        for branch in node.get("oneOf", []):
            assert set(branch) <= {"required"}, path
            assert set(branch["required"]) <= set(node["properties"]), path


def test_the_names_agree_with_each_other() -> None:
    names = _CRD["spec"]["names"]
    assert _CRD["metadata"]["name"] == f"{names['plural']}.{_CRD['spec']['group']}"
    assert _VERSION["served"]
    assert _VERSION["storage"]
    for column in _VERSION["additionalPrinterColumns"]:
        at = _SCHEMA
        _, *keys = column["jsonPath"].split(".")
        for key in keys if keys[0] == "spec" else ():
            at = at["properties"][key]
        assert column["type"] in {at["type"], "date"}, column


def test_every_field_of_the_schema_is_a_field_of_the_crd() -> None:
    def fields(schema: Any, definitions: Any) -> Any:
        if "$ref" in schema:
            schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
        below = {name: fields(each, definitions) for name, each in schema.get("properties", {}).items()}
        return below or fields(schema.get("items", {}), definitions) if schema else {}

    ours = load("traffic_policy.schema.json")
    assert fields(ours["properties"]["spec"], ours["$defs"]) == fields(_SCHEMA["properties"]["spec"], {})


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("port",), 0),
        (("port",), "80"),
        (("targetRef",), {"kind": "Service"}),
        (("targetRef", "kind"), "Pod"),
        (("loadBalancing", "policy"), "fastest"),
        (("loadBalancing", "weights", 0, "weight"), 1001),
        (("loadBalancing", "weights", 0, "matchLabels"), {}),
        (("locality", "levels"), ["rack"]),
        (("timeouts", "connect"), "2 seconds"),
    ],
)
def test_an_api_server_refuses_what_the_schema_refuses(at: tuple[Any, ...], value: Any) -> None:
    judge = jsonschema.Draft4Validator(_SCHEMA)
    assert judge.is_valid(_POLICY)
    policy = copy.deepcopy(_POLICY)
    place = policy["spec"]
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    assert not judge.is_valid(policy)


def test_a_keyword_without_a_counterpart_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="multipleOf"):
        structural({"type": "integer", "multipleOf": 2}, {})
