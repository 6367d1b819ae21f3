"""All that explains, built when somebody asks for the first time."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ca.manifests import DirectoryState
from node_agent.config import Config, OutboundTrafficPolicy
from node_agent.explanation.explainer import AtConnect, EndpointRows, Explainer
from node_agent.explanation.past import PastConnections
from node_agent.explanation.policies import Policies
from node_agent.identity.trust import TrustStore
from node_agent.policy import PolicyEngine
from node_agent.registry import Registry
from node_agent.telemetry.metrics import FamilyReading


class Explanations:
    """What the routes ask."""

    def __init__(
        self,
        *,
        config: Config,
        registry: Registry,
        engine: PolicyEngine,
        trust: TrustStore,
        endpoint_rows: EndpointRows,
        directory: Callable[[], DirectoryState],
        live: Callable[[], Iterable[Mapping[str, Any]]],
        archive: Callable[[], Iterable[bytes]],
        families: Callable[[], Iterable[FamilyReading]],
        at_connect: AtConnect,
    ) -> None:
        """``live`` and ``archive`` are the connections of the whole agent, ``families`` its metrics; ``at_connect``
        as the ``Explainer``'s."""
        node = config.agent.node
        self.explainer = Explainer(
            node=node,
            registry=registry,
            engine=engine,
            trust=trust,
            endpoint_rows=endpoint_rows,
            directory=directory,
            registry_only=config.proxy.outbound_traffic_policy is OutboundTrafficPolicy.REGISTRY_ONLY,
            at_connect=at_connect,
        )
        self.past = PastConnections(explainer=self.explainer, registry=registry, live=live, archive=archive)
        self.policies = Policies(
            node=node, registry=registry, engine=engine, families=families, file_of=self.explainer.file_of
        )
