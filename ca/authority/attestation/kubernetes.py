"""A node proves itself by the projected service-account token of the agent's pod.

The token is shown to the cluster's API server (TokenReview), which says whether
it is good and which pod it is bound to; that pod has to run as an agent's
service account, on the node that asks.  What has to be so is in
``token_review.py``; this file asks.
"""

import json
import logging
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from ca.authority.attestation import token_review
from ca.authority.attestation.api_server import ApiServer, ApiServerError
from ca.authority.attestation.attested import Attested, Claim, node_identity, refused
from ca.authority.attestation.token_review import BoundPod, TokenRules, UnexpectedAnswer
from ca.authority.errors import Refusal
from ca.authority.logs import log
from ca.messages import RefusalCode

KUBERNETES: Final = "kubernetes"
_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
_NOT_FOUND: Final = 404


class KubernetesTokens:
    """The plugin ``kubernetes``."""

    def __init__(self, *, trust_domain: str, rules: TokenRules, api_server: ApiServer) -> None:
        self._trust_domain = trust_domain
        self._rules = rules
        self._api_server = api_server

    @property
    def name(self) -> str:
        return KUBERNETES

    async def attest(self, claim: Claim, *, at: datetime) -> Attested:
        """See ``Plugin.attest``."""
        identity = node_identity(self._trust_domain, claim.node)
        token = token_review.presented_token(claim.evidence, rules=self._rules, at=at)
        try:
            body = json.dumps(token_review.review(token, rules=self._rules)).encode()
            pod = token_review.bound_pod(await self._api_server.post(_REVIEWS, body), rules=self._rules)
            node = pod.node or token_review.node_of_pod(await self._pod(pod), bound=pod)
        except (ApiServerError, UnexpectedAnswer) as exc:
            # What is wrong with the API server is for the operator of the authority, not for whoever asks.
            log("api_server_failed", level=logging.ERROR, why=str(exc))
            text = "the authority can not ask its API server at the moment; its log says why"
            raise Refusal(RefusalCode.UNAVAILABLE, text) from None
        token_review.require_node(node, claimed=claim.node, bound=pod)
        detail = f"pod {pod.namespace}/{pod.name} ({pod.uid}), service account {pod.service_account}"
        return Attested(identity=identity, node=claim.node, method=KUBERNETES, detail=detail)

    async def _pod(self, bound: BoundPod) -> Any:
        path = f"/api/v1/namespaces/{quote(bound.namespace, safe='')}/pods/{quote(bound.name, safe='')}"
        try:
            return await self._api_server.get(path)
        except ApiServerError as exc:
            if exc.status == _NOT_FOUND:
                raise refused(f"pod {bound.namespace}/{bound.name} of the service-account token is gone") from None
            raise
