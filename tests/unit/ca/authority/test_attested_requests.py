"""What the authority does with what a plugin has found: issue it, or refuse it."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ca.authority.attestation.attested import Attested, refused
from ca.authority.errors import Refusal
from ca.authority.placement import PlacementDirectory
from ca.authority.records import Instance
from ca.authority.requests import Requester, RequestHandler
from ca.authority.store import JournalEntry, Store
from ca.csr import build_csr, new_key
from ca.messages import Attest, Issued, RefusalCode, Refused
from ca.spiffe import SpiffeId
from tests.authority_builder import TRUST_DOMAIN, make_authority

AT = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
NODE = SpiffeId.node(TRUST_DOMAIN, "i-1")
ANYBODY = Requester(address="10.0.0.1:4000", identity=None)
MACHINE = Instance(method="instance_document", id="1/i-1")
JUDGED = Attested(identity=NODE, node="i-1", method="instance_document", instance=MACHINE)


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[tuple[RequestHandler, Store]]:
    authority = make_authority(tmp_path, at=AT)
    store = Store.open(authority.config.database)
    placement = PlacementDirectory(trust_domain=TRUST_DOMAIN, directory=authority.config.manifests_dir)
    yield (
        RequestHandler(trust_domain=TRUST_DOMAIN, signer=authority.signer, store=store, placement=placement),
        store,
    )
    store.close()


def request(plugin: str = "instance_document") -> Attest:
    return Attest(plugin=plugin, node="i-1", evidence=b"x", csr_der=build_csr(new_key(), NODE))


def test_what_a_plugin_refused_is_told_as_it_is(handler: tuple[RequestHandler, Store]) -> None:
    reply = handler[0].handle(request(), ANYBODY, at=AT, judged=refused("the rule"))
    assert reply == Refused(code=RefusalCode.ATTESTATION_REFUSED, text="the rule")


def test_an_attest_that_nobody_judged_is_never_issued(handler: tuple[RequestHandler, Store]) -> None:
    reply = handler[0].handle(request(), ANYBODY, at=AT)
    assert isinstance(reply, Refused)
    assert reply.code is RefusalCode.INTERNAL
    assert handler[1].certificate_count() == 0


@pytest.mark.parametrize("plugin", ["join_token", "instance_document"])
def test_a_method_that_is_not_enabled_is_refused_whatever_the_evidence(
    handler: tuple[RequestHandler, Store], plugin: str
) -> None:
    disabled = Refusal(RefusalCode.ATTESTATION_REFUSED, "not enabled")
    reply = handler[0].handle(request(plugin), ANYBODY, at=AT, judged=disabled)
    assert isinstance(reply, Refused)
    assert reply.code is RefusalCode.ATTESTATION_REFUSED


def test_a_machine_that_attested_is_told_how_it_is_let_in_again(handler: tuple[RequestHandler, Store]) -> None:
    answering, store = handler
    assert isinstance(answering.handle(request(), ANYBODY, at=AT, judged=JUDGED), Issued)
    reply = answering.handle(request(), ANYBODY, at=AT, judged=JUDGED)
    assert isinstance(reply, Refused)
    assert reply.code is RefusalCode.ATTESTATION_REFUSED
    assert "ringfence ca instances --forget 1/i-1" in reply.text
    assert store.certificate_count() == 1


def test_what_is_revoked_while_it_is_journalled_does_not_leave(
    handler: tuple[RequestHandler, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering, store = handler
    journal_all = store.journal_all

    def revoked_meanwhile(entries: Sequence[JournalEntry], *, at: datetime) -> list[bool]:
        written = journal_all(entries, at=at)
        store.revocations.revoke_node("i-1", at=at, why="stolen")
        return written

    monkeypatch.setattr(store, "journal_all", revoked_meanwhile)
    reply = answering.handle(request(), ANYBODY, at=AT, judged=JUDGED)
    assert isinstance(reply, Refused)
    assert reply.code is RefusalCode.UNAVAILABLE
    monkeypatch.undo()
    again = answering.handle(request(), ANYBODY, at=AT, judged=JUDGED)
    assert isinstance(again, Refused)
    assert again.code is RefusalCode.REVOKED


def test_a_node_that_is_revoked_gets_nothing_and_uses_nothing_up(handler: tuple[RequestHandler, Store]) -> None:
    answering, store = handler
    assert isinstance(answering.handle(request(), ANYBODY, at=AT, judged=JUDGED), Issued)
    store.revocations.revoke_node("i-1", at=AT, why="stolen")
    store.instances.forget("1/i-1")
    reply = answering.handle(request(), ANYBODY, at=AT, judged=JUDGED)
    assert isinstance(reply, Refused)
    assert reply.code is RefusalCode.REVOKED
    assert store.instances.read() == []
