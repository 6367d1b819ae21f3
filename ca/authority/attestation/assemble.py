"""From what ca.toml says to the plugins that are in force."""

from ca.authority.attestation.api_server import ApiServer
from ca.authority.attestation.attested import Plugin
from ca.authority.attestation.instance_document import InstanceDocuments
from ca.authority.attestation.kubernetes import KubernetesTokens
from ca.authority.attestation.plugins import Attestors
from ca.authority.attestation.settings import AttestationSettings


def assemble(settings: AttestationSettings, *, trust_domain: str) -> Attestors:
    """Build every plugin that is enabled; nothing is connected yet."""
    plugins: list[Plugin] = []
    if (kubernetes := settings.kubernetes) is not None:
        api_server = ApiServer(
            host=kubernetes.host, port=kubernetes.port, ca_file=kubernetes.ca_file, token_file=kubernetes.token_file
        )
        plugins.append(KubernetesTokens(trust_domain=trust_domain, rules=kubernetes.rules, api_server=api_server))
    if settings.instance_document is not None:
        plugins.append(InstanceDocuments(trust_domain=trust_domain, rules=settings.instance_document))
    return Attestors(enabled=settings.plugins, plugins=plugins)
