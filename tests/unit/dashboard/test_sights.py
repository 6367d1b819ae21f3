"""What agents say is read with suspicion: a wrong answer spoils its own place and nothing else."""

import json
import math

import pytest

from node_agent.dashboard.sights import SightError, Sights, number
from tests.dashboard_mesh import FakeMesh


def test_an_agent_that_is_away_stays_in_the_picture_for_a_while() -> None:
    mesh, sights = FakeMesh(), Sights()
    sights.take(mesh.document(), now=0.0)
    mesh.missing["node-2"] = "10.0.0.2:15022: can not connect: Connection refused"

    away = sights.take(mesh.document(), now=100.0).agents[1]
    assert away.error == "10.0.0.2:15022: can not connect: Connection refused"
    assert away.sight is not None
    assert away.sight.heard_at == 0.0
    assert sights.take(mesh.document(), now=301.0).agents[1].sight is None


@pytest.mark.parametrize(
    ("sight", "error"),
    [
        ("{", "what it says is not JSON"),
        ("[" * 100_000, "what it says is not JSON"),
        ("[]", "what it says is not a JSON object"),
        (None, "what it says is not a JSON object"),
        (5, "what it says is not a JSON object"),
    ],
)
def test_an_agent_that_talks_nonsense_is_one_that_says_nothing(sight: object, error: str) -> None:
    mesh = FakeMesh()
    document = mesh.document()
    document["agents"][1] = {"node": "node-2", "error": None, "sight": sight}

    found = Sights().take(document, now=0.0)
    assert [(each.node, each.error) for each in found.agents] == [("node-1", None), ("node-2", error)]


def test_what_is_not_what_it_should_be_is_left_out() -> None:
    sight = {"at": "late", "status": [], "edges": [1, {"source": "x" * 5000, "deep": [[[[["no"]]]]], "is": True}, None]}
    document = {"node": "n", "agents": [{"node": "n", "error": None, "sight": json.dumps(sight)}, "x", {"node": 7}]}

    mesh = Sights().take(document, now=0.0)
    (agent,) = mesh.agents
    assert agent.sight is not None
    assert agent.sight.at == 0.0
    assert agent.sight.status == {}
    (edge,) = agent.sight.lists["edges"]
    assert len(edge["source"]) == 4096
    assert edge["deep"] == [[[None]]]
    assert mesh.services == ()


@pytest.mark.parametrize("answer", [None, [], {}, {"node": 3}])
def test_an_answer_that_is_no_agents_is_refused(answer: object) -> None:
    with pytest.raises(SightError, match="check --agent"):
        Sights().take(answer, now=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "5", None, 10**400])
def test_what_is_no_number_counts_nothing(value: object) -> None:
    assert number(value) == 0.0
