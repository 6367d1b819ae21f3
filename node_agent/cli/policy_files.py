"""What ``ringfence policy check`` reads: the files to check, and what exists, from manifests or from an agent."""

import difflib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ca.manifests import (
    AuthorizationPolicy,
    ManifestObject,
    Namespace,
    Node,
    Pod,
    Skipped,
    parse_object,
    read_directory,
)
from ca.manifests.directory import is_manifest_name
from ca.manifests.documents import MAX_FILE_BYTES, DocumentError, document_starts, line_of, read_documents
from ca.manifests.documents import Path as DocumentPath
from ca.manifests.fields import FieldError, path_text
from ca.manifests.parse import unwrapped
from ca.spiffe import SpiffeId, SpiffeIdError
from node_agent.cli.agent_socket import ask
from node_agent.cli.policy_errors import every_error
from node_agent.policy.check import Cluster, KnownWorkload

STDIN: Final = "-"
_API: Final = "security.istio.io/v1"
_KIND: Final = "AuthorizationPolicy"
_MAX_READ_AGAIN: Final = 100_000_000  # characters: some ten seconds


class Unreadable(Exception):
    """Something that was named can not be read; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An object, and where it is written."""

    file: str
    document: int
    path: DocumentPath
    object: ManifestObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An object that the agent would refuse, and with it the whole file."""

    file: str
    line: int
    document: int
    path: str
    reason: str


@dataclass(slots=True, kw_only=True)
class Read:
    """Everything that was read; ``texts`` by file, to find lines in."""

    texts: dict[str, str] = field(default_factory=dict)
    objects: list[Placed] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    misspelt: list[Refused] = field(default_factory=list)  # skipped, and probably meant as policies
    _read_again: int = field(default=0, init=False)
    _starts: dict[str, list[tuple[int, int]]] = field(default_factory=dict, init=False)

    @property
    def policies(self) -> list[Placed]:
        return [each for each in self.objects if isinstance(each.object, AuthorizationPolicy)]

    def line(self, placed: Placed, path: DocumentPath) -> int:
        """The line of a place inside of an object, 0 where finding it would take long."""
        text = self.texts[placed.file]
        if placed.file not in self._starts:
            self._starts[placed.file] = [*document_starts(text), (len(text), 0)]
        (begin, line), (end, _) = self._starts[placed.file][placed.document - 1 : placed.document + 1]
        self._read_again += end - begin
        if self._read_again > _MAX_READ_AGAIN:
            return 0
        return line + line_of(text[begin:end], 1, (*placed.path, *path))


def read(names: Sequence[str]) -> Read:
    """Read files, directories of manifests, and ``-`` for stdin.

    Raises:
        Unreadable: one of them is not there.
    """
    found = Read()
    for name in dict.fromkeys(names):
        for file, content in _contents(name):
            try:
                found.texts[file] = _decoded(content)
            except ValueError as error:
                found.refused.append(Refused(file=file, line=0, document=0, path="", reason=str(error)))
            else:
                _read_text(found.texts[file], file, found)
    return found


def _contents(name: str) -> Iterator[tuple[str, bytes]]:
    if name == STDIN:
        if sys.stdin is None:
            raise Unreadable("stdin is closed; name a file")
        yield "stdin", sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        return
    path = Path(name)
    try:
        files = sorted(each for each in path.iterdir() if is_manifest_name(each.name)) if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as opened:
                content = opened.read(MAX_FILE_BYTES + 1)
            yield str(file), content
    except OSError as error:
        raise Unreadable(f"{error.filename or name}: can not be read: {error.strerror}") from error


def _decoded(content: bytes) -> str:
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES // 2**20} MiB; split it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text; save it as UTF-8") from None


def _read_text(text: str, file: str, found: Read) -> None:
    """Read every object, and go on behind one that is refused: who checks wants to hear of all."""
    try:
        for document in read_documents(text):
            try:
                for data, path in unwrapped(document.data, (), None):
                    _read_object(data, path, document.number, file, found)
            except FieldError as error:
                found.refused.append(_refused(error, text, file, document.number))
    except DocumentError as error:
        found.refused.append(Refused(file=file, line=error.line, document=error.document, path="", reason=error.reason))
    except RecursionError:
        found.refused.append(Refused(file=file, line=0, document=0, path="", reason="is nested too deep; flatten it"))


def _read_object(data: Any, path: DocumentPath, document: int, file: str, found: Read) -> None:
    try:
        read_object = parse_object(data, path=path)
    except FieldError as first:
        errors = every_error(data, path) or [first]
        found.refused += [_refused(error, found.texts[file], file, document) for error in errors]
        return
    if isinstance(read_object, Skipped):
        found.skipped.append(f"{file}: {read_object.reason}")
        if _means_a_policy(data):
            line = line_of(found.texts[file], document, (*path, "kind"))
            reason = f"{read_object.reason}: it has no effect; write {_API} {_KIND}, if that is meant"
            found.misspelt.append(
                Refused(file=file, line=line, document=document, path=path_text((*path, "kind")), reason=reason)
            )
    else:
        found.objects.append(Placed(file=file, document=document, path=path, object=read_object))


def _means_a_policy(data: Any) -> bool:
    """Whether an object of a foreign kind is probably a policy with a typing error, which would protect nobody."""
    kind, version = str(data.get("kind")), str(data.get("apiVersion"))
    if kind == _KIND and version.startswith(_API.partition("/")[0] + "/"):
        return False  # skipped for another reason, which is named
    return bool(difflib.get_close_matches(kind.lower(), [_KIND.lower()], cutoff=0.8))


def _refused(error: FieldError, text: str, file: str, document: int) -> Refused:
    line = line_of(text, document, error.path)
    return Refused(file=file, line=line, document=document, path=path_text(error.path), reason=error.reason)


def cluster_of(objects: Iterable[ManifestObject], *, trust_domain: str | None) -> Cluster:
    """What exists by manifests; the trust domain is ``cluster.local`` unless it is said."""
    known = tuple(objects)
    own = trust_domain or "cluster.local"
    domains = {each.name: each.trust_domain or own for each in known if isinstance(each, Node)}
    pods = [each for each in known if isinstance(each, Pod) and not each.finished]
    return Cluster(
        workloads=[
            KnownWorkload(
                namespace=pod.namespace,
                name=pod.name,
                service_account=pod.service_account,
                identity=f"{domains.get(pod.node_name, own)}/ns/{pod.namespace}/sa/{pod.service_account}",
                labels=pod.labels,
            )
            for pod in pods
        ],
        namespaces=[each.name for each in known if isinstance(each, Namespace)],
        trust_domain=own,
        policies=[each for each in known if isinstance(each, AuthorizationPolicy)],
    )


def objects_in(directory: str) -> tuple[ManifestObject, ...]:
    """What an agent that watches a directory would have in force.

    Raises:
        Unreadable: there is no such directory.
    """
    state = read_directory(directory)
    if state.directory_problem is not None:
        raise Unreadable(f"{directory}: {state.directory_problem.reason.partition(';')[0]}")
    return tuple(state.objects.values())


def cluster_of_agent(socket: str, objects: Iterable[ManifestObject], *, trust_domain: str | None) -> Cluster:
    """What exists by a running agent, with the policies of ``objects``.

    Raises:
        AgentUnavailable: it does not answer.
    """
    workloads = []
    domains: Counter[str] = Counter()
    for row in ask(socket, "/workloads"):
        try:
            identity = SpiffeId.parse(row["identity"])
        except (SpiffeIdError, KeyError, TypeError):
            continue
        domains[identity.trust_domain] += 1
        workloads.append(
            KnownWorkload(
                namespace=str(row["namespace"]),
                name=str(row["name"]),
                service_account=identity.service_account or "",
                identity=f"{identity.trust_domain}{identity.path}",
                labels=row.get("labels") or {},
            )
        )
    own = trust_domain or (domains.most_common(1)[0][0] if domains else "cluster.local")
    policies = [each for each in objects if isinstance(each, AuthorizationPolicy)]
    return Cluster(workloads=workloads, trust_domain=own, policies=policies)
