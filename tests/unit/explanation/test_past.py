"""What ``ringfence explain --id`` says of connections that were, or are."""

import pytest

from node_agent.explanation.places import UnknownPlace
from tests.explanation_stage import Stage, past_record, shown


def test_a_past_connection_is_explained_as_it_was_and_as_it_would_be_now(stage: Stage) -> None:
    stage.archive.add(past_record(), keep=True)
    answer = stage.past.explain("node-1-abc-7")
    assert answer["summary"] == (
        "other/thief to shop/web:80: policy_denied by policy shop/gone (denied by policy shop/gone, rule 1)"
    )
    assert answer["record"]["policy"] == "shop/gone"
    assert answer["now"]["allowed"] is False
    assert answer["now"]["remedies"]
    assert "no rule of the ALLOW policies matches" in shown(answer)


def test_a_past_connection_to_who_is_gone_and_one_that_nobody_knows(stage: Stage) -> None:
    stage.archive.add(past_record(endpoint="10.9.9.9:80", close_reason="ok", policy=None), keep=False)
    answer = stage.past.explain("node-1-abc-7")
    assert (answer["now"], answer["summary"]) == (None, "other/thief was connected to shop/web:80")
    assert "nobody here would judge it" in shown(answer)
    with pytest.raises(UnknownPlace, match="node-1-abc-8"):
        stage.past.explain("node-1-abc-8")


def test_a_connection_that_is_open_is_explained_too(stage: Stage) -> None:
    stage.live.append(
        {
            "id": "node-1-abc-9",
            "source": "shop/cart",
            "source_identity": "spiffe://cluster.local/ns/shop/sa/cart",
            "original_destination": "10.1.0.1:80",
            "service": "shop/web:80",
            "endpoint": "10.0.0.1:8080",
        }
    )
    answer = stage.past.explain("node-1-abc-9")
    assert (answer["open"], answer["summary"]) == (True, "shop/cart is connected to shop/web:80")
    assert answer["now"]["policy"] == "shop/callers"
