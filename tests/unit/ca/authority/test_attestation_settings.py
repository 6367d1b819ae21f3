"""[attestation] of ca.toml: what it enables, and that nothing is guessed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.authority.attestation.assemble import assemble
from ca.authority.attestation.settings import AttestationSettings
from ca.authority.config import AuthorityConfig
from ca.authority.errors import ConfigError
from tests.instance_documents import Provider

_KUBERNETES = '[attestation]\nplugins = ["kubernetes"]\n[attestation.kubernetes]\n'
_DOCUMENT = '[attestation]\nplugins = ["instance_document"]\n[attestation.instance_document]\n'


def settings(directory: Path, text: str) -> AttestationSettings:
    path = directory / "ca.toml"
    path.write_text(text)
    return AuthorityConfig.load(path).attestation


def certificate_file(directory: Path) -> Path:
    path = directory / "provider.pem"
    path.write_bytes(Provider(at=datetime.now(UTC)).pem)
    return path


def test_without_the_section_join_tokens_are_all_there_is(tmp_path: Path) -> None:
    found = settings(tmp_path, "")
    assert found == AttestationSettings(plugins=("join_token",))


def test_several_methods_may_be_in_force_at_once(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        '[attestation]\nplugins = ["join_token", "kubernetes", "instance_document"]\n'
        '[attestation.kubernetes]\nserver = "https://[fd00::1]:6443"\nservice_accounts = ["mesh/agent"]\n'
        f'[attestation.instance_document]\ncertificate_file = "{certificate_file(tmp_path)}"\naccounts = ["1"]\n'
        'regions = ["eu-central-1"]\nnode_name = "ip-{privateIp}"\nmax_age_s = 3600\n',
    )
    assert found.plugins == ("join_token", "kubernetes", "instance_document")
    assert found.kubernetes is not None
    assert (found.kubernetes.host, found.kubernetes.port) == ("fd00::1", 6443)
    assert found.kubernetes.rules.service_accounts == {"mesh/agent"}
    assert found.instance_document is not None
    assert found.instance_document.max_age == timedelta(hours=1)
    assert assemble(found, trust_domain="cluster.local") is not None


def test_the_defaults_are_those_of_a_pod(tmp_path: Path) -> None:
    kubernetes = settings(tmp_path, _KUBERNETES + 'service_accounts = ["a/b"]').kubernetes
    assert kubernetes is not None
    assert (kubernetes.host, kubernetes.port) == ("kubernetes.default.svc", 443)
    assert str(kubernetes.token_file) == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert kubernetes.rules.audience == "ringfence-ca"
    found = settings(tmp_path, f'{_DOCUMENT}certificate_file = "{certificate_file(tmp_path)}"\naccounts = ["1"]')
    assert found.instance_document is not None
    assert (found.instance_document.node_name, found.instance_document.max_age) == ("{instanceId}", None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("attestation = 1", "attestation must be a section"),
        ("[attestation]\nplugin = []", "[attestation] plugin: is unknown; [attestation] has"),
        ('[attestation]\nplugins = "join_token"', "plugins: must be a list of texts"),
        ("[attestation]\nplugins = []", "plugins: must name at least one of"),
        ('[attestation]\nplugins = ["join_token", "join_token"]', "each once"),
        ('[attestation]\nplugins = ["tpm"]', "'tpm' is unknown; there are join_token, kubernetes, instance_document"),
        ('[attestation]\nplugins = ["kubernetes"]', "'kubernetes' needs its section: write [attestation.kubernetes]"),
        ('[attestation.kubernetes]\nservice_accounts = ["a/b"]', 'kubernetes: is not enabled: add "kubernetes" to'),
        ('[attestation]\nplugins = ["kubernetes"]\nkubernetes = 1', "attestation.kubernetes must be a section"),
        (_KUBERNETES, "service_accounts: is missing and has no default"),
        (_KUBERNETES + "service_accounts = []", "service_accounts: is empty: nobody would be believed"),
        (_KUBERNETES + 'service_accounts = ["agent"]', "must be <namespace>/<service account>, not 'agent'"),
        (_KUBERNETES + 'service_accounts = ["*/*"]', "must be <namespace>/<service account>"),
        (_KUBERNETES + 'service_accounts = ["a/b"]\naudience = ""', "audience: must be text such as 'ringfence-ca'"),
        (_KUBERNETES + 'service_accounts = ["a/b"]\nserver = "http://a"', "server: must be https://host"),
        (_KUBERNETES + 'service_accounts = ["a/b"]\nserver = "https://"', "server: must be https://host"),
        (_KUBERNETES + 'service_accounts = ["a/b"]\nserver = "https://u:p@a"', "server: must be https://host"),
        (_KUBERNETES + 'service_accounts = ["a/b"]\nserver = "https://a/x"', "server: must be https://host"),
        (_KUBERNETES + 'service_accounts = ["a/b"]\nserver = "https://a:99999"', "server: must be https://host"),
        (_KUBERNETES + 'service_accounts = ["a/b"]\nserver = "https://[x"', "server: must be https://host"),
        (_KUBERNETES + 'service_accounts = ["a/b"]\nca_file = "ca.crt"', "ca_file: must be an absolute path"),
        (_KUBERNETES + 'service_accounts = ["a/b"]\ntoken = "x"', "token: is unknown; [attestation.kubernetes] has"),
        (_DOCUMENT, "certificate_file: is missing and has no default"),
        (_DOCUMENT + 'certificate_file = "/nowhere"', "/nowhere can not be read: No such file or directory"),
        (_DOCUMENT + 'certificate_file = "/etc/hostname"', "holds no certificates in PEM that count"),
        (_DOCUMENT + 'certificate_file = "@"\nmax_age_s = 0', "max_age_s: must be a whole number from 1 to"),
        (_DOCUMENT + 'certificate_file = "@"', "accounts: is missing and has no default"),
        (
            _DOCUMENT + 'certificate_file = "@"\naccounts = ["1"]\nnode_name = "{a b}"',
            "node_name: must be text",
        ),
        (_DOCUMENT + 'certificate_file = "@"\naccounts = ["1"]\nnode_name = "{__class__}"', "node_name: must be text"),
        (
            _DOCUMENT + 'certificate_file = "@"\naccounts = ["1"]\nnode_name = "a/{instanceId}"',
            "node_name: must be text",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_remedy(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(tmp_path, text.replace('"@"', f'"{certificate_file(tmp_path)}"'))
    assert str(error.value).startswith(f"{tmp_path / 'ca.toml'}:")
    assert says in str(error.value)
