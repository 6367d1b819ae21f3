"""SPIFFE IDs: every rule of SPIFFE-ID section 2, kept and broken."""

import pytest

from ca.spiffe import SpiffeId, SpiffeIdError
from tests.svid_vectors.ids import ID_VECTORS, IdVector

_LONG_PATH = "/" + "a" * (2048 - len("spiffe://td/"))


@pytest.mark.parametrize(
    ("text", "trust_domain", "path"),
    [
        ("spiffe://td", "td", ""),
        ("spiffe://td/a", "td", "/a"),
        ("spiffe://a.b-c_d.0/X/y.z/-_", "a.b-c_d.0", "/X/y.z/-_"),
        ("spiffe://td/...", "td", "/..."),
        ("spiffe://td" + _LONG_PATH, "td", _LONG_PATH),
        ("spiffe://" + "d" * 255 + "/a", "d" * 255, "/a"),
    ],
)
def test_an_id_in_canonical_form_is_read_and_written_back(text: str, trust_domain: str, path: str) -> None:
    identity = SpiffeId.parse(text)
    assert (identity.trust_domain, identity.path, str(identity)) == (trust_domain, path, text)
    assert identity == SpiffeId(trust_domain, path)


@pytest.mark.parametrize("vector", [v for v in ID_VECTORS if v.accepted], ids=lambda v: v.name)
def test_a_good_id_is_read(vector: IdVector) -> None:
    assert str(SpiffeId.parse(vector.text)) == vector.text


@pytest.mark.parametrize("vector", [v for v in ID_VECTORS if not v.accepted], ids=lambda v: v.name)
def test_a_broken_rule_is_named_with_its_section(vector: IdVector) -> None:
    with pytest.raises(SpiffeIdError, match=r"SPIFFE-ID 2") as caught:
        SpiffeId.parse(vector.text)
    assert vector.says in str(caught.value)


def test_a_workload_knows_its_namespace_and_service_account() -> None:
    identity = SpiffeId.workload("cluster.local", "shop", "web")
    assert str(identity) == "spiffe://cluster.local/ns/shop/sa/web"
    assert (identity.namespace, identity.service_account, identity.node_name) == ("shop", "web", None)


@pytest.mark.parametrize("path", ["", "/ns/shop", "/ns/shop/sa/web/more", "/x/ns/shop/sa/web", "/ringfence/ca"])
def test_other_ids_have_no_namespace(path: str) -> None:
    identity = SpiffeId("cluster.local", path)
    assert (identity.namespace, identity.service_account, identity.node_name) == (None, None, None)


def test_a_node_and_the_authority_have_ids_of_their_own() -> None:
    assert str(SpiffeId.node("td", "node-1")) == "spiffe://td/ringfence/node/node-1"
    assert SpiffeId.node("td", "node-1").node_name == "node-1"
    assert str(SpiffeId.authority("td")) == "spiffe://td/ringfence/ca"


@pytest.mark.parametrize("name", ["", "a/b", "..", "a/sa/b", "%41"])
def test_a_name_can_not_smuggle_in_another_segment(name: str) -> None:
    for make in (SpiffeId.node, lambda td, text: SpiffeId.workload(td, "ns", text)):
        with pytest.raises(SpiffeIdError):
            make("td", name)
    with pytest.raises(SpiffeIdError):
        SpiffeId.workload("td", name, "web")
