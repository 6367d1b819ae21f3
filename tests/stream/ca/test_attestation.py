"""Nodes prove themselves to a real authority: every method, what a thief tries, and nobody waits for another."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ca.authority.config import AuthorityConfig
from ca.authority.store import Store
from ca.client import load_chain
from ca.csr import build_csr, new_key
from ca.errors import CaRefused
from ca.messages import Attest, RefusalCode
from ca.spiffe import SpiffeId
from ca.svid import identity_of
from ca.tls import KeyAndChain
from node_agent.cli.main import main as ringfence
from node_agent.config import Attestation, CaSection, HostPort
from node_agent.identity import NodeCredentials, NodeKeyStore, proof_from
from node_agent.identity.identities import utc_now
from tests.authority_builder import TRUST_DOMAIN, Authority, make_authority, serving, sign, workload
from tests.instance_documents import ACCOUNT, Provider, document
from tests.kube_api_server import AUDIENCE, KubeApiServer, Misbehaviour, kube_api_server


def configured(authority: Authority, section: str) -> Authority:
    with authority.config_file.open("a") as file:
        file.write(section)
    return replace(authority, config=AuthorityConfig.load(authority.config_file))


def with_kubernetes(directory: Path, kube: KubeApiServer) -> Authority:
    return configured(
        make_authority(directory),
        '[attestation]\nplugins = ["join_token", "kubernetes"]\n[attestation.kubernetes]\n'
        f'server = "https://127.0.0.1:{kube.port}"\nca_file = "{kube.ca_file}"\ntoken_file = "{kube.token_file}"\n'
        'service_accounts = ["ringfence/ringfence-agent"]\n',
    )


def with_documents(directory: Path, provider: Provider) -> Authority:
    certificate_file = directory / "provider.pem"
    certificate_file.write_bytes(provider.pem)
    return configured(
        make_authority(directory),
        '[attestation]\nplugins = ["instance_document"]\n[attestation.instance_document]\n'
        f'certificate_file = "{certificate_file}"\naccounts = ["{ACCOUNT}"]\n',
    )


def node_csr(node: str) -> bytes:
    return build_csr(new_key(), SpiffeId.node(TRUST_DOMAIN, node))


def rsa_csr(identity: SpiffeId) -> bytes:
    """Right in all but the kind of its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(name, critical=True)
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@contextmanager
def refused(code: RefusalCode, says: str = "") -> Iterator[None]:
    with pytest.raises(CaRefused) as caught:
        yield
    assert (caught.value.code, says in caught.value.text) == (code, True), caught.value.text


def issued_to(authority: Authority, node: str) -> list[str]:
    return [each.attestation for each in authority.journal() if each.node == node]


# -- Kubernetes --------------------------------------------------------------------


async def test_a_service_account_token_buys_a_node_certificate_which_buys_those_of_its_workloads(
    tmp_path: Path,
) -> None:
    async with kube_api_server(tmp_path) as kube:
        authority = with_kubernetes(tmp_path, kube)
        authority.pod("web-1", node="node-1", account="web")
        authority.pod("db-1", node="node-2", account="db")
        token, key = kube.token(kube.pod("agent-x", node="node-1")), new_key()
        async with serving(authority) as port:
            client = authority.client(port)
            csr = build_csr(key, SpiffeId.node(TRUST_DOMAIN, "node-1"))
            chain = load_chain((await client.attest_with("kubernetes", token, "node-1", csr)).certificates[0].chain_der)
            reply = await sign(client, KeyAndChain(key=key, chain=chain), workload("web"), workload("db"))

    assert identity_of(chain[0]) == SpiffeId.node(TRUST_DOMAIN, "node-1")
    assert reply.certificates[0].chain_der
    assert reply.certificates[1].error is not None
    assert reply.certificates[1].error.code is RefusalCode.NOT_SCHEDULED
    assert issued_to(authority, "node-1") == ["kubernetes", "node_certificate"]


async def test_the_token_of_a_stolen_pod_gets_no_other_node_and_nothing_is_journalled(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        authority = with_kubernetes(tmp_path, kube)
        agent = kube.token(kube.pod("agent-x", node="node-1"))
        other = kube.token(kube.pod("web-1", node="node-1", account="web", namespace="default"))
        elsewhere = kube.token(kube.pods["ringfence", "agent-x"], audience="https://elsewhere")
        async with serving(authority) as port:
            client = authority.client(port)
            with refused(RefusalCode.ATTESTATION_REFUSED, "does not run on this node"):
                await client.attest_with("kubernetes", agent, "node-2", node_csr("node-2"))
            with refused(RefusalCode.ATTESTATION_REFUSED, "not one of the agents'"):
                await client.attest_with("kubernetes", other, "node-1", node_csr("node-1"))
            with refused(RefusalCode.ATTESTATION_REFUSED, AUDIENCE):
                await client.attest_with("kubernetes", elsewhere, "node-1", node_csr("node-1"))
            with refused(RefusalCode.BAD_CSR):
                await client.attest_with("kubernetes", agent, "node-1", node_csr("node-2"))
            with refused(RefusalCode.BAD_CSR):
                await client.attest_with("kubernetes", agent, "node-1", build_csr(new_key(), workload("web")))
            with refused(RefusalCode.BAD_CSR):
                await client.attest_with("kubernetes", agent, "node-1", rsa_csr(SpiffeId.node(TRUST_DOMAIN, "node-1")))
            for node in ("../ca", "node-1/x", "", "node-1\n"):
                with refused(RefusalCode.BAD_REQUEST, "SPIFFE-ID 2.2"):
                    await client.attest_with("kubernetes", agent, node, node_csr("node-1"))

    assert issued_to(authority, "node-1") == []


async def test_a_node_that_is_revoked_is_not_let_in_by_the_token_of_its_pod(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        authority = with_kubernetes(tmp_path, kube)
        token = kube.token(kube.pod("agent-x", node="node-1"))
        async with serving(authority) as port:
            client = authority.client(port)
            await client.attest_with("kubernetes", token, "node-1", node_csr("node-1"))
            store = Store.open(authority.config.database)
            store.revocations.revoke_node("node-1", at=datetime.now(UTC), why="stolen")
            store.close()
            with refused(RefusalCode.REVOKED):
                await client.attest_with("kubernetes", token, "node-1", node_csr("node-1"))


async def test_while_the_api_server_hangs_everybody_else_is_served(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        authority = with_kubernetes(tmp_path, kube)
        authority.pod("web-1", node="node-2", account="web")
        token = kube.token(kube.pod("agent-x", node="node-1"))
        kube.misbehave = Misbehaviour.HANGS
        outcomes: list[str] = []

        async def attest() -> None:
            with refused(RefusalCode.UNAVAILABLE):
                await authority.client(port).attest_with("kubernetes", token, "node-1", node_csr("node-1"))
            outcomes.append("gave up")

        async with serving(authority) as port, trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(attest)
            while len(kube.requests) < 16:
                await trio.sleep(0.01)
            client = authority.client(port)
            await client.attest(authority.token("node-3"), "node-3", node_csr("node-3"))
            reply = await sign(client, authority.node_credentials("node-2"), workload("web"))
            outcomes.append("served")
        assert len(kube.requests) <= 18  # 16 at once; the third that is given up opens the circuit

    assert reply.certificates[0].chain_der
    assert outcomes == ["served"] + ["gave up"] * 20


# -- documents ---------------------------------------------------------------------


async def test_a_machine_attests_once_and_once_more_when_the_operator_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = Provider(at=datetime.now(UTC))
    authority = with_documents(tmp_path, provider)
    evidence = provider.evidence(document("i-1"))
    config = ["--config", str(authority.config_file)]
    async with serving(authority) as port:
        client = authority.client(port)
        with refused(RefusalCode.BAD_CSR):  # which uses nothing up
            await client.attest_with("instance_document", evidence, "i-1", node_csr("i-2"))
        await client.attest_with("instance_document", evidence, "i-1", node_csr("i-1"))
        with refused(RefusalCode.ATTESTATION_REFUSED, f"ringfence ca instances --forget {ACCOUNT}/i-1"):
            await client.attest_with("instance_document", evidence, "i-1", node_csr("i-1"))

        assert ringfence(["ca", "instances", *config, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["instance"], row["node"], row["method"]) == (f"{ACCOUNT}/i-1", "i-1", "instance_document")
        assert ringfence(["ca", "instances", *config]) == 0
        assert f"{ACCOUNT}/i-1  i-1  " in capsys.readouterr().out
        assert ringfence(["ca", "instances", *config, "--forget", f"{ACCOUNT}/i-1"]) == 0
        assert ringfence(["ca", "instances", *config, "--forget", "nobody"]) == 1
        assert "no such machine has attested" in capsys.readouterr().err
        await client.attest_with("instance_document", evidence, "i-1", node_csr("i-1"))

    assert issued_to(authority, "i-1") == ["instance_document"] * 2


async def test_of_many_who_use_one_document_at_once_one_gets_a_certificate(tmp_path: Path) -> None:
    provider = Provider(at=datetime.now(UTC))
    authority = with_documents(tmp_path, provider)
    outcomes: list[str] = []

    async def attest() -> None:
        try:
            await authority.client(port).attest_with(
                "instance_document", provider.evidence(document("i-1")), "i-1", node_csr("i-1")
            )
            outcomes.append("issued")
        except CaRefused as exc:
            outcomes.append(exc.code)

    async with serving(authority) as port, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(attest)

    assert sorted(outcomes) == [RefusalCode.ATTESTATION_REFUSED] * 7 + ["issued"]
    assert len(issued_to(authority, "i-1")) == 1


# -- what is enabled ---------------------------------------------------------------


async def test_a_method_that_is_not_enabled_is_refused_with_those_that_are(tmp_path: Path) -> None:
    authority = with_documents(tmp_path, Provider(at=datetime.now(UTC)))
    async with serving(authority) as port:
        client = authority.client(port)
        enabled = "enabled: instance_document"
        for plugin in ("kubernetes", "tpm", "join_token\n"):
            with refused(RefusalCode.ATTESTATION_REFUSED, enabled):
                await client.attest_with(plugin, b"x", "node-1", node_csr("node-1"))
        with refused(RefusalCode.ATTESTATION_REFUSED, enabled):
            await client.attest(authority.token("node-1"), "node-1", node_csr("node-1"))


async def test_a_join_token_is_taken_in_either_form_and_once(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        authority = with_kubernetes(tmp_path, kube)
        token = authority.token("node-1")
        async with serving(authority) as port:
            client = authority.client(port)
            with refused(RefusalCode.TOKEN_INVALID):
                await ask_as_attest(authority, port, token, "node-2")
            await ask_as_attest(authority, port, token, "node-1")
            with refused(RefusalCode.TOKEN_INVALID, "used already"):
                await client.attest(token, "node-1", node_csr("node-1"))
    assert issued_to(authority, "node-1") == ["join_token"]


async def ask_as_attest(authority: Authority, port: int, token: str, node: str) -> None:
    """``Attest`` with the plugin ``join_token``; our own client sends ``AttestWithToken``."""
    request = Attest(plugin="join_token", node=node, evidence=token.encode(), csr_der=node_csr(node))
    await authority.client(port)._ask(request, None)


# -- an agent ----------------------------------------------------------------------


def section(directory: Path, attestation: Attestation, **files: Path) -> CaSection:
    return CaSection(
        address=(HostPort(host="127.0.0.1", port=1),),
        bundle_file=directory / "unused",
        attestation=attestation,
        **files,
    )


async def joined(directory: Path, authority: Authority, port: int, how: CaSection, node: str) -> str:
    """An agent's identities, from nothing to its node certificate; the error that it shows, if it gets none at once."""
    (directory / "node-passphrase").write_text("correct horse")
    credentials = NodeCredentials(
        node=node,
        trust_domain=TRUST_DOMAIN,
        ca=authority.client(port),
        key_store=NodeKeyStore(directory=directory / "node", passphrase_file=directory / "node-passphrase"),
        proof=proof_from(how),
        utc_now=utc_now,
        rng=random.Random(7),
    )
    await credentials.renew()
    return credentials.ready()[1]


async def test_an_agent_joins_with_the_token_that_the_kubelet_projects(tmp_path: Path) -> None:
    async with kube_api_server(tmp_path) as kube:
        authority = with_kubernetes(tmp_path, kube)
        file = tmp_path / "ringfence-ca"
        how = section(tmp_path, Attestation.KUBERNETES, service_account_token_file=file)
        async with serving(authority) as port:
            assert "service_account_token_file" in await joined(tmp_path, authority, port, how, "node-1")
            file.write_bytes(kube.token(kube.pod("agent-x", node="node-2")))
            assert "does not run on this node" in await joined(tmp_path, authority, port, how, "node-1")
            file.write_bytes(kube.token(kube.pod("agent-y", node="node-1")))
            assert await joined(tmp_path, authority, port, how, "node-1") == ""


async def test_an_agent_joins_with_the_document_of_its_machine(tmp_path: Path) -> None:
    provider = Provider(at=datetime.now(UTC))
    authority = with_documents(tmp_path, provider)
    document_file, signature_file = tmp_path / "document", tmp_path / "signature"
    files = {"instance_document_file": document_file, "instance_signature_file": signature_file}
    how = section(tmp_path, Attestation.INSTANCE_DOCUMENT, **files)
    async with serving(authority) as port:
        assert "instance_document_file" in await joined(tmp_path, authority, port, how, "i-1")
        document_file.write_bytes(document("i-1"))
        signature_file.write_text("not Base64!")
        assert "RFC 4648" in await joined(tmp_path, authority, port, how, "i-1")
        signature_file.write_text(provider.signature_text(document_file.read_bytes()))
        assert await joined(tmp_path, authority, port, how, "i-1") == ""
