"""A real authority for tests: in a directory of its own, in this process or as a process."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import trio
from cryptography.hazmat.primitives import serialization

from ca.authority import attestation, founding
from ca.authority.config import AuthorityConfig
from ca.authority.hierarchy import Hierarchy
from ca.authority.records import CertificateRecord, TokenRecord
from ca.authority.serve import serve
from ca.authority.signer import Signer
from ca.authority.store import Store
from ca.client import CaClient, load_chain
from ca.csr import build_csr, new_key
from ca.messages import ALPN, Issued, SignRequest, SignWorkloads
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain, strict_context

TRUST_DOMAIN: Final = "cluster.local"
PASSPHRASE: Final = b"a passphrase for tests"

_POD: Final = """\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{ringfence.io/mesh: {mesh}}}}}
spec: {{nodeName: {node}, serviceAccountName: {account}}}
status: {{phase: {phase}, podIP: {ip}}}
"""


def workload(account: str, *, namespace: str = "default", trust_domain: str = TRUST_DOMAIN) -> SpiffeId:
    return SpiffeId.workload(trust_domain, namespace, account)


@dataclass(frozen=True, kw_only=True)
class Authority:
    """What an operator has: a configuration, and the directory that ``init`` made."""

    config: AuthorityConfig
    config_file: Path
    hierarchy: Hierarchy

    @property
    def signer(self) -> Signer:
        return Signer(hierarchy=self.hierarchy, ttl=timedelta(hours=1))

    def token(self, node: str, *, expires_in_s: float = 600.0) -> str:
        at = datetime.now(UTC)
        text = attestation.format_token(secrets.token_bytes(32))
        record = TokenRecord(
            token_hash=attestation.token_hash(text), node=node, expires_at=at + timedelta(seconds=expires_in_s)
        )
        store = Store.open(self.config.database)
        store.add_token(record, at=at)
        store.close()
        return text

    def journal(self) -> list[CertificateRecord]:
        store = Store.open(self.config.database)
        try:
            return store.certificates()
        finally:
            store.close()

    def pod(
        self,
        name: str,
        *,
        node: str,
        account: str = "default",
        namespace: str = "default",
        mesh: str = "enabled",
        phase: str = "Running",
        ip: str = "10.247.1.5",
    ) -> None:
        text = _POD.format(name=name, namespace=namespace, node=node, account=account, mesh=mesh, phase=phase, ip=ip)
        path = self.config.manifests_dir / f"pod.{namespace}.{name}.yaml"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(path)

    def replica(self, name: str, *, database_url: str | None = None) -> "Authority":
        """Another machine's configuration: a state directory of its own, the same or another PostgreSQL."""
        text = self.config_file.read_text().replace(str(self.config.state_dir), str(self.config.state_dir) + name)
        if database_url is not None:
            text = text.replace("[registry]", f'database = "{database_url}"\n[registry]')
        config_file = self.config_file.with_name(f"ca{name}.toml")
        config_file.write_text(text)
        return replace(self, config=AuthorityConfig.load(config_file), config_file=config_file)

    def client(self, *ports: int) -> CaClient:
        return CaClient(
            addresses=[("127.0.0.1", port) for port in ports],
            roots_pem=self.config.bundle_file.read_bytes(),
            trust_domain=TRUST_DOMAIN,
        )

    def node_credentials(self, node: str, *, at: datetime | None = None) -> KeyAndChain:
        """A node certificate made without asking: what a thief of a node would hold."""
        return self.credentials(SpiffeId.node(TRUST_DOMAIN, node), at=at)

    def credentials(self, identity: SpiffeId, *, at: datetime | None = None) -> KeyAndChain:
        key = new_key()
        svid = self.signer.sign(identity, key.public_key(), at=at or datetime.now(UTC))
        return KeyAndChain(key=key, chain=load_chain(svid.chain_der))


def make_authority(
    directory: Path,
    *,
    port: int = 0,
    at: datetime | None = None,
    database_url: str | None = None,
    trust_domain: str = TRUST_DOMAIN,
    more: str = "",
) -> Authority:
    """``ringfence ca init`` in ``directory``, with SQLite or with the PostgreSQL at ``database_url``.

    ``more`` are further sections of ca.toml.
    """
    passphrase_file = directory / "passphrase"
    passphrase_file.touch(mode=0o600)
    passphrase_file.write_bytes(PASSPHRASE)
    manifests = directory / "manifests"
    manifests.mkdir()
    config_file = directory / "ca.toml"
    database = "" if database_url is None else f'database = "{database_url}"\n'
    config_file.write_text(
        f'[ca]\ntrust_domain = "{trust_domain}"\naddress = "127.0.0.1:{port}"\n'
        f'state_dir = "{directory}/state"\npassphrase_file = "{passphrase_file}"\n{database}'
        f'[registry]\nmanifests_dir = "{manifests}"\n{more}'
    )
    config = AuthorityConfig.load(config_file)
    made = founding.create(config, passphrase=PASSPHRASE, at=at or datetime.now(UTC))
    return Authority(config=config, config_file=config_file, hierarchy=made)


@asynccontextmanager
async def serving(authority: Authority) -> AsyncIterator[int]:
    """Serve in this process; gives the port."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(
            lambda task_status: serve(authority.config, passphrase=PASSPHRASE, task_status=task_status)
        )
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tcp(port: int, host: str = "127.0.0.1") -> AsyncIterator[trio.SocketStream]:
    stream = await trio.open_tcp_stream(host, port)
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def connected(
    authority: Authority, port: int, own: KeyAndChain | None = None, *, alpn: str = ALPN
) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    context = strict_context(server_side=False, roots=authority.hierarchy.roots, alpn=alpn, own=own)
    async with tcp(port) as transport:
        stream = trio.SSLStream(transport, context, https_compatible=True)
        await stream.do_handshake()
        yield stream


async def attested(authority: Authority, client: CaClient, node: str) -> KeyAndChain:
    """Join as ``node``, with a token that the operator has just made."""
    key = new_key()
    reply = await client.attest(authority.token(node), node, build_csr(key, SpiffeId.node(TRUST_DOMAIN, node)))
    return KeyAndChain(key=key, chain=load_chain(reply.certificates[0].chain_der))


async def sign(client: CaClient, own: KeyAndChain, *identities: SpiffeId) -> Issued:
    """Ask for SVIDs, each with a proper request and a new key."""
    requests = [SignRequest(identity=identity, csr_der=build_csr(new_key(), identity)) for identity in identities]
    return await client.sign(requests, own)


def sign_request(account: str, *, count: int) -> SignWorkloads:
    """A message that asks ``count`` times for the same identity."""
    item = SignRequest(identity=workload(account), csr_der=build_csr(new_key(), workload(account)))
    return SignWorkloads(requests=(item,) * count)


def pem(*certificates: object) -> bytes:
    """Certificates as PEM, one after the other."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)  # type: ignore[attr-defined]
