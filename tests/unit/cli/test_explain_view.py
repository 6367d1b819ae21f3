"""What ``ringfence explain`` shows of where connections go: each thing once."""

import io
from typing import Any

from node_agent.cli.explain import view
from node_agent.cli.terminal import Paint


def _traffic(service: str, load_balancing: str = "least-latency") -> dict[str, Any]:
    return {
        "service": service,
        "policy": None,
        "load_balancing": load_balancing,
        "at_connect": None,
        "limits": {},
        "rate_limit": {},
        "faults": [],
    }


def _view(*traffic: dict[str, Any]) -> str:
    backends = [{"service": each["service"], "percent": 50.0} for each in traffic]
    answer = {
        "verdict": "allowed",
        "summary": "allowed",
        "source": {"workload": None, "addresses": ["10.1.0.9"], "node": "", "identity": None, "enrolled": False},
        "destination": {"service": "shop/web:80", "asked": "web", "tcp_route": "shop/canary", "backends": backends},
        "decided_on": [],
        "decisions": [],
        "endpoints": [],
        "traffic": list(traffic),
        "problems": [],
    }
    return view(answer, Paint(io.StringIO()))


def _shown(*traffic: dict[str, Any]) -> list[str]:
    return [line for line in _view(*traffic).splitlines() if line.startswith(("balancing", "towards"))]


def test_backends_of_a_split_that_are_alike_are_told_once() -> None:
    assert [line.split() for line in _shown(_traffic("shop/web-v1:80"), _traffic("shop/web-v2:80"))] == [
        ["balancing", "least-latency"]
    ]


def test_those_that_differ_are_told_apart() -> None:
    shown = _shown(_traffic("shop/web-v1:80"), _traffic("shop/web-v2:80", "random"), _traffic("shop/web-v3:80"))
    assert [line.split() for line in shown] == [
        ["towards", "shop/web-v1:80,", "shop/web-v3:80"],
        ["balancing", "least-latency"],
        ["towards", "shop/web-v2:80"],
        ["balancing", "random"],
    ]


def test_what_is_balanced_at_connect_and_why_not_is_told() -> None:
    there = {"at_connect": {"balanced": True, "why_not": None}}
    assert "at connect" in _view({**_traffic("shop/web:80"), **there})
    assert "yes, by weights, without the agent" in _view({**_traffic("shop/web:80"), **there})
    not_there = {"at_connect": {"balanced": False, "why_not": "a TCPRoute splits it"}}
    assert "no: a TCPRoute splits it" in _view({**_traffic("shop/web:80"), **not_there})
    assert "at connect" not in _view(_traffic("shop/web:80"))
