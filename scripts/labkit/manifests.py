"""The directory of manifests: one object a file, written as an API server would fill it in.

Files are JSON, which is YAML too, and loads many times faster.  What is applied
is validated first by the code that the agents and the CA read it with.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, Final

from labkit import layout, services, state
from labkit.errors import LabError

Object = dict[str, Any]

_CLUSTER_SCOPED: Final = frozenset({"Namespace", "Node", "GatewayClass", "CustomResourceDefinition"})
# Of these the lab knows things that a manifest written by hand leaves out.
_FILLED_IN: Final = frozenset({"Pod", "Node"})


def file_name(kind: str, namespace: str | None, name: str) -> str:
    """``service.default.web.yaml``; objects of the whole cluster have no namespace."""
    return ".".join([kind.lower(), *([namespace] if namespace else []), name, "yaml"])


def is_cluster_scoped(kind: str) -> bool:
    """Whether objects of the kind (in lower case or not) have no namespace."""
    return kind.lower() in {each.lower() for each in _CLUSTER_SCOPED}


def key_of(document: Object) -> tuple[str, str | None, str]:
    """Kind, namespace and name of a manifest."""
    metadata = document["metadata"]
    kind = document["kind"]
    return kind, None if is_cluster_scoped(kind) else metadata.get("namespace") or "default", metadata["name"]


def read_all() -> list[Object]:
    """Every object of the directory, each once.

    People put files of their own here too, wrong ones among them; those are
    skipped, and the agents report them.
    """
    found: dict[tuple[str, str | None, str], Object] = {}
    for name in sorted(filter(_is_manifest, os.listdir(layout.MANIFESTS_DIR))):
        try:
            text = (layout.MANIFESTS_DIR / name).read_text(encoding="utf-8")
            documents = [document for document in _documents(text) if _is_object(document)]
            if [file_name(*key_of(document)) for document in documents] != [name]:
                _validate(text, name)  # not written, and not checked, by `apply`
        except (OSError, ValueError, LabError):
            continue
        for document in documents:
            found.setdefault(key_of(document), document)
    return list(found.values())


def read(kind: str, namespace: str | None, name: str) -> Object | None:
    """One object that the lab wrote; None if there is none."""
    found: Object | None = state.read_json(layout.MANIFESTS_DIR / file_name(kind, namespace, name), None)
    return found


def write(document: Object) -> None:
    """Write one object."""
    state.write_json(layout.MANIFESTS_DIR / file_name(*key_of(document)), document)


def remove(kind: str, namespace: str | None, name: str) -> bool:
    """Remove one object; False if there is none."""
    try:
        (layout.MANIFESTS_DIR / file_name(kind, namespace, name)).unlink()
    except FileNotFoundError:
        return False
    return True


def digest() -> str:
    """What the directory holds now, as the agents compute it (ca.manifests)."""
    lines: list[str] = []
    for name in sorted(os.listdir(layout.MANIFESTS_DIR)):
        if not _is_manifest(name):
            continue
        try:
            content = (layout.MANIFESTS_DIR / name).read_bytes()
        except OSError:
            continue
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _is_manifest(name: str) -> bool:
    return name.endswith((".yaml", ".yml", ".json")) and not name.startswith((".", "#"))


def apply(text: str, *, origin: str) -> tuple[list[str], list[str]]:
    """Write every object of a text, or, if anything is wrong with any of them, none.

    Returns:
        One line an object (``service/default/web created``), and what the project does not know.

    Raises:
        LabError: naming file, document, line, path and reason.
    """
    skipped = _validate(text, origin)
    documents = [_checked(document, number, origin) for number, document in _flattened(text)]
    if not documents:
        raise LabError(f"{origin}: holds no object")
    existing = {key_of(each): each for each in read_all()}
    taken = services.taken_addresses(each for key, each in existing.items() if key not in map(key_of, documents))
    lines: list[str] = []
    changed: list[Object] = []
    for document in documents:
        key = key_of(document)
        before = existing.get(key)
        if key[1] is not None:
            document["metadata"]["namespace"] = key[1]
        if key[0] in _FILLED_IN and before is not None:
            document = _filled_in(document, before)  # noqa: PLW2901 - the same object, complete
        if key[0] == "Service":
            services.assign_cluster_ips(document, before, taken, origin)
        _validate(json.dumps(document), origin)
        outcome = "created" if before is None else "unchanged" if before == document else "configured"
        lines.append(f"{'/'.join(part for part in (key[0].lower(), *key[1:]) if part)} {outcome}")
        if outcome != "unchanged":
            changed.append(document)
        existing[key] = document
    for document in changed:
        write(document)
    return lines, skipped


def _validate(text: str, origin: str) -> list[str]:
    from ca.manifests import ManifestError, parse_manifests  # noqa: PLC0415 - only apply needs it

    try:
        return [str(each) for each in parse_manifests(text, origin=origin).skipped]
    except ManifestError as exc:
        raise LabError(f"{exc}\nnothing was changed") from exc


def _documents(text: str) -> Iterator[Any]:
    if text.startswith("{"):
        try:
            yield json.loads(text)
        except ValueError:
            pass
        else:
            return
    from ca.manifests.documents import read_documents  # noqa: PLC0415 - only files that the lab did not write need it

    for document in read_documents(text):
        yield document.data


def _flattened(text: str) -> Iterator[tuple[int, Any]]:
    """The objects of a text with the numbers of their documents; ``kind: List`` holds several."""
    for number, document in enumerate(_documents(text), start=1):
        if document is None:
            continue
        if isinstance(document, dict) and document.get("kind") == "List":
            for item in document.get("items") or []:
                yield number, item
        else:
            yield number, document


def _is_object(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and isinstance(document.get("kind"), str)
        and isinstance(document.get("metadata"), dict)
        and isinstance(document["metadata"].get("name"), str)
    )


def _checked(document: Any, number: int, origin: str) -> Object:
    if not _is_object(document) or not isinstance(document.get("apiVersion"), str):
        raise LabError(f"{origin}, document {number}: needs apiVersion, kind and metadata.name\nnothing was changed")
    parts: list[Any] = [part for part in key_of(document) if part is not None]
    for part in parts:
        if not isinstance(part, str) or "/" in part or part.startswith("."):
            raise LabError(f"{origin}, document {number}: {part!r} can not be part of a name\nnothing was changed")
    found: Object = json.loads(json.dumps(document))  # a copy that may be changed
    return found


def _filled_in(document: Object, before: Object) -> Object:
    """A Pod or Node of the lab's own, applied again by hand: what the manifest leaves out stays."""
    merged = {**before, **document}
    for part in ("metadata", "spec", "status"):
        if part in before:
            merged[part] = {**before[part], **document.get(part, {})}
    return merged
