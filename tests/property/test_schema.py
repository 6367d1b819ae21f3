"""Our small judge of JSON Schemas against the one that everybody uses."""

import copy
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.manifests.fields import FieldError
from ca.manifests.schema import _require_known, load, require_valid
from ca.manifests.traffic_policy import SCHEMA_FILE

SCHEMA = load(SCHEMA_FILE)
# JSON Schema's regular expressions are ECMAScript's, where $ is the end of the text; jsonschema uses Python's.
ORACLE = jsonschema.Draft202012Validator(json.loads(json.dumps(SCHEMA).replace('$"', '\\\\Z"')))
_GOOD: dict[str, Any] = {
    "apiVersion": "ringfence.io/v1alpha1",
    "kind": "TrafficPolicy",
    "metadata": {"name": "web"},
    "spec": {
        "targetRef": {"kind": "Service", "name": "web"},
        "port": 80,
        "loadBalancing": {"policy": "random", "slowStart": "5s", "weights": [{"matchLabels": {"a": "b"}, "weight": 1}]},
        "locality": {"mode": "prefer", "levels": ["zone", "region"]},
        "panicThresholdPercent": 50,
        "outlierDetection": {"enabled": True, "latencyFactor": 2.5, "baseEjectionTime": "30s"},
        "retry": {"attempts": 2},
        "timeouts": {"connect": "250ms"},
    },
}
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2000),
    st.floats(allow_nan=False, allow_infinity=False).filter(
        lambda number: not number.is_integer()
    ),  # JSON Schema takes 1.0 for an integer, we do not
    st.sampled_from(["5s", "1h30m", "5", "5s\n", "", "zone", "random", "web", "Web", "ringfence.io/v1alpha1"]),
    st.text(max_size=70),
    st.lists(st.sampled_from(["node", "zone", "region", 1]), max_size=4),
    st.dictionaries(st.sampled_from(["weight", "matchLabels", "name", "x"]), st.integers(0, 3), max_size=3),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in below for place in _places(each, (*path, key)))]


@settings(max_examples=600)
@given(st.data())
def test_both_judges_agree_on_any_change_of_a_good_document(data: st.DataObject) -> None:
    document = copy.deepcopy(_GOOD)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.sampled_from(_places(document)[1:]))
        at = document
        for key in place[:-1]:
            at = at[key]
        match data.draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                at[place[-1]] = data.draw(_VALUES)
            case "remove":
                del at[place[-1]]
            case _ if isinstance(at, dict):
                at[data.draw(st.sampled_from(["port", "name", "x", "weight"]))] = data.draw(_VALUES)
    try:
        require_valid(document, SCHEMA)
        ours = True
    except FieldError:
        ours = False
    assert ours == ORACLE.is_valid(document), document


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    require_valid(_GOOD, SCHEMA)


def test_a_keyword_that_we_do_not_know_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="not known here: minLength"):
        _require_known({"type": "object", "properties": {"a": {"type": "string", "minLength": 1}}})
