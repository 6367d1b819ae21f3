"""Make the CustomResourceDefinitions that ship out of the JSON Schemas that validate.

An API server takes *structural* schemas only (Kubernetes documentation, "Extend
the Kubernetes API with CustomResourceDefinitions", Specifying a structural
schema): OpenAPI v3 without references, with a type everywhere, where what is not
declared is pruned.  ``structural`` writes a JSON Schema of draft 2020-12 anew so.

    $ref               the definition itself, in place
    const, enum        enum with a type
    exclusiveMinimum   minimum, and exclusiveMinimum: true (OpenAPI 3.0)
    uniqueItems        x-kubernetes-list-type: set
    additionalProperties: false   nothing: an API server refuses or prunes what it does not know
    x-kubernetes-validations   itself: rules in CEL, which a JSON Schema has no words for
    default            a sentence in the description: a default that is written into an object
                       would stay as it was when ours changes
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

_ROOT: Final = Path(__file__).resolve().parents[2]
_SCHEMAS: Final = _ROOT / "ca" / "manifests"
_TYPES: Final = {bool: "boolean", str: "string", int: "integer"}
_KEPT: Final = frozenset(
    {
        "type",
        "description",
        "enum",
        "pattern",
        "maxLength",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "required",
        "oneOf",
        "x-kubernetes-validations",
    }
)
_HEADER: Final = "# Made by scripts/crds from ca/manifests/{}: edit that, and make this anew.\n"

TRAFFIC_POLICIES: Final = _ROOT / "deploy" / "crds" / "trafficpolicies.ringfence.io.yaml"
WORKLOADS: Final = _ROOT / "deploy" / "crds" / "workloads.ringfence.io.yaml"

Schema = Mapping[str, Any]


def main() -> None:
    """Write what ships."""
    for path, text in ((TRAFFIC_POLICIES, traffic_policies()), (WORKLOADS, workloads())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(_ROOT))


def traffic_policies() -> str:
    """The text of the CRD of TrafficPolicy."""
    columns = {
        "Service": ("string", ".spec.targetRef.name"),
        "Port": ("integer", ".spec.port"),
        "Balancing": ("string", ".spec.loadBalancing.policy"),
    }
    return _definition("traffic_policy.schema.json", plural="trafficpolicies", columns=columns)


def workloads() -> str:
    """The text of the CRD of Workload."""
    columns = {
        "Node": ("string", ".spec.nodeName"),
        "Account": ("string", ".spec.serviceAccountName"),
        "Unit": ("string", ".spec.systemdUnit"),
        "Cgroup": ("string", ".spec.cgroup"),
    }
    return _definition("workload.schema.json", plural="workloads", columns=columns)


def _definition(file: str, *, plural: str, columns: Mapping[str, tuple[str, str]]) -> str:
    schema: Schema = json.loads((_SCHEMAS / file).read_text(encoding="utf-8"))
    group, version = schema["properties"]["apiVersion"]["const"].split("/")
    kind = schema["properties"]["kind"]["const"]
    spec = structural(schema["properties"]["spec"], schema["$defs"])
    shown = {**columns, "Age": ("date", ".metadata.creationTimestamp")}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "categories": ["ringfence"],
            },
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind_of, "jsonPath": path} for name, (kind_of, path) in shown.items()
                    ],
                    "schema": {
                        "openAPIV3Schema": {
                            "description": schema["description"],
                            "type": "object",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": spec,
                            },
                        }
                    },
                }
            ],
        },
    }
    return _HEADER.format(file) + yaml.safe_dump(definition, sort_keys=False, width=120)


def structural(schema: Schema, definitions: Schema) -> dict[str, Any]:
    """Write a schema as OpenAPI v3; raises ValueError for a keyword that has no counterpart here."""
    if "$ref" in schema:
        named = definitions[schema["$ref"].removeprefix("#/$defs/")]
        schema = {**named, **{key: value for key, value in schema.items() if key != "$ref"}}
    found: dict[str, Any] = {}
    for keyword, value in schema.items():
        match keyword:
            case "const" | "enum":
                values = value if keyword == "enum" else [value]
                found |= {"type": _TYPES[type(values[0])], "enum": values}
            case "exclusiveMinimum":
                found |= {"minimum": value, "exclusiveMinimum": True}
            case "uniqueItems":
                found["x-kubernetes-list-type"] = "set"
            case "properties":
                found["properties"] = {name: structural(each, definitions) for name, each in value.items()}
            case "items" | "additionalProperties" if value is not False:
                found[keyword] = structural(value, definitions)
            case "default" | "additionalProperties":
                pass
            case _ if keyword in _KEPT:
                found[keyword] = value
            case _:
                raise ValueError(f"{keyword}: say in scripts/crdkit what it is in OpenAPI")
    if "default" in schema:
        found["description"] = f"{schema.get('description', '')} Default: {_shown(schema['default'])}.".strip()
    return {key: found[key] for key in sorted(found, key=lambda key: (key != "description", key != "type"))}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
