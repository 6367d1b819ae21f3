"""The table of cases, against the compiled engine and against the naive evaluator."""

from collections import Counter
from typing import Final

import pytest

from ca.manifests import AuthorizationPolicy, parse_object
from node_agent.model import ObjectName
from node_agent.policy import Decision, PolicyEngine
from tests.policy_oracle import Asked, Verdict, judge
from tests.policy_table import Case, read_cases

CASES: Final = tuple(read_cases())


def test_the_table_says_at_least_150_things_and_nothing_twice() -> None:
    assert len(CASES) >= 150
    connections = Counter(
        (
            each.topic,
            each.about,
            str(each.request.source_identity),
            each.request.source_ip,
            each.request.destination.uid,
            each.request.port,
        )
        for each in CASES
    )
    assert [each for each, times in connections.items() if times > 1] == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_engine_decides_as_the_table_says(case: Case) -> None:
    engine = PolicyEngine()
    engine.apply(_read(case))
    assert _said(engine.decide(case.request)) == _expected(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_naive_evaluator_decides_as_the_table_says(case: Case) -> None:
    request = case.request
    identity = request.source_identity
    verdict = judge(
        case.manifests,
        Asked(
            principal=None if identity is None else str(identity).removeprefix("spiffe://"),
            source_ip=request.source_ip,
            destination_ip=request.destination_address(),
            port=request.port,
            namespace=request.destination.name.namespace,
            labels=request.destination.labels,
        ),
    )
    assert verdict == _expected(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_sentence_for_people_names_who_decided(case: Case) -> None:
    engine = PolicyEngine()
    engine.apply(_read(case))
    decision = engine.decide(case.request)
    assert decision.detail.startswith("allowed" if case.allowed else "denied")
    if case.by is not None:
        assert decision.detail.endswith(f"by policy {case.by[0]}, rule {case.by[1]}")
    elif not case.allowed:
        allowing = [
            each.policy for each in engine.policies_for(case.request.destination) if each.policy.action == "ALLOW"
        ]
        assert all(str(each) in decision.detail for each in allowing if not each.dry_run)


def _read(case: Case) -> dict[ObjectName, AuthorizationPolicy | None]:
    policies: dict[ObjectName, AuthorizationPolicy | None] = {}
    for manifest in case.manifests:
        policy = parse_object(manifest)
        assert isinstance(policy, AuthorizationPolicy)
        policies[ObjectName(policy.namespace, policy.name)] = policy
    return policies


def _said(decision: Decision) -> Verdict:
    trial = decision.would_deny or decision.would_allow
    return Verdict(
        allowed=decision.allowed,
        by=None if decision.policy is None or decision.rule is None else (str(decision.policy), decision.rule),
        audited=[(str(each.policy), each.rule) for each in decision.audited],
        would=None if trial is None else (trial is decision.would_allow, str(trial.policy), trial.rule),
    )


def _expected(case: Case) -> Verdict:
    return Verdict(allowed=case.allowed, by=case.by, audited=list(case.audited), would=case.would)
