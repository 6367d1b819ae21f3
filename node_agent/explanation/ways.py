"""How a connection would go to one endpoint, and what is said of it there: trust, mode, policies.

The same questions, in the same order, as the destination's agent asks
(proxy/inbound.py, policy_gate.py), of this agent's own copies.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ca.spiffe import SpiffeId
from node_agent.config import CAPTURE_PORTS
from node_agent.errors import CloseReason
from node_agent.explanation.places import Source
from node_agent.identity.trust import Certificate, TrustStore
from node_agent.model import Endpoint, MtlsMode, Workload
from node_agent.policy import Considered, Decision, Explanation, PolicyEngine, Request
from node_agent.policy.remedies import remedies
from node_agent.registry import Registry

Row = Mapping[str, Any]

_NO_SERIAL: Final = 0  # only the identity is asked about


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One endpoint, and the answer there: ``reason`` is why a connection would be refused, None if it would not."""

    endpoint: Endpoint
    judge: Workload | None  # whose agent decides; None: nobody does
    security: str
    request: Request | None
    mode: MtlsMode | None
    reason: CloseReason | None
    detail: str
    explanation: Explanation | None
    remedies: tuple[str, ...]

    @property
    def decision(self) -> Decision | None:
        return None if self.explanation is None else self.explanation.decision


class Ways:
    """Asks the parts that the data path asks."""

    def __init__(self, *, registry: Registry, engine: PolicyEngine, trust: TrustStore) -> None:
        self._registry = registry
        self._engine = engine
        self._trust = trust

    def to(self, source: Source, endpoint: Endpoint) -> Way:
        """How a connection of ``source`` to an endpoint would fare."""
        enrolled = source.workload is not None and source.workload.enrolled
        judge = endpoint.agent_of
        if judge is None or not judge.enrolled or (endpoint.egress is not None and not enrolled):
            return _unjudged(source, endpoint)
        ip = source.address(6 if ":" in endpoint.address.ip else 4)
        if ip is None:
            version = "IPv6" if ":" in endpoint.address.ip else "IPv4"
            return _unjudged(
                source, endpoint, CloseReason.CONNECT_UNREACHABLE, f"{source.name} has no {version} address"
            )
        identity = source.workload.identity if source.workload is not None and enrolled else None
        request = Request(
            source_identity=identity,
            source_ip=ip,
            destination=judge,
            port=endpoint.address.port,
            destination_ip=endpoint.address.ip,
        )
        would_be = None if source.workload is None else source.workload.identity
        return self.judged(request, source=source.name, endpoint=endpoint, if_enrolled=would_be)

    def judged(self, request: Request, *, source: str, endpoint: Endpoint, if_enrolled: SpiffeId | None = None) -> Way:
        """What is said of a request; ``source`` is its name for people, ``if_enrolled`` its identity in the mesh."""
        judge = request.destination
        explanation = self._engine.explain(request)
        mode = self._registry.mtls_mode(judge, request.port)
        reason: CloseReason | None = None
        detail = explanation.decision.detail
        ways_out: tuple[str, ...] = ()
        if judge.enrolled and request.port in CAPTURE_PORTS:
            reason = CloseReason.DESTINATION_NOT_ALLOWED
            detail = f"port {request.port} of {judge.name} is the agent's own listener"
        elif (distrusted := self._distrusted(request)) is not None:
            reason, detail = distrusted
        elif request.source_identity is None and mode is MtlsMode.STRICT:
            reason = CloseReason.PLAINTEXT_REFUSED
            detail = f"{judge.name} takes only mutual TLS on port {request.port} (PeerAuthentication STRICT)"
            ways_out = (
                f"enrol {source} in the mesh (label ringfence.io/mesh: enabled)",
                f"set the mode of {judge.name} port {request.port} to PERMISSIVE (PeerAuthentication)",
            )
        elif not explanation.decision.allowed:
            reason = CloseReason.POLICY_DENIED
            ways_out = tuple(remedies(explanation, request, source=source, if_enrolled=if_enrolled))
        return Way(
            endpoint=endpoint,
            judge=judge,
            security="none" if request.source_identity is None else "mutual_tls",
            request=request,
            mode=mode,
            reason=reason,
            detail=detail,
            explanation=explanation,
            remedies=ways_out,
        )

    def _distrusted(self, request: Request) -> tuple[CloseReason, str] | None:
        ends: Iterable[SpiffeId | None] = (request.source_identity, request.destination.identity)
        for identity in ends:
            if identity is not None:
                failure = self._trust.why_not(Certificate(identity=identity, serial=_NO_SERIAL))
                if failure is not None:
                    return failure.reason, failure.detail
        return None


def describe(way: Way, *, file_of: Callable[[str], str | None]) -> dict[str, Any]:
    """A way as the admin socket shows it, without its endpoint; ``file_of`` knows where a policy is written."""
    request, decision, explanation = way.request, way.decision, way.explanation
    policy = None if decision is None or decision.policy is None else str(decision.policy)
    return {
        "allowed": way.reason is None,
        "close_reason": None if way.reason is None else str(way.reason),
        "detail": way.detail,
        "policy": policy,
        "rule": None if decision is None else decision.rule,
        "file": None if policy is None else file_of(policy),
        "security": way.security,
        "mtls_mode": None if way.mode is None else str(way.mode),
        "source_identity": None if request is None or request.source_identity is None else str(request.source_identity),
        "source_address": None if request is None else request.source_ip,
        "destination_identity": None if way.judge is None else str(way.judge.identity),
        "port": way.endpoint.address.port,
        "node": None if way.judge is None else way.judge.node,
        "audit": [] if decision is None else list(dict.fromkeys(str(each.policy) for each in decision.audited)),
        "dry_run": None if decision is None else _dry_run(decision),
        "policies": [] if explanation is None else [_considered(each, file_of) for each in explanation.considered],
        "remedies": list(way.remedies),
    }


def _considered(considered: Considered, file_of: Callable[[str], str | None]) -> Row:
    policy = considered.policy
    return {
        "policy": str(policy),
        "file": file_of(str(policy)),
        "action": str(policy.action),
        "scope": str(considered.scope),
        "dry_run": policy.dry_run,
        "matched_rule": considered.matched,
        "rules": [
            {
                "rule": each.number,
                "matches": not each.mismatches,
                "mismatches": [str(mismatch) for mismatch in each.mismatches],
            }
            for each in considered.rules
        ],
    }


def _dry_run(decision: Decision) -> str | None:
    if decision.would_deny is not None:
        return f"denied by {decision.would_deny.policy}"
    return None if decision.would_allow is None else f"allowed by {decision.would_allow.policy}"


def _unjudged(source: Source, endpoint: Endpoint, reason: CloseReason | None = None, detail: str = "") -> Way:
    where = "outside of the mesh" if endpoint.workload is None else f"{endpoint.workload.name} is not in the mesh"
    return Way(
        endpoint=endpoint,
        judge=None,
        security="none",
        request=None,
        mode=None,
        reason=reason,
        detail=detail or f"allowed: {where}, nobody judges what {source.name} sends there",
        explanation=None,
        remedies=(),
    )
