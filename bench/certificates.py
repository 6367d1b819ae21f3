"""Certificates for the peers' mutual TLS, like those that Ringfence's CA issues.

P-256 throughout; root > intermediate > leaf, so that a handshake carries and
verifies as many certificates as Ringfence's; the leaf has a SPIFFE ID and no
name.  Made by the openssl command for one run, in its temporary directory.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TRUST_DOMAIN: Final = "bench.local"
_DAYS: Final = "2"

_EXTENSIONS: Final = """\
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = critical,URI:{uri}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Files of one end: its chain, its key, and both in one (as HAProxy wants them)."""

    uri: str
    chain: Path
    key: Path
    both: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Two ends that trust one root."""

    root: Path
    client: Certificate
    server: Certificate


def make(directory: Path) -> Certificates:
    """Make them in ``directory``."""
    directory.mkdir(mode=0o700)
    _issue(directory, "root", issuer=None, section="ca")
    _issue(directory, "intermediate", issuer="root", section="ca")
    return Certificates(
        root=directory / "root.pem", client=_leaf(directory, "client"), server=_leaf(directory, "server")
    )


def _leaf(directory: Path, name: str) -> Certificate:
    uri = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/{name}"
    _issue(directory, name, issuer="intermediate", section="leaf", uri=uri)
    key = directory / f"{name}.key"
    chain = directory / f"{name}-chain.pem"
    both = directory / f"{name}-both.pem"
    chain.write_text((directory / f"{name}.pem").read_text() + (directory / "intermediate.pem").read_text())
    both.touch(mode=0o600)
    both.write_text(chain.read_text() + key.read_text())
    return Certificate(uri=uri, chain=chain, key=key, both=both)


def _issue(directory: Path, name: str, *, issuer: str | None, section: str, uri: str = "") -> None:
    extensions = directory / f"{name}.ext"
    extensions.write_text(_EXTENSIONS.format(uri=uri or "spiffe://unused"))
    request = directory / f"{name}.csr"
    subject = "/" if section == "leaf" else f"/O=bench/CN={name}"
    key = directory / f"{name}.key"
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
    _openssl("req", "-new", "-key", str(key), "-subj", subject, "-out", str(request))
    signed_by = ["-signkey", str(key)]
    if issuer is not None:
        signed_by = ["-CA", str(directory / f"{issuer}.pem"), "-CAkey", str(directory / f"{issuer}.key")]
    extended = ["-extfile", str(extensions), "-extensions", section]
    output = ["-out", str(directory / f"{name}.pem")]
    _openssl("x509", "-req", "-sha256", "-days", _DAYS, "-in", str(request), *signed_by, *extended, *output)


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {' '.join(arguments)} failed: {done.stderr.strip()}")
