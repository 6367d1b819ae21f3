"""What ``ringfence explain`` says of destinations: what a name means, what leads nowhere, what is outside."""

import pytest

from node_agent.explanation.places import UnknownPlace
from tests.explanation_stage import MANIFESTS, Stage, shown


def test_an_address_that_is_no_workload_is_shown_once(stage: Stage) -> None:
    lines = shown(stage.explain("192.0.2.7", "shop/web:80")).splitlines()
    assert [line.split() for line in lines if line.startswith("source ")] == [["source", "192.0.2.7"]]


@pytest.mark.parametrize("host", ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local"])
def test_a_service_is_known_by_the_name_that_programs_use(stage: Stage, host: str) -> None:
    assert stage.explain("cart", f"{host}:80")["destination"]["service"] == "shop/web:80"
    with pytest.raises(UnknownPlace):
        stage.explain("cart", f"{host.replace('shop', 'none')}:80")


def test_the_agents_own_listeners_may_not_be_dialled(stage: Stage) -> None:
    answer = stage.explain("shop/cart", "10.0.0.1:15008")
    assert answer["verdict"] == "denied"
    (decision,) = answer["decisions"]
    assert decision["close_reason"] == "destination_not_allowed"
    assert decision["detail"].endswith("is the agent's own listener")
    assert decision["remedies"] == []


def test_a_destination_that_is_not_in_the_mesh_is_judged_by_nobody(stage: Stage) -> None:
    answer = stage.explain("shop/cart", "10.0.0.4:80")
    assert (answer["verdict"], answer["decided_on"]) == ("allowed", [])
    assert "nobody judges" in answer["summary"]
    assert stage.explain("shop/cart", "192.0.2.1:443")["verdict"] == "allowed"


@pytest.mark.parametrize(
    ("source", "destination", "error"),
    [
        ("cratt", "web:80", "no pod 'cratt' in any namespace; perhaps shop/cart"),
        ("shop/thief", "web:80", "no pod 'shop/thief'; perhaps other/thief"),
        ("cart", "wbe:80", "no service 'wbe' in any namespace; perhaps shop/web"),
        ("cart", "web:81", "service shop/web has no port 81; it has 80"),
        ("cart", "web:0", "is no port: 1 to 65535"),
        ("cart", "web:http", "is no port: 1 to 65535"),
        ("cart", "10.0.0.1", "has no port: 10.0.0.1:80, for instance"),
        ("cart", "fd00::1", "has no port: [fd00::1]:80, for instance"),
        ("cart", "[fd00::1:80", "is no address"),
        ("cart", "thief", "has no port, and other/thief is a pod"),
    ],
)
def test_what_nobody_is_called_is_refused_with_what_may_be_meant(
    stage: Stage, source: str, destination: str, error: str
) -> None:
    with pytest.raises(UnknownPlace) as unknown:
        stage.explain(source, destination)
    assert error in str(unknown.value)


@pytest.mark.parametrize(
    ("destination", "problem"),
    [
        ("10.0.0.99:80", "10.0.0.99 is in the pod network, but no workload has it"),
        ("10.1.0.1:81", "the service at 10.1.0.1 has no port 81"),
    ],
)
def test_what_leads_nowhere_says_why(stage: Stage, destination: str, problem: str) -> None:
    answer = stage.explain("shop/cart", destination)
    assert (answer["verdict"], answer["problems"]) == ("denied", [problem])
    assert problem in shown(answer)


def test_a_name_may_be_short_where_it_is_clear(stage: Stage) -> None:
    assert stage.explain("cart", "web")["destination"]["service"] == "shop/web:80"
    assert stage.explain("10.0.0.2", "10.1.0.1:80")["source"]["workload"] == "shop/cart"
    again = MANIFESTS.replace("namespace: shop", "namespace: other").replace("fd00::", "fd01::").replace("-1,", "-2,")
    stage.apply(again.replace("10.0.0.", "10.0.1.").replace("10.1.0.1", "10.1.0.2"))
    with pytest.raises(UnknownPlace, match="several pods called cart: other/cart, shop/cart"):
        stage.explain("cart", "web")
    assert stage.explain("shop/cart", "web")["destination"]["service"] == "shop/web:80"
