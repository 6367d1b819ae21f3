"""Texts to objects: documents, lists, and what a file as a whole must be.

A known kind that is wrong rejects its whole file; an unknown kind, or a variant
that Ringfence does not serve, is skipped and reported.  ``parse_object`` takes
data from any source, so that files and the Kubernetes API are read by the same
rules.
"""

from dataclasses import dataclass
from typing import Any

from ca.manifests.documents import MAX_DEPTH, DocumentError, Path, line_of, read_documents
from ca.manifests.errors import ManifestError, ManifestProblem
from ca.manifests.fields import FieldError, Fields, path_text, printable, shown
from ca.manifests.kinds import KINDS
from ca.manifests.names import ObjectKey
from ca.manifests.objects import ManifestObject
from ca.manifests.skipped import Skipped


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """``skipped`` holds one line for each object that Ringfence does not use."""

    objects: tuple[ManifestObject, ...]
    skipped: tuple[str, ...]


def parse_manifests(text: str, *, origin: str) -> ParsedFile:
    """Read a YAML or JSON text of any number of documents; ``origin`` names it in errors.

    Raises:
        ManifestError: the file is rejected whole; says where and why.
    """
    objects: dict[ObjectKey, ManifestObject] = {}
    skipped: list[str] = []
    number = 0
    try:
        for document in read_documents(text):
            number = document.number
            for data, path in unwrapped(document.data, (), None):
                found = parse_object(data, path=path)
                if isinstance(found, Skipped):
                    skipped.append(f"{origin}: document {number}: {found.reason}")
                elif found.key in objects:
                    raise FieldError(path, f"{found.key} appears twice in this file; remove one")
                else:
                    objects[found.key] = found
    except DocumentError as error:
        problem = ManifestProblem(file=origin, document=error.document, line=error.line, reason=error.reason)
        raise ManifestError(problem) from error
    except FieldError as error:
        line = line_of(text, number, error.path)
        problem = ManifestProblem(
            file=origin, document=number, line=line, path=path_text(error.path), reason=error.reason
        )
        raise ManifestError(problem) from error
    except RecursionError as error:
        # JSON is read without a limit of its own, and who walks over it runs out of stack.
        problem = ManifestProblem(
            file=origin, document=number, reason=f"nested deeper than {MAX_DEPTH} levels; flatten it"
        )
        raise ManifestError(problem) from error
    return ParsedFile(tuple(objects.values()), tuple(skipped))


def parse_object(data: Any, *, path: Path = ()) -> ManifestObject | Skipped:
    """Read one object that is not a list.

    Raises:
        FieldError: which field is wrong, and what to write instead.
    """
    top = Fields(data, path)
    version, kind = top.text("apiVersion"), top.text("kind")
    group, _, number = version.rpartition("/")
    known = KINDS.get((group, kind))
    if known is None:
        what = f"{printable(version)} {printable(kind)} {shown(top.fields('metadata').raw('name'))}"
        return Skipped(f"{what} is of a kind that is not used")
    versions, parse = known
    if number not in versions:
        right = "/".join(filter(None, (group, versions[0])))
        raise top.error("apiVersion", f"{shown(version)} is not supported for {kind}; write {right}")
    return parse(top)


def unwrapped(data: Any, path: Path, default: tuple[str, str] | None) -> list[tuple[Any, Path]]:
    """The objects of a document: itself, or the items of a List, or nothing if it is empty."""
    if data is None:
        return []
    top = Fields(data, path)
    if default is not None and not top.has("kind"):
        # "items of a typed list carry neither kind nor apiVersion" (kubectl get -o json does add them)
        return [({**data, "apiVersion": default[0], "kind": default[1]}, path)]
    kind = top.text("kind")
    if not kind.endswith("List") or not isinstance(top.raw("items"), list):
        return [(data, path)]
    typed = (top.text("apiVersion"), kind.removesuffix("List")) if kind != "List" else None
    if path:
        raise FieldError(path, "a list inside a list is not supported; move its items out")
    found = []
    for index, item in enumerate(top.raw("items")):
        found += unwrapped(item, ("items", index), typed)
    return found
