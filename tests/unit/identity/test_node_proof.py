"""What a node shows to the CA: read anew each time, never shown to anybody else, and errors that name the key."""

from pathlib import Path
from typing import Any

import pytest

from ca.errors import CaUnreachable
from ca.wire import unpack
from node_agent.config import Attestation, CaSection, HostPort, load
from node_agent.errors import ConfigError
from node_agent.identity import join_token_from, proof_from
from node_agent.identity.node_proof import NodeProof

_LEAST = '[agent]\nnode = "node-1"\n[ca]\naddress = "10.0.0.1:15012"\nbundle_file = "/etc/bundle.pem"\n'


def section(attestation: Attestation, **files: Path) -> CaSection:
    address = (HostPort(host="127.0.0.1", port=1),)
    return CaSection(address=address, bundle_file=Path("/unused"), attestation=attestation, **files)


def kubernetes(file: Path) -> CaSection:
    return section(Attestation.KUBERNETES, service_account_token_file=file)


def refused(how: CaSection) -> str:
    with pytest.raises(CaUnreachable) as error:
        proof_from(how)()
    return str(error.value)


def test_the_file_is_read_anew_for_each_attempt(tmp_path: Path) -> None:
    file = tmp_path / "token"
    read = proof_from(kubernetes(file))
    file.write_text("first\n")
    assert read() == NodeProof(plugin="kubernetes", evidence=b"first")
    file.write_text("second")
    assert read().evidence == b"second"


def test_a_join_token_is_found_where_it_is_configured(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" rfjoin-00 \n")
    for read in (proof_from(section(Attestation.JOIN_TOKEN, join_token_file=file)), join_token_from(file)):
        assert read() == NodeProof(plugin="join_token", evidence=b"rfjoin-00")
    assert "join_token_file is not set" in refused(section(Attestation.JOIN_TOKEN))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "can not be read: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff", "something else than ASCII text"),
        (b"x" * 20_000, "has more than 12288 bytes"),
    ],
)
def test_a_file_that_is_of_no_use_is_named_with_its_key_and_not_quoted(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    error = refused(kubernetes(file))
    assert error.startswith(f"[ca] service_account_token_file: {file}")
    assert says in error
    assert len(error) < 300


def test_document_and_signature_are_shown_as_the_ca_reads_them(tmp_path: Path) -> None:
    document, signature = tmp_path / "document", tmp_path / "signature"
    how = section(Attestation.INSTANCE_DOCUMENT, instance_document_file=document, instance_signature_file=signature)
    assert f"instance_document_file: {document}" in refused(how)
    document.write_bytes(b'{"a": 1}\n')
    assert f"instance_signature_file: {signature}" in refused(how)
    signature.write_text("c2ln\nbmVk\n")
    assert unpack(proof_from(how)().evidence, 1000) == {"document": b'{"a": 1}\n', "signature": b"signed"}
    signature.write_text("c2l")
    assert "is not Base64 (RFC 4648 4)" in refused(how)
    signature.write_text("c2ln")
    document.write_bytes(b"x" * 12_280)
    assert "has more than 12288 bytes" in refused(how)


def test_evidence_is_never_shown() -> None:
    assert "s3cret" not in repr(NodeProof(plugin="kubernetes", evidence=b"s3cret"))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ('attestation = "tpm"', "[ca] attestation = 'tpm': expected one of join_token, kubernetes, instance_document"),
        ("attestation = 1", "[ca] attestation = 1: expected a text"),
        ('attestation = "kubernetes"\njoin_token_file = "/x"', "[ca] join_token_file: is not read with attestation"),
        ('attestation = "instance_document"', "[ca] instance_document_file: missing with attestation"),
        (
            'attestation = "instance_document"\ninstance_document_file = "/x"',
            "[ca] instance_signature_file: missing with attestation",
        ),
        ('instance_document_file = "/x"', "[ca] instance_document_file: not read with attestation = 'join_token'"),
        ('service_account_token_file = "x"', "[ca] service_account_token_file = 'x': expected an absolute path"),
    ],
)
def test_keys_that_do_not_go_together_are_refused_at_the_start(tmp_path: Path, keys: str, says: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(_LEAST + keys)
    with pytest.raises(ConfigError) as error:
        load(path)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"join_token_file": "/x"},
        {"attestation": "kubernetes"},
        {"attestation": "kubernetes", "service_account_token_file": "/x"},
        {"attestation": "instance_document", "instance_document_file": "/x", "instance_signature_file": "/y"},
    ],
)
def test_keys_that_go_together_are_accepted(tmp_path: Path, keys: dict[str, Any]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(_LEAST + "".join(f'{key} = "{value}"\n' for key, value in keys.items()))
    assert load(path).ca.attestation == keys.get("attestation", "join_token")
