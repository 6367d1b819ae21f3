"""Reads tests/policy_cases: what AuthorizationPolicies mean, as a table of cases that people can read."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ca.manifests.documents import read_documents
from ca.spiffe import SpiffeId
from node_agent.model import ObjectName, Workload
from node_agent.policy import Request

FOLDER: Final = Path(__file__).with_name("policy_cases")
_CONNECTION: Final = re.compile(r"(\S+) -> (\S+):(\d+)")
_DECISION: Final = re.compile(r"(allowed|denied)(?: by (\S+) rule (\d+))?")
_WOULD: Final = re.compile(r"be (allowed|denied) by (\S+)(?: rule (\d+))?")
_RULE: Final = re.compile(r"(\S+) rule (\d+)")

Rule = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sentence of the table; ``manifests`` are whole, ``by`` and ``would`` name policies as ``namespace/name``."""

    topic: str
    about: str
    say: str
    manifests: tuple[Mapping[str, Any], ...]
    request: Request
    allowed: bool
    by: Rule | None
    audited: tuple[Rule, ...]
    would: tuple[bool, str, int | None] | None

    def __str__(self) -> str:
        return f"{self.topic}: {self.about}: {self.say}"


def read_cases() -> Iterator[Case]:
    """Every case, in the order of the files."""
    cast = next(iter(read_documents((FOLDER / "cast.yaml").read_text(encoding="utf-8")))).data
    for path in sorted(FOLDER.glob("[0-9]-*.yaml")):
        for document in read_documents(path.read_text(encoding="utf-8")):
            yield from _group(path.stem, document.data, cast)


def _group(topic: str, group: Mapping[str, Any], cast: Mapping[str, Any]) -> Iterator[Case]:
    assert group.keys() == {"about", "policies", "cases"}, group
    manifests = tuple(map(_manifest, group["policies"]))
    for case in group["cases"]:
        assert case.keys() <= {"say", "connection", "decision", "audited", "would"}, case
        verdict, policy, rule = _match(_DECISION, case["decision"])
        would = None
        if "would" in case:
            other, by, number = _match(_WOULD, case["would"])
            would = (other == "allowed", by, None if number is None else int(number))
        yield Case(
            topic=topic,
            about=group["about"],
            say=case["say"],
            manifests=manifests,
            request=_request(case["connection"], cast),
            allowed=verdict == "allowed",
            by=None if policy is None else (policy, int(rule)),
            audited=tuple(
                (name, int(number)) for name, number in (_match(_RULE, each) for each in case.get("audited", ()))
            ),
            would=would,
        )


def _manifest(short: Mapping[str, Any]) -> Mapping[str, Any]:
    """A whole manifest: of namespace shop unless it says another, or none."""
    metadata: dict[str, Any] = {"name": short["name"]}
    if (namespace := short.get("namespace", "shop")) is not None:
        metadata["namespace"] = namespace
    if "dry-run" in short:
        metadata["annotations"] = {"istio.io/dry-run": str(short["dry-run"]).lower()}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": metadata,
        "spec": short["spec"],
    }


def _request(connection: str, cast: Mapping[str, Any]) -> Request:
    source_name, destination_name, port = _match(_CONNECTION, connection)
    source, destination = cast["sources"][source_name], cast["destinations"][destination_name]
    identity = source.get("identity")
    return Request(
        source_identity=None if identity is None else SpiffeId.parse(f"spiffe://{identity}"),
        source_ip=source["ip"],
        destination=Workload(
            uid=destination_name,
            name=ObjectName(destination["namespace"], destination_name),
            service_account="default",
            node="n1",
            addresses=tuple(destination["addresses"]),
            identity=SpiffeId.workload("cluster.local", destination["namespace"], "default"),
            enrolled=True,
            labels=destination["labels"],
        ),
        port=int(port),
    )


def _match(pattern: re.Pattern[str], text: str) -> tuple[Any, ...]:
    found = pattern.fullmatch(text)
    assert found is not None, f"{text!r} is not {pattern.pattern}"
    return found.groups()
