"""What serves connections once there are any: everything that needs HTTP/2 is imported through here."""

from collections.abc import Callable
from datetime import datetime

import trio

from ca.spiffe import SpiffeId
from node_agent.identity import Identities
from node_agent.identity.trust import TrustStore
from node_agent.workload_api.answers import Answers, public_key_of
from node_agent.workload_api.caller import Caller
from node_agent.workload_api.callers import Group
from node_agent.workload_api.changes import Changes
from node_agent.workload_api.conversation import Conversation
from node_agent.workload_api.jwt_svids import JwtSvids
from node_agent.workload_api.statistics import Statistics


class Service:
    """The parts that all connections share."""

    def __init__(
        self,
        *,
        identities: Identities,
        trust: TrustStore,
        changes: Changes,
        denied: Callable[[Caller], None],
        utc_now: Callable[[], datetime],
    ) -> None:
        self.statistics = Statistics()
        self._changes = changes
        self._denied = denied

        def key_of(trust_domain: str, key_id: str) -> bytes | None:
            return public_key_of(trust, trust_domain, key_id)

        self._jwts = JwtSvids(ask=identities.sign_jwt, public_key_of=key_of, utc_now=utc_now)
        self._answers = Answers(identities=identities, trust=trust, jwts=self._jwts, utc_now=utc_now)

    def forget(self, identity: SpiffeId) -> None:
        """An identity has no SVID any more: its tokens are not given away either."""
        self._jwts.forget(identity)

    async def serve(self, stream: trio.SocketStream, caller: Caller, group: Group) -> None:
        """Serve one connection to its end; the caller closes what it gave."""
        conversation = Conversation(
            stream=stream,
            caller=caller,
            group=group,
            answers=self._answers,
            changes=self._changes,
            statistics=self.statistics,
            denied=self._denied,
        )
        await conversation.run()
