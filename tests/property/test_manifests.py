"""Whatever the text, a manifest is read or refused: nothing else happens."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ca.manifests import DirectoryState, ManifestError, ManifestObject, ObjectKey, parse_manifests, read_directory
from ca.manifests.documents import DocumentError, document_starts, line_of, read_documents

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
FIELD_NAMES = st.sampled_from(
    [
        *("apiVersion", "kind", "items", "metadata", "name", "namespace", "labels", "annotations", "spec", "status"),
        *(
            "podIP",
            "podIPs",
            "ip",
            "phase",
            "conditions",
            "type",
            "ready",
            "containers",
            "containerPort",
            "hostNetwork",
        ),
        *("ports", "port", "targetPort", "clusterIP", "clusterIPs", "selector", "podCIDRs", "addressType"),
        *("endpoints", "addresses", "targetRef", "kubernetes.io/service-name", "mtls", "mode", "portLevelMtls"),
    ]
)
KINDS = st.sampled_from(
    ["Pod", "Service", "Namespace", "Node", "List", "PodList", "EndpointSlice", "PeerAuthentication", "Other"]
)
VERSIONS = st.sampled_from(["v1", "discovery.k8s.io/v1", "security.istio.io/v1", "apps/v1"])
WORDS = st.sampled_from(["10.1.2.3", "fd00::1", "web", "TCP", "IPv4", "Ready", "Running", "STRICT", "a.b", "None"])
VALUES = st.recursive(
    SCALARS | WORDS | st.integers(0, 70000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELD_NAMES | st.text(max_size=4), inner, max_size=5),
    max_leaves=12,
)
OBJECTS = st.fixed_dictionaries(
    {"apiVersion": VERSIONS, "kind": KINDS},
    optional={
        "metadata": st.dictionaries(FIELD_NAMES, WORDS | VALUES, max_size=4),
        "spec": VALUES,
        "status": VALUES,
        "items": VALUES,
        "addressType": WORDS,
        "endpoints": VALUES,
        "ports": VALUES,
    },
)


@given(st.text(alphabet=st.sampled_from("ab:-{}[],\n \"'&*!#|>?%@`~<0.1\t\r\x00é\ufeff")) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_manifests(text, origin="x.yaml")
    except ManifestError as error:
        assert "\n" not in str(error)


@given(OBJECTS)
def test_any_object_is_read_or_refused_with_a_line(data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=1)
    try:
        parse_manifests(text, origin="x.json")
    except ManifestError as error:
        assert "\n" not in str(error)
        assert 1 <= error.problem.line <= text.count("\n") + 1


@given(st.dictionaries(st.text(st.characters(codec="ascii", exclude_categories=["C"])), VALUES, max_size=4))
def test_json_means_the_same_to_the_yaml_reader(data: dict[str, Any]) -> None:
    text = json.dumps(data)
    (as_json,) = read_documents(text)
    try:
        (as_yaml,) = read_documents("--- " + text)
    except DocumentError as error:
        assert "\\u" in text or "<<" in data or "too long" in error.reason, error
    else:
        assert as_yaml.data == as_json.data


@given(st.lists(st.sampled_from(["a", "b", 0, 1]), max_size=4), st.integers(1, 3))
def test_any_path_has_a_line(path: list[str | int], number: int) -> None:
    text = "a:\n  b:\n  - a: 1\n  - b\n---\n- a\n- b: []\n"
    assert 1 <= line_of(text, number, tuple(path)) <= 7


FILES = st.lists(
    st.dictionaries(
        st.sampled_from(["a.yaml", "b.yml", "c.json"]),
        st.none() | st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("12")), unique_by=lambda each: each[0]),
    ),
    max_size=6,
)


@settings(max_examples=60)
@given(FILES)
def test_a_directory_read_in_steps_is_the_same_as_read_at_once(
    steps: list[dict[str, list[tuple[str, str]] | None]],
) -> None:
    with TemporaryDirectory() as directory:
        state = DirectoryState()
        told: dict[ObjectKey, ManifestObject] = {}
        for step in steps:
            for name, pods in step.items():
                path = Path(directory, name)
                if pods is None:
                    path.unlink(missing_ok=True)
                else:
                    items = [
                        {
                            "apiVersion": "v1",
                            "kind": "Pod",
                            "metadata": {"name": pod},
                            "status": {"podIP": f"10.1.0.{n}"},
                        }
                        for pod, n in pods
                    ]
                    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
            state = read_directory(directory, state, names=set(step))
            fresh = read_directory(directory)
            assert state.objects == fresh.objects
            assert (state.problems, state.digest) == (fresh.problems, fresh.digest)
            for key in state.touched:
                told.pop(key, None)
                if key in state.objects:
                    told[key] = state.objects[key]
            assert told == state.objects


_SEPARATORS = ("---\n", "--- # more\n", "...\n---\n", "---\n# \u00e4\U0001f600\n\n", "...\n%YAML 1.1\n---\n")
_DOCUMENTS = (
    "a: 1\nb:\n- c: 2\n",
    "a: \u00e4\U0001f600\nb: [{c: x}]\n",
    "a: |\n  text\n  --- no\nb: [{c: 1}]\n",
    "b:\n\n- c: d\n",
)


@given(st.lists(st.tuples(st.sampled_from(_SEPARATORS), st.sampled_from(_DOCUMENTS)), min_size=1, max_size=6))
def test_a_document_by_itself_has_the_lines_that_it_has_in_its_file(parts: list[tuple[str, str]]) -> None:
    text = parts[0][1] + "".join(separator + document for separator, document in parts[1:])
    starts = document_starts(text)
    assert len(starts) == len(parts) == len(list(read_documents(text)))
    for number, (begin, line) in enumerate(starts, 1):
        end = starts[number][0] if number < len(starts) else len(text)
        for path in (("b", 0, "c"), ("b",), ("a",)):
            assert line + line_of(text[begin:end], 1, path) == line_of(text, number, path)
