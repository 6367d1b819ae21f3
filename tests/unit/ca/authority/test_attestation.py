"""Who is a node: join tokens and node certificates, as pure rules."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.authority import attestation
from ca.authority.errors import Refusal
from ca.authority.records import TokenRecord
from ca.messages import RefusalCode
from ca.spiffe import SpiffeId
from node_agent.cli.main import main
from tests.authority_builder import TRUST_DOMAIN, make_authority, workload

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TOKEN = attestation.format_token(bytes(32))


def known(*, node: str = "node-1", expires_in_s: float = 600, used_at: datetime | None = None) -> TokenRecord:
    return TokenRecord(
        token_hash=attestation.token_hash(TOKEN),
        node=node,
        expires_at=AT + timedelta(seconds=expires_in_s),
        used_at=used_at,
    )


def refused(found: TokenRecord | None, node: str = "node-1") -> Refusal:
    with pytest.raises(Refusal) as refusal:
        attestation.by_token(trust_domain=TRUST_DOMAIN, node=node, found=found, at=AT)
    return refusal.value


def test_a_fresh_token_proves_the_node_that_it_was_made_for() -> None:
    proven = attestation.by_token(trust_domain=TRUST_DOMAIN, node="node-1", found=known(), at=AT)

    assert proven.identity == SpiffeId.node(TRUST_DOMAIN, "node-1")
    assert proven.method == "join_token"
    assert proven.token_hash == attestation.token_hash(TOKEN)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "knows no such join token"),
        (known(node="node-2"), "another node"),
        (known(expires_in_s=0), "expired at"),
        (known(expires_in_s=-1), "expired at"),
        (known(used_at=AT), "used already"),
    ],
    ids=["unknown", "other-node", "expires-now", "expired", "used"],
)
def test_a_token_that_does_not_count_is_refused_with_the_reason(found: TokenRecord | None, says: str) -> None:
    refusal = refused(found)
    assert refusal.code is RefusalCode.TOKEN_INVALID
    assert says in refusal.text


def test_the_node_of_a_token_is_not_revealed_to_another() -> None:
    assert "node-2" not in refused(known(node="node-2")).text


@pytest.mark.parametrize("node", ["", "..", "a/b", "../ca", "n%41", "node\n1"])
def test_a_node_name_that_could_become_another_identity_is_refused(node: str) -> None:
    assert refused(known(node=node), node).code is RefusalCode.BAD_REQUEST


def test_a_node_certificate_proves_its_node() -> None:
    presented = SpiffeId.node(TRUST_DOMAIN, "node-1")
    proven = attestation.by_certificate(trust_domain=TRUST_DOMAIN, presented=presented)
    assert (proven.node, proven.identity, proven.token_hash) == ("node-1", presented, None)


@pytest.mark.parametrize(
    "presented",
    [
        None,
        workload("web"),
        SpiffeId.authority(TRUST_DOMAIN),
        SpiffeId(TRUST_DOMAIN, "/ringfence/node/a/b"),
        SpiffeId("other.example", "/ringfence/node/node-1"),
    ],
    ids=["none", "workload", "authority", "deeper", "other-domain"],
)
def test_no_other_certificate_speaks_for_a_node(presented: SpiffeId | None) -> None:
    with pytest.raises(Refusal) as refusal:
        attestation.by_certificate(trust_domain=TRUST_DOMAIN, presented=presented)
    assert refusal.value.code is RefusalCode.UNAUTHENTICATED


def test_only_the_hash_of_a_token_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = make_authority(tmp_path)
    assert main(["ca", "token", "--node", "node-1", "--config", str(authority.config_file)]) == 0
    token = capsys.readouterr().out.strip()
    assert len(token) > 40
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert attestation.token_hash(token) in kept
    assert token.encode() not in kept
