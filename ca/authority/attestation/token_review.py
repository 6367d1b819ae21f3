"""What the API server must say of a service-account token before its pod is believed to be an agent's.

Sans-I/O.  ``presented_token`` sorts out what can not be good without asking
anybody; ``bound_pod`` reads the answer to a TokenReview; ``require_pod`` the
Pod, where the answer does not name the node.

A projected token is bound to its pod: the API server says no as soon as the
pod is gone.  Its audience keeps a token that was made for us from being of use
to others, and theirs from being of use with us.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ca.authority.attestation.attested import refused

_JWT: Final = re.compile(r"[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # DNS subdomain, RFC 1123 2.1
_UID: Final = re.compile(r"[A-Za-z0-9-]{1,128}")
_ACCOUNT_PREFIX: Final = "system:serviceaccount:"
_EXTRA: Final = "authentication.kubernetes.io/"
_SKEW_S: Final = 60.0
_MAX_REASON: Final = 200


class UnexpectedAnswer(Exception):
    """The API server's answer is not what its API promises; says which part, and quotes nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """Whose tokens count: our audience, and agents' service accounts as ``<namespace>/<name>``."""

    audience: str
    service_accounts: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundPod:
    """The pod that a token is bound to; ``node`` is None where the API server is older than 1.30."""

    namespace: str
    name: str
    uid: str
    service_account: str
    node: str | None


def presented_token(evidence: bytes, *, rules: TokenRules, at: datetime) -> str:
    """Read the token, and refuse by what it says of itself what the API server would refuse too.

    Nothing is believed here: the signature is the API server's to check.

    Raises:
        Refusal: not a token, for another audience, or expired.
    """
    try:
        token = evidence.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    found = _JWT.fullmatch(token)
    claims = None if found is None else _json_part(found[1])
    if not isinstance(claims, dict):
        raise refused("the evidence is not a service-account token: not a JWT in compact form (RFC 7519 3.1)")
    audiences = claims.get("aud")
    if audiences != rules.audience and not (isinstance(audiences, list) and rules.audience in audiences):
        raise refused(f"the service-account token is not for the audience {rules.audience!r} (RFC 7519 4.1.3)")
    expires = claims.get("exp")
    if isinstance(expires, bool) or not isinstance(expires, int | float):
        raise refused("the service-account token does not expire: only projected tokens count (RFC 7519 4.1.4)")
    if expires <= at.timestamp() - _SKEW_S:  # no sum with what they sent: an int may be too large for a float
        raise refused(f"the service-account token has expired, and it is {at:%Y-%m-%dT%H:%M:%SZ} here (RFC 7519 4.1.4)")
    return token


def review(token: str, *, rules: TokenRules) -> dict[str, Any]:
    """The TokenReview to post."""
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [rules.audience]},
    }


def bound_pod(answer: object, *, rules: TokenRules) -> BoundPod:
    """Judge the answer to ``review``.

    Raises:
        Refusal: the API server does not vouch for the token, or not for what is needed.
        UnexpectedAnswer: it is no answer to a TokenReview.
    """
    status = _mapping(_mapping(answer, "the answer").get("status"), "status")
    if status.get("authenticated") is not True:
        reason = status.get("error")
        shown = f": {reason[:_MAX_REASON]!r}" if isinstance(reason, str) and reason else ""
        raise refused(f"the API server does not accept the service-account token{shown}")
    audiences = status.get("audiences")
    # "If a TokenReview returns an empty status.audience field where status.authenticated is true, the token is
    # valid against the audience of the Kubernetes API server": not for ours.
    if not isinstance(audiences, list) or rules.audience not in audiences:
        raise refused(f"the API server does not confirm the audience {rules.audience!r} of the service-account token")
    user = _mapping(status.get("user"), "status.user")
    namespace, account = _service_account(user.get("username"))
    if f"{namespace}/{account}" not in rules.service_accounts:
        raise refused(
            f"service account {namespace}/{account} is not one of the agents' "
            "([attestation.kubernetes] service_accounts at the authority)"
        )
    extra = user.get("extra") or {}
    name, uid = _extra(extra, "pod-name", _NAME), _extra(extra, "pod-uid", _UID)
    if name is None or uid is None:
        raise refused("the service-account token is not bound to a pod: it has to be a projected one")
    return BoundPod(
        namespace=namespace, name=name, uid=uid, service_account=account, node=_extra(extra, "node-name", _NAME)
    )


def node_of_pod(answer: object, *, bound: BoundPod) -> str:
    """The node that the Pod of the token runs on, by the Pod itself.

    Raises:
        Refusal: it is another pod of that name by now, or it runs nowhere.
        UnexpectedAnswer: it is no Pod.
    """
    pod = _mapping(answer, "the answer")
    metadata, spec = _mapping(pod.get("metadata"), "metadata"), _mapping(pod.get("spec"), "spec")
    if metadata.get("uid") != bound.uid:
        raise refused(f"pod {bound.namespace}/{bound.name} is not the one that the token was made for (uid)")
    if spec.get("serviceAccountName") != bound.service_account:
        raise refused(f"pod {bound.namespace}/{bound.name} does not run as the token's service account")
    node = spec.get("nodeName")
    if not isinstance(node, str) or not _NAME.fullmatch(node):
        raise refused(f"pod {bound.namespace}/{bound.name} is not scheduled on a node")
    return node


def require_node(found: str, *, claimed: str, bound: BoundPod) -> None:
    """Raise Refusal unless the pod runs on the node that asks.  The node that it does run on is not revealed."""
    if found != claimed:
        raise refused(f"pod {bound.namespace}/{bound.name} of the service-account token does not run on this node")


def _json_part(part: str) -> object:
    try:
        return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        return None


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UnexpectedAnswer(f"{name} is not an object")
    return value


def _service_account(username: object) -> tuple[str, str]:
    if isinstance(username, str) and username.startswith(_ACCOUNT_PREFIX):
        namespace, _, account = username.removeprefix(_ACCOUNT_PREFIX).partition(":")
        if _NAME.fullmatch(namespace) and _NAME.fullmatch(account):
            return namespace, account
    raise refused("the token is not that of a service account")


def _extra(extra: object, key: str, form: re.Pattern[str]) -> str | None:
    """The one value of an extra field, or None where there is none."""
    values = _mapping(extra, "status.user.extra").get(_EXTRA + key)
    if values is None or values == []:
        return None
    if not isinstance(values, list) or len(values) != 1 or not isinstance(values[0], str):
        raise UnexpectedAnswer(f"status.user.extra {_EXTRA}{key} is not one text")
    if not form.fullmatch(values[0]):
        raise UnexpectedAnswer(f"status.user.extra {_EXTRA}{key} is not a name")
    return values[0]
