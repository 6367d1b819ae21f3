"""``[attestation]`` of ca.toml: which methods are in force, and what each is to believe.

Strict like the rest of the file: an unknown key, a method without its section
and a section whose method is not enabled are errors.  What a method believes is
never guessed: the audience has a default, the service accounts and the accounts
have none.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509

from ca.authority.attestation.instance_document import INSTANCE_DOCUMENT, DocumentRules, signing_key
from ca.authority.attestation.join_token import JOIN_TOKEN
from ca.authority.attestation.kubernetes import KUBERNETES
from ca.authority.attestation.token_review import TokenRules
from ca.authority.config_lines import meant
from ca.authority.errors import ConfigError

_IN_POD: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_MAX_AGE_S: Final = 366 * 86_400
KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "attestation": ("plugins",),
    f"attestation.{KUBERNETES}": ("server", "ca_file", "token_file", "audience", "service_accounts"),
    f"attestation.{INSTANCE_DOCUMENT}": ("certificate_file", "accounts", "regions", "node_name", "max_age_s"),
}
_SECTIONS: Final = (KUBERNETES, INSTANCE_DOCUMENT)
_METHODS: Final = (JOIN_TOKEN, *_SECTIONS)
_ACCOUNT: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_TEXT: Final = re.compile(r"[\x21-\x7e]{1,253}")
_NODE_NAME: Final = re.compile(r"([A-Za-z0-9._-]|\{[A-Za-z][A-Za-z0-9]*\})+")


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """``[attestation.kubernetes]``; the API server proves itself by ``ca_file``, the authority by ``token_file``."""

    host: str
    port: int
    ca_file: Path
    token_file: Path
    rules: TokenRules


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationSettings:
    """``[attestation]``; a method whose settings are None is not enabled."""

    plugins: tuple[str, ...] = (JOIN_TOKEN,)
    kubernetes: KubernetesSettings | None = None
    instance_document: DocumentRules | None = None


def read_settings(path: Path, table: Mapping[str, Any]) -> AttestationSettings:
    """Check the table ``attestation`` of the file ``path``.  Raises ConfigError naming file, key and remedy."""
    section = _Section(path, "attestation", table, also=_SECTIONS)
    plugins = section.texts("plugins", default=(JOIN_TOKEN,))
    for name in plugins:
        if name not in _METHODS:
            raise section.wrong("plugins", f"{name!r} is unknown; there are {', '.join(_METHODS)}")
    if not plugins or len(set(plugins)) != len(plugins):
        raise section.wrong("plugins", f"must name at least one of {', '.join(_METHODS)}, each once")
    for name in _SECTIONS:
        if name in table and name not in plugins:
            raise section.wrong(name, f'is not enabled: add "{name}" to plugins, or remove the section')
        if name in plugins and name not in table:
            raise section.wrong("plugins", f"{name!r} needs its section: write [attestation.{name}]")
    return AttestationSettings(
        plugins=plugins,
        kubernetes=_kubernetes(path, table[KUBERNETES]) if KUBERNETES in plugins else None,
        instance_document=_instance_document(path, table[INSTANCE_DOCUMENT]) if INSTANCE_DOCUMENT in plugins else None,
    )


def _kubernetes(path: Path, table: Any) -> KubernetesSettings:
    section = _Section(path, f"attestation.{KUBERNETES}", table)
    host, port = section.https("server", "https://kubernetes.default.svc")
    accounts = section.texts("service_accounts")
    for account in accounts:
        if not _ACCOUNT.fullmatch(account):
            raise section.wrong("service_accounts", f"must be <namespace>/<service account>, not {account!r}")
    return KubernetesSettings(
        host=host,
        port=port,
        ca_file=section.path("ca_file", f"{_IN_POD}/ca.crt"),
        token_file=section.path("token_file", f"{_IN_POD}/token"),
        rules=TokenRules(
            audience=section.text("audience", "ringfence-ca", form=_TEXT), service_accounts=frozenset(accounts)
        ),
    )


def _instance_document(path: Path, table: Any) -> DocumentRules:
    section = _Section(path, f"attestation.{INSTANCE_DOCUMENT}", table)
    max_age_s = section.seconds("max_age_s", most=_MAX_AGE_S)
    return DocumentRules(
        certificates=section.certificates("certificate_file"),
        accounts=frozenset(section.texts("accounts")),
        regions=frozenset(section.texts("regions", default=())),
        node_name=section.text("node_name", "{instanceId}", form=_NODE_NAME),
        max_age=None if max_age_s is None else timedelta(seconds=max_age_s),
    )


class _Section:
    """Typed access to one table, with errors that name file, section and key."""

    def __init__(self, path: Path, name: str, table: Any, *, also: tuple[str, ...] = ()) -> None:
        self._path = path
        self._name = name
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} must be a section: write [{name}]", section=name)
        self._table: Mapping[str, Any] = table
        for key in table:
            if key not in KEYS[name] and key not in also:
                names = (*KEYS[name], *also)
                raise self.wrong(key, f"is unknown; [{name}] has {', '.join(names)}{meant(key, names)}")

    def wrong(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._path}: [{self._name}] {key}: {problem}", section=self._name, key=key)

    def text(self, key: str, default: str, *, form: re.Pattern[str]) -> str:
        value = self._table.get(key, default)
        if not isinstance(value, str) or not form.fullmatch(value):
            raise self.wrong(key, f"must be text such as {default!r}, not {value!r}")
        return value

    def texts(self, key: str, *, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts; without ``default`` it has to be there, and not be empty."""
        value = self._table.get(key, default)
        if value is None:
            raise self.wrong(key, 'is missing and has no default: write a list, as in ["..."]')
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            raise self.wrong(key, f"must be a list of texts, not {value!r}")
        if not value and default is None:
            raise self.wrong(key, "is empty: nobody would be believed; name at least one")
        return tuple(value)

    def seconds(self, key: str, *, most: int) -> int | None:
        value = self._table.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most):
            raise self.wrong(key, f"must be a whole number from 1 to {most}, not {value!r}")
        return value

    def path(self, key: str, default: str | None) -> Path:
        value = self._table.get(key, default)
        if value is None:
            raise self.wrong(key, "is missing and has no default: name a file")
        if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
            raise self.wrong(key, f"must be an absolute path (it starts with /), not {value!r}")
        return Path(value)

    def https(self, key: str, default: str) -> tuple[str, int]:
        value = self._table.get(key, default)
        try:
            parts = urlsplit(value if isinstance(value, str) and _TEXT.fullmatch(value) else "")
            host, port = parts.hostname, parts.port or 443
        except ValueError:
            host, port, parts = None, 0, urlsplit("")
        if parts.scheme != "https" or not host or parts.path not in ("", "/") or parts.query or parts.fragment:
            host = None
        if host is None or "@" in parts.netloc:
            raise self.wrong(key, f"must be https://host or https://host:port, not {value!r}")
        return host, port

    def certificates(self, key: str) -> tuple[x509.Certificate, ...]:
        path = self.path(key, None)
        try:
            found = tuple(x509.load_pem_x509_certificates(path.read_bytes()))
            for certificate in found:
                signing_key(certificate)
        except OSError as exc:
            raise self.wrong(key, f"{path} can not be read: {exc.strerror}") from exc
        except ValueError as exc:
            raise self.wrong(key, f"{path} holds no certificates in PEM that count: {exc}") from exc
        return found
