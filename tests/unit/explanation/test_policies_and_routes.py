"""What ``ringfence policies`` says, and how the admin socket and the commands are asked."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from ca.http_server import Request
from node_agent.cli import policies as policies_command
from node_agent.cli.main import main
from node_agent.cli.terminal import Paint
from node_agent.errors import PolicyDenied
from node_agent.explanation.places import UnknownPlace
from node_agent.explanation.routes import explanation_routes
from tests.explanation_stage import POLICY, Stage, past_record, shown
from tests.fake_agent import fake_agent


def test_policies_say_whom_they_are_about_and_what_they_did(stage: Stage) -> None:
    stage.policy("everybody", "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}")
    stage.counts.denied(PolicyDenied("", policy="shop/everybody"))
    stage.counts.would_deny("shop/callers")
    callers, everybody = filter(None, stage.policies.rows())
    assert callers == {
        "name": "callers",
        "namespace": "shop",
        "file": "shop.yaml",
        "action": "ALLOW",
        "scope": "workloads",
        "selector": {"app": "web"},
        "rules": 1,
        "dry_run": False,
        "local_workloads": 1,
        "workloads": 1,
        "denials": 0,
        "dry_run_denials": 1,
        "audits": 0,
        "problems": [],
    }
    assert (everybody["scope"], everybody["workloads"], everybody["local_workloads"]) == ("namespace", 2, 1)
    assert everybody["denials"] == 1
    assert "methods can not be judged" in everybody["problems"][0]
    assert list(stage.policies.rows("other")) == []
    with pytest.raises(UnknownPlace, match="nowhere"):
        list(stage.policies.rows("nowhere"))
    with Path("/dev/null").open() as nowhere:
        table = policies_command.view([callers, everybody], Paint(nowhere))
    assert "app=web" in table
    assert "problem  AuthorizationPolicy shop/everybody: methods" in table


def test_many_policies_are_told_in_steps_and_none_is_left_out(stage: Stage) -> None:
    stage.apply("---\n".join(POLICY.replace("NAME", f"p{number}").replace("SPEC", "{}") for number in range(350)))
    rows = list(stage.policies.rows())
    assert rows.count(None) >= 3
    assert len([row for row in rows if row is not None]) == 351
    status, answer = _get(stage, "/policies")
    assert (status, len(answer)) == (200, 351)
    for name in [row["name"] for row in answer]:
        stage.delete(name)
    assert _get(stage, "/policies") == (200, [])


def test_nothing_that_a_terminal_would_obey_is_shown(stage: Stage) -> None:
    stage.archive.add(past_record(detail="\x1b[2J\u202eevil", policy=None), keep=True)
    text = shown(stage.past.explain("node-1-abc-7"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J" in text


def _get(stage: Stage, path: str, **query: str) -> tuple[int, Any]:
    routes = explanation_routes(lambda: cast("Any", stage))
    response = routes[path]["GET"](Request(method="GET", path=path, query=query, body=b""))
    return response.status, json.loads(b"".join([response.body] if isinstance(response.body, bytes) else response.body))


def test_the_admin_socket_answers_and_says_what_is_missing_or_unknown(stage: Stage) -> None:
    status, answer = _get(stage, "/explain", source="shop/cart", destination="shop/web:80")
    assert (status, answer["verdict"]) == (200, "allowed")
    assert _get(stage, "/explain", source="shop/cart") == (400, {"error": "the query must have destination"})
    assert _get(stage, "/explain/record")[0] == 400
    assert _get(stage, "/explain/record", id="x")[0] == 404
    assert _get(stage, "/explain", source="nobody", destination="web")[0] == 404
    assert [row["name"] for row in _get(stage, "/policies", namespace="shop")[1]] == ["callers"]
    assert _get(stage, "/policies", namespace="nowhere")[0] == 404


def test_the_commands_ask_as_the_operator_means_it(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.archive.add(past_record(), keep=True)
    answers = {
        "/explain": stage.explain("shop/cart", "shop/web:80"),
        "/explain/record": stage.past.explain("node-1-abc-7"),
        "/policies": list(stage.policies.rows()),
    }
    with fake_agent(tmp_path) as agent:
        agent.answers = answers
        address = ("--agent", str(agent.server_address))
        assert main(["explain", "shop/cart", "shop/web:80", *address]) == 0
        assert main(["explain", "node-1-abc-7", *address]) == 0
        assert main(["policies", "-n", "shop", "--json", *address]) == 0
        assert [path for _, path, _ in agent.requests] == [
            "/explain?source=shop%2Fcart&destination=shop%2Fweb%3A80",
            "/explain/record?id=node-1-abc-7",
            "/policies",
        ]
        printed = capsys.readouterr().out
        assert "ALLOWED  shop/cart may connect" in printed
        assert "policy_denied by policy shop/gone" in printed
        assert json.loads(printed[printed.index("[\n") :])[0]["name"] == "callers"
        assert main(["explain", "nope", "nope:80", *address]) == 1
        assert capsys.readouterr().err.startswith("ringfence: no ")
