"""The policy engine with 5,000 policies, without network: a decision, the first one, one change, memory.

Runs in a process of its own, so that its memory is the engine's, and prints one
line of JSON.  The policies lie in different ways, because each way could be the
slow one:

    spread      each about the workloads of one label, by who connects and to which port
    one_peer    all about one workload, each for another identity
    one_block   all about one workload, each for another network
    one_prefix  all about one workload, each for another prefix of identities
    mixed       as spread, of 40 namespaces, with DENY, AUDIT and dry runs beside

``warm`` is a decision on a peer that connected before, ``cold`` on one that did not.  Times are the
process's own on the CPU: whatever else the machine does is not what is measured.
"""

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from bench import accounting
from ca.manifests import AuthorizationPolicy, parse_object
from ca.spiffe import SpiffeId
from node_agent import process
from node_agent.model import ObjectName, Workload
from node_agent.policy import PolicyEngine, Request

_REQUESTS: Final = 20_000
_CHANGES: Final = 100
_NAMESPACES: Final = 40

Spec = dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--policies", type=int, default=5_000)
    count = parser.parse_args().policies
    figures: dict[str, float] = {"policies": count}
    for shape, (policies, requests) in _SHAPES.items():
        figures |= {f"{shape}_{name}": value for name, value in _measure(policies(count), requests(count)).items()}
    figures["decision_us"] = max(value for name, value in figures.items() if name.endswith("_warm_us"))
    figures["cold_us"] = max(value for name, value in figures.items() if name.endswith("_cold_us"))
    figures["change_ms"] = max(value for name, value in figures.items() if name.endswith("_change_ms"))
    figures["change_slowest_ms"] = max(value for name, value in figures.items() if name.endswith("_slowest_ms"))
    json.dump(figures, sys.stdout)


def _measure(policies: Iterator[AuthorizationPolicy], requests: list[Request]) -> dict[str, float]:
    held = {ObjectName(each.namespace, each.name): each for each in policies}
    gc.collect()
    before_mb = accounting.own_rss_mb()
    engine = PolicyEngine()
    engine.apply(held)
    engine.decide(requests[0])  # what is compiled for a destination is compiled once
    began = time.process_time()
    for request in requests:
        engine.decide(request)
    cold_us = (time.process_time() - began) * 1e6 / len(requests)

    def decide_all() -> None:
        for request in requests:
            engine.decide(request)

    warm_us = min(_seconds(decide_all) for _ in range(3)) * 1e6 / len(requests)
    gc.collect()
    memory_mb = accounting.own_rss_mb() - before_mb
    process.tidy_up()  # as the agent does when it has loaded what there is
    changes_ms = sorted(_change_ms(engine, held, requests) for _ in range(_CHANGES))
    return {
        "cold_us": cold_us,
        "warm_us": warm_us,
        "memory_mb": memory_mb,
        "change_ms": changes_ms[len(changes_ms) // 2],
        "change_slowest_ms": changes_ms[-1],
    }


def _change_ms(engine: PolicyEngine, held: dict[ObjectName, AuthorizationPolicy], requests: list[Request]) -> float:
    """One policy goes and comes: until a connection of its namespace is judged accordingly."""
    name = _DRAW.choice(list(held))
    request = next((each for each in requests if each.destination.name.namespace == name.namespace), requests[0])
    began = time.process_time()
    engine.apply({name: None})
    engine.decide(request)
    took = time.process_time() - began
    engine.apply({name: held[name]})
    engine.decide(request)
    return took * 1e3


def _seconds(what: Callable[[], None]) -> float:
    began = time.process_time()
    what()
    return time.process_time() - began


_DRAW: Final = random.Random(1)


def _policy(number: int, spec: Spec, *, namespace: str = "team-0", dry_run: bool = False) -> AuthorizationPolicy:
    found = parse_object(
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {
                "name": f"policy-{number}",
                "namespace": namespace,
                "annotations": {"istio.io/dry-run": str(dry_run).lower()},
            },
            "spec": spec,
        }
    )
    assert isinstance(found, AuthorizationPolicy)
    return found


def _rule(number: int, namespace: str) -> Spec:
    principal = f"cluster.local/ns/{namespace}/sa/client-{number}"
    return {"from": [{"source": {"principals": [principal]}}], "to": [{"operation": {"ports": ["8080"]}}]}


def _spread(count: int) -> Iterator[AuthorizationPolicy]:
    for number in range(count):
        yield _policy(number, {"selector": _selector(number), "rules": [_rule(number, "team-0")]})


def _mixed(count: int) -> Iterator[AuthorizationPolicy]:
    for number in range(count):
        namespace = f"team-{number % _NAMESPACES}"
        spec: Spec = {"rules": [_rule(number, namespace)], "selector": _selector(number)}
        if number % 10 == 3:
            del spec["selector"]
        yield _policy(
            number,
            spec | {"action": ("ALLOW", "ALLOW", "DENY", "AUDIT")[number % 4]},
            namespace=namespace,
            dry_run=number % 17 == 0,
        )
    yield _policy(
        count, {"action": "DENY", "rules": [{"from": [{"source": {"notPrincipals": ["*"]}}]}]}, namespace="istio-system"
    )


def _one_peer(count: int) -> Iterator[AuthorizationPolicy]:
    return (_policy(number, {"rules": [_rule(number, "team-0")]}) for number in range(count))


def _one_block(count: int) -> Iterator[AuthorizationPolicy]:
    for number in range(count):
        yield _policy(
            number, {"rules": [{"from": [{"source": {"ipBlocks": [f"10.{number >> 8}.{number & 255}.0/24"]}}]}]}
        )


def _one_prefix(count: int) -> Iterator[AuthorizationPolicy]:
    for number in range(count):
        prefix = f"cluster.local/ns/team-0/sa/client-{number}*"
        yield _policy(number, {"rules": [{"from": [{"source": {"principals": [prefix]}}]}]})


def _selector(number: int) -> Spec:
    return {"matchLabels": {"app": f"app-{number}"}}


def _requests(count: int, *, destinations: int, namespaces: int = 1, clients: int) -> list[Request]:
    """Connections of ``clients`` different identities to ``destinations`` different workloads, mostly allowed ones."""
    requests = []
    for _ in range(_REQUESTS):
        number = _DRAW.randrange(destinations)
        namespace = f"team-{number % namespaces}"
        client = number if destinations > 1 else _DRAW.randrange(clients)
        requests.append(
            Request(
                source_identity=SpiffeId.workload("cluster.local", namespace, f"client-{client}"),
                source_ip=f"10.{client >> 8}.{client & 255}.7",
                destination=Workload(
                    uid=f"uid-{number}",
                    name=ObjectName(namespace, f"app-{number}"),
                    service_account="default",
                    node="node-1",
                    addresses=("10.200.0.1",),
                    identity=SpiffeId.workload("cluster.local", namespace, "default"),
                    enrolled=True,
                    labels={"app": f"app-{number}"},
                ),
                port=8080,
            )
        )
    return requests


_Shape = tuple[Callable[[int], Iterator[AuthorizationPolicy]], Callable[[int], list[Request]]]
_SHAPES: Final[dict[str, _Shape]] = {
    "spread": (_spread, lambda count: _requests(count, destinations=count, clients=count)),
    "one_peer": (_one_peer, lambda count: _requests(count, destinations=1, clients=count)),
    "one_block": (_one_block, lambda count: _requests(count, destinations=1, clients=count)),
    "one_prefix": (_one_prefix, lambda count: _requests(count, destinations=1, clients=count)),
    "mixed": (_mixed, lambda count: _requests(count, destinations=count, namespaces=_NAMESPACES, clients=count)),
}


if __name__ == "__main__":
    main()
