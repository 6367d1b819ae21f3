"""``ringfence policy check`` names everything that is wrong with an object, with its place, and nothing else."""

from typing import Any

import pytest
import yaml

from ca.manifests.fields import path_text
from node_agent.cli.policy_errors import every_error

_HEAD = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "only-cart", "namespace": "shop"},
}


def _errors(data: Any, path: tuple[str | int, ...] = ()) -> dict[str, str]:
    return {path_text(each.path): each.reason for each in every_error(data, path)}


def _policy(text: str, **more: Any) -> dict[str, str]:
    return _errors(_HEAD | {"spec": yaml.safe_load(text)} | more)


def test_all_of_them_are_named_at_their_places() -> None:
    errors = _policy(
        """
        action: PERMIT
        selektor: {matchLabels: {app: web}}
        rules:
        - form: []
          from:
          - source: {principals: [1, "cluster.local/ns/shop/sa/cart", "", ok], ipBlocks: [10.0.0.0/33]}
          - source: {names: [x]}
          to:
          - operation: {ports: ["0", "80", "http", "99999"]}
        - when: [{key: source.mood, values: [good]}, {key: source.ip}]
        """
    )
    assert set(errors) == {
        "spec.action",
        "spec.selektor",
        "spec.rules[0].form",
        "spec.rules[0].from[0].source.principals[0]",
        "spec.rules[0].from[0].source.principals[2]",
        "spec.rules[0].from[0].source.ipBlocks[0]",
        "spec.rules[0].from[1].source.names",
        "spec.rules[0].to[0].operation.ports[0]",
        "spec.rules[0].to[0].operation.ports[2]",
        "spec.rules[0].to[0].operation.ports[3]",
        "spec.rules[1].when[0].key",
        "spec.rules[1].when[1].values",
    }
    assert "not 'http'" in errors["spec.rules[0].to[0].operation.ports[2]"]


def test_what_follows_from_an_error_is_not_told() -> None:
    """Without its one wrong principal the source would be empty, and so on up to the rule."""
    assert list(_policy("rules: [{from: [{source: {principals: [7]}}]}]")) == [
        "spec.rules[0].from[0].source.principals[0]"
    ]


def test_a_missing_name_hides_nothing() -> None:
    errors = _policy("action: PERMIT", metadata={"namespace": "shop"})
    assert set(errors) == {"metadata.name", "spec.action"}
    assert "is missing" in errors["metadata.name"]


@pytest.mark.parametrize("spec", [[], "text", {"rules": "none"}, {"rules": [None]}])
def test_a_wrong_form_is_one_error(spec: Any) -> None:
    assert len(_errors(_HEAD | {"spec": spec})) == 1


def test_what_is_well_has_none_and_is_left_as_it_is() -> None:
    data = _HEAD | {"spec": {"rules": [{"from": [{"source": {"namespaces": ["shop", 5]}}]}]}}
    before = yaml.safe_dump(data)
    assert _errors(data)
    assert yaml.safe_dump(data) == before
    assert _errors(_HEAD | {"spec": {}}) == {}


def test_items_of_a_list_have_their_place_in_it() -> None:
    assert list(_errors(_HEAD | {"spec": {"action": "X"}}, ("items", 3))) == ["items[3].spec.action"]


def test_other_kinds_are_named_in_full_too() -> None:
    spec = {
        "targetRef": {"name": "web"},
        "port": 0,
        "loadBalancing": {"policy": "fastest", "slowStart": 5},
        "faults": [{"percent": 1, "refuse": True}, {"percent": "x", "refuse": True}, {"refuse": True}],
    }
    head = {"apiVersion": "ringfence.io/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "web"}}
    assert set(_errors(head | {"spec": spec})) == {
        "spec.port",
        "spec.loadBalancing.policy",
        "spec.loadBalancing.slowStart",
        "spec.faults[1].percent",
        "spec.faults[2].percent",
    }


def test_there_is_an_end_to_it() -> None:
    spec = {"rules": [{"to": [{"operation": {"ports": [f"p{number}" for number in range(200)]}}]}]}
    assert len(_errors(_HEAD | {"spec": spec})) == 50
