"""Delete objects, as kubectl would: a pod with its namespace, a namespace with all that is in it."""

from labkit import manifests, pods, state
from labkit.errors import LabError


def delete(lab: state.Lab, text: str) -> list[str]:
    """Delete ``KIND/NAMESPACE/NAME`` (``KIND/NAME``: of the whole cluster, or in ``default``): one line an object.

    Raises:
        LabError: it is not there; lists those of the kind.
    """
    kind, namespace, name = _parse(text)
    if kind == "namespace":
        lines = _delete_contents(lab, name)
    elif kind == "pod" or (kind == "workload" and _is_pod(str(namespace), name)):
        return _delete_pod(lab, str(namespace), name)
    else:
        lines = []
    if not manifests.remove(kind, namespace, name) and not lines:
        raise LabError(f"no {text}; {_known(kind)}")
    pods.sync(lab)
    return [*lines, f"{'/'.join(part for part in (kind, namespace, name) if part)} deleted"]


def _parse(text: str) -> tuple[str, str | None, str]:
    kind, *rest = text.split("/")
    kind = kind.lower()
    if not kind or not all(rest) or any(part.startswith(".") for part in rest) or len(rest) not in (1, 2):
        raise LabError(f"{text!r}: write KIND/NAMESPACE/NAME, for example service/default/web")
    if manifests.is_cluster_scoped(kind):
        if len(rest) != 1:
            raise LabError(f"{text!r}: a {kind} is in no namespace: write {kind}/{rest[-1]}")
        return kind, None, rest[0]
    return kind, rest[0] if len(rest) == 2 else "default", rest[-1]


def _is_pod(namespace: str, name: str) -> bool:
    return any((pod.namespace, pod.name) == (namespace, name) for pod in pods.all_pods())


def _known(kind: str) -> str:
    found = [manifests.key_of(each) for each in manifests.read_all() if each["kind"].lower() == kind]
    names = ", ".join("/".join(part for part in key[1:] if part) for key in found)
    return f"of this kind there are {names}" if names else "there is none of this kind"


def _delete_pod(lab: state.Lab, namespace: str, name: str) -> list[str]:
    for pod in pods.all_pods():
        if (pod.namespace, pod.name) == (namespace, name):
            pods.delete(lab, pod)
            break
    else:
        if not manifests.remove("Pod", namespace, name):
            raise LabError(f"no pod/{namespace}/{name}; {_known('pod')}")
        pods.sync(lab)
    return [f"pod/{namespace}/{name} deleted"]


def _delete_contents(lab: state.Lab, namespace: str) -> list[str]:
    lines: list[str] = []
    for pod in pods.all_pods():
        if pod.namespace == namespace:
            lines += _delete_pod(lab, namespace, pod.name)
    for document in manifests.read_all():
        key = manifests.key_of(document)
        if key[1] == namespace and manifests.remove(*key):
            lines.append(f"{'/'.join((key[0].lower(), namespace, key[2]))} deleted")
    return lines
