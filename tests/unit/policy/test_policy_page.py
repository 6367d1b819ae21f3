"""docs/policy.md says what the code does."""

import re
from pathlib import Path
from typing import Any, Final

import pytest

from ca.manifests import parse_object
from ca.manifests.authorization import Attribute
from ca.manifests.authorization_policy import _CONDITIONS, _OPERATION, _SOURCE
from ca.manifests.documents import read_documents
from node_agent.policy.check import Code
from tests.policy_table import FOLDER, read_cases

PAGE: Final = (Path(__file__).parents[3] / "docs/policy.md").read_text(encoding="utf-8")


def test_the_number_of_cases_is_right() -> None:
    assert f"in {sum(1 for _ in read_cases())} sentences" in PAGE


def test_every_file_of_cases_is_named() -> None:
    assert set(re.findall(r"tests/policy_cases/([0-9].*?\.yaml)", PAGE)) == {
        each.name for each in FOLDER.glob("[0-9]*.yaml")
    }


@pytest.mark.parametrize(
    "text", [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "kind:" in block]
)
def test_the_examples_are_policies(text: str) -> None:
    documents: list[Any] = [each.data for each in read_documents(text)]
    assert documents
    for each in documents:
        parse_object(each)


def test_every_field_and_condition_is_explained() -> None:
    fields = {name for name in (*_SOURCE, *_OPERATION) if not name.startswith("not")} | _CONDITIONS.keys()
    assert [name for name in sorted(fields) if f"`{name}`" not in PAGE and not name.startswith("request.")] == []
    unjudged = {
        name for name, known in (*_SOURCE.items(), *_OPERATION.items()) if known.attribute is Attribute.UNJUDGED
    }
    section = PAGE.partition("### What TCP does not show")[2].partition("###")[0]
    assert [name for name in sorted(unjudged) if not name.startswith("not") and f"`{name}`" not in section] == []


def test_every_code_of_a_finding_is_explained() -> None:
    section = PAGE.partition("## Check a policy")[2].partition("\n## ")[0]
    assert [each for each in Code if f"`{each}`" not in section] == []
