"""What this node shows to the CA while it has no certificate: ``[ca] attestation``.

Read anew for each attempt: join tokens are replaced by the operator, projected
service-account tokens by the kubelet every hour or so.  What is read is secret
and goes nowhere but to the CA, over TLS, after the CA has proved itself.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ca.errors import CaUnreachable
from ca.wire import pack
from node_agent.config import Attestation, CaSection

_MAX_BYTES: Final = 12 * 1024  # what the CA takes (ca/messages.py)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProof:
    """``plugin`` is the method's name at the CA; ``evidence`` is secret."""

    plugin: str
    evidence: bytes

    def __repr__(self) -> str:
        return f"NodeProof(plugin={self.plugin!r})"  # never the evidence


def proof_from(section: CaSection) -> Callable[[], NodeProof]:
    """What reads the proof, as configured; it raises CaUnreachable naming the key."""
    return lambda: NodeProof(plugin=str(section.attestation), evidence=_evidence(section))


def join_token_from(file: Path | None) -> Callable[[], NodeProof]:
    """What reads a join token; for agents that are not configured by a file."""
    return lambda: NodeProof(plugin=str(Attestation.JOIN_TOKEN), evidence=_join_token(file))


def _evidence(section: CaSection) -> bytes:
    match section.attestation:
        case Attestation.JOIN_TOKEN:
            return _join_token(section.join_token_file)
        case Attestation.KUBERNETES:
            return _text("service_account_token_file", section.service_account_token_file)
        case Attestation.INSTANCE_DOCUMENT:
            assert section.instance_document_file is not None
            assert section.instance_signature_file is not None
            return _instance_document(section.instance_document_file, section.instance_signature_file)


def _join_token(file: Path | None) -> bytes:
    if file is None:
        raise CaUnreachable("no valid node certificate is stored and [ca] join_token_file is not set")
    return _text("join_token_file", file)


def _instance_document(document_file: Path, signature_file: Path) -> bytes:
    document = _read("instance_document_file", document_file)
    text = _text("instance_signature_file", signature_file)
    try:
        signature = base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error as error:
        raise CaUnreachable(f"[ca] instance_signature_file: {signature_file} is not Base64 (RFC 4648 4)") from error
    evidence = pack({"document": document, "signature": signature})
    if len(evidence) > _MAX_BYTES:
        raise CaUnreachable(f"[ca] instance_document_file: {document_file} has more than {_MAX_BYTES} bytes")
    return evidence


def _text(key: str, file: Path) -> bytes:
    """The content without the white space around it: tokens and Base64 are ASCII."""
    content = _read(key, file).strip()
    if not content:
        raise CaUnreachable(f"[ca] {key}: {file} is empty")
    if not content.isascii():
        raise CaUnreachable(f"[ca] {key}: {file} can not be read: it holds something else than ASCII text")
    return content


def _read(key: str, file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CaUnreachable(f"[ca] {key}: {file} can not be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise CaUnreachable(f"[ca] {key}: {file} has more than {_MAX_BYTES} bytes")
    return content
