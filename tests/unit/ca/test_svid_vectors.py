"""The table of rules is complete: every rule has its evidence, and every vector a rule."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.svid_vectors.bundles import BundleVector, bundle_vectors
from tests.svid_vectors.chains import Vector, vectors
from tests.svid_vectors.ids import ID_VECTORS, IdVector
from tests.svid_vectors.rules import RULES, Rule

_ROOT = Path(__file__).parents[3]
_EVERY: tuple[IdVector | Vector | BundleVector, ...] = (*ID_VECTORS, *vectors(), *bundle_vectors())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_has_its_evidence(rule: Rule) -> None:
    accepted = [vector.name for vector in _EVERY if vector.rule == rule.name and vector.accepted]
    rejected = [vector.name for vector in _EVERY if vector.rule == rule.name and not vector.accepted]

    assert rule.accepts or rule.rejects or rule.tests, "a rule that nothing shows"
    assert bool(accepted) >= rule.accepts, "no vector that keeps it"
    assert bool(rejected) >= rule.rejects, "no vector that breaks it"
    for test in rule.tests:
        path, _, function = test.partition("::")
        tree = ast.parse((_ROOT / path).read_text(encoding="utf-8"))
        names = {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in names, test


def test_every_vector_is_about_a_rule_and_no_rule_is_there_twice() -> None:
    assert {vector.rule for vector in _EVERY} <= {rule.name for rule in RULES}
    assert [name for name, count in Counter(rule.name for rule in RULES).items() if count > 1] == []


def test_vectors_have_names_of_their_own() -> None:
    names = Counter((type(vector), vector.name) for vector in _EVERY)
    assert [name for name, count in names.items() if count > 1] == []
