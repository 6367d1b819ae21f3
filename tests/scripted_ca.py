"""An agent's identities with a CA that needs no network, and has the trouble that a test wants."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import trio
import trio.testing
from cryptography import x509

from ca.client import CaClient
from ca.errors import CaError, CaRefused
from ca.messages import (
    Attest,
    AttestWithToken,
    GetBundle,
    Issued,
    IssuedCertificate,
    RefusalCode,
    Refused,
    RenewNode,
    Reply,
    Request,
    SignJwt,
    SignWorkloads,
    WatchTrust,
)
from ca.spiffe import SpiffeId
from ca.tls import KeyAndChain
from node_agent.identity import Identities, NodeCredentials, NodeKeyStore, join_token_from
from tests.certificates import START, TRUST_DOMAIN, Signer, der, make_root, pem

WEB: Final = SpiffeId.workload(TRUST_DOMAIN, "default", "web")
CART: Final = SpiffeId.workload(TRUST_DOMAIN, "default", "cart")
HOUR_S: Final = 3600.0


def now_utc() -> datetime:
    return START + timedelta(seconds=trio.current_time())


class ScriptedCa(CaClient):
    """Issues like an authority, without a network; ``trouble`` says what goes wrong instead."""

    def __init__(self, root: Signer) -> None:
        super().__init__(addresses=[("192.0.2.1", 1)], roots_pem=pem(root.certificate), trust_domain=TRUST_DOMAIN)
        self.root = root
        self.signer = root.intermediate()
        self.trouble: CaError | None = None
        self.refusals: dict[SpiffeId, Refused] = {}
        self.asked: list[tuple[float, Request]] = []
        self.spoil: Callable[[x509.Certificate], x509.Certificate] = lambda certificate: certificate
        self.ttl_s = HOUR_S
        self.also_roots: tuple[x509.Certificate, ...] = ()

    def times(self, kind: type[Request]) -> list[float]:
        return [at for at, request in self.asked if isinstance(request, kind)]

    async def _ask(self, request: Request, own: KeyAndChain | None) -> Reply:
        self.asked.append((trio.current_time(), request))
        await trio.sleep(0.001)
        if self.trouble is not None:
            raise self.trouble
        match request:
            case AttestWithToken() if request.token != "good":
                raise CaRefused(RefusalCode.TOKEN_INVALID, "the token is not known")
            case AttestWithToken() | RenewNode():
                node = SpiffeId.node(TRUST_DOMAIN, "node-1")
                return self._issued([self._item(node, request.csr_der, 24 * HOUR_S)])
            case SignWorkloads():
                assert own is not None
                return self._issued([self._item(item.identity, item.csr_der, self.ttl_s) for item in request.requests])
            case Attest() | GetBundle() | SignJwt() | WatchTrust():
                raise AssertionError("an agent with a join token asks for certificates, and nothing else")

    def _item(self, identity: SpiffeId, csr_der: bytes, ttl_s: float) -> IssuedCertificate:
        if identity in self.refusals:
            return IssuedCertificate(identity=identity, error=self.refusals[identity])
        at = now_utc()
        leaf = self.signer.leaf(
            str(identity),
            public_key=x509.load_der_x509_csr(csr_der).public_key(),
            not_before=at - timedelta(seconds=60),
            not_after=at + timedelta(seconds=ttl_s),
        )
        chain = (self.spoil(leaf.certificate), self.signer.certificate)
        return IssuedCertificate(identity=identity, chain_der=tuple(map(der, chain)))

    def _issued(self, items: list[IssuedCertificate]) -> Issued:
        bundle = tuple(map(der, (self.root.certificate, *self.also_roots)))
        return Issued(certificates=tuple(items), bundle_der=bundle, trust_domain=TRUST_DOMAIN)


@dataclass(kw_only=True)
class Agent:
    """The identity part of an agent."""

    ca: ScriptedCa
    identities: Identities
    token_file: Path
    rotated: list[tuple[float, SpiffeId]] = field(default_factory=list)


@asynccontextmanager
async def agent(
    directory: Path, *, token: str | None = "good", ca: ScriptedCa | None = None, wait_s: float = 5.0
) -> AsyncIterator[Agent]:
    ca = ca or ScriptedCa(make_root())
    token_file = directory / "token"
    if token is not None:
        token_file.write_text(token + "\n")
    passphrase_file = directory / "passphrase"
    passphrase_file.write_text("correct horse")
    rng = random.Random(7)
    node = NodeCredentials(
        node="node-1",
        trust_domain=TRUST_DOMAIN,
        ca=ca,
        key_store=NodeKeyStore(directory=directory / "node", passphrase_file=passphrase_file),
        proof=join_token_from(token_file),
        utc_now=now_utc,
        rng=rng,
    )
    identities = Identities(ca=ca, node=node, identity_wait_s=wait_s, rng=rng, utc_now=now_utc)
    made = Agent(ca=ca, identities=identities, token_file=token_file)
    identities.on_rotated.append(lambda identity: made.rotated.append((trio.current_time(), identity)))
    async with trio.open_nursery() as nursery:
        await nursery.start(identities.run)
        yield made
        nursery.cancel_scope.cancel()


async def joined(made: Agent, *wanted: SpiffeId) -> None:
    made.identities.set_wanted(frozenset(wanted))
    with trio.fail_after(60.0):
        while made.identities.status()[0]["state"] != "valid" or not made.identities.ready()[0]:
            await trio.sleep(0.1)
