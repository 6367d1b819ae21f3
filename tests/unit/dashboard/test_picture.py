"""Who is a node, what is an edge, and what is told of both."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from node_agent.dashboard.graph import OUTSIDE_IN
from node_agent.dashboard.picture import Picture
from node_agent.dashboard.rates import Rates
from node_agent.dashboard.sights import Sights
from tests.dashboard_mesh import FakeMesh, identity


class Looking:
    """Somebody who looks at a mesh, every two seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.mesh = FakeMesh(clock=lambda: self.now, began=1000.0)
        self.sights, self.rates = Sights(), Rates()
        self.change: Callable[[dict[str, Any]], None] = lambda _: None

    def look(self, times: int = 1) -> Picture:
        for _ in range(times - 1):
            self.look()
        self.now += 2.0
        document = self.mesh.document()
        self.change(document)
        return Picture(self.sights.take(document, now=self.now), self.rates)


@pytest.fixture
def looking() -> Looking:
    found = Looking()
    found.mesh.service("shop/web", pods=2)
    found.mesh.service("shop/db", pods=1)
    found.mesh.client("shop/cart")
    return found


def edges(picture: Picture) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in picture.overview()["edges"]}


def nodes(picture: Picture) -> dict[str, dict[str, Any]]:
    return {each["id"]: each for each in picture.overview()["nodes"]}


def test_services_and_workloads_that_serve_none_are_nodes(looking: Looking) -> None:
    found = nodes(looking.look())

    assert set(found) == {"service/shop/web", "service/shop/db", "workload/shop/cart"}
    web = found["service/shop/web"]
    assert (web["endpoints"], web["ready"], web["workloads"], web["mesh"], web["health"]) == (2, 2, 2, "all", "ok")


def test_an_edge_leads_from_the_service_that_a_client_is_a_pod_of(looking: Looking) -> None:
    looking.mesh.talks("shop/web", "shop/db", opened=5.0)
    found = edges(looking.look(3))

    edge = found["service/shop/web>service/shop/db"]
    assert edge["security"] == "mutual_tls"
    assert edge["rate"]["opened"] == pytest.approx(5.0)
    assert edge["rate"]["denied"] == 0
    assert not edge["denied_lately"]


def test_both_ends_of_a_connection_are_counted_once(looking: Looking) -> None:
    looking.mesh.talks("shop/cart", "shop/web", opened=4.0)

    def destination_too(document: dict[str, Any]) -> None:
        sight = looking.mesh.sight("node-1")
        sight["edges"].append({**sight["edges"][0], "reporter": "destination", "service": None})
        document["agents"][0]["sight"] = _json(sight)

    looking.change = destination_too
    found = edges(looking.look(3))
    assert list(found) == ["workload/shop/cart>service/shop/web"]
    assert found["workload/shop/cart>service/shop/web"]["rate"]["opened"] == pytest.approx(4.0)


def test_plaintext_that_only_the_destination_saw_is_shown_as_such(looking: Looking) -> None:
    looking.mesh.client("batch/legacy", enrolled=False)
    looking.mesh.talks("batch/legacy", "shop/web", security="none", node="node-2")
    found = edges(looking.look(2))

    assert found["workload/batch/legacy>service/shop/web"]["security"] == "none"


def test_the_lane_within_a_node_is_no_plaintext(looking: Looking) -> None:
    """The first connection goes through the agents, the next ones past them: both identities are proven."""
    looking.mesh.talks("shop/cart", "shop/web")
    looking.mesh.talks("shop/cart", "shop/web", security="lane")
    assert edges(looking.look(2))["workload/shop/cart>service/shop/web"]["security"] == "lane"


def test_plaintext_beside_the_lane_is_not_hidden_by_it(looking: Looking) -> None:
    looking.mesh.talks("shop/cart", "shop/web", security="lane")
    looking.mesh.talks("shop/cart", "shop/web", security="none", node="node-2")
    assert edges(looking.look(2))["workload/shop/cart>service/shop/web"]["security"] == "mixed"


def test_a_connection_that_never_came_about_is_not_called_plaintext(looking: Looking) -> None:
    looking.mesh.talks("shop/cart", "shop/web", opened=1.0, failed=1.0)

    def nothing_chosen(document: dict[str, Any]) -> None:
        sight = looking.mesh.sight("node-1")
        sight["edges"] = [{**each, "security": "none", "destination": None} for each in sight["edges"]]
        document["agents"][0]["sight"] = _json(sight)

    looking.change = nothing_chosen
    edge = edges(looking.look(2))["workload/shop/cart>service/shop/web"]
    assert edge["security"] == "unknown"
    assert edge["rate"]["failed"] == pytest.approx(1.0)


def test_a_denial_is_remembered_for_two_minutes(looking: Looking) -> None:
    looking.mesh.talks("shop/cart", "shop/db", opened=2.0, denied=2.0)
    looking.look(3)
    counted = looking.mesh.sight("node-1")["edges"]

    def no_more(document: dict[str, Any]) -> None:
        document["agents"][0]["sight"] = _json({**looking.mesh.sight("node-1"), "edges": counted})

    looking.change = no_more
    assert edges(looking.look(5))["workload/shop/cart>service/shop/db"]["denied_lately"]
    assert not edges(looking.look(70))["workload/shop/cart>service/shop/db"]["denied_lately"]


def test_a_service_without_ready_endpoints_is_down_and_one_that_an_agent_complains_of_degraded(
    looking: Looking,
) -> None:
    looking.mesh.not_ready.add("shop/db")

    def ejected(document: dict[str, Any]) -> None:
        sight = looking.mesh.sight("node-2")
        row = next(each for each in document["endpoints"] if each["service"] == "shop/web")
        sight["unhealthy"] = [{**row, "health": "ejected", "why": "5 failures in a row"}]
        document["agents"][1]["sight"] = _json(sight)

    looking.change = ejected
    picture = looking.look()
    found = nodes(picture)
    assert (found["service/shop/db"]["health"], found["service/shop/web"]["health"]) == ("down", "degraded")
    detail = picture.node("service/shop/web")
    assert detail is not None
    assert detail["endpoint_rows"][0]["unhealthy_at"] == ["node-2: ejected (5 failures in a row)"]


def test_an_agent_that_is_away_keeps_its_edges_without_a_rate(looking: Looking) -> None:
    looking.mesh.talks("shop/cart", "shop/web", opened=4.0, node="node-2")
    looking.look(3)
    looking.mesh.missing["node-2"] = "no answer within 3 s"
    picture = looking.look()

    edge = edges(picture)["workload/shop/cart>service/shop/web"]
    assert edge["rate"] is None
    assert edge["total"]["opened"] > 0
    assert picture.overview()["agents"][1]["error"] == "no answer within 3 s"


def test_a_node_that_nobody_needs_an_agent_on_is_no_gap(looking: Looking) -> None:
    looking.mesh.missing["node-2"] = "10.0.0.2:15022: can not connect: Connection refused"

    def another(document: dict[str, Any]) -> None:
        document["agents"].append({"node": "control-plane", "error": "no answer within 3 s", "sight": None})

    looking.change = another
    needed = {each["node"]: each["needed"] for each in looking.look().overview()["agents"]}
    assert needed == {"node-1": True, "node-2": True, "control-plane": False}


def test_who_is_not_known_is_a_node_of_its_own(looking: Looking) -> None:
    looking.mesh.talks("shop/cart", "shop/web", security="none")

    def unknown(document: dict[str, Any]) -> None:
        sight = looking.mesh.sight("node-1")
        sight["edges"] = [{**each, "source": None} for each in sight["edges"]]
        document["agents"][0]["sight"] = _json(sight)

    looking.change = unknown
    picture = looking.look()
    assert f"{OUTSIDE_IN}>service/shop/web" in edges(picture)
    assert nodes(picture)[OUTSIDE_IN]["kind"] == "outside"


def test_details_of_a_node_have_its_certificates_and_what_happened(looking: Looking) -> None:
    looking.mesh.talks("shop/cart", "shop/web")
    looking.mesh.record("shop/cart", "shop/web", close_reason="policy_denied", flag="DENY", detail="denied by x")
    looking.mesh.record("shop/web", "shop/db")
    picture = looking.look()

    detail = picture.node("service/shop/db")
    assert detail is not None
    assert [row["service"] for row in detail["recent"]] == ["shop/db:80"]
    assert {row["identity"] for row in detail["certificates"]} == {identity("shop/db")}
    assert [row["source"] for row in picture.overview()["denials"]] == ["workload/shop/cart"]
    assert picture.node("service/shop/none") is None


def test_details_of_an_edge_have_the_identities_and_the_flags(looking: Looking) -> None:
    looking.mesh.talks("shop/cart", "shop/web", opened=2.0, denied=1.0)
    looking.mesh.record("shop/cart", "shop/web", close_reason="policy_denied", flag="DENY")
    picture = looking.look(2)

    detail = picture.edge("workload/shop/cart>service/shop/web")
    assert detail is not None
    assert detail["identities"] == [{"source": identity("shop/cart"), "destination": identity("shop/web")}]
    assert detail["flags"]["DENY"] > 0
    assert [row["close_reason"] for row in detail["recent"]] == ["policy_denied"]
    assert len(detail["history"]) == 1
    assert picture.edge("a>b") is None


def test_a_connection_that_both_agents_remember_is_told_by_the_sources(looking: Looking) -> None:
    looking.mesh.record("shop/cart", "shop/web")

    def also_inbound(document: dict[str, Any]) -> None:
        sight = looking.mesh.sight("node-2")
        sight["recent"] = [{**looking.mesh.records[0], "id": "node-2-x", "direction": "inbound", "service": None}]
        document["agents"][1]["sight"] = _json(sight)

    looking.change = also_inbound
    detail = looking.look().node("service/shop/web")
    assert detail is not None
    assert [row["direction"] for row in detail["recent"]] == ["outbound"]


def test_live_connections_are_found_by_service_and_by_address(looking: Looking) -> None:
    row = {"id": "1", "direction": "outbound", "source": "shop/cart-0", "source_identity": identity("shop/cart")}
    live = [
        {**row, "service": "shop/web:80", "age_s": 5.0},
        {**row, "id": "2", "service": None, "original_destination": "10.0.1.2:8080", "age_s": 1.0},
        {**row, "id": "3", "direction": "inbound", "service": "shop/web:80", "age_s": 5.0},
    ]

    def with_live(document: dict[str, Any]) -> None:
        document["agents"][0]["sight"] = _json({**looking.mesh.sight("node-1"), "connections": live})

    looking.change = with_live
    detail = looking.look().node("workload/shop/cart")
    assert detail is not None
    assert [each["id"] for each in detail["live"]] == ["2", "1"]


def _json(value: object) -> str:
    return json.dumps(value)
