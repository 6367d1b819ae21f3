"""The rules of the CRDs that ship say the same as the parsers: which values contradict each other.

They are in CEL, as an API server evaluates them ("Extend the Kubernetes API with
CustomResourceDefinitions", Validation rules); here Google's own runtime does, with
the one function of Kubernetes' list library that they use.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cel_expr_python import cel
from hypothesis import example, given
from hypothesis import strategies as st

from ca.manifests import ManifestError, parse_manifests
from crdkit import TRAFFIC_POLICIES, WORKLOADS

_CEL = cel.NewEnv(
    variables={"self": cel.Type.DYN},
    functions=[
        cel.FunctionDecl(
            "sum",
            [cel.Overload("list_sum", cel.Type.DOUBLE, [cel.Type.List(cel.Type.DYN)], is_member=True, impl=sum)],
        )
    ],
)


def _schema(path: Path) -> Any:
    (version,) = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


_SCHEMAS = {"TrafficPolicy": _schema(TRAFFIC_POLICIES), "Workload": _schema(WORKLOADS)}


def _typed(value: Any, schema: Any) -> Any:
    """As an API server hands it to CEL: what is declared a number is a double."""
    if schema["type"] == "object" and "properties" in schema:
        return {key: _typed(each, schema["properties"][key]) for key, each in value.items()}
    if schema["type"] == "array":
        return [_typed(each, schema["items"]) for each in value]
    return float(value) if schema["type"] == "number" else value


@functools.cache
def _compiled(rule: str) -> cel.Expression:
    return _CEL.compile(rule)


def _broken(value: Any, schema: Any, at: str = "spec") -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if _compiled(rule["rule"]).eval(data={"self": _typed(value, schema)}).value() is not True:
            yield f"{at}: {rule['message']}"
    for name, each in value.items() if isinstance(value, dict) else ():
        if name in schema.get("properties", {}):
            yield from _broken(each, schema["properties"][name], f"{at}.{name}")
    for index, each in enumerate(value if isinstance(value, list) else ()):
        yield from _broken(each, schema["items"], f"{at}[{index}]")


def _api_server_says(kind: str, spec: Any) -> list[str]:
    """What an API server would refuse it for; nothing when it takes it."""
    schema = _SCHEMAS[kind]["properties"]["spec"]
    wrong = [error.message for error in jsonschema.Draft4Validator(schema).iter_errors(spec)]
    return wrong or list(_broken(spec, schema))


def _agent_says(kind: str, spec: Any) -> str:
    head = {"apiVersion": "ringfence.io/v1alpha1", "kind": kind, "metadata": {"name": "web", "namespace": "shop"}}
    try:
        parse_manifests(yaml.safe_dump(head | {"spec": spec}), origin="x.yaml")
    except ManifestError as error:
        return str(error)
    return ""


_TARGET = {"targetRef": {"name": "web"}}
_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"targetRef": {"name": "web", "group": "networking.istio.io"}}, "spec.targetRef: group must be"),
    ({"targetRef": {"name": "web", "kind": "ServiceEntry", "group": ""}}, "spec.targetRef: group must be"),
    ({"loadBalancing": {"hashBy": "source-address"}}, "spec.loadBalancing: hashBy is without effect"),
    (
        {"loadBalancing": {"policy": "least-latency", "hashBy": "source-identity"}},
        "spec.loadBalancing: hashBy is without effect; add policy: consistent-hash",
    ),
    ({"healthCheck": {"interval": "50ms"}}, "spec.healthCheck: interval must be at least 100ms"),
    ({"healthCheck": {"interval": "1h1ms"}}, "spec.healthCheck: interval must be at least 100ms"),
    ({"healthCheck": {"timeout": "0s"}}, "spec.healthCheck: timeout must be more than 0s"),
    ({"healthCheck": {"timeout": "5001ms"}}, "spec.healthCheck: timeout must be more than 0s"),
    ({"healthCheck": {"interval": "1s", "timeout": "2s"}}, "spec.healthCheck: timeout must be more than 0s"),
    ({"outlierDetection": {"baseEjectionTime": "0ms"}}, "spec.outlierDetection: baseEjectionTime must be"),
    ({"outlierDetection": {"maxEjectionTime": "29s"}}, "spec.outlierDetection: maxEjectionTime must not be less"),
    (
        {"outlierDetection": {"baseEjectionTime": "2m", "maxEjectionTime": "1m"}},
        "spec.outlierDetection: maxEjectionTime must not be less",
    ),
    ({"outlierDetection": {"latencyFactor": 1}}, "spec.outlierDetection: latencyFactor must be more than 1"),
    ({"rateLimit": {"connectionsBurst": 5, "bytesPerSecond": 1}}, "spec.rateLimit: connectionsBurst is without"),
    ({"rateLimit": {"bytesBurst": 5, "connectionsPerSecond": 1}}, "spec.rateLimit: bytesBurst is without"),
    ({"rateLimit": {"perSource": False}}, "spec.rateLimit: perSource is without effect"),
    ({"faults": [{"percent": 1, "delay": "0s"}]}, "spec.faults[0]: delay must be more than 0s"),
    (
        {"faults": [{"percent": 60, "refuse": True}, {"percent": 40.5, "delay": "1s"}]},
        "spec.faults: the percent of the entries for every source",
    ),
]


@pytest.mark.parametrize(("spec", "said"), _REFUSED)
def test_an_api_server_refuses_values_that_contradict_each_other(spec: dict[str, Any], said: str) -> None:
    spec = _TARGET | spec
    assert [each[: len(said)] for each in _api_server_says("TrafficPolicy", spec)] == [said]
    assert _agent_says("TrafficPolicy", spec)


_WORKLOAD: dict[str, Any] = {"nodeName": "vm-1", "cgroup": "/a/b..c", "addresses": ["10.0.0.5"], "allPorts": True}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"allPorts": False}, "spec: ports is empty"),
        ({"allPorts": False, "ports": []}, "spec: ports is empty"),
        ({"addresses": ["10.0.0.5", "10.0.0.6"]}, "spec: addresses must be at most one"),
        ({"addresses": ["fd00::5", "fd00::6"]}, "spec: addresses must be at most one"),
        ({"cgroup": "/a/../b"}, "spec: cgroup must not hold"),
        ({"cgroup": "/a/."}, "spec: cgroup must not hold"),
    ],
)
def test_an_api_server_refuses_a_workload_that_contradicts_itself(wrong: dict[str, Any], said: str) -> None:
    assert _api_server_says("Workload", _WORKLOAD) == []
    assert _agent_says("Workload", _WORKLOAD) == ""
    assert [each[: len(said)] for each in _api_server_says("Workload", _WORKLOAD | wrong)] == [said]
    assert _agent_says("Workload", _WORKLOAD | wrong)


_DURATIONS = st.lists(
    st.builds(lambda number, unit: f"{number}{unit}", st.integers(0, 99999), st.sampled_from(["h", "m", "s", "ms"])),
    min_size=1,
    max_size=4,
).map("".join) | st.sampled_from(["0s", "30s", "100ms", "1h", "5s", "5m"])


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


_SPECS = _some(
    loadBalancing=_some(
        policy=st.sampled_from(["least-latency", "consistent-hash", "random"]),
        hashBy=st.sampled_from(["source-address", "source-identity"]),
        slowStart=_DURATIONS,
    ),
    healthCheck=_some(interval=_DURATIONS, timeout=_DURATIONS),
    outlierDetection=_some(
        baseEjectionTime=_DURATIONS, maxEjectionTime=_DURATIONS, latencyFactor=st.sampled_from([0, 0.5, 1, 1.5, 2])
    ),
    rateLimit=_some(
        connectionsPerSecond=st.integers(1, 9),
        connectionsBurst=st.integers(1, 9),
        bytesPerSecond=st.floats(1, 9),
        bytesBurst=st.integers(1, 9),
        perSource=st.booleans(),
    ),
    faults=st.lists(
        st.integers(0, 60).flatmap(
            lambda percent: st.one_of(
                st.just({"percent": percent, "refuse": True}),
                _DURATIONS.map(lambda delay: {"percent": percent, "delay": delay}),
            )
        ),
        max_size=3,
    ),
)


@given(spec=_SPECS)
@example(spec={"healthCheck": {"interval": "99999h99999h99999h99999h"}})
def test_what_an_api_server_takes_the_agent_takes_and_nothing_else(spec: dict[str, Any]) -> None:
    assert bool(_api_server_says("TrafficPolicy", _TARGET | spec)) == bool(_agent_says("TrafficPolicy", _TARGET | spec))


def test_the_faults_of_one_source_together_are_for_the_agent_to_judge() -> None:
    """The rule would cost more than an API server allows; the agent refuses the object, and says so."""
    faults = [{"percent": percent, "refuse": True, "sources": ["spiffe://a/b"]} for percent in (60, 61)]
    spec = _TARGET | {"faults": faults}
    assert _api_server_says("TrafficPolicy", spec) == []
    assert "more than 100 for spiffe://a/b" in _agent_says("TrafficPolicy", spec)
