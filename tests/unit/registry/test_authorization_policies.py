"""Which AuthorizationPolicies the policy engine is told of, and what is said of those that can not be judged."""

from ca.manifests import ObjectKey
from node_agent.model import ObjectName
from node_agent.registry import Registry, Update
from tests.manifest_builder import authorization_policy, pod

WEB = ObjectName("shop", "web")
ALLOW_CART = {"rules": [{"from": [{"source": {"serviceAccounts": ["cart"]}}]}]}


def test_a_policy_that_is_new_or_another_or_gone_is_told_and_nothing_else() -> None:
    registry = Registry("cluster.local")
    first, second = authorization_policy("web", {}), authorization_policy("web", ALLOW_CART)

    assert registry.apply(Update(upserts=(first,))).policies == {WEB: first}
    again = registry.apply(Update(upserts=(authorization_policy("web", {}), pod("a", "10.0.0.1"))))
    assert again.policies == {}
    assert registry.apply(Update(upserts=(second,))).policies == {WEB: second}
    assert list(registry.authorization_policies()) == [second]

    gone = registry.apply(Update(deletes=(ObjectKey("AuthorizationPolicy", "shop", "web"),)))
    assert gone.policies == {WEB: None}
    assert gone
    never_there = registry.apply(Update(deletes=(ObjectKey("AuthorizationPolicy", "shop", "web"),)))
    assert not never_there
    assert list(registry.authorization_policies()) == []


def test_what_can_not_be_judged_is_said_with_what_it_does_instead() -> None:
    registry = Registry("cluster.local")
    get = {"rules": [{"to": [{"operation": {"methods": ["GET"], "paths": ["/a"]}}]}, {}]}
    registry.apply(
        Update(
            upserts=(
                authorization_policy("a-allow", get),
                authorization_policy("b-deny", get | {"action": "DENY"}),
                authorization_policy("c-ask", {"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]}),
                authorization_policy("d-fine", ALLOW_CART),
                authorization_policy(
                    "e-nobody", {"rules": [{"from": [{"source": {"principals": ["spiffe://a/b", "*x*"]}}]}]}
                ),
            )
        )
    )
    assert list(registry.faults()) == [
        "AuthorizationPolicy shop/a-allow: methods, paths can not be judged in a TCP connection; "
        "the rules that use it allow nothing",
        "AuthorizationPolicy shop/b-deny: methods, paths can not be judged in a TCP connection; "
        "the rules that use it match as if these were not there",
        "AuthorizationPolicy shop/c-ask: action CUSTOM asks another program, which is not supported; "
        "what it matches is denied",
        "AuthorizationPolicy shop/e-nobody: principals 'spiffe://a/b' and '*x*' fit nobody; write identities without "
        "spiffe://, with * at one end at most",
    ]
